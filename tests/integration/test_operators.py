"""What operators do to a living broker while events flow: rights, limits and streams are changed under the bridge."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import nats
import pytest

from bridge.bus.embedded import EmbeddedBroker
from bridge.bus.nats import keeper
from bridge.simulator import SimulatedSwitch
from tests.integration.conftest import House

SHORT = {"lease_time": 2.0}


def users(denied: str = "") -> str:
    """Two users: the bridge's, who may not listen to ``denied``, and one for the test."""
    rights = f", permissions: {{ subscribe: {{ deny: [{denied}] }} }}" if denied else ""
    return f"authorization {{ users = [ {{ user: u, password: p{rights} }}, {{ user: admin, password: p }} ] }}\n"


async def reload(broker: EmbeddedBroker, config: str) -> None:
    """Give a nats-server another configuration, as its operator would; returns when it is in force."""
    assert broker._folder is not None
    broker._config = config
    (broker._folder / "server.conf").write_text(broker._nats_config(broker._folder))
    broker._output.clear()
    os.kill(broker.pid, signal.SIGHUP)
    async with asyncio.timeout(10):
        while not any("Reloaded server configuration" in line for line in broker._output):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@asynccontextmanager
async def nats_house(folder: Path, config: str = "") -> AsyncIterator[House]:
    async with AsyncExitStack() as stack:
        broker = EmbeddedBroker("nats", config=config, folder=folder)
        await stack.enter_async_context(broker)
        yield House(broker, folder, stack)


def fire(switch: SimulatedSwitch, start: int, end: int, **headers: str) -> None:
    for number in range(start, end):
        switch.fire("CUSTOM", {"number": str(number), **headers}, subclass="kept")


async def test_rights_to_listen_that_were_taken_away_are_used_again_when_they_are_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A server removes such subscriptions for good: its inboxes were deaf, and its queues, until the link broke."""
    monkeypatch.setattr(keeper, "BACKOFF_REFUSED", 0.2)
    async with nats_house(tmp_path, users()) as house:
        url = house.broker.url
        switch = await house.switch(heartbeat_interval=20.0)
        mine = await nats.connect(url.replace("//", "//admin:p@"))
        house.stack.push_async_callback(mine.close)
        heard: list[Any] = []

        async def hear(message: Any) -> None:
            heard.append(message)

        await mine.subscribe("fs.events.CUSTOM:kept", cb=hear)
        await mine.flush()
        worker = await house.worker(switch, bus={"url": url.replace("//", "//u:p@")}, fleet=SHORT)
        fire(switch, 0, 10)
        await house.until(lambda: len(heard) == 10)
        await reload(house.broker, users('"_INBOX.>", "esl.>"'))
        await house.until(lambda: "the bus refuses something" in caplog.text and "esl.cmd" in caplog.text)
        await house.until(lambda: "the fleet's storage is away" in caplog.text)
        fire(switch, 10, 20)
        with pytest.raises(nats.errors.NoRespondersError):
            await mine.request("esl.cmd", b'{"command": "status"}', timeout=5)
        connected = worker.bus._keeper.link  # type: ignore[attr-defined]
        await reload(house.broker, users())
        await house.until(lambda: len(heard) == 20)
        assert b'"ok"' in (await mine.request("esl.cmd", b'{"command": "status"}', timeout=10)).data
        assert worker.bus._keeper.link is connected  # type: ignore[attr-defined]
        assert worker.metrics.totals["events_dropped"] == 0
