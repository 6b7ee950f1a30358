from __future__ import annotations

import json
import re
from typing import Any

import pytest

from bridge.simulator import SimulatedSwitch
from bridge.simulator.api_calls import parse_variables
from bridge.simulator.heart import up_time


@pytest.fixture
async def api(switch: SimulatedSwitch, connect: Any) -> Any:
    client = await connect(switch)

    async def run(line: str) -> str:
        frame = await client.command(f"api {line}")
        assert frame.kind == "api/response"
        text: str = frame.body.decode()
        return text

    return run


async def call(api: Any) -> str:
    text: str = await api(
        "originate {origination_caller_id_name='Al, B',origination_caller_id_number=77}null/5 &park()"
    )
    assert text.startswith("+OK ")
    assert text.endswith("\n")
    return text[4:-1]


def test_uptime_in_words() -> None:
    assert up_time(0.0) == ("0 years, 0 days, 0 hours, 0 minutes, 0 seconds, 0 milliseconds, 0 microseconds")
    assert up_time(31_536_000 + 86_400 + 3600 + 60 + 1.001001) == (
        "1 year, 1 day, 1 hour, 1 minute, 1 second, 1 millisecond, 1 microsecond"
    )


async def test_simple_ones(api: Any, switch: SimulatedSwitch) -> None:
    assert await api("echo hello world") == "hello world"
    assert await api("ECHO hello") == "hello"
    assert await api("hostname") == "simulated"
    assert re.fullmatch(r"[0-9a-f-]{36}", await api("create_uuid"))
    assert await api("msleep 1") == "+OK"
    assert (await api("version")).startswith("FreeSWITCH Version 1.11.2")
    assert await api("uptime") == "0\n"
    assert re.fullmatch(r"\d{4}", await api("strftime %Y"))
    assert await api("foo bar") == "-ERR foo Command not found!\n"
    assert "RUNNING" in await api("sofia status")
    assert (await api("status")).startswith("UP 0 years, ")
    assert switch.executed["echo hello world"] == 1


async def test_variables(api: Any) -> None:
    assert await api("global_setvar a=b c") == "+OK"
    assert await api("global_getvar a") == "b c"
    assert "a=b c\n" in await api("global_getvar")
    assert await api("eval x ${a} $${hostname} ${nothing}.") == "x b c simulated ."
    assert await api("eval ${echo hi}") == "hi"
    assert await api("expand echo ${a}") == "b c"
    assert await api("expand nosuch x") == "INVALID COMMAND!\n-ERR Cannot execute command\n"
    assert await api("global_setvar a") == "+OK"
    assert await api("global_getvar a") == "-ERR no reply\n"


async def test_fsctl(api: Any, switch: SimulatedSwitch) -> None:
    assert await api("fsctl max_sessions 5") == "+OK max sessions: 5\n"
    assert await api("fsctl max_sessions") == "+OK max sessions: 5\n"
    assert await api("fsctl sps 7") == "+OK sessions per second: 7\n"
    assert await api("fsctl heartbeat 4") == "+OK\n"
    assert (await api("fsctl heartbeat 0")).startswith("-USAGE")
    assert switch.heart.interval == 4.0
    assert (await api("fsctl")).startswith("-USAGE")


async def test_api_bgapi(api: Any, switch: SimulatedSwitch, connect: Any) -> None:
    client = await connect(switch)
    await client.command("event json BACKGROUND_JOB")
    assert await api("bgapi uuid:my-id echo x") == "+OK Job-UUID: my-id\n"
    assert (await client.event()).json()["Job-UUID"] == "my-id"


async def test_commands_can_be_added(api: Any, switch: SimulatedSwitch) -> None:
    async def later(argument: str) -> str:
        return f"later {argument}"

    switch.api.commands["mine"] = lambda argument: f"mine {argument}"
    switch.api.commands["later"] = later
    assert await api("mine x") == "mine x"
    assert await api("later y") == "later y"


async def test_show(api: Any) -> None:
    assert await api("show channels") == "\n0 total.\n"
    assert await api("show calls as json") == '{"row_count": 0}\n'
    uuid = await call(api)
    table = await api("show channels")
    assert table.startswith("uuid,direction,created,created_epoch,name,state,cid_name,cid_num,ip_addr,dest,")
    assert f"{uuid},outbound," in table
    assert '"Al, B"' in table
    assert table.endswith("\n\n1 total.\n")
    rows = json.loads(await api("show channels as json"))
    assert rows["row_count"] == 1
    assert (rows["rows"][0]["uuid"], rows["rows"][0]["cid_num"], rows["rows"][0]["application"]) == (uuid, "77", "park")
    assert f"<uuid>{uuid}</uuid>" in await api("show channels as xml")
    assert await api("show channels count") == "\n1 total.\n"
    assert await api("show calls count as json") == '{"row_count": 1}\n'
    assert json.loads(await api("show calls as json"))["rows"][0]["b_uuid"] == ""
    assert uuid in await api("show channels like 77")
    assert await api("show channels like zebra") == "\n0 total.\n"
    assert (await api("show nonsense")).startswith("-USAGE: ")


