"""The fleet at a glance: the numbers that each worker shows of itself, put together for the page.

This room adds up and sorts; it asks nobody and keeps nothing but what a rate is measured from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from bridge.ops.journal import FAILED_KEPT, SLOWEST_KEPT

# So many of the requests in hand are listed on the page, the oldest.
SHOWN_IN_HAND = 20
# So many nodes of one worker are shown on another's page.
SHOWN_NODES = 1_000
REASON_LIMIT = 200
# What the page shows of a node.
NODE_FIELDS = (
    "name", "state", "reason", "owner", "tags", "sessions", "max_sessions", "idle_cpu", "lag", "commands_in_flight",
    "commands_waiting", "rate",
)  # fmt: skip

Numbers = Mapping[str, Any]


class Pace:
    """What counters grow by in a second, measured anew at most every ``LEAST`` s. ``clock`` gives s."""

    LEAST = 0.8

    def __init__(self, clock: Callable[[], float]) -> None:
        self.rates: dict[str, float] = {}
        self._clock = clock
        self._at = 0.0
        self._before: dict[str, int] = {}

    def measure(self, counters: Mapping[str, int]) -> Mapping[str, float]:
        """The rates; one that was not asked before has none yet."""
        now = self._clock()
        passed = now - self._at
        if passed >= self.LEAST:
            before = self._before
            self.rates = {
                key: round(max(0, count - before[key]) / passed, 1) for key, count in counters.items() if key in before
            }
            self._at, self._before = now, dict(counters)
        return self.rates


def node_numbers(nodes: Iterable[Numbers]) -> list[dict[str, Any]]:
    """What a page shows of nodes."""
    shown = [{field: node.get(field) for field in NODE_FIELDS} for node in nodes]
    for node in shown:
        node["reason"] = str(node["reason"] or "")[:REASON_LIMIT]
    return shown[:SHOWN_NODES]


def put_together(own: Numbers, others: Iterable[Numbers], known: Iterable[Numbers]) -> dict[str, Any]:
    """The numbers of the fleet: ours, those of the other workers, and the nodes as the fleet's entries tell them.

    Each worker tells the nodes that it owns; what it knows of others' is used where nobody else tells.
    """
    crew = [own, *others]
    nodes: dict[str, dict[str, Any]] = {}
    for node in known:
        nodes[node["name"]] = {field: node.get(field) for field in NODE_FIELDS} | {
            "commands_in_flight": node.get("in_flight")
        }
    for told in crew:
        for node in told["nodes"]:
            nodes[node["name"]] = {**nodes.get(node["name"], {}), **node}
    for name, gap in _gaps(crew).items():
        if name in nodes:
            nodes[name]["gaps"], nodes[name]["last_gap"] = gap["count"], gap
    outcomes: Counter[str] = Counter()
    for told in crew:
        outcomes.update(told["journal"]["outcomes"])
    failed = _merged(crew, "failed", "at")[:FAILED_KEPT]
    slowest = _merged(crew, "slowest", "ms")[:SLOWEST_KEPT]
    in_hand = sorted((one for told in crew for one in told["in_hand"]), key=lambda one: -one["ms"])
    return {
        "nodes": list(nodes.values()),
        "totals": _added(crew, "totals"),
        "buffer": _added(crew, "buffer"),
        "in_flight": sum(told["in_flight"] for told in crew),
        "journal": {"outcomes": dict(outcomes), "failed": failed, "slowest": slowest},
        "in_hand": in_hand[:SHOWN_IN_HAND],
    }


def _added(crew: Iterable[Numbers], what: str) -> dict[str, int]:
    added: Counter[str] = Counter()
    for told in crew:
        added.update(told[what])
    return dict(added)


def _merged(crew: Iterable[Numbers], what: str, by: str) -> list[Any]:
    return sorted((one for told in crew for one in told["journal"][what]), key=lambda one: -one[by])


def _gaps(crew: Iterable[Numbers]) -> dict[str, dict[str, Any]]:
    """The gaps of each node, whoever told them, with the reason and time of the last."""
    found: dict[str, dict[str, Any]] = {}
    for told in crew:
        for name, gap in told["gaps"].items():
            known = found.get(name)
            if known is None:
                found[name] = dict(gap)
            else:
                last = max(known, gap, key=lambda one: one["at"])
                found[name] = {**last, "count": known["count"] + gap["count"]}
    return found
