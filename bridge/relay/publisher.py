"""Carries what waits in the buffers to the bus: one write for all that is there, and a book of what is in doubt.

This room never makes an event and never reconnects; while the bus is away it only lets the buffers grow old.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from typing import Protocol

import structlog

from bridge.bus.base import Bus, Message
from bridge.errors import BusError, BusUnavailable, MessageTooLarge, PublishFailed
from bridge.messages.notice import GapNotice, rfc3339
from bridge.relay.buffer import Chunk, EventBuffer, Loss
from bridge.relay.notices import NoticeBoard

log = structlog.get_logger(__name__)

# One write's worth: enough to make the cost of a write vanish, little enough to keep the loop responsive.
BATCH_SIZE = 1024 * 1024
# How often old events are looked for while the bus is away, in seconds.
EXPIRY_INTERVAL = 1.0


class PublishMeter(Protocol):
    """Counters that the publisher feeds (``ops.metrics`` fulfils it)."""

    def events_published(self, node: str, count: int = 1) -> None:
        """``count`` events of ``node`` are confirmed by the broker."""

    def events_dropped(self, node: str, reason: str, count: int = 1) -> None:
        """``count`` events of ``node`` will not be published."""

    def gap(self, node: str, reason: str) -> None:
        """A loss was told."""


class _Written:
    """A batch that the bus has not confirmed yet: which chunks of which buffers."""

    __slots__ = ("number", "parts")

    def __init__(self, number: int, parts: list[tuple[EventBuffer, list[Chunk]]]) -> None:
        self.number = number
        self.parts = parts


class Publisher:
    """One task that empties all buffers of a worker into one bus, in order per node."""

    def __init__(self, bus: Bus, notices: NoticeBoard, meter: PublishMeter) -> None:
        self._bus = bus
        self._notices = notices
        self._meter = meter
        self._buffers: list[EventBuffer] = []
        self._waiting = asyncio.Event()
        self._written: deque[_Written] = deque()
        self._task: asyncio.Task[None] | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        notices.wake = self.wake
        bus.on_broken = self._broken

    def add(self, buffer: EventBuffer) -> None:
        """Publish from this buffer too."""
        self._buffers.append(buffer)

    def remove(self, buffer: EventBuffer) -> None:
        """Forget a buffer (its node is gone)."""
        self._buffers.remove(buffer)

    def wake(self) -> None:
        """Something was put into a buffer, or the bus is back."""
        self._waiting.set()
        self._idle.clear()

    @property
    def events(self) -> int:
        """Events that wait for the bus."""
        return sum(buffer.events for buffer in self._buffers)

    @property
    def size(self) -> int:
        """Bytes that wait for the bus."""
        return sum(buffer.size for buffer in self._buffers)

    def start(self) -> None:
        """Begin to publish."""
        self._task = asyncio.create_task(self._run(), name="publisher")

    async def stop(self, timeout: float) -> int:
        """Publish what is left for at most ``timeout`` seconds and have it confirmed; returns what was given up."""
        deadline = asyncio.get_running_loop().time() + timeout
        self.wake()
        with contextlib.suppress(TimeoutError, BusError):
            async with asyncio.timeout_at(deadline):
                await self._idle.wait()
                await self._bus.flush(timeout)
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._settle()
        lost = 0
        for buffer in self._buffers:
            dropped = buffer.close(time.time())
            if dropped:
                self._meter.events_dropped(buffer.node, "shutdown", dropped)
            lost += dropped
        return lost

    async def _run(self) -> None:
        while True:
            await self._wait()
            try:
                await self._publish_all()
            except Exception:  # a fault of ours must not end the relay of events
                log.exception("publishing failed; going on")
                await asyncio.sleep(EXPIRY_INTERVAL)

    async def _wait(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(EXPIRY_INTERVAL):
                await self._waiting.wait()
        self._waiting.clear()
        self._settle()
        if not self._bus.connected:
            self._expire()

    async def _publish_all(self) -> None:
        while self._bus.connected:
            batch, parts, notices = self._gather()
            if not batch:
                self._idle.set()
                return
            try:
                number = await self._bus.publish_many(batch)
            except BusUnavailable:
                self._put_back(parts, notices)
                return
            except MessageTooLarge as error:
                log.warning("the bus's limit shrank", reason=str(error))
                self._put_back(parts, notices)
                self._drop_too_large()
                continue
            except PublishFailed as failure:
                log.warning("a batch broke off", reason=str(failure), uncertain=failure.uncertain)
                self._book_failure(parts, notices, failure)
                return
            self._written.append(_Written(number, parts))
            self._settle()

    def _gather(self) -> tuple[list[Message], list[tuple[EventBuffer, list[Chunk]]], list[Message]]:
        batch: list[Message] = []
        parts: list[tuple[EventBuffer, list[Chunk]]] = []
        for buffer in self._buffers:
            if buffer.events:
                chunks = buffer.take(BATCH_SIZE)
                parts.append((buffer, chunks))
                for chunk in chunks:
                    batch += chunk.messages
            if buffer.losses:
                self._tell_losses(buffer)
        # Notices come last: a hole is told when what comes behind it is on its way.
        notices = self._notices.take()
        batch += notices
        return batch, parts, notices

    def _drop_too_large(self) -> None:
        """Another server with a lower limit: what was measured against the old one is measured again."""
        now = time.time()
        limit = self._bus.max_payload
        for buffer in self._buffers:
            dropped = buffer.keep(lambda message: self._bus.message_size(message) <= limit, now)
            if dropped:
                self._meter.events_dropped(buffer.node, "too_large", dropped)
        self._notices.put_back([one for one in self._notices.take() if self._bus.message_size(one) <= limit])

    def _put_back(self, parts: list[tuple[EventBuffer, list[Chunk]]], notices: list[Message]) -> None:
        for buffer, chunks in parts:
            buffer.put_back(chunks)
        self._notices.put_back(notices)

    def _book_failure(
        self, parts: list[tuple[EventBuffer, list[Chunk]]], notices: list[Message], failure: PublishFailed
    ) -> None:
        """What is confirmed is counted, what is in doubt is told, what was not written goes back."""
        confirmed, uncertain = failure.confirmed, failure.uncertain
        now = time.time()
        for buffer, chunks in parts:
            rest: list[Chunk] = []
            for chunk in chunks:
                sure = min(confirmed, len(chunk.messages))
                doubtful = min(uncertain, len(chunk.messages) - sure)
                confirmed -= sure
                uncertain -= doubtful
                if sure:
                    buffer.last_confirmed = chunk.messages[sure - 1].id
                    self._meter.events_published(buffer.node, sure)
                if doubtful:
                    self._doubt(buffer, chunk, chunk.messages[sure : sure + doubtful], now)
                if sure + doubtful < len(chunk.messages):
                    left = chunk.messages[sure + doubtful :]
                    share = chunk.size * len(left) // len(chunk.messages)
                    rest.append(Chunk(chunk.epoch, left, share, chunk.at))
            buffer.put_back(rest)
        # Notices bear an id, so a repeated one is recognised; a lost one is not.
        self._notices.put_back(notices[confirmed:])

    def _broken(self) -> None:
        """The connection broke: batches behind the last confirmed one may or may not have arrived."""
        self._settle()
        now = time.time()
        while self._written:
            for buffer, chunks in self._written.popleft().parts:
                for chunk in chunks:
                    self._doubt(buffer, chunk, chunk.messages, now)

    def _doubt(self, buffer: EventBuffer, chunk: Chunk, messages: list[Message], now: float) -> None:
        self._meter.events_dropped(buffer.node, "bus", len(messages))
        loss = Loss(chunk.epoch, "bus", chunk.at, now, buffer.last_confirmed, count=len(messages), exact=False)
        buffer.lose(loss)

    def _settle(self) -> None:
        confirmed = self._bus.confirmed
        written = self._written
        while written and written[0].number <= confirmed:
            for buffer, chunks in written.popleft().parts:
                buffer.last_confirmed = chunks[-1].messages[-1].id
                self._meter.events_published(buffer.node, sum(len(chunk.messages) for chunk in chunks))

    def _expire(self) -> None:
        now = time.time()
        for buffer in self._buffers:
            dropped = buffer.expire(now)
            if dropped:
                self._meter.events_dropped(buffer.node, "buffer", dropped)

    def _tell_losses(self, buffer: EventBuffer) -> None:
        for loss in buffer.take_losses():
            self._meter.gap(buffer.node, loss.reason)
            self._notices.tell(gap_notice(loss), node=buffer.node)


def gap_notice(loss: Loss) -> GapNotice:
    """The ``gap`` notice of a loss (contract section 3a)."""
    return GapNotice(
        reason=loss.reason,
        epoch=loss.epoch,
        start=rfc3339(loss.start),
        end=rfc3339(loss.end),
        before=loss.before,
        after=loss.after,
        count=loss.count,
        exact=None if loss.count is None else loss.exact,
    )
