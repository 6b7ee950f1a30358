"""The simulator against recordings of a real FreeSWITCH 1.11.2: the same commands, the same frames."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import pytest

from bridge.simulator import SimulatedSwitch, User
from bridge.simulator.events import SimulatedEvent
from bridge.simulator.replay import read_events
from bridge.simulator.serialise import render_json, render_plain, render_xml, to_text

UUID = re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
USERS = {
    "esl1@127.0.0.1": User("eslpass", allowed_api=("show", "status", "version", "eval", "bgapi")),
    "esl4@127.0.0.1": User("p4", allowed_api=("status", *(f"api_command_number_{number:02d}" for number in range(60)))),
}


def stream(captures: Path, name: str, direction: str) -> bytes:
    return gzip.decompress((captures / f"{name}.{direction}.bin.gz").read_bytes())


def index(captures: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(gzip.decompress((captures / f"{name}.json.gz").read_bytes()))
    return found


def frames(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Header block and body of each frame of a sound stream (a recording may end in the middle of one)."""
    at = 0
    while at < len(data):
        end = data.find(b"\n\n", at)
        if end < 0:
            return
        head = data[at:end]
        length = re.search(rb"(?:^|\n)Content-Length: (\d+)", head)
        at = end + 2 + (int(length.group(1)) if length else 0)
        yield head, data[end + 2 : at]


def is_event(head: bytes) -> bool:
    return b"Content-Type: text/event-" in head


def is_log(head: bytes) -> bool:
    return head.startswith(b"Content-Type: log/data")


def replies(data: bytes) -> list[tuple[bytes, bytes]]:
    return [normal(head, body) for head, body in frames(data) if not is_event(head) and not is_log(head)]


def normal(head: bytes, body: bytes) -> tuple[bytes, bytes]:
    """A frame without what must differ: uuids, and the numbers in the answer to `status`."""
    if body.startswith(b"UP 0 years"):
        body = re.sub(rb"\d+", b"N", body).replace(b"Ns", b"N")
        body = re.sub(rb"(N \w+?)s?\b", rb"\1", body)
        head = re.sub(rb"Content-Length: \d+", b"Content-Length: N", head)
    elif body.startswith(b"<?xml"):
        body = re.sub(rb"sip:mod_sofia@[0-9.]+:\d+", b"sip:mod_sofia@ADDRESS", body)
        head = re.sub(rb"Content-Length: \d+", b"Content-Length: N", head)
    return UUID.sub(b"UUID", head), UUID.sub(b"UUID", body)


async def play(switch: SimulatedSwitch, connect: Any, data: bytes) -> bytes:
    client = await connect(switch, login=None)
    client.send(data)
    answer: bytes = await client.rest()
    return answer


@pytest.fixture
async def alike(make_switch: Any, monkeypatch: pytest.MonkeyPatch) -> SimulatedSwitch:
    """A switch that takes no time, and knows the users of the recording."""
    switch: SimulatedSwitch = await make_switch(users=USERS)

    async def at_once(seconds: float) -> None:
        return None

    monkeypatch.setattr(switch, "sleep", at_once)
    return switch


@pytest.mark.parametrize("name", ["auth_bad", "auth_good_exit", "auth_userauth_ok"])
async def test_logging_in_and_out(alike: SimulatedSwitch, connect: Any, captures: Path, name: str) -> None:
    answer = await play(alike, connect, stream(captures, name, "tx"))
    assert replies(answer) == replies(stream(captures, name, "rx"))


async def test_acl_rejection(make_switch: Any, connect: Any, captures: Path) -> None:
    switch = await make_switch(deny=True)
    assert await play(switch, connect, b"") == stream(captures, "auth_acl_reject", "rx")


async def test_silence_before_authentication(make_switch: Any, connect: Any, captures: Path) -> None:
    switch = await make_switch(auth_timeout=0.05)
    assert await play(switch, connect, b"") == stream(captures, "auth_timeout", "rx")


async def test_a_long_allow_list_is_cut(alike: SimulatedSwitch, connect: Any, captures: Path) -> None:
    recorded = stream(captures, "auth_userauth_longlist", "rx")
    answer = await play(alike, connect, stream(captures, "auth_userauth_longlist", "tx") + b"exit\n\n")
    cut = recorded.index(b"api_cContent-Type")  # the blank line is lost, the next frame's header follows
    assert answer[: cut + 5] == recorded[: cut + 5]


async def test_nearly_every_command(alike: SimulatedSwitch, connect: Any, captures: Path) -> None:
    ours = replies(await play(alike, connect, stream(captures, "commands", "tx")))
    recorded = replies(stream(captures, "commands", "rx"))
    assert len(recorded) > 130
    for number, (one, other) in enumerate(zip(ours, recorded, strict=True)):
        assert one == other, f"reply {number}"


async def test_bodies(alike: SimulatedSwitch, connect: Any, captures: Path) -> None:
    """One command after another, so that events and replies come in the recorded order too."""
    tx, rx = stream(captures, "cmd_bodies", "tx"), stream(captures, "cmd_bodies", "rx")
    client = await connect(alike, login=None)
    recorded = list(frames(rx))
    ours = [await client.frame()]
    for _, direction, offset, length in index(captures, "cmd_bodies")["chunks"]:
        if direction == "tx":
            client.send(tx[offset : offset + length])
            ours.append(await client.frame())
            if b"my::b\nContent-Length" in tx[offset : offset + 60] and b"16777217" not in tx[offset : offset + length]:
                ours.append(await client.frame())
    assert len(ours) == len(recorded)
    for one, (head, body) in zip(ours, recorded, strict=True):
        if is_event(head):
            assert names(one.body) == names(body)
            assert one.body.partition(b"\n\n")[2] == body.partition(b"\n\n")[2]
        else:
            assert normal(one.head, one.body) == normal(head, body)


