"""The fleet in one process: owners, the directory, orders of the bus, calls over holes, on real brokers."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from bridge.cli import main
from bridge.client.fleet import write_order
from bridge.errors import ConnectionLost
from bridge.messages.event import EventMessage
from bridge.messages.fleet import NodeOrder
from bridge.messages.notice import Notice
from bridge.simulator import SimulatedSwitch
from bridge.worker import Worker
from tests.integration.conftest import House

FAST = {"lease_time": 1.0}


async def crew(house: House, *switches: SimulatedSwitch, count: int = 2, **sections: Any) -> list[Worker]:
    """Several workers that have divided the nodes."""
    sections.setdefault("fleet", FAST)
    workers = []
    for number in range(1, count + 1):
        folder = house.folder / f"w{number}"
        worker = {"id": f"w{number}", "state_dir": str(folder), "drain_timeout": 5.0}
        workers.append(await house.worker(*switches, ready=False, **{**sections, "worker": worker}))
    await house.until(lambda: all(it.ready[0] and len(it.nodes.serving()) == len(switches) for it in workers))
    return workers


async def owner_and_standby(house: House, switch: SimulatedSwitch) -> tuple[Worker, Worker]:
    """Two workers of one node, the one that owns it first."""
    one, two = await crew(house, switch, fleet={**FAST, "standby": 1})
    return (one, two) if one.crew.owned() else (two, one)


def owners(workers: list[Worker]) -> dict[str, list[str]]:
    names = workers[0].crew.stewards
    return {name: [it.id for it in workers if name in it.crew.owned()] for name in names}


async def divided(house: House, workers: list[Worker], each: int) -> None:
    await house.until(
        lambda: (
            all(len(it) == 1 for it in owners(workers).values()) and all(len(it.crew.owned()) == each for it in workers)
        )
    )


async def test_each_node_has_one_owner_and_an_event_comes_once(house: House) -> None:
    switches = [await house.switch() for _ in range(4)]
    workers = await crew(house, *switches)
    await divided(house, workers, 2)
    client = await house.client()
    stream = await client.subscribe("CUSTOM:one")
    for switch in switches:
        switch.fire("CUSTOM", {}, subclass="one")
    seen = [await anext(stream) for _ in range(4)]
    assert sorted(event.node for event in seen) == ["fs1", "fs2", "fs3", "fs4"]
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.3):
            raise AssertionError(f"one too many: {await anext(stream)}")
    for event in seen:
        assert owners(workers)[event.node] == [event.worker]


async def test_any_worker_runs_commands_on_every_node(house: House) -> None:
    switches = [await house.switch() for _ in range(2)]
    workers = await crew(house, *switches)
    await divided(house, workers, 1)
    client = await house.client()
    seen: set[tuple[str, str]] = set()
    # The broker chooses the worker: asked until each has answered for each node.
    async with asyncio.timeout(20):
        while len(seen) < 4:
            for node in ("fs1", "fs2", "fs2"):  # an odd number: Redis gives to the workers in turn
                reply = await client.api("status", to=node, timeout=5)
                assert "UP" in str(reply.result)
                seen.add((reply.worker, reply.node))
    reply = await client.api("status", timeout=5)
    assert reply.node in ("fs1", "fs2")


async def test_a_nodes_own_queue_is_taken_by_its_owner_only(house: House) -> None:
    switches = [await house.switch() for _ in range(2)]
    workers = await crew(house, *switches)
    await divided(house, workers, 1)
    await house.until(lambda: all(it.crew.settled for it in workers))
    client = await house.client()
    for node, (owner,) in owners(workers).items():
        for _ in range(4):
            reply = await client.call({"command": "status"}, timeout=5, queue=f"esl.cmd.{node}")
            assert (reply.node, reply.worker) == (node, owner)


async def test_a_call_is_found_by_a_worker_that_does_not_own_its_node(house: House) -> None:
    switches = [await house.switch() for _ in range(2)]
    workers = await crew(house, *switches, commands={"scatter_limit": 0})
    await divided(house, workers, 1)
    client = await house.client()
    reply = await client.bgapi("originate user/1000 &park", to="fs2", timeout=10)
    uuid = str(reply.result).removeprefix("+OK ").strip()
    owner = next(it for it in workers if "fs2" in it.crew.owned())
    await house.until(lambda: owner.calls.node_of(uuid) == "fs2")
    by: set[str] = set()
    async with asyncio.timeout(20):
        while by != {"w1", "w2"}:  # the broker chooses
            reply = await client.api(f"uuid_exists {uuid}", to=f"call:{uuid}", timeout=5)
            assert (str(reply.result).strip(), reply.node) == ("true", "fs2")
            by.add(reply.worker)


async def test_the_directory_shows_all_of_it_everywhere(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    switches = [await house.switch() for _ in range(2)]
    workers = await crew(house, *switches, fleet={**FAST, "standby": 1})
    await divided(house, workers, 1)
    client = await house.client()
    expected = {name: ids[0] for name, ids in owners(workers).items()}

    async def told() -> bool:
        nodes = await client.nodes()
        return (
            {it["name"]: it["owner"] for it in nodes} == expected
            and all(it["state"] == "UP" and it["sessions"] == 0 for it in nodes)
            and all(it["standby"] == [next(w for w in ("w1", "w2") if w != it["owner"])] for it in nodes)
        )

    async with asyncio.timeout(20):
        while not await told():  # noqa: ASYNC110 - it lives in other workers
            await asyncio.sleep(0.05)
    fleet = await client.fleet()
    assert [(it["worker"], it["nodes"], it["ready"]) for it in fleet["workers"]] == [("w1", 1, 1), ("w2", 1, 1)]
    for worker in workers:
        shown = worker.describe()
        assert {it["name"]: it["owner"] for it in shown["nodes"]} == expected
        assert {it["name"]: it["state"] for it in shown["nodes"]} == {"fs1": "UP", "fs2": "UP"}
        assert shown["fleet"]["storage"] is True
    code = await asyncio.to_thread(main, ["nodes", "--bus", house.broker.url])
    assert code == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split()[:3] == ["fs1", "UP", expected["fs1"]] for line in lines)


async def test_nodes_come_and_go_through_the_bus(house: House) -> None:
    first, second = await house.switch(), await house.switch()
    workers = await crew(house, first)
    client = await house.client()
    stream = await client.subscribe("CUSTOM:more")
    arguments = ["nodes", "add", "extra", second.url, "--tag", "media", "--bus", house.broker.url]
    assert await asyncio.to_thread(main, arguments) == 0
    await house.until(lambda: all("extra" in it.nodes.serving() for it in workers))
    second.fire("CUSTOM", {}, subclass="more")
    assert (await anext(stream)).node == "extra"
    assert (await client.api("status", to="tag:media", timeout=5)).node == "extra"
    assert await asyncio.to_thread(main, ["nodes", "remove", "fs1", "--bus", house.broker.url]) == 1
    assert await asyncio.to_thread(main, ["nodes", "remove", "extra", "--bus", house.broker.url]) == 0
    await house.until(lambda: all("extra" not in it.nodes.names() for it in workers))
    await house.until(lambda: not second.connections)


async def test_a_silent_node_has_no_sessions_in_the_metrics(house: House) -> None:
    switch = await house.switch()
    (worker,) = await crew(house, switch, count=1)
    await house.until(lambda: b'esl_bridge_node_sessions{node="fs1"}' in worker.metrics.render())
    await switch.stop()
    await house.until(lambda: b'esl_bridge_node_sessions{node="fs1"}' not in worker.metrics.render())


async def test_whoever_adds_a_node_that_the_configuration_names_is_told(
    house: House, capsys: pytest.CaptureFixture[str]
) -> None:
    switch = await house.switch()
    await crew(house, switch)
    assert await asyncio.to_thread(main, ["nodes", "add", "fs1", switch.url, "--bus", house.broker.url]) == 0
    assert "fs1 is known already" in capsys.readouterr().err


async def test_a_worker_without_a_configured_node_serves_those_of_the_bus(house: House) -> None:
    (worker,) = await crew(house, count=1)
    assert worker.ready == (True, "")
    switch = await house.switch()
    arguments = ["nodes", "add", "extra", switch.url, "--bus", house.broker.url]
    assert await asyncio.to_thread(main, arguments) == 0
    await house.until(lambda: "extra" in worker.nodes.serving() and worker.crew.owned() == ["extra"])
    assert (await (await house.client()).api("status", to="extra", timeout=5)).node == "extra"


async def test_a_worker_that_leaves_names_the_nodes_that_it_owned(house: House) -> None:
    workers = await crew(house, await house.switch(), await house.switch())
    await divided(house, workers, 1)
    told: list[Notice] = []
    await (await house.client()).notices(told.append)
    mine = workers[0].crew.owned()
    await workers[0].stop()
    await house.until(lambda: any(it.kind == "worker" and it.data["state"] == "left" for it in told))
    (left,) = [it for it in told if it.kind == "worker" and it.data["state"] == "left"]
    assert (left.worker, left.data["nodes"]) == ("w1", mine)


async def test_a_drained_node_gets_no_new_work_and_tells_when_it_is_empty(house: House) -> None:
    switches = [await house.switch() for _ in range(2)]
    workers = await crew(house, *switches)
    client = await house.client()
    notices: list[dict[str, Any]] = []
    await client.notices(lambda notice: notices.append({**notice.data, "node": notice.node}), "node")
    reply = await client.bgapi("originate user/1000 &park", to="fs1", timeout=10)
    uuid = str(reply.result).removeprefix("+OK ").strip()
    await write_order(client.bus, "fs1", NodeOrder("fs1", drain=True))
    await house.until(lambda: all(it.nodes.state("fs1") == "DRAINING" for it in workers))
    assert {(await client.api("status", timeout=5)).node for _ in range(6)} == {"fs2"}
    assert not any("last call" in str(it.get("reason")) for it in notices)
    await client.hangup(uuid, timeout=5)
    await house.until(lambda: any(it["node"] == "fs1" and "last call" in it["reason"] for it in notices))
    assert await asyncio.to_thread(main, ["nodes", "resume", "fs1", "--bus", house.broker.url]) == 0
    await house.until(lambda: all(it.nodes.state("fs1") == "UP" for it in workers))


async def ends(client: Any) -> list[EventMessage]:
    """Every CHANNEL_HANGUP_COMPLETE from now on."""
    stream = await client.subscribe("CHANNEL_HANGUP_COMPLETE")
    found: list[EventMessage] = []

    async def take() -> None:
        async for event in stream:
            found.append(event)

    found_task = asyncio.create_task(take())
    client.__dict__.setdefault("_takers", []).append(found_task)
    return found


async def begin_calls(client: Any, count: int) -> list[str]:
    replies = [await client.bgapi("originate user/1000 &park", to="fs1", timeout=10) for _ in range(count)]
    return [str(reply.result).removeprefix("+OK ").strip() for reply in replies]


async def test_calls_that_end_in_a_hole_are_ended_and_told_as_a_snapshot(house: House) -> None:
    switch = await house.switch()
    (worker,) = await crew(house, switch, count=1)
    client = await house.client()
    snapshots: list[dict[str, Any]] = []
    uuids = await begin_calls(client, 3)
    steward = worker.crew.stewards["fs1"]
    await house.until(lambda: len(steward.known) == 3)
    ended = await ends(client)
    await client.notices(lambda notice: snapshots.append(notice.data), "snapshot")
    for uuid in uuids[:2]:  # they end where nobody hears it
        del switch.calls.channels[uuid]
    switch.drop_connections()
    await house.until(lambda: len(ended) == 2)
    assert {event.uuid for event in ended} == set(uuids[:2])
    for event in ended:
        assert event.synthetic
        assert event.id == f"{switch.core_uuid}:end:{event.uuid}"
        assert event["Event-Name"] == "CHANNEL_HANGUP_COMPLETE"
    await house.until(lambda: len(snapshots) == 1)
    assert [row["uuid"] for row in snapshots[0]["channels"]] == uuids[2:]
    await client.hangup(uuids[2], timeout=5)
    await house.until(lambda: len(ended) == 3)
    assert not ended[2].synthetic


async def test_a_restarted_freeswitch_ends_all_its_calls_at_once(house: House) -> None:
    switch = await house.switch()
    (worker,) = await crew(house, switch, count=1)
    client = await house.client()
    uuids = await begin_calls(client, 2)
    await house.until(lambda: len(worker.crew.stewards["fs1"].known) == 2)
    ended = await ends(client)
    before = switch.core_uuid
    await switch.restart()
    await house.until(lambda: len(ended) == 2)
    assert {event.id for event in ended} == {f"{before}:end:{uuid}" for uuid in uuids}
    assert all(event.synthetic for event in ended)


async def test_the_next_owner_ends_the_calls_that_the_one_before_knew(house: House) -> None:
    switch = await house.switch()
    workers = await crew(house, switch)
    client = await house.client()
    uuids = await begin_calls(client, 2)
    owner = next(it for it in workers if it.crew.owned())
    other = next(it for it in workers if it is not owner)
    await house.until(lambda: len(owner.crew.stewards["fs1"].known) == 2)
    ended = await ends(client)
    # Its death is played: it stops without a word, and one call ends meanwhile.
    await house.until(lambda: owner.crew.stewards["fs1"]._calls_kept == owner.crew.stewards["fs1"].known.version)
    owner.crew._task.cancel()  # type: ignore[union-attr]
    owner.crew.stewards["fs1"].feed.owning = False
    await owner.crew.stewards["fs1"].link.stop()
    del switch.calls.channels[uuids[0]]
    await house.until(lambda: other.crew.owned() == ["fs1"])
    await house.until(lambda: [event.uuid for event in ended] == [uuids[0]])
    assert ended[0].synthetic
    assert list(other.crew.stewards["fs1"].known.calls) == [uuids[1]]


async def test_a_node_handed_over_behind_an_end_that_was_made_up_repeats_nothing(house: House) -> None:
    switch = await house.switch(heartbeat_interval=20.0)
    owner, other = await owner_and_standby(house, switch)
    await house.until(lambda: other.crew.stewards["fs1"].ready)
    client = await house.client()
    [uuid] = await begin_calls(client, 1)
    gaps: list[dict[str, Any]] = []
    await client.notices(lambda notice: gaps.append(notice.data), "gap")
    stream = await client.subscribe("*")
    feed = owner.crew.stewards["fs1"].feed
    await house.until(lambda: uuid in feed.known)

    def read_and_end(events: list[Any]) -> None:
        publish(events)
        if events[-1].get("number") == "9" and (end := feed.known.end(uuid, "NORMAL_UNSPECIFIED")) is not None:
            publish([end])  # before anybody can hear of the mark in front of it

    publish, feed.relay.events = feed.relay.events, read_and_end  # type: ignore[method-assign]
    for number in range(10):
        switch.fire("CUSTOM", {"number": str(number)}, subclass="before")
    await house.until(lambda: uuid not in feed.known)
    await owner.stop()
    await house.until(lambda: other.crew.owned() == ["fs1"])
    switch.fire("CUSTOM", {}, subclass="last")
    seen = []
    async for event in stream:
        seen.append(event.id)
        if event.subclass == "last":
            break
    assert len(seen) == len(set(seen))
    assert f"{switch.core_uuid}:end:{uuid}" in seen
    assert not gaps


async def test_a_mark_that_fell_into_a_hole_of_the_next_owner_costs_no_repeats(house: House) -> None:
    switch = await house.switch(heartbeat_interval=20.0)
    owner, other = await owner_and_standby(house, switch)
    heir = other.crew.stewards["fs1"]
    await house.until(lambda: heir.ready)
    client = await house.client()
    stream = await client.subscribe("CUSTOM:*")
    keep, link = heir.feed.ring.append, heir.link

    def keep_and_cut(events: list[Any]) -> None:
        keep(events)
        if events[-1].get("number") == "4":
            assert link._session is not None
            link._session.end("cut", ConnectionLost("cut by the test"))

    heir.feed.ring.append = keep_and_cut  # type: ignore[method-assign]
    for number in range(5):
        switch.fire("CUSTOM", {"number": str(number)}, subclass="moved")
    await house.until(lambda: not link.connected)
    for number in range(5, 8):
        switch.fire("CUSTOM", {"number": str(number)}, subclass="moved")
    await house.until(lambda: heir.ready)
    await owner.stop()
    await house.until(lambda: other.crew.owned() == ["fs1"])
    switch.fire("CUSTOM", {"number": "8"}, subclass="moved")
    numbers = []
    while "8" not in numbers:
        numbers.append((await anext(stream))["number"])
    assert numbers == [str(number) for number in range(9)]


async def test_the_next_owner_does_not_end_what_the_one_before_has_ended(house: House) -> None:
    switch = await house.switch()
    owner, other = await owner_and_standby(house, switch)
    heir = other.crew.stewards["fs1"]
    await house.until(lambda: heir.ready)
    client = await house.client()
    uuids = await begin_calls(client, 3)
    await house.until(lambda: len(heir.known) == 3)
    ended = await ends(client)
    for uuid in uuids[:2]:  # they end where nobody hears it
        del switch.calls.channels[uuid]
    switch.drop_connections()
    await house.until(lambda: len(ended) == 2)
    await house.until(lambda: heir.ready and set(heir.known.doubtful) == set(uuids))
    switch.fire("CUSTOM", {}, subclass="moved::on")
    await owner.stop()
    await house.until(lambda: other.crew.owned() == ["fs1"] and heir._continuity.checked)
    assert list(heir.known.calls) == uuids[2:]
    await client.hangup(uuids[2], timeout=5)
    await house.until(lambda: len(ended) >= 3)
    assert sorted(event.uuid for event in ended) == sorted(uuids)
    assert [event.synthetic for event in ended] == [True, True, False]


async def test_two_links_to_one_node_tell_the_same_order(house: House) -> None:
    switch = await house.switch(calls_per_second=30, call_duration=0.3)
    workers = await crew(house, switch, fleet={**FAST, "standby": 1})
    await house.until(lambda: any(it.crew.stewards["fs1"].ready for it in workers))
    standby = next(it for it in workers if it.crew.stewards["fs1"].ready)
    ring = standby.crew.stewards["fs1"].feed.ring
    seen: list[str] = []
    append = ring.append

    def noted(events: list[Any]) -> None:
        seen.extend(event.identity for event in events)
        append(events)

    ring.append = noted  # type: ignore[method-assign]
    client = await house.client()
    stream = await client.subscribe("*")
    arrived = [(await anext(stream)).id for _ in range(1500)]
    await house.until(lambda: arrived[-1] in seen)
    shared = set(arrived) & set(seen)
    assert len(shared) > 1300
    assert [it for it in arrived if it in shared] == [it for it in seen if it in shared]
