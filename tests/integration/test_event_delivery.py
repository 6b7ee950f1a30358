"""Durable deliveries on real brokers: brokers die and come back, workers restart; nothing is lost, all in order."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import urllib.request
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import nats
import nats.js.errors
import pytest
import redis.asyncio
from nats.js.api import AckPolicy, ConsumerConfig
from structlog.testing import capture_logs

from bridge.bus.base import StreamSpec
from bridge.bus.embedded import EmbeddedBroker
from bridge.relay import stream_outlet
from bridge.simulator import SimulatedSwitch
from bridge.worker import Worker
from tests.integration.conftest import House

# The bus is away for longer than a lease would last: this is about events, not about who owns the node.
FLEET = {"lease_time": 60.0}
# A worker that restarts waits until the lease of its name, which an absent broker could not take back, has run out.
SHORT = {"lease_time": 4.0}


async def stored(broker: EmbeddedBroker, name: str) -> list[dict[str, Any]]:
    """The events of a stream, in its order, as an independent reader sees them."""
    if broker.kind == "redis":
        async with redis.asyncio.Redis(port=broker.port) as client:
            return [json.loads(fields[b"data"]) for _, fields in await client.xrange(name)]
    client = await nats.connect(broker.url)
    try:
        jetstream = client.jetstream()
        info = await jetstream.stream_info(name)
        reading = ConsumerConfig(ack_policy=AckPolicy.NONE)
        subscription = await jetstream.pull_subscribe("", stream=name, config=reading)
        messages: list[dict[str, Any]] = []
        while len(messages) < info.state.messages:
            messages += [json.loads(one.data) for one in await subscription.fetch(500, timeout=5)]
        return messages
    finally:
        await client.close()


def numbers(events: list[dict[str, Any]], subclass: str) -> list[int]:
    found = [int(one["data"]["number"]) for one in events if one["data"].get("Event-Subclass") == subclass]
    return list(dict.fromkeys(found))


def stream_of(house: House) -> str:
    return "FS_EVENTS" if house.broker.kind == "nats" else "fs.events"


def buffers(worker: Worker) -> list[Any]:
    return list(worker.publisher._buffers.values())


@pytest.mark.parametrize("delivery", ["durable", "both"])
async def test_a_broker_that_dies_and_comes_back_costs_a_durable_delivery_nothing(house: House, delivery: str) -> None:
    switch = await house.switch(heartbeat_interval=20.0)
    worker = await house.worker(switch, events={"delivery": delivery}, fleet=FLEET)
    for number in range(600):
        switch.fire("CUSTOM", {"number": str(number)}, subclass="kept")
        if number == 200:
            await house.until(lambda: worker.metrics.totals["events_published"] > 100)
            await house.broker.kill()
        if number % 10 == 0:
            await asyncio.sleep(0)
    await house.until(lambda: not worker.bus.connected)
    await house.until(lambda: sum(one.events + one.in_flight for one in buffers(worker)) > 100)
    await house.broker.start()
    await house.until(lambda: not any(one.events or one.in_flight for one in buffers(worker)))
    events = await stored(house.broker, stream_of(house))
    assert numbers(events, "kept") == list(range(600))


async def test_a_broker_without_its_jetstream_for_a_while_costs_a_durable_delivery_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Restarted with another configuration: events wait, which is said once, and the worker goes on trying."""
    monkeypatch.setattr(stream_outlet, "REFUSED_DELAY", 0.02)
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(EmbeddedBroker("nats"))
        house = House(broker, tmp_path, stack)
        switch = await house.switch(heartbeat_interval=20.0)
        worker = await house.worker(switch, events={"delivery": "durable"}, fleet=FLEET)
        switch.fire("CUSTOM", {"number": "0"}, subclass="kept")
        await house.until(lambda: worker.metrics.totals["events_published"])
        usual = broker._nats_config
        asked = Counter[str]()
        ensure = worker.bus.ensure_stream  # type: ignore[attr-defined]

        async def count(stream: StreamSpec) -> None:
            asked[stream.name] += 1
            await ensure(stream)

        monkeypatch.setattr(worker.bus, "ensure_stream", count)
        with capture_logs() as logs:
            await broker.kill()
            monkeypatch.setattr(broker, "_nats_config", lambda folder: f'host: "127.0.0.1"\nport: {broker.port}\n')
            await broker.start()
            for number in range(1, 100):
                switch.fire("CUSTOM", {"number": str(number)}, subclass="kept")
            await house.until(lambda: asked["FS_EVENTS"] > 5)
            await broker.kill()
            monkeypatch.setattr(broker, "_nats_config", usual)
            await broker.start()
            await house.until(lambda: not any(one.events or one.in_flight for one in buffers(worker)))
        assert numbers(await stored(broker, "FS_EVENTS"), "kept") == list(range(100))
        assert [one["event"] for one in logs if one["log_level"] == "error"] == [
            "a stream is not to be had; its events wait"
        ]


