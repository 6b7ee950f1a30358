from __future__ import annotations

import asyncio
import json
import ssl
from pathlib import Path
from typing import Any

import pytest

from bridge.simulator import SimulatedSwitch, User


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_the_url_leads_to_it(make_switch: Any) -> None:
    switch = await make_switch(password="p@ss w:rd")
    assert switch.port
    assert switch.url == f"fs://:p%40ss%20w%3Ard@127.0.0.1:{switch.port}"


async def test_commands_before_authentication(switch: SimulatedSwitch, connect: Any) -> None:
    client = await connect(switch, login=None)
    await client.frame()
    assert (await client.command("api status")).text == "-ERR command not found"
    assert (await client.command("auth ClueCon")).text == "+OK accepted"
    assert (await client.command("auth ClueCon")).text == "-ERR command not found"
    assert switch.executed == {}


async def test_a_trailing_space_is_part_of_the_password(switch: SimulatedSwitch, connect: Any) -> None:
    client = await connect(switch, login=None)
    await client.frame()
    assert (await client.command("auth ClueCon ")).text == "-ERR invalid"
    assert b"Disconnected, goodbye." in await client.rest()


async def test_no_timeout_after_the_first_command(make_switch: Any, connect: Any) -> None:
    switch = await make_switch(auth_timeout=0.05)
    client = await connect(switch, login=None)
    await client.frame()
    await client.command("foo")
    await asyncio.sleep(0.1)
    assert (await client.command("auth ClueCon")).text == "+OK accepted"


async def test_userauth_and_its_limits(make_switch: Any, connect: Any) -> None:
    user = User(
        "pw", allowed_events=("HEARTBEAT", "BACKGROUND_JOB"), allowed_api=("status", "bgapi"), allowed_log=False
    )
    switch = await make_switch(users={"bob@example.org": user})
    client = await connect(switch, login=None)
    await client.frame()
    reply = await client.command("userauth bob@example.org:pw")
    assert reply.head.decode().split("\n")[2:] == [
        "Allowed-Events: HEARTBEAT,BACKGROUND_JOB",
        "Allowed-API: status,bgapi",
        "Allowed-LOG: false",
    ]
    assert (await client.command("event json HEARTBEAT")).text == "+OK event listener enabled json"
    assert (await client.command("event json ALL")).text == "-ERR permission denied"
    assert (await client.command("event json CUSTOM x::y")).text == "-ERR permission denied"
    assert (await client.command("api version")).kind == "command/reply"
    assert (await client.command("api bgapi version")).text == "-ERR permission denied"
    assert (await client.command("bgapi version")).text == "-ERR permission denied"
    assert (await client.command("log")).text == "-ERR permission denied"
    assert (await client.command("api status")).kind == "api/response"
    assert switch.executed == {"status": 1}
    assert "pw" not in repr(user)


async def test_a_wrong_user_is_refused(make_switch: Any, connect: Any) -> None:
    switch = await make_switch(users={"bob": User("pw")})
    for credentials in ("bob@x:wrong", "eve@x:pw", "bob", ""):
        client = await connect(switch, login=None)
        await client.frame()
        assert (await client.command(f"userauth {credentials}")).text == "-ERR invalid"
    client = await connect(switch, login=None)
    await client.frame()
    assert (await client.command("userauth bob@any.domain:pw")).text == "+OK accepted"


async def test_replies_are_in_order_and_pipelined(switch: SimulatedSwitch, connect: Any) -> None:
    client = await connect(switch)
    client.send("".join(f"api echo {number}\n\n" for number in range(2000)))
    for number in range(2000):
        assert (await client.frame()).text == str(number)
    assert switch.commands_received == 2001


async def test_api_blocks_its_connection_and_no_other(switch: SimulatedSwitch, connect: Any) -> None:
    slow, quick = await connect(switch), await connect(switch)
    await slow.command("event json CUSTOM x::y")
    slow.send("api msleep 300\n\napi echo after\n\n")
    await until(lambda: switch.executed["msleep 300"])
    switch.fire("CUSTOM", subclass="x::y")
    assert (await quick.command("api echo now")).text == "now"
    # The event waits until the api is done: its reply comes first.
    assert (await slow.frame()).text == "+OK"
    assert (await slow.reply()).text == "after"


