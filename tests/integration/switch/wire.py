"""Hand-made peers: a raw Event Socket that a test writes byte by byte, and a proxy that can stop forwarding."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

GREETING = b"Content-Type: auth/request\n\n"
GOODBYE = b"Disconnected, goodbye.\nSee you at ClueCon! http://www.cluecon.com/\n"
KILLED = b"killed listener because of lost events\n"
CORE = "11111111-2222-4333-a444-555555555555"


def reply(text: str) -> bytes:
    return f"Content-Type: command/reply\nReply-Text: {text}\n\n".encode()


def api(text: str) -> bytes:
    raw = text.encode()
    return b"Content-Type: api/response\nContent-Length: %d\n\n%b" % (len(raw), raw)


def notice(text: bytes) -> bytes:
    return b"Content-Type: text/disconnect-notice\nContent-Length: %d\n\n%b" % (len(text), text)


def json_event(number: int, name: str = "DTMF", core: str = CORE, **headers: str) -> bytes:
    stamp = str(int(time.time() * 1e6))
    event = {"Event-Name": name, "Core-UUID": core, "Event-Date-Timestamp": stamp, "Event-Sequence": str(number)}
    raw = json.dumps(event | headers).encode()
    return b"Content-Length: %d\nContent-Type: text/event-json\n\n%b" % (len(raw), raw)


class RawConnection:
    """One accepted connection; answers like FreeSWITCH until a test takes over with ``write``."""

    def __init__(self, switch: RawSwitch, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.switch = switch
        self.commands: list[str] = []
        self.listening = False
        self._reader = reader
        self._writer = writer

    def write(self, data: bytes) -> None:
        if not self._writer.is_closing():
            self._writer.write(data)

    async def drain(self) -> None:
        await self._writer.drain()

    def close(self) -> None:
        self._writer.close()

    async def serve(self) -> None:
        self.write(self.switch.greeting)
        with suppress(OSError, asyncio.IncompleteReadError):
            while True:
                command = (await self._reader.readuntil(b"\n\n")).decode().strip()
                self.commands.append(command)
                answer = self.switch.answer(self, command)
                if answer is None:
                    answer = self.normal(command)
                self.write(answer)
                if self.listening and command.startswith("event"):
                    self.switch.listeners.append(self)

    def normal(self, command: str) -> bytes:
        verb, _, rest = command.partition(" ")
        if verb in ("auth", "userauth"):
            return reply("+OK accepted")
        if verb == "event":
            self.listening = True
            return reply("+OK event listener enabled json")
        if verb == "api":
            return api(self.switch.core if rest == "global_getvar core_uuid" else f"ran {rest}")
        return reply("+OK")


class RawSwitch:
    """A server on a free port; ``answer`` may give other bytes for a command (b"" for none, None: as usual)."""

    def __init__(self) -> None:
        self.greeting = GREETING
        self.core = CORE
        self.answer: Callable[[RawConnection, str], bytes | None] = lambda connection, command: None
        self.connections: list[RawConnection] = []
        self.listeners: list[RawConnection] = []
        self.accepted_at: list[float] = []
        self.port = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"fs://:ClueCon@127.0.0.1:{self.port}"

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.accepted_at.append(asyncio.get_running_loop().time())
        connection = RawConnection(self, reader, writer)
        self.connections.append(connection)
        try:
            await connection.serve()
        except asyncio.CancelledError:
            pass
        finally:
            self._tasks.discard(task)
            if connection in self.listeners:
                self.listeners.remove(connection)
            writer.close()

    async def __aenter__(self) -> RawSwitch:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port, backlog=1024)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class Proxy:
    """Forwards bytes to a port, until ``frozen``: then it says nothing more, as a host that lost its network."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.port = 0
        self.opened = 0
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"fs://:ClueCon@127.0.0.1:{self.port}"

    def freeze(self) -> None:
        self._flowing.clear()

    def thaw(self) -> None:
        self._flowing.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.opened += 1
        ends: list[asyncio.StreamWriter] = [writer]
        try:
            await self._flowing.wait()
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
            ends.append(far_writer)
            there = asyncio.create_task(self._pump(reader, far_writer))
            try:
                await self._pump(far_reader, writer)
            finally:
                there.cancel()
                await asyncio.gather(there, return_exceptions=True)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            for end in ends:
                end.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            await self._flowing.wait()
            writer.write(data)
            await writer.drain()


@asynccontextmanager
async def proxy_to(port: int) -> AsyncIterator[Proxy]:
    proxy = Proxy(port)
    server = await asyncio.start_server(proxy._accept, "127.0.0.1", 0, backlog=1024)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        for task in list(proxy._tasks):
            task.cancel()
        await asyncio.gather(*proxy._tasks, return_exceptions=True)
