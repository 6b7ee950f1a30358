"""How workers start, end, reload and are supervised: as processes, with what systemd and honcho would do to them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bridge.bus.embedded import EmbeddedBroker
from bridge.cli import main
from bridge.client import Bridge
from bridge.simulator import SimulatedSwitch

ROOT = Path(__file__).resolve().parents[3]
PATIENCE = 60.0


@pytest.fixture
async def switch():
    async with SimulatedSwitch(heartbeat_interval=0.5, hostname="sim") as switch:
        yield switch


@pytest.fixture
async def nats() -> Any:
    async with EmbeddedBroker("nats") as broker:
        yield broker


class Config:
    """A configuration file that can be written anew."""

    def __init__(self, folder: Path, url: str, node: str) -> None:
        self.file = folder / "bridge.toml"
        self._folder, self._url, self._node = folder, url, node

    def write(self, more: str = "", *, listen: str = "127.0.0.1:0", drain: float = 20.0) -> None:
        self.file.write_text(
            f'[worker]\nstate_dir = "{self._folder / "state"}"\ndrain_timeout = {drain}\n'
            f'[bus]\nurl = "{self._url}"\n[http]\nlisten = "{listen}"\n'
            f'[[node]]\nname = "fs1"\nurl = "{self._node}"\n{more}'
        )


@pytest.fixture
def config(tmp_path: Path, nats: EmbeddedBroker, switch: SimulatedSwitch) -> Config:
    config = Config(tmp_path, nats.url, switch.url)
    config.write()
    return config


class Systemd:
    """The service manager's end of the notify socket."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.setblocking(False)
        self.environ = {"NOTIFY_SOCKET": str(path)}
        self.told: list[str] = []

    async def until(self, text: str, *, after: int = 0) -> int:
        """Wait for a line; returns how many lines have been told until then."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(PATIENCE):
            while text not in self.told[after:]:
                self.told += (await loop.sock_recv(self.socket, 4096)).decode().split("\n")
        return len(self.told)


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    systemd = Systemd(tmp_path / "notify")
    yield systemd
    systemd.socket.close()


async def fetch(url: str) -> tuple[int, str]:
    def get() -> tuple[int, str]:
        try:
            with urllib.request.urlopen(url, timeout=5) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    return await asyncio.to_thread(get)


async def until(condition: Any, cli: Any = None) -> None:
    """Wait for a condition; what ``cli`` said is shown when it does not come."""
    try:
        async with asyncio.timeout(PATIENCE):
            while not condition():  # noqa: ASYNC110 - the condition is anybody's state
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError("\n".join(cli.err[-40:] if cli else ["it never came"])) from None


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def children_of(cli: Any) -> list[int]:
    pid = cli.process.pid
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def events(cli: Any, name: str) -> list[dict[str, Any]]:
    """The log lines of this name."""
    lines = (json.loads(line) for line in list(cli.err) if line.startswith("{"))
    return [line for line in lines if line.get("event") == name]


async def test_systemd_hears_of_start_reload_life_and_end(start, config, systemd):
    worker = await start("run", **systemd.environ, WATCHDOG_USEC="600000")
    seen = await systemd.until("READY=1")
    seen = await systemd.until("WATCHDOG=1", after=seen)
    await systemd.until("STATUS=ready, 1 of 1 nodes serve")
    seen = len(systemd.told)
    worker.process.send_signal(signal.SIGHUP)
    seen = await systemd.until("RELOADING=1", after=seen)
    assert any(line.startswith("MONOTONIC_USEC=") for line in systemd.told[seen - 5 :])
    seen = await systemd.until("READY=1", after=seen)
    # A loop that does not turn sends no sign of life: systemd would end it now.
    worker.process.send_signal(signal.SIGSTOP)
    await until(lambda: Path(f"/proc/{worker.process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
    with contextlib.suppress(BlockingIOError):
        while systemd.socket.recv(4096):
            pass
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1.0):
            await systemd.until("WATCHDOG=1", after=len(systemd.told))
    worker.process.send_signal(signal.SIGCONT)
    await systemd.until("WATCHDOG=1", after=len(systemd.told))
    worker.process.send_signal(signal.SIGTERM)
    await systemd.until("STOPPING=1", after=seen)
    assert await worker.end() == 0, worker.err


async def test_ready_says_when_it_can_serve(start, tmp_path, switch, nats):
    config = Config(tmp_path, "nats://127.0.0.1:1", switch.url)
    config.write(drain=1.0)
    worker = await start("run")
    page = json.loads((await worker.line(r'"event": "worker started"')).string)["page"]
    assert (await fetch(page + "live"))[0] == 200
    assert await fetch(page + "ready") == (503, "not ready: the bus is not connected\n")
    assert await worker.end(signal.SIGTERM) == 0, worker.err


async def test_without_a_configured_node_it_waits_for_those_of_the_bus(start, config, nats, switch):
    text = config.file.read_text()
    config.file.write_text(text[: text.index("[[node]]")])
    worker = await start("run")
    page = json.loads((await worker.line(r'"event": "worker started"')).string)["page"]
    await worker.line(r'"event": "ready"')
    assert await fetch(page + "ready") == (200, "ready\n")
    assert any("no FreeSWITCH node is configured" in line for line in worker.err)
    assert await asyncio.to_thread(main, ["nodes", "add", "late", switch.url, "--bus", nats.url]) == 0
    await until(lambda: switch.connections, worker)
    assert await worker.end(signal.SIGTERM) == 0, worker.err


async def test_sigterm_lets_commands_end_and_a_second_one_does_not(start, config, switch, nats):
    worker = await start("run")
    await worker.line('"event": "ready"')
    async with Bridge(nats.url) as client:
        asked = asyncio.create_task(client.request({"command": "msleep 1500"}, timeout=20))
        await until(lambda: any(line.startswith("msleep") for line in switch.executed))
        worker.process.send_signal(signal.SIGTERM)
        reply = await asked
        assert (reply.status, reply.executed) == ("ok", "yes")
        assert await worker.end() == 0, worker.err

        switch.executed.clear()
        worker = await start("run")
        await worker.line('"event": "ready"')
        hanging = asyncio.create_task(client.request({"command": "msleep 60000", "timeout_ms": 90000}, timeout=90))
        await until(lambda: any(line.startswith("msleep") for line in switch.executed))
        worker.process.send_signal(signal.SIGTERM)
        await worker.line('"event": "worker draining"')
        assert worker.process.returncode is None
        assert await worker.end(signal.SIGTERM) == 1
        assert "esl-bridge: ended before the drain was complete" in worker.err
        hanging.cancel()


async def test_reload_changes_what_can_change_and_refuses_a_wrong_file(start, config, switch, nats):
    worker = await start("run")
    page = json.loads((await worker.line(r'"event": "worker started"')).string)["page"]
    await worker.line('"event": "ready"')
    async with Bridge(nats.url) as client, SimulatedSwitch(heartbeat_interval=0.5, password="s3cret-two") as second:
        config.write(
            f'[[node]]\nname = "fs2"\nurl = "{second.url}"\n[policy]\ndeny = ["version"]\n[commands]\nqueue = "other"\n'
        )
        connections = switch.connections_made
        reloading = await start("reload")
        assert await reloading.end() == 0, reloading.err
        told = "\n".join(reloading.out)
        assert re.search(r"^worker-1 \(pid \d+\): 2 changes$", told, re.MULTILINE)
        assert "node fs2: fs://:***@127.0.0.1" in told
        assert 'policy.deny: default -> ["version"]' in told
        assert 'after a restart: commands.queue: "esl.cmd" -> "other"' in told
        (line,) = events(worker, "configuration reloaded")
        assert len(line["changes"]) == 2
        assert (await client.request({"command": "version"}, timeout=10)).status == "denied"
        await until(lambda: any(connection.authenticated for connection in second.connections))
        assert switch.connections_made - connections <= 1  # a command's own; the event link stands

        config.write('[policy]\ndenny = ["x"]\n')
        refused = await start("reload")
        assert await refused.end() == 78
        assert "denny" in "\n".join(refused.err)
        assert events(worker, "configuration not reloaded, nothing changed") == []
        # The same by the signal alone: the worker's log says why, and what runs goes on.
        worker.process.send_signal(signal.SIGHUP)
        await worker.line("configuration not reloaded, nothing changed")
        (line,) = events(worker, "configuration not reloaded, nothing changed")
        assert any("denny" in text for text in line["problems"])
        assert (await client.request({"command": "version"}, timeout=10)).status == "denied"
        assert "esl_bridge_config_good 0.0" in (await fetch(page + "metrics"))[1]
        assert "s3cret-two" not in "".join(worker.err + reloading.out)
    assert await worker.end(signal.SIGTERM) == 0, worker.err


async def test_reload_without_a_worker_says_so(start, config):
    reloading = await start("reload")
    assert await reloading.end() == 69
    assert "no worker runs" in reloading.err[0]


def free_ports(count: int) -> int:
    """The first of so many free ports in a row."""
    for first in range(20_000 + os.getpid() % 20_000, 60_000, count):
        sockets = []
        try:
            for port in range(first, first + count):
                one = socket.socket()
                sockets.append(one)
                one.bind(("127.0.0.1", port))
        except OSError:
            continue
        else:
            return first
        finally:
            for one in sockets:
                one.close()
    raise AssertionError("no free ports")


async def test_many_workers_share_the_work_and_the_dead_are_replaced(start, config, systemd, nats):
    port = free_ports(2)
    config.write(listen=f"127.0.0.1:{port}")
    parent = await start("run", "--workers", "2", **systemd.environ)
    await systemd.until("READY=1")
    pages = [f"http://127.0.0.1:{port + number}/" for number in range(2)]
    ids = [json.loads((await fetch(page + "nodes"))[1])["worker"] for page in pages]
    assert len(set(ids)) == 2
    await until(lambda: len(events(parent, "ready")) >= 2, parent)

    children = children_of(parent)
    assert len(children) == 2
    os.kill(children[0], signal.SIGKILL)
    await parent.line("worker died, starts again")
    await until(lambda: len(events(parent, "worker started")) == 3, parent)
    async with Bridge(nats.url) as client:
        assert (await client.request({"command": "status"}, timeout=20)).status == "ok"

    config.write('[policy]\ndeny = ["version"]\n', listen=f"127.0.0.1:{port}")
    parent.process.send_signal(signal.SIGHUP)
    await until(lambda: len(events(parent, "configuration reloaded")) == 2, parent)

    assert await parent.end(signal.SIGTERM) == 0, parent.err
    assert "STOPPING=1" in systemd.told or await systemd.until("STOPPING=1")
    assert len(events(parent, "worker ended")) == 2
    assert not any(is_alive(child) for child in children)


async def test_a_worker_that_hangs_is_replaced(start, config, systemd):
    parent = await start("run", "--workers", "2", **systemd.environ, WATCHDOG_USEC="6000000")
    await until(lambda: len(events(parent, "ready")) >= 2, parent)
    child = children_of(parent)[0]
    os.kill(child, signal.SIGSTOP)
    await parent.line("worker hangs")
    await until(lambda: len(events(parent, "worker started")) == 3, parent)
    assert not is_alive(child)
    assert await parent.end(signal.SIGTERM) == 0, parent.err


async def test_workers_end_with_their_parent(start, config):
    parent = await start("run", "--workers", "2")
    await until(lambda: len(events(parent, "ready")) >= 2, parent)
    children = children_of(parent)
    parent.process.kill()
    await until(lambda: not any(is_alive(child) for child in children))
    await parent.end()


async def test_workers_that_can_never_run_end_the_parent(start, config, nats):
    config.write(listen="127.0.0.1:0")
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    config.write(listen=f"127.0.0.1:{port}")
    parent = await start("run", "--workers", "2")
    assert await parent.end() == 78, parent.err
    server.close()
    await server.wait_closed()


async def test_workers_need_names_of_their_own(start, config):
    parent = await start("run", "--workers", "2", ESL_BRIDGE_WORKER__ID="one")
    assert await parent.end() == 78
    assert any("worker.id" in line for line in parent.err)


async def test_the_procfile_runs_with_honcho(config, tmp_path):
    pytest.importorskip("honcho")
    scripts = Path(sys.executable).parent
    environ = {key: value for key, value in os.environ.items() if not key.startswith("ESL_BRIDGE_")}
    assert shutil.which("esl-bridge", path=str(scripts))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "honcho", "-f", str(ROOT / "Procfile"), "-d", str(tmp_path), "start"),
        cwd=tmp_path,
        env={**environ, "PATH": f"{scripts}:{environ['PATH']}", "PYTHONUNBUFFERED": "1"},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout is not None
    told = ""
    try:
        async with asyncio.timeout(PATIENCE):
            while '"event": "ready"' not in told:
                line = await process.stdout.readline()
                assert line, told
                told += line.decode()
            process.send_signal(signal.SIGTERM)
            told += (await process.stdout.read()).decode()
            await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert "worker ended" in told
    assert "Traceback" not in told


# Sends Ctrl-C while the module named is being imported.
INTERRUPTED = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests in the background ignores it
class Finder:
    def find_spec(self, name, *_):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
sys.argv = ["esl-bridge", *{arguments!r}]
from bridge.__main__ import main
sys.exit(main())
"""


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("typer", ["--version"]),
        ("pydantic", ["run"]),
        ("bridge.worker", ["run"]),
        ("bridge.client", ["call", "status"]),
    ],
)
async def test_ctrl_c_while_it_starts_prints_no_traceback(config, tmp_path, module, arguments):
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", INTERRUPTED.format(module=module, arguments=arguments)),
        cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(PATIENCE):
        _, told = await process.communicate()
    assert b"Traceback" not in told, told.decode()
    assert process.returncode in (-signal.SIGINT, 130, 0)
