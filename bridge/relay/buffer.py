"""Events that wait for the bus: first in, first out, bounded; every loss keeps its place in the row and is told there.

A chunk is what one socket read brought; it is the unit of all bookkeeping, so that nothing here is paid per event.
This room never talks to a bus and never reads a clock: the caller says what time it is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from bridge.bus.base import Message
from bridge.relay.chunks import (
    ENTRY_OVERHEAD,
    Chunk,
    Loss,
    Receipt,
    add_loss,
    corrected,
    count_of,
    identity_of,
    is_made_up,
    rank_of,
    receipt_of,
)
from bridge.relay.reservoir import BufferLimits, Reservoir
from bridge.relay.row import ChunkRow

__all__ = ["ENTRY_OVERHEAD", "BufferLimits", "Chunk", "EventBuffer", "Loss", "Reservoir"]

# What goes out next stays in memory when the rest is spilled.
_HEAD_SIZE = 512 * 1024


class EventBuffer(ChunkRow):
    """The events of one node on their way to one lane of the bus (``""``: the topics; else a stream's name).

    ``last_confirmed`` is the identity of FreeSWITCH's last event that the broker has certainly seen, and
    ``confirmed_read`` the number of its read (with a half: not all of that read). ``events`` wait (in memory and on
    disk), ``in_flight`` were taken and are not settled, ``size`` is what waits in memory. Before each write the
    publisher asks ``gate``: while it says False nothing is taken.
    """

    def __init__(
        self, node: str, limits: BufferLimits | None = None, *, lane: str = "", reservoir: Reservoir | None = None
    ) -> None:
        super().__init__(node, lane, reservoir or Reservoir(limits))
        self.backlog = self.reservoir.join(self)
        if self.backlog is not None:
            self.backlog.on_ready = lambda: self.wake()

    def __len__(self) -> int:
        return self.events

    @property
    def events(self) -> int:
        """Events that wait, in memory and on disk."""
        return self._memory + (self.backlog.events if self.backlog is not None else 0)

    @property
    def size(self) -> int:
        """Bytes that wait in memory."""
        return self._bytes + (self.backlog.held if self.backlog is not None else 0)

    @property
    def age_limit(self) -> float:
        """Seconds that an event may wait."""
        limits = self.reservoir.limits
        return limits.durable_age if self.lane else limits.age

    def append(self, chunk: Chunk, before: str = "") -> int:
        """Add what was just read; returns how many events had to be dropped to stay within the limits.

        ``before`` is the identity of the last event of the reads before, whether it went this way or not.
        """
        if self._trailing:
            chunk.holes, self._trailing = self._trailing, []
        if not self.in_flight and not self._memory and not self.backlog:
            # Nothing of it is under way: everything read so far has its end.
            self.last_confirmed = before or self.last_confirmed
            self.confirmed_read = chunk.read - 1
        size = chunk.size
        if self._tail and not self.backlog:
            # What lay between them was dropped.
            self._head.extend(self._tail)
            self._tail.clear()
            self._tail_bytes = 0
        if self.backlog:
            self._tail.append(chunk)
            self._tail_bytes += size
        else:
            self._head.append(chunk)
        self._grow(len(chunk.messages), size)
        return self.reservoir.balance(self, chunk.at)

    def take(self, limit: int) -> list[Chunk]:
        """Take chunks from the front: at least one, then more up to ``limit`` bytes; none while the disk is read."""
        taken: list[Chunk] = []
        size = events = 0
        while not taken or size < limit:
            head = self._head
            if not head:
                if not self._refill():
                    break
                continue
            chunk = head[0]
            if taken and size + chunk.size > limit:
                break
            head.popleft()
            taken.append(chunk)
            size += chunk.size
            events += len(chunk.messages)
            self._tell(chunk)
            chunk.before = self._last_taken
            self._last_taken = identity_of(chunk.messages[-1])
        if taken:
            self._grow(-events, -size)
            self._left_front(size)
            self.in_flight += events
        return taken

    def _refill(self) -> bool:
        """Bring the next of what waits behind to the front; False where there is none yet."""
        if self.backlog:
            found = self.backlog.take()
            if found is None:
                return False
            chunks, holes = found
            if chunks:
                chunks[0].holes = holes or None
            else:  # the disk was damaged: there is nothing that they could stand in front of
                for loss in holes:
                    self.lose(loss)
            self._head.extend(chunks)
            self._grow(count_of(chunks), sum([chunk.size for chunk in chunks]))
            return True
        if self._tail:
            self._head, self._tail, self._tail_bytes = self._tail, self._head, 0
            return True
        return False

    def put_back(self, chunks: list[Chunk]) -> None:
        """Return chunks that were taken and not written, to the front and in their order."""
        for chunk in reversed(chunks):
            if self._void:
                self.settle(chunk, confirmed=False)
                loss = Loss(chunk.epoch, "buffer", chunk.at, chunk.at, chunk.before, count=len(chunk.messages))
                self.reservoir.untold.owe(self.node, [loss])
                continue
            self._head.appendleft(chunk)
            self._grow(len(chunk.messages), chunk.size)
            self._came_back(chunk.size)
            self.in_flight -= len(chunk.messages)
            self._last_taken = chunk.before

    def settle(self, chunk: Chunk, *, confirmed: bool) -> None:
        """A chunk that was taken has its end: the broker has it, or (told as a loss) nobody knows."""
        self.settle_written(receipt_of(chunk), confirmed=confirmed)
        self._release(chunk)

    def settle_written(self, receipt: Receipt, *, confirmed: bool) -> None:
        """The same for a chunk that nothing on disk depends on."""
        self._leave_flight(receipt.count)
        if confirmed:
            self._confirm(receipt.last)
            self.confirmed_read = receipt.read or self.confirmed_read

    def settle_part(self, chunk: Chunk, count: int, *, confirmed: bool) -> None:
        """The same for its first ``count`` events, while others of it go back."""
        self._leave_flight(count)
        if confirmed and count:
            self._confirm(identity_of(chunk.messages[count - 1]))
            if chunk.read:
                self.confirmed_read = chunk.read - 0.5

    def _confirm(self, identity: str) -> None:
        if not is_made_up(identity):
            self.last_confirmed = identity

    def _leave_flight(self, count: int) -> None:
        self.in_flight -= count
        self._void = max(0, self._void - count)

    def expire(self, now: float) -> int:
        """Drop what is older than the age limit; returns how many events that were."""
        dropped = 0
        horizon = now - self.age_limit
        while self._head and self._head[0].at < horizon:
            dropped += self._drop_first(self._head, now)
        backlog = self.backlog
        while backlog and not self._head and backlog.parcels[0].end < horizon and backlog.parcels[0].droppable:
            dropped += self.drop_parcel(0, now)
        if not self._head and not backlog:
            while self._tail and self._tail[0].at < horizon:
                dropped += self._drop_first(self._tail, now)
        return dropped

    def clock_set(self, step: float, now: float) -> None:
        """Somebody has set the clock by so many seconds: what waits is as old as it was before."""
        for chunk in (*self._head, *self._tail):
            chunk.at = corrected(chunk.at, step, now)
        if self.backlog is not None:
            self.backlog.clock_set(step, now)

    def keep(self, fits: Callable[[Message], bool], now: float) -> int:
        """Drop every message in memory that does not fit the bus; returns how many events that were."""
        return self._thin(fits, now, "too_large")

    def miss(self, loss: Loss) -> None:
        """Book a loss behind everything that waits: it is told when the bus has come that far."""
        if self.events:
            add_loss(self._trailing, loss)
        else:
            self.lose(loss)

    def take_losses(self) -> list[Loss]:
        """Losses whose end is known, for the notices; each is returned once."""
        losses, self.losses = self.losses, []
        return losses

    def discard(self, now: float) -> int:
        """Forget what waits for the topics: the node is another worker's, and whoever has it publishes it.

        Should it come back to us and nobody have had it, that is told as a loss. Returns how many events waited. What
        is bound for a stream stays: it goes there at least once, when its gate is open again or, after a restart, from
        the disk.
        """
        if self.lane:
            return 0
        count = self._drop_rest(now)
        self._void = self.in_flight
        self._owe()
        self.reservoir.untold.save()
        return count

    def own_up(self, token: int) -> None:
        """The node is ours again, after the one whose fencing token this is: tell what nobody has published."""
        for loss in self.reservoir.untold.due(self.node, token):
            add_loss(self.losses, loss)
        if self.losses:
            self.wake()

    def close(self, now: float) -> int:
        """Give up what is left (the worker ends); returns how many events that were.

        What is bound for a stream goes to disk, where the next run finds it; what the disk does not take is known when
        the reservoir is closed. Every loss that is not told yet waits for the next run.
        """
        backlog, dropped = self.backlog, 0
        if self.lane and backlog is not None:
            backlog.write_again()
            self._spill(self._tail)
            waiting = list(self._head)
            self._head.clear()
            self._grow(-count_of(waiting), -sum([chunk.size for chunk in waiting]))
            self._left_front()
            backlog.add_in_front(waiting)
        elif self.lane:
            dropped += self._drop_all(self._head, now) + self._drop_all(self._tail, now)
        else:
            dropped += self._drop_rest(now)
        self._owe()
        self.reservoir.leave(self)
        return dropped

    def _drop_rest(self, now: float) -> int:
        """Drop all that waits, in memory and on disk; returns its events."""
        dropped = self._drop_all(self._head, now)
        while self.backlog:
            dropped += self.drop_parcel(0, now)
        dropped += self._drop_all(self._tail, now)
        return dropped

    def _owe(self) -> None:
        """What is lost and has no event behind it is told when the node is ours again."""
        losses = [*self.losses, *self._open, *self._trailing]
        for loss in losses:
            loss.before = loss.before or self._last_taken
        self.reservoir.untold.owe(self.node, losses)
        self.losses, self._open, self._trailing = [], [], []

    # --- for the reservoir -----------------------------------------------------------------------------

    @property
    def spillable(self) -> int:
        """Bytes that could go to disk now."""
        return self._tail_bytes if self.backlog else max(0, self._bytes - _HEAD_SIZE)

    def spill(self) -> None:
        """Send to disk what does not go out next, and what the disk did not take before."""
        if self.backlog:
            self.backlog.write_again()
            self._spill(self._tail)
            return
        kept: deque[Chunk] = deque()
        size = 0
        while self._head and size < _HEAD_SIZE:
            chunk = self._head.popleft()
            kept.append(chunk)
            size += chunk.size
        rest, self._head = self._head, kept
        self._spill(rest)

    def _spill(self, chunks: deque[Chunk]) -> None:
        if chunks:
            assert self.backlog is not None
            moved = list(chunks)
            chunks.clear()
            self._tail_bytes = sum([chunk.size for chunk in self._tail])
            self._grow(-count_of(moved), -sum([chunk.size for chunk in moved]))
            self._left_front()
            self.backlog.add(moved)

    def drop_oldest(self, now: float) -> int:
        """Drop the oldest chunk in memory, but never the only one; returns its events."""
        if self._head and len(self._head) + len(self._tail) > 1:
            return self._drop_first(self._head, now)
        for index, parcel in enumerate(self.backlog.parcels if self.backlog else ()):
            if parcel.chunks is not None and parcel.droppable:
                return self.drop_parcel(index, now)
        return 0

    def drop_newest(self, now: float) -> int:
        """Drop the newest chunk; returns its events."""
        queue = self._tail or self._head
        if len(queue) + (1 if self.backlog else 0) < 2:
            return 0
        chunk = queue.pop()
        if queue is self._tail:
            self._tail_bytes -= chunk.size
        count = len(chunk.messages)
        self._grow(-count, -chunk.size)
        self._left_front()
        for loss in (*(chunk.holes or ()), Loss(chunk.epoch, "buffer", chunk.at, now, count=count)):
            add_loss(self._trailing, loss)
        return count

    def drop_rank(self, rank: int, now: float) -> int:
        """Drop every event of a rank that waits in memory; returns how many."""
        return self._thin(lambda message: rank_of(message) != rank, now, "buffer")

    def drop_parcel(self, index: int, now: float) -> int:
        """Drop a parcel; returns its events."""
        assert self.backlog is not None
        loss, holes = self.backlog.drop(index, now)
        for one in (*holes, loss):
            self._put_hole(index, one)
        return loss.count or 0

    def drop_stored_rank(self, rank: int, now: float) -> int:
        """Drop the oldest events of a rank that are on disk; returns how many."""
        if self.backlog is None:
            return 0
        index, count, losses = self.backlog.drop_rank(rank, now)
        for loss in losses:
            self._put_hole(index, loss)
        return count
