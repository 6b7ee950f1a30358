"""What becomes of commands that wait while connections die young: no whole budget in vain, no one cut for all."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from bridge.errors import ConnectionLost, NotConnected
from bridge.esl import commands
from bridge.simulator import SimulatedSwitch
from bridge.switch.command_pool import CommandPool
from tests.integration.switch.wire import RawConnection, RawSwitch, notice

MakePool = Callable[..., CommandPool]
Until = Callable[[Callable[[], Any]], Awaitable[None]]
WAITING = 20


def submit(pool: CommandPool, answers: Any) -> None:
    """Many commands for a pool that writes one at a time; no test here waits for a deadline."""
    deadline = asyncio.get_running_loop().time() + 3600
    for number in range(WAITING):
        pool.submit(commands.api(f"echo {number}"), answers.take(number), deadline=deadline)


def told(answers: Any) -> list[str]:
    return [answers[number].status for number in range(WAITING)]


@pytest.mark.parametrize("fault", ["deaf", "drop"])
async def test_after_one_cut_those_who_wait_get_another_connection(
    switch: SimulatedSwitch, make_pool: MakePool, answers: Any, until: Until, fault: str
) -> None:
    switch.faults.add(fault)
    pool = make_pool(switch.url, max_connections=1, max_pipelined=1)
    submit(pool, answers)
    await until(lambda: len(answers) == WAITING)
    assert told(answers) == ["lost"] + ["reply"] * (WAITING - 1)
    assert switch.connections_made == 2


async def test_after_two_cuts_in_a_row_nobody_waits_any_more(
    switch: SimulatedSwitch, make_pool: MakePool, answers: Any, until: Until
) -> None:
    switch.faults.add("deaf/1")
    pool = make_pool(switch.url, max_connections=1, max_pipelined=1)
    submit(pool, answers)
    await until(lambda: len(answers) == WAITING)
    assert told(answers) == ["lost", "lost"] + ["unsent"] * (WAITING - 2)
    assert isinstance(answers[WAITING - 1].error, ConnectionLost)
    assert (switch.connections_made, pool.waiting) == (2, 0)


async def test_a_connection_that_answered_once_gives_new_hope(
    switch: SimulatedSwitch, make_pool: MakePool, answers: Any, until: Until
) -> None:
    """Every connection dies, but never two in a row before their first answer: nobody is turned away."""
    switch.faults.add("deaf@1/3")
    switch.faults.add("deaf@3/3")
    pool = make_pool(switch.url, max_connections=1, max_pipelined=1)
    submit(pool, answers)
    await until(lambda: len(answers) == WAITING)
    assert told(answers) == (["lost", "reply", "lost"] * WAITING)[:WAITING]


async def test_a_cut_during_authentication_is_tried_once_more(make_pool: MakePool, answers: Any, until: Until) -> None:
    async with RawSwitch() as switch:

        def answer(connection: RawConnection, command: str) -> bytes | None:
            if command.startswith("auth") and connection is switch.connections[0]:
                connection.close()
                return b""
            return None

        switch.answer = answer
        pool = make_pool(switch.url)
        submit(pool, answers)
        await until(lambda: len(answers) == WAITING)
        assert told(answers) == ["reply"] * WAITING


async def test_cuts_during_every_authentication_end_the_hope(make_pool: MakePool, answers: Any, until: Until) -> None:
    async with RawSwitch() as switch:

        def answer(connection: RawConnection, command: str) -> bytes | None:
            connection.close()
            return b""

        switch.answer = answer
        pool = make_pool(switch.url)
        submit(pool, answers)
        await until(lambda: len(answers) == WAITING)
        assert told(answers) == ["unsent"] * WAITING
        assert len(switch.connections) == 2


async def test_a_node_that_is_gone_after_the_cut_is_tried_once(
    switch: SimulatedSwitch, make_pool: MakePool, answers: Any, until: Until
) -> None:
    switch.faults.add("slow_api:60s")  # else all may be answered before we look
    pool = make_pool(switch.url, max_connections=1, max_pipelined=1)
    submit(pool, answers)
    await until(lambda: pool.in_flight == 1)
    await switch.stop()
    await until(lambda: len(answers) == WAITING)
    last = answers[WAITING - 1]
    assert (last.status, type(last.error)) == ("unsent", NotConnected)


async def test_a_freeswitch_that_says_that_it_shuts_down_is_believed(
    make_pool: MakePool, answers: Any, until: Until
) -> None:
    async with RawSwitch() as switch:

        def answer(connection: RawConnection, command: str) -> bytes | None:
            if command.startswith("api"):
                connection.write(notice(b"The system is being shut down.\n"))
                connection.close()
                return b""
            return None

        switch.answer = answer
        pool = make_pool(switch.url, max_connections=1, max_pipelined=1)
        submit(pool, answers)
        await until(lambda: len(answers) == WAITING)
        assert told(answers) == ["lost"] + ["unsent"] * (WAITING - 1)
        assert len(switch.connections) == 1
