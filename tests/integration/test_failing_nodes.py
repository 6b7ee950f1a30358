"""A FreeSWITCH that fails: killed connections, stalls, a wrong password, restarts. Seen from the bus, on either bus."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections import Counter
from typing import Any

import pytest

from bridge.errors import BridgeError, CommandFailed
from bridge.messages.reply import CommandReply
from tests.integration.conftest import House, until, working
from tests.integration.switch.wire import RawSwitch


async def test_killed_connections_answer_every_caller_once(house: House) -> None:
    """Every way FreeSWITCH ends a connection, again and again, under 200 callers: one outcome each, none another's."""
    switch = await house.switch()
    worker = await house.worker(switch)
    client = await house.client()
    lost: list[str] = []
    await client.notices(lambda notice: lost.append(notice.data["reason"]), "gap")
    ends = (switch.drop_connections, switch.kill_listeners, switch.say_goodbye, switch.shut_down)

    async def call(number: int) -> tuple[int, CommandReply]:
        command = f"echo {number}" if number % 3 else f"msleep {number % 7 * 20}"  # a job
        request = {"id": f"k{number}", "command": command, "to": "fs1", "timeout_ms": 20_000 if number % 3 else 3000}
        return number, await client.request(request, timeout=30)

    calls = [asyncio.create_task(call(number)) for number in range(200)]
    for end in ends * 3:
        await asyncio.sleep(0.05)
        end()
    replies = dict(await asyncio.gather(*calls))
    told = {"ok", "connection_lost", "unavailable"}
    assert {reply.status for number, reply in replies.items() if number % 3} <= told
    # A job goes on without its connection; where its result was sent while none was there, only its deadline can tell.
    assert {reply.status for number, reply in replies.items() if not number % 3} <= told | {"timeout"}
    for number, reply in replies.items():
        assert reply.id == f"k{number}"
        if reply.status == "ok" and number % 3:
            assert reply.result == str(number)
        if reply.executed == "no":
            assert switch.executed[f"echo {number}"] == 0
    assert all(count == 1 for line, count in switch.executed.items() if line.startswith("echo"))
    await until(lambda: worker.nodes.serving() == ["fs1"])
    assert (await client.api("echo after", timeout=10)).result == "after"
    await until(lambda: "link" in lost)
    assert switch.connections_made < 60  # 12 cuts of a link and up to four command connections


async def test_the_result_of_a_job_whose_connection_is_cut_is_not_lost(house: House) -> None:
    """Only the command connections die, just when the job ends: the event link has its result all the same."""
    switch = await house.switch(heartbeat_interval=5.0)
    await house.worker(switch)
    client = await house.client()
    assert (await client.api("echo first", to="fs1", timeout=10)).result == "first"
    job = asyncio.create_task(client.request({"op": "bgapi", "command": "msleep 500", "to": "fs1"}, timeout=60))
    await until(lambda: switch.executed["msleep 500"])
    switch.deny = True  # no new connection takes over
    for connection in [one for one in switch.connections if not one.subscription.everything]:
        connection.abort(reset=True)
    reply = await job
    assert (reply.status, reply.result) == ("ok", "+OK")


async def test_a_wrong_password_and_its_mending(house: House) -> None:
    switch = await house.switch(password="right")
    client = await house.client()
    states: list[dict[str, Any]] = []
    await client.notices(lambda notice: states.append(notice.data), "node")
    url = f"fs://:mistaken@127.0.0.1:{switch.port}"
    async with working(house, {"name": "fs1", "url": url}) as worker:
        await until(lambda: [state for state in states if state["state"] == "DOWN"])
        assert states[-1]["reason"].startswith("auth_failed")
        assert "mistaken" not in states[-1]["reason"]
        await until(lambda: worker.queues.taken)  # a worker without a node waits for one a little first
        for _ in range(50):
            reply = await client.request({"command": "status", "to": "fs1"}, timeout=10)
            assert (reply.status, reply.executed) == ("unavailable", "no")
        assert switch.connections_made <= 2  # the link's attempt and the pool's, and no more for half a minute
        assert worker.describe()["nodes"][0]["state"] == "DOWN"
    async with working(house, {"name": "fs1", "url": switch.url}) as worker:
        await until(lambda: worker.ready[0] and worker.nodes.serving() == ["fs1"])
        assert (await client.api("echo hello", to="fs1", timeout=20)).result == "hello"


async def test_a_restart_ends_what_ran_and_is_told(house: House) -> None:
    """Jobs and calls of the FreeSWITCH before are gone: said at once, and nothing of it is mixed with the new one."""
    switch = await house.switch()
    await house.worker(switch)
    client = await house.client()
    ends: list[tuple[str, Any]] = []
    restarted: list[str] = []
    await client.notices(
        lambda notice: restarted.append(notice.data["core_uuid"]) if notice.data.get("restarted") else None, "node"
    )
    stream = await client.subscribe("CHANNEL_HANGUP_COMPLETE")
    uuid = (await client.api("originate user/1000 &park", to="fs1", timeout=20)).result.removeprefix("+OK ").strip()
    before = switch.core_uuid
    job = asyncio.create_task(client.request({"op": "bgapi", "command": "msleep 600000", "to": "fs1"}, timeout=600))
    await until(lambda: switch.executed["msleep 600000"])
    await switch.restart(downtime=0.5)
    reply = await asyncio.wait_for(job, 30)
    assert (reply.status, reply.executed) == ("connection_lost", "unknown")
    event = await anext(stream)
    ends.append((event["Unique-ID"], event.data["Core-UUID"]))
    assert ends == [(uuid, before)]
    assert event.attributes["synthetic"] is True
    await until(lambda: restarted)
    assert set(restarted) == {switch.core_uuid}
    assert (await client.api("echo new", to="fs1", timeout=20)).result == "new"
    missing = await client.request({"op": "hangup", "uuid": uuid}, timeout=20)
    assert (missing.status, missing.executed) == ("no_route", "no")


