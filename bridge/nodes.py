"""The FreeSWITCH nodes of a worker, as the command path and the operator see them.

This room makes and holds; it connects nothing and decides nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import structlog

from bridge.bus.base import Bus
from bridge.config import NodeSettings, Settings
from bridge.errors import ConfigError
from bridge.esl.url import EslUrl
from bridge.fleet.directory import Directory
from bridge.messages.fleet import UNKNOWN, NodeOrder
from bridge.ops.tail import Tail, TappedHandler
from bridge.relay.call_table import CallTable
from bridge.relay.events import SERVING, EventMeter, NodeRelay
from bridge.relay.feed import NodeFeed, together
from bridge.relay.known_calls import KnownCalls
from bridge.relay.notices import NoticeBoard
from bridge.relay.publisher import Publisher
from bridge.relay.ring import EventRing
from bridge.relay.routes import RouteSettings
from bridge.switch.command_pool import CommandPool
from bridge.switch.deadlines import Deadlines
from bridge.switch.event_link import EventLink
from bridge.switch.node import NodeChange, NodeLoad
from bridge.switch.own_commands import OwnCommands
from bridge.switch.subscription import tells_api

log = structlog.get_logger(__name__)


_LOOK_AGAIN = 0.02


@dataclass(frozen=True, slots=True)
class Node:
    """One FreeSWITCH server: its event link, its command connections, the relay of its events."""

    name: str
    url: EslUrl
    tags: tuple[str, ...]
    relay: NodeRelay
    link: EventLink
    pool: CommandPool
    feed: NodeFeed

    def describe(self, now: float, owner: str) -> dict[str, Any]:
        """The node as ``/nodes`` shows it; ``now`` is loop time, all times in seconds.

        Statistics are None when they are stale: nobody shall mistake old numbers for new ones.
        """
        load = self.link.load
        fresh = load if load is not None and load.fresh(now) else None
        return {
            "name": self.name,
            "url": self.url.redacted,
            "tags": list(self.tags),
            "owner": owner,
            "state": str(self.relay.state),
            "reason": self.relay.reason,
            "core_uuid": self.link.core_uuid,
            "epoch": self.relay.epoch,
            "sessions": fresh.sessions if fresh else None,
            "max_sessions": fresh.max_sessions if fresh else None,
            "idle_cpu": fresh.idle_cpu if fresh else None,
            "heartbeat_age": round(now - load.received_at, 3) if load else None,
            "lag": round(load.delay, 6) if load else None,
            "events": self.relay.received,
            "reconnects": self.link.reconnects,
            "buffer_events": self.relay.buffer.events,
            "buffer_bytes": self.relay.buffer.size,
            "commands_in_flight": self.pool.in_flight,
            "commands_waiting": self.pool.waiting,
            "connections": self.pool.connections,
        }

    async def publish_rest(self, timeout: float) -> None:
        """Return when all that waits is with the broker, or after ``timeout`` s."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while any(buffer.events or buffer.in_flight for buffer in self.relay.buffers):  # noqa: ASYNC110
                    await asyncio.sleep(_LOOK_AGAIN)

    async def retire(self, timeout: float) -> None:
        """Let the commands in flight end, within ``timeout`` s, and close the connections."""
        try:
            async with asyncio.timeout(timeout):
                while self.pool.in_flight or self.pool.waiting:  # noqa: ASYNC110 - a moment more or less is nothing
                    await asyncio.sleep(_LOOK_AGAIN)
        except TimeoutError:
            pass
        finally:
            await self.pool.close("the node was removed")