async def test_uuid_commands(api: Any) -> None:
    uuid = await call(api)
    assert await api(f"uuid_exists {uuid}") == "true"
    assert await api("uuid_exists x") == "false"
    assert await api(f"uuid_setvar {uuid} foo bar: baz") == "+OK\n"
    assert await api(f"uuid_getvar {uuid} foo") == "bar: baz"
    assert await api(f"uuid_setvar {uuid} foo") == "+OK\n"
    assert await api(f"uuid_getvar {uuid} foo") == "_undef_"
    assert await api(f"uuid_setvar_multi {uuid} a=1;b=2") == "+OK\n"
    assert await api(f"uuid_getvar {uuid} b") == "2"
    assert f"Unique-ID: {uuid}\n" in await api(f"uuid_dump {uuid}")
    assert json.loads(await api(f"uuid_dump {uuid} json"))["variable_a"] == "1"
    assert await api(f"uuid_send_dtmf {uuid} 12@100") == f"+OK {uuid} sent DTMF 12@100.\n"
    assert await api("uuid_send_dtmf x 1") == "-ERR Cannot locate session!\n"
    assert await api(f"uuid_transfer {uuid} 9999 XML default") == "+OK\n"
    assert await api(f"uuid_hold {uuid}") == "+OK Success\n"
    assert await api(f"uuid_hold off {uuid}") == "+OK Success\n"
    assert await api(f"uuid_broadcast {uuid} /tmp/x.wav both") == "+OK Message sent\n"
    assert await api(f"uuid_park {uuid}") == "+OK\n"
    assert await api(f"uuid_answer {uuid}") == "+OK\n"
    assert await api(f"uuid_kill {uuid} USER_BUSY") == "+OK\n"
    for verb in ("kill", "getvar", "setvar", "dump", "transfer", "park", "answer", "broadcast"):
        assert await api(f"uuid_{verb} {uuid} x y") == "-ERR No such channel!\n"


async def test_uuid_bridge_and_hupall(api: Any) -> None:
    one, two = await call(api), await call(api)
    assert await api(f"uuid_bridge {one} {two}") == f"+OK {two}\n"
    assert await api(f"uuid_bridge {one} x") == "-ERR Invalid uuid\n"
    assert json.loads(await api("show calls as json"))["rows"][0]["b_uuid"] == two
    assert await api("hupall USER_BUSY") == "+OK hangup all channels with cause USER_BUSY\n"
    assert await api("show channels count") == "\n0 total.\n"


async def test_originate(api: Any, switch: SimulatedSwitch, monkeypatch: pytest.MonkeyPatch) -> None:
    uuid = "11111111-2222-3333-4444-555555555555"
    assert await api(f"originate {{origination_uuid={uuid}}}sofia/gateway/x/5 &park()") == f"+OK {uuid}\n"
    assert await api(f"originate {{origination_uuid={uuid}}}null/x &park()") == "-ERR DUPLICATE_UUID\n"
    assert await api("originate bogus/x &park()") == "-ERR CHAN_NOT_IMPLEMENTED\n"
    assert await api("originate error/user_busy &park()") == "-ERR USER_BUSY\n"
    assert (await api("originate")).startswith("-USAGE: <call url>")
    assert (await api("originate null/x")).startswith("-USAGE")
    switch.max_sessions = 1
    assert await api("originate null/y &park()") == "-ERR DESTINATION_OUT_OF_ORDER\n"
    switch.max_sessions = 10
    slept = []

    async def at_once(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(switch, "sleep", at_once)
    assert await api("originate {originate_timeout=7}user/noanswer &park()") == "-ERR NO_ANSWER\n"
    assert 7 in slept
    assert len(switch.calls) == 1


@pytest.mark.parametrize(
    ("text", "variables", "rest"),
    [
        ("null/x", {}, "null/x"),
        ("{a=b}null/x", {"a": "b"}, "null/x"),
        ("{a='b, c',d=e f}[g=h]null/x", {"a": "b, c", "d": "e f", "g": "h"}, "null/x"),
        ("{a=${x}}null/x", {"a": "${x}"}, "null/x"),
        ("{a=b", {}, "{a=b"),
        ("{}x", {}, "x"),
    ],
)
def test_dial_string_variables(text: str, variables: dict[str, str], rest: str) -> None:
    assert parse_variables(text) == (variables, rest)
