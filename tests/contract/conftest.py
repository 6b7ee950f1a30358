"""The buses that the contract suite runs over. A new bus is one entry in ``STATIONS``."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import secrets
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import pytest

from bridge.bus.base import Bus
from bridge.bus.memory import MemoryBus
from bridge.bus.open import open_bus


class Station:
    """One bus under test: how to open it, what it can tell, and names that no other test uses."""

    kind = ""
    tells_no_consumer = True
    """Whether a request that nobody can take raises ``NoConsumer``."""
    absent_url = ""
    """A URL of this kind where nobody listens."""
    options: Mapping[str, Any] = {}
    """What ``open_bus`` gets besides."""
    one_of_many = False
    """Whether queues share a connection."""
    forgets_closed_readers = True
    """False where a blocked read of a closed connection still takes an entry (fakeredis)."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.prefix = f"esltest{secrets.token_hex(4)}"
        self.queue = f"{self.prefix}.cmd"
        self.dead = f"{self.prefix}.dead"
        self._buses: list[Bus] = []

    def new(self, url: str = "") -> Bus:
        """A bus that is not connected yet."""
        own = {"name": self.prefix, "dead_letters": self.dead, "worker": secrets.token_hex(4)}
        bus = open_bus(url or self.url, **own, **self.options)
        if self.one_of_many:
            bus.consume = functools.partial(bus.consume, one_of_many=True)  # type: ignore[method-assign]
        self._buses.append(bus)
        return bus

    async def open(self) -> Bus:
        """A connected bus."""
        bus = self.new()
        await bus.connect(10)
        return bus

    async def prepare(self) -> None:
        """Before the test."""

    async def dead_letters(self) -> list[bytes]:
        """Payloads of the dead letters so far."""
        raise NotImplementedError

    async def clean(self) -> None:
        """After the test: nothing of ours stays at the broker."""

    async def finish(self) -> None:
        for bus in self._buses:
            await bus.close()
        await self.clean()


class MemoryStation(Station):
    kind = "memory"

    def __init__(self) -> None:
        super().__init__(f"memory://{secrets.token_hex(4)}")

    def new(self, url: str = "") -> Bus:
        bus = super().new(url)
        if url:
            assert isinstance(bus, MemoryBus)
            bus.broker.stop()
        return bus

    absent_url = "memory://absent"

    async def dead_letters(self) -> list[bytes]:
        bus = self._buses[0]
        assert isinstance(bus, MemoryBus)
        return [payload for _queue, payload, _reason in bus.broker.dead]


class NatsStation(Station):
    kind = "nats"
    absent_url = "nats://127.0.0.1:1"

    async def prepare(self) -> None:
        self._dead: list[bytes] = []
        watcher = await self.open()
        await watcher.subscribe(self.dead, lambda received: self._dead.append(received.payload))

    async def dead_letters(self) -> list[bytes]:
        return self._dead

    async def clean(self) -> None:
        import nats
        from nats.js.errors import NotFoundError

        client = await nats.connect(self.url)
        with contextlib.suppress(NotFoundError):
            await client.jetstream().delete_stream(self.prefix)
        await client.close()


class RedisStation(Station):
    kind = "redis"
    tells_no_consumer = False
    absent_url = "redis://127.0.0.1:1"

    def client(self) -> Any:
        import redis.asyncio

        return redis.asyncio.from_url(self.url)

    async def dead_letters(self) -> list[bytes]:
        client = self.client()
        try:
            entries = await client.xrange(self.dead)
        finally:
            await client.aclose()
        return [fields[b"data"] for _id, fields in entries]

    async def clean(self) -> None:
        client = self.client()
        try:
            for pattern in (f"{self.prefix}*", f"{{{self.prefix}*"):
                keys = [key async for key in client.scan_iter(pattern)]
                if keys:
                    await client.delete(*keys)
        finally:
            await client.aclose()


@contextlib.contextmanager
def fake_redis() -> Any:
    """fakeredis behind a TCP port, so that the bus's own driver and connections are what is tested."""
    from fakeredis import TcpFakeServer

    server = TcpFakeServer(("127.0.0.1", 0), server_type="redis")
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"redis://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


Stations = Callable[[pytest.FixtureRequest], AsyncIterator[Station]]


async def memory_station(request: pytest.FixtureRequest) -> AsyncIterator[Station]:
    yield MemoryStation()


async def nats_station(request: pytest.FixtureRequest) -> AsyncIterator[Station]:
    yield NatsStation(request.getfixturevalue("nats_server").url)


async def valkey_station(request: pytest.FixtureRequest) -> AsyncIterator[Station]:
    yield RedisStation(request.getfixturevalue("valkey_server").url)


async def valkey_list_station(request: pytest.FixtureRequest) -> AsyncIterator[Station]:
    found = RedisStation(request.getfixturevalue("valkey_server").url)
    found.options = {"queue_type": "list"}
    yield found


async def valkey_shared_station(request: pytest.FixtureRequest) -> AsyncIterator[Station]:
    found = RedisStation(request.getfixturevalue("valkey_server").url)
    found.one_of_many = True
    yield found


async def valkey_list_shared_station(request: pytest.FixtureRequest) -> AsyncIterator[Station]:
    found = RedisStation(request.getfixturevalue("valkey_server").url)
    found.options = {"queue_type": "list"}
    found.one_of_many = True
    yield found


async def fake_redis_station(request: pytest.FixtureRequest) -> AsyncIterator[Station]:
    with fake_redis() as url:
        found = RedisStation(url)
        found.forgets_closed_readers = False
        yield found


async def machine_nats_station(request: pytest.FixtureRequest) -> AsyncIterator[Station]:
    yield NatsStation(os.environ["ESL_BRIDGE_TEST_NATS_URL"])


async def machine_redis_station(request: pytest.FixtureRequest) -> AsyncIterator[Station]:
    yield RedisStation(os.environ["ESL_BRIDGE_TEST_REDIS_URL"])


STATIONS: dict[str, Stations] = {
    "memory": memory_station,
    "nats": nats_station,
    "valkey": valkey_station,
    "valkey-list": valkey_list_station,
    "valkey-shared": valkey_shared_station,
    "valkey-list-shared": valkey_list_shared_station,
    "fakeredis": fake_redis_station,
}
if os.environ.get("ESL_BRIDGE_TEST_NATS_URL"):
    STATIONS["machine-nats"] = machine_nats_station
if os.environ.get("ESL_BRIDGE_TEST_REDIS_URL"):
    STATIONS["machine-redis"] = machine_redis_station


@pytest.fixture(params=sorted(STATIONS))
async def station(request: pytest.FixtureRequest) -> AsyncIterator[Station]:
    """Every bus in turn."""
    async for found in STATIONS[request.param](request):
        await found.prepare()
        yield found
        await found.finish()


async def eventually(condition: Callable[[], object], timeout: float = 10.0) -> None:
    """Wait for a condition; fail when it does not come true in time."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    while not condition():
        assert loop.time() < deadline, "the condition never came true"
        await asyncio.sleep(0.005)


@pytest.fixture(name="eventually")
def _eventually() -> Callable[..., Any]:
    return eventually
