"""The part of a buffer that is on disk: parcels of chunks, older than what comes in, younger than what goes out next.

This room never touches the file itself (spill.py does) and never decides when to spill (reservoir.py does).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

import msgspec

from bridge.relay.chunks import Chunk, Loss, add_loss, corrected, identity_of
from bridge.relay.spill import Row, Spill, rows_of

PARCEL_SIZE = 1024 * 1024


class Parcel(msgspec.Struct, eq=False):
    """Consecutive chunks of one epoch that go to disk and come back together.

    ``rows`` is what is on disk, ``chunks`` what is in memory (while it is written, and when it was read again).
    ``adopted`` parcels are an earlier run's; ``corrected`` are those whose clock was set since they were begun.
    ``older`` holds, while it is written, the number of the parcel that each chunk lies in already, or 0.
    """

    number: int
    epoch: str
    rows: list[Row]
    start: float
    end: float
    first: str
    chunks: list[Chunk] | None
    holes: list[Loss]
    size: int
    events: int
    adopted: bool = False
    loading: bool = False
    writing: bool = False
    stored: bool = False
    begun: bool = False
    corrected: bool = False
    older: list[int] = []

    @property
    def droppable(self) -> bool:
        """Whether it can go: it is not on its way out."""
        return not self.loading and (self.chunks is None or not self.stored)

    @property
    def unwritten(self) -> bool:
        """Whether the disk did not take it."""
        return self.chunks is not None and not self.stored and not self.writing


class Backlog:
    """The parcels of one buffer, oldest first.

    ``held`` is what of them is in memory and ``stored`` what is on disk, in bytes; ``on_held`` is told the change of
    the former, ``on_ready`` that something can be taken again.
    """

    def __init__(self, node: str, lane: str, spill: Spill, *, by_rank: bool, keep_until_sure: bool) -> None:
        self.parcels: deque[Parcel] = deque()
        self.events = 0
        self.held = 0
        self.stored = 0
        self.on_held: Callable[[int], None] = lambda change: None
        self.on_ready: Callable[[], None] = lambda: None
        self._node = node
        self._lane = lane
        self._spill = spill
        self._by_rank = by_rank
        self._keep = keep_until_sure
        self._due: dict[int, int] = {}

    def __bool__(self) -> bool:
        return bool(self.parcels)

    def adopt(self, rows: Iterable[Row]) -> None:
        """Put what an earlier run left in front."""
        found: dict[int, list[Row]] = {}
        for row in rows:
            found.setdefault(row.number, []).append(row)
        for number, parts in sorted(found.items(), reverse=True):
            one = parts[0]
            events, size = sum([row.events for row in parts]), sum([row.size for row in parts])
            holes = one.holes
            parcel = Parcel(number, one.epoch, parts, one.start, one.end, one.first, None, holes, size, events)
            parcel.adopted = parcel.stored = True
            self.parcels.appendleft(parcel)
            self.events += events
            self.stored += size

    def add(self, chunks: list[Chunk]) -> None:
        """Send chunks to the disk, in parcels; they stay in memory until they are written."""
        for group in _grouped(chunks):
            self.parcels.append(self._send(group, self._spill.number()))

    def add_in_front(self, chunks: list[Chunk]) -> None:
        """The same for chunks older than every parcel; those that are on disk anyway stay there."""
        groups = _grouped([chunk for chunk in chunks if not chunk.parcel])
        numbers = [*self._due, *(parcel.number for parcel in self.parcels)]
        number = min(numbers) if numbers else self._spill.number()
        for group in reversed(groups):
            number -= 1
            self.parcels.appendleft(self._send(group, number))

    def _send(self, chunks: list[Chunk], number: int) -> Parcel:
        size = sum([chunk.size for chunk in chunks])
        holes: list[Loss] = []
        for chunk in chunks:
            for loss in chunk.holes or ():
                add_loss(holes, loss)
            chunk.holes = None
        rows = rows_of(self._node, self._lane, number, chunks, by_rank=self._by_rank)
        events = sum([row.events for row in rows])
        first = identity_of(chunks[0].messages[0])
        parcel = Parcel(number, chunks[0].epoch, rows, chunks[0].at, chunks[-1].at, first, chunks, holes, size, events)
        parcel.older = [chunk.parcel for chunk in chunks]  # of those that were here before, taken and put back
        for chunk in chunks:
            chunk.parcel = 0
        self.events += events
        self.stored += size
        self._hold(size)
        self._write(parcel)
        return parcel

    def _write(self, parcel: Parcel) -> None:
        parcel.writing = True
        self._spill.store(parcel.rows, lambda: _begun(parcel), lambda error: self._written(parcel, error))
        if parcel.holes:
            self._spill.note(parcel.number, parcel.holes)

    def write_again(self) -> None:
        """Send to the disk what it did not take."""
        for parcel in self.parcels:
            if parcel.unwritten:
                self._write(parcel)

    def give_up(self, now: float) -> tuple[int, list[Loss]]:
        """Drop what the disk did not take; returns its events, and the losses with those that it carried.

        What lies there from before stays for the next run.
        """
        losses: list[Loss] = []
        total = 0
        for index in reversed([index for index, parcel in enumerate(self.parcels) if parcel.unwritten]):
            parcel = self.parcels[index]
            kept = sum([len(chunk.messages) for chunk, number in _with_older(parcel) if number])
            count, parcel.older = parcel.events - kept, []
            loss, holes = self.drop(index, now)
            loss.count = count
            losses[:0] = [*holes, loss] if count else holes
            total += count
        return total, losses

    def _written(self, parcel: Parcel, error: Exception | None) -> None:
        parcel.writing = False
        if error is not None:
            return  # it stays in memory, as what it is
        parcel.stored = True
        self._forget_older(parcel)
        # The one that goes out next is not read again; any other makes room.
        if parcel.chunks is not None and parcel in self.parcels and parcel is not self.parcels[0]:
            self._free(parcel)

    def take(self) -> tuple[list[Chunk], list[Loss]] | None:
        """The chunks of the oldest parcel and the losses in front of them; None while they are being read."""
        parcel = self.parcels[0]
        chunks = parcel.chunks
        if chunks is None:
            self._load(parcel)
            return None
        self.parcels.popleft()
        self.events -= parcel.events
        self._free(parcel)
        if parcel.adopted:
            for chunk in chunks:
                chunk.read = 0
        if self._keep and parcel.stored and chunks:
            for chunk in chunks:
                chunk.parcel = parcel.number
            self._due[parcel.number] = len(chunks)
        else:
            for chunk, number in _with_older(parcel, chunks):
                chunk.parcel = number
            parcel.older = []
            self._delete(parcel)
        self.stored -= parcel.size
        if self.parcels and self.parcels[0].chunks is None:
            self._load(self.parcels[0])
        return chunks, parcel.holes

    def clock_set(self, step: float, now: float) -> None:
        """See ``EventBuffer.clock_set``."""
        for parcel in self.parcels:
            parcel.start, parcel.end = corrected(parcel.start, step, now), corrected(parcel.end, step, now)
            parcel.corrected = True
            for chunk in parcel.chunks or ():
                chunk.at = corrected(chunk.at, step, now)

    def settled(self, number: int) -> None:
        """A chunk of a parcel needs the disk no more; with the last one the parcel is deleted."""
        left = self._due.get(number, 0) - 1
        if left > 0:
            self._due[number] = left
        elif self._due.pop(number, None) is not None:
            self._spill.delete(number)

    def _load(self, parcel: Parcel) -> None:
        if not parcel.loading:
            parcel.loading = True
            self._spill.load(parcel.number, lambda chunks, error: self._loaded(parcel, chunks, error))

    def _loaded(self, parcel: Parcel, chunks: list[Chunk], error: Exception | None) -> None:
        parcel.loading = False
        found = sum([len(chunk.messages) for chunk in chunks])
        missing = parcel.events - found
        if error is not None or missing:
            # The file was damaged: what is gone is told like any other loss.
            parcel.holes.append(Loss(parcel.epoch, "buffer", parcel.start, parcel.end, count=max(0, missing)))
            self.events -= missing
            parcel.events = found
        if parcel.corrected and chunks:
            step = parcel.end - chunks[-1].at
            for chunk in chunks:
                chunk.at += step
        parcel.chunks = chunks
        self._hold(parcel.size)
        self.on_ready()

    # --- dropping --------------------------------------------------------------------------------------

    def drop(self, index: int, now: float) -> tuple[Loss, list[Loss]]:
        """Drop a whole parcel; returns its loss and the losses that it carried."""
        parcel = self.parcels[index]
        del self.parcels[index]
        self.events -= parcel.events
        self.stored -= parcel.size
        self._forget_older(parcel)
        self._free(parcel)
        self._delete(parcel)
        loss = Loss(parcel.epoch, "buffer", parcel.start, now, count=parcel.events)
        return loss, parcel.holes

    def drop_rank(self, rank: int, now: float) -> tuple[int, int, list[Loss]]:
        """Drop the events of a rank from the oldest parcel that has them: ``(parcel, events, losses)``, 0 for none."""
        for index, parcel in enumerate(self.parcels):
            if not parcel.droppable or parcel.chunks is not None:
                continue
            for row in parcel.rows:
                if row.rank != rank:
                    continue
                loss = Loss(parcel.epoch, "buffer", row.start, now, count=row.events)
                parcel.rows.remove(row)
                parcel.events -= row.events
                parcel.size -= row.size
                self.events -= row.events
                self.stored -= row.size
                self._spill.delete(parcel.number, rank)
                if not parcel.rows:
                    del self.parcels[index]
                    return index, row.events, [*parcel.holes, loss]
                self.put_hole(index, loss)
                return index, row.events, []
        return 0, 0, []

    def put_hole(self, index: int, loss: Loss) -> None:
        """Put a loss in front of a parcel."""
        parcel = self.parcels[index]
        add_loss(parcel.holes, loss)
        self._spill.note(parcel.number, parcel.holes)

    def _hold(self, change: int) -> None:
        self.held += change
        self.on_held(change)

    def _free(self, parcel: Parcel) -> None:
        if parcel.chunks is not None:
            parcel.chunks = None
            self._hold(-parcel.size)

    def _forget_older(self, parcel: Parcel) -> None:
        older, parcel.older = parcel.older, []
        for number in older:
            self.settled(number)

    def _delete(self, parcel: Parcel) -> None:
        # Called when its chunks are no longer there: what has not begun to be written never will be.
        if parcel.begun or parcel.stored:
            self._spill.delete(parcel.number)


def _grouped(chunks: list[Chunk]) -> list[list[Chunk]]:
    """Cut into parcels: of one epoch, of at most ``PARCEL_SIZE`` bytes where chunks are not larger."""
    groups: list[list[Chunk]] = []
    size = 0
    for chunk in chunks:
        if not groups or size + chunk.size > PARCEL_SIZE or chunk.epoch != groups[-1][0].epoch:
            groups.append([])
            size = 0
        groups[-1].append(chunk)
        size += chunk.size
    return groups


def _with_older(parcel: Parcel, chunks: list[Chunk] | None = None) -> Iterable[tuple[Chunk, int]]:
    """Its chunks, each with the number of the parcel that it lies in already; none once it is stored itself."""
    return zip(chunks or parcel.chunks or (), parcel.older, strict=False)


def _begun(parcel: Parcel) -> list[Chunk] | None:
    """The chunks to write (in the spill's thread); None when they are not wanted any more."""
    parcel.begun = True
    return parcel.chunks
