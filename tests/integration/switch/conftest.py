"""A simulated FreeSWITCH on a real socket, and handlers that write down what they are told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from bridge.esl.event import Event
from bridge.esl.protocol import LogRecord
from bridge.esl.url import EslUrl
from bridge.simulator import SimulatedSwitch
from bridge.switch.backoff import Backoff, Span
from bridge.switch.command_pool import CommandPool, Outcome
from bridge.switch.deadlines import Deadlines
from bridge.switch.event_link import EventLink
from bridge.switch.node import LinkGap, NodeChange

QUICK = dict.fromkeys(
    ("eof", "disconnect", "refused", "timeout", "shutdown", "lost_events", "protocol_error", "heartbeat", "tls"),
    Span(0.02, 0.1),
) | dict.fromkeys(("access_denied", "auth_failed", "setup_denied"), Span(0.3, 1.0))


@dataclass
class Recorder:
    """A LinkHandler that writes down everything, in order, in ``all``."""

    all: list[tuple[str, Any]] = field(default_factory=list)
    seen: list[Event] = field(default_factory=list)
    changes: list[NodeChange] = field(default_factory=list)
    gaps: list[LinkGap] = field(default_factory=list)
    logs: list[LogRecord] = field(default_factory=list)
    losses: list[tuple[str, Exception]] = field(default_factory=list)
    ups: list[tuple[str, float]] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)

    def link_up(self, core_uuid: str, started_at: float) -> None:
        self.all.append(("up", core_uuid))
        self.ups.append((core_uuid, started_at))

    def events(self, events: list[Event]) -> None:
        self.all += [("event", event) for event in events]
        self.seen += events

    def hidden(self, identity: str, after: str) -> None:
        self.left_out.append((identity, after))

    def node_changed(self, change: NodeChange) -> None:
        self.all.append(("node", change))
        self.changes.append(change)

    def gap(self, gap: LinkGap) -> None:
        self.all.append(("gap", gap))
        self.gaps.append(gap)

    def skipped(self, size: int) -> None:
        self.all.append(("skipped", size))

    def log_lines(self, records: list[LogRecord]) -> None:
        self.logs += records

    def link_lost(self, reason: str, error: Exception) -> None:
        self.all.append(("lost", reason))
        self.losses.append((reason, error))

    def names(self) -> list[str]:
        return [event.name for event in self.seen]

    def states(self) -> list[str]:
        return [str(change.state) for change in self.changes]


class Answers:
    """Collects outcomes: ``take(key)`` makes a ``done``."""

    def __init__(self) -> None:
        self.by_key: dict[Any, list[Outcome]] = {}

    def take(self, key: Any) -> Callable[[Outcome], None]:
        return lambda outcome: self.by_key.setdefault(key, []).append(outcome)

    def __len__(self) -> int:
        return len(self.by_key)

    def __getitem__(self, key: Any) -> Outcome:
        return self.by_key[key][0]

    def __contains__(self, key: Any) -> bool:
        return key in self.by_key


Until = Callable[[Callable[[], Any]], Awaitable[None]]


@pytest.fixture
def until() -> Until:
    async def wait(condition: Callable[[], Any]) -> None:
        end = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < end, "waited in vain"
            await asyncio.sleep(0.002)

    return wait


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def answers() -> Answers:
    return Answers()


@pytest.fixture
async def switch() -> AsyncIterator[SimulatedSwitch]:
    async with SimulatedSwitch() as simulated:
        yield simulated


@pytest.fixture
async def make_link(recorder: Recorder) -> AsyncIterator[Callable[..., EventLink]]:
    links: list[EventLink] = []

    def make(url: str, **options: Any) -> EventLink:
        options.setdefault("backoff", Backoff(QUICK))
        link = EventLink("fs1", EslUrl.parse(url), options.pop("handler", recorder), **options)
        links.append(link)
        link.start()
        return link

    yield make
    for link in links:
        await link.stop()


@pytest.fixture
async def make_pool() -> AsyncIterator[Callable[..., CommandPool]]:
    pools: list[CommandPool] = []
    deadlines = Deadlines()

    def make(url: str, **options: Any) -> CommandPool:
        options = {"connect_timeout": 5.0, "command_timeout": 5.0, "backoff": Backoff(QUICK)} | options
        pool = CommandPool("fs1", EslUrl.parse(url), deadlines=deadlines, **options)
        pools.append(pool)
        return pool

    yield make
    for pool in pools:
        await pool.close()
    deadlines.close()


@pytest.fixture
def failures() -> list[Exception]:
    """What was reported to the loop's exception handler."""
    seen: list[Exception] = []
    asyncio.get_event_loop().set_exception_handler(lambda _, context: seen.append(context["exception"]))
    return seen


class Script(asyncio.Protocol):
    """A server that says ``greeting``, then one of ``answers`` to each read; an empty one closes the connection."""

    def __init__(self, transports: list[asyncio.Transport], greeting: bytes, answers: tuple[bytes, ...]) -> None:
        self.transports = transports
        self.greeting = greeting
        self.answers = list(answers)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transports.append(self.transport)
        self.transport.write(self.greeting)

    def data_received(self, data: bytes) -> None:
        if self.answers:
            answer = self.answers.pop(0)
            if answer:
                self.transport.write(answer)
            else:
                self.transport.close()


@pytest.fixture
async def scripted() -> AsyncIterator[Callable[..., Awaitable[str]]]:
    """Start a server that follows a script; its URL."""
    servers: list[asyncio.Server] = []
    transports: list[asyncio.Transport] = []

    async def start(greeting: bytes, *answers: bytes) -> str:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Script(transports, greeting, answers), "127.0.0.1", 0)
        servers.append(server)
        return f"fs://:ClueCon@127.0.0.1:{server.sockets[0].getsockname()[1]}"

    yield start
    for server in servers:
        server.close()
    for transport in transports:
        transport.abort()
    await asyncio.sleep(0)
