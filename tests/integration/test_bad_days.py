"""Bad days and odd set-ups of FreeSWITCH, seen from the bus: a whole bridge against a peer that is not as expected."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import ssl
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from bridge.errors import CommandFailed
from bridge.simulator import SimulatedSwitch, User
from tests.integration.conftest import House, until, working

DATA = Path(__file__).resolve().parent.parent / "data"

one_bus = pytest.mark.parametrize("house", ["nats"], indirect=True)
"""For what ends at the Event Socket: what is published, whatever the bus."""


def recorded_plain(name: str) -> list[dict[str, Any]]:
    """The events of a plain recording as a reader sees them that knows nothing of our parser."""
    data = gzip.decompress((DATA / "captures" / f"{name}.rx.bin.gz").read_bytes())
    index = json.loads(gzip.decompress((DATA / "captures" / f"{name}.json.gz").read_bytes()))
    events = []
    for offset, head, size, kind in index["frames"]:
        if kind != "text/event-plain":
            continue
        block, _, body = data[offset + head : offset + head + size].partition(b"\n\n")
        event: dict[str, Any] = {}
        for line in block.split(b"\n"):
            key, _, value = line.decode("utf-8", "replace").partition(": ")
            text = unquote(value)
            event[key] = text.removeprefix("ARRAY::").split("|:") if text.startswith("ARRAY::") else text
        if body:
            event["_body"] = body.decode("utf-8", "replace")
        events.append(event)
    return events


@one_bus
async def test_a_plain_node_tells_the_same_as_a_json_node(house: House) -> None:
    expected = [event for event in recorded_plain("plain_all") if event["Event-Name"] != "HEARTBEAT"]
    assert len(expected) > 300
    switch = await house.switch(
        replay=DATA / "captures" / "plain_all.rx.bin.gz", replay_speed=0, heartbeat_interval=20.0
    )
    client = await house.client()
    stream = await client.subscribe("*")
    worker = await house.worker(switch, ready=False, node={"format": "plain"})
    received = []
    async for event in stream:
        if event.name != "HEARTBEAT" and event.data.get("Event-Calling-Function") is not None:
            received.append(event)
        if len(received) == len(expected):
            break
    assert [event.id for event in received] == [f"{e['Core-UUID']}:{e['Event-Sequence']}" for e in expected]
    for event, wanted in zip(received, expected, strict=True):
        told = dict(event.data)
        # A BACKGROUND_JOB without output has no body in plain; in JSON, as FreeSWITCH writes it, an empty one.
        if wanted["Event-Name"] == "BACKGROUND_JOB" and "_body" not in wanted:
            wanted = wanted | {"_body": "", "Content-Length": "0"}
        assert told == wanted
    assert worker.metrics.totals["events_dropped"] == 0


async def test_every_kind_of_address_on_one_host(house: House) -> None:
    """IPv4, IPv6, a Unix socket, TLS, userauth, a password full of signs: five nodes, told apart by their names."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        six = "::1"
    except OSError:
        six = "127.0.0.1"  # no IPv6 here; tests/integration/switch says so loudly
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(DATA / "tls_cert.pem", DATA / "tls_key.pem")
    async with AsyncExitStack() as stack:
        make: list[dict[str, Any]] = [
            {"password": "p@ss:w/rd#?% €"},
            {"host": six},
            {"path": str(house.folder / "esl.sock")},
            {"tls": context},
            {"users": {"bridge@example.org": User("s:ec/ret")}},
        ]
        switches = [await stack.enter_async_context(SimulatedSwitch(**one)) for one in make]
        urls = [one.url for one in switches]
        urls[3] = f"fs+tls://:ClueCon@localhost:{switches[3].port}"
        urls[4] = f"fs://bridge%40example.org:s%3Aec%2Fret@127.0.0.1:{switches[4].port}"
        nodes: list[dict[str, Any]] = [{"name": f"n{i}", "url": url} for i, url in enumerate(urls)]
        nodes[3]["tls_ca"] = str(DATA / "tls_cert.pem")
        worker = await stack.enter_async_context(working(house, *nodes))
        await until(lambda: worker.ready[0] and len(worker.nodes.serving()) == 5)
        client = await house.client()
        stream = await client.subscribe("CUSTOM:here")
        for number, one in enumerate(switches):
            reply = await client.api(f"echo {number}", to=f"n{number}", timeout=20)
            assert (reply.result, reply.node) == (str(number), f"n{number}")
            assert one.executed[f"echo {number}"] == 1
            one.fire("CUSTOM", {"n": str(number)}, subclass="here")
            event = await anext(stream)
            assert (event.node, event["n"], event.data["Core-UUID"]) == (f"n{number}", str(number), one.core_uuid)
        await asyncio.gather(*(client.api("originate user/1 &park", to=f"n{n}", timeout=20) for n in range(5)))


