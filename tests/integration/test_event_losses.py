"""Losses on topics: whatever is cut, held up or stands still, what is told adds up with what arrived, in order."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from bridge.bus.base import Received
from tests.integration.conftest import House
from tests.integration.test_event_delivery import FLEET, buffers, numbers, stored, stream_of


class Road:
    """The way to the broker: ``hold`` swallows what comes, ``cut`` breaks it and lets nobody in until ``mend``."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._broken = False
        self._held = False
        self.port = 0

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def hold(self) -> None:
        self._held = True

    def cut(self) -> None:
        self._broken = True
        for writer in self._writers:
            writer.transport.abort()

    def mend(self) -> None:
        self._broken = self._held = False

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        with contextlib.suppress(OSError):
            if not self._broken:
                there, back = await asyncio.open_connection("127.0.0.1", self._port)
                self._writers.add(back)
                await asyncio.gather(self._pump(reader, back), self._pump(there, writer))
        writer.transport.abort()
        self._tasks.discard(task)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if not self._held:
                    writer.write(data)
        writer.transport.abort()


@pytest.fixture
async def road(house: House) -> AsyncIterator[Road]:
    found = Road(house.broker.port)
    await found.open()
    yield found
    await found.close()


async def test_what_is_told_adds_up_with_what_arrived(house: House, road: Road) -> None:
    switch = await house.switch(heartbeat_interval=20.0)
    listener = await house.client()
    events: list[dict[str, Any]] = []
    gaps: list[dict[str, Any]] = []

    def hear(received: Received) -> None:
        (gaps if received.topic == "fs.bridge.gap" else events).append(json.loads(received.payload))

    await listener.bus.subscribe("fs.events.*", hear)
    await listener.bus.subscribe("fs.bridge.gap", hear)
    worker = await house.worker(
        switch,
        bus={"url": f"{house.broker.kind}://127.0.0.1:{road.port}"},
        events={"buffer_events": 200, "buffer_disk": 0},
        fleet=FLEET,
    )
    totals = worker.metrics.totals
    for number in range(3_000):
        switch.fire("CUSTOM", {"number": str(number)}, subclass="counted")
        if number % 10 == 0:
            await asyncio.sleep(0)
        if number == 500:
            await house.until(lambda: totals["events_published"] > 400)
            road.hold()
        elif number == 600:
            await house.until(lambda: totals["events_received"] > 550)
            await house.until(lambda: any(one.in_flight for one in buffers(worker)))
            road.cut()
            await house.until(lambda: not worker.bus.connected)
        elif number == 2_000:
            await house.until(lambda: totals["events_dropped"] > 1_000)
            road.mend()
            await house.until(lambda: worker.bus.connected)
    await house.until(lambda: any(one["data"].get("number") == "2999" for one in events))
    await house.until(lambda: not any(one.events or one.in_flight for one in buffers(worker)))
    told = {reason: [one["data"] for one in gaps if one["data"]["reason"] == reason] for reason in ("buffer", "bus")}
    exact = sum(one["count"] for one in told["buffer"])
    at_most = sum(one["count"] for one in told["bus"])
    assert all(one.get("exact", True) for one in told["buffer"])
    assert not any(one["exact"] for one in told["bus"])
    missing = totals["events_received"] - len(events)
    assert exact > 1_000
    assert exact <= missing <= exact + at_most
    assert totals["events_dropped"] == exact + at_most
    came = [int(one["data"]["number"]) for one in events if one["data"].get("Event-Subclass") == "counted"]
    assert came == sorted(set(came)), "in order, and none twice"
    identities = {one["id"] for one in events}
    assert all(one["after"] in identities for one in told["buffer"])


@pytest.mark.parametrize("delivery", ["durable", "both"])
async def test_a_broker_that_stands_still_costs_a_durable_delivery_nothing(
    house: House, delivery: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge.bus.nats.pipeline.ACK_TIMEOUT", 0.3)
    switch = await house.switch(heartbeat_interval=20.0)
    worker = await house.worker(switch, events={"delivery": delivery, "buffer_bytes": 1 << 20}, fleet=FLEET)
    for number in range(3_000):
        switch.fire("CUSTOM", {"number": str(number), "filling": "x" * 500}, subclass="kept")
        if number % 10 == 0:
            await asyncio.sleep(0)
        if number == 500:
            await house.until(lambda: worker.metrics.totals["events_published"] > 100)
            house.broker.pause()
    await house.until(lambda: worker.metrics.totals["events_received"] >= 3_000)
    await house.until(lambda: worker.reservoir.stored > 0)
    assert worker.reservoir.size <= 1 << 20
    house.broker.resume()
    await house.until(lambda: not any(one.events or one.in_flight for one in buffers(worker)))
    assert numbers(await stored(house.broker, stream_of(house)), "kept") == list(range(3_000))


async def test_a_burst_is_read_at_a_pace_while_much_waits(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridge.relay.reservoir.PACE", 1.0)  # bytes/s: once is for good
    switch = await house.switch(heartbeat_interval=20.0)
    worker = await house.worker(switch, events={"buffer_bytes": 3 << 20}, fleet=FLEET)
    (node,) = worker.nodes
    house.broker.pause()
    try:
        for number in range(4_000):
            switch.fire("CUSTOM", {"number": str(number), "filling": "x" * 1_000}, subclass="kept")
        totals = worker.metrics.totals
        await house.until(lambda: totals["events_received"] > 300 and node.link.unread)
        received = totals["events_received"]
        for _ in range(200):
            await asyncio.sleep(0)
        assert received == totals["events_received"] < 4_000
    finally:
        house.broker.resume()


async def test_a_way_that_is_cut_again_and_again_costs_a_durable_delivery_nothing(house: House, road: Road) -> None:
    switch = await house.switch(heartbeat_interval=20.0)
    url = f"{house.broker.kind}://127.0.0.1:{road.port}"
    worker = await house.worker(switch, bus={"url": url}, events={"delivery": "durable"}, fleet=FLEET)
    totals = worker.metrics.totals
    for number in range(4_000):
        switch.fire("CUSTOM", {"number": str(number)}, subclass="kept")
        if number % 10 == 0:
            await asyncio.sleep(0)
        if number % 1_000 == 500:
            await house.until(lambda: any(one.in_flight for one in buffers(worker)) or totals["events_published"] > 100)
            road.cut()
            await house.until(lambda: not worker.bus.connected)
            road.mend()
            await house.until(lambda: worker.bus.connected)
    await house.until(lambda: totals["events_received"] >= 4_000)
    await house.until(lambda: not any(one.events or one.in_flight for one in buffers(worker)))
    assert numbers(await stored(house.broker, stream_of(house)), "kept") == list(range(4_000))
    assert totals["events_dropped"] == 0
