"""What all buffers of a worker share: memory, disk, and what is dropped first when both are full.

This room never touches an event; it says which buffer spills or drops.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from bridge.relay.backlog import PARCEL_SIZE, Backlog
from bridge.relay.chunks import RANKS, DropPolicy, Loss
from bridge.relay.spill import Row, Spill
from bridge.relay.untold import Untold

if TYPE_CHECKING:
    from bridge.relay.buffer import EventBuffer

# After a failed write the disk is left alone for so long, in seconds.
_RETRY_AFTER = 5.0
# How long one read may be held up by a disk that is behind, and how long a disk that gave nothing is not waited for.
_PATIENCE = 0.1
_IMPATIENCE = 1.0
# Part of the memory that fills before anything goes to disk; the rest is for what is being written.
_SPILL_AT = 3
# Part of it from which on readers are held to a pace, in bytes/s: three times what FreeSWITCH can say (its one
# dispatcher needs 118 us for each event of some 2.5 KB), so that it never waits for us. Most buses take as much: a
# burst then goes there, and not by way of the disk.
_PACE_AT = 6
PACE = 64 * 1024 * 1024


class BufferLimits(msgspec.Struct, frozen=True):
    """How much a worker may hold back: ``events`` and bytes (``size``) in memory, bytes on ``disk`` (0: none).

    An event waits at most ``age`` seconds for a topic and ``durable_age`` for a stream. ``drop`` says what goes first
    when there is no more room: the ``oldest``, the ``newest``, or by ``class`` what is least missed.
    """

    events: int = 100_000
    size: int = 24 * 1024 * 1024
    age: float = 60.0
    disk: int = 0
    durable_age: float = 86_400.0
    drop: DropPolicy = "oldest"


class Reservoir:
    """The room that the buffers of a worker have in common.

    ``on_drop(node, reason, count)`` is told of every event that is dropped for want of room, or was by an earlier run.
    ``untold`` are the losses that wait for their node to be ours again.
    """

    def __init__(
        self, limits: BufferLimits | None = None, spill: Spill | None = None, untold: Untold | None = None
    ) -> None:
        self.limits = limits or BufferLimits()
        self.untold = untold or Untold()
        self.events = 0
        self.size = 0
        self.returned = 0
        """Bytes of it that were on their way to the bus and came back: they were in memory then too, uncounted, and are
        no reason to drop anything."""
        self.on_drop: Callable[[str, str, int], None] = lambda node, reason, count: None
        self._spill = spill if self.limits.disk else None
        self._buffers: list[EventBuffer] = []
        self._left: list[tuple[str, Backlog]] = []
        self._found: dict[tuple[str, str], list[Row]] = {}
        self._failed_at = 0.0
        self._patient_at = 0.0

    @property
    def stored(self) -> int:
        """Bytes on disk."""
        return sum([one.backlog.stored for one in self._buffers if one.backlog is not None]) if self._spill else 0

    def open(self) -> None:
        """Open the spill, before any buffer joins. Raises ``OSError``."""
        self.untold.open()
        if self._spill is not None:
            for row in self._spill.open():
                self._found.setdefault((row.node, row.lane), []).append(row)

    @property
    def left(self) -> list[tuple[str, str]]:
        """Node and lane of what an earlier run left on disk and no buffer has taken."""
        return list(self._found)

    async def close(self) -> Counter[str]:
        """Finish writing and close the spill; what nobody will ever be told is in the log.

        Returns the events of each node that the disk did not take at the end: the next run tells them as lost.
        """
        lost: Counter[str] = Counter()
        if self._spill is not None:
            await self._spill.settle()
        for node, backlog in self._left:
            count, losses = backlog.give_up(time.time())
            lost[node] += count
            self.untold.owe(node, losses)
        if not self.untold.save():
            self.untold.log_lost()
        if self._spill is not None:
            await self._spill.close()
        return lost

    def join(self, buffer: EventBuffer) -> Backlog | None:
        """Take a buffer in; its place on disk, with what an earlier run left there for it."""
        self._buffers.append(buffer)
        if self._spill is None:
            return None
        backlog = Backlog(
            buffer.node,
            buffer.lane,
            self._spill,
            by_rank=self.limits.drop == "class",
            keep_until_sure=bool(buffer.lane),
        )
        backlog.on_held = self._held
        if buffer.lane:
            backlog.adopt(self._found.pop((buffer.node, buffer.lane), []))
        else:
            self.owe(buffer.node)
        return backlog

    def owe(self, node: str) -> None:
        """Drop what an earlier run left for the topics: who listened then does not listen for it now.

        It is told when the node is ours again.
        """
        losses = self.give_up(node, "")
        if losses:
            self.untold.owe(node, losses)
            self.untold.save()

    def give_up(self, node: str, lane: str) -> list[Loss]:
        """Drop what an earlier run left for a lane; returns what is to be told."""
        losses: list[Loss] = []
        rows = self._found.pop((node, lane), [])
        for row in rows:
            losses += (*row.holes, Loss(row.epoch, "buffer", row.start, row.end, count=row.events))
            self.on_drop(node, "buffer", row.events)
        for number in {row.number for row in rows}:
            if self._spill is not None:
                self._spill.delete(number)
        return losses

    def leave(self, buffer: EventBuffer) -> None:
        """Forget a buffer; what it has on disk, or on the way there, stays."""
        if buffer in self._buffers:
            self._buffers.remove(buffer)
            if buffer.backlog:
                self._left.append((buffer.node, buffer.backlog))

    def change(self, events: int, size: int) -> None:
        """Events and bytes came into memory, or left it."""
        self.events += events
        self.size += size

    def _held(self, size: int) -> None:
        self.size += size

    def can_spill(self, now: float) -> bool:
        """Whether the disk takes anything."""
        if self._spill is None:
            return False
        if self._spill.failing:
            if 0 <= now - self._failed_at < _RETRY_AFTER:  # a clock that was set back begins anew
                return False
            self._failed_at = now
        return True

    def pause(self, size: int) -> float:
        """How long (s) a reader shall rest that has read so many bytes at once; 0.0 while little waits."""
        limits = self.limits
        if self.size > limits.size // _PACE_AT or self.events > limits.events // _PACE_AT:
            return size / PACE
        return 0.0

    def balance(self, buffer: EventBuffer, now: float) -> int:
        """A buffer grew: spill and drop until everything is within the limits; returns the events dropped."""
        limits = self.limits
        backlog = buffer.backlog
        if backlog is None:
            return self._shed(buffer, now) if self._full() else 0
        if backlog and buffer.spillable >= PARCEL_SIZE and self.can_spill(now):
            buffer.spill()
            self._trim(buffer, now)
        elif self.size > limits.size // _SPILL_AT or self.events > limits.events // _SPILL_AT:
            victim = max(self._buffers, key=lambda one: one.spillable)
            if victim.spillable and self.can_spill(now):
                victim.spill()
                self._trim(victim, now)
        if self._full():
            self._wait_for_disk(now)
        return self._shed(buffer, now) if self._full() else 0

    def _full(self) -> bool:
        return self.size - self.returned > self.limits.size or self.events > self.limits.events

    def _wait_for_disk(self, now: float) -> None:
        """Memory is full of what is being written: let the disk catch up, within bounds, before anything is lost."""
        if self._spill is None or self._patient_at - _IMPATIENCE <= now < self._patient_at:
            return
        deadline = time.monotonic() + _PATIENCE
        while self.size - self.returned > self.limits.size and self.can_spill(now):
            left = deadline - time.monotonic()
            if left <= 0 or not any(one.backlog.held for one in self._buffers if one.backlog is not None):
                break
            if not self._spill.catch_up(left):
                # It does not come: the reader is not held up again for a while.
                self._patient_at = now + _IMPATIENCE
                break

    def _shed(self, buffer: EventBuffer, now: float) -> int:
        # Down to nine tenths: shedding a little more now keeps the cost off the next thousand reads.
        events, size = self.limits.events * 9 // 10, self.limits.size * 9 // 10 + self.returned
        dropped = 0
        policy = self.limits.drop
        if policy == "newest":
            events, size = self.limits.events, self.limits.size + self.returned
        rank = RANKS - 1
        while self.events > events or self.size > size:
            victim = max(self._buffers, key=lambda one: one.size)
            if policy == "newest":
                count = buffer.drop_newest(now)
                victim = buffer
            elif policy == "class" and rank > 0:
                count = victim.drop_rank(rank, now)
                if not count:
                    rank -= 1
                    continue
            else:
                count = victim.drop_oldest(now)
            if not count:
                break
            dropped += count
            self.on_drop(victim.node, "buffer", count)
        return dropped

    def _trim(self, buffer: EventBuffer, now: float) -> None:
        """Keep the disk within its limit."""
        while self.stored > self.limits.disk:
            victim, count = buffer, 0
            if self.limits.drop == "newest":
                assert buffer.backlog is not None
                count = buffer.drop_parcel(len(buffer.backlog.parcels) - 1, now) if buffer.backlog else 0
            elif self.limits.drop == "class":
                for rank in range(RANKS - 1, -1, -1):
                    for victim in self._buffers:
                        count = count or victim.drop_stored_rank(rank, now)
                        if count:
                            break
                    if count:
                        break
            else:
                victim = max(self._buffers, key=lambda one: one.backlog.stored if one.backlog is not None else 0)
                backlog = victim.backlog
                if backlog is not None:
                    for index, parcel in enumerate(backlog.parcels):
                        if parcel.droppable:
                            count = victim.drop_parcel(index, now)
                            break
            if not count:
                break
            self.on_drop(victim.node, "buffer", count)
