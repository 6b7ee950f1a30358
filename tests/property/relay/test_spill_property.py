"""Buffer and spill together: whatever happens, each event leaves once, in order, or is told."""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bridge.bus.base import Message
from bridge.relay import backlog, buffer, reservoir
from bridge.relay.chunks import Chunk, rank_of
from bridge.relay.reservoir import BufferLimits, Reservoir
from bridge.relay.spill import Spill
from bridge.relay.untold import Untold

NAMES = ("CHANNEL_HANGUP_COMPLETE", "CHANNEL_CREATE", "DTMF", "HEARTBEAT")

EPOCH = "0000000000000001.000000000001.abcd"

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 12)),
        st.tuples(st.just("append"), st.integers(1, 12)),
        st.tuples(st.just("take"), st.integers(1, 3_000)),
        st.tuples(st.just("fail"), st.integers(0, 5)),
        st.tuples(st.just("wait"), st.just(0)),
        st.tuples(st.just("expire"), st.integers(0, 30)),
        st.tuples(st.just("restart"), st.just(0)),
    ),
    min_size=1,
    max_size=60,
)


class World:
    """One lane, its reservoir and its file, over restarts."""

    def __init__(self, folder: Path, lane: str, drop: str, disk: int) -> None:
        self.path = folder / "spill"
        self.lane = lane
        self.limits = BufferLimits(events=60, size=6_000, age=25.0, disk=disk, durable_age=25.0, drop=drop)  # type: ignore[arg-type]
        self.added: list[str] = []
        self.left: list[str] = []
        self.told = 0
        self.dropped = 0
        self.now = 0.0
        self.open()

    def open(self) -> None:
        self.spill = Spill(self.path)
        self.reservoir = Reservoir(self.limits, self.spill, Untold(self.path.with_suffix(".untold")))
        self.reservoir.on_drop = self.drop
        self.reservoir.open()
        self.buffer = buffer.EventBuffer("fs1", lane=self.lane, reservoir=self.reservoir)

    def drop(self, node: str, reason: str, count: int) -> None:
        self.dropped += count

    async def settle(self) -> None:
        """The thread has done everything it was given, and told it."""
        done = asyncio.get_running_loop().create_future()
        self.spill._submit(lambda: None, (), lambda result, error: done.set_result(None))
        await done

    def read(self, count: int) -> None:
        first = len(self.added)
        messages = []
        for number in range(first, first + count):
            kind = NAMES[number * 7 % len(NAMES)]
            messages.append(Message("t", b"x" * 50, f"core:{number}", f"org.freeswitch.{kind}"))
            self.added.append(f"core:{number}")
        self.buffer.append(Chunk(EPOCH, messages, count * 100, self.now))
        assert self.reservoir.size <= self.limits.size + count * 100 or len(self.buffer._head) < 2

    def take(self, limit: int, failing: int | None) -> None:
        chunks = self.buffer.take(limit)
        if not chunks:
            return
        if failing is not None:
            # The broker has the first ones; the rest is sent again (a stream), from the first unconfirmed on.
            rest = []
            for chunk in chunks:
                sure = min(failing, len(chunk.messages))
                failing -= sure
                self.left += [one.id for one in chunk.messages[:sure]]
                if sure == len(chunk.messages):
                    self.buffer.settle(chunk, confirmed=True)
                else:
                    self.buffer.settle_part(chunk, sure, confirmed=True)
                    left = Chunk(chunk.epoch, chunk.messages[sure:], chunk.size, chunk.at, None, chunk.parcel, 0)
                    rest.append(left if sure else chunk)
            self.buffer.put_back(rest)
            return
        for chunk in chunks:
            self.left += [one.id for one in chunk.messages]
            self.buffer.settle(chunk, confirmed=True)

    def note(self) -> None:
        self.told += sum(loss.count or 0 for loss in self.buffer.take_losses())

    async def restart(self) -> None:
        self.dropped += self.buffer.close(self.now)
        self.note()
        await self.reservoir.close()
        self.open()
        self.buffer.own_up(1)
        self.note()

    async def drain(self) -> None:
        while self.buffer.events:
            self.take(100_000, None)
            await self.settle()
        self.dropped += self.buffer.close(self.now)
        self.told += sum(loss.count or 0 for loss in self.reservoir.untold.due("fs1", 1))
        await self.reservoir.close()
        assert not self.path.exists()
        assert not self.path.with_suffix(".untold").exists()


async def play(steps: list[tuple[str, int]], lane: str, drop: str, disk: int) -> World:
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder), lane, drop, disk)
        restarted = False
        for what, amount in steps:
            world.now += 1.0
            if what == "append":
                world.read(amount)
            elif what == "take":
                world.take(amount, None)
            elif what == "fail":
                world.take(100_000, amount)
            elif what == "wait":
                await world.settle()
            elif what == "expire":
                world.now += amount
                world.dropped += world.buffer.expire(world.now)
            elif what == "restart":
                await world.restart()
                restarted = True
        await world.drain()
        left = [int(one.partition(":")[2]) for one in world.left]
        once = list(dict.fromkeys(left))
        assert once == sorted(once), "order"
        twice = [one for one, count in Counter(left).items() if count > 1]
        # A stream may get again what was confirmed in part when the worker ended: that has its id.
        assert not twice or (restarted and lane)
        assert len(set(left)) + world.dropped >= len(world.added)
        if not restarted:
            assert len(left) + world.dropped == len(world.added)
        # What was told before an end, and the chunk behind it put back, is told again.
        assert world.told >= world.dropped if restarted else world.told == world.dropped, "what is dropped is told"
        assert world.reservoir.size == world.reservoir.events == 0
        return world


def small(monkeypatch: Any) -> None:
    monkeypatch.setattr(backlog, "PARCEL_SIZE", 800)
    monkeypatch.setattr(reservoir, "PARCEL_SIZE", 800)
    monkeypatch.setattr(buffer, "_HEAD_SIZE", 500)


@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    steps=STEPS,
    lane=st.sampled_from(["", "FS_EVENTS"]),
    drop=st.sampled_from(["oldest", "newest", "class"]),
    disk=st.sampled_from([2_000, 10_000, 1_000_000]),
)
def test_each_event_leaves_once_in_order_or_is_told(
    monkeypatch: Any, steps: list[tuple[str, int]], lane: str, drop: str, disk: int
) -> None:
    small(monkeypatch)
    asyncio.run(play(steps, lane, drop, disk))


def test_by_class_the_dear_ones_stay(monkeypatch: Any) -> None:
    small(monkeypatch)
    random.seed(1)
    steps = [("append", 8), ("wait", 0)] * 60
    world = asyncio.run(play(steps, "FS_EVENTS", "class", 6_000))
    kinds = Counter(
        rank_of(Message("t", b"", one, f"org.freeswitch.{NAMES[int(one[5:]) * 7 % 4]}")) for one in world.left
    )
    assert world.dropped > 200
    assert kinds[0] > 2 * kinds[3]
    assert kinds[0] >= kinds[1] >= kinds[3]
