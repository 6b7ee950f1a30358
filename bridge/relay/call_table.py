"""Which node has which call, as the events that pass by tell it.

This room never asks FreeSWITCH anything; what it does not know, ``call_search`` looks for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial

from bridge.esl.event import Event
from bridge.relay.known_calls import OLD_UUID
from bridge.relay.lately import Lately

_FOUND_FOR = 60.0
"""Seconds that an answer of a node whose events are not heard here is good for: nothing tells of the call's end."""
_ENDED_FOR = 60.0
"""Seconds that a late event of a call that has ended does not bring it back."""
_LATELY = 50_000
# A call that is hung up takes no more commands, even while its session still reports.
_BEGINNINGS = ("CHANNEL_PROGRESS", "CHANNEL_ANSWER", "CHANNEL_BRIDGE", "CHANNEL_PARK")
_ENDS = ("CHANNEL_HANGUP_COMPLETE", "CHANNEL_DESTROY")


class CallTable:
    """Calls by uuid, and for a short time the uuids that no node knows.

    ``unknown_for`` in seconds; at most ``limit`` calls are held (the oldest is forgotten first).
    """

    def __init__(
        self, *, unknown_for: float = 2.0, limit: int = 500_000, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limit = limit
        self._nodes: dict[str, str] = {}
        self._unknown = Lately[None](unknown_for, min(limit, _LATELY), clock)
        self._found = Lately[str](_FOUND_FOR, min(limit, _LATELY), clock)
        self._ended = Lately[str](_ENDED_FOR, min(limit, _LATELY), clock)

    def __len__(self) -> int:
        return len(self._nodes)

    def node_of(self, uuid: str) -> str | None:
        """The node that has the call, None when the table does not know."""
        return self._nodes.get(uuid) or self._found.get(uuid)

    def learn(self, uuid: str, node: str) -> None:
        """The node has this call, and its events are heard here."""
        self._unknown.pop(uuid)
        self._nodes[uuid] = node
        if len(self._nodes) > self._limit:
            del self._nodes[next(iter(self._nodes))]

    def note_found(self, uuid: str, node: str) -> None:
        """The node said that it has this call; believed for a while."""
        self._unknown.pop(uuid)
        self._found.put(uuid, node)

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
        self._unknown.put(uuid, None)

    def is_unknown(self, uuid: str) -> bool:
        """Whether every node was asked for this call a moment ago, in vain."""
        return uuid in self._unknown

    def watchers(self, node: str) -> dict[str, Callable[[Event], None]]:
        """What the node's event path calls, by event name, to keep this table."""
        begins, ends = partial(self._begins, node), partial(self._ends, node)
        found: dict[str, Callable[[Event], None]] = dict.fromkeys(_BEGINNINGS, begins)
        found.update(dict.fromkeys(_ENDS, ends))
        found["CHANNEL_CREATE"] = partial(self._created, node)
        found["CHANNEL_UUID"] = partial(self._renamed, node)
        return found

    def _created(self, node: str, event: Event) -> None:
        if not event.injected:
            self._ended.pop(event.unique_id)  # a uuid that callers choose (origination_uuid) may come again
            self._begins(node, event)

    def _begins(self, node: str, event: Event) -> None:
        uuid = event.unique_id
        if uuid and not event.injected and self._ended.get(uuid) != node:
            self.learn(uuid, node)

    def _ends(self, node: str, event: Event) -> None:
        if not event.injected:
            uuid = event.unique_id
            self.forget(uuid, node)
            self._found.pop(uuid)
            self._ended.put(uuid, node)

    def _renamed(self, node: str, event: Event) -> None:
        (old,) = OLD_UUID.of(event)
        if old is not None and not event.injected:
            self.forget(old, node)
            self._ended.put(old, node)
        self._begins(node, event)