def names(plain: bytes) -> list[str]:
    return [line.partition(b": ")[0].decode() for line in plain.partition(b"\n\n")[0].split(b"\n")]


async def test_our_events_have_the_recorded_headers(alike: SimulatedSwitch, connect: Any, captures: Path) -> None:
    """API, BACKGROUND_JOB, HEARTBEAT, RE_SCHEDULE: the same names in the same order."""
    recorded: dict[str, list[str]] = {}
    for head, body in frames(stream(captures, "plain_all", "rx")):
        if is_event(head):
            recorded.setdefault(names(body)[0] and body.partition(b"\n")[0].decode(), names(body))
    client = await connect(alike)
    await client.command("event plain HEARTBEAT RE_SCHEDULE API BACKGROUND_JOB")
    await client.command("bgapi echo x")
    alike.heart.beat()
    for name in ("API", "BACKGROUND_JOB", "HEARTBEAT", "RE_SCHEDULE"):
        event = await client.event()
        assert names(event.body) == recorded[f"Event-Name: {name}"]


CHANNEL_EVENTS = (
    *("CHANNEL_CREATE", "CHANNEL_STATE", "CHANNEL_CALLSTATE", "CHANNEL_ANSWER", "CHANNEL_EXECUTE", "CHANNEL_OUTGOING"),
    *("CHANNEL_EXECUTE_COMPLETE", "CHANNEL_HANGUP", "CHANNEL_HANGUP_COMPLETE", "CHANNEL_DESTROY", "CHANNEL_ORIGINATE"),
    *("CHANNEL_BRIDGE", "CHANNEL_UNBRIDGE", "CHANNEL_PARK", "CHANNEL_UNPARK", "CHANNEL_PROGRESS", "DTMF"),
    *("PLAYBACK_START", "PLAYBACK_STOP"),
)


def shape(headers: list[tuple[str, Any]]) -> list[str]:
    """The names that are neither variables nor the other leg's; without what only SIP calls or arguments bring."""
    own = {"Caller-Username", "Caller-Network-Addr", "Application-Data", "Caller-Transfer-Source"}
    return [key for key, _ in headers if not key.startswith(("variable_", "Other-")) and key not in own]


async def test_channel_events_have_the_recorded_shape(alike: SimulatedSwitch, connect: Any, captures: Path) -> None:
    """The same place in the source, the same headers in the same order."""
    recorded: dict[str, list[SimulatedEvent]] = {}
    for event in read_events(captures / "json_all.rx.bin.gz"):
        recorded.setdefault(event.name, []).append(event)
    client = await connect(alike)
    await client.command("event json ALL")
    one = (await client.command("api originate {a=b}loopback/1000/default &park()")).text[4:].strip()
    two = (await client.command("api originate loopback/1001/default &park()")).text[4:].strip()
    await client.command(f"sendmsg {one}\ncall-command: execute\nexecute-app-name: playback\nexecute-app-arg: a://b")
    while not any(b"PLAYBACK_STOP" in frame.body for frame in client.events):
        await client.command("api echo x")
    await client.command(f"api uuid_send_dtmf {one} 1")
    await client.command(f"api uuid_bridge {one} {two}")
    await client.command(f"api uuid_kill {one}")
    while not any(b"CS_DESTROY" in frame.body for frame in client.events):
        await client.command("api echo x")
    seen = set()
    for frame in client.events:
        headers = json.loads(frame.body, object_pairs_hook=list)
        event = dict(headers)
        name = event["Event-Name"]
        seen.add(name)
        if name not in CHANNEL_EVENTS:
            continue
        assert shape(headers) in [shape(other.headers) for other in recorded[name]], name
        for place in ("Event-Calling-File", "Event-Calling-Function", "Event-Calling-Line-Number"):
            assert event[place] in {other.header(place) for other in recorded[name]}, name
    assert set(CHANNEL_EVENTS) <= seen


@pytest.mark.parametrize("name", ["json_all", "plain_all"])
def test_recorded_events_are_rendered_to_the_recorded_bytes(captures: Path, name: str) -> None:
    checked = 0
    for event in read_events(captures / f"{name}.rx.bin.gz"):
        render = render_json if name == "json_all" else render_plain
        raw = event.frame("json" if name == "json_all" else "plain").partition(b"\n\n")[2]
        assert render(event.headers, event.body) == raw
        checked += 1
    assert checked > 3000


def test_recorded_xml_is_rendered_to_the_recorded_bytes(captures: Path) -> None:
    checked = 0
    for head, raw in frames(stream(captures, "xml_short", "rx")):
        if not is_event(head) or not raw.endswith(b"</event>\n"):
            continue
        block, _, rest = raw.partition(b"  </headers>\n")
        headers = [
            (tag.decode(), to_text(unquote_to_bytes(value)))
            for tag, value in re.findall(rb"    <([^>]+)>([^<]*)</", block)
        ]
        body = re.search(rb"<body>(.*?)( *)</body>", rest, re.DOTALL)
        if any(isinstance(value, str) and value.startswith("ARRAY::") for _, value in headers):
            continue
        assert render_xml(headers, to_text(body.group(1)) if body else None) == raw
        checked += 1
    assert checked > 100