async def test_a_broker_that_is_full_for_a_while_costs_a_durable_delivery_nothing(house: House) -> None:
    """JetStream over its limit with ``discard: new``, Redis out of memory: events of any size, all there, in order."""
    switch = await house.switch(heartbeat_interval=20.0)
    full = await Fullness.of(house)
    worker = await house.worker(switch, events={"delivery": "durable"}, fleet=FLEET)
    for number in range(600):
        if number == 200:
            await house.until(lambda: worker.metrics.totals["events_published"] > 100)
            await full.begin()
        switch.fire("CUSTOM", {"number": str(number), "filling": "x" * (number % 7 * 500)}, subclass="kept")
        if number % 10 == 0:
            await asyncio.sleep(0)
    await house.until(lambda: worker.metrics.totals["events_received"] >= 600)
    await house.until(lambda: sum(one.events for one in buffers(worker)) > 100)
    assert worker.bus.connected
    await full.end()
    await house.until(lambda: not any(one.events or one.in_flight for one in buffers(worker)))
    events = await stored(house.broker, stream_of(house))
    assert [int(one["data"]["number"]) for one in events if one["data"].get("Event-Subclass") == "kept"] == list(
        range(600)
    )
    assert worker.metrics.totals["events_dropped"] == 0


ACCOUNT = """
accounts {
  A { jetstream { max_file: 2M }, users = [ { user: u, password: p } ] }
  SYS { users = [ { user: sys, password: p } ] }
}
system_account: SYS
no_auth_user: u
"""


@pytest.mark.parametrize("lease_time", [60.0, 1.0])
async def test_an_account_that_is_full_for_a_while_costs_a_durable_delivery_nothing(
    tmp_path: Path, lease_time: float
) -> None:
    """What others store fills it, and goes again: events of any size, all there, once, in order.

    An account that is full takes no renewal of a lease either.
    """
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(EmbeddedBroker("nats", config=ACCOUNT))
        house = House(broker, tmp_path, stack)
        nc = await nats.connect(broker.url)
        stack.push_async_callback(nc.close)
        js = nc.jetstream()
        await js.add_stream(name="FS_EVENTS", subjects=["fs.events.>"])
        await js.add_stream(name="OTHER", subjects=["other"])
        switch = await house.switch(heartbeat_interval=20.0)
        worker = await house.worker(switch, events={"delivery": "durable"}, fleet={"lease_time": lease_time})

        def fire(start: int, end: int) -> None:
            for number in range(start, end):
                filling = "x" * (number % 7 * 500)
                switch.fire("CUSTOM", {"number": str(number), "filling": filling}, subclass="kept")

        for turn in range(3):
            fire(turn * 200, turn * 200 + 50)
            await house.until(lambda: not any(one.events or one.in_flight for one in buffers(worker)))
            full = False
            while not full:
                try:
                    await js.publish("other", b"x" * 10_000)
                except nats.js.errors.APIError:
                    full = True
            fire(turn * 200 + 50, turn * 200 + 200)
            await house.until(lambda turn=turn: worker.metrics.totals["events_received"] >= turn * 200 + 200)
            await house.until(lambda: sum(one.events + one.in_flight for one in buffers(worker)) > 50)
            await asyncio.sleep(2 * min(lease_time, 1.0))  # longer than a lease lasts where it is short
            await js.purge_stream("OTHER")
            await house.until(lambda: not any(one.events or one.in_flight for one in buffers(worker)))
        events = await stored(broker, "FS_EVENTS")
        kept = [int(one["data"]["number"]) for one in events if one["data"].get("Event-Subclass") == "kept"]
        assert kept == list(range(600))
        assert worker.metrics.totals["events_dropped"] == 0
        assert not worker.failed.done()


