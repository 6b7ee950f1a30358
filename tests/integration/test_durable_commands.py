"""Requests that outlive their worker, outcomes that all workers know, and what else the bus carries of a command."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from hashlib import blake2b
from pathlib import Path
from typing import Any

import nats
import pytest
import redis.asyncio

from bridge.bus.base import Received
from bridge.bus.embedded import EmbeddedBroker
from bridge.bus.nats.proof import Proof
from tests.integration.conftest import House, until


@pytest.fixture
async def nats_house(tmp_path: Path) -> AsyncIterator[House]:
    async with AsyncExitStack() as stack:
        yield House(await stack.enter_async_context(EmbeddedBroker("nats")), tmp_path, stack)


async def ask(house: House, client: Any, subject: str, **fields: Any) -> Any:
    """Publish a durable request as any NATS program would and return its reply message."""
    inbox = client.new_inbox()
    replies = await client.subscribe(inbox)
    body = json.dumps({"reply_to": inbox, **fields}).encode()
    await client.jetstream().publish(subject, body, headers={"traceparent": "00-0af7-b7ad-01"})
    return await replies.next_msg(timeout=20)


async def test_an_outcome_is_known_to_every_worker(house: House) -> None:
    switch = await house.switch()
    for number in range(2):
        worker = await house.worker(switch, worker={"id": f"w{number}"})
        assert worker.describe()["ledger"] == "shared"
    client = await house.client()
    for id in "abc":
        fields = {"id": id, "command": f"eval {id}"}
        replies = [await client.request(fields, timeout=10) for _ in range(8)]
        replies += await asyncio.gather(*(client.request(fields, timeout=10) for _ in range(8)))
        assert {reply.result for reply in replies} == {id}
        assert sum(not reply.replayed for reply in replies) == 1
        assert switch.executed[f"eval {id}"] == 1
        assert (await client.request({"id": id, "command": "eval other"}, timeout=10)).status == "invalid"
    assert not switch.executed["eval other"]


async def test_repeats_that_come_at_once_run_once_and_wait(house: House) -> None:
    switch = await house.switch()
    for number in range(2):
        await house.worker(switch, worker={"id": f"w{number}"}, commands={"background": [], "safe": []})
    client = await house.client()
    fields = {"id": "slow", "command": "msleep 400"}
    replies = await asyncio.gather(*(client.request(fields, timeout=20) for _ in range(12)))
    assert {(reply.status, reply.executed) for reply in replies} == {("ok", "yes")}
    assert sum(not reply.replayed for reply in replies) == 1
    assert switch.executed["msleep 400"] == 1


async def test_a_worker_of_its_own_memory_says_so(nats_house: House) -> None:
    worker = await nats_house.worker(await nats_house.switch(), commands={"ledger": "memory"})
    assert worker.describe()["ledger"] == "per worker"


async def test_a_durable_request_waits_for_a_worker_and_is_answered_where_it_asks(nats_house: House) -> None:
    switch = await nats_house.switch()
    durable = {"commands": {"durable": True}}
    first = await nats_house.worker(switch, **durable)
    client = await nats.connect(nats_house.broker.url)
    reply = await ask(nats_house, client, "esl.queue", command="eval one", id="1")
    said = json.loads(reply.data)
    assert (said["id"], said["status"], said["result"]) == ("1", "ok", "one")
    assert reply.headers["traceparent"] == "00-0af7-b7ad-01"
    await first.stop()
    waiting = asyncio.create_task(ask(nats_house, client, "esl.queue", command="eval two", timeout_ms=60_000))
    expired = asyncio.create_task(ask(nats_house, client, "esl.queue.fs1", command="eval never", timeout_ms=1))
    await nats_house.worker(switch, **durable)
    said = json.loads((await waiting).data)
    assert (said["status"], said["result"]) == ("ok", "two")
    assert said["elapsed_ms"] > said["timing"]["esl_ms"]
    reply = await expired
    said = json.loads(reply.data)
    assert (said["status"], said["executed"]) == ("expired", "no")
    assert reply.headers["Nats-Service-Error-Code"]
    assert not switch.executed["eval never"]
    await client.close()


async def test_the_client_uses_the_durable_queue(nats_house: House) -> None:
    switch = await nats_house.switch()
    await nats_house.worker(switch, commands={"durable": True})
    client = await nats_house.client()
    replies = await asyncio.gather(
        *(client.call({"command": f"eval {number}"}, timeout=10, queue="esl.queue") for number in range(100))
    )
    assert [reply.result for reply in replies] == [str(number) for number in range(100)]
    replies = await asyncio.gather(
        *(client.call({"command": f"eval o{number}"}, timeout=20, queue="esl.queue.fs1") for number in range(20))
    )
    assert [reply.result for reply in replies] == [f"o{number}" for number in range(20)]
    ran = [line for line in switch.executed if line.startswith("eval o")]
    assert ran == [f"eval o{number}" for number in range(20)]


async def test_a_request_that_may_be_stored_is_waited_for(nats_house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    switch = await nats_house.switch()
    await nats_house.worker(switch, commands={"durable": True})
    client = await nats_house.client()
    await client.call({"command": "eval first"}, timeout=10, queue="esl.queue")
    monkeypatch.setattr("bridge.bus.nats.durable.API_TIMEOUT", 0.2)
    asked: dict[str, Any] = client.bus._durable._questions._open  # type: ignore[attr-defined]
    server = nats_house.broker._process
    assert server is not None
    os.kill(server.pid, signal.SIGSTOP)  # it has the request and says nothing
    try:
        pending = asyncio.create_task(client.call({"command": "eval x"}, timeout=20, queue="esl.queue"))
        await nats_house.until(lambda: asked)
        await nats_house.until(lambda: not asked)
    finally:
        os.kill(server.pid, signal.SIGCONT)
    assert (await pending).result == "x"
    assert switch.executed["eval x"] == 1


async def test_a_durable_request_that_cannot_be_answered_is_a_dead_letter(nats_house: House) -> None:
    switch = await nats_house.switch()
    worker = await nats_house.worker(switch, commands={"durable": True})
    client = await nats.connect(nats_house.broker.url)
    stream = client.jetstream()
    bodies = [b'{"command":"eval x"}', b'{"command":"eval x","reply_to":"fs.events.X"}', b"\xc1"]
    for body in bodies:
        await stream.publish("esl.queue", body)
    reader = await stream.pull_subscribe("esl.dead", "reader", "ESL_DEAD")
    letters = []
    while len(letters) < 3:
        letters += await reader.fetch(3 - len(letters), timeout=10)
    assert sorted(letter.data for letter in letters) == sorted(bodies)
    reasons = " | ".join(letter.headers["Esl-Bridge-Reason"] for letter in letters)
    assert "no reply address" in reasons
    assert "reply_to" in reasons
    assert not switch.executed["eval x"]
    assert b"esl_bridge_dead_letters_total 3.0" in worker.metrics.render()
    assert (await stream.stream_info("ESL_QUEUE")).state.messages == 0
    await client.close()


async def test_large_outputs_come_whole_or_are_said_to_be_too_large(house: House) -> None:
    switch = await house.switch()
    await house.worker(switch)
    client = await house.client()
    megabyte = "channel,é," * 100_000
    switch.api.commands["show"] = lambda argument: megabyte * int(argument.split()[-1])
    whole = await client.request({"command": "show channels as json 3"}, timeout=30)
    if house.broker.kind == "redis":
        assert whole.result == megabyte * 3
        return
    assert (whole.status, whole.executed, whole.result) == ("too_large", "yes", None)
    assert "limit" in whole.error
    switch.api.commands["show"] = lambda argument: megabyte[:700_000]
    fits = await client.request({"command": "show channels as json"}, timeout=30)
    assert (fits.status, fits.result) == ("ok", megabyte[:700_000])


async def test_denials_are_counted_and_the_audit_hides_secrets(house: House) -> None:
    switch = await house.switch()
    worker = await house.worker(switch, policy={"audit": True})
    client = await house.client()
    notices: list[dict[str, Any]] = []

    def told(received: Received) -> None:
        notices.append(json.loads(received.payload)["data"])

    await client.bus.subscribe("fs.bridge.audit", told)
    denied = await client.request({"command": "system id"}, timeout=10)
    assert (denied.status, denied.executed) == ("denied", "no")
    await client.request({"command": "originate {sip_auth_password=hunter22}user/1000 &park"}, timeout=10)
    message = {"call-command": "execute", "execute-app-name": "playback", "x-password": "hunter23"}
    await client.request({"op": "sendmsg", "uuid": "u1", "headers": message, "to": "fs1"}, timeout=10)
    await client.request({"op": "hangup", "uuid": "u1", "cause": "USER_BUSY", "to": "fs1"}, timeout=10)
    await house.until(lambda: len(notices) >= 4)
    assert "hunter2" not in json.dumps(notices)
    asked = {notice["op"]: notice["command"] for notice in notices}
    assert asked["sendmsg"] == "call-command=execute execute-app-name=playback x-password=***"
    assert asked["hangup"] == "USER_BUSY"
    await client.request({"command": "eval " + "x" * 1_047_000, "to": "fs1"}, timeout=10)  # denied, too: that long
    await house.until(lambda: len(notices) >= 5)  # nearly all that NATS lets through, and the notice says more
    assert len(notices[-1]["command"]) == 16_384
    assert all(notice["queue"] == "esl.cmd" and notice["reply_to"] for notice in notices)
    assert {notice["status"] for notice in notices} >= {"denied"}
    assert b'esl_bridge_commands_denied_total{op="api"} 2.0' in worker.metrics.render()


async def test_a_broker_that_forgets_acknowledgements_runs_nothing_again_in_the_same_worker(
    nats_house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a ledger of its own: nats-server is killed before it has heard, or kept, that an entry is over."""
    switch = await nats_house.switch()
    worker = await nats_house.worker(
        switch, commands={"durable": True, "ledger": "memory", "claim_after": 1.0, "background": []}
    )
    client = await nats.connect(nats_house.broker.url, max_reconnect_attempts=-1, reconnect_time_wait=0.1)
    inbox = client.new_inbox()
    replies: list[Any] = []

    async def heard(message: Any) -> None:
        replies.append(json.loads(message.data))

    await client.subscribe(inbox, cb=heard)

    async def put(**fields: Any) -> None:
        await client.jetstream().publish("esl.queue", json.dumps({"reply_to": inbox, **fields}).encode())

    lost: list[Any] = []
    with monkeypatch.context() as patch:
        patch.setattr(Proof, "_acknowledge", lambda self, reply: lost.append(self._gone(reply.entry)))
        await put(id="named", command="eval named")
        await put(command="eval nameless")
        await nats_house.until(lambda: len(lost) == 2 and len(replies) == 2)
    await put(id="in hand", command="msleep 1500")
    await nats_house.until(lambda: switch.executed["msleep 1500"])
    await nats_house.broker.kill()
    await nats_house.broker.start()
    await nats_house.until(lambda: len(replies) >= 5 and not worker.commands.in_flight)
    info = client.jetstream()
    while (await info.stream_info("ESL_QUEUE")).state.messages:  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    assert {(it["status"], it["executed"]) for it in replies} == {("ok", "yes")}
    assert [bool(it.get("replayed")) for it in replies[:2]] == [False, False]
    assert sum(bool(it.get("replayed")) for it in replies) >= 2
    ran = {line: count for line, count in switch.executed.items() if line.startswith(("eval", "msleep"))}
    assert ran == {"eval named": 1, "eval nameless": 1, "msleep 1500": 1}
    await client.close()


