"""A pipeline into a stream: a transaction for each batch, and none runs whose forerunner did not.

A server that has no more memory refuses command by command, and may take the next one: of batches on their way together
a later one could get in without the one before. So each transaction takes its own number out of a set, and watches that
set while the number of the one before is taken out once more: where that was still in, the transaction does not run.
This room never repeats a batch.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from bridge.bus.appending import Pipeline
from bridge.bus.base import Message, StreamSpec
from bridge.bus.redis.link import Link, Operation
from bridge.bus.redis.publish import MAX_PAYLOAD
from bridge.bus.redis.wire import EXEC, MULTI, Reply, ReplyError, command
from bridge.errors import BusUnavailable, MessageTooLarge, PublishWithdrawn

_AHEAD = 2  # batches on their way before the one that is written
_NUMBERS = 512  # batches for which the set lasts
_LIFE = 3600  # s; the set goes by itself when its writer is gone
_ARM_AGAIN = _LIFE / 2


class StreamAppender(Pipeline):
    """See ``Appender``. ``writer`` names this worker: its set is ``{<stream>}.order.<writer>``.

    Where we may not have that set, one batch is on its way at a time.
    """

    def __init__(self, link: Link, stream: StreamSpec, writer: str, changed: Callable[[], None]) -> None:
        super().__init__(changed)
        self._link = link
        self._key = stream.key.encode()
        self._limit = stream.max_messages
        self._order = b"{%b}.order.%b" % (self._key, writer.encode())
        self._chained = True
        self._number = _NUMBERS
        self._armed_at = 0.0
        self._sizes: deque[int] = deque(maxlen=_AHEAD)

    async def append(self, batch: Sequence[Message], allowed: Callable[[], bool] | None = None) -> None:
        """See ``Appender``."""
        entries = render_entries(self._key, self._limit, batch)
        if not batch:
            self.check()
            return
        await self._room()
        if allowed is not None and not allowed():
            raise PublishWithdrawn
        if self._chained:
            before, own = b"%d" % self._number, b"%d" % (self._number + 1)
            self._number += 1
            watch = command(b"WATCH", self._order) + command(b"SREM", self._order, before)
            commands = b"".join((watch, MULTI, entries, command(b"SREM", self._order, own), EXEC))
            replies = len(batch) + 5
        else:
            commands, replies = b"".join((MULTI, entries, EXEC)), len(batch) + 2
        count = len(batch)
        if self._link.say(Operation(commands, replies, lambda got, error: self._done(count, got, error))):
            self.written += count
            self._sizes.append(count)
        else:
            self.fail(self._link.reason)
        self.check()

    async def _room(self) -> None:
        await self.until(sum(self._sizes) if self._chained else 0)
        now = asyncio.get_running_loop().time()
        if self._chained and (self._number >= _NUMBERS or now - self._armed_at > _ARM_AGAIN):
            await self.until(0)
            await self._arm()
            self._armed_at = now

    async def _arm(self) -> None:
        """Fill the set anew."""
        armed: asyncio.Future[list[Reply]] = asyncio.get_running_loop().create_future()

        def done(replies: list[Reply], error: Exception | None) -> None:
            if not armed.done():
                armed.set_result([error] if error is not None else replies)

        numbers = [b"%d" % number for number in range(1, _NUMBERS + 1)]
        fill = command(b"SADD", self._order, *numbers) + command(b"EXPIRE", self._order, b"%d" % _LIFE)
        if not self._link.say(Operation(fill, 2, done)):
            self.fail(self._link.reason)
            self.check()
        for reply in await armed:
            if isinstance(reply, ReplyError) and reply.code in ("NOPERM", "WRONGTYPE"):
                self._chained = False
            elif isinstance(reply, Exception):
                self.fail(str(reply))
        self._number = 0
        self.check()

    def _done(self, count: int, replies: list[Reply], error: Exception | None) -> None:
        if error is not None:
            self.fail(str(error))
            return
        ran = replies[-1]
        if isinstance(ran, list):
            for sure, reply in enumerate(ran):
                if isinstance(reply, ReplyError):
                    self.confirm(self.confirmed + sure)
                    self._refused(reply)
                    return
            self.confirm(self.confirmed + count)
        elif refusal := next((reply for reply in replies if isinstance(reply, ReplyError)), None):
            self._refused(refusal)
        else:
            self.fail("the batch before it was not taken")

    def _refused(self, reply: ReplyError) -> None:
        if reply.code in ("MOVED", "READONLY"):
            self._link.fail(BusUnavailable(str(reply)))
        self.fail(str(reply))


def render_entries(key: bytes, limit: int, batch: Sequence[Message]) -> bytes:
    """An ``XADD`` for each message to the stream ``key``, cut to about ``limit`` entries (0: not cut)."""
    trim = b"$6\r\nMAXLEN\r\n$1\r\n~\r\n$%d\r\n%d\r\n" % (len(str(limit)), limit) if limit else b""
    head = b"$4\r\nXADD\r\n$%d\r\n%b\r\n%b$1\r\n*\r\n$5\r\ntopic\r\n$" % (len(key), key, trim)
    fixed = 13 + (3 if trim else 0)  # XADD, key, *, and five pairs
    parts: list[bytes] = []
    for message in batch:
        if len(message.payload) > MAX_PAYLOAD:
            raise MessageTooLarge(len(message.payload), MAX_PAYLOAD)
        fields = _fields(message)
        parts.append(b"*%d\r\n" % (fixed + 2 * len(message.headers)))
        parts.append(head)
        parts.append(fields)
        parts.append(b"$4\r\ndata\r\n$%d\r\n" % len(message.payload))
        parts.append(message.payload)
        parts.append(b"\r\n")
    return b"".join(parts)


def _fields(message: Message) -> bytes:
    topic, identity = message.topic.encode(), message.id.encode()
    kind, encoding = message.type.encode(), message.content_type.encode()
    text = b"%d\r\n%b\r\n$2\r\nid\r\n$%d\r\n%b\r\n$4\r\ntype\r\n$%d\r\n%b\r\n$12\r\ncontent_type\r\n$%d\r\n%b\r\n" % (
        len(topic), topic, len(identity), identity, len(kind), kind, len(encoding), encoding,
    )  # fmt: skip
    for name, value in message.headers:
        header, content = name.encode(), value.encode()
        text += b"$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(header), header, len(content), content)
    return text
