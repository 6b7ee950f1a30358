"""The rows of the conformance table that are about connections and links: 42, 43, 44, 50, 57."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from bridge.errors import AccessDenied, AuthenticationFailed, ConnectTimeout
from bridge.esl.event import Event
from bridge.esl.protocol import LogRecord
from bridge.esl.url import EslUrl
from bridge.simulator import SimulatedSwitch, User
from bridge.switch.backoff import Backoff, Span
from bridge.switch.command_pool import CommandPool
from bridge.switch.deadlines import Deadlines
from bridge.switch.event_link import EventLink
from bridge.switch.node import LinkGap, NodeChange, NodeState
from bridge.switch.own_commands import OwnCommands


class Handler:
    def __init__(self) -> None:
        self.names: list[str] = []
        self.changes: list[NodeChange] = []
        self.losses: list[tuple[str, Exception]] = []

    def link_up(self, core_uuid: str, started_at: float) -> None: ...

    def events(self, events: list[Event]) -> None:
        self.names += [event.name for event in events]

    def node_changed(self, change: NodeChange) -> None:
        self.changes.append(change)

    def hidden(self, identity: str, after: str) -> None: ...

    def gap(self, gap: LinkGap) -> None: ...

    def skipped(self, size: int) -> None: ...

    def log_lines(self, records: list[LogRecord]) -> None: ...

    def link_lost(self, reason: str, error: Exception) -> None:
        self.losses.append((reason, error))


async def until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        await asyncio.sleep(0.002)


Linked = Callable[..., Awaitable[tuple[EventLink, Handler]]]


@pytest.fixture
async def linked() -> AsyncIterator[Linked]:
    links: list[EventLink] = []

    async def make(url: str, **options: Any) -> tuple[EventLink, Handler]:
        handler = Handler()
        link = EventLink("fs1", EslUrl.parse(url), handler, **options)
        links.append(link)
        link.start()
        return link, handler

    yield make
    for link in links:
        await link.stop()


async def test_row_42_an_acl_rejection_is_no_timeout_and_waits_long(linked: Linked) -> None:
    async with SimulatedSwitch(deny=True) as switch:
        _, handler = await linked(switch.url)
        await until(lambda: handler.losses)
        reason, error = handler.losses[0]
        assert reason == "access_denied"
        assert isinstance(error, AccessDenied)
        assert "acl" in str(error).lower()
        await asyncio.sleep(0.3)
        assert switch.connections_made == 1


async def test_row_43_a_wrong_password_is_no_tight_loop(linked: Linked) -> None:
    async with SimulatedSwitch() as switch:
        _, handler = await linked(f"fs://:wrong@127.0.0.1:{switch.port}")
        await until(lambda: handler.losses)
        reason, error = handler.losses[0]
        assert reason == "auth_failed"
        assert isinstance(error, AuthenticationFailed)
        await asyncio.sleep(0.3)
        assert switch.connections_made == 1


async def test_row_44_a_userauth_reply_that_was_cut_names_the_cause(linked: Linked) -> None:
    user = User("secret", allowed_api=[f"command_number_{number}" for number in range(60)])
    async with SimulatedSwitch(users={"bridge@example.org": user}) as switch:
        url = f"fs://bridge@example.org:secret@127.0.0.1:{switch.port}"
        _, handler = await linked(url, connect_timeout=0.3)
        await until(lambda: handler.losses)
        reason, error = handler.losses[0]
        assert reason == "timeout"
        assert isinstance(error, ConnectTimeout)
        assert "511 bytes" in str(error)
        assert "allow-list" in str(error)
        assert "esl-allowed-api" in str(error)  # what came shows that it is this, and not only that it may be
        assert "secret" not in str(error)


async def test_row_50_another_core_uuid_is_told_as_a_restart(linked: Linked) -> None:
    async with SimulatedSwitch() as switch:
        quick = Backoff({"shutdown": Span(0.01, 0.1), "eof": Span(0.01, 0.1)})
        link, handler = await linked(switch.url, backoff=quick)
        await until(lambda: link.state is NodeState.UP)
        switch.drop_connections()
        await until(lambda: link.reconnects == 1)
        await switch.restart()
        await until(lambda: link.reconnects == 2)
        ups = [change for change in handler.changes if change.state is NodeState.UP]
        assert [change.restarted for change in ups] == [False, False, True]
        assert ups[2].core_uuid == switch.core_uuid != ups[1].core_uuid


async def test_row_57_our_own_api_events_can_be_suppressed(linked: Linked) -> None:
    async with SimulatedSwitch() as switch:
        own, deadlines = OwnCommands(), Deadlines()
        suppressing, quiet = await linked(switch.url, own_commands=own)
        telling, loud = await linked(switch.url)
        await until(lambda: suppressing.connected and telling.connected)
        pool = CommandPool(
            "fs1",
            EslUrl.parse(switch.url),
            connect_timeout=5,
            command_timeout=5,
            deadlines=deadlines,
            own_commands=own,
        )
        for _ in range(3):
            await pool.api("status", 5)
        switch.fire("DTMF")
        await until(lambda: "DTMF" in quiet.names and "DTMF" in loud.names)
        # The second link's own question for the Core-UUID is not among the first one's commands.
        assert quiet.names.count("API") <= 1
        assert loud.names.count("API") >= 3
        await pool.close()
        deadlines.close()