@one_bus
@pytest.mark.parametrize("format", ["json", "plain"])
async def test_bytes_that_are_no_utf8_cost_nothing_but_themselves(house: House, format: str) -> None:
    switch = await house.switch()
    client = await house.client()
    stream = await client.subscribe("CUSTOM:*")
    worker = await house.worker(switch, node={"format": format})
    switch.faults.add("latin1/1")
    for number in range(3):
        switch.fire("CUSTOM", {"Caller-Caller-ID-Name": "x", "n": str(number)}, subclass="latin")
    events = [await anext(stream) for _ in range(3)]
    assert [event["n"] for event in events] == ["0", "1", "2"]
    assert all("\ufffd" in str(event["Caller-Caller-ID-Name"]) for event in events)
    assert b'esl_bridge_events_repaired_total{node="fs1"}' in worker.metrics.render()
    assert worker.describe()["nodes"][0]["reconnects"] == 0


@one_bus
@pytest.mark.parametrize("format", ["json", "plain"])
async def test_a_call_is_known_however_its_id_is_spelled(house: House, format: str) -> None:
    switch = await house.switch()
    client = await house.client()
    stream = await client.subscribe("CUSTOM:*")
    await house.worker(switch, node={"format": format})
    for spelling in ("Unique-ID", "unique-id", "Unique-Id"):
        switch.fire("CUSTOM", {spelling: f"call of {spelling}"}, subclass="spelled")
    events = [await anext(stream) for _ in range(3)]
    assert [event.attributes["subject"] for event in events] == [
        "call of Unique-ID",
        "call of unique-id",
        "call of Unique-Id",
    ]


async def test_a_user_with_few_rights(house: House) -> None:
    """No api but echo, no HEARTBEAT, no BACKGROUND_JOB: events flow, what is denied is said, nothing hangs."""
    user = User("secret", allowed_events=["CUSTOM", "seen::one", "CHANNEL_ANSWER"], allowed_api=["echo"])
    async with SimulatedSwitch(users={"u@x": user}, heartbeat_interval=0.3) as switch:
        url = f"fs://u%40x:secret@127.0.0.1:{switch.port}"
        wanted = ["CHANNEL_ANSWER", "CUSTOM:seen::one"]
        async with working(house, {"name": "fs1", "url": url, "subscribe": wanted}) as worker:
            switch.fire("CUSTOM", {}, subclass="seen::one")
            await until(lambda: worker.ready[0] and worker.nodes.serving() == ["fs1"])
            client = await house.client()
            stream = await client.subscribe("*")
            switch.fire("CHANNEL_STATE", {"Unique-ID": "a"})
            switch.fire("CUSTOM", {}, subclass="not::seen")
            switch.fire("CUSTOM", {"n": "1"}, subclass="seen::one")
            switch.fire("CHANNEL_ANSWER", {"Unique-ID": "a"})
            assert [(await anext(stream)).name for _ in range(2)] == ["CUSTOM", "CHANNEL_ANSWER"]
            assert (await client.api("echo hello", timeout=10)).result == "hello"
            with pytest.raises(CommandFailed) as denied:
                await client.api("status", timeout=10)
            assert (denied.value.reply.status, denied.value.reply.executed) == ("error", "no")
            assert "permission denied" in denied.value.reply.error
            with pytest.raises(CommandFailed) as no_jobs:
                await client.api("originate user/1 &park", timeout=10)
            assert no_jobs.value.reply.executed == "no"
            assert "BACKGROUND_JOB" in no_jobs.value.reply.error


@one_bus
async def test_log_lines_and_filters(house: House) -> None:
    switch = await house.switch()
    client = await house.client()
    stream = await client.subscribe("CUSTOM:*")
    lines: list[dict[str, Any]] = []
    await client.notices(lambda notice: lines.append(notice.data), "log")
    await house.worker(switch, node={"log_level": "warning", "filters": ["Wanted yes", "Wanted /^may/"]})
    switch.log(4, "a warning: it is\nof two lines\n", "mod_x.c", "f", 12, "a-call")
    switch.log(7, "not for us\n", "mod_x.c", "f", 13)
    for wanted in ("yes", "no", "maybe", "yes"):
        switch.fire("CUSTOM", {"Wanted": wanted}, subclass="filtered")
    assert [(await anext(stream))["Wanted"] for _ in range(3)] == ["yes", "maybe", "yes"]
    await until(lambda: lines)
    assert len(lines) == 1
    assert lines[0]["text"].endswith("a warning: it is\nof two lines")
    assert (lines[0]["level"], lines[0]["file"], lines[0]["line"], lines[0]["uuid"]) == (4, "mod_x.c", 12, "a-call")
