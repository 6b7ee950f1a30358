"""What operators do to a living broker while events flow: rights, limits and streams are changed under the bridge."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import nats
import nats.js.errors
import pytest
import redis.asyncio

from bridge.bus.embedded import EmbeddedBroker
from bridge.bus.nats import keeper
from bridge.simulator import SimulatedSwitch
from tests.integration.conftest import House
from tests.integration.test_event_delivery import FLEET, buffers, numbers, stored

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


async def test_a_limit_of_the_stream_that_is_lowered_holds_nothing_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Events over it went one by one, five a second, each with a line in the log; and the others behind them."""
    monkeypatch.setattr("bridge.bus.nats.pipeline._ASK_AGAIN", 0.0)
    async with nats_house(tmp_path) as house:
        mine = await nats.connect(house.broker.url)
        house.stack.push_async_callback(mine.close)
        js = mine.jetstream()
        switch = await house.switch(heartbeat_interval=20.0)
        worker = await house.worker(switch, events={"delivery": "durable"}, fleet=FLEET)
        totals = worker.metrics.totals

        async def limited(size: int) -> None:
            config = (await js.stream_info("FS_EVENTS")).config
            config.max_msg_size = size
            await js.update_stream(config)

        fire(switch, 0, 10)
        await house.until(lambda: totals["events_published"] >= 10)
        await limited(5_000)
        for number in range(10, 1_010):
            switch.fire("CUSTOM", {"number": str(number), "filling": "x" * (number % 2 * 6_000)}, subclass="kept")
            if number % 20 == 0:
                await asyncio.sleep(0.01)
        await house.until(lambda: totals["events_received"] >= 1_010)
        await house.until(lambda: not any(one.events or one.in_flight for one in buffers(worker)), 20)
        assert totals["events_dropped"] == 500
        assert caplog.text.count("over a limit") == 1
        await limited(-1)
        fire(switch, 1_010, 1_020, filling="x" * 6_000)
        await house.until(lambda: totals["events_received"] >= 1_020)
        await house.until(lambda: not any(one.events or one.in_flight for one in buffers(worker)))
        kept = [number for number in range(1_020) if number < 10 or number % 2 == 0 or number >= 1_010]
        assert numbers(await stored(house.broker, "FS_EVENTS"), "kept") == kept


async def test_a_lower_limit_of_the_server_is_not_told_for_every_event(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with nats_house(tmp_path) as house:
        switch = await house.switch(heartbeat_interval=20.0)
        worker = await house.worker(switch, fleet=FLEET)
        totals = worker.metrics.totals
        fire(switch, 0, 10)
        await house.until(lambda: totals["events_published"] >= 10)
        await reload(house.broker, "max_payload: 5000\n")
        for number in range(10, 500):
            fire(switch, number, number + 1, filling="x" * 6_000)
            if number % 20 == 0:
                await asyncio.sleep(0.01)
        await house.until(lambda: totals["events_dropped"] >= 490)
        fire(switch, 500, 510)
        await house.until(lambda: totals["events_published"] >= 20)
        assert totals["events_received"] == totals["events_published"] + totals["events_dropped"]
        assert caplog.text.count("over the bus's limit") == 1
        assert caplog.text.count("over a limit") <= 1  # of those that waited when it was lowered


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"subjects": ["other.>"]}, "captures other.>, not all of fs.events.>"),
        ({"no_ack": True}, "no_ack"),
    ],
)
async def test_a_stream_that_cannot_confirm_is_named_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, change: dict[str, Any], told: str
) -> None:
    monkeypatch.setattr("bridge.bus.nats.pipeline.ACK_TIMEOUT", 0.3)
    monkeypatch.setattr("bridge.relay.stream_outlet.REFUSED_DELAY", 0.1)
    async with nats_house(tmp_path) as house:
        mine = await nats.connect(house.broker.url)
        house.stack.push_async_callback(mine.close)
        js = mine.jetstream()

        async def hear(_message: Any) -> None:
            """Somebody listens: the server does not say that no stream has the topic."""

        await mine.subscribe("fs.events.>", cb=hear)
        switch = await house.switch(heartbeat_interval=20.0)
        worker = await house.worker(switch, events={"delivery": "durable"}, fleet=FLEET)
        fire(switch, 0, 10)
        await house.until(lambda: worker.metrics.totals["events_published"] >= 10)
        before = (await js.stream_info("FS_EVENTS")).config
        await js.update_stream(before.evolve(**change))
        fire(switch, 10, 100)
        await house.until(lambda: told in caplog.text)
        await house.until(lambda: "topic=fs.events.CUSTOM:kept" in caplog.text)
        assert sum(one.events + one.in_flight for one in buffers(worker)) == 90
        await js.update_stream(before)
        await house.until(lambda: not any(one.events or one.in_flight for one in buffers(worker)))
        assert numbers(await stored(house.broker, "FS_EVENTS"), "kept") == list(range(100))
        assert caplog.text.count("appending broke off") + caplog.text.count("is not to be had") <= 3


