"""Events on disk: parcels of chunks, their index an SQLite file, written and read by a thread of its own.

This room never decides what is spilled or dropped, and never lets the event loop wait for the disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sqlite3
import sys
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import structlog

from bridge.relay.chunks import RANKS, Chunk, Loss, count_of, identity_of, rank_of, share_of
from bridge.relay.parcel_file import ParcelFile, Place, merged, pieces_of

log = structlog.get_logger(__name__)

_VERSION = 3
_FOLDERS = 2  # the version before kept each body in a file of its own, in a folder
# Between two numbers: what waited in memory in front of a parcel can be stored in front of it.
_STRIDE = 1 << 20
_SWITCH_INTERVAL = 0.0005
_NO_ROOM = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)
_TABLE = """
CREATE TABLE IF NOT EXISTS parcel (
    id INTEGER PRIMARY KEY, node TEXT NOT NULL, lane TEXT NOT NULL, number INTEGER NOT NULL, rank INTEGER NOT NULL,
    epoch TEXT NOT NULL, events INTEGER NOT NULL, size INTEGER NOT NULL, first TEXT NOT NULL, last TEXT NOT NULL,
    start REAL NOT NULL, end REAL NOT NULL, length INTEGER NOT NULL, checksum INTEGER NOT NULL,
    place INTEGER NOT NULL)
