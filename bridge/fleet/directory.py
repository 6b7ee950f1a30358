"""The nodes of the whole fleet as their owners tell them, for routing and for people.

This room asks nobody: it reads what the members of the fleet wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from bridge.messages.fleet import NodeEntry, WorkerEntry
from bridge.switch.node import NodeLoad

BETWEEN_OWNERS = 10.0
"""Seconds for which a node that nobody tells of is still what its last owner told."""


class Directory:
    """Looks nodes up in the entries of the members; ``clock`` gives loop time (s)."""

    def __init__(self, members: Callable[[], Mapping[str, WorkerEntry]], clock: Callable[[], float]) -> None:
        self._members = members
        self._clock = clock
        self._known: Mapping[str, WorkerEntry] | None = None
        self._nodes: dict[str, tuple[NodeEntry, str, float]] = {}
        self._between: dict[str, float] = {}  # nodes without an owner, since when

    def find(self, node: str) -> NodeEntry | None:
        """The node as its owner sees it."""
        found = self._look().get(node)
        return found[0] if found is not None else None

    def owner(self, node: str) -> str:
        """The worker that owns the node, "" for nobody."""
        found = self._look().get(node)
        return found[1] if found is not None else ""

    def load(self, node: str) -> NodeLoad | None:
        """What the node's last HEARTBEAT said to its owner."""
        found = self._look().get(node)
        if found is None or found[0].sessions < 0:
            return None
        one, _owner, seen = found
        return NodeLoad(
            sessions=one.sessions,
            max_sessions=one.max_sessions,
            sessions_per_sec=one.sessions_per_sec,
            sessions_per_sec_last=one.sessions_per_sec_last,
            idle_cpu=one.idle_cpu,
            received_at=seen - one.load_age,
            delay=one.lag,
            interval=one.interval,
        )

    def _leave_between(
        self,
        before: Mapping[str, tuple[NodeEntry, str, float]],
        fresh: dict[str, tuple[NodeEntry, str, float]],
        now: float,
    ) -> None:
        """A node changes hands: until somebody tells of it again it is what it was, for a while."""
        for name, (one, _owner, seen) in before.items():
            since = self._between.setdefault(name, now) if name not in fresh else self._between.pop(name, now)
            if name not in fresh and now - since < BETWEEN_OWNERS:
                fresh[name] = (one, "", seen)
        self._between = {name: since for name, since in self._between.items() if name in fresh}

    def _look(self) -> Mapping[str, tuple[NodeEntry, str, float]]:
        members = self._members()
        if members is not self._known:
            self._known = members
            now = self._clock()
            before = self._nodes
            fresh: dict[str, tuple[NodeEntry, str, float]] = {}
            for entry in members.values():
                for one in entry.owned:
                    known = before.get(one.name)
                    # The same object: its worker wrote nothing new.
                    fresh[one.name] = known if known is not None and known[0] is one else (one, entry.id, now)
            self._leave_between(before, fresh, now)
            self._nodes = fresh
        return self._nodes
