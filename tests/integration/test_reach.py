"""A worker that reaches no node leaves requests to one that does; where nobody reaches any, they are answered."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from bridge.bus.embedded import EmbeddedBroker
from bridge.client import Bridge
from bridge.messages.command import CommandReply
from bridge.simulator import SimulatedSwitch
from bridge.worker import Worker
from tests.chaos.conftest import Proxy
from tests.integration.conftest import House

STREETS = {
    "nats durable": ("nats", "esl.queue", "stream"),
    "redis stream": ("redis", "esl.cmd", "stream"),
    "redis list": ("redis", "esl.cmd", "list"),
}
CONNECT_TIMEOUT = 200  # ms


@dataclass
class Border:
    """One node, a worker that has it, and a gate between it and the workers that come later."""

    house: House
    switch: SimulatedSwitch
    gate: Proxy
    near: Worker
    client: Bridge
    queue: str
    queue_type: str

    async def worker(self, id: str) -> Worker:
        """One that takes requests, and comes to the node through the gate only."""
        far = SimulatedSwitch(port=self.gate.port)  # never started: it names the gate
        worker = await make(self.house, far, id, self.queue_type)
        await self.house.until(lambda: worker.queues.taken)
        return worker

    async def ask(self, count: int, prefix: str) -> list[CommandReply]:
        requests = [{"id": f"{prefix}{n}", "command": f"eval {prefix}{n}"} for n in range(count)]
        return await asyncio.gather(*(self.client.request(fields, timeout=30, queue=self.queue) for fields in requests))


async def make(house: House, switch: SimulatedSwitch, id: str, queue_type: str) -> Worker:
    return await house.worker(
        switch,
        ready=False,
        worker={"id": id, "state_dir": str(house.folder / id), "drain_timeout": 5.0},
        esl={"esl_connect_timeout": CONNECT_TIMEOUT},
        commands={"durable": True, "queue_type": queue_type, "claim_after": 2.0},
        fleet={"lease_time": 1.0},
        node={"pin": "near"},
    )


@pytest.fixture(params=STREETS)
async def border(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Border]:
    kind, queue, queue_type = STREETS[request.param]
    async with AsyncExitStack() as stack:
        house = House(await stack.enter_async_context(EmbeddedBroker(kind)), tmp_path, stack)  # type: ignore[arg-type]
        switch = await house.switch()
        gate = Proxy(switch.port)
        await gate.start()
        stack.push_async_callback(gate.stop)
        gate.cut()
        near = await make(house, switch, "near", queue_type)
        await house.until(lambda: near.ready[0] and near.nodes.serving() == ["fs1"])
        client = await house.client(queue_type=queue_type)
        yield Border(house, switch, gate, near, client, queue, queue_type)


async def test_requests_are_left_to_the_worker_that_reaches_the_node(border: Border) -> None:
    far = await border.worker("far")
    replies = await border.ask(100, "a")
    assert Counter((it.status, it.error, it.worker) for it in replies) == {("ok", "", "near"): 100}
    border.gate.heal()
    await border.house.until(lambda: far.reach.near)
    seen: set[str] = set()
    async with asyncio.timeout(20):
        while "far" not in seen:
            seen |= {
                reply.worker for reply in await border.ask(20, f"b{len(seen)}-{asyncio.get_running_loop().time()}")
            }


async def test_requests_are_answered_where_nobody_reaches_the_node(border: Border) -> None:
    far = await border.worker("far")
    await border.switch.stop()
    await border.house.until(lambda: not border.near.nodes.serving() and not far.nodes.serving())
    replies = await border.ask(20, "a")
    assert {(it.status, it.executed) for it in replies} == {("unavailable", "no")}


async def test_requests_are_answered_by_the_one_that_is_left(border: Border) -> None:
    far = await border.worker("far")
    assert not far.reach.able()
    await border.near.stop()
    replies = await border.ask(5, "a")
    assert {(it.status, it.executed, it.worker) for it in replies} == {("unavailable", "no", "far")}
