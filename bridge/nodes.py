"""The FreeSWITCH nodes of a worker, as the command path and the operator see them.

This room holds what others made; it connects nothing and decides nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from bridge.esl.url import EslUrl
from bridge.relay.events import SERVING, NodeRelay
from bridge.switch.command_pool import CommandPool
from bridge.switch.event_link import EventLink
from bridge.switch.node import NodeLoad


@dataclass(frozen=True, slots=True)
class Node:
    """One FreeSWITCH server: its event link, its command connections, the relay of its events."""

    name: str
    url: EslUrl
    tags: tuple[str, ...]
    relay: NodeRelay
    link: EventLink
    pool: CommandPool

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


class Nodes:
    """All nodes of a worker by name (fulfils ``relay.routing.Nodes``)."""

    def __init__(self) -> None:
        self._nodes: dict[str, Node] = {}

    def add(self, node: Node) -> None:
        """Take a node in."""
        self._nodes[node.name] = node

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
        return node.relay.state if node else ""

    def load(self, name: str) -> NodeLoad | None:
        """What a node's last HEARTBEAT said."""
        node = self._nodes.get(name)
        return node.link.load if node else None

    def tags(self, name: str) -> Collection[str]:
        """A node's tags."""
        node = self._nodes.get(name)
        return node.tags if node else ()

    def serving(self) -> list[str]:
        """The nodes that answer commands and send events."""
        return [node.name for node in self if node.relay.state in SERVING]
