"""A broker that takes in megabytes of events and replies slowly costs no healthy worker its leases."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import pytest
from nats import connect

from bridge.bus.base import Bus, Message, StreamSpec
from bridge.bus.embedded import EmbeddedBroker
from bridge.bus.nats import NatsBus, link, pipeline
from bridge.bus.open import open_bus
from bridge.bus.storage import Grant
from bridge.errors import BusError

pytestmark = pytest.mark.broker

ENOUGH = 256 * 1024
"""Bytes after which a connection is stuck."""


class Bottleneck:
    """A proxy in which a connection that has carried much to the broker gets stuck, until ``open``."""

    def __init__(self, url: str) -> None:
        self.stuck = 0
        self.open = asyncio.Event()
        self._target = urlsplit(url)
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"{self._target.scheme}://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        self.open.set()
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(writer.wait_closed() for writer in self._writers), return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        there, broker = await asyncio.open_connection("127.0.0.1", self._target.port)
        self._writers += [writer, broker]
        back = asyncio.create_task(self._pump(there, writer))
        self._tasks.add(back)
        with contextlib.suppress(OSError):
            await self._pass(reader, broker)
        broker.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, broker: asyncio.StreamWriter) -> None:
        carried = 0
        while data := await reader.read(65536):
            carried += len(data)
            if carried > ENOUGH and not self.open.is_set():
                self.stuck += 1
                await self.open.wait()
            broker.write(data)
            await broker.drain()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
        writer.transport.abort()


@pytest.fixture(params=["nats", "redis"])
def bottleneck(request: pytest.FixtureRequest) -> Bottleneck:
    server: EmbeddedBroker = request.getfixturevalue("nats_server" if request.param == "nats" else "valkey_server")
    return Bottleneck(server.url)


@pytest.fixture
async def bus(bottleneck: Bottleneck) -> AsyncIterator[Bus]:
    found = open_bus(await bottleneck.start(), name="slow", worker="slow")
    await found.connect(10)
    yield found
    bottleneck.open.set()
    await found.close()
    await bottleneck.stop()


async def publish_for_ever(bus: Bus, name: str) -> None:
    batch = [Message(f"slow.{name}", b"x" * 32768) for _ in range(4)]
    with contextlib.suppress(BusError):
        while True:
            await bus.publish_many(batch)
            await asyncio.sleep(0)


async def test_a_lease_is_renewed_beside_megabytes_that_do_not_get_through(bus: Bus, bottleneck: Bottleneck) -> None:
    name = secrets.token_hex(4)
    ttl = await bus.storage.open(30.0)
    grant = await bus.storage.acquire(f"node.{name}", "me", ttl)
    assert isinstance(grant, Grant)
    publishing = asyncio.create_task(publish_for_ever(bus, name))
    for number in range(200):
        bus.send(f"esl.reply.slow.{name}.{number}", b"y" * 32768, "application/json")
    # Events and replies share a connection on NATS, and have one each on Redis.
    while bottleneck.stuck < (1 if bus.url.startswith("nats") else 2):  # noqa: ASYNC110 - it is the proxy that gets stuck
        await asyncio.sleep(0.01)
    for _ in range(3):
        assert await bus.storage.renew(f"node.{name}", grant.token, ttl, b"mark")
        await bus.storage.put("workers", name, b"here", ttl)
        assert name in await bus.storage.entries("workers")
    assert not publishing.done()
    bottleneck.open.set()
    await bus.storage.release(f"node.{name}", grant.token)
    await bus.storage.remove("workers", name)
    publishing.cancel()
    await asyncio.gather(publishing, return_exceptions=True)


class Trickle(Bottleneck):
    """A proxy that passes some hundred KB/s to the broker."""

    async def _pass(self, reader: asyncio.StreamReader, broker: asyncio.StreamWriter) -> None:
        while data := await reader.read(4096):
            broker.write(data)
            await asyncio.sleep(0.01)


async def test_a_way_that_is_only_slow_is_not_lost(
    nats_server: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers come late, and they come: nothing is in doubt, nothing is sent again."""
    monkeypatch.setattr(link, "PING_INTERVAL", 0.3)
    monkeypatch.setattr(link, "CONFIRM_BYTES", 16 * 1024)
    monkeypatch.setattr(pipeline, "ACK_TIMEOUT", 0.3)
    road = Trickle(nats_server.url)
    bus = NatsBus(await road.start())
    name = f"slow{secrets.token_hex(4)}"
    stream = StreamSpec(name=name, key=name, topics=(f"{name}.kept.>",))
    broken: list[str] = []
    bus.on_broken = lambda: broken.append("broken")
    try:
        await bus.connect(10)
        await bus.ensure_stream(stream)
        for _ in range(25):
            number = await bus.publish_many([Message(f"{name}.passed", b"x" * 8192) for _ in range(2)])
        appender = bus.appender(stream, lambda: None)
        await appender.append([Message(f"{name}.kept.a", b"y" * 8192, id=f"{name}{one}") for one in range(25)])
        async with asyncio.timeout(20):
            while appender.confirmed < 25 and not appender.failure:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert (appender.confirmed, appender.failure) == (25, "")
        assert bus.confirmed >= number
        assert not broken
    finally:
        await bus.close()
        await road.stop()
        nats = await connect(nats_server.url)
        await nats.jetstream().delete_stream(name)
        await nats.close()
