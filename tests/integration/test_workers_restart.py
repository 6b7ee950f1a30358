"""Workers as processes: restarted in turn without a loss, killed without a lie."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from bridge.bus.embedded import EmbeddedBroker
from bridge.client import Bridge
from bridge.errors import BridgeError
from bridge.messages.command import CommandReply
from bridge.simulator import SimulatedSwitch

CALLERS = 32
OLD = os.environ.get("ESL_BRIDGE_TEST_OLD_NATS") or shutil.which("nats-server")
STREETS = {
    "nats": ("nats", "esl.cmd", None),
    "nats durable": ("nats", "esl.queue", None),
    "redis stream": ("redis", "esl.cmd", "stream"),
    "redis list": ("redis", "esl.cmd", "list"),
}
if OLD:
    STREETS["old nats"] = ("nats", "esl.cmd", None)


@dataclass
class Town:
    """A broker, a switch, workers as processes, and callers that never stop."""

    broker: EmbeddedBroker
    switch: SimulatedSwitch
    folder: Path
    queue: str
    queue_type: str | None
    stack: AsyncExitStack
    replies: dict[str, CommandReply] = field(default_factory=dict)
    failed: dict[str, BridgeError] = field(default_factory=dict)
    workers: list[asyncio.subprocess.Process] = field(default_factory=list)
    started: int = 0

    async def worker(self) -> asyncio.subprocess.Process:
        """Start one and return when it takes requests."""
        self.started += 1
        file = self.folder / f"{self.started}.toml"
        queue_type = f'queue_type = "{self.queue_type}"\n' if self.queue_type else ""
        file.write_text(
            f'[worker]\nid = "w{self.started}"\nstate_dir = "{self.folder}"\ndrain_timeout = 15.0\n'
            f'[bus]\nurl = "{self.broker.url}"\n'
            f'[commands]\ndurable = true\nclaim_after = 2.0\nledger = "shared"\n{queue_type}'
            f'[http]\nlisten = ""\n[log]\nformat = "text"\n'
            f'[[node]]\nname = "fs1"\nurl = "{self.switch.url}"\n'
        )
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "bridge", "run", "-c", str(file)),
            stderr=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
        )
        self.workers.append(process)
        self.stack.push_async_callback(end, process)
        assert process.stderr is not None
        async with asyncio.timeout(30):
            async for line in process.stderr:
                if b"requests are taken" in line:
                    self.stack.push_async_callback(stopped, asyncio.create_task(swallow(process.stderr)))
                    return process
        raise AssertionError("the worker ended")

    async def call(self, first: int, stop: asyncio.Event, timeout: float) -> None:
        client = await self.stack.enter_async_context(Bridge(self.broker.url, queue_type=self.queue_type or "stream"))
        number = first
        while not stop.is_set():
            id = f"n{number}"
            try:
                self.replies[id] = await client.request(
                    {"id": id, "command": f"eval {id}"}, timeout=timeout, queue=self.queue
                )
            except BridgeError as error:
                self.failed[id] = error
            number += CALLERS
            await asyncio.sleep(0.05)  # the workers need the machine too

    def ran(self, id: str) -> int:
        return self.switch.executed[f"eval {id}"]


async def swallow(stream: asyncio.StreamReader) -> None:
    async for _ in stream:
        pass


async def stopped(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.wait()


@pytest.fixture(params=STREETS)
async def town(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Town]:
    kind, queue, queue_type = STREETS[request.param]
    executable = Path(OLD or "") if request.param.startswith("old") else None
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(EmbeddedBroker(kind, executable=executable))  # type: ignore[arg-type]
        switch = SimulatedSwitch(heartbeat_interval=0.5)
        await switch.start()
        stack.push_async_callback(switch.stop)
        yield Town(broker, switch, tmp_path, queue, queue_type, stack)


async def test_workers_restarted_in_turn_lose_no_request(town: Town) -> None:
    workers = [await town.worker()]
    stop = asyncio.Event()
    callers = [asyncio.create_task(town.call(number, stop, 20.0)) for number in range(CALLERS)]
    for _ in range(2):
        workers.append(await town.worker())
        await until_more(town, 50)
        old = workers.pop(0)
        old.send_signal(signal.SIGTERM)
        async with asyncio.timeout(25):
            assert await old.wait() == 0
    await until_more(town, 50)
    stop.set()
    await asyncio.gather(*callers)
    assert town.failed == {}
    assert Counter((reply.status, reply.executed, reply.error) for reply in town.replies.values()) == {
        ("ok", "yes", ""): len(town.replies)
    }
    assert all(reply.id == id and reply.result == id for id, reply in town.replies.items())
    assert {town.ran(id) for id in town.replies} == {1}


@pytest.mark.parametrize("town", ["nats durable", "redis stream", "redis list"], indirect=True)
async def test_a_killed_worker_costs_no_reply_and_nothing_runs_twice(town: Town) -> None:
    dying = await town.worker()
    await town.worker()
    stop = asyncio.Event()
    callers = [asyncio.create_task(town.call(number, stop, 30.0)) for number in range(CALLERS)]
    await until_more(town, 100)
    dying.kill()
    await until_more(town, 200)
    stop.set()
    await asyncio.gather(*callers)
    assert town.failed == {}
    for id, reply in town.replies.items():
        assert reply.id == id
        assert town.ran(id) <= 1
        if reply.executed == "yes":
            assert (town.ran(id), reply.result) == (1, id)
        elif reply.executed == "no":
            assert town.ran(id) == 0
        else:
            assert reply.status == "connection_lost"


async def until_more(town: Town, count: int) -> None:
    target = len(town.replies) + count
    async with asyncio.timeout(30):
        while len(town.replies) < target:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