"""
_HOLES = "CREATE TABLE IF NOT EXISTS hole (number INTEGER PRIMARY KEY, losses BLOB NOT NULL)"
_PLACE = "place, length, checksum"
_COLUMNS = "node, lane, number, rank, epoch, events, size, first, last, start, end"


class Row(msgspec.Struct):
    """One row: the events of one rank in a parcel; ``first`` and ``last`` are identities, the times Unix times.

    ``holes`` are the losses in front of the parcel (with its first row).
    """

    node: str
    lane: str
    number: int
    rank: int
    epoch: str
    events: int
    size: int
    first: str
    last: str
    start: float
    end: float
    holes: list[Loss] = []


class _Due(msgspec.Struct):
    """Rows that go, with their bodies: ``ids`` from the first to behind the last, of the parcel ``number``."""

    number: int
    ids: tuple[int, int]
    places: list[Place]


_encode = msgspec.msgpack.Encoder().encode
_decode_holes = msgspec.msgpack.Decoder(list[Loss]).decode
Stored = Callable[[Exception | None], None]
Loaded = Callable[[list[Chunk], Exception | None], None]


def rows_of(node: str, lane: str, number: int, chunks: list[Chunk], *, by_rank: bool) -> list[Row]:
    """Describe a parcel of chunks of one epoch as the rows that it will be stored in."""
    if not by_rank:
        return [_row(node, lane, number, 0, chunks, chunks)]
    rows = []
    for rank in range(RANKS):
        parts = [
            Chunk(chunk.epoch, some, share_of(chunk, some), chunk.at)
            for chunk in chunks
            if (some := [message for message in chunk.messages if rank_of(message) == rank])
        ]
        if parts:
            rows.append(_row(node, lane, number, rank, parts, chunks))
    return rows


def _row(node: str, lane: str, number: int, rank: int, parts: list[Chunk], chunks: list[Chunk]) -> Row:
    return Row(
        node, lane, number, rank, chunks[0].epoch, count_of(parts), sum([part.size for part in parts]),
        identity_of(parts[0].messages[0]), identity_of(parts[-1].messages[-1]), chunks[0].at, chunks[-1].at,
    )  # fmt: skip


def _id(number: int, rank: int) -> int:
    return number * RANKS + rank


def _ids(number: int) -> tuple[int, int]:
    return number * RANKS, (number + 1) * RANKS


class Spill:
    """A file that is the index, and one for the bodies. ``open`` once, then one thread does everything in order.

    Callbacks come on the event loop. ``failing`` is True while the last write failed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.failing = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="spill")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._file: sqlite3.Connection | None = None
        self._bodies = ParcelFile(path.with_name(path.name + ".bodies"))
        self._next = _STRIDE
        self._results: deque[tuple[Callable[[Any, Any], None], Any, Exception | None]] = deque()
        self._progress = threading.Event()
        self._due: deque[_Due] = deque()  # what a full disk did not let go
        self._in_trouble: set[str] = set()

    def open(self) -> list[Row]:
        """Open the file, make it when it is absent, and return what is in it, oldest first. Raises ``OSError``.

        A file that cannot be read is put aside: its name gets the ending ``.broken``. One that a full disk has no room
        for is made when there is some.
        """
        self._loop = asyncio.get_running_loop()
        # The thread asks for the interpreter some ten times a parcel; at the usual 5 ms each it could not keep up.
        sys.setswitchinterval(min(sys.getswitchinterval(), _SWITCH_INTERVAL))
        fresh = not self.path.exists() or not self.path.stat().st_size
        try:
            return self._thread.submit(self._open).result()
        except sqlite3.OperationalError as error:
            # The disk refuses, or the folder: that says nothing against what is in the file.
            if not fresh or error.sqlite_errorcode & 0xFF not in _NO_ROOM:
                raise OSError(f"{self.path}: {error}") from error
            log.error("events cannot be spilled to disk", path=str(self.path), reason=str(error))
            for ending in ("", "-wal", "-journal"):
                self.path.with_name(self.path.name + ending).unlink(missing_ok=True)
            self.failing = True
            return []
        except sqlite3.DatabaseError as error:
            log.error("the spill cannot be read and is put aside", path=str(self.path), reason=str(error))
            try:
                self.path.replace(self.path.with_name(self.path.name + ".broken"))
                for ending in ("-wal", "-shm"):
                    self.path.with_name(self.path.name + ending).unlink(missing_ok=True)
                self._bodies.put_aside()
                return self._thread.submit(self._open).result()
            except sqlite3.Error as again:
                raise OSError(f"{self.path}: {again}") from again

    def number(self) -> int:
        """The number of the next parcel; they grow over restarts, with room in front of each."""
        number = self._next
        self._next += _STRIDE
        return number

    def store(self, rows: list[Row], chunks: Callable[[], list[Chunk] | None], done: Stored) -> None:
        """Write a parcel, unless ``chunks`` says None when its turn comes; ``done`` gets None or what went wrong."""
        by_rank = len(rows) > 1 or rows[0].rank > 0
        self._submit(self._store, (rows, chunks, by_rank), lambda _, error: self._stored(done, error))

    def note(self, number: int, holes: list[Loss]) -> None:
        """Keep the losses in front of a parcel."""
        self._submit(self._note, (number, _encode(holes)), lambda _, error: self._told("note", error))

    def load(self, number: int, done: Loaded) -> None:
        """Read a parcel; ``done`` gets its chunks, or none and what went wrong."""
        self._submit(self._load, (number,), lambda chunks, error: done(chunks or [], error))

    def delete(self, number: int, rank: int | None = None) -> None:
        """Forget a parcel, or only one rank of it."""
        self._submit(self._delete, (number, rank), lambda _, error: self._told("delete", error))

    async def settle(self) -> None:
        """Return when everything so far has its end, and was told."""
        await asyncio.get_running_loop().run_in_executor(self._thread, lambda: None)
        self._deliver()

    async def close(self) -> None:
        """Finish what is under way, then close the file; an empty one is removed."""
        loop = asyncio.get_running_loop()
        with contextlib.suppress(RuntimeError):
            await loop.run_in_executor(self._thread, self._close)
        self._thread.shutdown(wait=False)
        await asyncio.sleep(0)  # the callbacks of the last jobs

    # --- on the loop -----------------------------------------------------------------------------------

    def _submit(self, job: Callable[..., Any], arguments: tuple[Any, ...], done: Callable[[Any, Any], None]) -> None:
        loop = self._loop
        assert loop is not None, "open() first"

        def work() -> None:
            result, error = None, None
            try:
                result = job(*arguments)
            except Exception as caught:
                error = caught
            self._results.append((done, result, error))
            self._progress.set()
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(self._deliver)

        try:
            self._thread.submit(work)
        except RuntimeError as error:
            loop.call_soon(done, None, error)

    def _deliver(self) -> None:
        while self._results:
            done, result, error = self._results.popleft()
            done(result, error)

    def catch_up(self, timeout: float) -> bool:
        """Hold the loop until the thread has finished something, ``timeout`` s at most; whether it has.

        For the moment when memory is full and the disk only behind: a pause of the reader, or a loss.
        """
        self._progress.clear()
        if not self._results and not self._progress.wait(timeout):
            return False
        self._deliver()
        return True

    def _stored(self, done: Stored, error: Exception | None) -> None:
        if error is not None and not self.failing:
            log.error("events cannot be spilled to disk", path=str(self.path), reason=str(error))
        self.failing = error is not None
        done(error)

    def _told(self, what: str, error: Exception | None) -> None:
        if error is None:
            self._in_trouble.discard(what)
        elif what not in self._in_trouble:  # a full disk says the same for every parcel
            self._in_trouble.add(what)
            log.warning("the spill failed", what=what, reason=str(error))

    # --- in the thread ---------------------------------------------------------------------------------

    def _open(self) -> list[Row]:
        file = sqlite3.connect(self.path, isolation_level=None)
        try:
            # No other process reads it while it is open. Shared memory would need room on the disk to open it at all.
            file.execute("PRAGMA locking_mode=EXCLUSIVE")
            file.execute("PRAGMA journal_mode=WAL")
            file.execute("PRAGMA synchronous=NORMAL")
            file.execute("PRAGMA journal_size_limit=4194304")
            file.execute("PRAGMA cache_size=-1024")
            version = file.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, _FOLDERS, _VERSION):
                raise sqlite3.DatabaseError(f"version {version}, this one reads {_VERSION}")
            file.execute(_TABLE)
            file.execute(_HOLES)
            if version == _FOLDERS:
                self._move_in(file)
            if version != _VERSION:  # a full disk lets us read, and write nothing
                file.execute(f"PRAGMA user_version={_VERSION}")
            rows = [Row(*row) for row in file.execute(f"SELECT {_COLUMNS} FROM parcel ORDER BY id")]
            holes = {number: _decode_holes(losses) for number, losses in file.execute("SELECT * FROM hole")}
            for row in rows:
                row.holes = holes.pop(row.number, [])
            if version != _FOLDERS:
                self._bodies.open([Place(*row) for row in file.execute(f"SELECT {_PLACE} FROM parcel")])
        except BaseException:
            file.close()
            raise
        self._file = file
        if rows:
            self._next = rows[-1].number + _STRIDE
        return rows

    def _index(self) -> sqlite3.Connection:
        if self._file is None:  # there was no room for it
            self._open()
        assert self._file is not None
        return self._file

    def _move_in(self, file: sqlite3.Connection) -> None:
        """Take over what the version before this one left."""
        folder = self.path.with_name(self.path.name + ".parcels")
        self._bodies.open(())
        file.execute("BEGIN")
        file.execute("ALTER TABLE parcel ADD COLUMN place INTEGER NOT NULL DEFAULT 0")
        for id, checksum in file.execute("SELECT id, checksum FROM parcel").fetchall():
            body = folder / str(id)
            place = self._bodies.write_raw(body.read_bytes() if body.exists() else b"")
            # With the checksum that it had: what was damaged then is told as a loss now.
            row = (place.start, place.length, checksum, id)
            file.execute("UPDATE parcel SET place = ?, length = ?, checksum = ? WHERE id = ?", row)
        file.execute("COMMIT")
        shutil.rmtree(folder, ignore_errors=True)

    def _store(self, rows: list[Row], chunks_of: Callable[[], list[Chunk] | None], by_rank: bool) -> None:
        chunks = chunks_of()
        if chunks is None:
            return
        file = self._index()
        self._delete_due()
        places: list[Place] = []
        try:
            values = []
            for row in rows:
                place = self._bodies.write(pieces_of(chunks, row.rank, by_rank=by_rank))
                places.append(place)
                columns = msgspec.structs.astuple(row)[:-1]
                values.append((_id(row.number, row.rank), *columns, place.length, place.checksum, place.start))
            # One statement: all ranks of a parcel, or none.
            marks = ", ".join(["(" + ", ".join("?" * len(values[0])) + ")"] * len(values))
            file.execute(f"INSERT INTO parcel VALUES {marks}", [one for row in values for one in row])
        except BaseException:
            for place in places:
                self._bodies.remove(place)
            raise

    def _note(self, number: int, losses: bytes) -> None:
        self._index().execute("REPLACE INTO hole VALUES (?, ?)", (number, losses))

    def _load(self, number: int) -> list[Chunk]:
        assert self._file is not None
        return merged(self._bodies.read(place) for place in self._places(_ids(number)))

    def _delete(self, number: int, rank: int | None) -> None:
        if self._file is None:
            return  # nothing was ever written
        ids = _ids(number) if rank is None else (_id(number, rank), _id(number, rank) + 1)
        self._due.append(_Due(number, ids, self._places(ids)))
        self._delete_due()

    def _delete_due(self) -> None:
        """Delete what is due. What a full disk keeps would be sent, or told, once more by the next run."""
        try:
            self._delete_rows()
        except sqlite3.Error:
            # The index has no room to forget anything: it gets that of the bodies.
            for due in self._due:
                self._forget_bodies(due)
            self._bodies.trim()
            self._delete_rows()

    def _delete_rows(self) -> None:
        assert self._file is not None
        while self._due:
            due = self._due[0]
            self._file.execute("DELETE FROM parcel WHERE id >= ? AND id < ?", due.ids)
            self._forget_bodies(due)
            if self._file.execute("SELECT 1 FROM parcel WHERE id >= ? AND id < ?", _ids(due.number)).fetchone() is None:
                self._file.execute("DELETE FROM hole WHERE number = ?", (due.number,))
            self._due.popleft()

    def _forget_bodies(self, due: _Due) -> None:
        places, due.places = due.places, []
        for place in places:
            self._bodies.remove(place)

    def _places(self, ids: tuple[int, int]) -> list[Place]:
        assert self._file is not None
        rows = self._file.execute(f"SELECT {_PLACE} FROM parcel WHERE id >= ? AND id < ? ORDER BY id", ids)
        return [Place(*row) for row in rows]

    def _close(self) -> None:
        if self._file is None:
            return
        with contextlib.suppress(sqlite3.Error):
            self._delete_due()
        empty = self._file.execute("SELECT 1 FROM parcel LIMIT 1").fetchone() is None
        self._file.close()
        self._file = None
        self._bodies.close()
        if empty:
            self.path.unlink(missing_ok=True)
