"""Any chunking of any stream gives the same frames, and the same fault at the same place."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.esl.frames import FrameParser

NAMES = st.sampled_from([b"Content-Type", b"content-type", b"Reply-Text", b"Log-Level", b"X", b"variable_a"])
VALUES = st.sampled_from([b"auth/request", b"command/reply", b"+OK", b"", b"a: b", b"\xe9", b"x" * 120])
BODIES = st.binary(max_size=40) | st.sampled_from(
    [b"\n\n", b"\r\n\r\n", b"Content-Type: auth/request\n\n", b"\n", b"Content-Length: 3\n\nabc", b"x" * 200]
)


@st.composite
def frames(draw: st.DrawFn) -> bytes:
    """A valid frame, its headers in any order, its blank line as FreeSWITCH or as a proxy writes it."""
    kind = draw(st.sampled_from([b"api/response", b"text/event-json", b"text/event-plain", b"text/x-y", b"log/data"]))
    body = draw(BODIES)
    lines = [b"Content-Type: " + kind]
    if body or draw(st.booleans()):
        lines.append(b"Content-Length: %d" % len(body))
    extra = draw(
        st.dictionaries(st.sampled_from([b"X", b"variable_a", b"Log-Level", b"Reply-Text"]), VALUES, max_size=3)
    )
    lines += [name + b": " + value for name, value in extra.items()]
    end, blank = draw(st.sampled_from([(b"\n", b"\n"), (b"\n", b"\r\n"), (b"\r\n", b"\r\n")]))
    return end.join(draw(st.permutations(lines))) + end + blank + body


FAULTS = st.sampled_from(
    [
        b"nonsense\n\n",
        b"\n",
        b"X: y\n\n",
        b"Content-Type: a\nContent-Length: +5\n\n",
        b"Content-Type: a\nContent-Length: 99999\n\n",
    ]
)


def parse(pieces: list[bytes]) -> tuple[list[tuple[str, bytes, bytes]], str | None, bool]:
    parser = FrameParser(max_head=600, max_body=1000)
    found = [frame for piece in pieces for frame in parser.feed(piece)]
    error = None if parser.error is None else f"{type(parser.error).__name__}: {parser.error}"
    return [(frame.content_type, frame.head, frame.body) for frame in found], error, parser.mid_frame


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(min(edge, len(data)) for edge in cuts), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


@settings(max_examples=150, deadline=None)
@given(st.lists(frames(), max_size=6), st.lists(st.integers(0, 800), max_size=12))
def test_any_chunking_gives_the_same_frames(parts, cuts):
    data = b"".join(parts)
    whole, error, mid_frame = parse([data])
    assert (len(whole), error, mid_frame) == (len(parts), None, False)
    assert parse(cut(data, cuts)) == (whole, error, mid_frame)
    assert parse([data[i : i + 1] for i in range(len(data))]) == (whole, error, mid_frame)


@settings(max_examples=150, deadline=None)
@given(st.lists(frames(), max_size=3), FAULTS, st.binary(max_size=30), st.lists(st.integers(0, 500), max_size=8))
def test_any_chunking_gives_the_same_fault(parts, fault, rest, cuts):
    data = b"".join(parts) + fault + b"\n\n" + rest
    found, error, _ = parse([data])
    assert len(found) == len(parts)
    assert error is not None
    assert parse(cut(data, cuts))[:2] == (found, error)
    assert parse([data[i : i + 1] for i in range(len(data))])[:2] == (found, error)
