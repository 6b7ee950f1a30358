"""Which node a command goes to: the interface that knows the nodes, and the choice among them.

This room never sends anything; it remembers only what it chose lately, because HEARTBEATs are seconds apart.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable
from typing import Final, Protocol

import msgspec

from bridge.messages.fleet import UNKNOWN
from bridge.messages.reply import Status
from bridge.switch.command_pool import Outcome
from bridge.switch.node import NodeLoad, NodeState

# Nodes with nearly the best score share the work, else one of them would get all of it until its next HEARTBEAT.
_AS_GOOD_AS = 0.95
# Where there are more nodes than this, which are as good is looked up every so many seconds, and each command goes to
# the one of a few of them that has least in hand: a look at a thousand nodes costs more than the command.
_MANY = 32
_LOOK_EVERY = 0.02
_FEW = 8
# Verbs that put a new call on the node.
_STARTS_CALLS = frozenset({"originate"})

# Nodes of the best state that there is are chosen from; those of other states never. CONNECTING says only that the
# event link is not there yet (the worker began a moment ago, or the node changes hands): its pool finds out. So it
# does of a node whose state nobody can tell.
_RANKS: Final[dict[str, int]] = {
    NodeState.UP: 0,
    NodeState.SUSPECT: 1,
    NodeState.SYNCING: 2,
    NodeState.CONNECTING: 3,
    UNKNOWN: 3,
}
_WORSE_THAN_ANY: Final = 4
_DOWN: Final = NodeState.DOWN


class Submission(Protocol):
    """A command in a pool's hands."""

    @property
    def written_at(self) -> float:
        """When it was given to a connection (loop time, s), 0.0 when that never happened."""

    def cancel(self) -> None:
        """Give it up: not yet written it never will be, written its reply is swallowed; ``done`` is not called."""


class Pool(Protocol):
    """The command connections of one node (``switch.command_pool`` fulfils it)."""

    def submit(
        self,
        command: bytes,
        done: Callable[[Outcome], None],
        *,
        deadline: float,
        on_written: Callable[[], None] | None = None,
    ) -> Submission:
        """Write a command; ``done`` gets the outcome, never before this returned, and once more when it came late."""

    def submit_job(
        self,
        line: str,
        done: Callable[[Outcome], None],
        *,
        deadline: float,
        on_accepted: Callable[[str], None] | None = None,
        on_written: Callable[[], None] | None = None,
    ) -> Submission:
        """Write a ``bgapi``; ``done`` gets the outcome at its BACKGROUND_JOB."""

    def submit_execute_wait(
        self,
        uuid: str,
        app: str,
        arg: str,
        done: Callable[[Outcome], None],
        *,
        deadline: float,
        on_written: Callable[[], None] | None = None,
    ) -> Submission:
        """Write an ``execute``; ``done`` gets the outcome at its CHANNEL_EXECUTE_COMPLETE."""


class Nodes(Protocol):
    """The nodes that commands can go to."""

    def names(self) -> Collection[str]:
        """Every node of the configuration, whatever its state."""

    def pool(self, name: str) -> Pool | None:
        """Its command connections; None for an unknown node."""

    def state(self, name: str) -> str:
        """Its state (CONNECTING, SYNCING, UP, SUSPECT, DOWN, DRAINING), "" for an unknown node."""

    def load(self, name: str) -> NodeLoad | None:
        """What its last HEARTBEAT said, None before the first."""

    def tags(self, name: str) -> Collection[str]:
        """Its tags."""


class Refusal(msgspec.Struct, frozen=True):
    """Why a command goes nowhere; nothing was executed."""

    status: Status
    error: str


class _Recent:
    """What one node was given lately."""

    __slots__ = ("begun", "heartbeat", "in_hand", "reserved")

    def __init__(self) -> None:
        self.in_hand = 0
        self.reserved = 0  # calls begun since `heartbeat`, which its Session-Count does not hold yet
        self.heartbeat = 0.0
        self.begun: deque[float] = deque()  # instants of the calls begun within the last second


