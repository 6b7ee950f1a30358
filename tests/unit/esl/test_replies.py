from __future__ import annotations

import pytest

from bridge.esl.frames import FrameParser
from bridge.esl.replies import Reply


def read(data: bytes) -> Reply:
    (frame,) = FrameParser().feed(data)
    return Reply.of(frame)


def test_headers_of_userauth():
    reply = read(b"Content-Type: command/reply\nReply-Text: +OK accepted\nAllowed-API: show,status\n\n")
    assert (reply.kind, reply.text, reply.ok) == ("command", "+OK accepted", True)
    assert reply.headers["allowed-api"] == "show,status"


def test_job_uuid():
    assert read(b"Content-Type: command/reply\nReply-Text: +OK Job-UUID: j\nJob-UUID: j\n\n").job_uuid == "j"
    assert Reply("command", "+OK").job_uuid == ""


def test_api_output_is_exact_and_repaired():
    assert read(b"Content-Type: api/response\nContent-Length: 4\n\n a\n\n").text == " a\n\n"
    assert read(b"Content-Type: api/response\nContent-Length: 1\n\n\xe9").text == "\ufffd"


@pytest.mark.parametrize(
    ("kind", "text", "denied", "not_executed"),
    [
        ("command", "-ERR permission denied", True, True),
        ("command", "-ERR command not found", True, True),
        ("command", "-ERR invalid session id [x]", False, True),
        ("command", "-ERR memory error", False, False),
        ("api", "-ERR permission denied\n", False, False),
        ("api", "-ERR foo Command not found!\n", False, False),
        ("command", "+OK", False, False),
    ],
)
def test_what_was_not_executed(kind, text, denied, not_executed):
    reply = Reply(kind, text)
    assert (reply.denied, reply.not_executed) == (denied, not_executed)


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [("api", "-ERR no reply\n", True), ("api", "", True), ("api", "x", False), ("command", "", False)],
)
def test_no_output(kind, text, expected):
    assert Reply(kind, text).no_output is expected
