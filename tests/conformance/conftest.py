"""What the conformance tests share: every case is fed three ways, and captures are loaded once."""

from __future__ import annotations

import functools
import gzip
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bridge.esl import commands
from bridge.esl.frames import Frame, FrameParser
from bridge.esl.protocol import Closed, Occurrence, Protocol, State, UnknownFrame

CAPTURES = Path(__file__).parent.parent / "data" / "captures"

GREETING = b"Content-Type: auth/request\n\n"
ACCEPTED = b"Content-Type: command/reply\nReply-Text: +OK accepted\n\n"
TRAILER = b"Content-Type: text/x-trailing\nContent-Length: 5\n\n\n\nend"


class Feeder:
    """Feeds a case whole, byte by byte, or with trailing data, and takes the trailing data's frame off the result.

    What the protocol has to send counts as written before.
    """

    def __init__(self, way: str) -> None:
        self.way = way

    def __call__(self, protocol: Protocol, data: bytes) -> list[Occurrence]:
        protocol.data_to_send()
        occurrences: list[Occurrence] = []
        for piece in self._pieces(data):
            occurrences += protocol.receive_data(piece)
        if self.way == "with trailing data" and not any(isinstance(o, Closed) for o in occurrences):
            assert occurrences.pop() == UnknownFrame("text/x-trailing")
        return occurrences

    def frames(self, data: bytes, **limits: int) -> tuple[list[Frame], Exception | None]:
        parser = FrameParser(**limits)
        frames = [frame for piece in self._pieces(data) for frame in parser.feed(piece)]
        if self.way == "with trailing data" and parser.error is None:
            trailer = frames.pop()
            assert (trailer.content_type, trailer.body) == ("text/x-trailing", b"\n\nend")
        if parser.error is None:
            assert not parser.mid_frame
        return frames, parser.error

    def _pieces(self, data: bytes) -> Iterator[bytes]:
        if self.way == "byte by byte":
            yield from (data[i : i + 1] for i in range(len(data)))
        else:
            yield data + (TRAILER if self.way == "with trailing data" else b"")


@pytest.fixture(params=["whole", "byte by byte", "with trailing data"])
def feed(request: pytest.FixtureRequest) -> Feeder:
    return Feeder(request.param)


def authenticated() -> Protocol:
    protocol = Protocol()
    protocol.receive_data(GREETING)
    protocol.send(commands.auth("ClueCon"))
    protocol.data_to_send()
    protocol.receive_data(ACCEPTED)
    assert protocol.state is State.READY
    return protocol


@pytest.fixture
def protocol() -> Protocol:
    """An inbound connection that is through with authentication."""
    return authenticated()


@pytest.fixture
def json_event() -> Callable[..., bytes]:
    """Render a frame with a JSON event."""

    def render(name: str = "CHANNEL_STATE", raw: bytes | None = None, **headers: object) -> bytes:
        body = raw
        if body is None:
            body = json.dumps({"Event-Name": name, **headers}, ensure_ascii=False, separators=(",", ":")).encode()
        return b"Content-Length: %d\nContent-Type: text/event-json\n\n%b" % (len(body), body)

    return render


@pytest.fixture
def plain_event() -> Callable[[bytes], bytes]:
    """Render a frame with a plain event."""

    def render(body: bytes) -> bytes:
        return b"Content-Length: %d\nContent-Type: text/event-plain\n\n%b" % (len(body), body)

    return render


@pytest.fixture
def api_result() -> Callable[[bytes], bytes]:
    """Render the answer to an api command."""

    def render(body: bytes) -> bytes:
        return b"Content-Type: api/response\nContent-Length: %d\n\n%b" % (len(body), body)

    return render


@pytest.fixture
def reply() -> Callable[[bytes], bytes]:
    """Render the answer to any other command."""
    return lambda text: b"Content-Type: command/reply\nReply-Text: %b\n\n" % text


@dataclass(frozen=True)
class Capture:
    name: str
    rx: bytes
    tx: bytes
    index: dict[str, Any]

    @property
    def frames(self) -> list[tuple[int, int, int, str]]:
        """Offset, bytes of the head with its blank line, bytes of the body, type: as the reference parser read it."""
        return [tuple(frame) for frame in self.index["frames"]]


@functools.cache
def _load(name: str) -> Capture:
    def read(kind: str) -> bytes:
        path = CAPTURES / f"{name}.{kind}.gz"
        return gzip.decompress(path.read_bytes()) if path.exists() else b""

    return Capture(name, read("rx.bin"), read("tx.bin"), json.loads(read("json")))


@pytest.fixture
def capture() -> Callable[[str], Capture]:
    return _load
