"""Workers come, go, are killed and frozen: no event is lost where that is promised, elsewhere the hole is told."""

from __future__ import annotations

import asyncio
import signal
import time

import pytest

from tests.chaos.conftest import LEASE, Arena, until

both = pytest.mark.parametrize("arena", ["nats", "redis"], indirect=True)


async def take_over(arena: Arena, gone: str) -> float:
    """Seconds until no node is owned by the worker that is gone and each by another."""
    started = time.monotonic()
    async with asyncio.timeout(30):
        while True:
            owners = await arena.owners()
            if len(owners) == len(arena.switches) and gone not in owners.values():
                return time.monotonic() - started
            await asyncio.sleep(0.02)


@both
async def test_a_killed_worker_costs_no_event_where_another_stands_by(arena: Arena) -> None:
    await arena.nodes(2)
    workers = {id: await arena.worker(id, standby=1) for id in ("a", "b")}
    owners = await arena.settled("a", "b", standby=True)
    since = time.time()
    await asyncio.sleep(1.0)
    victim = owners["fs1"]
    workers[victim].send(signal.SIGKILL)
    assert await take_over(arena, victim) < LEASE + 2
    await asyncio.sleep(0.5)
    await arena.quiet()
    arena.check(since=since, duplicates=True)
    assert not arena.gaps, [gap.data for gap in arena.gaps]
    assert any(it.kind == "worker" and it.data["state"] == "lost" for it in arena.notices)


@both
async def test_without_a_standby_the_hole_is_told(arena: Arena) -> None:
    await arena.nodes(2)
    workers = {id: await arena.worker(id) for id in ("a", "b")}
    owners = await arena.settled("a", "b")
    since = time.time()
    await asyncio.sleep(0.5)
    victim = owners["fs1"]
    killed = time.time()
    workers[victim].send(signal.SIGKILL)
    assert await take_over(arena, victim) < LEASE + 2
    await until(lambda: any(gap.data["reason"] == "failover" for gap in arena.gaps), what="a gap")
    resumed = time.time()
    await asyncio.sleep(0.5)
    await arena.quiet()
    missing = arena.check(since=since, lost=True, duplicates=True)
    lost = {name for name, owner in owners.items() if owner == victim}
    assert set(missing) <= lost
    assert {gap.node for gap in arena.gaps if gap.data["reason"] == "failover"} == lost
    for told in missing.values():
        assert killed - 1.0 <= min(told)
        assert max(told) <= resumed


@both
async def test_a_rolling_restart_under_load_loses_and_repeats_nothing(arena: Arena) -> None:
    await arena.nodes(3)
    workers = {id: await arena.worker(id) for id in ("a", "b")}
    await arena.settled("a", "b")
    since = time.time()
    for id in ("a", "b"):
        assert await workers[id].end(signal.SIGTERM) == 0
        await arena.settled(*({"a", "b"} - {id}))
        workers[id] = await arena.worker(id)
        await arena.settled("a", "b")
    await arena.quiet()
    arena.check(since=since)
    assert not arena.gaps, [gap.data for gap in arena.gaps]


@both
async def test_a_frozen_worker_is_replaced_and_harmless_when_it_wakes(arena: Arena) -> None:
    await arena.nodes(2)
    workers = {id: await arena.worker(id, standby=1) for id in ("a", "b")}
    owners = await arena.settled("a", "b", standby=True)
    since = time.time()
    victim = owners["fs1"]
    workers[victim].send(signal.SIGSTOP)
    await take_over(arena, victim)
    await asyncio.sleep(0.5)
    workers[victim].send(signal.SIGCONT)
    await arena.settled("a", "b", standby=True)
    await arena.quiet()
    arena.check(since=since, duplicates=True)
    # What it let slip through after the other began bears a lower epoch.
    for name in ("fs1", "fs2"):
        highest = ""
        for event in (event for event in arena.events if event.node == name):
            if event.epoch < highest:
                assert event.worker == victim
            highest = max(highest, event.epoch)


CLOCK = """
import signal, time
offset, real = 0.0, time.time
def jump(number, frame):
    global offset
    offset += 3600.0 if number == signal.SIGUSR1 else -7200.0
signal.signal(signal.SIGUSR1, jump)
signal.signal(signal.SIGUSR2, jump)
time.time = lambda: real() + offset
"""


@both
async def test_clocks_that_jump_move_no_node_and_lose_nothing(arena: Arena) -> None:
    await arena.nodes(2)
    workers = {id: await arena.worker(id, standby=1, prelude=CLOCK) for id in ("a", "b")}
    owners = await arena.settled("a", "b", standby=True)
    since = time.time()
    workers["a"].send(signal.SIGUSR1)  # an hour ahead
    await asyncio.sleep(1.5 * LEASE)
    assert await arena.owners() == owners
    for worker in workers.values():
        worker.send(signal.SIGUSR2)  # two hours back, "a" and "b"
    await asyncio.sleep(1.5 * LEASE)
    assert await arena.owners() == owners
    assert {event.node for event in arena.events} == set(owners)
    before = {event.node: event.epoch for event in arena.events}
    seen = len(arena.events)
    arena.switches[0].drop_connections()
    await until(lambda: any(event.epoch != before[event.node] for event in arena.events[seen:]), what="a new link")
    lost = {event.epoch for event in arena.events[seen:] if event.epoch < before[event.node]}
    assert not lost, "a later epoch is a greater one, or subscribers drop it"
    assert {gap.data["reason"] for gap in arena.gaps} == {"link"}
    await arena.quiet()
    missing = arena.check(since=since, lost=True)
    assert set(missing) <= {"fs1"}


@both
async def test_a_new_worker_takes_its_share_without_a_hole_and_without_a_duplicate(arena: Arena) -> None:
    await arena.nodes(3)
    await arena.worker("a")
    await arena.settled("a")
    since = time.time()
    await arena.worker("b")
    await arena.worker("c")
    await arena.settled("a", "b", "c")
    await arena.quiet()
    arena.check(since=since)
    assert not arena.gaps, [gap.data for gap in arena.gaps]


@both
async def test_a_second_worker_of_one_name_is_refused(arena: Arena) -> None:
    await arena.nodes(1, rate=10)
    await arena.worker("a")
    await arena.settled("a")
    second = await arena.worker("a", extra="")
    # The lock file is per host; another host would not see it: give it another folder.
    assert await second.process.wait() == 78
    config = (arena.folder / "a-1.toml").read_text().replace(str(arena.folder / "a"), str(arena.folder / "other"))
    (arena.folder / "other.toml").write_text(config)
    import sys

    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bridge", "run", "-c", str(arena.folder / "other.toml"),
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(30):
        _, errors = await process.communicate()
    assert process.returncode == 78
    assert b"name of another living worker" in errors
    assert (await arena.owners()) == {"fs1": "a"}
