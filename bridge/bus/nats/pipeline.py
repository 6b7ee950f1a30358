"""A pipeline into one JetStream stream: windowed publishes, their acks counted in runs. Never repeats a message.

The acks come to one inbox of the pipeline's own; nats-py's ``publish_async`` costs 36 us a message, this about 2 more
than a plain publish.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from bridge.bus.appending import Pipeline
from bridge.bus.base import Message
from bridge.bus.nats.inbox import is_no_responders
from bridge.bus.nats.keeper import LinkKeeper
from bridge.bus.nats.link import NatsLink
from bridge.bus.nats.listener import Listener
from bridge.bus.nats.reading import Incoming
from bridge.bus.nats.render import check_batch
from bridge.bus.nats.room import NO_LIMIT, Room
from bridge.errors import BusRefused, MessageTooLarge, PublishWithdrawn

ACK_TIMEOUT = 5.0
"""Seconds without any ack, of what the server has read, after which the pipeline has broken off."""
HOLE_TIMEOUT = 0.5
"""Seconds without the ack of a message, when later ones have theirs, after which it counts as not taken."""
ACK_WINDOW = 1024
"""Messages written and not acknowledged."""
ACK_BYTES = 4 << 20
"""Bytes of them above which nothing more is written: events may be large, and what is under way is kept in memory."""
_ASK_AGAIN = 0.5  # s; how often a stream with limits is asked for its room, while something is written

_TOO_LARGE = 10054

# A PubAck that says nothing but that it is stored.
_STORED_ACK = rb'\{"stream":"[^"\\]*", ?"seq": ?\d+(?:, ?"domain": ?"[^"\\]*")?(?:, ?"duplicate": ?true)?\}\r\n'


class AckRuns:
    """Hears the acks of one pipeline: runs of plain ones at once (``reading.RunHandler``), others one by one."""

    def __init__(self, subject: str, run: Callable[[int, int], bool], single: Callable[[int, Incoming], None]) -> None:
        self._subject = subject
        self._run = run
        self._single = single

    def pattern(self, sid: bytes) -> re.Pattern[bytes]:
        """What a run looks like on the wire."""
        head = re.escape(b"MSG " + self._subject.encode())
        return re.compile(rb"(?:%b[0-9a-f]+ %b \d+\r\n%b)+" % (head, sid, _STORED_ACK))

    def take_run(self, data: bytes, start: int, end: int) -> bool:
        """Take the acks of a run; False where they are not in their order, and have to be taken one by one."""
        head = 4 + len(self._subject)
        last = data.rfind(b"MSG ", start, end)
        from_number = int(data[start + head : data.find(b" ", start + head)], 16)
        to_number = int(data[last + head : data.find(b" ", last + head)], 16) + 1
        return data.count(b"MSG ", start, end) == to_number - from_number and self._run(from_number, to_number)

    def __call__(self, message: Incoming) -> None:
        """Take an ack that is not plain, or not in its order."""
        self._single(int(message.subject[len(self._subject) :], 16), message)


class NatsAppender(Pipeline):
    """See ``Appender``. ``ask_room`` asks for the stream's room (None: it makes place by itself).

    The first ``careful`` messages go one by one. ``on_refusal`` is called at the end of a pipeline that a refusal
    ended, with the number of messages that were overtaking. ``largest`` is the stream's own limit of a message in
    bytes, asked for anew with ``ask_largest`` before one is held against it.
    """

    def __init__(
        self,
        keeper: LinkKeeper,
        inbox_prefix: str,
        changed: Callable[[], None],
        room: Room | None,
        ask_room: Callable[[], Awaitable[Room | None]],
        *,
        careful: int = 0,
        on_refusal: Callable[[int], None] = lambda overtaking: None,
        largest: int = NO_LIMIT,
        ask_largest: Callable[[], Awaitable[int]] | None = None,
    ) -> None:
        super().__init__(changed)
        self._keeper = keeper
        self._replies = f"{inbox_prefix}.{secrets.token_hex(11)}."
        self._listener = Listener(self._replies + "*", "", AckRuns(self._replies, self._stored, self._acknowledged))
        self._link: NatsLink | None = None
        self._room = room
        self._ask_room = ask_room
        self._asked_at = 0.0
        self._careful = careful
        self._on_refusal = on_refusal
        self._largest = largest
        self._ask_largest = ask_largest
        self._largest_at = 0.0
        self._refused = False
        self._ahead: set[int] = set()
        # Of what was written: the number behind its last, its bytes, and where on the link it ends.
        self._parts: deque[tuple[int, int, int]] = deque()
        self._bytes = 0
        self._heard = 0.0
        self._loop = asyncio.get_running_loop()
        self._watch: asyncio.TimerHandle | None = None
        self._hole: asyncio.TimerHandle | None = None

    async def append(self, batch: Sequence[Message], allowed: Callable[[], bool] | None = None) -> None:
        """See ``Appender``."""
        self.check()
        link = self._keeper.current()
        await self._check_sizes(batch, link)
        if self._link is None:
            try:
                await self._keeper.add(self._listener)
            except BusRefused as error:
                self.fail(str(error))
            self.check()
            self._link = link = self._keeper.current()
        position, total = 0, len(batch)
        while position < total:
            await self.until(ACK_WINDOW // 2)
            await self._until_light()
            await self._until_whole()
            end = await self._fitting(batch, position, min(total, position + ACK_WINDOW - self.outstanding))
            # While room was waited for, seconds may have passed: the right to publish may have ended.
            if allowed is not None and not allowed():
                if not position:
                    raise PublishWithdrawn
                self.fail("the right to publish ended")
            self.check()
            part = batch[position:end]
            link.wire.add_batch(part, self._replies, self.written)
            link.write()
            self.written += end - position
            size = sum([len(message.payload) for message in part])
            self._parts.append((self.written, size, link.position))
            self._bytes += size
            position = end
            if self._watch is None:
                self._heard = self._loop.time()
                self._watch = self._loop.call_later(ACK_TIMEOUT, self._look)

    async def _check_sizes(self, batch: Sequence[Message], link: NatsLink) -> None:
        try:
            check_batch(batch, min(link.wire.limit, self._largest))
        except MessageTooLarge:
            now = self._loop.time()
            if self._ask_largest is None or now - self._largest_at < _ASK_AGAIN:
                raise
            # The limit may have been raised since it was asked for.
            self._largest_at = now
            try:
                self._largest = await self._ask_largest()
            except BusRefused as error:
                self.fail(str(error))
            self.check()
            check_batch(batch, min(link.wire.limit, self._largest))

    async def _until_light(self) -> None:
        """Wait until what is written and not acknowledged is not too much to be kept."""
        while True:
            self._forget_confirmed()
            if self._bytes <= ACK_BYTES:
                return
            await self.until(self.outstanding - 1)

    async def _until_whole(self) -> None:
        """Wait while an ack is missing that later ones have overtaken: what is written now may stand in front, too."""
        while self._ahead:
            await self.until(self.outstanding - 1)

    def _forget_confirmed(self) -> None:
        parts = self._parts
        while parts and parts[0][0] <= self.confirmed:
            self._bytes -= parts.popleft()[1]

    async def _fitting(self, batch: Sequence[Message], start: int, end: int) -> int:
        """Where the next part of a batch ends: near a stream's end one message at a time, each behind the ack before.

        Of two that are on their way together the first may be refused and the second, a smaller one, taken.
        """
        if self.confirmed < self._careful:
            await self.until(0)
            end = start + 1
        if self._room is not None and self._loop.time() - self._asked_at >= _ASK_AGAIN:
            # Others write too, and others take away: what was true a moment ago is no more.
            await self.until(0)
            try:
                self._room = await self._ask_room()
            except BusRefused as error:
                self.fail(str(error))
                self.check()
            self._asked_at = self._loop.time()
        if self._room is None:
            return end
        count = self._room.take(batch, start, end)
        if not count:
            # A smaller one that would still fit waits for this one, too.
            self._room = Room(0, 0)
            await self.until(0)
        return start + max(1, count)

    def close(self) -> None:
        """See ``Appender``."""
        for timer in (self._watch, self._hole):
            if timer is not None:
                timer.cancel()
        self._keeper.remove(self._listener)
        self._listener.detach()
        if self._refused:
            self._on_refusal(self.overtaking)
        super().close()

    @property
    def overtaking(self) -> int:
        """See ``Appender``. What the stream will never take is overtaken by nothing."""
        return 0 if self.oversized else len(self._ahead)

    def _refuse(self, reason: str) -> None:
        """The server did not take a message: it may have taken others behind it."""
        self._refused = self._refused or not self.failure
        self.fail(reason)

    # --- acks ------------------------------------------------------------------------------------------

    def _stored(self, first: int, end: int) -> bool:
        """Acks of ``first`` to ``end`` came in their order; False where they are not the next ones."""
        if first != self.confirmed or self._ahead or end > self.written:
            return False
        self._heard = self._loop.time()
        self.confirm(end)
        return True

    def _acknowledged(self, number: int, message: Incoming) -> None:
        self._heard = self._loop.time()
        if is_no_responders(message):
            self._refuse("no stream captures this topic")
            return
        try:
            answer = msgspec.json.decode(message.data)
        except msgspec.DecodeError:
            answer = {}
        if error := answer.get("error"):
            self.oversized = not self.failure and number == self.confirmed and error.get("err_code") == _TOO_LARGE
            self._refuse(str(error.get("description")))
            return
        self._ahead.add(number)
        if self._hole is None and number > self.confirmed:
            # A stream's leader acknowledges in order: a message was lost on its way, as when the leader changes.
            self._hole = self._loop.call_later(HOLE_TIMEOUT, self._look_at_hole, self.confirmed)
        confirmed = self.confirmed
        while confirmed in self._ahead:
            self._ahead.remove(confirmed)
            confirmed += 1
        if confirmed > self.confirmed:
            self.confirm(confirmed)

    def _look_at_hole(self, first: int) -> None:
        self._hole = None
        if not self._ahead or self.failure:
            return
        if first == self.confirmed:
            self._refuse(f"no ack of a message within {HOLE_TIMEOUT:g} s of those behind it")
        else:
            self._hole = self._loop.call_later(HOLE_TIMEOUT, self._look_at_hole, self.confirmed)

    def _look(self) -> None:
        self._watch = None
        if not self.outstanding or self.failure:
            return
        self._forget_confirmed()
        if self._link is not None and self._parts and not self._link.arrived(self._parts[0][2]):
            # A slow way: what is still on it can not be acknowledged. Whether it is one at all is the link's to say.
            self._heard = self._loop.time()
        silent = self._loop.time() - self._heard
        if silent >= ACK_TIMEOUT:
            self._refuse(f"no ack within {ACK_TIMEOUT:g} s")
            return
        self._watch = self._loop.call_later(ACK_TIMEOUT - silent, self._look)
