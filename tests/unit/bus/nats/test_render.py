from __future__ import annotations

import pytest

from bridge.bus.base import Message
from bridge.bus.nats import render as room
from bridge.bus.nats.reading import parse_headers
from bridge.bus.nats.render import (
    MAX_SUBJECT,
    check_batch,
    check_subject,
    message_size,
    render_batch,
    render_headers,
    render_one,
)
from bridge.errors import MessageTooLarge


@pytest.mark.parametrize(
    "subject", ["a", "fs.events.CUSTOM:sofia::register", "_INBOX.x.1", "a.%20", "x" * MAX_SUBJECT, "é"]
)
def test_subjects(subject: str) -> None:
    check_subject(subject)


@pytest.mark.parametrize(
    "subject",
    ["", "a b", "a\r\nPUB x 0\r\n", "a\tb", "a.*", "a.>", "x" * (MAX_SUBJECT + 1), "é" * 600, "a\x00", "\ud800"],
)
def test_what_is_no_subject(subject: str) -> None:
    with pytest.raises(ValueError, match="not a NATS subject"):
        check_subject(subject)
    with pytest.raises(ValueError, match="not a NATS subject"):
        render_one(subject, "", b"", "", None, 100)
    pieces: list[bytes] = []
    with pytest.raises(ValueError, match="not a NATS subject"):
        render_batch([Message(subject, b"")], pieces, 100)


def test_headers() -> None:
    block = render_headers("application/json", "core:1", [("Trace", "a\r\nb")])
    assert block == "NATS/1.0\r\nNats-Msg-Id: core:1\r\nContent-Type: application/json\r\nTrace: a  b\r\n\r\n"
    assert parse_headers(block.encode()) == {
        "Nats-Msg-Id": "core:1",
        "Content-Type": "application/json",
        "Trace": "a  b",
    }
    assert render_headers("") == ""
    assert render_headers("", "x\nInjected: 1") == "NATS/1.0\r\nNats-Msg-Id: x Injected: 1\r\n\r\n"
    with pytest.raises(ValueError, match="header name"):
        render_headers("", "", [("a b", "c")])


def test_status_lines_are_headers() -> None:
    assert parse_headers(b"NATS/1.0 503\r\n\r\n") == {"Status": "503"}
    assert parse_headers(b"NATS/1.0 404 No Messages\r\nA:b\r\n\r\n") == {
        "Status": "404",
        "Description": "No Messages",
        "A": "b",
    }


def test_a_batch_is_rendered_with_its_true_sizes() -> None:
    batch = [Message("a", b"x"), Message("b", "ü".encode(), "ü", "", "t")]
    pieces: list[bytes] = []
    size = render_batch(batch, pieces, 1000)
    header = "NATS/1.0\r\nNats-Msg-Id: ü\r\nContent-Type: t\r\n\r\n".encode()
    head = f"PUB a 1\r\nx\r\nHPUB b {len(header)} {len(header) + 2}\r\n".encode()
    expected = head + header + "ü\r\n".encode()
    assert b"".join(pieces) == expected
    assert size == len(expected)
    assert message_size(batch[1]) == len(header) + 2


def test_reply_subjects_are_counted() -> None:
    pieces: list[bytes] = []
    render_batch([Message("a", b"x"), Message("a", b"y")], pieces, 100, "_INBOX.q.", 15)
    assert b"".join(pieces) == b"PUB a _INBOX.q.f 1\r\nx\r\nPUB a _INBOX.q.10 1\r\ny\r\n"


def test_one_message() -> None:
    assert render_one("a", "", b"x", "", None, 100) == b"PUB a  1\r\nx\r\n"
    assert render_one("a", "r", b"x", "t", {"K": "v"}, 100) == (
        b"HPUB a r 35 36\r\nNATS/1.0\r\nContent-Type: t\r\nK: v\r\n\r\nx\r\n"
    )


@pytest.mark.parametrize("headers", [(), (("K", "v"),)])
def test_the_limit_counts_headers(headers: tuple[tuple[str, str], ...]) -> None:
    message = Message("a", b"x" * 50, "id", "", "type", headers)
    size = message_size(message)
    check_batch([message], size)
    render_batch([message], [], size)
    for render in (lambda: check_batch([message], size - 1), lambda: render_batch([message], [], size - 1)):
        with pytest.raises(MessageTooLarge) as caught:
            render()
        assert (caught.value.size, caught.value.limit) == (size, size - 1)


def test_addresses_that_come_once_are_checked_and_not_kept() -> None:
    """They would push the topics of events out, and hold a megabyte."""
    before = dict(room._known)
    render_one("_INBOX.caller.once", "_INBOX.answers.once", b"x", "", None, 1 << 20)
    assert room._known == before
    for subject, reply in (("_INBOX.a b", ""), ("_INBOX.a", "_INBOX.b *")):
        with pytest.raises(ValueError, match="not a NATS subject"):
            render_one(subject, reply, b"x", "", None, 1 << 20)