async def test_a_ledger_that_refuses_holds_nothing_up_for_longer_than_its_budget(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    """Its bucket is full (NATS), or somebody else's values lie in it (Redis)."""
    switch = await house.switch()
    nats_bus = house.broker.kind == "nats"
    queue = "esl.queue.fs1" if nats_bus else "esl.cmd.fs1"
    worker = await house.worker(switch, commands={"durable": True} if nats_bus else {})
    client = await house.client()
    assert (await client.request({"command": "eval 1"}, timeout=10)).status == "ok"
    async with AsyncExitStack() as stack:
        if nats_bus:
            broker = await nats.connect(house.broker.url)
            stack.push_async_callback(broker.close)
            stream = await broker.jetstream().stream_info("KV_esl-bridge-ledger")
            stream.config.max_bytes = stream.state.bytes
            await broker.jetstream().update_stream(stream.config)
        else:
            other = redis.asyncio.from_url(house.broker.url)
            stack.push_async_callback(other.aclose)
            for id in ("first", "second"):
                await other.lpush("esl.ledger." + blake2b(id.encode(), digest_size=16).hexdigest(), "x")
        asked = [
            asyncio.create_task(
                client.request({"id": id, "command": f"eval {id}", "timeout_ms": 600}, timeout=20, queue=queue)
            )
            for id in ("first", "second")
        ]
        for reply in await asyncio.gather(*asked):
            # The second one's budget ends in line.
            assert (reply.status, reply.executed) in {("timeout", "unknown"), ("expired", "no")}
        assert not worker.commands.in_flight
        if nats_bus:
            stream.config.max_bytes = -1
            await broker.jetstream().update_stream(stream.config)
    reply = await client.request({"id": "third", "command": "eval third"}, timeout=20, queue=queue)
    assert (reply.status, reply.result) == ("ok", "third")
    assert not {"eval first", "eval second"} & set(switch.executed)
    assert [text.startswith("requests wait for the ledger") for text in caplog.messages].count(True) == 1


async def test_a_ledger_that_is_deleted_keeps_what_runs(nats_house: House, caplog: pytest.LogCaptureFixture) -> None:
    switch = await nats_house.switch()
    await nats_house.worker(switch, commands={"durable": True, "background": [], "safe": []})
    client = await nats_house.client()
    broker = await nats.connect(nats_house.broker.url)
    asked = [
        asyncio.create_task(client.request({"id": queue, "command": f"msleep {time}"}, timeout=20, queue=queue))
        for queue, time in (("esl.cmd", 400), ("esl.queue", 401))
    ]
    await until(lambda: sum(switch.executed.values()) >= 1 and "msleep 400" in switch.executed)
    await broker.jetstream().delete_stream("KV_esl-bridge-ledger")
    # Waits until there is one again.
    reply = await client.request({"id": "next", "command": "eval next"}, timeout=20, queue="esl.queue")
    assert (reply.status, reply.result) == ("ok", "next")
    assert {(reply.status, reply.executed) for reply in await asyncio.gather(*asked)} == {("ok", "yes")}
    again = await client.request({"id": "esl.cmd", "command": "msleep 400"}, timeout=20, queue="esl.cmd")
    assert (again.status, again.executed, again.replayed) == ("ok", "yes", True)
    assert max(switch.executed[line] for line in ("msleep 400", "msleep 401", "eval next")) == 1
    assert caplog.text.count("somebody deleted the bucket esl-bridge-ledger") == 1
    await broker.close()


@pytest.mark.parametrize("how", ["restart", "restart, safe", "reload"])
async def test_a_broker_that_takes_less_than_before_is_answered_what_it_takes(nats_house: House, how: str) -> None:
    switch = await nats_house.switch()
    go_on = asyncio.Event()

    async def wait(_argument: str) -> str:
        await go_on.wait()
        return "x" * 300_000

    switch.api.commands["wait"] = wait
    safe = ["wait"] if "safe" in how else []  # safe ones ask no ledger, which has to wait for the broker too
    worker = await nats_house.worker(switch, commands={"durable": True, "safe": safe}, esl={"esl_cmd_timeout": 20_000})
    broker, ledger = nats_house.broker, worker.commands._ledger
    async with await nats.connect(broker.url, reconnect_time_wait=0.05, max_reconnect_attempts=-1) as client:
        inbox = client.new_inbox()
        replies = await client.subscribe(inbox)

        async def put(id: str, command: str, queue: str) -> None:
            body = json.dumps({"id": id, "command": command, "reply_to": inbox}).encode()
            await client.jetstream().publish(queue, body)

        await put("1", "wait 1", "esl.queue")
        await put("2", "wait 2", "esl.queue.fs1")
        # One stands behind the other in the simulator, whichever came first.
        await until(lambda: {"wait 1", "wait 2"} & set(switch.executed) and worker.commands.in_flight == 2)
        if not safe:
            await until(lambda: [one.record is not None for one in ledger._running.values()] == [True, True])
        lower = "max_payload: 100KB"
        if how == "reload":
            broker.reload(lower)
            await until(lambda: "Reloaded server configuration" in "".join(broker._output))
            go_on.set()
        else:
            broker._config = lower
            await broker.kill()
            await until(lambda: not worker.bus.connected)
            go_on.set()
            if safe:
                await until(lambda: worker.commands.in_flight == 0)
            else:
                await until(lambda: len(ledger) == 2 and all(one.ending for one in ledger._running.values()))
            await broker.start()
        said: dict[str, Any] = {}
        while len(said) < 2:
            one = json.loads((await replies.next_msg(timeout=20)).data)
            said[one["id"]] = one["status"], one["executed"]
        assert said == {"1": ("too_large", "yes"), "2": ("too_large", "yes")}
        await put("3", "eval 3", "esl.queue")
        assert json.loads((await replies.next_msg(timeout=20)).data)["result"] == "3"
        assert safe or max(switch.executed[line] for line in ("wait 1", "wait 2")) == 1


async def test_a_caller_hears_that_its_reply_does_not_fit_any_more(nats_house: House) -> None:
    switch = await nats_house.switch()
    worker = await nats_house.worker(switch)
    switch.api.commands["big"] = lambda argument: "x" * 300_000
    client = await nats_house.client()
    assert (await client.request({"command": "big 1"}, timeout=20)).status == "ok"
    # As where the broker came back with less while the ledger was asked: the bus knows, the reply does not.
    keep = worker.commands._ledger.keep

    def lowered(key: str, reply: Any, stored: Any) -> None:
        worker.bus._keeper.link.wire.limit = worker.bus._max_payload = 100_000
        keep(key, reply, stored)

    worker.commands._desk.ledger.keep = lowered
    reply = await client.request({"command": "big 2"}, timeout=20)
    assert (reply.status, reply.executed, reply.result) == ("too_large", "yes", None)


async def test_outcomes_are_kept_as_long_as_they_have_to_be_whatever_the_bucket_says_by_now(nats_house: House) -> None:
    await nats_house.worker(await nats_house.switch(), commands={"claim_after": 1.0})
    async with await nats.connect(nats_house.broker.url) as client:
        streams = client.jetstream()

        async def lasting() -> float:
            return float((await streams.stream_info("KV_esl-bridge-ledger")).config.max_age or 0)

        config = (await streams.stream_info("KV_esl-bridge-ledger")).config
        wanted = await lasting()
        config.max_age = config.duplicate_window = 1
        await streams.update_stream(config)
        assert await lasting() == 1
        async with asyncio.timeout(20):
            while await lasting() != wanted:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        config.max_age = 2 * wanted  # longer is as good
        await streams.update_stream(config)
        client_of_ours = await nats_house.client()
        assert (await client_of_ours.request({"command": "eval 1"}, timeout=10)).status == "ok"
        assert await lasting() == 2 * wanted
