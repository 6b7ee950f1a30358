"""The command path on real pools and simulated switches that misbehave: counted on both sides."""

from __future__ import annotations

import asyncio
import gc
import json
import random
import secrets
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest

from bridge.bus.base import Received
from bridge.bus.memory import MemoryBus
from bridge.esl.url import EslUrl
from bridge.messages.command import CommandReply, Executed, Status, decode_reply
from bridge.relay.call_table import CallTable
from bridge.relay.commands import CommandRelay
from bridge.relay.ledger import MemoryLedger
from bridge.relay.policy import Policy
from bridge.relay.settings import CommandSettings
from bridge.simulator.server import SimulatedSwitch
from bridge.switch.command_pool import CommandPool
from bridge.switch.deadlines import Deadlines


class Fleet:
    """Two switches, their pools, one command path and a caller, on a bus in memory."""

    def __init__(self) -> None:
        self.switches = {name: SimulatedSwitch(seed=7) for name in ("fs1", "fs2")}
        self.pools: dict[str, CommandPool] = {}
        self.bus = MemoryBus(f"memory://storm-{secrets.token_hex(4)}")
        self.replies: dict[str, list[CommandReply]] = {}

    async def start(self) -> None:
        deadlines = Deadlines()
        for name, switch in self.switches.items():
            await switch.start()
            self.pools[name] = CommandPool(
                name, EslUrl.parse(switch.url), connect_timeout=2.0, command_timeout=0.4, deadlines=deadlines
            )
        self.bus.start()
        self.relay = CommandRelay(
            self.bus,
            self,
            settings=CommandSettings(connect_timeout=2.0, command_timeout=0.4, job_timeout=5.0),
            worker="w1",
            ledger=MemoryLedger(300),
            policy=Policy(),
            deadlines=deadlines,
            calls=CallTable(),
        )
        for queue in ("esl.cmd", "esl.cmd.fs1", "esl.cmd.fs2"):
            await self.bus.consume(queue, self.relay.accept, room=self.relay.room)
        await self.bus.subscribe("_INBOX.*", self._replied)

    async def stop(self) -> None:
        for pool in self.pools.values():
            await pool.close("end of the test")
        for switch in self.switches.values():
            await switch.stop()
        await self.bus.close()

    def _replied(self, received: Received) -> None:
        self.replies.setdefault(received.topic, []).append(decode_reply(received.payload))

    def put(self, address: str, queue: str = "esl.cmd", **request: Any) -> None:
        self.replies.setdefault(f"_INBOX.{address}", [])
        assert self.bus.broker.put(queue, json.dumps(request).encode(), {}, f"_INBOX.{address}")

    def final(self, address: str) -> CommandReply:
        finals = [reply for reply in self.replies[f"_INBOX.{address}"] if reply.final and not reply.late]
        assert len(finals) == 1, finals
        return finals[0]

    async def quiet(self) -> None:
        async with asyncio.timeout(30):
            while self.relay.in_flight or any(not said for said in self.replies.values()):  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    # Nodes

    def names(self) -> list[str]:
        return list(self.pools)

    def pool(self, name: str) -> CommandPool | None:
        return self.pools.get(name)

    def state(self, name: str) -> str:
        return "UP" if name in self.pools else ""

    def load(self, name: str) -> None:
        return None

    def tags(self, name: str) -> tuple[str, ...]:
        return ()

    def ran(self, line: str) -> int:
        return sum(switch.executed[line] for switch in self.switches.values())


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    made = Fleet()
    await made.start()
    yield made
    await made.stop()


@pytest.mark.parametrize("seed", range(3))
async def test_nothing_runs_twice_nothing_is_lost_nothing_lies(fleet: Fleet, seed: int) -> None:
    chance = random.Random(seed)
    faults = ["late:600ms", "drop", "deaf", "late:1s", "drop", "deaf"]
    sent: list[tuple[str, str, str]] = []
    for number in range(400):
        if chance.random() < 0.04:
            chance.choice(list(fleet.switches.values())).faults.add(chance.choice(faults))
        # `eval` is no safe verb, so that ids count; each line is different, so that runs can be counted.
        id = f"id{number}" if chance.random() < 0.8 or not sent else chance.choice(sent)[1]
        line = f"eval {id}"
        address = f"{number}"
        op = "bgapi" if int(id[2:]) % 5 == 0 else "api"
        queue = "esl.cmd.fs1" if int(id[2:]) % 7 == 0 else "esl.cmd"
        fleet.put(address, queue, id=id, op=op, command=line)
        sent.append((address, id, line))
        if chance.random() < 0.2:
            await asyncio.sleep(0.01)
    await fleet.quiet()
    await asyncio.sleep(1.2)  # late replies, so that what runs late is counted too
    statuses: Counter[Status] = Counter()
    outcomes: dict[str, set[tuple[Status, Executed]]] = {}
    for address, id, line in sent:
        reply = fleet.final(address)
        statuses[reply.status] += 1
        assert reply.id == id
        ran = fleet.ran(line)
        assert ran <= 1, line
        if reply.executed is Executed.YES:
            assert ran == 1
            assert str(reply.result) == id
        outcomes.setdefault(id, set()).add((reply.status, reply.executed))
    for id, told in outcomes.items():
        executed = {outcome[1] for outcome in told}
        # An id that was not executed may be sent again and run then; where nobody says otherwise, it never ran.
        if executed == {Executed.NO}:
            assert fleet.ran(f"eval {id}") == 0, (id, told)
        # What became of an execution may only become known where it was unknown.
        assert len({outcome for outcome in told if outcome[1] is Executed.YES}) <= 1, (id, told)
    assert statuses[Status.OK] > 200, statuses
    assert set(statuses) <= {Status.OK, Status.TIMEOUT, Status.CONNECTION_LOST, Status.UNAVAILABLE, Status.EXPIRED}


