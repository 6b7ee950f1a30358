"""What a long life leaves behind: after hundreds of cuts, jobs and commands given up, nothing of them is kept."""

from __future__ import annotations

import asyncio
import gc
import os
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from bridge.esl import commands
from bridge.esl.protocol import Protocol
from bridge.simulator import SimulatedSwitch
from bridge.switch.backoff import Backoff
from bridge.switch.carrier import Carrier
from bridge.switch.command_pool import CommandPool
from bridge.switch.connection import Connection
from bridge.switch.deadlines import Deadline
from bridge.switch.event_link import EventLink
from bridge.switch.event_session import EventSession
from bridge.switch.submission import Submission
from tests.integration.switch.wire import GOODBYE, RawSwitch, notice, reply

MakePool = Callable[..., CommandPool]
MakeLink = Callable[..., EventLink]
Until = Callable[[Callable[[], Any]], Awaitable[None]]
CUTS = 150
KINDS = (Carrier, Connection, EventSession, Protocol, Submission, Deadline)


def alive() -> Counter[str]:
    """How many of our things there are, tasks and open files included."""
    gc.collect()
    found = Counter({kind.__name__: 0 for kind in KINDS})
    for one in gc.get_objects():
        for kind in KINDS:
            if isinstance(one, kind):
                found[kind.__name__] += 1
    found["tasks"] = sum(task.get_name().startswith("esl-") for task in asyncio.all_tasks())  # not the simulator's
    found["files"] = len(os.listdir("/proc/self/fd"))
    return found


async def test_hundreds_of_cuts_leave_nothing_behind(
    switch: SimulatedSwitch, make_link: MakeLink, make_pool: MakePool, recorder: Any, until: Until
) -> None:
    link, pool = make_link(switch.url), make_pool(switch.url, idle_timeout=3600.0)
    loop = asyncio.get_running_loop()
    told: Counter[str] = Counter()

    async def live(cuts: int) -> None:
        for number in range(cuts):
            await until(lambda: link.connected)
            asked, before = told.total(), recorder.states().count("DOWN")

            def note(outcome: Any) -> None:
                told["late" if outcome.late else outcome.status] += not outcome.late

            pool.submit(commands.api(f"echo {number}"), note, deadline=loop.time() + 3600)
            pool.submit(commands.api("status"), note, deadline=loop.time() + 0.001)
            pool.submit_job("msleep 1", note, deadline=loop.time() + 0.2)
            pool.submit_job("msleep 60000", note, deadline=loop.time() + 0.05)
            await until(lambda asked=asked: told.total() >= asked + 3)  # type: ignore[misc]
            switch.drop_connections()
            await until(lambda asked=asked: told.total() == asked + 4)  # type: ignore[misc]
            await until(lambda before=before: recorder.states().count("DOWN") > before)  # type: ignore[misc]
        recorder.changes.clear()

    await live(5)
    await until(lambda: link.connected and pool.connections == 0)
    first = alive()
    await live(CUTS)
    await until(lambda: link.connected and pool.connections == 0)
    last = alive()
    assert pool.waiting == pool.in_flight == len(pool.jobs) == 0
    await until(lambda: not pool.jobs.orphans)
    # Jobs that may still tell their result are remembered, and no connection with them.
    assert last["Submission"] <= pool.jobs.given_up + 5 <= 2 * (CUTS + 5) + 5
    for kind in ("Carrier", "Connection", "EventSession", "Protocol", "tasks", "files"):
        assert last[kind] <= first[kind] + 3, (kind, first, last)
    assert last["Deadline"] <= first["Deadline"] + 200  # cancelled ones leave when they are the most


REJECTION = b"Content-Type: text/rude-rejection\nContent-Length: 24\n\nAccess Denied, go away.\n"


@pytest.mark.parametrize("ending", ["cut", "garbage", "goodbye", "refused", "password", "acl", "silent"])
async def test_what_ended_is_gone_without_a_collector(
    recorder: Any, make_link: MakeLink, make_pool: MakePool, until: Until, ending: str
) -> None:
    """What waits for the collector stands in memory between things that live longer: both never shrink again."""
    async with RawSwitch() as raw:
        options: dict[str, Any] = {"backoff": Backoff({}), "connect_timeout": 5.0}
        url = raw.url
        if ending == "refused":
            url = "fs://:x@127.0.0.1:1"
        elif ending == "password":
            raw.answer = lambda connection, command: reply("-ERR invalid") if command.startswith("auth") else None
        elif ending == "acl":
            raw.greeting = REJECTION
        elif ending == "silent":
            raw.greeting, options["connect_timeout"] = b"", 0.02
        link, pool = make_link(url, **options), make_pool(url, **options)
        link._backoff.delay = pool._carriers._backoff.delay = lambda reason: 0.001
        told: list[Any] = []
        gc.collect()
        gc.disable()
        try:
            for number in range(1, 13):
                pool.submit(commands.api("status"), told.append, deadline=asyncio.get_running_loop().time() + 20)
                await until(lambda number=number: len(told) >= number)  # type: ignore[misc]
                if ending in ("cut", "garbage", "goodbye"):
                    await until(lambda: link.connected)
                    for connection in raw.connections[-2:]:
                        if ending == "garbage":
                            connection.write(b"no header\n\n")
                        elif ending == "goodbye":
                            connection.write(notice(GOODBYE))
                        connection.close()
                await until(lambda number=number: len(recorder.losses) >= number)  # type: ignore[misc]
            recorder.losses.clear()
            told.clear()
            found = Counter(type(one).__name__ for one in gc.get_objects() if isinstance(one, KINDS))
        finally:
            gc.enable()
    for kind in ("Carrier", "Connection", "EventSession", "Protocol"):
        assert found[kind] <= 3, found
