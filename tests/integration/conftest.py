"""A whole bridge in one process: simulated FreeSWITCH, real broker, worker, client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from bridge.bus.embedded import EmbeddedBroker
from bridge.client import Bridge
from bridge.config import Settings
from bridge.simulator import SimulatedSwitch
from bridge.worker import Worker

PATIENCE = 30.0


async def until(condition: Callable[[], Any], patience: float = PATIENCE) -> None:
    """Wait for a condition; the test fails when it does not come."""
    async with asyncio.timeout(patience):
        while not condition():  # noqa: ASYNC110 - the condition is anybody's state
            await asyncio.sleep(0.01)


class House:
    """One bus, its workers and nodes; everything it opened it closes."""

    def __init__(self, broker: EmbeddedBroker, folder: Path, stack: AsyncExitStack) -> None:
        self.broker = broker
        self.folder = folder
        self.until = until
        self.stack = stack

    async def switch(self, **options: Any) -> SimulatedSwitch:
        switch = SimulatedSwitch(**{"heartbeat_interval": 0.5, **options})
        await switch.start()
        self.stack.push_async_callback(switch.stop)
        return switch

    def settings(self, *switches: SimulatedSwitch, **sections: dict[str, Any]) -> Settings:
        values: dict[str, Any] = {
            "worker": {"state_dir": str(self.folder), "drain_timeout": 10.0},
            "bus": {"url": self.broker.url},
            "http": {"listen": ""},
            "node": [{"name": f"fs{number}", "url": one.url} for number, one in enumerate(switches, 1)],
        }
        for name, section in sections.items():
            if name == "node":
                for node in values["node"]:
                    node.update(section)
            else:
                values[name] = {**values.get(name, {}), **section}
        return Settings.model_validate(values)

    async def worker(self, *switches: SimulatedSwitch, ready: bool = True, **sections: dict[str, Any]) -> Worker:
        """A started worker; with ``ready`` it already serves."""
        worker = Worker(self.settings(*switches, **sections))
        await worker.start()
        self.stack.push_async_callback(worker.stop)
        if ready:
            await until(lambda: worker.ready[0] and len(worker.nodes.serving()) == len(switches))
        return worker

    async def client(self, **options: Any) -> Bridge:
        return await self.stack.enter_async_context(Bridge(self.broker.url, **options))


@asynccontextmanager
async def working(house: House, *nodes: dict[str, Any]) -> AsyncIterator[Worker]:
    """A worker with these ``[[node]]`` tables."""
    values = house.settings().model_dump(by_alias=True, mode="python", include={"worker"})
    settings = Settings.model_validate(
        {"worker": values["worker"], "bus": {"url": house.broker.url}, "http": {"listen": ""}, "node": list(nodes)}
    )
    worker = Worker(settings)
    await worker.start()
    try:
        yield worker
    finally:
        await worker.stop()


@pytest.fixture(params=["nats", "redis"])
async def house(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[House]:
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(EmbeddedBroker(request.param))
        yield House(broker, tmp_path, stack)


Start = Callable[..., Awaitable[Worker]]
