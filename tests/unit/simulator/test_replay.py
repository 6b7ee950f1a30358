from __future__ import annotations

import asyncio
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from bridge.simulator import ReplayError, SimulatedSwitch
from bridge.simulator.events import Stamp
from bridge.simulator.replay import Replay, read_events
from bridge.simulator.serialise import Format


def recording(count: int, format: Format = "json") -> bytes:
    stamp = Stamp("core-of-the-recording", "host", "switch", "192.0.2.1", "::1")
    data = b"Content-Type: auth/request\n\nContent-Type: command/reply\nReply-Text: +OK accepted\n\n"
    for number in range(count):
        name = "API" if number % 2 else "HEARTBEAT"
        data += stamp.event(name, [("N", str(number)), ("X", "a b: é")], "body\n" if number % 3 else None).frame(format)
    return data


def test_a_capture_is_read_whole(captures: Path) -> None:
    events = read_events(captures / "json_all.rx.bin.gz")
    index = json.loads(gzip.decompress((captures / "json_all.json.gz").read_bytes()))
    assert len(events) == sum(kind == "text/event-json" for *_, kind in index["frames"]) > 4000
    assert events[0].name
    raw = gzip.decompress((captures / "json_all.rx.bin.gz").read_bytes())
    assert all(event.frame("json") in raw for event in events[::400])


def test_a_torn_capture_is_read_up_to_the_tear(captures: Path) -> None:
    with pytest.raises(ReplayError, match="no event"):
        read_events(captures / "torn_frame_reload.rx.bin.gz")  # its only event is torn
    data = recording(3)
    assert len(read_events(data[:-20])) == 2
    assert len(read_events(data[:-20] + b"Content-Type: text/disconnect-notice\nContent-Length: 3\n\nbye")) == 2


@pytest.mark.parametrize("format", ["json", "plain"])
def test_streams_of_both_formats(format: Format) -> None:
    events = read_events(recording(7, format))
    assert [event.header("N") for event in events] == [str(number) for number in range(7)]
    assert events[1].body == "body\n"
    assert events[0].body is None
    other: Format = "plain" if format == "json" else "json"
    assert b"a b: \xc3\xa9" in events[0].frame("json")
    assert b"a%20b%3A%20%C3%A9" in events[0].frame("plain")
    assert read_events(events[1].frame(other))[0].headers == events[1].headers


def test_text_files(tmp_path: Path) -> None:
    lines = tmp_path / "events.jsonl"
    lines.write_text(
        '{"Event-Name":"API","a":["1","2"],"_body":"x"}\n\n'
        + json.dumps({"specversion": "1.0", "id": "1", "data": {"Event-Name": "DTMF", "DTMF-Digit": "5"}})
    )
    one, two = read_events(lines)
    assert (one.name, one.header("a"), one.body) == ("API", "ARRAY::1|:2", "x")
    assert (two.name, two.header("DTMF-Digit")) == ("DTMF", "5")
    plain = tmp_path / "events.txt"
    plain.write_bytes(b"Event-Name: CUSTOM\r\nEvent-Subclass: a%3A%3Ab\r\n\r\nEvent-Name: HEARTBEAT\nIdle-CPU: 1\n")
    assert [(event.name, event.subclass) for event in read_events(plain)] == [("CUSTOM", "a::b"), ("HEARTBEAT", None)]


@pytest.mark.parametrize(
    "data", [b"", b"nothing here", b"{broken", b'["a"]', b"\x1f\x8bnot gzip", b"{}", b"Content-Type: auth/request\n\n"]
)
def test_what_is_no_recording(data: bytes) -> None:
    with pytest.raises(ReplayError):
        read_events(data)


def test_offsets_never_go_back() -> None:
    data = b"".join(
        b'{"Event-Name":"API","Event-Date-Timestamp":"%d"}\n' % stamp for stamp in (5_000_000, 4_000_000, 7_000_000)
    )
    assert Replay(data)._offsets == [0.0, 0.0, 2.0]
    assert Replay(data, speed=4)._offsets == [0.0, 0.0, 0.5]
    assert Replay(data, rate=10)._offsets == [0.0, 0.1, 0.2]


@pytest.mark.parametrize("settings", [{"replay_speed": 1000.0}, {"replay_rate": 5000.0}, {"replay_speed": 0.0}])
async def test_the_recorded_bytes_go_out_untouched(make_switch: Any, connect: Any, settings: dict[str, float]) -> None:
    data = recording(50)
    switch: SimulatedSwitch = await make_switch(replay=data, **settings)
    client = await connect(switch)
    client.send("event json ALL\n\n")
    assert (await client.frame()).kind == "command/reply"
    frames = [await client.frame() for _ in range(50)]
    assert b"".join(frame.head + b"\n\n" + frame.body for frame in frames) == data[data.index(b"Content-Length") :]
    assert switch.core_uuid == "core-of-the-recording"
    assert switch.fire("HEARTBEAT").header("Event-Sequence") == "51"
    assert switch.events_fired >= 51


@pytest.mark.parametrize("speed", [0.0, 1000.0])
async def test_only_what_was_subscribed_and_filtered(make_switch: Any, connect: Any, speed: float) -> None:
    switch = await make_switch(replay=recording(20), replay_speed=speed)
    client = await connect(switch)
    await client.command("filter N /^1/")
    client.send("event plain HEARTBEAT\n\n")
    await client.reply()
    frames = [await client.event() for _ in range(5)]
    assert [line for frame in frames for line in frame.body.split(b"\n") if line.startswith(b"N: ")] == [
        b"N: %d" % number for number in (10, 12, 14, 16, 18)
    ]
    await client.command("noevents")
    await client.nothing_more()


async def test_a_loop_goes_on_and_each_reader_of_a_firehose_has_its_own(make_switch: Any, connect: Any) -> None:
    switch = await make_switch(replay=recording(10), replay_speed=0.0, replay_loop=True)
    for _ in range(2):
        client = await connect(switch)
        await client.command("event json ALL")
        numbers = [(await client.event()).json()["N"] for _ in range(25)]
        assert numbers == [str(number % 10) for number in range(25)]
        assert (await client.command("api echo still")).text == "still"


async def test_a_firehose_waits_for_its_reader(make_switch: Any, connect: Any) -> None:
    switch = await make_switch(replay=recording(5000), replay_speed=0.0, replay_loop=True)
    client = await connect(switch)
    client.writer.transport.pause_reading()
    client.send("event json ALL\n\n")
    (connection,) = switch.connections
    async with asyncio.timeout(10):
        while not connection._stuck:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    sent = connection.events_sent
    await asyncio.sleep(0.05)
    assert connection.events_sent <= sent + 1000
    client.writer.transport.resume_reading()
    for _ in range(100):
        await client.event()


async def test_faults_spoil_a_firehose_too(make_switch: Any, connect: Any) -> None:
    switch = await make_switch(replay=recording(10), replay_speed=0.0)
    switch.faults.add("close@4")
    client = await connect(switch)
    await client.command("event json ALL")
    assert [(await client.event()).json()["N"] for _ in range(3)] == ["0", "1", "2"]
    assert not (await client.rest()).endswith(b"}")