class Router:
    """Chooses nodes; ``took`` and ``gave_back`` tell it what became of the choice.

    ``clock`` gives loop time (s), as ``NodeLoad.received_at`` does.
    """

    def __init__(self, nodes: Nodes, *, clock: Callable[[], float], max_in_flight_node: int) -> None:
        self._nodes = nodes
        self._clock = clock
        self.limit = max_in_flight_node
        self._recent: dict[str, _Recent] = {}
        self._turn = 0
        self._good: list[str] = []
        self._good_until = 0.0

    def choose(self, to: str, verb: str, tried: Collection[str] = ()) -> str | Refusal:
        """The node for ``any``, ``tag:<tag>`` or a node's name, without those that were ``tried`` in vain."""
        nodes = self._nodes
        if to == "any":
            names = nodes.names()
            if len(names) > _MANY and not tried and verb not in _STARTS_CALLS:
                chosen = self._choose_of_many(names)
                if chosen:
                    return chosen
            return self._choose_among(names, verb, tried, "there is no node")
        if to.startswith("tag:"):
            tag = to[4:]
            tagged = [name for name in nodes.names() if tag in nodes.tags(name)]
            if not tagged:
                return Refusal(Status.NO_ROUTE, f"no node has the tag {tag!r}")
            return self._choose_among(tagged, verb, tried, f"no node with the tag {tag!r}")
        return self.refusal(to) or to

    def refusal(self, node: str) -> Refusal | None:
        """Why this very node cannot take the command now; None when it can."""
        state = self._nodes.state(node)
        if not state:
            return Refusal(Status.UNAVAILABLE, f"unknown node {node!r}")
        if state == _DOWN:
            return Refusal(Status.UNAVAILABLE, f"node {node} is down")
        if self._of(node).in_hand >= self.limit:
            return Refusal(Status.BUSY, f"{self.limit} commands are in hand for node {node} already")
        return None

    def took(self, node: str, verb: str) -> None:
        """A command goes to the node."""
        recent = self._of(node)
        recent.in_hand += 1
        if verb in _STARTS_CALLS:
            self._reserved(node, recent)
            recent.reserved += 1
            now = self._clock()
            recent.begun.append(now)
            _drop_older(recent.begun, now - 1.0)

    def gave_back(self, node: str, verb: str, *, failed: bool) -> None:
        """The command is over; when one that begins a call ``failed``, its reservation is void."""
        recent = self._of(node)
        recent.in_hand -= 1
        if failed and verb in _STARTS_CALLS and self._reserved(node, recent):
            recent.reserved -= 1

    def in_hand(self, node: str) -> int:
        """How many commands are in hand for the node."""
        return self._of(node).in_hand

    def _alive(self, names: Iterable[str], tried: Collection[str]) -> list[str]:
        """Those of the best state that there is."""
        state = self._nodes.state
        alive: list[str] = []
        best = _WORSE_THAN_ANY
        for name in names:
            rank = _RANKS.get(state(name), _WORSE_THAN_ANY)
            if rank > best or rank == _WORSE_THAN_ANY or name in tried:
                continue
            if rank < best:
                best, alive = rank, []
            alive.append(name)
        return alive

    def _choose_among(self, names: Iterable[str], verb: str, tried: Collection[str], whom: str) -> str | Refusal:
        alive = self._alive(names, tried)
        if not alive:
            return Refusal(Status.UNAVAILABLE, f"{whom} that is up")
        recent, limit = self._recent, self.limit
        able = [name for name in alive if (known := recent.get(name)) is None or known.in_hand < limit]
        if not able:
            return Refusal(Status.BUSY, f"{self.limit} commands are in hand for each node already")
        if verb in _STARTS_CALLS:
            able = [name for name in able if self._may_begin(name)]
            if not able:
                return Refusal(Status.BUSY, "every node is at its Session-Per-Sec")
        return able[0] if len(able) == 1 else self._least_loaded(able)

    def _choose_of_many(self, names: Iterable[str]) -> str:
        """One of the good ones; "" where those looked at cannot take it any more."""
        now = self._clock()
        if now >= self._good_until:
            self._good_until = now + _LOOK_EVERY
            alive = self._alive(names, ())
            self._good = self._as_good(alive) if alive else []
        good, state = self._good, self._nodes.state
        start = self._turn * _FEW % len(good) if good else 0
        self._turn += 1
        few = good[start : start + _FEW]
        able = [name for name in few if state(name) in _RANKS and self._of(name).in_hand < self.limit]
        return min(able, key=self.in_hand) if able else ""

    def _as_good(self, names: list[str]) -> list[str]:
        """Those of them whose load is nearly the lowest; all where none is known."""
        now = self._clock()
        scores = [(score, name) for name in names if (score := self._score(name, now)) is not None]
        if not scores:
            return names
        enough = max(scores)[0] * _AS_GOOD_AS
        return [name for score, name in scores if score >= enough]

    def _least_loaded(self, names: list[str]) -> str:
        names = self._as_good(names)
        self._turn += 1
        turn = self._turn % len(names)
        return min(names[turn:] + names[:turn], key=self.in_hand)

    def _score(self, name: str, now: float) -> float | None:
        """``(1 - sessions/max) * idle-cpu``, reservations counted as sessions; None when the load is stale."""
        load = self._nodes.load(name)
        if load is None or not load.fresh(now):
            return None
        free = 1.0
        if load.max_sessions > 0:
            free -= (load.sessions + self._reserved(name, self._of(name))) / load.max_sessions
        return max(0.0, free) * load.idle_cpu

    def _reserved(self, name: str, recent: _Recent) -> int:
        load = self._nodes.load(name)
        if load is not None and load.received_at != recent.heartbeat:
            recent.heartbeat = load.received_at
            recent.reserved = 0  # Session-Count holds them now
        return recent.reserved

    def _may_begin(self, name: str) -> bool:
        load = self._nodes.load(name)
        now = self._clock()
        if load is None or load.sessions_per_sec <= 0 or not load.fresh(now):
            return True
        begun = self._of(name).begun
        _drop_older(begun, now - 1.0)
        return len(begun) < load.sessions_per_sec

    def _of(self, node: str) -> _Recent:
        recent = self._recent.get(node)
        if recent is None:
            recent = self._recent[node] = _Recent()
        return recent


def _drop_older(instants: deque[float], limit: float) -> None:
    while instants and instants[0] <= limit:
        instants.popleft()