@pytest.mark.parametrize("delivery", ["pubsub", "durable"])
async def test_a_limit_of_the_server_that_is_raised_is_noticed_while_events_are_over_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, delivery: str
) -> None:
    """The server tells it to new connections only."""
    monkeypatch.setattr("bridge.bus.nats.bus.LOOK_AGAIN", 0.05)
    async with nats_house(tmp_path, "max_payload: 5000\n") as house:
        switch = await house.switch(heartbeat_interval=20.0)
        worker = await house.worker(switch, events={"delivery": delivery}, fleet=FLEET)
        totals = worker.metrics.totals
        fire(switch, 0, 10, filling="x" * 6_000)
        await house.until(lambda: totals["events_dropped"] >= 10)
        connected = worker.bus._keeper.link  # type: ignore[attr-defined]
        await reload(house.broker, "max_payload: 50000\n")
        number = 10
        while not totals["events_published"]:
            fire(switch, number, number + 1, filling="x" * 6_000)
            number += 1
            await house.until(lambda number=number: totals["events_received"] >= number)
        await house.until(lambda: not any(one.events or one.in_flight for one in buffers(worker)))
        assert totals["events_received"] == totals["events_published"] + totals["events_dropped"]
        assert worker.bus._keeper.link is connected  # type: ignore[attr-defined]


async def test_an_event_that_the_broker_breaks_off_at_is_named(
    valkey_server: EmbeddedBroker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Redis ends a connection that says more than ``proto-max-bulk-len``, and often nobody hears why."""
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(EmbeddedBroker("redis"))
        house = House(broker, tmp_path, stack)
        switch = await house.switch(heartbeat_interval=20.0)
        worker = await house.worker(switch, events={"delivery": "durable"}, fleet=FLEET)
        fire(switch, 0, 10)
        await house.until(lambda: worker.metrics.totals["events_published"] >= 10)
        async with redis.asyncio.Redis(port=broker.port) as client:
            await client.config_set("proto-max-bulk-len", 1 << 20)
            fire(switch, 10, 11, filling="x" * 1_500_000)
            fire(switch, 11, 20)
            await house.until(lambda: "breaks each time that the same event is sent" in caplog.text)
            assert "size=1500" in caplog.text
            await client.config_set("proto-max-bulk-len", 512 << 20)
        await house.until(lambda: not any(one.events or one.in_flight for one in buffers(worker)))
        assert numbers(await stored(broker, "fs.events"), "kept") == list(range(20))
        assert caplog.text.count("breaks each time") == 1


async def test_a_bucket_of_the_fleet_that_was_deleted_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The worker listens to the table that it writes to: the server does not say that no bucket has it."""
    monkeypatch.setattr("bridge.bus.nats.buckets.TIMEOUT", 0.3)
    caplog.set_level("INFO")
    async with nats_house(tmp_path) as house:
        mine = await nats.connect(house.broker.url)
        house.stack.push_async_callback(mine.close)
        js = mine.jetstream()
        switch = await house.switch(heartbeat_interval=20.0)
        worker = await house.worker(switch, fleet=SHORT)
        for name in ("leases", "kept", "workers", "nodes"):
            with contextlib.suppress(nats.js.errors.NotFoundError):
                await js.delete_stream(f"KV_esl-bridge-{name}")
        await house.until(lambda: "the fleet's storage is away" in caplog.text)
        await house.until(lambda: "the fleet's storage is back" in caplog.text)
        fire(switch, 0, 10)
        await house.until(lambda: worker.metrics.totals["events_published"] >= 10)
        for name in ("leases", "kept", "workers"):
            assert (await js.stream_info(f"KV_esl-bridge-{name}")).state.messages
