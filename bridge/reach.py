"""Whether this worker can run commands for everybody: what it takes from queues that others could serve better.

This room never takes a request and never connects by itself; it has pools knock and tells when the answer changes.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Final

from bridge.nodes import Node, Nodes
from bridge.relay.events import SERVING

KNOCK_AT: Final = 8
"""How many nodes are knocked at together: a fleet may have thousands."""


class Reach:
    """One worker's, whose id is ``worker``. ``on_able`` is called when it is able to run commands again."""

    def __init__(self, nodes: Nodes, worker: str) -> None:
        self.on_able: Callable[[], object] = lambda: None
        self._nodes = nodes
        self._worker = worker
        self._able = True
        self._nearest: Node | None = None

    def watch(self, node: Node) -> None:
        """A node is there."""
        node.pool.on_reached = self._tried

    @property
    def near(self) -> bool:
        """Whether a node was reached from here, by its event link or by a command connection."""
        if self._nearest is None or not _reached(self._nearest):
            self._nearest = next((node for node in self._nodes if _reached(node)), None)
        return self._nearest is not None

    def able(self) -> bool:
        """False while no node is reached from here and another worker says that it serves one.

        Then requests are left to that worker, and nodes are knocked at until one answers. Where nobody serves any node
        it is True: somebody must say ``unavailable``.
        """
        near = self.near
        if near and self._able:
            return True  # asked before every read of a queue
        served = [] if near else [node for node in self._nodes if self._served_elsewhere(node.name)]
        for node in random.sample(served, min(KNOCK_AT, len(served))):
            node.pool.knock()
        able, before = not served, self._able
        self._able = able
        if able and not before:  # whoever asked now: those that were told "no" wait for this
            asyncio.get_running_loop().call_soon(self.on_able)
        return able

    def _served_elsewhere(self, name: str) -> bool:
        directory = self._nodes.directory
        told = directory.find(name) if directory is not None else None
        if directory is None or told is None:
            return False
        return told.state in SERVING and directory.owner(name) not in ("", self._worker)

    def _tried(self) -> None:
        if not self._able:
            self.able()


def _reached(node: Node) -> bool:
    return node.link.connected or node.pool.reached