async def test_bgapi_answers_before_its_job_event(switch: SimulatedSwitch, connect: Any) -> None:
    client = await connect(switch)
    await client.command("event json BACKGROUND_JOB")
    for job in ("custom-1", "custom 2: x"):
        client.send(f"bgapi echo hi\nJob-UUID: {job}\n\n")
        reply = await client.frame()
        assert reply.head.decode() == (f"Content-Type: command/reply\nReply-Text: +OK Job-UUID: {job}\nJob-UUID: {job}")
        event = (await client.frame()).json()
        assert (event["Job-UUID"], event["_body"], event["Job-Command-Arg"]) == (job, "hi", "hi")
    assert switch.executed["echo hi"] == 2


async def test_an_empty_job(switch: SimulatedSwitch, connect: Any) -> None:
    client = await connect(switch)
    await client.command("event json BACKGROUND_JOB")
    await client.command("bgapi echo")
    event = (await client.event()).json()
    assert (event["Content-Length"], event["_body"]) == ("0", "")
    await client.command("event plain BACKGROUND_JOB")
    await client.command("bgapi echo")
    assert (await client.event()).body.endswith(b"Job-Command: echo\n\n")
    assert (await client.command("api echo")).text == "-ERR no reply\n"


async def test_a_long_job_uuid_breaks_the_reply(switch: SimulatedSwitch, connect: Any) -> None:
    client = await connect(switch)
    assert (await client.command(f"bgapi echo\nJob-UUID: {'x' * 235}")).headers["Job-UUID"] == "x" * 235
    client.send(f"bgapi echo\nJob-UUID: {'x' * 236}\n\napi echo next\n\n")
    merged = await client.reader.readuntil(b"next")
    assert b"x\nContent-Type: api/response" in merged  # the blank line is lost


async def test_every_api_fires_an_event(switch: SimulatedSwitch, connect: Any) -> None:
    client = await connect(switch)
    await client.command("event json API")
    await client.command("api echo a b")
    event = (await client.event()).json()
    assert (event["API-Command"], event["API-Command-Argument"]) == ("echo", "a b")


async def test_half_a_command_stops_events(switch: SimulatedSwitch, connect: Any) -> None:
    client = await connect(switch)
    await client.command("event json CUSTOM x::y")
    client.send("api ech")
    (connection,) = switch.connections
    await until(lambda: connection._reader.partial)
    switch.fire("CUSTOM", subclass="x::y")
    client.send("o done\n\n")
    assert (await client.frame()).text == "done"
    assert (await client.frame()).json()["Event-Subclass"] == "x::y"


async def test_the_format_is_that_of_the_moment_of_writing(switch: SimulatedSwitch, connect: Any) -> None:
    client = await connect(switch)
    client.send("event plain CUSTOM x::y\n\napi msleep 100\n\nevent json CUSTOM x::y\n\n")
    await until(lambda: switch.executed["msleep 100"])
    switch.fire("CUSTOM", subclass="x::y")
    assert (await client.event()).kind == "text/event-json"


async def test_sendevent(switch: SimulatedSwitch, connect: Any) -> None:
    client = await connect(switch)
    await client.command("event json ALL")
    reply = await client.command("sendevent CUSTOM\nA: b\nEvent-Subclass: my::x\nContent-Length: 2\n\né")
    event = (await client.event()).json()
    assert reply.text == f"+OK {event['Event-UUID']}"
    assert (event["A"], event["Content-Length"], event["_body"]) == ("b", "2", "é")
    assert (event["Command"], event["Event-Name"], event["Event-Subclass"]) == ("sendevent CUSTOM", "CUSTOM", "my::x")
    assert switch.executed == {"sendevent CUSTOM": 1}


async def test_sendevent_for_a_live_call_is_not_broadcast(switch: SimulatedSwitch, connect: Any) -> None:
    client = await connect(switch)
    uuid = (await client.command("api originate null/x &park()")).text[4:].strip()
    await client.command("event json CUSTOM")
    await client.command(f"sendevent CUSTOM\nUnique-ID: {uuid}")
    await client.nothing_more()


async def test_noevents_empties_the_queue(switch: SimulatedSwitch, connect: Any) -> None:
    client = await connect(switch)
    client.send("event json CUSTOM x::y\n\napi msleep 100\n\nnoevents\n\n")
    await until(lambda: switch.executed["msleep 100"])
    switch.fire("CUSTOM", subclass="x::y")
    for _ in range(3):
        await client.reply()
    await client.nothing_more()


