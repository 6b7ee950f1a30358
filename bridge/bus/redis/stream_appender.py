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
        key = stream.key.encode()
        self._entries = EntryRenderer(key, stream.max_messages)
        self._order = b"{%b}.order.%b" % (key, writer.encode())
        self._chained = True
        self._number = _NUMBERS
        self._armed_at = 0.0
        self._sizes: deque[int] = deque(maxlen=_AHEAD)

    async def append(self, batch: Sequence[Message], allowed: Callable[[], bool] | None = None) -> None:
        """See ``Appender``."""
        entries = self._entries.render(batch)
        if not batch:
            self.check()
            return
        await self._room()
        if allowed is not None and not allowed():
            raise PublishWithdrawn
        count = len(batch)
        if self._chained:
            before, own = b"%d" % self._number, b"%d" % (self._number + 1)
            self._number += 1
            watch = command(b"WATCH", self._order) + command(b"SREM", self._order, before)
            commands = b"".join((watch, MULTI, *entries, command(b"SREM", self._order, own), EXEC))
            replies = count + 5
        else:
            commands, replies = b"".join((MULTI, *entries, EXEC)), count + 2
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
        """Fill the set anew, and rehearse a batch: behind a ``MULTI`` that is refused, its entries would run alone."""
        armed: asyncio.Future[list[Reply]] = asyncio.get_running_loop().create_future()

        def done(replies: list[Reply], error: Exception | None) -> None:
            if not armed.done():
                armed.set_result([error] if error is not None else replies)

        numbers = [b"%d" % number for number in range(1, _NUMBERS + 1)]
        fill = command(b"SADD", self._order, *numbers) + command(b"EXPIRE", self._order, b"%d" % _LIFE)
        watch = command(b"WATCH", self._order) + command(b"SREM", self._order, b"0")
        if not self._link.say(Operation(b"".join((fill, watch, MULTI, EXEC)), 6, done)):
            self.fail(self._link.reason)
            self.check()
        for at, reply in enumerate(await armed):
            if at < 4 and isinstance(reply, ReplyError) and reply.code in ("NOPERM", "WRONGTYPE"):
                self._chained = False
            elif isinstance(reply, ReplyError):
                self._refused(reply)
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
            if ReplyError in map(type, ran):
                sure = next(at for at, reply in enumerate(ran) if isinstance(reply, ReplyError))
                self.confirm(self.confirmed + sure)
                self._refused(ran[sure])
            else:
                self.confirm(self.confirmed + count)
        elif refusal := next((reply for reply in replies if isinstance(reply, ReplyError)), None):
            self._refused(refusal)
        else:
            self.fail("the batch before it was not taken")

    def _refused(self, reply: ReplyError) -> None:
        if reply.code in ("MOVED", "READONLY"):
            self._link.fail(BusUnavailable(str(reply)))
        self.fail(str(reply))


class EntryRenderer:
    """Messages as ``XADD`` to one stream, cut to about ``limit`` entries (0: not cut)."""

    def __init__(self, key: bytes, limit: int) -> None:
        trim = (b"MAXLEN", b"~", b"%d" % limit) if limit else ()
        self._start = b"".join([b"$%d\r\n%b\r\n" % (len(word), word) for word in (b"XADD", key, *trim, b"*", b"topic")])
        self._words = 4 + len(trim) + 9  # what begins, and five fields with their values
        self._known: dict[tuple[str, str, str], tuple[bytes, bytes]] = {}

    def render(self, batch: Sequence[Message]) -> list[bytes]:
        """The batch in pieces, to be joined with what stands around it. Raises ``MessageTooLarge``."""
        known = self._known
        parts: list[bytes] = []
        for message in batch:
            payload = message.payload
            length = len(payload)
            if length > MAX_PAYLOAD:
                raise MessageTooLarge(length, MAX_PAYLOAD)
            # All but the identity is the same for every event of a name.
            kind = message.topic, message.type, message.content_type
            ends = known.get(kind) or self._learn(kind)
            identity = message.id.encode()
            if message.headers:
                count = b"*%d\r\n" % (self._words + 2 * len(message.headers))
                more = b"".join([_bulk(text) for header in message.headers for text in header])
                start, end = count + ends[0].partition(b"\r\n")[2], more.join(_split(ends[1]))
            else:
                start, end = ends
            parts += (b"%b%d\r\n%b%b%d\r\n" % (start, len(identity), identity, end, length), payload, b"\r\n")
        return parts

    def _learn(self, kind: tuple[str, str, str]) -> tuple[bytes, bytes]:
        topic, type, content_type = kind
        start = b"*%d\r\n%b%b%b$" % (self._words, self._start, _bulk(topic), _bulk("id"))
        fields = (_bulk("type"), _bulk(type), _bulk("content_type"), _bulk(content_type))
        ends = start, b"\r\n%b%b" % (b"".join(fields), _DATA)
        if len(self._known) >= _KNOWN_LIMIT:
            self._known.clear()
        self._known[kind] = ends
        return ends


_DATA = b"$4\r\ndata\r\n$"
_KNOWN_LIMIT = 4096


def _split(end: bytes) -> tuple[bytes, bytes]:
    return end[: -len(_DATA)], _DATA


def _bulk(text: str) -> bytes:
    word = text.encode()
    return b"$%d\r\n%b\r\n" % (len(word), word)
