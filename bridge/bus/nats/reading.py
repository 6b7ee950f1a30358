"""Reads MSG, HMSG and PONG quickly and leaves the rest to nats-py's parser. Never writes.

nats-py's parser with its coroutine, dataclass and queue a message costs 6 to 9 us a message, this one 1 to 2: a
request or an ack of JetStream would cost more to receive than to serve.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from nats.protocol.parser import AWAITING_CONTROL_LINE, AWAITING_MSG_PAYLOAD, Parser

_PREFIX_LENGTH = len(b"NATS/1.0")


class Incoming(Protocol):
    """A message as handlers see it; nats-py's ``Msg`` is one too."""

    @property
    def subject(self) -> str:
        """Where it was published."""

    @property
    def reply(self) -> str:
        """The reply subject; empty when there is none."""

    @property
    def data(self) -> bytes:
        """The payload."""

    @property
    def headers(self) -> dict[str, str] | None:
        """The headers; the status of a message of the server's own under ``Status``."""


IncomingHandler = Callable[[Incoming], None]


@runtime_checkable
class RunHandler(Protocol):
    """A handler that takes many messages at once, as they are on the wire, where they look as it says."""

    def pattern(self, sid: bytes) -> re.Pattern[bytes]:
        """What a run of its messages looks like."""

    def take_run(self, data: bytes, start: int, end: int) -> bool:
        """Take the run between ``start`` and ``end``; False where its messages are wanted one by one after all."""

    def __call__(self, message: Incoming) -> None:
        """Take one message."""


def parse_headers(block: bytes) -> dict[str, str]:
    """A header block as a map; of a repeated name the last value. Broken UTF-8 becomes U+FFFD."""
    first, _, rest = block.partition(b"\r\n")
    headers: dict[str, str] = {}
    status = first[_PREFIX_LENGTH:].strip()
    if status:
        code, _, description = status.decode("utf-8", "replace").partition(" ")
        headers["Status"] = code
        if description:
            headers["Description"] = description
    for line in rest.split(b"\r\n"):
        name, found, value = line.partition(b":")
        if found:
            headers[name.strip().decode("utf-8", "replace")] = value.strip().decode("utf-8", "replace")
    return headers


_KNOWN_LENGTH, _KNOWN_LIMIT = 128, 256
_known: dict[bytes, dict[str, str]] = {}


class Arrived:
    """One message; its headers are parsed when somebody asks, and are not the asker's to change."""

    __slots__ = ("_block", "_headers", "_reply", "_subject", "data")

    def __init__(self, subject: bytes, reply: bytes, data: bytes, block: bytes) -> None:
        self.data = data
        self._subject = subject
        self._reply = reply
        self._block = block
        self._headers: dict[str, str] | None = None

    @property
    def subject(self) -> str:
        """See ``Incoming``."""
        return self._subject.decode("utf-8", "replace")

    @property
    def reply(self) -> str:
        """See ``Incoming``."""
        return self._reply.decode("utf-8", "replace")

    @property
    def headers(self) -> dict[str, str] | None:
        """See ``Incoming``."""
        if self._headers is None and self._block:
            block = self._block
            # Most messages bear the same few lines.
            headers = _known.get(block)
            if headers is None:
                headers = parse_headers(block)
                if len(block) <= _KNOWN_LENGTH:
                    if len(_known) >= _KNOWN_LIMIT:
                        _known.clear()
                    _known[block] = headers
            self._headers = headers
        return self._headers


class FastParser(Parser):
    """Hands messages of known subscriptions over at once; ``handlers`` is keyed by the sid as it is on the wire."""

    def __init__(self, client: Any) -> None:
        super().__init__(client)
        self.handlers: dict[bytes, IncomingHandler] = {}
        self.runs: dict[bytes, tuple[re.Pattern[bytes], RunHandler]] = {}
        self._loop = asyncio.get_running_loop()

    async def parse(self, data: bytes = b"") -> None:
        """Take what the socket brought."""
        if self.state == AWAITING_MSG_PAYLOAD:
            # A large message that came in pieces: gathered by the driver's parser, without copying it over and over.
            missing = self.needed + 2 - len(self.buf)
            if missing > len(data):
                self.buf += data
                return
            await super().parse(data[:missing])
            data = data[missing:]
        elif self.buf:
            data = bytes(self.buf) + data
            self.buf.clear()
        while data:
            position = await self._read_messages(data)
            if position:
                data = data[position:]
            if not data:
                return
            # Something else, or not all there yet. A whole line of it goes to the driver's parser alone.
            line_end = data.find(b"\r\n") + 2
            if line_end < 2 or data.startswith((b"MSG ", b"HMSG ")):
                await super().parse(data)
                return
            await super().parse(data[:line_end])
            if self.state != AWAITING_CONTROL_LINE or self.buf:
                await super().parse(data[line_end:])
                return
            data = data[line_end:]

    async def _read_messages(self, data: bytes) -> int:
        """Hand over whole messages from the front of ``data``; returns where they end."""
        position, length = 0, len(data)
        handlers = self.handlers
        find = data.find
        runs = self.runs.values()
        while True:
            if data.startswith(b"MSG ", position):
                run_end = self._read_run(data, position) if runs else position
                if run_end > position:
                    position = run_end
                    continue
                line_end = find(b"\r\n", position)
                if line_end < 0:
                    return position
                words = data[position + 4 : line_end].split()
                start = line_end + 2
                end = start + int(words[-1])
                if end + 2 > length:
                    return position
                handler = handlers.get(words[1])
                if handler is not None:
                    reply = words[2] if len(words) == 4 else b""
                    try:
                        handler(Arrived(words[0], reply, data[start:end], b""))
                    except Exception as error:
                        self.report(error)
            elif data.startswith(b"HMSG ", position):
                line_end = find(b"\r\n", position)
                if line_end < 0:
                    return position
                words = data[position + 5 : line_end].split()
                start = line_end + 2
                end = start + int(words[-1])
                if end + 2 > length:
                    return position
                handler = handlers.get(words[1])
                if handler is not None:
                    reply = words[2] if len(words) == 5 else b""
                    middle = start + int(words[-2])
                    try:
                        handler(Arrived(words[0], reply, data[middle:end], data[start:middle]))
                    except Exception as error:
                        self.report(error)
            elif data.startswith(b"PONG\r\n", position):
                await self.nc._process_pong()
                position += 6
                continue
            else:
                return position
            position = end + 2

    def _read_run(self, data: bytes, start: int) -> int:
        """Hand over a run of messages that somebody takes at once; returns where it ends."""
        for pattern, handler in self.runs.values():
            found = pattern.match(data, start)
            if found is not None:
                try:
                    return found.end() if handler.take_run(data, start, found.end()) else start
                except Exception as error:
                    self.report(error)
        return start

    def report(self, error: Exception) -> None:
        """A handler failed; that must not end the reader."""
        self._loop.call_exception_handler({"message": "a message handler failed", "exception": error})