async def test_order_that_a_broker_breaks_is_told_and_nothing_is_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that has too much to do refuses some of what is on its way, and that cannot be foreseen."""
    config = f'jetstream {{ store_dir: "{tmp_path}/jetstream", max_buffered_size: 4K }}'
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(EmbeddedBroker("nats", config=config))
        house = House(broker, tmp_path, stack)
        switch = await house.switch(heartbeat_interval=20.0)
        worker = await house.worker(switch, events={"delivery": "durable"}, fleet=FLEET)
        for number in range(200):
            filling = "x" * (number % 3 * 1_000)
            switch.fire("CUSTOM", {"number": str(number), "filling": filling}, subclass="kept")
        await house.until(lambda: worker.metrics.totals["events_received"] >= 200)
        await house.until(lambda: not any(one.events or one.in_flight for one in buffers(worker)))
        events = [one for one in await stored(broker, "FS_EVENTS") if one["data"].get("Event-Subclass") == "kept"]
        kept = [int(one["data"]["number"]) for one in events]
        assert sorted(kept) == list(range(200))
        assert worker.metrics.totals["events_dropped"] == 0
        places = [place for place in range(1, 200) if kept[place] < kept[place - 1]]
        assert len(places) == 1  # behind the first refusal they go one by one
        [told] = [one for one in caplog.records if "events are out of order in the stream" in one.getMessage()]
        [refused] = [one["id"] for one in events if one["data"]["number"] == str(kept[places[0]])]
        assert refused in told.getMessage()
        # A subscriber sees it in the numbers.
        assert [int(one["sequence"]) for one in events] == [number + 1 for number in kept]


@pytest.mark.parametrize("house", ["nats"], indirect=True)
async def test_an_event_that_a_stream_will_never_take_holds_nothing_up(house: House) -> None:
    nc = await nats.connect(house.broker.url)
    await nc.jetstream().add_stream(name="FS_EVENTS", subjects=["fs.events.>"], max_msg_size=6_000)
    await nc.close()
    switch = await house.switch(heartbeat_interval=20.0)
    client = await house.client()
    gaps: list[dict[str, Any]] = []
    await client.bus.subscribe("fs.bridge.gap", lambda received: gaps.append(json.loads(received.payload)))
    worker = await house.worker(switch, events={"delivery": "durable"}, fleet=FLEET)
    for number in range(50):
        switch.fire("CUSTOM", {"number": str(number), "filling": "x" * (9_000 if number == 20 else 9)}, subclass="kept")
    await house.until(lambda: gaps)
    await house.until(lambda: not any(one.events or one.in_flight for one in buffers(worker)))
    events = await stored(house.broker, stream_of(house))
    assert numbers(events, "kept") == [number for number in range(50) if number != 20]
    [gap] = gaps
    assert {name: gap["data"][name] for name in ("reason", "count")} == {"reason": "too_large", "count": 1}
    places = {event["data"].get("number"): event["id"] for event in events}
    assert (gap["data"]["before"], gap["data"]["after"]) == (places["19"], places["21"])


class Fullness:
    """A broker that has no room between ``begin`` and ``end``."""

    def __init__(self, broker: EmbeddedBroker) -> None:
        self._broker = broker

    @classmethod
    async def of(cls, house: House) -> Fullness:
        self = cls(house.broker)
        if house.broker.kind == "nats":
            await self._limit(700_000)
        return self

    async def begin(self) -> None:
        """Redis has no room any more; the stream of JetStream is limited from the start."""
        if self._broker.kind == "redis":
            async with redis.asyncio.Redis(port=self._broker.port) as client:
                await client.config_set("maxmemory-policy", "noeviction")
                used = int((await client.info("memory"))["used_memory"])
                await client.config_set("maxmemory", used + 100_000)

    async def end(self) -> None:
        """There is room again."""
        if self._broker.kind == "redis":
            async with redis.asyncio.Redis(port=self._broker.port) as client:
                await client.config_set("maxmemory", 0)
        else:
            await self._limit(-1)

    async def _limit(self, size: int) -> None:
        client = await nats.connect(self._broker.url)
        jetstream = client.jetstream()
        options: dict[str, Any] = {"name": "FS_EVENTS", "subjects": ["fs.events.>"], "discard": "new"}
        try:
            if size > 0:
                await jetstream.add_stream(max_bytes=size, **options)
            else:
                await jetstream.update_stream(max_bytes=-1, **options)
        finally:
            await client.close()


async def test_a_worker_that_restarts_sends_on_what_it_could_not(house: House) -> None:
    switch = await house.switch(heartbeat_interval=20.0)
    options: dict[str, Any] = {
        "events": {"delivery": "durable"}, "fleet": SHORT,
        "worker": {"id": "w1", "state_dir": str(house.folder), "drain_timeout": 0.2},
    }  # fmt: skip
    worker = await house.worker(switch, **options)
    switch.fire("CUSTOM", {"number": "-1"}, subclass="kept")
    await house.until(lambda: worker.metrics.totals["events_published"] > 0)
    await house.broker.kill()
    await house.until(lambda: not worker.bus.connected)
    for number in range(200):
        switch.fire("CUSTOM", {"number": str(number)}, subclass="kept")
    await house.until(lambda: sum(one.events for one in buffers(worker)) >= 200)
    await worker.stop()
    assert (house.folder / "w1.spill").exists()
    await house.broker.start()
    again = await house.worker(switch, **options)
    switch.fire("CUSTOM", {"number": "200"}, subclass="kept")
    await house.until(lambda: again.metrics.totals["events_received"] > 0)
    await house.until(lambda: not any(one.events or one.in_flight for one in buffers(again)))
    events = await stored(house.broker, stream_of(house))
    assert numbers(events, "kept") == list(range(-1, 201))
    epochs = list(dict.fromkeys(one["epoch"] for one in events if one["data"].get("Event-Subclass") == "kept"))
    assert len(epochs) == 2
    await again.stop()
    assert not (house.folder / "w1.spill").exists()


async def test_routes_go_their_ways(house: House) -> None:
    switch = await house.switch(heartbeat_interval=20.0)
    stream = "FS_JOBS" if house.broker.kind == "nats" else "fs.jobs"
    routes = [
        {"name": "jobs", "topic": "fs.jobs.{node}", "subclasses": ["job::*"], "delivery": "durable", "stream": stream},
        {"name": "few", "topic": "few.{name}", "where": {"number": "7"}, "keep": ["number"], "envelope": "none"},
    ]
    client = await house.client()
    few: list[bytes] = []
    await client.bus.subscribe("few.*", lambda received: few.append(received.payload)) if hasattr(
        client, "bus"
    ) else None
    worker = await house.worker(switch, events={"route": routes}, fleet=FLEET)
    for number in range(10):
        switch.fire("CUSTOM", {"number": str(number)}, subclass="job::done" if number % 2 else "other")
    await house.until(lambda: worker.metrics.totals["events_received"] >= 10)
    await house.until(lambda: not any(one.events or one.in_flight for one in buffers(worker)))
    events = await stored(house.broker, stream)
    assert numbers(events, "job::done") == [1, 3, 5, 7, 9]
    assert numbers(events, "other") == []
    await house.until(lambda: few)
    assert few == [b'{"number":"7"}']
    assert [one["sequence"] for one in events] == [f"{number:010d}" for number in range(1, 6)]


async def test_a_worker_that_ends_while_the_bus_is_away_leaves_the_count_to_its_next_run(house: House) -> None:
    switch = await house.switch(heartbeat_interval=20.0)
    worker = await WorkerProcess.start(house, switch)
    client = await house.client()
    heard: list[Any] = []
    await client.bus.subscribe("fs.events.*", heard.append)
    switch.fire("CUSTOM", {"number": "-1"}, subclass="seen")
    await house.until(lambda: any(b"seen" in one.payload for one in heard))
    published = await worker.settled()
    await house.broker.kill()
    await house.until(lambda: not client.bus.connected)
    last = json.loads(heard[-1].payload)
    for number in range(200):
        switch.fire("CUSTOM", {"number": str(number)}, subclass="unseen")
    await house.until(lambda: worker.totals()["events_received"] >= published + 200)
    read = worker.totals()["events_received"]
    assert await worker.end() == 0
    await house.broker.start()
    await house.until(lambda: client.bus.connected)
    gaps: list[dict[str, Any]] = []
    await client.bus.subscribe("fs.bridge.gap", lambda received: gaps.append(json.loads(received.payload)))
    again = await WorkerProcess.start(house, switch)
    await house.until(lambda: any(one["data"]["reason"] == "buffer" for one in gaps))
    [told] = [one for one in gaps if one["data"]["reason"] == "buffer"]
    assert told["node"] == "fs1"
    wanted = {"epoch": last["epoch"], "before": last["id"], "count": read - published}
    assert {name: told["data"][name] for name in wanted} == wanted
    assert told["data"].get("exact", True)
    assert not list(house.folder.glob("*.untold"))
    assert await again.end() == 0


class WorkerProcess:
    """``esl-bridge run`` as a process of its own, looked at through its page."""

    def __init__(self, process: asyncio.subprocess.Process, page: str) -> None:
        self._process = process
        self._page = page

    @classmethod
    async def start(cls, house: House, switch: SimulatedSwitch, events: str = "") -> WorkerProcess:
        with socket.create_server(("127.0.0.1", 0)) as free:
            page = f"127.0.0.1:{free.getsockname()[1]}"
        file = house.folder / "bridge.toml"
        file.write_text(
            f'[worker]\nid = "w1"\nstate_dir = "{house.folder}"\ndrain_timeout = 0.5\n'
            f'[bus]\nurl = "{house.broker.url}"\n[fleet]\nlease_time = 4.0\n[http]\nlisten = "{page}"\n'
            f'[events]\n{events}\n[[node]]\nname = "fs1"\nurl = "{switch.url}"\n'
        )
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "bridge", "run", "-c", str(file)), stderr=asyncio.subprocess.DEVNULL
        )
        worker = cls(process, page)
        house.stack.push_async_callback(worker.end)
        await house.until(
            lambda: any((it["role"], it["state"]) == ("owner", "UP") for it in worker.look().get("nodes", ()))
        )
        return worker

    def look(self) -> dict[str, Any]:
        """What ``/nodes`` says; nothing while nobody answers."""
        try:
            with urllib.request.urlopen(f"http://{self._page}/nodes", timeout=5) as answer:
                found: dict[str, Any] = json.load(answer)
                return found
        except OSError:
            return {}

    def totals(self) -> dict[str, int]:
        found: dict[str, int] = self.look()["totals"]
        return found

    async def settled(self) -> int:
        """Everything that was read is confirmed: how many events that are."""
        async with asyncio.timeout(30):
            while (totals := self.totals())["events_received"] != totals["events_published"]:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        return totals["events_published"]

    async def end(self) -> int:
        """SIGTERM; the exit code."""
        if self._process.returncode is None:
            self._process.terminate()
        async with asyncio.timeout(30):
            return await self._process.wait()
