"""A peer that answers anything at all: every command has exactly one outcome, nothing raises, and the link lives on."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from bridge.esl import commands
from bridge.switch.command_pool import CommandPool, Outcome
from bridge.switch.event_link import EventLink
from tests.integration.switch import wire
from tests.integration.switch.wire import RawConnection, RawSwitch, json_event, notice

MakeLink = Callable[..., EventLink]
MakePool = Callable[..., CommandPool]
Until = Callable[[Callable[[], Any]], Awaitable[None]]

ROUNDS = 120
FRAGMENTS = [
    b"Reply-Text: ",
    b"Content-Type: ", b"Content-Length: ", b"command/reply", b"api/response", b"text/event-json", b"log/data", b"\n",
    b"\n\n", b"\r\n", b"2", b"17", b'{"Event-Name":"X"}', b"\x00", b"\xff\xfe", b"text/disconnect-notice",
    b"Content-Length: 18\nContent-Type: text/event-json\n\n", b"Content-Type: auth/request\n\n",
    b"Content-Type: command/reply\nReply-Text: +OK\n\n", b"Content-Type: text/x\nContent-Length: 3\n\nabc",
]  # fmt: skip
LINGER = (
    b"Content-Type: text/disconnect-notice\nControlled-Session-UUID: x\nContent-Disposition: linger\n"
    b"Linger-Time: z\nContent-Length: 0\n\n"
)


def odd_answer(chance: random.Random, connection: RawConnection) -> bytes:
    match chance.randrange(13):
        case 0:
            return junk(chance)
        case 1:
            return wire.api("-ERR x") + junk(chance)
        case 2:
            connection.write(wire.api("partial")[:-3])
            connection.close()
            return b""
        case 3:
            return json_event(1) + wire.api("x" * chance.choice([0, 1, 100_000]))
        case 4:
            return wire.reply("+OK Job-UUID: of another")
        case 5:
            return notice(wire.KILLED)
        case 6:
            return notice(wire.GOODBYE) + wire.api("after the goodbye")
        case 7:
            return b""  # it never answers
        case 8:
            return wire.api("a") + wire.api("b")
        case 9:
            return LINGER + wire.api("lingers")
        case 10:
            return b"Content-Type: command/reply\n\n"
        case 11:
            return notice(b"The system is being shut down.\n")
        case _:
            return b"content-type:api/response\r\nContent-Length:3\r\n\r\nabc"


def junk(chance: random.Random) -> bytes:
    return b"".join(chance.choice(FRAGMENTS) for _ in range(chance.randint(1, 12)))


def trouble(chance: random.Random, connection: RawConnection) -> None:
    """Something odd on a connection that only listens."""
    match chance.randrange(4):
        case 0:
            connection.write(junk(chance))
        case 1:
            connection.write(json_event(2) * chance.randint(1, 50))
        case 2:
            connection.close()
        case _:
            connection.write(json_event(3)[: chance.randint(1, 60)])
            connection.close()


@pytest.mark.parametrize("seed", range(4))
async def test_whatever_it_answers(
    make_link: MakeLink, make_pool: MakePool, recorder: Any, until: Until, failures: list[Exception], seed: int
) -> None:
    chance = random.Random(seed)
    outcomes: dict[int, list[Outcome]] = {}
    loop = asyncio.get_running_loop()
    async with RawSwitch() as switch:
        switch.answer = lambda connection, command: odd_answer(chance, connection) if "odd" in command else None
        link = make_link(switch.url)
        pool = make_pool(switch.url, command_timeout=0.3)
        await until(lambda: link.connected)
        number = 0
        for _ in range(ROUNDS):
            for _ in range(chance.randint(1, 8)):
                told = outcomes[number] = []
                number += 1
                deadline = loop.time() + chance.choice([0.05, 0.3, 0.6])
                match chance.randrange(4):
                    case 0:
                        pool.submit_job("odd job", told.append, deadline=deadline)
                    case 1:
                        pool.submit_execute_wait("u-1", "odd", "x", told.append, deadline=deadline)
                    case _:
                        pool.submit(commands.api("odd"), told.append, deadline=deadline)
            if switch.listeners and chance.random() < 0.5:
                trouble(chance, chance.choice(switch.listeners))
            await asyncio.sleep(chance.choice([0, 0, 0.01, 0.03]))
        await until(lambda: all(outcomes.values()))
        assert Counter(sum(not one.late for one in told) for told in outcomes.values()) == {1: number}
        assert failures == []
        assert (pool.waiting, pool.in_flight, len(pool.jobs)) == (0, 0, 0)
        # A sane peer again: both live on.
        switch.answer = lambda connection, command: None
        pool.node_up()
        await until(lambda: link.connected)
        assert (await pool.api("status", 5)).text == "ran status"


async def test_a_job_that_the_unload_trap_made_an_api_of_is_answered_at_once(make_pool: MakePool, until: Until) -> None:
    """FreeSWITCH runs ``api bgapi unload mod_event_socket`` in its place, under an id of its own."""
    taken = "+OK Job-UUID: 7f4de4bc-0000-0000-0000-000000000000\n"
    outcomes: list[Outcome] = []
    accepted: list[str] = []
    async with RawSwitch() as switch:
        switch.answer = lambda connection, command: wire.api(taken) if command.startswith("bgapi") else None
        pool = make_pool(switch.url)
        deadline = asyncio.get_running_loop().time() + 60
        pool.submit_job("unload mod_event_socket", outcomes.append, deadline=deadline, on_accepted=accepted.append)
        await until(lambda: outcomes)
        assert (outcomes[0].status, outcomes[0].job, len(pool.jobs)) == ("reply", "", 0)
        assert outcomes[0].reply is not None
        assert (outcomes[0].reply.text, accepted) == (taken, [])
