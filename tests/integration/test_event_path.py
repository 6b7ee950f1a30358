"""Events from a real recording, through a real broker: each once, in order, with FreeSWITCH's own headers."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import House

CAPTURES = Path(__file__).resolve().parent.parent / "data" / "captures"


def recorded(name: str) -> list[dict[str, Any]]:
    """The events of a JSON recording as an independent reader sees them."""
    data = gzip.decompress((CAPTURES / f"{name}.rx.bin.gz").read_bytes())
    index = json.loads(gzip.decompress((CAPTURES / f"{name}.json.gz").read_bytes()))
    return [
        json.loads(data[offset + head : offset + head + body].decode("utf-8", "replace"))
        for offset, head, body, kind in index["frames"]
        if kind == "text/event-json"
    ]


def without_heartbeats(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event for event in events if event["Event-Name"] != "HEARTBEAT"]


@pytest.mark.parametrize("codec", ["json", "msgpack"])
async def test_a_recording_arrives_whole_in_order_and_equal(house: House, codec: str) -> None:
    expected = without_heartbeats(recorded("json_all"))
    switch = await house.switch(replay=CAPTURES / "json_all.rx.bin.gz", replay_speed=0, heartbeat_interval=20.0)
    client = await house.client()
    stream = await client.subscribe("*")
    await house.worker(switch, ready=False, bus={"codec": codec})
    received = []
    async for event in stream:
        if event.name != "HEARTBEAT" and event.data.get("Event-Calling-Function") is not None:
            received.append(event)
        if len(received) == len(expected):
            break
    assert [event.id for event in received] == [f"{e['Core-UUID']}:{e['Event-Sequence']}" for e in expected]
    for event, wanted in zip(received, expected, strict=True):
        assert dict(event.data) == wanted
        name = wanted["Event-Name"]
        token = f"CUSTOM:{wanted['Event-Subclass']}" if name == "CUSTOM" else name
        assert event.attributes["type"] == f"org.freeswitch.{token}"
        assert event.topic == f"fs.events.{token}"
    numbers: dict[str, int] = {}
    for event in received:
        numbers[event.topic] = numbers.get(event.topic, 0) + 1
        assert int(event.sequence) == numbers[event.topic]
    assert stream.lost == 0
    assert stream.undecodable == 0


async def test_live_events_flow_and_a_subscriber_gets_what_it_asked_for(house: House) -> None:
    switch = await house.switch(calls_per_second=20, call_duration=0.3)
    client = await house.client()
    answers = await client.subscribe("CHANNEL_ANSWER")
    custom = await client.subscribe("CUSTOM:*")
    await house.worker(switch)
    event = await anext(answers)
    assert (event.name, event.node) == ("CHANNEL_ANSWER", "fs1")
    assert event["Caller-Destination-Number"]
    switch.fire("CUSTOM", {"x": "1"}, subclass="made::up")
    async for one in custom:
        if one.subclass == "made::up":
            assert one.topic == "fs.events.CUSTOM:made::up"
            break


async def test_freeswitch_restarts_and_everything_goes_on(house: House) -> None:
    switch = await house.switch()
    client = await house.client()
    gaps: list[dict[str, Any]] = []
    nodes: list[dict[str, Any]] = []
    await client.notices(lambda notice: gaps.append(notice.data), "gap")
    await client.notices(lambda notice: nodes.append(notice.data), "node")
    worker = await house.worker(switch)
    stream = await client.subscribe("CUSTOM:after")
    before = worker.describe()["nodes"][0]["epoch"]
    await switch.restart()
    await house.until(lambda: any(node["state"] == "UP" and node.get("restarted") for node in nodes))
    switch.fire("CUSTOM", {}, subclass="after")
    event = await anext(stream)
    assert event.epoch > before
    await house.until(lambda: any(gap["reason"] == "link" for gap in gaps))
    assert [node["state"] for node in nodes if node["state"] == "DOWN"]


async def test_the_broker_goes_away_and_comes_back_and_events_wait(house: House) -> None:
    switch = await house.switch()
    worker = await house.worker(switch)
    await house.broker.kill()
    await house.until(lambda: not worker.bus.connected)
    for number in range(50):
        switch.fire("CUSTOM", {"number": str(number)}, subclass="waited")
    await house.until(lambda: worker.publisher.events >= 50)
    await house.broker.start()
    client = await house.client()
    stream = await client.subscribe("CUSTOM:waited")
    # What waited may leave before this client listens, so that all of it left is seen in the worker's own count.
    seen: list[int] = []
    await house.until(lambda: worker.bus.connected)
    switch.fire("CUSTOM", {"number": "50"}, subclass="waited")
    async for event in stream:
        seen.append(int(str(event["number"])))
        if seen[-1] == 50:
            break
    assert seen == sorted(set(seen))
    totals = worker.metrics.totals
    # What was written and not confirmed when the broker died is in doubt and counted so; what waited is not among it.
    await house.until(lambda: totals["events_published"] + totals["events_dropped"] == totals["events_received"])
    assert totals["events_dropped"] < 10
    assert worker.publisher.events == 0


async def test_bus_and_freeswitch_may_be_absent_at_start(house: House) -> None:
    switch = await house.switch()
    port = switch.port
    await switch.stop()
    await house.broker.kill()
    worker = await house.worker(switch, ready=False)
    await house.until(lambda: worker.describe()["nodes"][0]["state"] == "DOWN")
    assert not worker.ready[0]
    await house.broker.start()
    again = await house.switch(port=port)
    await house.until(lambda: worker.ready[0] and bool(worker.nodes.serving()))
    client = await house.client()
    reply = await client.api("status", timeout=10)
    assert "UP" in str(reply.result)
    assert again.executed["status"] == 1
