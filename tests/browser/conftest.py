"""A real headless Chromium, steered over the DevTools protocol, and a bridge with something to look at."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import os
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, NoReturn

import aiohttp
import pytest

from bridge.bus.embedded import EmbeddedBroker
from bridge.client import Bridge
from bridge.config import Settings
from bridge.simulator import SimulatedSwitch
from bridge.worker import Worker

PATIENCE = 40.0
TOKEN = "a-token-of-the-tests"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "headless_shell")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)


def find_chromium() -> str | None:
    """What ``ESL_BRIDGE_TEST_CHROMIUM`` names, else the first that is installed."""
    named = os.environ.get("ESL_BRIDGE_TEST_CHROMIUM")
    return named or next(filter(None, map(shutil.which, NAMES)), None)


def without_browser() -> NoReturn:
    """Skip loudly; where CI said that it has put one there, its absence is a failure."""
    reason = "no Chromium here (looked for " + ", ".join(NAMES) + "; ESL_BRIDGE_TEST_CHROMIUM names another)"
    if os.environ.get("ESL_BRIDGE_TEST_BROWSER") == "required":
        pytest.fail(reason)
    pytest.skip(reason)


class Tab:
    """One page; ``faults`` holds what the console, the page's policy and the network complained about."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.faults: list[str] = []
        self._socket = socket
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for message in self._socket:
            told = json.loads(message.data)
            if "id" in told:
                future = self._waiting.pop(told["id"])
                if not future.done():
                    future.set_result(told)
            elif told["method"] == "Runtime.exceptionThrown":
                self.faults.append(json.dumps(told["params"]["exceptionDetails"])[:500])
            elif told["method"] == "Log.entryAdded" and told["params"]["entry"]["level"] == "error":
                entry = told["params"]["entry"]
                self.faults.append(f"{entry['text']} {entry.get('url', '')}")

    async def send(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._numbers)
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": params})
        async with asyncio.timeout(PATIENCE):
            answer = await future
        assert "error" not in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    async def open(self, url: str, *, width: int = 1280, height: int = 1600, dark: bool = False) -> None:
        await self.look(width=width, height=height, dark=dark)
        await self.send("Page.navigate", url=url)
        await self.until(f"location.href === {json.dumps(url)} && document.readyState === 'complete'")

    async def look(self, *, width: int = 1280, height: int = 1600, dark: bool = False) -> None:
        await self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        await self.send("Emulation.setEmulatedMedia", features=features)

    async def eval(self, script: str) -> Any:
        """The value of an expression in the page; a promise is awaited."""
        told = await self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    async def until(self, script: str, patience: float = PATIENCE) -> Any:
        """Wait until an expression in the page is true, and return its value."""
        try:
            async with asyncio.timeout(patience):
                while not (value := await self.eval(script)):  # noqa: ASYNC110 - it is another process's state
                    await asyncio.sleep(0.05)
        except TimeoutError:
            text = await self.eval("document.body.innerText")
            raise AssertionError(f"never true: {script}; faults {self.faults}; page:\n{text[:3000]}") from None
        return value

    async def text(self, selector: str) -> str:
        return str(await self.eval(f"document.querySelector({json.dumps(selector)}).innerText"))

    async def type(self, selector: str, text: str) -> None:
        await self.eval(f"document.querySelector({json.dumps(selector)}).value = {json.dumps(text)}; true")

    async def click(self, selector: str) -> None:
        await self.eval(f"document.querySelector({json.dumps(selector)}).click(); true")

    async def screenshot(self, path: Path, *, whole: bool = True) -> bytes:
        told = await self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        image = base64.b64decode(told["data"])
        path.write_bytes(image)  # noqa: ASYNC240 - a test may wait
        return image

    async def close(self) -> None:
        await self._socket.close()
        await self._reader


class Chromium:
    """One browser process; ends with the context."""

    def __init__(self, program: str, folder: Path) -> None:
        self._program = program
        self._folder = folder
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Chromium:
        process = await asyncio.create_subprocess_exec(
            self._program,
            *FLAGS,
            f"--user-data-dir={self._folder}",
            "about:blank",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            # A group of its own: the browser's many children end with it.
            start_new_session=True,
        )
        self._stack.push_async_callback(self._end, process)
        told = self._folder / "DevToolsActivePort"
        async with asyncio.timeout(PATIENCE):
            while not (told.exists() and told.read_text().count("\n")):
                assert process.returncode is None, "Chromium ended by itself"
                await asyncio.sleep(0.05)
        self._port = told.read_text().splitlines()[0]
        self._http = await self._stack.enter_async_context(aiohttp.ClientSession())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()

    async def tab(self) -> Tab:
        async with self._http.put(f"http://127.0.0.1:{self._port}/json/new?about:blank") as response:
            address = (await response.json(content_type=None))["webSocketDebuggerUrl"]
        tab = Tab(await self._http.ws_connect(address, max_msg_size=0))
        self._stack.push_async_callback(tab.close)
        for domain in ("Page", "Runtime", "Log", "Network"):
            await tab.send(f"{domain}.enable")
        return tab


@pytest.fixture
async def chromium(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Chromium]:
    program = find_chromium()
    if program is None:
        without_browser()
    async with Chromium(program, tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture
async def tab(chromium: Chromium) -> Tab:
    return await chromium.tab()


class Stage:
    """Three simulated switches with calls, a real broker, workers with their page and console, and a client.

    ``worker`` is the first of ``workers``, ``url`` its page.
    """

    def __init__(self, stack: AsyncExitStack, folder: Path) -> None:
        self._stack = stack
        self._folder = folder
        self.switches: list[SimulatedSwitch] = []
        self.workers: list[Worker] = []
        self.client: Bridge
        self.url = ""

    @property
    def worker(self) -> Worker:
        return self.workers[0]

    async def set(self, *, switches: int = 3, rate: float = 5.0, workers: int = 1, **http: Any) -> Stage:
        broker = await self._stack.enter_async_context(EmbeddedBroker("nats"))
        for number in range(switches):
            switch = SimulatedSwitch(
                calls_per_second=rate, call_duration=1.0, heartbeat_interval=0.5, hostname=f"fs{number + 1}"
            )
            await switch.start()
            self._stack.push_async_callback(switch.stop)
            self.switches.append(switch)
        settings = {
            "bus": {"url": broker.url},
            "http": {"listen": "127.0.0.1:0", "console": True, "token": TOKEN, **http},
            "node": [
                {"name": one.hostname, "url": one.url, "tags": ["media"] if number else ["edge", "tls"]}
                for number, one in enumerate(self.switches)
            ],
        }
        for number in range(1, workers + 1):
            identity = {"id": f"bridge-{number}", "state_dir": str(self._folder), "drain_timeout": 5.0}
            worker = Worker(Settings.model_validate({**settings, "worker": identity}))
            await worker.start()
            self._stack.push_async_callback(worker.stop)
            self.workers.append(worker)
        self.client = await self._stack.enter_async_context(Bridge(broker.url))
        async with asyncio.timeout(PATIENCE):
            while not all(it.ready[0] and len(it.nodes.serving()) == switches for it in self.workers):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert self.worker.http is not None
        self.url = self.worker.http.url
        return self


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with AsyncExitStack() as stack:
        yield Stage(stack, tmp_path / "state")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Where screenshots go: ``ESL_BRIDGE_TEST_PICTURES`` keeps them."""
    folder = Path(os.environ.get("ESL_BRIDGE_TEST_PICTURES") or tmp_path / "pictures")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
