"""The guarded touch: the only room that reaches into nats-py. Never used where ``fits`` says no.

Why it is worth it: nats-py's ``publish`` costs 2 to 4 us a message and a batch of bytes under 1; ``flush`` lets its
PING overtake what is pending, and a late PONG for a timed-out ``flush`` ends the reader for good; a callback
subscription costs a queue and a task switch a message; one cannot be taken back without losing what is on its way.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.aio.transport import TcpTransport
from nats.protocol.parser import AWAITING_CONTROL_LINE, Parser

from bridge.bus.base import Message
from bridge.bus.nats.reading import FastParser, IncomingHandler, RunHandler
from bridge.bus.nats.render import render_batch, render_one


def speaks_tls(client: Client) -> bool:
    """Whether the client's connection is encrypted; False when that cannot be seen."""
    writer = _writer(client)
    return writer is not None and writer.get_extra_info("ssl_object") is not None


def cut(client: Client) -> None:
    """End the connection at once, where it can be reached; what the socket has not taken yet is dropped, not sent."""
    writer = _writer(client)
    if writer is not None:
        writer.transport.abort()


def _writer(client: Client) -> asyncio.StreamWriter | None:
    writer = getattr(getattr(client, "_transport", None), "_io_writer", None)
    return writer if isinstance(writer, asyncio.StreamWriter) else None


class _Pong:
    """Stands in nats-py's list of PONG futures; unlike a future it can not be cancelled and then fail the reader."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call

    def set_result(self, result: object) -> None:
        self._call()

    def done(self) -> bool:
        return False

    def cancel(self) -> bool:
        return False


class _HandOver:
    """Stands in for a subscription's queue: hands over at once what the driver's own parser read."""

    __slots__ = ("_handler", "_parser")

    def __init__(self, parser: FastParser, handler: IncomingHandler) -> None:
        self._parser = parser
        self._handler = handler

    def put_nowait(self, message: Msg) -> None:
        try:
            self._handler(message)
        except Exception as error:
            self._parser.report(error)

    def qsize(self) -> int:
        return 0

    def empty(self) -> bool:
        return True


class DirectWire:
    """Writes straight to the transport, behind whatever the driver itself has pending."""

    def __init__(self, client: Client) -> None:
        self._client: Any = client
        self._pieces: list[bytes] = []
        self.gathered = 0
        self.limit = client.max_payload
        # No byte has been read by the driver's own parser yet: connecting reads by lines.
        self._parser = self._client._ps = FastParser(client)

    @staticmethod
    def fits(client: Client) -> bool:
        """Whether this connected client has everything that is touched here, in the shape it is touched."""
        it: Any = client
        try:
            return (
                isinstance(it._pending, list)
                and isinstance(it._pending_data_size, int)
                and isinstance(it._pongs, list)
                and isinstance(it._subs, dict)
                and type(it._ps) is Parser
                and not it._ps.buf
                and it._ps.state == AWAITING_CONTROL_LINE
                and isinstance(it._reading_task, asyncio.Task)
                and isinstance(it._transport, TcpTransport)
                and isinstance(it._transport._io_writer, asyncio.StreamWriter)
                and callable(it._process_pong)
                and callable(it._remove_sub)
                and "_pending_queue" in Subscription(client, 0, "probe").__dict__
            )
        except (AttributeError, TypeError):
            return False

    def add_batch(self, batch: Sequence[Message], replies: str = "", first: int = 0) -> None:
        """See ``Wire``."""
        pieces = self._pieces
        before = len(pieces)
        try:
            self.gathered += render_batch(batch, pieces, self.limit, replies, first)
        except Exception:
            del pieces[before:]
            raise

    def add(
        self, subject: str, reply: str, payload: bytes, content_type: str, headers: Mapping[str, str] | None
    ) -> None:
        """See ``Wire``."""
        piece = render_one(subject, reply, payload, content_type, headers, self.limit)
        self._pieces.append(piece)
        self.gathered += len(piece)

    def write(self, pong: Callable[[], None] | None) -> None:
        """See ``Wire``."""
        client = self._client
        pieces = self._pieces
        if pong is not None:
            client._pongs.append(_Pong(pong))
            pieces.append(b"PING\r\n")
        if client._pending:
            # SUBs and PONGs of the driver's own that its flusher has not come to yet keep their place in front.
            pieces[:0] = client._pending
            client._pending = []
            client._pending_data_size = 0
        if pieces:
            self._pieces = []
            self.gathered = 0
            # Closed a moment ago: uvloop raises where asyncio's own loop drops. It is as lost as what a broken
            # connection swallowed, and the driver is about to say that it broke.
            with contextlib.suppress(RuntimeError):
                client._transport.write(b"".join(pieces))

    async def subscribe(self, subject: str, queue: str, handler: IncomingHandler) -> Subscription:
        """See ``Wire``."""
        subscription = await self._client.subscribe(subject, queue=queue, pending_bytes_limit=0)
        # The SUB is still pending or just written: no message can have come yet.
        subscription._pending_queue = _HandOver(self._parser, handler)
        sid = b"%d" % subscription._id
        self._parser.handlers[sid] = handler
        if isinstance(handler, RunHandler):
            self._parser.runs[sid] = handler.pattern(sid), handler
        return subscription  # type: ignore[no-any-return]

    def unsubscribe(self, handle: Subscription) -> None:
        """See ``Wire``."""
        self._pieces.append(b"UNSUB %d\r\n" % handle._id)
        self.write(None)

    def forget(self, handle: Subscription) -> None:
        """See ``Wire``."""
        sid = b"%d" % handle._id
        self._parser.runs.pop(sid, None)
        if self._parser.handlers.pop(sid, None) is not None:
            handle._closed = True
            self._client._remove_sub(handle._id)

    def watch(self, ended: Callable[[str], None]) -> None:
        """See ``Wire``."""
        client = self._client

        def reader_ended(task: asyncio.Task[None]) -> None:
            error = None if task.cancelled() else task.exception()
            ended(str(error or client.last_error or "the connection ended"))

        client._reading_task.add_done_callback(reader_ended)

    def abort(self) -> None:
        """See ``Wire``."""
        self._pieces.clear()
