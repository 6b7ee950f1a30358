"""The ways to the bus: one write for all that waits, and a book of what is not confirmed yet.

What an outlet is, and the one to the topics: there what is in doubt is told and never sent again. This room never makes
an event, and never drops one for want of room.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable
from functools import partial
from typing import Protocol

import structlog

from bridge.bus.base import Bus, Message
from bridge.errors import BusUnavailable, MessageTooLarge, PublishFailed, PublishWithdrawn
from bridge.relay.buffer import EventBuffer
from bridge.relay.chunks import Chunk, Loss, Receipt, identity_of, receipt_of, share_of
from bridge.relay.lately import Lately
from bridge.relay.notices import NoticeBoard

log = structlog.get_logger(__name__)

# One write's worth: enough to make the cost of a write vanish, little enough to keep the loop responsive.
BATCH_SIZE = 1024 * 1024
# The least that a node may add to a write, however many others there are.
LEAST_SHARE = 64 * 1024
# How often an outlet looks after what nobody told it, in seconds.
WATCH_INTERVAL = 1.0
# How soon confirmations are looked for when nothing more is written, in seconds.
SETTLE_DELAY = 0.02

# How soon the same trouble is in the log again, in seconds.
TELL_AGAIN = 60.0

# How many topics that the broker refuses are told apart.
MAX_DENIED = 4096

Parts = list[tuple[EventBuffer, list[Chunk]]]


class PublishMeter(Protocol):
    """Counters that publishing feeds (``ops.metrics`` fulfils it)."""

    def events_published(self, node: str, count: int = 1) -> None:
        """``count`` events of ``node`` are confirmed by the broker."""

    def events_dropped(self, node: str, reason: str, count: int = 1) -> None:
        """``count`` events of ``node`` will not be published."""

    def event_lag(self, node: str, waited: float) -> None:
        """Events of ``node`` were written, ``waited`` s after they were read."""

    def gap(self, node: str, reason: str) -> None:
        """A loss was told."""


class Outlet(ABC):
    """One task that empties buffers in one direction. ``idle`` is set while nothing waits and nothing is in hand."""

    def __init__(self, bus: Bus, meter: PublishMeter, name: str) -> None:
        self.idle = asyncio.Event()
        self.idle.set()
        self.on_loss: Callable[[EventBuffer], None] = lambda buffer: None
        self._bus = bus
        self._meter = meter
        self._name = name
        self._buffers: list[EventBuffer] = []
        self._waiting = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._told_large: Lately[None] = Lately(TELL_AGAIN, MAX_DENIED)

    def add(self, buffer: EventBuffer) -> None:
        """Publish from this buffer too."""
        self._buffers.append(buffer)
        buffer.wake = self.wake
        if buffer.events or buffer.losses:
            self.wake()

    def remove(self, buffer: EventBuffer) -> None:
        """Forget a buffer."""
        if buffer in self._buffers:
            self._buffers.remove(buffer)

    def wake(self) -> None:
        """Something was put into a buffer, or the bus is back."""
        self._waiting.set()
        self.idle.clear()

    def start(self) -> None:
        """Begin to publish."""
        self._look_after()
        self._task = asyncio.create_task(self._run(), name=f"publish {self._name}")

    async def stop(self) -> None:
        """End at once; what was not written is back in its buffer."""
        if self._watch is not None:
            self._watch.cancel()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        while True:
            await self._waiting.wait()
            self._waiting.clear()
            try:
                await self._publish_all()
            except Exception:  # a fault of ours must not end the relay of events
                log.exception("publishing failed; going on", outlet=self._name)
                await asyncio.sleep(WATCH_INTERVAL)

    def _look_after(self) -> None:
        # One timer for as long as it publishes: a timeout of every wait costs more than a small write.
        self._waiting.set()
        self._watch = asyncio.get_running_loop().call_later(WATCH_INTERVAL, self._look_after)

    @abstractmethod
    async def _publish_all(self) -> None:
        """Write what waits; return when nothing does, or when the bus is away."""

    def _gather(self, batch: list[Message]) -> Parts:
        """Take one write's worth out of the buffers that may be published from."""
        parts: Parts = []
        share = max(LEAST_SHARE, BATCH_SIZE // max(1, len(self._buffers)))
        for buffer in self._buffers:
            if buffer.events and buffer.gate():
                chunks = buffer.take(share)
                if chunks:
                    parts.append((buffer, chunks))
                    for chunk in chunks:
                        batch += chunk.messages
            if buffer.losses:
                self.on_loss(buffer)
        return parts

    def _put_back(self, parts: Parts) -> None:
        for buffer, chunks in parts:
            buffer.put_back(chunks)

    def _note_lag(self, parts: Parts) -> None:
        now = time.time()
        for buffer, chunks in parts:
            self._meter.event_lag(buffer.node, now - chunks[-1].at)

    def _drop_too_large(self, limit: int) -> None:
        """A lower limit (in bytes) than before, of another server or of a stream: all that waits is measured again."""
        now = time.time()
        for buffer in self._buffers:
            dropped = buffer.keep(lambda message: self._bus.message_size(message) <= limit, now)
            if dropped:
                self._too_large(buffer, dropped, limit)

    def _too_large(self, buffer: EventBuffer, count: int, limit: int | None = None) -> None:
        """Count what is never taken, and say so now and then: it may be every event."""
        self._meter.events_dropped(buffer.node, "too_large", count)
        if buffer.node not in self._told_large:
            self._told_large.put(buffer.node, None)
            log.warning("events over a limit are dropped", node=buffer.node, outlet=self._name, limit=limit)

    def _look_idle(self) -> None:
        """Nothing could be taken: idle, unless a buffer waits for its disk or its gate."""
        if not any(buffer.events for buffer in self._buffers):
            self.idle.set()


class TopicOutlet(Outlet):
    """Publishes to topics: pipelined, confirmed later, never twice. Notices go this way too."""

    def __init__(self, bus: Bus, notices: NoticeBoard, meter: PublishMeter) -> None:
        super().__init__(bus, meter, "topics")
        self._notices = notices
        self._written: deque[tuple[int, list[tuple[EventBuffer, list[Receipt]]], list[str]]] = deque()
        self._denied: Counter[str] = Counter()
        self._look: asyncio.TimerHandle | None = None
        bus.on_broken = self._broken
        bus.on_denied = self._note_denied

    async def stop(self) -> None:
        """See ``Outlet``."""
        await super().stop()
        self._settle()
        if self._look is not None:
            self._look.cancel()

    async def _publish_all(self) -> None:
        self._settle()
        while self._bus.connected:
            batch: list[Message] = []
            parts = self._gather(batch)
            # Notices come last: a hole is told when what comes behind it is on its way.
            notices = self._notices.take()
            batch += notices
            if not batch:
                self._look_idle()
                return
            try:
                number = await self._bus.publish_many(batch, partial(allowed, parts))
            except PublishWithdrawn:
                # What may still be published is gathered anew; what may not waits behind its gate.
                self._put_back(parts)
                self._notices.put_back(notices)
                continue
            except (BusUnavailable, asyncio.CancelledError) as error:
                self._put_back(parts)
                self._notices.put_back(notices)
                if isinstance(error, asyncio.CancelledError):
                    raise
                return
            except MessageTooLarge as error:
                self._put_back(parts)
                self._notices.put_back(notices)
                self._drop_too_large(error.limit)
                continue
            except PublishFailed as failure:
                log.warning("a batch broke off", reason=str(failure), uncertain=failure.uncertain)
                self._book_failure(parts, notices, failure)
                return
            except Exception as error:
                # A fault of ours: nobody knows how far the write came. It is told as a doubt, and not lost with it.
                doubt = PublishFailed(str(error), confirmed=0, uncertain=len(batch) - len(notices))
                self._book_failure(parts, notices, doubt)
                raise
            self._note_lag(parts)
            # The events themselves are not needed any more: with a slow bus they would be the most of our memory.
            receipts = [(buffer, [*map(receipt_of, chunks)]) for buffer, chunks in parts]
            self._written.append((number, receipts, [message.topic for message in batch]))
            del parts, batch
            self._settle()
            if self._written and self._look is None:
                self._look = asyncio.get_running_loop().call_later(SETTLE_DELAY, self._look_again)

    def _drop_too_large(self, limit: int) -> None:
        super()._drop_too_large(limit)
        self._notices.put_back([one for one in self._notices.take() if self._bus.message_size(one) <= limit])

    def _book_failure(self, parts: Parts, notices: list[Message], failure: PublishFailed) -> None:
        """What is confirmed is counted, what is in doubt is told, what was not written goes back."""
        confirmed, uncertain = failure.confirmed, failure.uncertain
        now = time.time()
        for buffer, chunks in parts:
            rest: list[Chunk] = []
            for chunk in chunks:
                total = len(chunk.messages)
                sure = min(confirmed, total)
                doubtful = min(uncertain, total - sure)
                confirmed -= sure
                uncertain -= doubtful
                if sure:
                    buffer.settle_part(chunk, sure, confirmed=True)
                    self._meter.events_published(buffer.node, sure)
                if doubtful:
                    self._doubt(buffer, chunk, doubtful, now)
                    buffer.settle_part(chunk, doubtful, confirmed=False)
                if sure + doubtful < total:
                    rest.append(part_of(chunk, sure + doubtful))
            buffer.put_back(rest)
        # Notices bear an id, so a repeated one is recognised; a lost one is not.
        self._notices.put_back(notices[confirmed:])

    def _broken(self) -> None:
        """The connection broke: batches behind the last confirmed one may or may not have arrived."""
        self._settle()
        self._denied.clear()
        now = time.time()
        while self._written:
            for buffer, receipts in self._written.popleft()[1]:
                for one in receipts:
                    self._doubt(buffer, one, one.count, now)
                    buffer.settle_written(one, confirmed=False)

    def _doubt(self, buffer: EventBuffer, one: Chunk | Receipt, count: int, now: float) -> None:
        self._meter.events_dropped(buffer.node, "bus", count)
        buffer.lose(Loss(one.epoch, "bus", one.at, now, buffer.last_confirmed, count=count, exact=False))

    def _look_again(self) -> None:
        """Confirmations come by themselves: when nothing more is written, they are looked for."""
        self._look = None
        self._settle()
        if self._written:
            self._look = asyncio.get_running_loop().call_later(SETTLE_DELAY, self._look_again)

    def _settle(self) -> None:
        confirmed = self._bus.confirmed
        written = self._written
        while written and written[0][0] <= confirmed:
            _, parts, topics = written.popleft()
            if self._denied:
                self._settle_denied(parts, topics)
                continue
            for buffer, receipts in parts:
                count = 0
                for one in receipts:
                    buffer.settle_written(one, confirmed=True)
                    count += one.count
                self._meter.events_published(buffer.node, count)

    def _note_denied(self, topic: str) -> None:
        """The broker refused one message to this topic (in lower case), of those that are not confirmed."""
        if topic in self._denied or len(self._denied) < MAX_DENIED:
            self._denied[topic] += 1

    def _settle_denied(self, parts: list[tuple[EventBuffer, list[Receipt]]], topics: list[str]) -> None:
        """A batch has its end, but for what the broker refused of it: that is counted, and told as a loss."""
        denied = self._denied
        position, now = 0, time.time()
        for buffer, receipts in parts:
            for one in receipts:
                lost = 0
                for topic in topics[position : position + one.count]:
                    name = topic.lower()
                    if denied[name] > 0:
                        denied[name] -= 1
                        lost += 1
                position += one.count
                if lost:
                    self._meter.events_dropped(buffer.node, "bus", lost)
                    buffer.lose(Loss(one.epoch, "bus", one.at, now, buffer.last_confirmed, count=lost))
                self._meter.events_published(buffer.node, one.count - lost)
                buffer.settle_written(one, confirmed=True)
        # What is left is of later batches; or nothing that is written here: replies, other streams.
        self._denied = +denied if self._written else Counter()


def allowed(parts: Parts) -> bool:
    """Whether every node of a write may still be published; asked right before the bytes leave."""
    return all(buffer.gate() for buffer, _ in parts)


def part_of(chunk: Chunk, first: int) -> Chunk:
    """What is left of a chunk from its ``first``-th message on."""
    if not first:
        return chunk
    left, before = chunk.messages[first:], identity_of(chunk.messages[first - 1])
    return Chunk(chunk.epoch, left, share_of(chunk, left), chunk.at, None, chunk.parcel, chunk.read, before)
