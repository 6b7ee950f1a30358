"""Chunks in a row, with the losses between them: what of a buffer stays in memory, and how it gets shorter.

This room never decides what is dropped; it keeps the counts and every loss in its place.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from bridge.bus.base import Message
from bridge.messages.notice import GapReason
from bridge.relay.backlog import Backlog
from bridge.relay.chunks import Chunk, Loss, add_in_front, add_loss, identity_of, share_of
from bridge.relay.reservoir import Reservoir


class ChunkRow:
    """A head that goes out next, a tail that comes in, and between them what is on disk (``backlog``)."""

    backlog: Backlog | None = None

    def __init__(self, node: str, lane: str, reservoir: Reservoir) -> None:
        self.node = node
        self.lane = lane
        self.reservoir = reservoir
        self.in_flight = 0
        self.losses: list[Loss] = []
        self.last_confirmed = ""
        self.confirmed_read = 0.0
        self.gate: Callable[[], bool] = lambda: True
        self.wake: Callable[[], None] = lambda: None
        self._head: deque[Chunk] = deque()
        self._tail: deque[Chunk] = deque()
        self._memory = 0  # events in head and tail
        self._bytes = 0
        self._tail_bytes = 0
        self._returned = 0  # bytes at the front that were on their way and came back
        self._open: list[Loss] = []
        self._trailing: list[Loss] = []
        self._last_taken = ""
        self._void = 0  # in flight, and not to come back

    def lose(self, loss: Loss) -> None:
        """Book a loss in front of everything that waits; it is closed by the next event that leaves."""
        if not loss.before:
            loss.before = self._last_taken
        add_loss(self._open, loss)

    def _grow(self, events: int, size: int) -> None:
        self._memory += events
        self._bytes += size
        self.reservoir.change(events, size)

    def _came_back(self, size: int) -> None:
        self._returned += size
        self.reservoir.returned += size

    def _left_front(self, size: int = 0) -> None:
        """So many bytes left the front; or what is in memory was changed in another way."""
        left = min(self._returned, max(size, self._returned - (self._bytes - self._tail_bytes)))
        self._returned -= left
        self.reservoir.returned -= left

    def _put_hole(self, parcel: int, loss: Loss) -> None:
        """Put a loss in front of the parcel of that index, or of what comes behind the last."""
        backlog = self.backlog
        if parcel == 0 and not self._head:
            self.lose(loss)
        elif backlog is not None and parcel < len(backlog.parcels):
            backlog.put_hole(parcel, loss)
        else:
            self._put_before(self._tail, loss)

    def _put_before(self, chunks: deque[Chunk], loss: Loss) -> None:
        if chunks:
            holes = chunks[0].holes = chunks[0].holes or []
            add_loss(holes, loss)
        else:
            add_loss(self._trailing, loss)

    def _drop_first(self, chunks: deque[Chunk], now: float) -> int:
        chunk = chunks.popleft()
        if chunks is self._tail:
            self._tail_bytes -= chunk.size
        count = len(chunk.messages)
        self._grow(-count, -chunk.size)
        self._left_front(chunk.size if chunks is self._head else 0)
        for loss in (*(chunk.holes or ()), Loss(chunk.epoch, "buffer", chunk.at, now, count=count)):
            if chunks is self._head:
                self.lose(loss)
            else:
                self._put_before(chunks, loss)
        self._release(chunk)
        return count

    def _drop_all(self, chunks: deque[Chunk], now: float) -> int:
        dropped = 0
        while chunks:
            dropped += self._drop_first(chunks, now)
        return dropped

    def _thin(self, wanted: Callable[[Message], bool], now: float, reason: GapReason) -> int:
        """Drop what is not wanted from memory.

        One loss of each epoch for all of it, where the first of it stood: from what was in front of that to what comes
        behind the last. What has nothing behind it yet is another loss, at the end.
        """
        dropped = 0
        for queue in (self._head, self._tail):
            kept: deque[Chunk] = deque()
            carried: list[Loss] = []  # for the next chunk that stays
            gone: Loss | None = None
            run: Loss | None = None  # dropped since the last message that stays
            last = ""
            for chunk in queue:
                some: list[Message] = []
                for message in chunk.messages:
                    if not wanted(message):
                        if run is None:
                            run = Loss(chunk.epoch, reason, chunk.at, now, before=last)
                        run.count = (run.count or 0) + 1
                        continue
                    if run is not None:
                        run.after = identity_of(message)
                        if gone is not None and gone.epoch == run.epoch:
                            gone.count, gone.after = (gone.count or 0) + (run.count or 0), run.after
                        else:
                            gone = run
                            carried.append(run)
                        run = None
                    last = identity_of(message)
                    some.append(message)
                lost = len(chunk.messages) - len(some)
                if lost:
                    dropped += lost
                    share = share_of(chunk, some)
                    self._grow(-lost, share - chunk.size)
                    if queue is self._tail:
                        self._tail_bytes += share - chunk.size
                    if not some:
                        carried += chunk.holes or ()
                        self._release(chunk)
                        continue
                    chunk = Chunk(chunk.epoch, some, share, chunk.at, chunk.holes, chunk.parcel, chunk.read)
                if carried:
                    chunk.holes = [*carried, *(chunk.holes or ())]
                    carried = []
                kept.append(chunk)
            queue.clear()
            queue.extend(kept)
            if run is not None:
                carried.append(run)
            if queue is self._head and (self.backlog or self._tail or not kept):
                for loss in carried:
                    self._put_hole(0, loss)
            else:
                for loss in reversed(carried):
                    add_in_front(self._trailing, loss)
        self._left_front()
        return dropped

    def _release(self, chunk: Chunk) -> None:
        if chunk.parcel and self.backlog is not None:
            self.backlog.settled(chunk.parcel)

    def _tell(self, chunk: Chunk) -> None:
        """Losses in front of a chunk that leaves have found their end."""
        if self._open or chunk.holes:
            first = identity_of(chunk.messages[0])
            for loss in (*self._open, *(chunk.holes or ())):
                loss.before = loss.before or self._last_taken
                loss.after = loss.after or first
                self.losses.append(loss)
            self._open = []
            chunk.holes = None
