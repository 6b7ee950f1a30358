"""Brokers restart, wires are cut, a broker keeps nothing: ownership stays one, and what is promised holds."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from bridge.bus.embedded import EmbeddedBroker
from tests.chaos.conftest import LEASE, Arena, Proxy, until

both = pytest.mark.parametrize("arena", ["nats", "redis"], indirect=True)


async def proxy(arena: Arena, port: int) -> Proxy:
    found = Proxy(port)
    await found.start()
    arena.stack.push_async_callback(found.stop)
    return found


async def owned_by(arena: Arena, node: str, id: str) -> None:
    async with asyncio.timeout(30):
        while (await arena.owners()).get(node) != id:  # noqa: ASYNC110 - it is another process's state
            await asyncio.sleep(0.05)


@both
async def test_a_worker_cut_off_from_the_broker_is_replaced_and_comes_back(arena: Arena) -> None:
    await arena.nodes(2)
    wire = await proxy(arena, arena.broker.port)
    await arena.worker("a", standby=1, bus=f"{arena.broker.kind}://127.0.0.1:{wire.port}")
    await arena.worker("b", standby=1)
    owners = await arena.settled("a", "b", standby=True)
    since = time.time()
    lost = next(name for name, owner in owners.items() if owner == "a")
    wire.cut()
    await owned_by(arena, lost, "b")
    await asyncio.sleep(0.5)
    wire.heal()
    await arena.settled("a", "b", standby=True)
    await arena.quiet()
    # Of what was on the wire when it was cut nobody knows whether it arrives: it may come late, or twice.
    arrived = {event.id for event in arena.events}
    for switch in arena.switches:
        assert not [id for id, at in switch.told.items() if at >= since and id not in arrived], arena.outputs()
    by_epoch: dict[str, set[str]] = {}
    for event in arena.events:
        by_epoch.setdefault(event.epoch, set()).add(event.worker)
    assert all(len(workers) == 1 for workers in by_epoch.values())


@both
async def test_an_owner_that_lost_its_node_gives_it_to_one_that_hears_it(arena: Arena) -> None:
    await arena.nodes(2)
    wires = {f"fs{n}": await proxy(arena, switch.port) for n, switch in enumerate(arena.switches, 1)}
    urls = {name: f"fs://:ClueCon@127.0.0.1:{wire.port}" for name, wire in wires.items()}
    await arena.worker("a", standby=1, urls=urls, extra="[esl]\nevent_heartbeat_interval = 1.0")
    await arena.worker("b", standby=1, extra="[esl]\nevent_heartbeat_interval = 1.0")
    owners = await arena.settled("a", "b", standby=True)
    since = time.time()
    mine = next(name for name, owner in owners.items() if owner == "a")
    wires[mine].cut()
    await owned_by(arena, mine, "b")
    await asyncio.sleep(0.3)
    await arena.quiet()
    arena.check(since=since, duplicates=True)


@both
async def test_a_broker_that_restarts_finds_every_node_owned_again_by_one(arena: Arena) -> None:
    await arena.nodes(2, rate=50)
    await arena.worker("a", standby=1)
    await arena.worker("b", standby=1)
    before = await arena.settled("a", "b", standby=True)
    await arena.broker.kill()
    await asyncio.sleep(LEASE * 1.5)
    await arena.broker.start()
    await until(lambda: arena.client.bus.connected, what="our own connection")
    after = await arena.settled("a", "b", standby=True)
    # Who kept the events of the outage goes on: nobody else could know what is published.
    assert after == before, arena.outputs()
    seen = len(arena.events)
    await until(lambda: len(arena.events) > seen + 50, what="events")
    arena.check(since=time.time(), lost=True, duplicates=False)


@pytest.fixture
async def plain(tmp_path: Path) -> AsyncIterator[Arena]:
    """A nats-server without JetStream."""

    class Forgetful(EmbeddedBroker):
        def _nats_config(self, folder: Path) -> str:
            return f'host: "127.0.0.1"\nport: {self.port}\n'

    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(Forgetful("nats"))
        found = Arena(broker, tmp_path, stack)
        await found.open()
        yield found


async def test_on_a_broker_that_keeps_nothing_the_first_worker_holds_the_nodes(plain: Arena) -> None:
    await plain.nodes(1, rate=50)
    first = await plain.worker("z")
    await until(lambda: len(plain.events) > 20, what="events")
    second = await plain.worker("a")
    await until(lambda: "failover is best effort" in second.output, what="a warning")
    fleet = await plain.client.fleet()
    assert {it["worker"] for it in fleet["workers"]} <= {"a", "z"}
    seen = len(plain.events)
    await until(lambda: len(plain.events) > seen + 100, what="events")
    assert {event.worker for event in plain.events} == {"z"}
    told = list(plain.switches[0].told)
    started = told.index(plain.events[0].id)
    await until(lambda: not set(told[started:]) - {event.id for event in plain.events}, what="every event")
    assert len({event.id for event in plain.events}) == len(plain.events)
    for command in range(6):
        await plain.client.api(f"echo {command}", to="fs1", timeout=5)
    # Whoever of them takes it: what nobody can tell of a node does not make it unavailable.
    answered: set[str] = set()
    async with asyncio.timeout(30):
        while answered != {"a", "z"}:
            answered.add((await plain.client.api("echo any", timeout=5)).worker)
    first.send(signal.SIGKILL)
    await until(lambda: plain.events[-1].worker == "a", what="the other's events")
    assert second.process.returncode is None
