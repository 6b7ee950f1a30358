"""The spill's files: what a writer that died left half done goes, what was damaged is told, a full disk is survived."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from bridge.bus.base import Message
from bridge.bus.memory import MemoryBus
from bridge.relay.backlog import PARCEL_SIZE
from bridge.relay.buffer import EventBuffer
from bridge.relay.chunks import Chunk
from bridge.relay.notices import NoticeBoard
from bridge.relay.parcel_file import BLOCK
from bridge.relay.publisher import Publisher
from bridge.relay.reservoir import BufferLimits, Reservoir
from bridge.relay.spill import Spill
from bridge.relay.untold import Untold

EPOCH = "0000000000000001.000000000001.abcd"


@contextlib.contextmanager
def full_disk() -> Iterator[list[Any]]:
    """No file takes a byte. Gives what is logged meanwhile: it could not be written either."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with capture_logs() as logs:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
        try:
            yield logs
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)


class House:
    """A stream's buffer with its disk, over restarts."""

    def __init__(self, folder: Path, drop: str = "oldest") -> None:
        self.path = folder / "w1.spill"
        self.bodies = folder / "w1.spill.bodies"
        self.spill = Spill(self.path)
        untold = Untold(folder / "w1.untold")
        self.reservoir = Reservoir(BufferLimits(disk=1 << 30, drop=drop), self.spill, untold)  # type: ignore[arg-type]
        self.reservoir.open()
        self.buffer = EventBuffer("fs1", lane="FS_EVENTS", reservoir=self.reservoir)

    def read(self, first: int, count: int) -> None:
        messages = [Message("t", b"x" * 100, str(number)) for number in range(first, first + count)]
        self.buffer.append(Chunk(EPOCH, messages, count * 500, 5.0))

    async def end(self) -> int:
        given_up = self.buffer.close(9.0)
        return given_up + (await self.reservoir.close()).total()

    async def rest(self, size: int = 1 << 30) -> list[str]:
        ready = asyncio.Event()
        self.buffer.wake = ready.set
        while not (chunks := self.buffer.take(size)):
            if not self.buffer.events:
                return []
            ready.clear()
            await ready.wait()
        for chunk in chunks:
            self.buffer.settle(chunk, confirmed=True)
        return [one.id for chunk in chunks for one in chunk.messages]


