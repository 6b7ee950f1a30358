"""Bodies of parcels, all in one file beside the index: written once, read once, and written over by others.

SQLite would hold them too, at four times the cost: into its log, into its table, and out again page by page. A file for
each is no better: ext4 looks, for every file that is made, at all that were deleted in the last minutes.
This room never knows which parcels there are; the index (spill.py) does.
"""

from __future__ import annotations

import bisect
import contextlib
import errno
import os
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from bridge.bus.base import Message
from bridge.relay.chunks import Chunk, rank_of, share_of

BLOCK: Final = 64 * 1024
"""Bodies begin at multiples of so many bytes."""
SLACK: Final = 32 * 1024 * 1024
"""So many bytes that nobody needs may stay at the end of the file while it is in use."""


class Piece(msgspec.Struct, array_like=True):
    """Part of a chunk: ``places`` says where its messages stood (empty: it is the whole chunk)."""

    chunk: int
    places: list[int]
    epoch: str
    size: int
    at: float
    messages: list[Message]
    read: int


class Place(msgspec.Struct, frozen=True, array_like=True):
    """Where a body lies in the file, in bytes, and the CRC-32 that it has to have."""

    start: int
    length: int
    checksum: int


def pieces_of(chunks: list[Chunk], rank: int, *, by_rank: bool) -> list[Piece]:
    """The events of one rank in a parcel (all of them where it is not kept by rank), as its body holds them."""
    if not by_rank:
        return [
            Piece(index, [], one.epoch, one.size, one.at, one.messages, one.read) for index, one in enumerate(chunks)
        ]
    pieces = []
    for index, chunk in enumerate(chunks):
        places = [place for place, message in enumerate(chunk.messages) if rank_of(message) == rank]
        if places:
            some = [chunk.messages[place] for place in places]
            pieces.append(Piece(index, places, chunk.epoch, share_of(chunk, some), chunk.at, some, chunk.read))
    return pieces


def merged(bodies: Iterable[list[Piece]]) -> list[Chunk]:
    """Put a parcel together again: the chunks in their order, each with the events that are left of it."""
    pieces: dict[int, list[Piece]] = {}
    for body in bodies:
        for piece in body:
            pieces.setdefault(piece.chunk, []).append(piece)
    chunks = []
    for _, parts in sorted(pieces.items()):
        one = parts[0]
        messages = one.messages
        if len(parts) > 1:
            placed = [pair for part in parts for pair in zip(part.places, part.messages, strict=True)]
            messages = [message for _, message in sorted(placed, key=lambda pair: pair[0])]
        chunks.append(Chunk(one.epoch, messages, sum([part.size for part in parts]), one.at, None, 0, one.read))
    return chunks


_encode_into = msgspec.msgpack.Encoder().encode_into
_decode = msgspec.msgpack.Decoder(list[Piece]).decode


class ParcelFile:
    """The file. All methods belong to one thread; those that write raise ``OSError``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handle = -1
        self._buffer = bytearray()
        self._room = Room()
        self._size = 0

    def open(self, known: Iterable[Place]) -> None:
        """Open it, make it where it is absent; all that is not one of the ``known`` bodies is free."""
        self._handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._room = Room((_blocks(place.start), _blocks(place.length)) for place in known)
        self._size = os.fstat(self._handle).st_size
        self._shrink(0)

    def put_aside(self) -> None:
        """Leave the bodies of an index that cannot be read to whoever wants to look at them; those before them go."""
        self._close()
        with contextlib.suppress(OSError):
            self._path.replace(self._path.with_name(self._path.name + ".broken"))

    def write(self, pieces: Sequence[Piece]) -> Place:
        """Write a body where there is room, at the end of the file where there is none."""
        buffer = self._buffer
        _encode_into(pieces, buffer)
        return self.write_raw(buffer)

    def write_raw(self, body: bytes | bytearray) -> Place:
        """The same for an encoded body."""
        count = _blocks(len(body))
        block = self._room.take(count)
        try:
            # Short only where the disk is full.
            if os.pwrite(self._handle, body, block * BLOCK) != len(body):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except BaseException:
            self._room.give(block, count)
            raise
        self._size = max(self._size, block * BLOCK + len(body))
        return Place(block * BLOCK, len(body), zlib.crc32(body))

    def read(self, place: Place) -> list[Piece]:
        """Read a body; nothing where it is not what was written (the machine went down over it)."""
        body = os.pread(self._handle, place.length, place.start)
        return _decode(body) if len(body) == place.length and zlib.crc32(body) == place.checksum else []

    def remove(self, place: Place) -> None:
        """Forget a body: its room is free for others."""
        self._room.give(_blocks(place.start), _blocks(place.length))
        self._shrink(SLACK)

    def trim(self) -> None:
        """Give back to the disk what nobody needs at the end of the file."""
        self._shrink(0)

    def close(self) -> None:
        """Close the file, and remove it where nothing is in it."""
        if self._handle < 0:
            return
        self._close()
        if not self._room.end:
            self._path.unlink(missing_ok=True)

    def _close(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def _shrink(self, slack: int) -> None:
        used = self._room.end * BLOCK
        if self._size > used + slack:
            os.ftruncate(self._handle, used)
            self._size = used


class Room:
    """Which blocks are free; ``taken`` are first blocks and counts of what is not.

    ``end`` is where the last of it ends.
    """

    def __init__(self, taken: Iterable[tuple[int, int]] = ()) -> None:
        self.end = 0
        self._free: list[tuple[int, int]] = []  # first block and count; sorted, no two touch, none reaches `end`
        for start, count in sorted(taken):
            if start > self.end:
                self._free.append((self.end, start - self.end))
            self.end = max(self.end, start + count)

    def take(self, count: int) -> int:
        """The first block of ``count`` free ones."""
        for index, (start, size) in enumerate(self._free):
            if size >= count:
                if size == count:
                    del self._free[index]
                else:
                    self._free[index] = start + count, size - count
                return start
        start = self.end
        self.end += count
        return start

    def give(self, start: int, count: int) -> None:
        """Blocks are free again."""
        free = self._free
        index = bisect.bisect(free, (start, count))
        if index < len(free) and free[index][0] == start + count:
            count += free.pop(index)[1]
        if index and sum(free[index - 1]) == start:
            index -= 1
            start, count = free[index][0], free[index][1] + count
            del free[index]
        if start + count == self.end:
            self.end = start
        else:
            free.insert(index, (start, count))


def _blocks(size: int) -> int:
    return -(-size // BLOCK)
