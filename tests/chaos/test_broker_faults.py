"""Nodes change hands while the broker is not there: a stream holds everything that was said, in order."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import defaultdict
from typing import Any

import pytest

from tests.chaos.conftest import UNTOLD, Arena
from tests.integration.test_event_delivery import stored

both = pytest.mark.parametrize("arena", ["nats", "redis"], indirect=True)
DURABLE = '[events]\ndelivery = "durable"\n'


def check(arena: Arena, events: list[dict[str, Any]], since: float) -> None:
    """Everything since then is there, in order by epoch, and no number was given twice."""
    for number, switch in enumerate(arena.switches, 1):
        own = [event for event in events if event["node"] == f"fs{number}"]
        held = {event["id"] for event in own}
        gone = [id for id, at in switch.told.items() if at >= since and id not in held]
        assert not gone, f"fs{number}: {len(gone)} of {len(switch.told)} events are missing\n{arena.outputs()}"
        numbers: dict[tuple[str, str, str], set[str]] = defaultdict(set)
        epochs: dict[str, dict[str, None]] = defaultdict(dict)
        for event in own:
            numbers[event["epoch"], event["type"], event["sequence"]].add(event["id"])
            epochs[event["epoch"]].setdefault(event["id"])
        assert all(len(one) == 1 for one in numbers.values()), "a number was given twice"
        places = {id: place for place, id in enumerate(switch.told)}
        for epoch, first in epochs.items():
            order = [places[id] for id in first]
            assert order == sorted(order), f"epoch {epoch} is out of order"


async def everything(arena: Arena, since: float) -> list[dict[str, Any]]:
    """What the stream holds when all that was said is there, or nothing more comes."""
    for switch in arena.switches:
        switch.traffic.stop()
        await switch.hush()
    name = "FS_EVENTS" if arena.broker.kind == "nats" else "fs.events"
    held: list[dict[str, Any]] = []
    before = -1
    end = time.monotonic() + 10.0
    while time.monotonic() < end:
        said = {id for switch in arena.switches for id, at in switch.told.items() if at >= since}
        held = [
            event
            for event in await stored(arena.broker, name)
            if event["data"].get("Event-Name") not in UNTOLD and not event.get("synthetic")
        ]
        # Calls that were up when the traffic ended say their last words a moment later.
        if said <= {event["id"] for event in held} and len(said) == before:
            break
        before = len(said)
        await asyncio.sleep(1.1)
    return held


@both
async def test_a_worker_that_ends_while_the_broker_is_away_hands_over_when_it_is_back(arena: Arena) -> None:
    """Nobody has a link to the node of another one without standbys: who let go of it at once left a hole."""
    await arena.nodes(2)
    workers = {id: await arena.worker(id, extra=DURABLE) for id in ("a", "b")}
    owners = await arena.settled("a", "b")
    since = time.time()
    await asyncio.sleep(0.3)
    await arena.broker.kill()
    await asyncio.sleep(0.3)
    ending = asyncio.create_task(workers[owners["fs1"]].end(signal.SIGTERM))
    await asyncio.sleep(4.0)  # longer than everybody needs to see that it is away
    await arena.broker.start()
    assert await ending == 0
    await arena.settled(owners["fs2"])
    events = await everything(arena, since)
    check(arena, events, since)
    assert not arena.gaps, [gap.data for gap in arena.gaps]


@both
async def test_a_worker_that_is_frozen_beside_a_frozen_broker_costs_a_stream_nothing(arena: Arena) -> None:
    await arena.nodes(2)
    workers = {id: await arena.worker(id, standby=1, extra=DURABLE) for id in ("a", "b")}
    owners = await arena.settled("a", "b", standby=True)
    since = time.time()
    victim = workers[owners["fs1"]]
    arena.broker.pause()
    await asyncio.sleep(0.2)
    victim.send(signal.SIGSTOP)
    await asyncio.sleep(2.5)
    victim.send(signal.SIGCONT)
    await asyncio.sleep(0.5)
    arena.broker.resume()
    await asyncio.sleep(0.5)
    await arena.settled("a", "b", standby=True)
    events = await everything(arena, since)
    check(arena, events, since)