class NodeMaker:
    """Makes the nodes of one worker out of their settings; nothing connects before it is started.

    ``folder`` is where a standby's ring may spill; ``on_change`` gets every change of a node, ``tail`` every event.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        bus: Bus,
        publisher: Publisher,
        notices: NoticeBoard,
        meter: EventMeter,
        routes: Sequence[RouteSettings],
        worker: str,
        calls: CallTable,
        deadlines: Deadlines,
        folder: Path,
        on_change: Callable[[NodeChange], None],
        tail: Tail,
    ) -> None:
        self._settings = settings
        self._bus = bus
        self._publisher = publisher
        self._notices = notices
        self._meter = meter
        self._routes = routes
        self._worker = worker
        self._calls = calls
        self._deadlines = deadlines
        self._folder = folder
        self._on_change = on_change
        self._tail = tail

    def follow(self, settings: Settings, routes: Sequence[RouteSettings]) -> None:
        """Make nodes by other settings from now on."""
        self._settings, self._routes = settings, routes

    def adjust(self, node: Node, settings: NodeSettings) -> None:
        """Give a node that stands the times and limits that need no new connection."""
        esl, commands = self._settings.esl, self._settings.commands
        connect_timeout, command_timeout = esl.esl_connect_timeout / 1000, esl.esl_cmd_timeout / 1000
        node.pool.reconfigure(
            connect_timeout=connect_timeout,
            command_timeout=command_timeout,
            polling_interval=esl.esl_cmd_polling_itv / 1_000_000,
            max_connections=settings.max_connections,
            max_pipelined=settings.max_pipelined,
            max_waiting=commands.max_in_flight,
            idle_timeout=settings.idle_timeout,
        )
        node.link.reconfigure(
            heartbeat_interval=esl.event_heartbeat_interval,
            connect_timeout=connect_timeout,
            command_timeout=command_timeout,
        )

    def make(self, node: NodeSettings) -> Node:
        """One node. Raises ``ConfigError`` for an unusable CA file."""
        esl, events, commands = self._settings.esl, self._settings.events, self._settings.commands
        subscribe = node.subscribe if node.subscribe is not None else events.subscribe
        # Where no API events come there is nothing to know again.
        own = OwnCommands() if node.suppress_own_api and tells_api(subscribe) else None
        tls = node.tls_context()
        url = node.esl_url
        connect_timeout, command_timeout = esl.esl_connect_timeout / 1000, esl.esl_cmd_timeout / 1000
        relay = NodeRelay(
            node.name,
            bus=self._bus,
            publisher=self._publisher,
            notices=self._notices,
            meter=self._meter,
            routes=self._routes,
            worker=self._worker,
        )
        relay.on_change = self._on_change
        pool = CommandPool(
            node.name,
            url,
            connect_timeout=connect_timeout,
            command_timeout=command_timeout,
            deadlines=self._deadlines,
            polling_interval=esl.esl_cmd_polling_itv / 1_000_000,
            max_connections=node.max_connections,
            max_pipelined=node.max_pipelined,
            max_waiting=commands.max_in_flight,
            idle_timeout=node.idle_timeout,
            own_commands=own,
            tls=tls,
        )
        watchers = together(self._calls.watchers(node.name), {"BACKGROUND_JOB": pool.job_ended})
        feed = NodeFeed(relay, EventRing(self._folder), KnownCalls(), watchers)
        link = EventLink(
            node.name,
            url,
            TappedHandler(node.name, feed, self._tail),
            format=node.format,
            subscribe=subscribe,
            filters=node.filters,
            log_level=node.log_level,
            heartbeat_interval=esl.event_heartbeat_interval,
            connect_timeout=connect_timeout,
            command_timeout=command_timeout,
            own_commands=own,
            tls=tls,
            pause=self._publisher.reservoir.pause,
        )
        return Node(node.name, url, tuple(node.tags), relay, link, pool, feed)


class NodeOrders:
    """The nodes that the bus adds, followed: ``add`` and ``remove`` are called one after another, within ``turn``.

    ``configured`` tells the names of the configuration's nodes: those are never touched, whatever the bus says.
    """

    def __init__(
        self,
        nodes: Nodes,
        add: Callable[[NodeSettings], None],
        remove: Callable[[str], Awaitable[None]],
        configured: Callable[[], Collection[str]],
        turn: asyncio.Lock,
    ) -> None:
        self._nodes = nodes
        self._add = add
        self._remove = remove
        self._configured = configured
        self._turn = turn
        self._orders: Mapping[str, NodeOrder] = {}
        self._added: dict[str, NodeOrder] = {}
        self._news = asyncio.Event()

    @property
    def added(self) -> dict[str, NodeSettings]:
        """The nodes that stand because the bus names them."""
        return {name: _settings_of(name, order) for name, order in self._added.items()}

    def take(self, orders: Mapping[str, NodeOrder]) -> None:
        """The bus knows these nodes now."""
        self._orders = orders
        self._news.set()

    def look(self) -> None:
        """Other nodes are in the configuration now."""
        for name in self._configured():
            self._added.pop(name, None)
        self._news.set()

    async def follow(self) -> None:
        """Do as the bus says, until cancelled."""
        while True:
            await self._news.wait()
            self._news.clear()
            async with self._turn:
                await self._obey()

    async def _obey(self) -> None:
        configured = self._configured()
        # Taken out of service is not another node.
        wanted = {
            name: msgspec.structs.replace(it, drain=False)
            for name, it in self._orders.items()
            if it.url and name not in configured
        }
        for name in [name for name, order in self._added.items() if wanted.get(name) != order]:
            log.info("node removed", node=name)
            del self._added[name]
            await self._remove(name)
        for name, order in wanted.items():
            if self._nodes.get(name) is not None:
                continue
            try:
                self._add(_settings_of(name, order))
            except (ValueError, ConfigError) as error:
                log.error("a node on the bus cannot be used", node=name, reason=str(error))
                continue
            self._added[name] = order
            log.info("node added", node=name)


def _settings_of(name: str, order: NodeOrder) -> NodeSettings:
    told = {"name": name, "url": order.url, "tags": list(order.tags), "pin": order.pin}
    return NodeSettings.model_validate(told)


class Nodes:
    """All nodes of a worker by name (fulfils ``relay.routing.Nodes``)."""

    def __init__(self) -> None:
        self.directory: Directory | None = None
        """What the owners of nodes say that are not linked here."""
        self._nodes: dict[str, Node] = {}

    def add(self, node: Node) -> None:
        """Take a node in."""
        self._nodes[node.name] = node

    def remove(self, name: str) -> Node | None:
        """Let a node go."""
        return self._nodes.pop(name, None)

    def get(self, name: str) -> Node | None:
        """A node by its name."""
        return self._nodes.get(name)

    def __iter__(self) -> Iterator[Node]:
        return iter(self._nodes.values())

    def __len__(self) -> int:
        return len(self._nodes)

    def names(self) -> Collection[str]:
        """Every node of the configuration."""
        return self._nodes.keys()

    def pool(self, name: str) -> CommandPool | None:
        """A node's command connections; None for an unknown node."""
        node = self._nodes.get(name)
        return node.pool if node else None

    def state(self, name: str) -> str:
        """A node's state, "" for an unknown one."""
        node = self._nodes.get(name)
        if node is None:
            return ""
        if node.relay.state not in SERVING and self.directory is not None:
            told = self.directory.find(name)
            if told is not None and told.state:
                return told.state
        return node.relay.state

    def load(self, name: str) -> NodeLoad | None:
        """What a node's last HEARTBEAT said."""
        node = self._nodes.get(name)
        if node is None:
            return None
        if not node.link.connected and self.directory is not None:
            return self.directory.load(name)
        return node.link.load

    def tags(self, name: str) -> Collection[str]:
        """A node's tags."""
        node = self._nodes.get(name)
        return node.tags if node else ()

    def serving(self) -> list[str]:
        """The nodes that answer commands and send events, as far as is known."""
        return [node.name for node in self if self.state(node.name) in (*SERVING, UNKNOWN)]
