"""A rolling upgrade: three workers are replaced one after another while events flow and commands are called."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections import Counter, defaultdict
from typing import Any

import nats
import pytest
import redis.asyncio
from nats.js.api import AckPolicy, ConsumerConfig

from bridge.client import Bridge
from bridge.errors import BridgeError
from bridge.messages.command import CommandReply
from bridge.messages.event import EventMessage, decode_event
from tests.chaos.conftest import PATIENCE, UNTOLD, Arena, until

WORKERS = ("a", "b", "c")
CALLERS = 12
EXTRA = (
    # Judged is what is lost, not how fast the machine is.
    "[esl]\nesl_connect_timeout = 20000\nesl_cmd_timeout = 20000\n"
    '[events]\ndelivery = "both"\n[commands]\ndurable = true\nledger = "shared"\n'
)


class Callers:
    """Services that never stop calling: any node, one node, a node's own queue; each id is asked for once."""

    def __init__(self, arena: Arena) -> None:
        self.replies: dict[str, CommandReply] = {}
        self.failed: dict[str, BridgeError] = {}
        self._arena = arena
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def begin(self) -> None:
        self._tasks = [asyncio.create_task(self._call(number)) for number in range(CALLERS)]

    async def end(self) -> None:
        self._stop.set()
        await asyncio.gather(*self._tasks)

    async def more(self, count: int) -> None:
        target = len(self.replies) + count
        await until(lambda: len(self.replies) >= target, what="replies")

    async def _call(self, first: int) -> None:
        durable = "esl.queue" if self._arena.broker.kind == "nats" else "esl.cmd"
        node = f"fs{first % len(self._arena.switches) + 1}"
        where: dict[str, Any] = ({}, {"to": node}, {})[first % 3]
        queue = ("esl.cmd", "esl.cmd", f"{durable}.{node}")[first % 3]
        async with Bridge(self._arena.broker.url) as client:
            number = first
            while not self._stop.is_set():
                id = f"n{number}"
                try:
                    request = {"id": id, "command": f"eval {id}", **where}
                    self.replies[id] = await client.request(request, timeout=20.0, queue=queue)
                except BridgeError as error:
                    self.failed[id] = error
                number += CALLERS
                await asyncio.sleep(0.02)

    def check(self) -> None:
        assert self.failed == {}
        bad = {id: reply for id, reply in self.replies.items() if reply.status != "ok"}
        assert not bad, f"{bad}\n{self._arena.outputs()}"
        outcomes = Counter((reply.status, reply.executed) for reply in self.replies.values())
        assert outcomes == {("ok", "yes"): len(self.replies)}
        assert all(reply.id == id and reply.result == id for id, reply in self.replies.items())
        ran = {id: sum(it.executed[f"eval {id}"] for it in self._arena.switches) for id in self.replies}
        assert set(ran.values()) == {1}
        assert len({reply.worker for reply in self.replies.values()}) == len(WORKERS)


async def kept(arena: Arena) -> list[EventMessage]:
    """What the durable stream holds, in its order."""
    if arena.broker.kind == "redis":
        async with redis.asyncio.Redis(port=arena.broker.port) as client:
            entries = await client.xrange("fs.events")
        return [decode_event(fields[b"data"], topic=fields[b"topic"].decode()) for _, fields in entries]
    found: list[EventMessage] = []
    connection = await nats.connect(arena.broker.url)
    try:
        stream = connection.jetstream()
        count = (await stream.stream_info("FS_EVENTS")).state.messages
        unacknowledged = ConsumerConfig(ack_policy=AckPolicy.NONE)
        reader = await stream.pull_subscribe("fs.events.>", stream="FS_EVENTS", config=unacknowledged)
        async with asyncio.timeout(PATIENCE):
            while len(found) < count:
                with contextlib.suppress(TimeoutError, nats.errors.TimeoutError):
                    found += [decode_event(it.data, topic=it.subject) for it in await reader.fetch(500, timeout=1)]
    finally:
        await connection.close()
    return found


def check_numbers(events: list[EventMessage]) -> None:
    """Each topic counts 1, 2, 3, ... under each epoch."""
    counted: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for event in events:
        counted[event.node, event.epoch, event.topic].append(int(event.sequence))
    for numbers in counted.values():
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


@pytest.mark.timeout(400)
@pytest.mark.parametrize("arena", ["nats", "redis"], indirect=True)
async def test_a_rolling_upgrade_under_events_and_commands_loses_and_repeats_nothing(arena: Arena) -> None:
    await arena.nodes(3, rate=100)
    workers = {id: await arena.worker(id, extra=EXTRA) for id in WORKERS}
    await arena.settled(*WORKERS)
    since = time.time()
    callers = Callers(arena)
    callers.begin()
    await callers.more(50)
    for id in WORKERS:
        assert await workers[id].end(signal.SIGTERM) == 0, arena.outputs()
        await callers.more(50)
        workers[id] = await arena.worker(id, extra=EXTRA)
        await arena.settled(*WORKERS)
        await callers.more(50)
    await callers.end()
    await arena.quiet()
    callers.check()
    # Pub/sub: every event once and in order.
    arena.check(since=since)
    check_numbers([event for event in arena.events if event.time and not event.synthetic])
    assert not arena.gaps, [gap.data for gap in arena.gaps]
    # Durable: the same.
    told = {id for it in arena.switches for id, at in it.told.items() if at >= since}
    stored: list[EventMessage] = []
    async with asyncio.timeout(PATIENCE):
        while not told <= {event.id for event in stored}:  # it may be behind what subscribers heard
            stored = [event for event in await kept(arena) if event.name not in UNTOLD]
    count = Counter(event.id for event in stored)
    assert {id: times for id, times in count.items() if times > 1} == {}
    check_numbers([event for event in stored if not event.synthetic])
