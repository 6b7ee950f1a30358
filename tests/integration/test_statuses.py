"""Every row of the contract's table of statuses, by a real worker, on every street that commands come along."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from bridge.bus.embedded import EmbeddedBroker
from bridge.client import Bridge
from bridge.messages.command import CommandReply, Status
from bridge.simulator import SimulatedSwitch
from bridge.worker import Worker
from tests.integration.conftest import House

STREETS = {
    "nats": ("nats", "esl.cmd", "stream"),
    "nats durable": ("nats", "esl.queue", "stream"),
    "redis stream": ("redis", "esl.cmd", "stream"),
    "redis list": ("redis", "esl.cmd", "list"),
}
MAX_IN_FLIGHT_NODE = 4


class Street:
    """One worker, one node, one caller on a queue; ``seen`` keeps the statuses that were told."""

    def __init__(self, house: House, switch: SimulatedSwitch, worker: Worker, client: Bridge, queue: str) -> None:
        self.house = house
        self.switch = switch
        self.worker = worker
        self.queue = queue
        self.seen: set[str] = set()
        self._client = client

    async def ask(self, queue: str = "", **fields: Any) -> CommandReply:
        def early(reply: CommandReply) -> None:
            self.seen.add(reply.status)
            assert (reply.executed, bool(reply.job)) == ("unknown", True)

        reply = await self._client.request(fields, timeout=20, queue=queue or self.queue, on_accepted=early)
        self.seen.add(reply.status)
        return reply

    async def told(self, status: str, executed: str, **fields: Any) -> CommandReply:
        reply = await self.ask(**fields)
        assert (reply.status, reply.executed) == (status, executed), reply
        assert bool(reply.error) == (status != "ok")
        return reply

    def begin(self, line: str, **fields: Any) -> asyncio.Task[CommandReply]:
        return asyncio.create_task(self.ask(command=line, to="fs1", **fields))

    async def runs(self, line: str) -> None:
        await self.house.until(lambda: self.switch.executed[line])


@pytest.fixture(params=STREETS)
async def street(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Street]:
    kind, queue, queue_type = STREETS[request.param]
    async with AsyncExitStack() as stack:
        house = House(await stack.enter_async_context(EmbeddedBroker(kind)), tmp_path, stack)  # type: ignore[arg-type]
        switch = await house.switch()
        worker = await house.worker(
            switch,
            worker={"drain_timeout": 0.5},
            esl={"esl_cmd_timeout": 10_000},
            commands={
                "durable": True,
                "queue_type": queue_type,
                "background": [],
                "safe": [],
                "max_in_flight_node": MAX_IN_FLIGHT_NODE,
            },
        )
        yield Street(house, switch, worker, await house.client(queue_type=queue_type), queue)


async def test_every_status_says_whether_the_command_ran(street: Street) -> None:
    switch = street.switch
    assert (await street.told("ok", "yes", command="eval one")).result == "one"
    await street.told("ok", "yes", op="bgapi", command="eval two", accept=True)  # accepted came before
    await street.told("error", "yes", command="no_such_command")
    await street.told("error", "no", op="hangup", uuid="11111111-2222-4333-8444-555555555555", to="fs1")
    await street.told("unavailable", "no", command="eval never", to="nowhere")
    await street.told("no_route", "no", command="eval never", to="tag:none")
    await street.told("denied", "no", command="system ls")
    assert "command" in (await street.told("invalid", "no", command="eval never\nexit")).error
    await street.told("timeout", "unknown", command="msleep 401", timeout_ms=100)

    # One after another on the node's own queue: the second one's budget ends in line.
    first = asyncio.create_task(street.ask(queue=f"{street.queue}.fs1", command="msleep 402"))
    await street.runs("msleep 402")
    await street.told("expired", "no", queue=f"{street.queue}.fs1", command="eval never", timeout_ms=50)
    assert (await first).status == "ok"

    # The limit of the node: these run, one more is turned away at once.
    busy = [street.begin(f"msleep {1000 + n}") for n in range(MAX_IN_FLIGHT_NODE)]
    await street.house.until(lambda: street.worker.commands.in_flight == MAX_IN_FLIGHT_NODE)
    await street.told("busy", "no", command="eval never", to="fs1")
    assert {(await one).status for one in busy} == {"ok"}

    switch.faults.add("drop")
    await street.told("connection_lost", "unknown", command="eval dropped")
    if street.house.broker.kind == "nats":
        switch.api.commands["show"] = lambda argument: "channel," * 200_000
        large = await street.told("too_large", "yes", command="show channels")
        assert large.result is None
    else:  # NATS itself refuses a request of this size
        await street.told("too_large", "no", command="eval never" + "x" * (1 << 20))

    # The worker ends: what is sent is not waited for any longer than the drain time, what stands in line is not sent.
    sent = asyncio.create_task(street.ask(queue=f"{street.queue}.fs1", command="msleep 9000"))
    await street.runs("msleep 9000")
    waiting = asyncio.create_task(street.ask(queue=f"{street.queue}.fs1", command="eval never"))
    if street.queue != "esl.queue":  # JetStream gives the next one only when the one before is done
        await street.house.until(lambda: street.worker.commands.in_flight == 2)
    await street.worker.stop()
    assert ((await sent).status, (await sent).executed) == ("connection_lost", "unknown")
    if street.queue == "esl.queue":
        waiting.cancel()
        street.seen.add("draining")
    else:
        assert ((await waiting).status, (await waiting).executed) == ("draining", "no")

    assert switch.executed["eval dropped"] == 1
    assert not switch.executed["eval never"]
    assert street.seen == {str(status) for status in Status}
