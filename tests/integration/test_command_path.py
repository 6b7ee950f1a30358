"""Requests through real brokers to a simulated FreeSWITCH: each answered once, by its id, honestly."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

import msgpack
import pytest

from bridge.bus.redis import RedisBus
from bridge.client import Bridge
from bridge.errors import CommandError, Denied, InvalidRequest, NoRoute, Timeout, Unavailable
from bridge.messages.command import CommandReply
from tests.integration.conftest import House


async def test_api_commands_of_many_callers_each_get_their_own_answer(house: House) -> None:
    switch = await house.switch()
    await house.worker(switch)
    client = await house.client()
    for callers in (1, 16, 128):
        replies = await asyncio.gather(
            *(client.api(f"echo {callers}-{number}", timeout=20) for number in range(callers))
        )
        assert [str(reply.result).strip() for reply in replies] == [f"{callers}-{number}" for number in range(callers)]
        assert {reply.executed for reply in replies} == {"yes"}
    ran = {line: count for line, count in switch.executed.items() if line.startswith("echo ")}
    assert len(ran) == 145
    assert set(ran.values()) == {1}


async def test_a_job_is_accepted_first_and_then_answered_with_its_output(house: House) -> None:
    switch = await house.switch()
    await house.worker(switch)
    client = await house.client()
    accepted: list[CommandReply] = []
    reply = await client.bgapi("echo done", timeout=10, on_accepted=accepted.append)
    assert (reply.status, reply.executed, str(reply.result).strip()) == ("ok", "yes", "done")
    assert [(one.status, one.job, one.id) for one in accepted] == [("accepted", reply.job, reply.id)]


async def test_a_slow_verb_holds_nobody_up(house: House) -> None:
    switch = await house.switch()
    await house.worker(switch)
    client = await house.client()
    slow = asyncio.create_task(client.api("msleep 3000", timeout=20))
    await house.until(lambda: any(line.startswith("msleep") for line in switch.executed))
    replies = await asyncio.gather(*(client.api(f"echo {number}", timeout=2.5) for number in range(64)))
    assert len(replies) == 64
    assert not slow.done()
    assert (await slow).status == "ok"


async def test_statuses_say_what_happened(house: House) -> None:
    switch = await house.switch()
    await house.worker(switch)
    client = await house.client()
    with pytest.raises(CommandError) as wrong:
        await client.api("no_such_command", timeout=10)
    assert wrong.value.reply.executed == "yes"  # type: ignore[attr-defined]
    with pytest.raises(Denied):
        await client.api("system reboot", timeout=10)
    with pytest.raises(Denied):
        await client.bgapi("expand system reboot", timeout=10)
    with pytest.raises(Unavailable):
        await client.api("status", to="nowhere", timeout=10)
    with pytest.raises(NoRoute):
        await client.api("status", to="tag:nothing", timeout=10)
    with pytest.raises(NoRoute):
        await client.hangup("00000000-0000-4000-8000-000000000000", timeout=10)
    assert not any("reboot" in line for line in switch.executed)


async def test_a_late_answer_goes_to_nobody_elses_request(house: House) -> None:
    switch = await house.switch()
    await house.worker(switch, esl={"esl_cmd_timeout": 10_000}, commands={"background": []})
    client = await house.client()
    late: list[dict[str, Any]] = []
    await client.notices(lambda notice: late.append(notice.data), "late")
    slow = await client.request({"id": "slow", "command": "msleep 700"}, timeout=0.2)
    assert (slow.status, slow.executed) == ("timeout", "unknown")
    replies = await asyncio.gather(*(client.api(f"echo {number}", timeout=10) for number in range(32)))
    assert [str(reply.result).strip() for reply in replies] == [str(number) for number in range(32)]
    await house.until(lambda: bool(late))
    assert (late[0]["id"], late[0]["status"], late[0]["late"]) == ("slow", "ok", True)


async def test_execute_hangup_sendmsg_and_sendevent_find_their_call(house: House) -> None:
    one, two = await house.switch(), await house.switch()
    await house.worker(one, two)
    client = await house.client()
    events = await client.subscribe("CUSTOM:mine")
    started = await client.api("originate user/1000 &park", to="fs2", timeout=20)
    uuid = str(started.result).split()[1]
    done = await client.execute(uuid, "playback", "silence_stream://10", wait=True, timeout=20)
    assert (done.status, done.node, done.executed) == ("ok", "fs2", "yes")
    message = await client.sendmsg(uuid, {"call-command": "execute", "execute-app-name": "log"}, timeout=10)
    assert (message.status, message.node) == ("ok", "fs2")
    fired = await client.sendevent("CUSTOM", {"Event-Subclass": "mine", "x": "ü"}, "a body\n", to="fs1", timeout=10)
    assert fired.node == "fs1"
    event = await anext(events)
    assert (event["x"], event.body, event.injected) == ("ü", "a body\n", True)
    exists = await client.api(f"uuid_exists {uuid}", timeout=10)
    assert (exists.node, str(exists.result).strip()) == ("fs2", "true")
    ended = await client.hangup(uuid, timeout=10)
    assert (ended.status, ended.node) == ("ok", "fs2")


async def test_all_gathers_one_reply_a_node(house: House) -> None:
    switches = [await house.switch() for _ in range(3)]
    await house.worker(*switches)
    client = await house.client()
    reply = await client.api("status", to="all", timeout=10)
    assert (reply.status, reply.executed) == ("ok", "yes")
    assert sorted(one.node for one in reply.replies or []) == ["fs1", "fs2", "fs3"]


async def test_msgpack_is_answered_in_msgpack(house: House) -> None:
    switch = await house.switch()
    await house.worker(switch)
    client = await house.client(codec="msgpack")
    assert (await client.api("echo packed", timeout=10)).status == "ok"
    answers: list[tuple[bytes, str]] = []
    address = client.bus.new_reply_address()
    fields = {"id": "raw", "command": "echo raw", **({"reply_to": address} if address else {})}
    subscription = await client.bus.request(
        "esl.cmd", msgpack.packb(fields), "application/msgpack", lambda *one: answers.append(one), reply_to=address
    )
    await house.until(lambda: bool(answers))
    await subscription.close()
    reply = msgpack.unpackb(answers[0][0])
    assert (reply["id"], reply["status"], reply["result"].strip()) == ("raw", "ok", "raw")


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"id": "1", "command": "status\n\napi system reboot"}, "command"),
        ({"id": "1", "command": 7}, "command"),
        ({"id": "1"}, "command"),
        ({"id": "1", "command": "status", "timeout_ms": "soon"}, "timeout_ms"),
        ({"id": "1", "command": "status", "colour": "red"}, "colour"),
        ({"id": "1", "op": "dance"}, "op"),
        ({"id": "1", "op": "hangup", "uuid": "x", "cause": "A\rB"}, "cause"),
        ({"id": "1", "op": "sendmsg", "uuid": "x", "headers": {"a": "b\nc"}}, "headers"),
    ],
)
async def test_a_malformed_request_is_answered_invalid_and_names_its_field(
    house: House, fields: dict[str, Any], field: str
) -> None:
    switch = await house.switch()
    await house.worker(switch)
    client = await house.client()
    reply = await raw_request(house, client, fields)
    assert (reply["status"], reply["executed"]) == ("invalid", "no")
    assert field in reply["error"]
    assert not any("reboot" in line for line in switch.executed)


async def raw_request(house: House, client: Bridge, fields: dict[str, Any]) -> dict[str, Any]:
    answers: list[bytes] = []
    address = client.bus.new_reply_address()
    if address:
        fields = {**fields, "reply_to": address}
    subscription = await client.bus.request(
        "esl.cmd", json.dumps(fields).encode(), "application/json", lambda one, _: answers.append(one), reply_to=address
    )
    await house.until(lambda: bool(answers))
    await subscription.close()
    reply: dict[str, Any] = json.loads(answers[0])
    return reply


async def test_a_repeated_id_gets_the_same_outcome_and_runs_once(house: House) -> None:
    switch = await house.switch()
    await house.worker(switch)
    client = await house.client()
    fields = {"id": "once", "command": "originate user/1000 &park"}
    first = await client.request(fields, timeout=10)
    second = await client.request(fields, timeout=10)
    assert first.result == second.result
    assert (first.replayed, second.replayed) == (False, True)
    other = await client.request({"id": "once", "command": "originate user/1001 &park"}, timeout=10)
    assert other.status == "invalid"
    assert sum(count for line, count in switch.executed.items() if line.startswith("originate")) == 1


async def test_a_node_that_is_down_is_said_at_once_and_works_again_when_it_is_back(house: House) -> None:
    switch = await house.switch()
    worker = await house.worker(switch)
    client = await house.client()
    port = switch.port
    await switch.stop()
    await house.until(lambda: worker.describe()["nodes"][0]["state"] == "DOWN")
    reply = await client.request({"command": "status", "to": "fs1"}, timeout=10)
    assert (reply.status, reply.executed) == ("unavailable", "no")
    await house.switch(port=port)
    await house.until(lambda: bool(worker.nodes.serving()))
    assert (await client.api("status", to="fs1", timeout=10)).status == "ok"


async def test_the_link_dies_under_a_command_and_the_reply_says_unknown(house: House) -> None:
    switch = await house.switch()
    await house.worker(switch, commands={"background": []})
    client = await house.client()
    pending = asyncio.create_task(client.request({"command": "msleep 20000"}, timeout=30))
    await house.until(lambda: any(line.startswith("msleep") for line in switch.executed))
    await switch.stop()
    reply = await asyncio.wait_for(pending, 5)
    assert (reply.status, reply.executed) == ("connection_lost", "unknown")


async def test_sigterm_answers_what_is_in_hand(house: House) -> None:
    switch = await house.switch()
    worker = await house.worker(switch)
    client = await house.client()
    pending = [asyncio.create_task(client.api(f"msleep {300 + number}", timeout=10)) for number in range(20)]
    await house.until(lambda: sum(line.startswith("msleep") for line in switch.executed) == 20)
    await worker.stop()
    replies = await asyncio.gather(*pending)
    assert {reply.status for reply in replies} == {"ok"}


async def test_without_a_worker_a_caller_is_told(house: House) -> None:
    client = await house.client()
    with pytest.raises((Unavailable, Timeout)):
        await client.api("status", timeout=0.3)


async def test_the_client_refuses_what_the_contract_forbids(house: House) -> None:
    client = await house.client()
    with pytest.raises(InvalidRequest):
        await client.request({"no_such_field": 1}, timeout=1)
    with contextlib.suppress(Unavailable, Timeout):
        await client.request({"command": "status"}, timeout=0.1)


async def test_a_request_that_is_given_up_before_it_was_confirmed_leaves_nothing_behind(house: House) -> None:
    if house.broker.kind != "redis":
        pytest.skip("NATS confirms no request")
    client = await house.client()
    assert isinstance(client.bus, RedisBus)
    lanes = client.bus._lanes
    house.broker.pause()
    try:
        asked = asyncio.create_task(client.api("status", timeout=10))
        await house.until(lambda: sum(lane.load for lane in lanes._lanes) == 1)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
    finally:
        house.broker.resume()
    assert sum(lane.load for lane in lanes._lanes) == 0
    assert all(not lane._handlers for lane in lanes._lanes)