async def test_heartbeats(make_switch: Any, connect: Any) -> None:
    switch = await make_switch(heartbeat_interval=0.02, max_sessions=77, sessions_per_second=55, idle_cpu=12.5)
    client = await connect(switch)
    await client.command("api originate null/x &park()")
    await client.command("event json HEARTBEAT")
    one, two = (await client.event()).json(), (await client.event()).json()
    assert int(two["Event-Sequence"]) > int(one["Event-Sequence"])
    assert one["Session-Count"] == "1"
    assert (one["Max-Sessions"], one["Session-Per-Sec"], one["Idle-CPU"]) == ("77", "55", "12.500000")
    assert len(one) == 27


async def test_a_slow_reader_is_killed_for_lost_events(make_switch: Any, connect: Any) -> None:
    switch = await make_switch(max_queue=1000)
    client = await connect(switch)
    await client.command("event json CUSTOM x::y")
    client.writer.transport.pause_reading()
    (connection,) = switch.connections
    async with asyncio.timeout(20):
        while not connection.closing:
            switch.fire("CUSTOM", {"X-Pad": "p" * 5000}, subclass="x::y")
            if connection.queued < 1000:
                await asyncio.sleep(0)
    assert connection.lost_in_a_row == 501
    client.writer.transport.resume_reading()
    rest = await client.rest()
    assert rest.endswith(
        b"Content-Type: text/disconnect-notice\nContent-Length: 39\n\nkilled listener because of lost events\n"
    )


async def test_losses_below_the_limit_leave_no_sign(make_switch: Any, connect: Any) -> None:
    switch = await make_switch(max_queue=10)
    client = await connect(switch)
    await client.command("event json CUSTOM x::y")
    (connection,) = switch.connections
    for number in range(510):  # all in one turn of the loop: ten fit
        switch.fire("CUSTOM", {"N": str(number)}, subclass="x::y")
    assert connection.lost_in_a_row == 500
    assert [(await client.event()).json()["N"] for _ in range(10)] == [str(number) for number in range(10)]
    await client.nothing_more()


async def test_log_lines(switch: SimulatedSwitch, connect: Any) -> None:
    client = await connect(switch)
    assert (await client.command("log notice")).text == "+OK log level notice [5]"
    switch.log(5, "a line: with\n\nblank lines", "f.c", "fn", 12)
    switch.log(7, "too detailed", "f.c", "fn", 13)
    frame = await client.frame()
    assert frame.kind == "log/data"
    assert list(frame.headers) == [
        *("Content-Type", "Content-Length", "Log-Level", "Text-Channel", "Log-File", "Log-Func", "Log-Line"),
        "User-Data",
    ]
    assert frame.body.decode().endswith("[NOTICE] f.c:12 a line: with\n\nblank lines\n")
    assert (await client.command("nolog")).text == "+OK no longer logging"
    switch.log(1, "nobody listens", "f.c", "fn", 14)
    assert (await client.command("api echo x")).text == "x"


async def test_exit(switch: SimulatedSwitch, connect: Any) -> None:
    client = await connect(switch)
    client.send("EXIT now\n\napi echo never\n\n")
    assert (await client.rest()).decode() == (
        "Content-Type: command/reply\nReply-Text: +OK bye\n\n"
        "Content-Type: text/disconnect-notice\nContent-Length: 67\n\n"
        "Disconnected, goodbye.\nSee you at ClueCon! http://www.cluecon.com/\n"
    )
    assert "echo never" not in switch.executed


async def test_restart(switch: SimulatedSwitch, connect: Any) -> None:
    client = await connect(switch)
    await client.command("api originate null/x &park()")
    port, before = switch.port, switch.core_uuid
    await switch.restart()
    assert (await client.rest()).endswith(b"Content-Length: 31\n\nThe system is being shut down.\n")
    assert switch.port == port
    assert switch.core_uuid != before
    again = await connect(switch)
    assert (await again.command("api show channels count")).text == "\n0 total.\n"
    await switch.restart(core_uuid=before, notice=False)
    assert switch.core_uuid == before
    with pytest.raises(ConnectionResetError):
        await again.rest()


