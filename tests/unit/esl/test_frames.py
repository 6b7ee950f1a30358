from __future__ import annotations

import pytest

from bridge.errors import LimitExceeded, ProtocolError
from bridge.esl.frames import Frame, FrameParser, Oversized

EVENT = b"Content-Length: 20\nContent-Type: text/event-json\n\n" + b'{"Event-Name": "XY"}'


def test_frame_has_its_parts():
    (frame,) = FrameParser().feed(EVENT)
    assert frame == Frame(
        "text/event-json", b'{"Event-Name": "XY"}', b"Content-Length: 20\nContent-Type: text/event-json"
    )
    assert frame.headers == {"content-length": "20", "content-type": "text/event-json"}


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview])
def test_any_buffer_is_taken_and_copied(wrap):
    buffer = bytearray(EVENT)
    (frame,) = FrameParser().feed(wrap(buffer))
    buffer[:] = b"x" * len(buffer)
    assert frame.body == b'{"Event-Name": "XY"}'


def test_invalid_utf8_in_outer_headers_is_replaced():
    (frame,) = FrameParser().feed(b"Content-Type: command/reply\nReply-Text: \xe9\n\n")
    assert frame.headers["reply-text"] == "\ufffd"


def test_progress_names_what_is_unfinished():
    parser = FrameParser()
    assert (parser.mid_frame, parser.progress, parser.partial) == (False, "", b"")
    parser.feed(EVENT + EVENT[:7])
    assert (parser.mid_frame, parser.progress, parser.partial) == (True, "after 7 bytes of a header block", b"Content")
    parser.feed(EVENT[7:-5])
    assert parser.progress == "after 15 of 20 body bytes of a text/event-json frame"
    assert parser.partial == EVENT[-20:-5]
    assert len(parser.feed(EVENT[-5:])) == 1
    assert not parser.mid_frame


def test_after_a_fault_nothing_is_parsed():
    parser = FrameParser()
    assert len(parser.feed(EVENT + b"nonsense\n\n" + EVENT)) == 1
    assert isinstance(parser.error, ProtocolError)
    error = parser.error
    assert parser.feed(EVENT) == []
    assert parser.error is error


def test_large_body_in_small_pieces_takes_linear_time():
    """A parser that copied or searched again what it has would not end within the test's time limit."""
    body = b"\n\n" * (8 * 1024 * 1024)
    data = b"Content-Type: api/response\nContent-Length: %d\n\n" % len(body) + body
    parser = FrameParser()
    frames = [frame for i in range(0, len(data), 100) for frame in parser.feed(data[i : i + 100])]
    assert [frame.body == body for frame in frames] == [True]


def test_large_head_in_small_pieces_takes_linear_time():
    data = b"Content-Type: command/reply\n" + b"a: b\n" * 400_000 + b"\n"
    parser = FrameParser()
    frames = [frame for i in range(0, len(data), 10) for frame in parser.feed(data[i : i + 10])]
    assert [len(frame.head) for frame in frames] == [len(data) - 2]


def test_many_frames_in_one_read_take_linear_time():
    data = (
        b"Content-Type: api/response\r\nContent-Length: 1\r\n\r\nx" + b"X: " + b"y" * 120 + b"\nContent-Type: a\n\n"
    ) * 20_000
    assert len(FrameParser().feed(data)) == 40_000


def test_a_claimed_length_reserves_no_memory():
    parser = FrameParser()
    parser.feed(b"Content-Type: api/response\nContent-Length: 16777216\n\nabc")
    assert parser._body.__sizeof__() < 1000


def test_a_fault_keeps_no_more_than_the_end_of_its_frame():
    for data in (b"x" * 3_000_000, b"X: y\n" * 300_000 + b"\n"):
        parser = FrameParser()
        parser.feed(data)
        assert parser.error is not None
        assert len(parser._head) == len(parser.partial) <= 4096
        assert data.rstrip(b"\n").endswith(parser.partial)


def test_what_is_remembered_is_bounded():
    parser = FrameParser()
    for length in range(10_000):
        parser.feed(b"Content-Length: %d\nContent-Type: text/event-json\n\n%b" % (length, b"x" * length))
        assert len(parser._known) <= 4096
    for number in range(10_000):
        parser.feed(b"Content-Type: command/reply\nReply-Text: %d\n\n" % number)
        parser.feed(b"Content-Type: command/reply\nReply-Text: %d\nX: y\n\n" % number)
        assert len(parser._known) <= 4096
    assert parser.error is None


def test_a_known_head_is_found_again_only_if_equal():
    parser = FrameParser()
    heads = [
        b"Content-Length: 1\nContent-Type: a/b",
        b"Content-Length: 2\nContent-Type: a/b",
        b"Content-Length: 1\nContent-Type: a/c",
    ]
    bodies = [b"x", b"yz", b"w"]
    data = b"".join(head + b"\n\n" + body for head, body in zip(heads, bodies, strict=True)) * 3
    assert [(frame.head, frame.body) for frame in parser.feed(data)] == list(zip(heads, bodies, strict=True)) * 3


@pytest.mark.parametrize("max_head", [10, 51, 52])
def test_head_limit_holds_for_short_heads_too(max_head):
    parser = FrameParser(max_head=max_head)
    frames = parser.feed(EVENT)
    assert bool(frames) == (max_head >= 50)
    assert isinstance(parser.error, LimitExceeded) == (max_head < 50)


@pytest.mark.parametrize("piece", [1, 7, 1 << 20])
def test_a_body_over_the_limit_can_be_skipped(piece: int) -> None:
    def frame(length: int, kind: bytes = b"api/response") -> bytes:
        return b"Content-Type: %b\nContent-Length: %d\n\n" % (kind, length) + b"x" * length

    data = frame(10) + frame(11) + frame(9_000) + frame(0, b"x/y") + frame(10)
    parser = FrameParser(max_body=10, max_skipped=9_000)
    frames = [one for start in range(0, len(data), piece) for one in parser.feed(data[start : start + piece])]
    told = [one.size if isinstance(one, Oversized) else -len(one.body) for one in frames]  # type: ignore[union-attr]
    assert told == [-10, 11, 9_000, 0, -10]
    assert not parser.mid_frame
    parser.feed(frame(9_000)[:-1])
    assert len(parser.partial) <= 4_096
    assert "8999 of 9000" in parser.progress
    parser.feed(b"x" + b"Content-Type: a\nContent-Length: 9001\n\n")
    assert isinstance(parser.error, LimitExceeded)
