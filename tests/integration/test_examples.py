"""The examples of the documentation run as they stand, against a real broker, a worker and a simulated FreeSWITCH."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import NoReturn

import pytest

from bridge.bus.embedded import valkey_server_path
from bridge.simulator import SimulatedSwitch
from tests.conftest import unavailable
from tests.integration.conftest import House

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "docs" / "examples"
_MARKED = re.compile(r"<!-- example: python -->\n```python\n(.*?)```", re.DOTALL)


def program(page: str, url: str) -> str:
    """The example of a page as a program of its own, on our bus."""
    text = (ROOT / page).read_text("utf-8")
    found = _MARKED.search(text)
    assert found, f"{page} has no example that is marked"
    code = found[1].replace("nats://127.0.0.1:4222", url)
    if "asyncio.run" not in code:
        code = f"import asyncio\nasync def main():\n{textwrap.indent(code, '    ')}\nasyncio.run(main())\n"
    return code


@contextlib.asynccontextmanager
async def running(*command: str, **environment: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process of ours, ended whatever happens."""
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def lines_until(process: asyncio.subprocess.Process, *patterns: str) -> list[str]:
    """What it printed until every pattern was seen in some line."""
    assert process.stdout is not None
    seen: list[str] = []
    missing = list(patterns)
    async with asyncio.timeout(60):
        while missing:
            line = (await process.stdout.readline()).decode()
            if not line:
                raise AssertionError(f"ended without {missing}:\n{''.join(seen)}")
            seen.append(line)
            missing = [pattern for pattern in missing if not re.search(pattern, line)]
    return seen


@pytest.mark.parametrize(
    ("page", "patterns"),
    [
        ("README.md", ("UP 0 years", "CHANNEL_")),
        ("docs/reference/client.md", ("UP 0 years", "CHANNEL_")),
        ("docs/tutorial/first-steps.md", ("answered on fs1", r"\+OK")),
    ],
)
async def test_python_examples_run(house: House, page: str, patterns: Sequence[str]) -> None:
    await house.worker(await house.switch(calls_per_second=20.0))
    async with running(sys.executable, "-c", program(page, house.broker.url)) as process:
        await lines_until(process, *patterns)


async def test_the_simulators_example_runs() -> None:
    async with running(sys.executable, "-c", program("docs/how-to/test-against-a-simulator.md", "")) as process:
        await lines_until(process, r"fs://:secret@127\.0\.0\.1:\d+")
        async with asyncio.timeout(30):
            assert await process.wait() == 0


# --- shell ------------------------------------------------------------------------------------------------------------


async def answer(*command: str, **environment: str) -> tuple[int, str]:
    async with running(*command, **environment) as process, asyncio.timeout(30):
        assert process.stdout is not None
        text = (await process.stdout.read()).decode()
        return await process.wait(), text


def shell(house: House, *words: str) -> tuple[tuple[str, ...], dict[str, str]]:
    if house.broker.kind == "nats":
        return (str(EXAMPLES / "shell" / "nats.sh"), "127.0.0.1", str(house.broker.port), *words), {}
    client = next((path for path in (find_redis_cli(),) if path), "")
    if not client:
        unavailable("neither redis-cli nor valkey-cli is here")
    return (str(EXAMPLES / "shell" / "redis.sh"), *words), {"REDIS_CLI": f"{client} -p {house.broker.port}"}


def find_redis_cli() -> str:
    beside = valkey_server_path().with_name("valkey-cli")
    return str(beside) if beside.is_file() else shutil.which("redis-cli") or shutil.which("valkey-cli") or ""


async def test_shell_examples_run(house: House) -> None:
    switch = await house.switch()
    await house.worker(switch)
    for words, result in (("echo hello",), "hello"), (("echo", 'a "quoted" \\ text'), 'a "quoted" \\ text'):
        command, environment = shell(house, *words)
        code, text = await answer(*command, **environment)
        assert code == 0, text
        reply = json.loads(text)
        assert (reply["status"], reply["executed"], reply["result"]) == ("ok", "yes", result)
    command, environment = shell(house, "system", "reboot")
    code, text = await answer(*command, **environment)
    assert json.loads(text)["status"] == "denied"
    assert switch.executed["system reboot"] == 0


async def test_the_nats_shell_example_tells_that_nobody_listens(house: House) -> None:
    if house.broker.kind != "nats":
        return
    command, _ = shell(house, "status")
    code, text = await answer(*command)
    assert (code, text) == (69, "no worker listens\n")


# --- Node.js ----------------------------------------------------------------------------------------------------------


def without_node(reason: str) -> NoReturn:
    """Node is no requirement of ours: these run where they are asked for, as in .ci/run."""
    if os.environ.get("ESL_BRIDGE_TEST_NODE"):
        pytest.fail(f"ESL_BRIDGE_TEST_NODE is set, and {reason}")
    pytest.skip(f"{reason} (set ESL_BRIDGE_TEST_NODE=1 where node and npm are)")


@pytest.fixture(scope="session")
def node_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Node examples with their packages."""
    if not os.environ.get("ESL_BRIDGE_TEST_NODE"):
        without_node("examples in Node.js are not asked for")
    if not (shutil.which("node") and shutil.which("npm")):
        without_node("node or npm is not installed")
    folder = tmp_path_factory.mktemp("node")
    for file in (EXAMPLES / "node").iterdir():
        if file.is_file():
            shutil.copy(file, folder)
    done = subprocess.run(
        ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=110,
    )
    if done.returncode != 0:
        without_node(f"npm install failed: {done.stderr[-500:]}")
    return folder


@pytest.mark.xdist_group("node")
async def test_node_examples_run(house: House, node_folder: Path) -> None:
    switch: SimulatedSwitch = await house.switch(calls_per_second=20.0)
    await house.worker(switch)
    script = str(node_folder / f"{house.broker.kind}.mjs")
    async with running("node", script, house.broker.url) as process:
        seen = await lines_until(process, "answered")
    assert re.match(r"ok executed=yes UP 0 years", seen[0])
    assert not any("lost" in line for line in seen)
