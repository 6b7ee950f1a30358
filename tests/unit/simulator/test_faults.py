from __future__ import annotations

import asyncio
from typing import Any

import pytest

from bridge.simulator import FAULTS, Fault, FaultSyntaxError, SimulatedSwitch, parse_fault


def test_the_table_documents_every_fault() -> None:
    for name, kind in FAULTS.items():
        assert name == kind.name
        assert kind.effect
        assert kind.trigger in ("event", "command", "connect", "heartbeat")
        assert kind.argument in ("", "time", "bytes")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("stall", Fault("stall", 5)),
        ("stall:200ms", Fault("stall", 0.2)),
        ("stall:2m@1000", Fault("stall", 120, after=1000)),
        ("latin1/10", Fault("latin1", 0, after=10, every=10)),
        ("truncate:7@3/10", Fault("truncate", 7, after=3, every=10)),
        ("lost-events", Fault("lost_events", 0)),
        (" drop ", Fault("drop", 0)),
    ],
)
def test_text_form(text: str, fault: Fault) -> None:
    assert parse_fault(text) == fault


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nosuch",
        "stall:x",
        "stall:-1s",
        "stall:infs",
        "stall:nan",
        "stall@0",
        "stall@x",
        "stall/",
        "drop:5",
        "latin1/-1",
    ],
)
def test_wrong_text(text: str) -> None:
    with pytest.raises(FaultSyntaxError):
        parse_fault(text)


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(FaultSyntaxError, match=r"unknown fault 'x'; there are: truncate, stall, "):
        parse_fault("x")


def test_when_it_fires() -> None:
    once = parse_fault("close@3")
    assert [once.due() for _ in range(5)] == [False, False, True, False, False]
    assert once.spent
    often = parse_fault("close@2/3")
    assert [often.due() for _ in range(8)] == [False, True, False, False, True, False, False, True]
    assert not often.spent


async def listen(switch: SimulatedSwitch, connect: Any, count: int, format: str = "json") -> Any:
    client = await connect(switch)
    await client.command(f"event {format} CUSTOM x::y")
    for number in range(count):
        switch.fire("CUSTOM", {"N": str(number)}, subclass="x::y")
    return client


async def numbers(client: Any, count: int) -> list[str]:
    return [(await client.event()).json()["N"] for _ in range(count)]


async def test_truncate_leaves_the_stream_out_of_step(switch: SimulatedSwitch, connect: Any) -> None:
    fault = switch.faults.add("truncate:10@2")
    client = await listen(switch, connect, 3)
    assert await numbers(client, 1) == ["0"]
    torn = await client.frame()
    assert torn.body.endswith(b"Content-Le")  # the head of the next frame, for the ten bytes that are missing
    assert fault.fired == 1
    assert switch.faults.fired == ["truncate"]
    assert not switch.faults.active


async def test_stall_holds_everything_back_for_a_time(switch: SimulatedSwitch, connect: Any) -> None:
    switch.faults.add("stall:100ms@2")
    began = asyncio.get_running_loop().time()
    client = await listen(switch, connect, 3)
    client.send("api echo x\n\n")
    assert (await client.reply()).text == "x"  # events in front of it are kept
    assert await numbers(client, 3) == ["0", "1", "2"]
    assert asyncio.get_running_loop().time() - began > 0.09


async def test_close_in_the_middle_of_a_frame(switch: SimulatedSwitch, connect: Any) -> None:
    switch.faults.add("close@2")
    client = await listen(switch, connect, 3)
    assert await numbers(client, 1) == ["0"]
    rest = await client.rest()
    assert rest.startswith(b"Content-Length: ")
    assert b"notice" not in rest
    assert not rest.endswith(b"}")


async def test_reset(switch: SimulatedSwitch, connect: Any) -> None:
    switch.faults.add("reset")
    client = await listen(switch, connect, 1)
    with pytest.raises(ConnectionResetError):
        await client.rest()


async def test_lost_events_and_the_torn_notice(switch: SimulatedSwitch, connect: Any) -> None:
    notice = b"Content-Type: text/disconnect-notice\nContent-Length: 39\n\nkilled listener because of lost events\n"
    switch.faults.add("lost_events@2")
    client = await listen(switch, connect, 3)
    assert await numbers(client, 2) == ["0", "1"]
    assert await client.rest() == notice
    switch.faults.add("torn_notice")
    client = await listen(switch, connect, 2)
    rest = await client.rest()
    assert rest.endswith(notice)
    assert rest.startswith(b"Content-Length: ")
    assert len(rest) > len(notice) + 100


async def test_latin1(switch: SimulatedSwitch, connect: Any) -> None:
    switch.faults.add("latin1/2")
    client = await listen(switch, connect, 4)
    bodies = [(await client.event()).body for _ in range(4)]
    assert [b"\xe9" in body for body in bodies] == [False, True, False, True]


async def test_garbage_unknown_frames_and_stray_replies(switch: SimulatedSwitch, connect: Any) -> None:
    switch.faults.add("unknown_frame@1")
    switch.faults.add("stray_reply@2")
    switch.faults.add("garbage:20@3")
    client = await listen(switch, connect, 4)
    kinds = [(await client.frame()).kind for _ in range(4)]
    assert kinds == ["text/event-json", "text/of-the-future", "text/event-json", "command/reply"]
    await client.frame()
    garbage = await client.reader.readexactly(20)
    assert b"Content" not in garbage
    assert (await client.frame()).json()["N"] == "3"


