"""A bare ESL client, so that the simulator is not tested with the bridge's own reading of the protocol."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from bridge.simulator import SimulatedSwitch

CAPTURES = Path(__file__).parents[2] / "data" / "captures"
PATIENCE = 10.0


class Frame:
    def __init__(self, head: bytes, body: bytes) -> None:
        self.head = head
        self.body = body
        self.headers = dict(line.split(": ", 1) for line in head.decode().split("\n"))

    @property
    def kind(self) -> str:
        return self.headers["Content-Type"]

    @property
    def text(self) -> str:
        return self.headers["Reply-Text"] if "Reply-Text" in self.headers else self.body.decode()

    def json(self) -> dict[str, Any]:
        event: dict[str, Any] = json.loads(self.body)
        return event

    def __repr__(self) -> str:
        return f"Frame({self.head!r}, {self.body!r})"


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.events: deque[Frame] = deque()

    def send(self, data: str | bytes) -> None:
        self.writer.write(data.encode() if isinstance(data, str) else data)

    async def frame(self) -> Frame:
        async with asyncio.timeout(PATIENCE):
            head = (await self.reader.readuntil(b"\n\n"))[:-2]
            length = 0
            for line in head.split(b"\n"):
                if line.startswith(b"Content-Length: "):
                    length = int(line[16:])
            return Frame(head, await self.reader.readexactly(length))

    async def reply(self) -> Frame:
        while True:
            frame = await self.frame()
            if not frame.kind.startswith("text/event-"):
                return frame
            self.events.append(frame)

    async def command(self, line: str) -> Frame:
        self.send(f"{line}\n\n")
        return await self.reply()

    async def event(self, name: str = "") -> Frame:
        """The next event (of this name; others are thrown away)."""
        while True:
            frame = self.events.popleft() if self.events else await self.frame()
            if frame.kind.startswith("text/event-") and (
                not name or name.encode() in frame.body.split(b"Core-UUID")[0]
            ):
                return frame

    async def nothing_more(self) -> None:
        """No event is under way: a sentinel sent now is the next."""
        await self.command("api echo sentinel")
        assert not self.events, self.events

    async def rest(self) -> bytes:
        async with asyncio.timeout(PATIENCE):
            return await self.reader.read()

    def close(self) -> None:
        self.writer.transport.abort()


Connect = Callable[..., Awaitable[Client]]
MakeSwitch = Callable[..., Awaitable[SimulatedSwitch]]


@pytest.fixture
async def make_switch() -> AsyncIterator[MakeSwitch]:
    switches: list[SimulatedSwitch] = []

    async def make(**settings: Any) -> SimulatedSwitch:
        settings.setdefault("heartbeat_interval", 3600.0)
        switch = SimulatedSwitch(**settings)
        switches.append(switch)
        await switch.start()
        return switch

    yield make
    for switch in switches:
        await switch.stop()


@pytest.fixture
async def switch(make_switch: MakeSwitch) -> SimulatedSwitch:
    return await make_switch()


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    clients: list[Client] = []

    async def dial(switch: SimulatedSwitch, *, login: str | None = "auth ClueCon", limit: int = 1 << 24) -> Client:
        reader, writer = await asyncio.open_connection(switch.host, switch.port, limit=limit)
        client = Client(reader, writer)
        clients.append(client)
        if login is not None:
            assert (await client.frame()).kind == "auth/request"
            assert (await client.command(login)).text == "+OK accepted"
        return client

    yield dial
    for client in clients:
        client.close()


@pytest.fixture
def captures() -> Path:
    return CAPTURES
