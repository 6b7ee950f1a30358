"""A worker whose machine has another time than the broker's."""

from __future__ import annotations

import pytest

from bridge.messages.command import CommandReply, CommandRequest
from bridge.simulator import SimulatedSwitch
from tests.chaos.conftest import Arena, until

PRELUDE = """
import time
real = time.time
time.time = lambda: real() + ({ahead})
"""
QUEUES = {"nats": "esl.queue", "redis": "esl.cmd"}


@pytest.mark.parametrize("ahead", [30, -30])
@pytest.mark.parametrize("arena", ["nats", "redis"], indirect=True)
async def test_a_budget_is_counted_by_the_brokers_clock_and_the_log_tells_of_ours(arena: Arena, ahead: int) -> None:
    switch = SimulatedSwitch(heartbeat_interval=1.0)
    await switch.start()
    arena.stack.push_async_callback(switch.stop)
    arena.switches = [switch]  # type: ignore[list-item]
    bus, queue = arena.client.bus, QUEUES[arena.broker.kind]
    told: list[CommandReply] = []

    async def ask(id: str, timeout: int) -> None:
        address = bus.new_reply_address(queue)
        request = CommandRequest(id=id, command=f"eval {id}", timeout_ms=timeout, reply_to=address)
        await arena.ask(arena.client, queue, request, told.append)

    if arena.broker.kind == "nats":
        await arena.client.bus._durable.make()  # type: ignore[attr-defined]
    await ask("waited", 20_000)  # before the worker knows any clock
    await ask("too late", 1)
    worker = await arena.worker("a", prelude=PRELUDE.format(ahead=ahead), extra="[commands]\ndurable = true\n")
    await until(lambda: len(told) == 2, what=f"the replies\n{arena.outputs()}")
    await ask("fresh", 20_000)
    await until(lambda: len(told) == 3, what="the reply")
    outcomes = {it.id: (it.status, it.executed) for it in told}
    assert outcomes == {"waited": ("ok", "yes"), "too late": ("expired", "no"), "fresh": ("ok", "yes")}, worker.output
    assert all(0 <= (it.elapsed_ms or 0) < 20_000 for it in told)
    which = "ahead of" if ahead > 0 else "behind"
    assert f"this machine's clock is {which} the broker's" in worker.output