@pytest.mark.parametrize("behind", ["unknown_frame", "stray_reply", "garbage:20"])
async def test_faults_that_meet_at_one_event_send_it_once(switch: SimulatedSwitch, connect: Any, behind: str) -> None:
    for fault in (f"{behind}@2", "latin1@2", "close@3"):
        switch.faults.add(fault)
    client = await listen(switch, connect, 3)
    sent = await client.rest()
    assert [sent.count(b'"N":"%d"' % number) for number in range(2)] == [1, 1]
    assert sent.count(b"\xe9") == 1


async def test_an_end_in_the_middle_of_a_frame_is_an_end(switch: SimulatedSwitch, connect: Any) -> None:
    switch.faults.add("unknown_frame@1")
    switch.faults.add("close@1")
    client = await listen(switch, connect, 1)
    sent = await client.rest()
    assert b"of-the-future" not in sent
    assert b'"N":"0"' not in sent  # the last header: half a frame, and no whole one before it


async def test_shutdown_and_restart(switch: SimulatedSwitch, connect: Any) -> None:
    switch.faults.add("shutdown")
    other = await connect(switch)
    client = await listen(switch, connect, 1)
    for one in (client, other):
        assert (await one.rest()).endswith(b"The system is being shut down.\n")
    before = switch.core_uuid
    switch.faults.add("restart:10ms")
    client = await listen(switch, connect, 1)
    await client.rest()
    async with asyncio.timeout(10):
        while switch.core_uuid == before or not switch.listening:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    await connect(switch)


async def test_late_replies_stay_in_order(switch: SimulatedSwitch, connect: Any) -> None:
    client = await connect(switch)
    switch.faults.add("late:100ms@2")
    began = asyncio.get_running_loop().time()
    client.send("api echo 1\n\napi echo 2\n\napi echo 3\n\n")
    assert (await client.frame()).text == "1"
    assert [(await client.frame()).text, (await client.frame()).text] == ["2", "3"]
    assert asyncio.get_running_loop().time() - began > 0.09
    assert switch.executed == {"echo 1": 1, "echo 2": 1, "echo 3": 1}


async def test_slow_api(switch: SimulatedSwitch, connect: Any) -> None:
    slow, quick = await connect(switch), await connect(switch)
    fault = switch.faults.add("slow_api:60s")
    slow.send("api echo slow\n\n")
    async with asyncio.timeout(10):
        while not fault.fired:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    assert (await quick.command("api echo quick")).text == "quick"


async def test_slow_api_holds_up_jobs_too(switch: SimulatedSwitch, connect: Any) -> None:
    client = await connect(switch)
    await client.command("event json BACKGROUND_JOB")
    switch.faults.add("slow_api:50ms")
    await client.command("bgapi echo x")
    assert switch.executed == {}
    assert (await client.event()).json()["_body"] == "x"


@pytest.mark.parametrize(("fault", "ran"), [("drop@2", True), ("deaf@2", False)])
async def test_drop_and_deaf(switch: SimulatedSwitch, connect: Any, fault: str, ran: bool) -> None:
    client = await connect(switch)
    switch.faults.add(fault)
    await client.command("event json HEARTBEAT")  # set-up is not counted
    client.send("api echo 1\n\napi echo 2\n\napi echo 3\n\n")
    assert (await client.frame()).text == "1"
    assert await client.rest() == b""
    assert ("echo 2" in switch.executed) is ran
    assert "echo 3" not in switch.executed


async def test_refuse_wrong_auth_and_silence(switch: SimulatedSwitch, connect: Any) -> None:
    switch.faults.add("refuse")
    assert (await (await connect(switch, login=None)).frame()).kind == "text/rude-rejection"
    switch.faults.add("wrong_auth")
    client = await connect(switch, login=None)
    await client.frame()
    assert (await client.command("auth ClueCon")).text == "-ERR invalid"
    switch.faults.add("silent")
    client = await connect(switch, login=None)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(client.reader.read(1), 0.05)
    await connect(switch)


async def test_missed_heartbeats(make_switch: Any, connect: Any) -> None:
    switch = await make_switch(heartbeat_interval=0.02)
    fault = switch.faults.add("no_heartbeat/1")
    client = await connect(switch)
    await client.command("event json HEARTBEAT")
    async with asyncio.timeout(10):
        while fault.fired < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    assert not client.events
    assert switch.events_fired == 0
    switch.faults.remove(fault)
    switch.faults.remove(fault)
    assert (await client.event()).json()["Event-Name"] == "HEARTBEAT"


def test_faults_can_be_taken_back(make_switch: Any) -> None:
    switch = SimulatedSwitch()
    switch.faults.add(Fault("stall", 1.0))
    assert switch.faults.active
    switch.faults.clear()
    assert not switch.faults.active
    with pytest.raises(FaultSyntaxError):
        switch.faults.add(Fault("nosuch", 1.0))
