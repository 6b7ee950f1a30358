"""Which node has which call, as the events that pass by tell it.

This room never asks FreeSWITCH anything; what it does not know, ``call_search`` looks for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial

from bridge.esl.event import Event

# A call that is hung up takes no more commands, even while its session still reports.
_BEGINNINGS = ("CHANNEL_CREATE", "CHANNEL_PROGRESS", "CHANNEL_ANSWER", "CHANNEL_BRIDGE", "CHANNEL_PARK")
_ENDS = ("CHANNEL_HANGUP_COMPLETE", "CHANNEL_DESTROY")


class CallTable:
    """Calls by uuid, and for a short time the uuids that no node knows.

    ``unknown_for`` in seconds; at most ``limit`` calls are held (the oldest is forgotten first).
    """

    def __init__(
        self, *, unknown_for: float = 2.0, limit: int = 500_000, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._unknown_for = unknown_for
        self._limit = limit
        self._clock = clock
        self._nodes: dict[str, str] = {}
        self._unknown: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._nodes)

    def node_of(self, uuid: str) -> str | None:
        """The node that has the call, None when the table does not know."""
        return self._nodes.get(uuid)

    def learn(self, uuid: str, node: str) -> None:
        """The node has this call."""
        self._unknown.pop(uuid, None)
        self._nodes[uuid] = node
        if len(self._nodes) > self._limit:
            del self._nodes[next(iter(self._nodes))]

    def forget(self, uuid: str, node: str) -> None:
        """The call ended on this node (a call that moved to another one stays)."""
        if self._nodes.get(uuid) == node:
            del self._nodes[uuid]

    def forget_node(self, node: str) -> None:
        """The node restarted: every call that it had is gone."""
        self._nodes = {uuid: other for uuid, other in self._nodes.items() if other != node}

    def replace(self, node: str, uuids: Iterable[str]) -> None:
        """These and no others are the node's calls (a snapshot of it)."""
        self.forget_node(node)
        for uuid in uuids:
            self.learn(uuid, node)

    def note_unknown(self, uuid: str) -> None:
        """No node has this call; ``is_unknown`` says so for a short time."""
        now = self._clock()
        # All live equally long, so the oldest stand first.
        while self._unknown:
            first = next(iter(self._unknown))
            if self._unknown[first] > now and len(self._unknown) < self._limit:
                break
            del self._unknown[first]
        self._unknown.pop(uuid, None)
        self._unknown[uuid] = now + self._unknown_for

    def is_unknown(self, uuid: str) -> bool:
        """Whether every node was asked for this call a moment ago, in vain."""
        until = self._unknown.get(uuid)
        if until is None:
            return False
        if until > self._clock():
            return True
        del self._unknown[uuid]
        return False

    def watchers(self, node: str) -> dict[str, Callable[[Event], None]]:
        """What the node's event path calls, by event name, to keep this table."""
        begins, ends = partial(self._begins, node), partial(self._ends, node)
        found: dict[str, Callable[[Event], None]] = dict.fromkeys(_BEGINNINGS, begins)
        found.update(dict.fromkeys(_ENDS, ends))
        found["CHANNEL_UUID"] = partial(self._renamed, node)
        return found

    def _begins(self, node: str, event: Event) -> None:
        uuid = event.unique_id
        if uuid and not event.injected:
            self.learn(uuid, node)

    def _ends(self, node: str, event: Event) -> None:
        if not event.injected:
            self.forget(event.unique_id, node)

    def _renamed(self, node: str, event: Event) -> None:
        old = event.get("Old-Unique-ID")
        if isinstance(old, str) and not event.injected:
            self.forget(old, node)
        self._begins(node, event)
