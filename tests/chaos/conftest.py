"""Workers as real processes on real brokers, simulated nodes that remember what they said, and a checker of both."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from bridge.bus.base import Received
from bridge.bus.embedded import EmbeddedBroker
from bridge.bus.storage import WORKERS
from bridge.client import Bridge
from bridge.errors import BusError
from bridge.messages.codec import JSON
from bridge.messages.command import CommandReply, CommandRequest, decode_reply, encode_request
from bridge.messages.event import EventMessage, decode_event
from bridge.messages.fleet import WorkerEntry, decode_worker
from bridge.messages.notice import Notice
from bridge.simulator import SimulatedSwitch

LEASE = 2.0
PATIENCE = 30.0
# What is not the node's own story: heartbeats, and what the workers' own commands cause.
UNTOLD = ("HEARTBEAT", "API", "RE_SCHEDULE")


async def until(condition: Callable[[], Any], patience: float = PATIENCE, what: str = "") -> None:
    """Wait for a condition; the test fails when it does not come."""
    try:
        async with asyncio.timeout(patience):
            while not condition():  # noqa: ASYNC110 - the condition is anybody's state
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"it never came: {what}") from None


def die_with_parent() -> None:
    """On Linux: a worker ends when the test is killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


class Told(SimulatedSwitch):
    """A node that remembers every event it fired, in order."""

    def __init__(self, **options: Any) -> None:
        super().__init__(heartbeat_interval=1.0, **options)
        self.told: dict[str, float] = {}
        self._burst: asyncio.Task[None] | None = None

    def deliver(self, event: Any) -> None:
        headers = dict(event.headers)
        if headers["Event-Name"] not in UNTOLD:
            self.told[f"{headers['Core-UUID']}:{headers['Event-Sequence']}"] = time.time()
        super().deliver(event)

    def speak(self, per_second: int) -> None:
        """Fire events all the time."""

        async def go() -> None:
            number = 0
            while True:
                for _ in range(max(1, per_second // 50)):
                    number += 1
                    self.fire("CUSTOM", {"number": str(number), "padding": "x" * 200}, subclass="chaos::load")
                await asyncio.sleep(0.02)

        self._burst = asyncio.get_running_loop().create_task(go())

    async def hush(self) -> None:
        if self._burst is not None:
            self._burst.cancel()
            await asyncio.gather(self._burst, return_exceptions=True)


class Proxy:
    """A TCP connection that can be cut: ``cut`` lets nothing through and tells nobody."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._open = asyncio.Event()
        self._open.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def cut(self) -> None:
        self._open.clear()

    def heal(self) -> None:
        self._open.set()

    async def stop(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._open.wait()
            other_reader, other_writer = await asyncio.open_connection("127.0.0.1", self._target)
            await asyncio.gather(self._pump(reader, other_writer), self._pump(other_reader, writer))
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                await self._open.wait()
                writer.write(data)
                await writer.drain()
        writer.close()


class Process:
    """One ``esl-bridge run``."""

    def __init__(self, id: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.id = id
        self.process = process
        self.log = log

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)
                self.process.send_signal(signal.SIGCONT)
        async with asyncio.timeout(PATIENCE):
            return await self.process.wait()

    @property
    def output(self) -> str:
        return self.log.read_text()


class Arena:
    """One broker, its workers, its nodes, and everything that arrived."""

    def __init__(self, broker: EmbeddedBroker, folder: Path, stack: AsyncExitStack) -> None:
        self.broker = broker
        self.folder = folder
        self.stack = stack
        self.switches: list[Told] = []
        self.events: list[EventMessage] = []
        self.gaps: list[Notice] = []
        self.notices: list[Notice] = []
        self.processes: list[Process] = []
        self._runs = 0

    async def open(self) -> None:
        self.client = await self.stack.enter_async_context(Bridge(self.broker.url))
        await self.client.bus.subscribe("fs.events.*", self._take)
        await self.client.notices(self._note)

    def _take(self, received: Received) -> None:
        event = decode_event(received.payload, topic=received.topic)
        if event.name not in UNTOLD:
            self.events.append(event)

    def _note(self, notice: Notice) -> None:
        self.notices.append(notice)
        if notice.kind == "gap":
            self.gaps.append(notice)

    async def ask(
        self, client: Bridge, queue: str, request: CommandRequest, hear: Callable[[CommandReply], object]
    ) -> None:
        """Put a request in, and hear every reply to it."""
        heard = await client.bus.request(
            queue,
            encode_request(request, JSON),
            JSON.request_content_type,
            lambda payload, _type: hear(decode_reply(payload)),
            reply_to=request.reply_to,
        )
        self.stack.push_async_callback(heard.close)

    async def nodes(self, count: int, rate: int = 200) -> list[Told]:
        for _ in range(count):
            switch = Told(calls_per_second=2.0, call_duration=1.0)
            await switch.start()
            self.stack.push_async_callback(switch.stop)
            self.stack.push_async_callback(switch.hush)
            self.switches.append(switch)
            switch.speak(rate)
        return self.switches

    async def worker(
        self,
        id: str,
        *,
        standby: int = 0,
        bus: str = "",
        urls: dict[str, str] | None = None,
        extra: str = "",
        prelude: str = "",
        node: str = "",
    ) -> Process:
        """Start a worker; it is not waited for.

        ``extra`` is more of its configuration, ``node`` more of each node's; ``prelude`` is Python that its process
        runs first.
        """
        nodes = "\n".join(
            f'[[node]]\nname = "fs{n}"\nurl = "{(urls or {}).get(f"fs{n}", switch.url)}"\n{node}'
            for n, switch in enumerate(self.switches, 1)
        )
        self._runs += 1
        config = self.folder / f"{id}-{self._runs}.toml"
        config.write_text(
            f'[worker]\nid = "{id}"\nstate_dir = "{self.folder / id}"\ndrain_timeout = 15.0\n'
            f'[bus]\nurl = "{bus or self.broker.url}"\n'
            f"[fleet]\nstandby = {standby}\nlease_time = {LEASE}\n"
            f'[http]\nlisten = ""\n[log]\nlevel = "debug"\nformat = "text"\n{extra}\n{nodes}\n'
        )
        log = self.folder / f"{id}-{self._runs}.log"
        environ = {key: value for key, value in os.environ.items() if not key.startswith("ESL_BRIDGE_")}
        begin = f"{prelude}\nimport sys\nfrom bridge.__main__ import main\nsys.exit(main())"
        program = ("-c", begin) if prelude else ("-m", "bridge")
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                sys.executable, *program, "run", "-c", str(config),
                env=environ, stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output,
                preexec_fn=die_with_parent,
            )  # fmt: skip
        worker = Process(id, process, log)
        self.processes.append(worker)
        self.stack.push_async_callback(worker.end, signal.SIGKILL)
        return worker

    async def fleet(self) -> dict[str, WorkerEntry]:
        """The living workers as the bus knows them."""
        try:
            found = await self.client.bus.storage.entries(WORKERS)
        except BusError:
            return {}
        return {id: decode_worker(payload) for id, payload in found.items()}

    async def owners(self) -> dict[str, str]:
        return {node.name: entry.id for entry in (await self.fleet()).values() for node in entry.owned}

    async def settled(self, *ids: str, standby: bool = False, patience: float = PATIENCE) -> dict[str, str]:
        """Wait until each node is owned by one of these workers, each of which owns its share, and is UP."""
        names = {f"fs{n}" for n in range(1, len(self.switches) + 1)}
        least = len(names) // len(ids)
        state: object = None
        try:
            async with asyncio.timeout(patience):
                while True:
                    fleet = await self.fleet()
                    state = {it.id: ([(n.name, n.state) for n in it.owned], it.ready) for it in fleet.values()}
                    up = {node.name: it.id for it in fleet.values() for node in it.owned if node.state == "UP"}
                    warm = [name for it in fleet.values() for name in it.ready]
                    if (
                        set(up) == names
                        and set(fleet) == set(ids)
                        and all(len(it.owned) >= least for it in fleet.values())
                        and (not standby or sorted(warm) == sorted(names))
                    ):
                        return up
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"the fleet did not settle: {state}\n{self.outputs()}") from None

    def outputs(self) -> str:
        return "\n".join(f"--- {it.id}\n{it.output[-3000:]}" for it in self.processes)

    async def quiet(self) -> None:
        """The nodes say nothing more, and what they said has arrived."""
        for switch in self.switches:
            await switch.hush()
            switch.traffic.stop()
        seen = -1
        while seen != len(self.events):
            seen = len(self.events)
            await asyncio.sleep(0.5)

    def check(self, *, since: float, lost: bool = False, duplicates: bool = False) -> dict[str, list[float]]:
        """Compare what was told with what arrived; returns when each missing event was told, by node.

        ``since`` is when all was well for the first time; ``lost`` and ``duplicates`` say what may be.
        """
        missing: dict[str, list[float]] = {}
        writers: dict[str, set[str]] = {}
        for number, switch in enumerate(self.switches, 1):
            node = f"fs{number}"
            arrived = [event for event in self.events if event.node == node and not event.synthetic]
            count = Counter(event.id for event in arrived)
            gone = [at for id, at in switch.told.items() if at >= since and id not in count]
            if gone:
                missing[node] = gone
            assert lost or not gone, f"{node}: {len(gone)} of {len(switch.told)} events are missing\n{self.outputs()}"
            twice = {id: times for id, times in count.items() if times > 1}
            assert duplicates or not twice, f"{node}: {len(twice)} events came twice\n{self.outputs()}"
            assert not set(count) - set(switch.told), f"{node}: events that it never told"
            first: dict[str, EventMessage] = {}
            for event in arrived:
                first.setdefault(event.id, event)
                writers.setdefault(event.epoch, set()).add(event.worker)
            order = [id for id in switch.told if id in first]
            assert [event.id for event in first.values() if event.id in switch.told] == order, f"{node}: out of order"
        assert all(len(workers) == 1 for workers in writers.values()), f"two workers under one epoch: {writers}"
        return missing


@pytest.fixture
async def arena(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Arena]:
    kind = getattr(request, "param", "nats")
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(EmbeddedBroker(kind))
        found = Arena(broker, tmp_path, stack)
        await found.open()
        yield found
