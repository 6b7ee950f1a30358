"""What a standby keeps of a node's events: everything behind the last one that the owner has published.

Bounded by bytes in memory, the older part goes to a file without a name. This room publishes nothing and never
compares sequence numbers: an event is found by its identity alone.
"""

from __future__ import annotations

import tempfile
from collections import OrderedDict, deque
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO

import msgspec

from bridge.esl.event import Event
from bridge.switch.node import LinkGap

MEMORY = 32 * 1024 * 1024
"""Bytes of one node's events in memory."""
DISK = 1024 * 1024 * 1024
"""Bytes of one node's events in its file."""
_OVERHEAD = 300  # bytes that an event costs beside its own
_HIDDEN = 4_096  # so many events that are left out here are known
_SPILL_PART = 4  # so much of the memory is moved at a time: a quarter

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[tuple[str, bytes]]).decode


class Overflow(msgspec.Struct):
    """Events that were dropped for want of room: how many, with FreeSWITCH's time of the first and the last (s)."""

    count: int = 0
    start: float = 0.0
    end: float = 0.0


class _Read:
    """What one socket read brought; on disk only its identities are in memory. Or a hole (``gap``)."""

    __slots__ = ("events", "gap", "identities", "length", "offset", "size")

    def __init__(self, events: list[Event] | None, size: int, gap: LinkGap | Overflow | None = None) -> None:
        self.events = events
        self.size = size
        self.gap = gap
        self.identities: list[str] = []
        self.offset = 0
        self.length = 0


class EventRing:
    """The events of one node in wire order. ``overflowed``: some behind the last trim were dropped.

    ``folder`` is where the file lives, None for the system's own; ``memory`` and ``disk`` are its limits in bytes.
    """

    def __init__(self, folder: Path | None = None, *, memory: int = MEMORY, disk: int = DISK) -> None:
        self.overflowed = False
        self.head = ""
        """The identity that everything kept comes behind; empty: of the beginning."""
        self.size = 0
        self.spilled = 0
        self._folder = folder
        self._memory = memory
        self._disk = disk
        self._reads: deque[_Read] = deque()
        self._stored: deque[_Read] = deque()  # older than those in `_reads`
        self._file: IO[bytes] | None = None
        # Left out here, but another owner's mark may name it: the kept event that it came behind.
        self._hidden: OrderedDict[str, str] = OrderedDict()

    def __len__(self) -> int:
        return sum(len(read.events or read.identities) for read in (*self._stored, *self._reads))

    def append(self, events: list[Event]) -> None:
        """Keep what one socket read brought."""
        size = sum([event.size for event in events]) + _OVERHEAD * len(events)
        self._reads.append(_Read(events, size))
        self.size += size
        if self.size > self._memory:
            self._spill()

    def hole(self, gap: LinkGap | Overflow) -> None:
        """FreeSWITCH spoke while nobody listened here, or said something that could not be kept."""
        self._reads.append(_Read(None, 0, gap))

    def hide(self, identity: str, after: str) -> None:
        """An event is left out here, behind the event ``after``; what comes before it can be forgotten by its name."""
        self._hidden[identity] = after
        if len(self._hidden) > _HIDDEN:
            self._hidden.popitem(last=False)

    def trim(self, identity: str) -> bool:
        """Forget everything up to and with this event; False where it is not here."""
        identity = self._hidden.get(identity, identity)
        if identity == self.head:
            return True
        place = self._find(identity)
        if place is None:
            return False
        read_number, index = place
        for _ in range(read_number):
            self._drop_first()
        read = (self._stored or self._reads)[0]
        if read.events is None:
            # Of a read on disk only whole ones are forgotten; the rest is skipped when it is read.
            read.identities[: index + 1] = [""] * (index + 1)
        else:
            gone = read.events[: index + 1]
            read.events = read.events[index + 1 :]
            size = sum([event.size for event in gone]) + _OVERHEAD * len(gone)
            read.size -= size
            self.size -= size
        self.head = identity
        self.overflowed = any(isinstance(read.gap, Overflow) for read in self._stored)
        return True

    def take(self) -> Iterator[list[Event] | LinkGap | Overflow]:
        """Everything that is kept, in order, each read or hole once; the ring is empty afterwards."""
        while self._stored:
            read = self._stored.popleft()
            if read.gap is not None:
                yield read.gap
                continue
            events = self._load(read)
            if events:
                yield events
        while self._reads:
            read = self._reads.popleft()
            if read.gap is not None:
                yield read.gap
            elif read.events:
                yield read.events
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._reads.clear()
        self._stored.clear()
        self._hidden.clear()
        self.size = self.spilled = 0
        self.head = ""
        self.overflowed = False
        if self._file is not None:
            self._file.close()
            self._file = None

    def _find(self, identity: str) -> tuple[int, int] | None:
        core, _, sequence = identity.partition(":")
        for number, read in enumerate(self._stored):
            if identity in read.identities:
                return number, read.identities.index(identity)
        for number, read in enumerate(self._reads, len(self._stored)):
            for index, event in enumerate(read.events or ()):
                envelope = event.envelope
                if envelope.sequence == sequence and envelope.core_uuid == core:
                    return number, index
        return None

    def _drop_first(self) -> None:
        if self._stored:
            read = self._stored.popleft()
            self.spilled -= read.length
            if not self._stored and self._file is not None:
                self._file.seek(0)
                self._file.truncate()
        else:
            self.size -= self._reads.popleft().size

    def _spill(self) -> None:
        """Move the oldest part of what is in memory to the file; without one, or with a full one, drop it."""
        goal = self._memory - self._memory // _SPILL_PART
        while self.size > goal and len(self._reads) > 1:
            read = self._reads.popleft()
            self.size -= read.size
            if read.gap is not None:
                self._stored.append(read)
            elif not self._store(read):
                self._overflow(read.events or [])

    def _overflow(self, events: list[Event]) -> None:
        """What is dropped leaves a hole in its place: what is older may be on disk, and behind the mark."""
        self.overflowed = True
        hole = self._stored[-1].gap if self._stored else None
        if not isinstance(hole, Overflow):
            hole = Overflow(start=events[0].timestamp_us / 1e6)
            self._stored.append(_Read(None, 0, hole))
        hole.count += len(events)
        hole.end = events[-1].timestamp_us / 1e6

    def _store(self, read: _Read) -> bool:
        events = read.events or []
        body = _encode([(event.format, event.raw) for event in events])
        if self.spilled + len(body) > self._disk:
            return False
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="ring-", dir=self._folder)  # noqa: SIM115
            read.offset = self._file.seek(0, 2)
            self._file.write(body)
        except OSError:
            return False
        read.identities = [event.identity for event in events]
        read.events, read.length = None, len(body)
        self.spilled += len(body)
        self._stored.append(read)
        return True

    def _load(self, read: _Read) -> list[Event]:
        assert self._file is not None
        self._file.seek(read.offset)
        found = _decode(self._file.read(read.length))
        start = sum(1 for identity in read.identities if not identity)
        return [Event(raw, "plain" if format == "plain" else "json") for format, raw in islice(found, start, None)]