async def test_many_callers_each_get_their_own(fleet: Fleet) -> None:
    for number in range(1_000):
        fleet.put(str(number), command=f"echo {number}", id=f"c{number % 7}-{number}")
        if number % 100 == 99:
            await fleet.quiet()
    assert [fleet.final(str(number)).result for number in range(1_000)] == [str(number) for number in range(1_000)]
    assert {fleet.final(str(number)).node for number in range(1_000)} == {"fs1", "fs2"}


async def test_strict_order_on_a_nodes_own_queue(fleet: Fleet) -> None:
    order: list[str] = []
    switch = fleet.switches["fs1"]
    count = switch.count
    switch.count = lambda what: (order.append(what), count(what))[1]  # type: ignore[method-assign]
    lines = [f"msleep {n % 3 * 20}" if n % 2 else f"eval {n}" for n in range(20)]  # msleep is a job, eval is direct
    for number, line in enumerate(lines):
        fleet.put(str(number), "esl.cmd.fs1", command=line)
    await fleet.quiet()
    assert [line for line in order if not line.startswith("global_getvar")] == lines


async def test_calls_are_found_and_served_on_their_node(fleet: Fleet) -> None:
    fleet.put("o", command="originate user/1000 &park", to="fs2", timeout_ms=5_000)
    await fleet.quiet()
    uuid = str(fleet.final("o").result).split()[1]
    fleet.put("exists", command=f"uuid_exists {uuid}")
    fleet.put("play", op="execute", uuid=uuid, app="playback", arg="silence_stream://10", wait=True)
    fleet.put("nobody", command="uuid_kill 11111111-2222-4333-8444-555555555555")
    fleet.put("not-there", command="uuid_exists 11111111-2222-4333-8444-555555555555")
    fleet.put("wrong-node", op="hangup", uuid=uuid, to="fs1")
    await fleet.quiet()
    assert (fleet.final("exists").result, fleet.final("exists").node) == ("true", "fs2")
    assert (fleet.final("play").status, fleet.final("play").node) == (Status.OK, "fs2")
    assert fleet.final("nobody").status is Status.NO_ROUTE
    assert (fleet.final("not-there").status, fleet.final("not-there").result) == (Status.OK, "false")
    wrong = fleet.final("wrong-node")
    assert (wrong.status, wrong.executed) == (Status.ERROR, Executed.NO)
    assert "invalid session id" in wrong.error
    fleet.put("bye", op="hangup", uuid=uuid)
    await fleet.quiet()
    assert fleet.final("bye").status is Status.OK


async def test_a_switch_that_is_gone(fleet: Fleet) -> None:
    await fleet.switches["fs1"].stop()
    for number in range(20):
        fleet.put(str(number), command=f"eval {number}", id=f"x{number}")
    fleet.put("named", command="eval named", to="fs1", id="n")
    await fleet.quiet()
    assert {fleet.final(str(number)).node for number in range(20)} == {"fs2"}
    named = fleet.final("named")
    assert (named.status, named.executed) == (Status.UNAVAILABLE, Executed.NO)


async def test_drain_answers_everything(fleet: Fleet) -> None:
    for number in range(50):
        fleet.put(str(number), command="msleep 100", id=f"d{number}")
    fleet.put("slow", command="msleep 4000", id="slow")
    await asyncio.sleep(0.05)
    await fleet.relay.drain(1.5)
    await asyncio.sleep(0)
    assert {fleet.final(str(number)).status for number in range(50)} == {Status.OK}
    slow = fleet.final("slow")
    assert (slow.status, slow.executed) == (Status.CONNECTION_LOST, Executed.UNKNOWN)


async def test_an_answered_command_leaves_nothing_for_the_garbage_collector(fleet: Fleet) -> None:
    """What only the collector can free costs a pause for all others: everything of a command goes by itself."""

    def put(first: int) -> None:
        for number in range(first, first + 200):
            fleet.put(f"{number}", id=f"id{number}", command=f"eval {number}")

    put(0)
    await fleet.quiet()
    gc.collect()
    gc.disable()
    try:
        put(200)
        await fleet.quiet()
        left = gc.collect()
    finally:
        gc.enable()
    assert left < 200, "less than one object a command"
