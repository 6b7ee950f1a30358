"""What carries the buffers of a worker to the bus: an outlet for the topics, and one for every stream.

This room never makes an event and never reconnects; while the bus is away it only lets the buffers grow old.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable

import structlog

from bridge.bus.base import Bus, DurableTopics, StreamSpec
from bridge.errors import BusError
from bridge.messages.notice import GapNotice, rfc3339
from bridge.messages.topics import notice_topic
from bridge.relay.buffer import EventBuffer
from bridge.relay.chunks import Loss, add_loss
from bridge.relay.notices import NoticeBoard
from bridge.relay.outlets import Outlet, PublishMeter, TopicOutlet
from bridge.relay.reservoir import Reservoir
from bridge.relay.routes import RouteSettings
from bridge.relay.stream_outlet import StreamOutlet

log = structlog.get_logger(__name__)

# How often old events are looked for, in seconds.
EXPIRY_INTERVAL = 1.0
# By how much, in seconds, somebody has set the clock: less is its own drift, or somebody slowing it down.
CLOCK_STEP = 1.0
_GAPS = notice_topic(GapNotice.kind)


class Publisher:
    """Empties all buffers of a worker into one bus, in order per node and lane.

    ``reservoir`` is the room that the buffers share.
    """

    def __init__(self, bus: Bus, notices: NoticeBoard, meter: PublishMeter, reservoir: Reservoir | None = None) -> None:
        self.reservoir = reservoir or Reservoir()
        self.reservoir.on_drop = meter.events_dropped
        self._bus = bus
        self._notices = notices
        self._meter = meter
        self._buffers: dict[tuple[str, str], EventBuffer] = {}
        self._topics = TopicOutlet(bus, notices, meter)
        self._streams: dict[str, StreamOutlet] = {}
        self._started = False
        self._expiry: asyncio.TimerHandle | None = None
        self._clock = unix_offset()
        notices.wake = self._topics.wake
        for outlet in self._outlets():
            outlet.on_loss = self._tell

    def buffer(self, node: str, stream: StreamSpec | None = None) -> EventBuffer:
        """The buffer of a node for the topics or a stream, made when it is not there."""
        lane = stream.name if stream is not None else ""
        known = self._buffers.get((node, lane))
        if known is None:
            known = EventBuffer(node, lane=lane, reservoir=self.reservoir)
            self.add(known, stream)
        return known

    def adopt(self, routes: Iterable[RouteSettings]) -> None:
        """See to what an earlier run left on disk and no node of this one has taken.

        For a stream of one of the routes it is sent on, for another it is told as lost. What was for the topics is told
        when the node is ours again.
        """
        self._notices.put_back(self.reservoir.untold.take_notices())
        streams = {route.stream.name: route.stream for route in routes if route.stream is not None}
        for node, lane in self.reservoir.left:
            if lane in streams:
                self.buffer(node, streams[lane])
            elif lane:
                for loss in self.reservoir.give_up(node, lane):
                    add_loss(self.buffer(node).losses, loss)
            else:
                self.reservoir.owe(node)

    def add(self, buffer: EventBuffer, stream: StreamSpec | None = None) -> None:
        """Publish from this buffer too."""
        self._buffers[buffer.node, buffer.lane] = buffer
        self._outlet(stream).add(buffer)

    def remove(self, buffer: EventBuffer) -> None:
        """Forget a buffer (its node is gone)."""
        self._buffers.pop((buffer.node, buffer.lane), None)
        for outlet in self._outlets():
            outlet.remove(buffer)
        self.reservoir.leave(buffer)

    def wake(self) -> None:
        """Something was put into a buffer, or the bus is back."""
        for outlet in self._outlets():
            outlet.wake()

    @property
    def events(self) -> int:
        """Events that wait for the bus, in memory and on disk."""
        return sum([buffer.events for buffer in self._buffers.values()])

    @property
    def size(self) -> int:
        """Bytes of them in memory."""
        return sum([buffer.size for buffer in self._buffers.values()])

    def start(self) -> None:
        """Begin to publish."""
        self._started = True
        for outlet in self._outlets():
            outlet.start()
        self._expire()

    async def stop(self, timeout: float) -> int:
        """Publish what is left for at most ``timeout`` seconds and have it confirmed; returns what was given up.

        What waits for a stream and goes to disk is not given up: the next run sends it on, and tells the rest.
        """
        deadline = asyncio.get_running_loop().time() + timeout
        self.wake()
        with contextlib.suppress(TimeoutError, BusError):
            async with asyncio.timeout_at(deadline):
                for outlet in self._outlets():
                    await outlet.idle.wait()
                await self._bus.flush(timeout)
        if self._expiry is not None:
            self._expiry.cancel()
        for outlet in self._outlets():
            await outlet.stop()
        lost = 0
        for buffer in self._buffers.values():
            dropped = buffer.close(time.time())
            if dropped:
                self._meter.events_dropped(buffer.node, "shutdown", dropped)
            lost += dropped
        self.reservoir.untold.put_notices([one for one in self._notices.take() if one.topic == _GAPS])
        for node, dropped in (await self.reservoir.close()).items():
            self._meter.events_dropped(node, "shutdown", dropped)
            lost += dropped
        return lost

    def _outlets(self) -> list[Outlet]:
        return [self._topics, *self._streams.values()]

    def _outlet(self, stream: StreamSpec | None) -> Outlet:
        if stream is None:
            return self._topics
        outlet = self._streams.get(stream.name)
        if outlet is None:
            assert isinstance(self._bus, DurableTopics), "the bus keeps no streams"
            outlet = self._streams[stream.name] = StreamOutlet(self._bus, stream, self._meter)
            outlet.on_loss = self._tell
            if self._started:
                outlet.start()
        return outlet

    def _expire(self) -> None:
        now, offset = time.time(), unix_offset()
        step, self._clock = offset - self._clock, offset
        if abs(step) > CLOCK_STEP:
            log.warning("the clock was set", seconds=round(step, 1))
            for buffer in self._buffers.values():
                buffer.clock_set(step, now)
        for buffer in self._buffers.values():
            dropped = buffer.expire(now)
            if dropped:
                self._meter.events_dropped(buffer.node, "buffer", dropped)
        self._expiry = asyncio.get_running_loop().call_later(EXPIRY_INTERVAL, self._expire)

    def _tell(self, buffer: EventBuffer) -> None:
        for loss in buffer.take_losses():
            self._meter.gap(buffer.node, loss.reason)
            self._notices.tell(gap_notice(loss), node=buffer.node)


def unix_offset() -> float:
    """What the Unix time is ahead of a clock that nobody sets and that runs while the machine sleeps, in seconds."""
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


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
        exact=(False if loss.uncertain else None) if loss.count is None else loss.exact,
        uncertain=loss.uncertain,
    )
