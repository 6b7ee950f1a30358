"""Who holds a node on a bus that keeps nothing: the worker it is pinned to, else the one that was started first.

Best effort: for a moment two may hold a node, or none. This room never ends a worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Mapping

import structlog

from bridge.bus.base import Bus
from bridge.crew.steward import NodeSteward
from bridge.errors import BusError, NoConsumer
from bridge.messages.fleet import UNKNOWN, NodeEntry, WorkerEntry, read_card

log = structlog.get_logger(__name__)

INTERVAL = 1.0
"""Seconds from one call to the next."""
LISTENING = 0.4
"""Seconds that answers are waited for."""
MISSED = 3
"""Calls that a worker may leave unanswered before it counts as gone."""


class _Right:
    """Nothing but the roll call entitles us."""

    token = 0
    valid = True


class RollCall:
    """Calls the roll on the bus and holds nodes by it. ``pins`` are worker ids or tags by node."""

    def __init__(self, bus: Bus, id: str, stewards: Mapping[str, NodeSteward], pins: dict[str, str]) -> None:
        self.members: Mapping[str, WorkerEntry] = {}
        self.pins = pins
        self._bus = bus
        self._id = id
        self._stewards = stewards
        self._missed: dict[str, int] = {}

    async def run(self, joined: asyncio.Event) -> None:
        """Hold nodes until cancelled."""
        while True:
            with contextlib.suppress(BusError, TimeoutError):
                found = await self._call()
                self._note(found)
                if self._id in self.members:  # our own answer: what we hear is whole
                    await self._hold()
                    joined.set()
            await asyncio.sleep(INTERVAL - LISTENING)

    def owner(self, node: str) -> str:
        """Who should hold the node, "" for nobody."""
        able = [it for it in self.members.values() if not it.knows or node in it.knows]
        pin = self.pins.get(node, "")
        pinned = [it for it in able if pin and (pin == it.id or pin in it.tags)]
        return min(pinned or able, key=lambda it: (it.started, it.id)).id if able else ""

    async def _call(self) -> dict[str, WorkerEntry]:
        found: dict[str, WorkerEntry] = {}

        def answered(payload: bytes, content_type: str) -> None:
            with contextlib.suppress(ValueError, TypeError, AttributeError):
                entry = read_card(json.loads(payload))
                if entry is not None:
                    found[entry.id] = entry

        try:
            request = await self._bus.request(self._bus.roll_call, b"", "", answered)
        except NoConsumer:
            return {}
        await asyncio.sleep(LISTENING)
        await request.close()
        return found

    def _note(self, found: dict[str, WorkerEntry]) -> None:
        members = dict(found)
        for id, entry in self.members.items():
            if id not in found:
                self._missed[id] = self._missed.get(id, 0) + 1
                if self._missed[id] < MISSED:
                    members[id] = entry
        for id in found:
            self._missed.pop(id, None)
        owned: dict[str, list[NodeEntry]] = {}
        self.members = members
        for name in self._stewards:
            owner = self.owner(name)
            node = self._stewards[name].entry() if owner == self._id else NodeEntry(name, UNKNOWN)
            owned.setdefault(owner, []).append(node)
        self.members = {
            id: WorkerEntry(
                id=it.id, instance=it.instance, started=it.started, tags=it.tags, knows=it.knows,
                version=it.version, owned=tuple(owned.get(id, ())),
            )
            for id, it in members.items()
        }  # fmt: skip

    async def _hold(self) -> None:
        for name, steward in list(self._stewards.items()):
            mine = self.owner(name) == self._id
            if mine and not steward.feed.owning:
                log.warning("node held by roll call", node=name)
                steward.take(_Right(), None, overlapped=False)
            elif not mine and steward.feed.owning:
                log.warning("node left to another worker", node=name, worker=self.owner(name))
                await steward.give(1.0)
                await steward.cool()
