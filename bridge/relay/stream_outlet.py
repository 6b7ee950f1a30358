"""The way into a stream: a pipeline of batches, gone on with from the first unconfirmed event when it breaks off.

What is in doubt is sent again, with the same id, in order. This room never tells a doubt, and never drops an event
for want of room.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from functools import partial
from typing import Protocol

import structlog

from bridge.bus.base import Appender, Bus, DurableTopics, Message, StreamSpec
from bridge.errors import BusRefused, BusUnavailable, MessageTooLarge, PublishWithdrawn
from bridge.relay.buffer import EventBuffer
from bridge.relay.chunks import Chunk, Loss, identity_of
from bridge.relay.outlets import Outlet, Parts, PublishMeter, allowed, part_of

log = structlog.get_logger(__name__)

# How long a stream that takes nothing is left alone, in seconds.
RETRY_DELAY = 0.2
REFUSED_DELAY = 5.0

# How often the connection breaks with the same event in front before that is told.
BREAKS_TOLD = 3


class DurableBus(Bus, DurableTopics, Protocol):
    """A bus that also keeps topics."""


class StreamOutlet(Outlet):
    """Appends to one stream, until the broker has everything."""

    def __init__(self, bus: DurableBus, stream: StreamSpec, meter: PublishMeter) -> None:
        super().__init__(bus, meter, stream.name)
        self.stream = stream
        self._durable = bus
        self._pipeline: Appender | None = None
        self._written: deque[tuple[int, Parts]] = deque()
        self._settled = 0
        self._told = ""
        self._broke_at = ""
        self._breaks = 0

    async def stop(self) -> None:
        """See ``Outlet``."""
        await super().stop()
        self._go_back()

    async def _publish_all(self) -> None:
        try:
            while self._bus.connected or self._pipeline is not None:
                if self._pipeline is None and not await self._begin():
                    continue
                if self._settle():
                    await self._again()
                    continue
                if not self._bus.connected:
                    return  # it may yet be confirmed; it tells when not
                batch: list[Message] = []
                parts = self._gather(batch)
                if not batch:
                    if not self._written:
                        self._look_idle()
                    return
                await self._append(batch, parts)
        except Exception:
            # A fault of ours: what is in hand is not lost with it.
            self._go_back()
            raise

    async def _append(self, batch: list[Message], parts: Parts) -> None:
        pipeline = self._pipeline
        assert pipeline is not None
        before = pipeline.written
        self._written.append((before + len(batch), parts))
        try:
            await pipeline.append(batch, partial(allowed, parts))
        except PublishWithdrawn:
            self._withdraw()
        except MessageTooLarge as error:
            self._withdraw()
            self._drop_too_large(error.limit)
        except BusUnavailable:
            await self._again()
        else:
            self._note_lag(parts)

    def _withdraw(self) -> None:
        """Nothing of the last batch was written."""
        self._put_back(self._written.pop()[1])

    async def _begin(self) -> bool:
        """Make sure that the stream is there, and begin a pipeline into it."""
        try:
            await self._durable.ensure_stream(self.stream)
        except BusUnavailable:
            await asyncio.sleep(RETRY_DELAY)
        except BusRefused as error:
            if str(error) != self._told:
                self._told = str(error)
                log.error("a stream is not to be had; its events wait", stream=self.stream.name, reason=self._told)
            await asyncio.sleep(REFUSED_DELAY)
        else:
            self._pipeline = self._durable.appender(self.stream, self.wake)
            self._settled = 0
        return self._pipeline is not None

    def _settle(self) -> bool:
        """Count what is confirmed; whether the pipeline broke off."""
        pipeline, written = self._pipeline, self._written
        assert pipeline is not None
        confirmed = pipeline.confirmed
        while written and written[0][0] <= confirmed:
            self._settled, parts = written.popleft()
            self._confirmed(parts)
            self._told = ""
        return bool(pipeline.failure)

    def _confirmed(self, parts: Parts) -> None:
        for buffer, chunks in parts:
            count = 0
            for chunk in chunks:
                buffer.settle(chunk, confirmed=True)
                count += len(chunk.messages)
            self._meter.events_published(buffer.node, count)

    async def _again(self) -> None:
        """Leave the stream alone for a moment, then begin a new pipeline."""
        failure = self._pipeline.failure if self._pipeline is not None else ""
        if failure and failure != self._told and self._bus.connected:
            # A full stream says the same five times a second.
            self._told = failure
            first = self._first()
            topic = first.topic if first is not None else ""
            log.warning("appending broke off", stream=self.stream.name, reason=failure, topic=topic)
        elif not self._bus.connected:
            self._note_break()
        # Meanwhile the broker says what became of the rest that was on its way.
        await asyncio.sleep(RETRY_DELAY)
        self._go_back()

    def _note_break(self) -> None:
        """The connection broke. Where the same event stands in front each time, the broker may not bear it: say so."""
        first = self._first()
        if first is None:
            return
        self._breaks = self._breaks + 1 if first.id == self._broke_at else 1
        self._broke_at = first.id
        if self._breaks == BREAKS_TOLD:
            text = "the connection breaks each time that the same event is sent"
            size = self._bus.message_size(first)
            log.error(text, stream=self.stream.name, topic=first.topic, id=first.id, size=size)

    def _first(self) -> Message | None:
        """The first event that is not confirmed: what the broker would not take, or did not answer for."""
        skip = self._pipeline.confirmed - self._settled if self._pipeline is not None else 0
        for _, parts in self._written:
            for _, chunks in parts:
                for chunk in chunks:
                    if skip < len(chunk.messages):
                        return chunk.messages[skip]
                    skip -= len(chunk.messages)
        return None

    def _go_back(self) -> None:
        """Be done with the pipeline: everything from the first unconfirmed event on is sent again, by another."""
        pipeline, self._pipeline = self._pipeline, None
        if pipeline is None:
            return
        overtaking = pipeline.overtaking
        confirmed, oversized = pipeline.confirmed - self._settled, pipeline.oversized
        back: dict[EventBuffer, list[Chunk]] = {}
        for _, parts in self._written:
            for buffer, chunks in parts:
                rest = back.setdefault(buffer, [])
                for chunk in chunks:
                    total = len(chunk.messages)
                    sure = min(confirmed, total)
                    confirmed -= sure
                    if sure:
                        self._meter.events_published(buffer.node, sure)
                    if sure == total:
                        buffer.settle(chunk, confirmed=True)
                        continue
                    buffer.settle_part(chunk, sure, confirmed=True)
                    left: Chunk | None = part_of(chunk, sure)
                    if overtaking:
                        self._tell_order(identity_of(chunk.messages[sure]), overtaking)
                        overtaking = 0
                    if oversized:
                        left, oversized = self._drop_first(buffer, part_of(chunk, sure)), False
                    if left is not None:
                        rest.append(left)
        self._written.clear()
        for buffer, rest in back.items():
            buffer.put_back(rest)
        pipeline.close()  # last: whatever it meets, nothing of ours is in its hands any more

    def _tell_order(self, refused: str, overtaking: int) -> None:
        """The broker took messages behind one that it refused: subscribers see it in the events' ``sequence`` only."""
        log.warning(
            "events are out of order in the stream", stream=self.stream.name, refused=refused, in_front_of_it=overtaking
        )

    def _drop_first(self, buffer: EventBuffer, chunk: Chunk) -> Chunk | None:
        """Drop the first event of a chunk: the stream will never take it. Returns what is left."""
        self._too_large(buffer, 1)
        buffer.lose(Loss(chunk.epoch, "too_large", chunk.at, time.time(), before=chunk.before, count=1))
        if len(chunk.messages) == 1:
            buffer.settle(chunk, confirmed=False)
            return None
        buffer.settle_part(chunk, 1, confirmed=False)
        return part_of(chunk, 1)
