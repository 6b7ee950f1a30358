"""A real Valkey, buses that are closed after the test, and a proxy that can cut and hold connections."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import os
import secrets
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio

from bridge.bus.embedded import EmbeddedBroker, valkey_server_path
from bridge.bus.redis import RedisBus
from bridge.errors import BusUnavailable

StartValkey = Callable[..., Awaitable[EmbeddedBroker]]
OpenRedis = Callable[..., Awaitable[RedisBus]]


async def eventually(
    ask: Callable[[], Any], wanted: Callable[[Any], object] = lambda value: value, timeout: float = 15.0
) -> None:
    """Wait until what ``ask`` gives, or its awaitable gives, is ``wanted`` (true by default)."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    while True:
        value = ask()
        if inspect.isawaitable(value):
            value = await value
        if wanted(value):
            return
        assert loop.time() < deadline, f"the condition never came true; last seen: {value!r}"
        await asyncio.sleep(0.005)


@pytest.fixture(name="eventually")
def _eventually() -> Callable[..., Any]:
    return eventually


@pytest.fixture
async def start_valkey(valkey_server: EmbeddedBroker) -> AsyncIterator[StartValkey]:
    """Starts further servers; the session's one is asked for because it skips when the wheel is missing."""
    servers: list[EmbeddedBroker] = []

    async def start(config: str = "", **options: Any) -> EmbeddedBroker:
        server = EmbeddedBroker("redis", config=config, **options)
        servers.append(server)
        await server.start()
        return server

    yield start
    for server in servers:
        await server.stop()


@pytest.fixture
async def open_redis() -> AsyncIterator[OpenRedis]:
    """Opens buses and closes them."""
    buses: list[RedisBus] = []

    async def open_(url: str, *, connect: bool = True, **options: Any) -> RedisBus:
        bus = RedisBus(url, **options)
        buses.append(bus)
        if connect:
            await bus.connect(10)
        return bus

    yield open_
    for bus in buses:
        await bus.close()


@pytest.fixture
def queue() -> str:
    """A queue that no other test uses."""
    return f"t{secrets.token_hex(4)}.cmd"


@pytest.fixture
async def client(valkey_server: EmbeddedBroker) -> AsyncIterator[redis.asyncio.Redis]:
    """A plain client of the session's server, to look behind the bus."""
    async with redis.asyncio.from_url(valkey_server.url) as found:
        yield found


class Proxy:
    """Stands between a bus and its server: ``cut`` breaks all connections, ``hold`` keeps replies back."""

    def __init__(self, port: int, tls: ssl.SSLContext | None = None) -> None:
        self._port = port
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0
        self.open = asyncio.Event()
        self.open.set()
        self.held = 0
        self.accepted = 0
        self._stopped = False

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        self._stopped = True
        if self._server is not None:
            self._server.close()
        self.open.set()
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def hold(self) -> None:
        self.open.clear()

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            writer.transport.abort()
            return
        ends = {writer, upstream_writer}
        self._writers |= ends
        if self._stopped:
            self.cut()
        back = asyncio.create_task(self._pump(upstream_reader, writer, held=True))
        await self._pump(reader, upstream_writer, held=False)
        await back
        self._writers -= ends
        self._tasks.discard(task)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, held: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if held and not self.open.is_set():
                    self.held += len(data)
                    await self.open.wait()
                writer.write(data)
                await writer.drain()
        writer.transport.abort()


@pytest.fixture
async def proxy(valkey_server: EmbeddedBroker) -> AsyncIterator[Proxy]:
    """A proxy before the session's server."""
    found = Proxy(valkey_server.port)
    await found.start()
    yield found
    await found.stop()


@pytest.fixture
async def make_proxy() -> AsyncIterator[Callable[..., Awaitable[Proxy]]]:
    proxies: list[Proxy] = []

    async def make(port: int, tls: ssl.SSLContext | None = None) -> Proxy:
        found = Proxy(port, tls)
        proxies.append(found)
        await found.start()
        return found

    yield make
    for found in proxies:
        await found.stop()


async def ask(server: EmbeddedBroker, *command: Any) -> Any:
    async with redis.asyncio.Redis(port=server.port) as client:
        return await client.execute_command(*command)


@pytest.fixture
async def cluster(start_valkey: Any, eventually: Callable[..., Any]) -> list[EmbeddedBroker]:
    nodes: list[EmbeddedBroker] = []
    config = "cluster-enabled yes\ncluster-node-timeout 2000\ncluster-allow-replica-migration no"
    attempts = 0
    while len(nodes) < 3:
        port = free_port()
        # The cluster's own port lies 10,000 above the clients'; somebody else's connection may have it.
        if port < 55_000 and is_free(port + 10_000):
            attempts += 1
            try:
                nodes.append(await start_valkey(config, port=port))
            except BusUnavailable as error:
                if "Address already in use" not in str(error) or attempts > 10:
                    raise
    for number, node in enumerate(nodes):
        await ask(node, "CLUSTER ADDSLOTSRANGE", number * 5461, 16383 if number == 2 else number * 5461 + 5460)
        await ask(node, "CLUSTER SET-CONFIG-EPOCH", number + 1)
    for node in nodes[1:]:
        await ask(nodes[0], "CLUSTER MEET", "127.0.0.1", node.port)
    for node in nodes:
        await eventually(lambda node=node: ask(node, "CLUSTER INFO"), lambda info: info["cluster_state"] == "ok")
        await eventually(lambda node=node: ask(node, "CLUSTER SLOTS"), lambda slots: len(slots) == 3)
    return nodes


def url_of(nodes: list[EmbeddedBroker]) -> str:
    return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in nodes)


async def listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


@pytest.fixture
async def start_sentinel(tmp_path: Path, eventually: Callable[..., Any]) -> AsyncIterator[Any]:
    processes: list[asyncio.subprocess.Process] = []

    async def start(port: int, master: int, extra: str = "") -> None:
        folder = tmp_path / f"sentinel{port}"
        folder.mkdir()
        config = folder / "sentinel.conf"
        config.write_text(
            f'port {port}\nbind 127.0.0.1\ndir "{folder}"\nsentinel monitor main 127.0.0.1 {master} 1\n'
            f"sentinel down-after-milliseconds main 500\nsentinel failover-timeout main 2000\n{extra}\n"
        )
        # A server whose name ends so is a Sentinel.
        program = folder / "valkey-sentinel"
        os.symlink(valkey_server_path(), program)
        process = await asyncio.create_subprocess_exec(
            str(program), str(config), stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
        )
        processes.append(process)
        await eventually(functools.partial(listens, port))

    yield start
    for process in processes:
        process.kill()
        await process.wait()


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
