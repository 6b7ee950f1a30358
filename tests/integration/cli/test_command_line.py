"""From FreeSWITCH's socket to a terminal and back, with nothing but the command line."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import sys
import urllib.request
from pathlib import Path

import pytest

from bridge.bus.embedded import EmbeddedBroker
from bridge.simulator import SimulatedSwitch


@pytest.fixture
async def switch():
    async with SimulatedSwitch(calls_per_second=10, call_duration=0.5, heartbeat_interval=1, hostname="sim") as switch:
        yield switch


@pytest.fixture
def config(tmp_path: Path, broker: EmbeddedBroker, switch: SimulatedSwitch) -> Path:
    file = tmp_path / "bridge.toml"
    file.write_text(
        f"""
[worker]
state_dir = "{tmp_path / "state"}"
[bus]
url = "{broker.url}"
[[node]]
name = "fs1"
url = "{switch.url}"
tags = ["media"]
[http]
listen = "127.0.0.1:0"
"""
    )
    return file


async def fetch(url: str) -> tuple[int, str]:
    def get() -> tuple[int, str]:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status, response.read().decode()

    return await asyncio.to_thread(get)


def children_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def is_alive(pid: str) -> bool:
    return Path(f"/proc/{pid}").exists()


@pytest.mark.broker
async def test_events_and_commands_flow_and_a_signal_drains(start, config, switch, broker):
    worker = await start("run")
    page = json.loads((await worker.line(r'"event": "worker started"')).string)["page"]
    await worker.line("requests are taken")

    tail = await start("tail", "CHANNEL_*", "--json", "-n", "3", "--where", "Caller-Destination-Number=*")
    readable = await start("tail", "HEARTBEAT", "-n", "1", "--bus", broker.url)
    assert await tail.end() == 0, tail.err
    events = [json.loads(line) for line in tail.out]
    assert len(events) == 3
    for event in events:
        assert event["node"] == "fs1"
        assert event["id"].startswith(switch.core_uuid + ":")
        assert event["data"]["Event-Name"].startswith("CHANNEL_")

    assert await readable.end() == 0, readable.err
    assert re.search(r"fs1 +HEARTBEAT .*Session-Count=", readable.out[0])

    calls = {
        "all": await start("call", "--to", "all", "status"),
        "originate": await start("call", "--json", "originate", "user/1000", "&park"),
        "unknown": await start("call", "no_such_command"),
        "denied": await start("call", "system", "ls"),
    }
    codes = {name: await call.end() for name, call in calls.items()}
    assert codes == {"all": 0, "originate": 0, "unknown": 1, "denied": 1}
    assert calls["all"].out[0].startswith("fs1: UP ")
    originated = json.loads(calls["originate"].out[0])
    assert originated["status"] == "ok"
    assert originated["result"].startswith("+OK ")
    assert originated["job"]
    assert calls["unknown"].err == ["error (executed: yes) -ERR no_such_command Command not found!"]
    assert calls["denied"].err[0].startswith("denied (executed: no)")
    assert not any(line.startswith("system") for line in switch.executed)

    assert (await fetch(page + "live"))[0] == 200
    assert (await fetch(page + "ready"))[0] == 200
    nodes = json.loads((await fetch(page + "nodes"))[1])
    assert [(node["name"], node["state"]) for node in nodes["nodes"]] == [("fs1", "UP")]
    metrics = (await fetch(page + "metrics"))[1]
    assert re.search(r'esl_bridge_events_published_total\{node="fs1"\} [1-9]', metrics)
    assert re.search(r'esl_bridge_commands_total\{op="api",status="denied"\} 1.0', metrics)

    assert await worker.end(signal.SIGTERM) == 0, worker.err
    assert "ClueCon" not in "".join(worker.out + worker.err)


async def test_check_connects_and_says_what_is_wrong(start, switch, tmp_path):
    (tmp_path / "bridge.toml").write_text(f'[bus]\nurl = "memory://"\n[[node]]\nname = "fs1"\nurl = "{switch.url}"\n')
    good = await start("check", "--connect")
    refused = await start("check", "--connect", ESL_BRIDGE_NODE__fs1__URL=switch.url.replace("ClueCon", "geheim"))
    absent = await start("check", "--connect", ESL_BRIDGE_NODE__fs1__URL="fs://:x@127.0.0.1:1")
    no_nats = await start("check", "--connect", ESL_BRIDGE_BUS__URL="nats://u:geheim@127.0.0.1:1")
    no_redis = await start("check", "--connect", ESL_BRIDGE_BUS__URL="redis://u:geheim@127.0.0.1:1")
    checks = (good, refused, absent, no_nats, no_redis)
    assert [await each.end() for each in checks] == [0, 78, 69, 69, 69], [each.out for each in checks]
    assert "logged in; UP" in "\n".join(good.out)
    for each in checks:
        shown = "".join(each.out + each.err)
        assert "ClueCon" not in shown
        assert "geheim" not in shown


@pytest.mark.broker
async def test_the_demo_shows_events_and_commands_and_leaves_nothing_behind(start, broker):
    demo = await start("demo", "--bus", broker.kind, "--rate", "5", "--port", "0")
    own = await demo.line(r"^bus +(nats|redis)://127\.0\.0\.1:(\d+)")
    page = (await demo.line(r"^web page +(http://\S+)"))[1]
    await demo.line(r"CHANNEL_CREATE")
    await demo.line(r"▶ status  ◀ ok executed=yes")
    await demo.line(r"▶ originate user/1000 &park  ◀ ok executed=yes .* \+OK ")
    nodes = json.loads((await fetch(page + "nodes"))[1])
    assert nodes["nodes"][0]["state"] == "UP"
    children = children_of(demo.process.pid)
    assert children
    assert await demo.end(signal.SIGINT) == 0, demo.err
    assert any(line.startswith("commands: ") for line in demo.out)
    assert not any("\x1b" in line for line in demo.out)
    assert not any(is_alive(child) for child in children)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", int(own[2]))
    assert demo.err == []


async def test_the_demo_ends_after_its_time(start):
    demo = await start("demo", "--for", "2", "--rate", "20", "--port", "0")
    assert await demo.end() == 0, demo.err
    assert re.search(r"events: [1-9]", "\n".join(demo.out))


async def test_simulate_is_a_freeswitch_that_users_can_talk_to(start, tmp_path):
    simulated = await start("simulate", "--port", "0", "--password", "s3cret", "--rate", "20", "--heartbeat", "0.5")
    url = (await simulated.line(r'url = "(fs://\S+)"'))[1]
    (tmp_path / "bridge.toml").write_text(f'[bus]\nurl = "memory://"\n[[node]]\nname = "sim"\nurl = "{url}"\n')
    check = await start("check", "--connect")
    assert await check.end() == 0, check.out
    assert "s3cret" not in "".join(check.out)
    assert await simulated.end(signal.SIGINT) == 0
    assert simulated.out[-1].startswith("ended: ")


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["asyncapi", "--bus", "memory://"], ["--version"], ["simulate", "--fault", "list"],
     ["simulate", "--port", "0", "--for", "0.1"]],
)  # fmt: skip
async def test_a_reader_that_goes_away_is_no_fault(arguments):
    reading, writing = os.pipe()
    os.close(reading)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bridge", *arguments),
        stdout=writing,
        stderr=asyncio.subprocess.PIPE,
    )
    os.close(writing)
    _, told = await process.communicate()
    assert told == b""
    assert process.returncode == 0


@pytest.mark.parametrize(("command", "code"), [("call status", 130), ("tail", 0)])
@pytest.mark.parametrize("scheme", ["nats", "redis"])
async def test_an_interrupt_ends_a_command_that_still_connects(start, command, code, scheme):
    with socket.create_server(("127.0.0.1", 0)) as server:
        cli = await start(*command.split(), "--bus", f"{scheme}://127.0.0.1:{server.getsockname()[1]}")
        met, _ = await asyncio.to_thread(server.accept)
        with met:  # and not a word
            async with asyncio.timeout(3):  # it would try for 5 s
                assert await cli.end(signal.SIGINT) == code


async def test_a_port_that_is_taken_is_told_and_ends_with_78(start, tmp_path):
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    (tmp_path / "bridge.toml").write_text(
        f'[worker]\nstate_dir = "{tmp_path}"\n[bus]\nurl = "memory://"\n[http]\nlisten = "127.0.0.1:{port}"\n'
        '[[node]]\nname = "a"\nurl = "fs://:x@127.0.0.1:1"\n'
    )
    worker = await start("run")
    assert await worker.end() == 78
    assert any("http.listen: cannot listen" in line for line in worker.err)
    server.close()
    await server.wait_closed()
