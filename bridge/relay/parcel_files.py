"""Bodies of parcels, a file each in one folder: written once, read once, removed.

An SQLite file would hold them too, at four times the cost: into its log, into its table, and out again page by page.
This room never knows which parcels there are; the index (spill.py) does.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from bridge.bus.base import Message


class Piece(msgspec.Struct, array_like=True):
    """Part of a chunk: ``places`` says where its messages stood (empty: it is the whole chunk)."""

    chunk: int
    places: list[int]
    epoch: str
    size: int
    at: float
    messages: list[Message]
    read: int


_encode_into = msgspec.msgpack.Encoder().encode_into
_decode = msgspec.msgpack.Decoder(list[Piece]).decode


class ParcelFiles:
    """The folder. All methods belong to one thread; those that write raise ``OSError``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._buffer = bytearray()

    def open(self, known: Iterable[int]) -> None:
        """Make the folder, and remove every file that is not one of the ``known``: its writer died over it."""
        self._folder.mkdir(exist_ok=True)
        names = {str(id) for id in known}
        for path in self._folder.iterdir():
            if path.name not in names:
                path.unlink()

    def put_aside(self) -> None:
        """Leave the bodies of an index that cannot be read to whoever wants to look at them; those before them go."""
        aside = self._folder.with_name(self._folder.name + ".broken")
        shutil.rmtree(aside, ignore_errors=True)
        with contextlib.suppress(OSError):
            self._folder.replace(aside)

    def write(self, id: int, pieces: Sequence[Piece]) -> tuple[int, int]:
        """Write a body; returns its length and checksum."""
        buffer = self._buffer
        _encode_into(pieces, buffer)
        with (self._folder / str(id)).open("wb", buffering=0) as file:
            if file.write(buffer) != len(buffer):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return len(buffer), zlib.crc32(buffer)

    def read(self, id: int, length: int, checksum: int) -> list[Piece]:
        """Read a body; nothing where it is gone, or is not what was written (the machine went down over it)."""
        try:
            body = (self._folder / str(id)).read_bytes()
        except FileNotFoundError:
            return []
        return _decode(body) if len(body) == length and zlib.crc32(body) == checksum else []

    def remove(self, id: int) -> None:
        """Remove a body."""
        (self._folder / str(id)).unlink(missing_ok=True)

    def close(self) -> None:
        """Remove the folder where it is empty."""
        with contextlib.suppress(OSError):
            self._folder.rmdir()
