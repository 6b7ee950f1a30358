"""A worker takes a changed configuration over while events and commands flow."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from bridge.client import Bridge
from bridge.client.fleet import write_order
from bridge.errors import ConfigError
from bridge.messages.fleet import NodeOrder
from bridge.messages.notice import Notice
from bridge.simulator import SimulatedSwitch
from bridge.worker import Worker

from .conftest import House, until

pytestmark = pytest.mark.broker


def connections(switch: Any) -> set[int]:
    return {id(one) for one in switch.connections}


def _owned(worker: Worker) -> list[str]:
    """The nodes whose events this worker publishes at this moment."""
    return sorted(node.name for node in worker.nodes if node.feed.owning and node.link.connected)


async def two(house: House, **sections: Any) -> tuple[Any, Any, Worker]:
    one, other = await house.switch(calls_per_second=20, call_duration=0.2), await house.switch()
    return one, other, await house.worker(one, other, **sections)


async def test_nodes_come_and_go_and_the_others_stay_linked(house: House) -> None:
    one, other, worker = await two(house)
    third = await house.switch()
    client = await house.client()
    kept = worker.nodes.get("fs1")
    assert kept is not None
    epoch, reconnects = kept.relay.epoch, kept.link.reconnects

    settings = house.settings(one, other, third)
    await worker.reload(settings.model_copy(update={"nodes": [settings.nodes[0], settings.nodes[2]]}))
    await until(lambda: sorted(worker.nodes.serving()) == ["fs1", "fs3"])
    assert sorted(worker.nodes.names()) == ["fs1", "fs3"]
    assert worker.nodes.get("fs1") is kept
    assert (kept.relay.epoch, kept.link.reconnects) == (epoch, reconnects)
    reply = await client.request({"command": "status", "to": "fs3"}, timeout=10)
    assert (reply.status, reply.node) == ("ok", "fs3")
    reply = await client.request({"command": "status", "to": "fs2"}, timeout=10)
    assert (reply.status, reply.executed) == ("unavailable", "no")
    await until(lambda: not other.connections)


async def test_no_event_of_a_node_that_stays_is_lost(house: House) -> None:
    one, other, worker = await two(house)
    client = await house.client()
    stream = await client.subscribe("CUSTOM:test::count")
    gaps: list[Notice] = []
    await client.notices(gaps.append, "gap")

    async def fire() -> None:
        for number in range(400):
            one.fire("CUSTOM", {"Number": str(number)}, subclass="test::count")
            await asyncio.sleep(0.002)

    firing = asyncio.create_task(fire())
    for round in range(4):
        sections = {"policy": {"deny": [f"never{round}"]}, "commands": {"max_in_flight": 100 + round}}
        settings = house.settings(*((one,) if round % 2 else (one, other)), **sections)
        await worker.reload(settings)
    await firing
    got: list[str] = []
    async with asyncio.timeout(20):
        async for event in stream:
            got.append(str(event["Number"]))
            if len(got) == 400:
                break
    assert got == [str(number) for number in range(400)]
    assert [gap for gap in gaps if gap.node == "fs1"] == []


async def test_policy_limits_and_times_change(house: House) -> None:
    one, other, worker = await two(house)
    client = await house.client()
    assert (await client.request({"command": "status"}, timeout=10)).status == "ok"
    await worker.reload(
        house.settings(
            one,
            other,
            policy={"deny": ["status"]},
            commands={"max_in_flight": 7},
            esl={"esl_cmd_timeout": 1234},
            node={"tags": ["fresh"], "max_connections": 9},
        )
    )
    assert (await client.request({"command": "status"}, timeout=10)).status == "denied"
    assert worker.commands.room() == 7
    reply = await client.request({"command": "version", "to": "tag:fresh"}, timeout=10)
    assert reply.status == "ok"


async def test_routes_change_under_a_new_epoch(house: House) -> None:
    one, other, worker = await two(house)
    client = await house.client()
    moved = await client.subscribe("CUSTOM:test::moved", topic="my.events.*")
    node = worker.nodes.get("fs1")
    assert node is not None
    before, reconnects = node.relay.epoch, node.link.reconnects
    await worker.reload(house.settings(one, other, events={"topic": "my.events.{event}"}))
    one.fire("CUSTOM", {"Number": "1"}, subclass="test::moved")
    async with asyncio.timeout(20):
        event = await moved.__anext__()
    assert event["Number"] == "1"
    assert str(event.attributes["epoch"]) > before
    assert event.attributes["sequence"] == "0000000001"
    assert node.link.reconnects == reconnects


async def test_another_subscription_is_another_link(house: House) -> None:
    one, other, worker = await two(house)
    client = await house.client()
    settings = house.settings(one, other)
    changed = settings.nodes[0].model_copy(update={"subscribe": ["CUSTOM:test::wanted"]})
    await worker.reload(settings.model_copy(update={"nodes": [changed, settings.nodes[1]]}))
    await until(lambda: _owned(worker) == ["fs1", "fs2"])
    stream = await client.subscribe("CUSTOM:test::*")
    one.fire("CUSTOM", {}, subclass="test::unwanted")
    one.fire("CUSTOM", {}, subclass="test::wanted")
    async with asyncio.timeout(20):
        async for event in stream:
            if event.node == "fs1":
                break
    assert event.subclass == "test::wanted"


async def test_a_command_in_flight_outlives_the_node(house: House) -> None:
    one, other, worker = await two(house)
    client = await house.client()
    asked = asyncio.create_task(client.request({"command": "msleep 700", "to": "fs2"}, timeout=10))
    await until(lambda: any(line.startswith("msleep") for line in other.executed))
    await worker.reload(house.settings(one))
    reply = await asked
    assert (reply.status, reply.executed) == ("ok", "yes")
    await until(lambda: not other.connections)


async def test_what_cannot_change_stays_and_is_named(house: House, caplog: pytest.LogCaptureFixture) -> None:
    one, other, worker = await two(house)
    settings = house.settings(one, other, commands={"queue": "other.cmd"}, worker={"id": "somebody"})
    await worker.reload(settings)
    assert worker.settings.commands.queue == "esl.cmd"
    client = await house.client()
    assert (await client.request({"command": "status"}, timeout=10)).status == "ok"


async def test_a_configuration_that_cannot_be_used_changes_nothing(house: House) -> None:
    one, other, worker = await two(house)
    before, epoch = worker.settings, [node.relay.epoch for node in worker.nodes]
    settings = house.settings(one, other, policy={"deny": ["status"]})
    broken = settings.nodes[0].model_validate(
        {"name": "fs9", "url": "fs+tls://:x@127.0.0.1:1", "tls_ca": "/does/not/exist.pem"}
    )
    with pytest.raises(ConfigError, match="tls_ca"):
        await worker.reload(settings.model_copy(update={"nodes": [broken]}))
    assert worker.settings is before
    assert [node.relay.epoch for node in worker.nodes] == epoch
    client = await house.client()
    assert (await client.request({"command": "status"}, timeout=10)).status == "ok"


async def _add_by_the_bus(worker: Worker, client: Bridge, switch: SimulatedSwitch, name: str) -> None:
    await write_order(client.bus, name, NodeOrder(name, switch.url))
    await until(lambda: name in _owned(worker))


async def test_a_node_of_the_bus_that_the_configuration_names_too_has_one_link(house: House) -> None:
    one, other, worker = await two(house)
    client = await house.client()
    third = await house.switch()
    await _add_by_the_bus(worker, client, third, "fs3")

    await worker.reload(house.settings(one, other, third))
    await until(lambda: _owned(worker) == ["fs1", "fs2", "fs3"])
    stream = await client.subscribe("CUSTOM:test::count")

    async def each_comes_once() -> bool:
        for number in ("1", "2"):
            third.fire("CUSTOM", {"Number": number}, subclass="test::count")
        async with asyncio.timeout(20):
            return [(await anext(stream))["Number"] for _ in range(2)] == ["1", "2"]

    assert await each_comes_once()
    await write_order(client.bus, "fs3", None)
    await until(lambda: not worker.crew.orders)
    await worker.reload(house.settings(one, other, third, esl={"esl_cmd_timeout": 1234}))
    assert "fs3" in _owned(worker)  # the configuration still names it
    assert await each_comes_once()

    await write_order(client.bus, "fs3", NodeOrder("fs3", third.url))
    await until(lambda: worker.crew.orders)
    await worker.reload(house.settings(one, other))
    await until(lambda: "fs3" in _owned(worker))  # the bus still names it
    assert await each_comes_once()


async def test_nodes_of_the_bus_follow_what_all_nodes_have_in_common(house: House) -> None:
    one, other, worker = await two(house)
    client = await house.client()
    third = await house.switch()
    await _add_by_the_bus(worker, client, third, "fs3")

    await worker.reload(house.settings(one, other, events={"subscribe": ["CUSTOM:test::wanted"]}))
    await until(lambda: _owned(worker) == ["fs1", "fs2", "fs3"])
    stream = await client.subscribe("CUSTOM:test::*")
    third.fire("CUSTOM", {}, subclass="test::unwanted")
    third.fire("CUSTOM", {}, subclass="test::wanted")
    async with asyncio.timeout(20):
        assert (await anext(stream)).subclass == "test::wanted"
