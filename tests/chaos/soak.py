"""Faults at random for minutes, and every event compared at the end: ``make soak ARGS="--minutes 30 --bus redis"``.

Three workers stand by for each other over four nodes; after each fault the fleet must settle again. Prints what it did
and the seed, so that a schedule can be run again.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import secrets
import signal
import tempfile
import time
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path

from bridge.bus.embedded import EmbeddedBroker
from tests.chaos.conftest import LEASE, Arena, Process

WORKERS = ("a", "b", "c")


async def joined(arena: Arena, id: str, since: float) -> None:
    """Wait until the worker is there that was started later: the entry of one that was killed stays for a lease."""
    async with asyncio.timeout(60):
        while (entry := (await arena.fleet()).get(id)) is None or entry.started < since:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def fault(arena: Arena, workers: dict[str, Process], chance: random.Random) -> str:
    """Do one thing to one worker."""
    id = chance.choice(WORKERS)
    kind = chance.choice(("kill", "freeze", "restart", "blink"))
    if kind == "kill":
        await workers[id].end(signal.SIGKILL)
        killed = time.time()
        await asyncio.sleep(chance.uniform(0, LEASE * 2))
        workers[id] = await arena.worker(id, standby=1)
        await joined(arena, id, killed)
    elif kind == "restart":
        assert await workers[id].end(signal.SIGTERM) == 0, arena.outputs()
        workers[id] = await arena.worker(id, standby=1)
    else:
        workers[id].send(signal.SIGSTOP)
        await asyncio.sleep(chance.uniform(0.1, LEASE * (2.5 if kind == "freeze" else 0.7)))
        workers[id].send(signal.SIGCONT)
    return f"{kind} {id}"


def where(arena: Arena, lost: list[str]) -> str:
    """Which nodes' events are missing, from when to when, and what was told of it."""
    lines = []
    for number, switch in enumerate(arena.switches, 1):
        if gone := [switch.told[id] for id in lost if id in switch.told]:
            first, last = (datetime.fromtimestamp(at, UTC).time() for at in (min(gone), max(gone)))
            lines.append(f"fs{number}: {len(gone)} from {first} to {last}")
    return "\n".join([*lines, *(str(gap) for gap in arena.gaps)])


async def soak(minutes: float, bus: str, seed: str, rate: int) -> None:
    chance = random.Random(seed)
    print(f"{minutes:g} minutes on {bus}, seed {seed}", flush=True)  # noqa: T201
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="esl-bridge-soak-"))
        broker = await stack.enter_async_context(EmbeddedBroker("redis" if bus == "redis" else "nats"))
        arena = Arena(broker, Path(folder), stack)
        await arena.open()
        await arena.nodes(4, rate=rate)
        workers = {id: await arena.worker(id, standby=1) for id in WORKERS}
        await arena.settled(*WORKERS, standby=True)
        since, end = time.time(), time.monotonic() + minutes * 60
        while time.monotonic() < end:
            done = await fault(arena, workers, chance)
            started = time.monotonic()
            await arena.settled(*WORKERS, standby=True, patience=60)
            horizon = time.time() - 2.0

            def missing(horizon: float = horizon) -> list[str]:
                arrived = {event.id for event in arena.events}
                told = [(id, at) for it in arena.switches for id, at in it.told.items()]
                return [id for id, at in told if since <= at < horizon and id not in arrived]

            # Who stood still has all of that time to read yet.
            patience = time.monotonic() + 20
            while (lost := missing()) and time.monotonic() < patience:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
            print(  # noqa: T201
                f"{done}: settled in {time.monotonic() - started:.1f} s, {len(arena.events)} events, {len(lost)} lost",
                flush=True,
            )
            assert not lost, f"{where(arena, lost)}\n{arena.outputs()}"
        await arena.quiet()
        arena.check(since=since, duplicates=True)
        twice = len(arena.events) - len({event.id for event in arena.events})
        print(f"{len(arena.events)} events, none lost, {twice} twice, {len(arena.gaps)} gaps told")  # noqa: T201


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--bus", choices=("nats", "redis"), default="nats")
    parser.add_argument("--seed", default=secrets.token_hex(4))
    parser.add_argument("--rate", type=int, default=200, help="events per second and node")
    arguments = parser.parse_args()
    asyncio.run(soak(arguments.minutes, arguments.bus, arguments.seed, arguments.rate))


if __name__ == "__main__":
    main()