@pytest.mark.parametrize("fault", ["stall:1s", "slow_api:1s", "late:1s"])
async def test_a_stalled_connection_holds_up_nobody_for_longer(house: House, fault: str) -> None:
    switch = await house.switch(heartbeat_interval=5.0)
    worker = await house.worker(switch)
    client = await house.client()
    stream = await client.subscribe("CUSTOM:stalled")
    switch.faults.add(fault)
    replies = await asyncio.gather(
        *(client.request({"command": f"echo {n}", "to": "fs1", "timeout_ms": 300}, timeout=20) for n in range(50))
    )
    for number, reply in enumerate(replies):
        assert reply.status in ("ok", "timeout")
        assert reply.status != "ok" or reply.result == str(number)
    assert sum(reply.status == "timeout" for reply in replies) <= 16  # those behind the stalled one
    for number in range(20):
        switch.fire("CUSTOM", {"n": str(number)}, subclass="stalled")
    assert [(await anext(stream))["n"] for _ in range(20)] == [str(number) for number in range(20)]
    assert worker.describe()["nodes"][0]["reconnects"] == 0


async def test_a_freeswitch_that_is_stopped_and_goes_on(house: House) -> None:
    """SIGSTOP: the kernel still takes connections and bytes, nobody answers. No command waits past its deadline."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bridge", "simulate", "--port", "0", "--heartbeat", "1", "--rate", "5", "--duration",
        "1", stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        url = ""
        while "fs://" not in url:
            url = (await process.stdout.readline()).decode()
        node = {"name": "fs1", "url": url.split('"')[1]}
        async with working(house, node) as worker:
            await until(lambda: worker.ready[0] and worker.nodes.serving() == ["fs1"])
            link = next(iter(worker.nodes)).link
            await until(lambda: link.heartbeat_interval < 2)
            client = await house.client()
            states: list[tuple[str, str]] = []
            await client.notices(lambda notice: states.append((notice.data["state"], notice.data["reason"])), "node")
            stream = await client.subscribe("*", limit=100_000)
            assert (await client.api("echo before", timeout=10)).result == "before"
            process.send_signal(signal.SIGSTOP)
            begun = time.monotonic()
            outcomes = await asyncio.gather(
                *(client.api(f"echo {number}", timeout=2.0) for number in range(50)), return_exceptions=True
            )
            assert time.monotonic() - begun < 20  # deadlines of 2 s; the machine may be slow
            told = Counter(one.reply.status for one in outcomes if isinstance(one, CommandFailed))
            assert told.total() == 50
            assert told.keys() <= {"timeout", "expired", "unavailable", "connection_lost"}
            await until(lambda: any(state == "DOWN" for state, _ in states))
            assert [state for state, _ in states][:2] == ["SUSPECT", "DOWN"]
            assert states[1][1].startswith("heartbeat")
            process.send_signal(signal.SIGCONT)
            await until(lambda: states[-1][0] == "UP")
            async with asyncio.timeout(20):
                while True:
                    try:
                        assert (await client.api("echo after", timeout=5)).result == "after"
                        break
                    except BridgeError:
                        await asyncio.sleep(0.1)
            await asyncio.sleep(0.5)
            await stream.close()
            ids = Counter([event.id async for event in stream])
            assert ids.most_common(1)[0][1] == 1
            assert stream.lost == 0
    finally:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        assert await process.wait() == 0


async def test_two_hundred_nodes_with_a_dead_freeswitch(house: House) -> None:
    """Attempts spread and get rarer, commands are refused at once, and the one node that lives is served."""
    async with RawSwitch() as dead:
        dead.greeting = b""

        async def at_once(*streams: Any) -> None:
            dead.accepted_at.append(asyncio.get_running_loop().time())
            streams[1].close()

        server = await asyncio.start_server(at_once, "127.0.0.1", 0, backlog=1024)
        port = server.sockets[0].getsockname()[1]
        switch = await house.switch()
        nodes = [{"name": f"dead{n}", "url": f"fs://:ClueCon@127.0.0.1:{port}"} for n in range(200)]
        async with working(house, {"name": "alive", "url": switch.url}, *nodes) as worker:
            await until(lambda: worker.ready[0] and "alive" in worker.nodes.serving())
            await until(lambda: len(dead.accepted_at) >= 200)
            client = await house.client()
            assert (await client.api("echo hello", timeout=10)).result == "hello"
            begun = time.monotonic()
            answers = await asyncio.gather(
                *(client.api("status", to=f"dead{n}", timeout=20) for n in range(200)), return_exceptions=True
            )
            assert time.monotonic() - begun < 15
            assert {one.reply.status for one in answers if isinstance(one, CommandFailed)} == {"unavailable"}
            since = time.monotonic()
            before = len(dead.accepted_at)
            await asyncio.sleep(3)
            rate = (len(dead.accepted_at) - before) / (time.monotonic() - since)
            assert rate < 400  # 200 nodes, each at most once in half a second by now
            assert (await client.api("echo again", timeout=10)).result == "again"
        server.close()
