"""A nats-server of the test's own, with the configuration that it needs."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from bridge.bus.embedded import EmbeddedBroker
from bridge.bus.nats import NatsBus

StartNats = Callable[..., Awaitable[EmbeddedBroker]]
OpenNats = Callable[..., Awaitable[NatsBus]]


@pytest.fixture
async def start_nats(nats_server: EmbeddedBroker) -> AsyncIterator[StartNats]:
    """Starts further servers; the session's one is asked for because it skips when the wheel is missing."""
    servers: list[EmbeddedBroker] = []

    async def start(config: str = "", **options: Any) -> EmbeddedBroker:
        server = EmbeddedBroker("nats", config=config, **options)
        servers.append(server)
        await server.start()
        return server

    yield start
    for server in servers:
        await server.stop()


@pytest.fixture
async def open_nats() -> AsyncIterator[OpenNats]:
    """Opens buses and closes them."""
    buses: list[NatsBus] = []

    async def open_(url: str, *, connect: bool = True, **options: Any) -> NatsBus:
        bus = NatsBus(url, **options)
        buses.append(bus)
        if connect:
            await bus.connect(10)
        return bus

    yield open_
    for bus in buses:
        await bus.close()


async def eventually(condition: Callable[[], object], timeout: float = 10.0) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    while not condition():
        assert loop.time() < deadline, "the condition never came true"
        await asyncio.sleep(0.005)


@pytest.fixture(name="eventually")
def _eventually() -> Callable[..., Any]:
    return eventually


def stopped(pid: int) -> bool:
    return b") T " in Path(f"/proc/{pid}/stat").read_bytes()


@pytest.fixture
def freeze() -> Callable[[EmbeddedBroker], Awaitable[None]]:
    """Stop a server's process and return when it has stopped (the signal takes a moment)."""
    if sys.platform != "linux":
        pytest.skip("looks at /proc")

    async def freeze_(server: EmbeddedBroker) -> None:
        server.pause()
        await eventually(lambda: stopped(server.pid))

    return freeze_
