"""A scripted server: what it got, and what it says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import hiredis
import pytest

from bridge.bus.redis.address import Host

Script = Callable[[list[bytes]], bytes | None]


class ScriptedServer:
    """Answers each command with what ``script`` says; None says nothing, b"" closes the connection."""

    def __init__(self) -> None:
        self.script: Script = lambda command: b"+OK\r\n"
        self.commands: list[list[bytes]] = []
        self.connections = 0
        self._server: asyncio.Server | None = None
        self._writers: list[asyncio.StreamWriter] = []
        self.host = Host("127.0.0.1", 1)

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.host.port if self.commands else 0)
        self.host = Host("127.0.0.1", self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        self.cut()
        await asyncio.sleep(0)

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    def say(self, data: bytes) -> None:
        """Write to everybody, asked or not."""
        for writer in self._writers:
            writer.write(data)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.append(writer)
        parser = hiredis.Reader()
        try:
            while data := await reader.read(65536):
                parser.feed(data)
                while (command := parser.gets()) is not False:
                    if command[0] in (b"AUTH", b"SELECT", b"CLIENT", b"PING"):
                        answer = self.greet(command)
                    else:
                        self.commands.append(command)
                        answer = self.script(command)
                    if answer == b"":
                        writer.close()
                        return
                    writer.write(answer or b"")
        except OSError:
            pass
        finally:
            writer.close()

    def greet(self, command: list[bytes]) -> bytes | None:
        return {b"PING": b"+PONG\r\n", b"CLIENT": b":7\r\n"}.get(command[0], b"+OK\r\n")


@pytest.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    found = ScriptedServer()
    await found.start()
    yield found
    await found.stop()


async def eventually(condition: Callable[[], object], timeout: float = 10.0) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    while not condition():
        assert loop.time() < deadline, "the condition never came true"
        await asyncio.sleep(0.002)


@pytest.fixture(name="eventually")
def _eventually() -> Callable[..., Any]:
    return eventually
