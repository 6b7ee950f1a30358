"""The command line as processes: started on free ports, ended by their own id."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from bridge.bus.embedded import EmbeddedBroker
from bridge.errors import ConfigError

TIMEOUT = 30.0


class Cli:
    """One ``esl-bridge`` process whose output is read as it comes."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.out: list[str] = []
        self.err: list[str] = []
        self._changed = asyncio.Condition()
        assert process.stdout is not None
        assert process.stderr is not None
        self._readers = [
            asyncio.create_task(self._read(process.stdout, self.out)),
            asyncio.create_task(self._read(process.stderr, self.err)),
        ]

    async def _read(self, stream: asyncio.StreamReader, lines: list[str]) -> None:
        async for line in stream:
            async with self._changed:
                lines.append(line.decode().rstrip("\n"))
                self._changed.notify_all()

    async def line(self, pattern: str, *, after: int = 0) -> re.Match[str]:
        """Wait for a line of either output that matches."""

        def found() -> re.Match[str] | None:
            for text in [*self.out[after:], *self.err]:
                if match := re.search(pattern, text):
                    return match
            return None

        try:
            async with asyncio.timeout(TIMEOUT), self._changed:
                return await self._changed.wait_for(found) and found()  # type: ignore[return-value]
        except TimeoutError:
            raise AssertionError(f"no line like {pattern!r} in {self.out[-20:]} {self.err[-20:]}") from None

    async def end(self, number: signal.Signals | None = None) -> int:
        """Send a signal, if any, and return the exit code."""
        if number is not None and self.process.returncode is None:
            self.process.send_signal(number)
        async with asyncio.timeout(TIMEOUT):
            code = await self.process.wait()
            await asyncio.gather(*self._readers)
        return code

    async def kill(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()
        await asyncio.gather(*self._readers)


Start = Callable[..., object]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Callable[..., object]]:
    """Start ``esl-bridge`` with arguments and extra environment variables, in a folder of its own."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith("ESL_BRIDGE_")}
    async with AsyncExitStack() as stack:

        async def start_cli(*arguments: str, **variables: str) -> Cli:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "bridge",
                *arguments,
                cwd=tmp_path,
                env={**environ, **variables},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            cli = Cli(process)
            stack.push_async_callback(cli.kill)
            return cli

        yield start_cli


@pytest.fixture(params=["nats", "redis"])
async def broker(request: pytest.FixtureRequest) -> AsyncIterator[EmbeddedBroker]:
    """A real broker; loudly skipped where its wheel is missing, a failure in CI."""
    broker = EmbeddedBroker(request.param)
    try:
        await broker.start()
    except ConfigError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    yield broker
    await broker.stop()