async def test_ends_by_hand(switch: SimulatedSwitch, connect: Any) -> None:
    one = await connect(switch)
    switch.shut_down()
    assert b"The system is being shut down.\n" in await one.rest()
    two = await connect(switch)
    switch.kill_listeners()
    assert b"killed listener because of lost events\n" in await two.rest()
    three = await connect(switch)
    switch.say_goodbye()
    assert b"Disconnected, goodbye." in await three.rest()
    four = await connect(switch)
    switch.drop_connections()
    with pytest.raises(ConnectionResetError):
        await four.rest()


async def test_garbage_never_hurts(switch: SimulatedSwitch, connect: Any) -> None:
    chance = switch.random
    for number in range(60):
        client = await connect(switch, login="auth ClueCon" if number % 2 else None)
        client.send(chance.randbytes(chance.randrange(1, 3000)) + b"\n\n\0\xff: \n\n")
        client.close()
    client = await connect(switch)
    for line in (
        *(
            "fsctl heartbeat ²",
            "fsctl sps 0",
            "msleep x",
            "msleep -1",
            "uuid_dump",
            "originate {",
            "originate {a=b",
            "show as",
        ),
        *(
            "strftime %",
            "eval ${",
            "expand " * 3000,
            "uuid_bridge",
            "uuid_hold",
            "uuid_broadcast x",
            "bgapi",
            "eval ${echo ${",
        ),
        "originate [x]{y}/ &()",
    ):
        assert (await client.command(f"api {line}")).kind == "api/response"
    for line in (
        "filter  ",
        "filter x /[/",
        "event  json  ",
        "event CUSTOM",
        "log ²",
        "sendevent",
        "sendmsg",
        "\xe9",
        "myevents ",
    ):
        assert (await client.command(line)).kind == "command/reply"
    assert (await client.command("api echo alive")).text == "alive"


async def test_many_connections(switch: SimulatedSwitch, connect: Any) -> None:
    clients = [await connect(switch) for _ in range(150)]
    for client in clients:
        client.send("event json CUSTOM x::y\n\n")
    for client in clients:
        await client.reply()
    switch.fire("CUSTOM", subclass="x::y")
    bodies = {(await client.event()).body for client in clients}
    assert len(bodies) == 1
    assert len(switch.connections) == switch.connections_made == 150


async def test_stop_ends_everything(make_switch: Any, connect: Any) -> None:
    switch = await make_switch(calls_per_second=100.0)
    client = await connect(switch)
    client.send("api msleep 60000\n\n")
    await until(lambda: switch.executed["msleep 60000"])
    await switch.stop()
    await switch.stop()
    assert not switch.connections
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(switch.host, switch.port)


async def test_a_unix_socket(make_switch: Any, tmp_path: Path) -> None:
    path = str(tmp_path / "esl.sock")
    switch = await make_switch(path=path)
    assert switch.url == f"fs+unix://:ClueCon@{path}"
    reader, writer = await asyncio.open_unix_connection(path)
    assert await reader.readuntil(b"\n\n") == b"Content-Type: auth/request\n\n"
    writer.close()


def test_a_tls_url() -> None:
    switch = SimulatedSwitch(host="::1", port=8021, tls=ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    assert switch.url == "fs+tls://:ClueCon@[::1]:8021"


async def test_what_a_connection_was_sent_is_known(switch: SimulatedSwitch, connect: Any) -> None:
    client = await connect(switch)
    await client.command("event json ALL")
    (connection,) = switch.connections
    assert list(connection.commands) == ["auth ***", "event json ALL"]
    assert list(switch.received) == ["auth ***", "event json ALL"]


async def test_divert_linger_and_unknown(switch: SimulatedSwitch, connect: Any) -> None:
    client = await connect(switch)
    assert (await client.command("divert_events on")).text == "-ERR not controlling a session."
    assert (await client.command("linger 5")).text == "-ERR not controlling a session"
    assert (await client.command("getvar x")).text == "-ERR command not found"


async def test_myevents(switch: SimulatedSwitch, connect: Any) -> None:
    client = await connect(switch)
    uuid = (await client.command("api originate null/x &park()")).text[4:].strip()
    assert (await client.command("myevents bogus json")).text == "-ERR invalid uuid"
    await client.command("event json API")
    assert (await client.command(f"myevents {uuid} plain")).text == "+OK Events Enabled"
    assert (await client.command("myevents again")).text == "-ERR aready enabled."
    await client.command(f"api uuid_send_dtmf {uuid} 5")
    event = json.loads((await client.event()).body)  # the format word was ignored
    assert (event["Event-Name"], event["DTMF-Digit"]) == ("DTMF", "5")