async def test_a_body_without_its_entry_is_removed(tmp_path: Path) -> None:
    house = House(tmp_path)
    house.read(0, 3)
    assert await house.end() == 0
    size = house.bodies.stat().st_size
    with house.bodies.open("ab") as file:
        file.write(b"a writer died over this" * 10_000)
    again = House(tmp_path)
    assert house.bodies.stat().st_size <= -(-size // BLOCK) * BLOCK
    assert await again.rest() == ["0", "1", "2"]
    await again.end()
    assert not again.bodies.exists()
    assert not again.path.exists()


async def test_what_comes_back_from_a_broken_pipeline_is_no_reason_to_drop(tmp_path: Path) -> None:
    """It was in memory on its way too, and was not counted there."""
    reservoir = Reservoir(BufferLimits(size=2 << 20, disk=1 << 30), Spill(tmp_path / "w1.spill"))
    reservoir.open()
    buffer = EventBuffer("fs1", lane="FS_EVENTS", reservoir=reservoir)
    ready = asyncio.Event()
    buffer.wake = ready.set

    async def read(first: int, end: int) -> None:
        for number in range(first, end):
            assert buffer.append(Chunk(EPOCH, [Message("t", b"x", str(number))], 100_000, 5.0)) == 0
            await asyncio.sleep(0)

    async def take(size: int) -> list[Chunk]:
        taken: list[Chunk] = []
        while sum(chunk.size for chunk in taken) < size and buffer.events:
            ready.clear()
            if not (some := buffer.take(1 << 20)):
                await ready.wait()
            taken += some
        return taken

    async with asyncio.timeout(10):
        await read(0, 100)
        for number in range(3):
            taken = await take(5 << 20)
            buffer.put_back(taken)
            await read(100 + 10 * number, 110 + 10 * number)
        got = await take(1 << 30)
    assert [one.messages[0].id for one in got] == [str(number) for number in range(130)]
    assert reservoir.size == reservoir.returned == 0
    await reservoir.close()


@pytest.mark.parametrize("step", [90_000.0, -90_000.0])
async def test_a_clock_that_is_set_makes_nothing_on_disk_older_or_younger(tmp_path: Path, step: float) -> None:
    spill = Spill(tmp_path / "w1.spill")
    reservoir = Reservoir(BufferLimits(size=12 << 20, disk=1 << 30), spill)
    reservoir.open()
    buffer = EventBuffer("fs1", lane="FS_EVENTS", reservoir=reservoir)
    now = 1_000_000.0
    for number in range(1_000):
        assert buffer.append(Chunk(EPOCH, [Message("t", b"x" * 100, str(number))], 10_000, now)) == 0
    assert buffer.backlog is not None
    parcels = buffer.backlog.parcels
    async with asyncio.timeout(10):
        while sum(parcel.chunks is None for parcel in parcels) < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    buffer.clock_set(step, now + step)
    ready = asyncio.Event()
    buffer.wake = ready.set
    got: list[Chunk] = []
    while buffer.events:
        assert buffer.expire(now + step + 1.0) == 0
        ready.clear()
        if not (some := buffer.take(1 << 20)):
            await ready.wait()
        got += some
    assert {one.at for one in got} == {now + step}
    assert len(got) == 1_000
    assert buffer.age_limit < abs(step)
    await reservoir.close()


@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
async def test_a_damaged_body_is_told_with_its_count(tmp_path: Path, damage: str) -> None:
    house = House(tmp_path)
    house.read(0, 3)
    await house.end()
    body = house.bodies
    text = body.read_bytes()
    body.write_bytes(text[:-1] if damage == "cut" else text.replace(b"xxxx", b"xxxy", 1))
    if damage == "gone":
        body.unlink()
    again = House(tmp_path)
    assert again.buffer.events == 3
    assert await again.rest() == []
    again.read(3, 1)
    assert await again.rest() == ["3"]
    [loss] = again.buffer.take_losses()
    assert (loss.reason, loss.count, loss.after) == ("buffer", 3, "3")
    await again.end()
    assert not again.path.exists(), "it is not told once more"


async def test_an_index_that_cannot_be_read_is_put_aside_with_its_bodies(tmp_path: Path) -> None:
    house = House(tmp_path)
    house.read(0, 3)
    await house.end()
    house.path.write_bytes(b"no database " * 1000)
    again = House(tmp_path)
    assert again.buffer.events == 0
    assert (tmp_path / "w1.spill.broken").exists()
    assert (tmp_path / "w1.spill.bodies.broken").stat().st_size > 300
    await again.end()


@pytest.mark.parametrize("drop", ["oldest", "class"])
async def test_a_body_that_cannot_be_written_leaves_nothing(tmp_path: Path, drop: str) -> None:
    (tmp_path / "w1.spill.bodies").symlink_to("/dev/full")
    house = House(tmp_path, drop)
    house.read(0, 3)
    await house.end()
    assert house.spill.failing
    house.bodies.unlink(missing_ok=True)
    again = House(tmp_path, drop)
    assert again.buffer.events == 0
    await again.end()


@pytest.mark.parametrize("killed", [False, True])
async def test_a_disk_that_is_full_at_the_start_costs_nothing_that_is_on_it(tmp_path: Path, killed: bool) -> None:
    house = House(tmp_path)
    house.read(0, 3)
    await house.end()
    if killed:  # what it did last is in the log of the index only
        index = sqlite3.connect(house.path)
        index.execute("UPDATE parcel SET rank = rank")
        index.commit()
        left = [house.path, tmp_path / "w1.spill-wal"]
        kept = [path.read_bytes() for path in left]
        index.close()
        for path, content in zip(left, kept, strict=True):
            path.write_bytes(content)
    with full_disk() as said:
        again = House(tmp_path)
        assert again.buffer.events == 3
        assert await again.rest() == ["0", "1", "2"]
    assert not (tmp_path / "w1.spill.broken").exists(), said
    await again.end()
    assert not again.path.exists()


async def test_a_spill_that_a_full_disk_has_no_room_for_is_made_later(tmp_path: Path) -> None:
    with full_disk() as said:
        house = House(tmp_path)
    assert [one["event"] for one in said] == ["events cannot be spilled to disk"]
    assert not house.path.exists()
    house.read(0, 3)
    assert await house.end() == 0
    again = House(tmp_path)
    assert await again.rest() == ["0", "1", "2"]
    await again.end()
    assert not again.path.exists()


async def test_what_a_full_disk_does_not_let_go_is_not_sent_again(tmp_path: Path) -> None:
    house = House(tmp_path)
    for number in range(3):
        house.buffer.append(Chunk(EPOCH, [Message("t", b"x", str(number))], PARCEL_SIZE, 5.0))
    await house.end()
    again = House(tmp_path)
    with full_disk() as said:
        for number in range(3):
            assert await again.rest(1) == [str(number)]
        await again.spill.settle()
        assert not again.bodies.stat().st_size, "its room is what the index needs to forget"
    assert [one["event"] for one in said] == ["the spill failed"], "once, not for every parcel"
    await again.end()
    assert not again.path.exists()
    assert not again.bodies.exists()


@pytest.mark.parametrize("end", ["full", "mended"])
async def test_what_the_disk_refused_is_written_at_the_end_or_told_as_lost(tmp_path: Path, end: str) -> None:
    house = House(tmp_path)
    with full_disk():
        for number in range(3):
            house.buffer.append(Chunk(EPOCH, [Message("t", b"x", str(number))], PARCEL_SIZE, 5.0))
        house.buffer.spill()
        house.spill.catch_up(5.0)
        house.spill.catch_up(1.0)
        assert house.spill.failing
        if end == "full":
            house.buffer.close(9.0)
            await house.spill.settle()
    if end == "mended":
        assert await house.end() == 0
        again = House(tmp_path)
        assert [await again.rest(1) for _ in range(3)] == [["0"], ["1"], ["2"]]
    else:
        assert (await house.reservoir.close())["fs1"] == 3
        again = House(tmp_path)
        assert again.buffer.events == 0
        again.buffer.own_up(1)
        again.read(3, 1)
        assert await again.rest() == ["3"]
        [loss] = again.buffer.take_losses()
        assert (loss.reason, loss.count, loss.exact) == ("buffer", 3, True)
    await again.end()
    assert not again.path.exists()


async def test_a_spill_of_the_version_before_is_taken_over(tmp_path: Path) -> None:
    """It kept each body in a file of its own."""
    house = House(tmp_path)
    house.read(0, 3)
    await house.end()
    body = house.bodies.read_bytes()
    house.bodies.unlink()
    folder = tmp_path / "w1.spill.parcels"
    folder.mkdir()
    with contextlib.closing(sqlite3.connect(house.path)) as file, file:
        [(number, length)] = file.execute("SELECT id, length FROM parcel").fetchall()
        file.execute("ALTER TABLE parcel DROP COLUMN place")
        again = "id + 6, node, lane, number + 1, rank, epoch, 1, size, first, last, start, end, length, checksum"
        file.execute(f"INSERT INTO parcel SELECT {again} FROM parcel")  # one whose file is gone
        file.execute("PRAGMA user_version = 2")
    (folder / str(number)).write_bytes(body[:length])
    again = House(tmp_path)
    assert not folder.exists()
    assert again.buffer.events == 4
    assert await again.rest() == ["0", "1", "2"]
    assert await again.rest() == []
    assert [loss.count for loss in again.buffer.take_losses()] == [], "nothing went out behind it yet"
    again.read(3, 1)
    assert await again.rest() == ["3"]
    assert [loss.count for loss in again.buffer.take_losses()] == [1], "the body that was not there"
    await again.end()
    assert not again.path.exists()


async def test_what_a_killed_run_left_is_told_by_lane(tmp_path: Path) -> None:
    """For the topics when the node is ours again, whoever named it; for a stream that is no more at once."""
    house = House(tmp_path)
    house.read(0, 3)
    topics = EventBuffer("fs2", reservoir=house.reservoir)
    topics.append(Chunk(EPOCH, [Message("t", b"x", "9")], 500, 5.0))
    backlog = topics.backlog
    assert backlog is not None
    backlog.add(list(topics._head))  # as a worker that is killed leaves it
    await house.end()
    untold = Untold(tmp_path / "w1.untold")
    again = Reservoir(BufferLimits(disk=1 << 30), Spill(house.path), untold)
    again.open()
    notices = NoticeBoard(worker="w1", instance="w1.2", codec="json")
    publisher = Publisher(MemoryBus(), notices, Meter(), again)
    assert sorted(again.left) == [("fs1", "FS_EVENTS"), ("fs2", "")]
    publisher.adopt([])
    assert [(loss.reason, loss.count) for loss in publisher.buffer("fs1").take_losses()] == [("buffer", 3)]
    assert untold.nodes == ["fs2"]
    later = publisher.buffer("fs2")
    later.own_up(1)
    assert [(loss.reason, loss.count) for loss in later.take_losses()] == [("buffer", 1)]
    await again.close()
    assert not house.path.exists()


class Meter:
    def events_published(self, node: str, count: int = 1) -> None: ...

    def events_dropped(self, node: str, reason: str, count: int = 1) -> None: ...

    def event_lag(self, node: str, waited: float) -> None: ...

    def gap(self, node: str, reason: str) -> None: ...


@pytest.mark.parametrize("end", ["killed", "stopped", "mended"])
async def test_what_lies_on_a_full_disk_stays_there_until_its_new_copy_does(tmp_path: Path, end: str) -> None:
    """It was taken, came back from a broken pipeline, and is spilled once more."""
    first, other = tmp_path / "first", tmp_path / "other"
    first.mkdir()
    house = House(first)
    for number in range(3):
        house.buffer.append(Chunk(EPOCH, [Message("t", b"x", str(number))], PARCEL_SIZE, 5.0))
    house.buffer.spill()
    await house.spill.settle()
    taken: list[Chunk] = []
    ready = asyncio.Event()
    house.buffer.wake = ready.set
    async with asyncio.timeout(10):
        while len(taken) < 3:
            ready.clear()
            if not (some := house.buffer.take(1 << 30)):
                await ready.wait()
            taken += some
    house.buffer.put_back(taken)
    with full_disk():
        house.buffer.spill()
        house.spill.catch_up(5.0)
        assert house.spill.failing
        if end == "stopped":
            house.buffer.close(9.0)
            await house.spill.settle()
    if end == "stopped":
        assert (await house.reservoir.close()).total() == 1, "the one that goes out next was never on it"
    elif end == "mended":
        assert [await house.rest(1) for _ in range(3)] == [["0"], ["1"], ["2"]]
        assert await house.end() == 0
        assert not house.path.exists()
        return
    shutil.copytree(first, other)
    again = House(other)
    assert [await again.rest(1) for _ in range(2)] == [["1"], ["2"]]
    await again.end()
    assert not again.path.exists()
    if end == "killed":
        await house.end()
