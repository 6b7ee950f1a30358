"""Bytes to frames: the outer framing of the Event Socket, with limits on every size.

This room never decodes a body, never looks at a byte twice, and never lets an error cost the frames before it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

import msgspec

from bridge.errors import LimitExceeded, ProtocolError
from bridge.esl.event import Event
from bridge.esl.headers import body_length, content_type, decode_block, parse_block

MAX_HEAD: Final = 2 * 1024 * 1024
MAX_BODY: Final = 16 * 1024 * 1024

AUTH_REQUEST: Final = "auth/request"
COMMAND_REPLY: Final = "command/reply"
API_RESPONSE: Final = "api/response"
EVENT_JSON: Final = "text/event-json"
EVENT_PLAIN: Final = "text/event-plain"
EVENT_XML: Final = "text/event-xml"
LOG_DATA: Final = "log/data"
DISCONNECT_NOTICE: Final = "text/disconnect-notice"
RUDE_REJECTION: Final = "text/rude-rejection"

# FreeSWITCH ends lines with LF alone; a proxy in between may have made CRLF of the blank line.
_BLANK_LINE: Final = re.compile(rb"\n\r?\n")
# Event and api heads are two short lines, and few different ones (their lengths repeat): they are parsed
# once, by the strict parser, and known again by equality.
_SHORT_HEAD: Final = 96
_KNOWN_HEADS: Final = 4096
_PARTIAL: Final = 4096


class Frame(msgspec.Struct, gc=False):
    """One frame. ``head`` is the header block without its blank line, ``body`` exactly Content-Length bytes."""

    content_type: str
    body: bytes
    head: bytes

    @property
    def headers(self) -> dict[str, str]:
        """The outer headers, names in lower case, values as sent (not %-decoded), invalid UTF-8 replaced."""
        return decode_block(parse_block(self.head))


class Oversized(msgspec.Struct, gc=False):
    """A frame whose body of ``size`` bytes was over the limit, and was read without being kept."""

    content_type: str
    size: int
    head: bytes


class FrameParser:
    """Feed it bytes in any pieces; it hands out whole frames.

    A body of more than ``max_body`` bytes is a fault, or, up to ``max_skipped`` bytes, ``Oversized``.

    A fault ends it: ``error`` is set, the frames before the fault are still returned, later calls return none.
    ``read_event``, when it is set, makes of a JSON event's body what stands in the frame's place; what it refuses with
    None stays a frame.
    """

    __slots__ = (
        "_body", "_content_type", "_head", "_known", "_missing", "_skipped",
        "error", "max_body", "max_head", "max_skipped", "read_event",
    )  # fmt: skip

    def __init__(self, max_head: int = MAX_HEAD, max_body: int = MAX_BODY, max_skipped: int = 0) -> None:
        self.max_head = max_head
        self.max_body = max_body
        self.max_skipped = max_skipped
        self.error: ProtocolError | None = None
        self.read_event: Callable[[bytes], Event | None] | None = None
        self._head = bytearray()  # of a frame whose blank line has not come; its whole head once it has
        self._body = bytearray()
        self._missing = 0  # bytes of the body still to come; 0 = between frames or inside a head
        self._skipped = 0  # the whole length of a body that is not kept
        self._content_type = ""
        self._known: dict[bytes, tuple[str, int]] = {}

    @property
    def mid_frame(self) -> bool:
        """Whether a frame has begun that is not complete."""
        return bool(self._head)

    @property
    def partial(self) -> bytes:
        """At most the last 4 KiB of what an unfinished, or the faulty, frame has so far."""
        return bytes((self._body if self._missing else self._head)[-_PARTIAL:])

    @property
    def progress(self) -> str:
        """How far the unfinished frame has come, for an error text; empty between frames."""
        if self._missing:
            size = self._skipped - self._missing if self._skipped else len(self._body)
            return f"after {size} of {size + self._missing} body bytes of a {self._content_type} frame"
        return f"after {len(self._head)} bytes of a header block" if self._head else ""

    def feed(self, data: bytes | bytearray | memoryview) -> list[Frame | Event | Oversized]:
        """Take what was read; return the frames it completed. Sets ``error`` instead of raising."""
        frames: list[Frame | Event | Oversized] = []
        if self.error is None:
            if type(data) is not bytes:
                data = bytes(data)
            try:
                self._feed(data, frames)
            except ProtocolError as error:
                self.error = error.with_traceback(None)  # its frames hold us
                del self._head[:-_PARTIAL]
        return frames

    def _feed(self, data: bytes, frames: list[Frame | Event | Oversized]) -> None:
        position = self._resume(data, frames) if self._head else 0
        size = len(data)
        known = self._known
        append = frames.append
        find = data.find
        read_event = self.read_event
        while position < size:
            blank = find(b"\n\n", position, position + _SHORT_HEAD)
            head = data[position:blank] if blank >= 0 else b""
            found = known.get(head)
            if found is not None:
                kind, length = found
                start = blank + 2
            else:
                match = _BLANK_LINE.search(data, position)
                if match is None:
                    self._keep_head(data[position:])
                    return
                head = data[position : match.start()]
                start = match.end()
                kind, length = self._read_head(head)
                if length > self.max_body:
                    self._head += head
                    self._content_type, self._missing, self._skipped = kind, length, length
                    position = start + self._skip(data, start, frames)
                    continue
            end = start + length
            if end > size:
                self._head += head
                self._content_type = kind
                self._body += data[start:]
                self._missing = end - size
                return
            body = data[start:end]
            position = end
            if kind is EVENT_JSON and read_event is not None and length:
                event = read_event(body)
                if event is not None:
                    append(event)
                    continue
            append(Frame(kind, body, head))

    def _skip(self, data: bytes, position: int, frames: list[Frame | Event | Oversized]) -> int:
        """Drop what came of a body that is not kept, but for its end: the connection may break off in it.

        Returns how many bytes that were.
        """
        taken = min(self._missing, len(data) - position)
        self._missing -= taken
        if self._missing:
            self._body += data[max(position, position + taken - _PARTIAL) : position + taken]
            del self._body[:-_PARTIAL]
        else:
            frames.append(Oversized(self._content_type, self._skipped, bytes(self._head)))
            self._skipped = 0
            self._head.clear()
            self._body = bytearray()
        return taken

    def _resume(self, data: bytes, frames: list[Frame | Event | Oversized]) -> int:
        """Go on with the frame that an earlier read began; return where in ``data`` the next one starts."""
        position = 0
        if not self._missing:
            # The blank line may lie across the seam, so the last bytes of the head are looked at once more.
            seam = bytes(self._head[-2:])
            match = _BLANK_LINE.search(seam + data)
            if match is None:
                self._keep_head(data)
                return len(data)
            position = match.end() - len(seam)
            cut = match.start() - len(seam)
            if cut >= 0:
                self._head += data[:cut]
            else:
                del self._head[cut:]
            self._content_type, self._missing = self._read_head(bytes(self._head))
            if self._missing > self.max_body:
                self._skipped = self._missing
        if self._skipped:
            return position + self._skip(data, position, frames)
        body = data[position : position + self._missing]
        self._body += body
        self._missing -= len(body)
        position += len(body)
        if not self._missing:
            frames.append(Frame(self._content_type, bytes(self._body), bytes(self._head)))
            self._head.clear()
            self._body = bytearray()
        return position

    def _keep_head(self, data: bytes) -> None:
        if len(self._head) + len(data) > self.max_head:
            raise LimitExceeded(f"a header block of more than {self.max_head} bytes")
        self._head += data

    def _read_head(self, head: bytes) -> tuple[str, int]:
        if len(head) > self.max_head:
            raise LimitExceeded(f"a header block of more than {self.max_head} bytes")
        try:
            headers = parse_block(head)
            kind = content_type(headers)
            # The hot path knows an event by identity.
            length = body_length(headers, max(self.max_body, self.max_skipped))
            found = EVENT_JSON if kind == EVENT_JSON else kind, length
        except ProtocolError:
            self._head = bytearray(head)
            raise
        if len(head) < _SHORT_HEAD and len(headers) == 2 and length <= self.max_body:
            if len(self._known) >= _KNOWN_HEADS:
                self._known.clear()
            self._known[head] = found
        return found
