"""Which worker should own which node: rendezvous hashing with capacities. Pure: every worker computes the same.

This room never looks at who owns a node now, and never talks to anybody.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Mapping, Sequence
from hashlib import blake2b

import msgspec

# With many nodes a worker may have this much more than its share: fewer nodes move when the fleet changes.
SLACK = 1.1


class Candidate(msgspec.Struct, frozen=True):
    """A worker that could own nodes: ``weight`` is its capacity, ``nodes`` those of its configuration."""

    id: str
    weight: float = 1.0
    tags: tuple[str, ...] = ()
    nodes: frozenset[str] = frozenset()


class Placement(msgspec.Struct, frozen=True):
    """Owner and standbys of each node, by worker id; a node that nobody can own is missing."""

    owners: Mapping[str, str]
    standbys: Mapping[str, tuple[str, ...]]

    def owner(self, node: str) -> str:
        """Who should own the node, "" for nobody."""
        return self.owners.get(node, "")


def place(nodes: Mapping[str, str], workers: Sequence[Candidate], *, standby: int = 0) -> Placement:
    """Place every node (name -> pin, "" for none).

    A pin is a worker's id or one of its tags. It is a wish: while no such worker lives, any other owns the node.
    Standbys are chosen from the other workers in the same way.
    """
    owners = _spread(nodes, workers, {})
    taken: dict[str, tuple[str, ...]] = {node: (owner,) for node, owner in owners.items()}
    standbys: dict[str, tuple[str, ...]] = {}
    for _ in range(standby):
        more = _spread(nodes, workers, taken)
        for node, worker in more.items():
            standbys[node] = (*standbys.get(node, ()), worker)
            taken[node] = (*taken[node], worker)
    return Placement(owners, standbys)


def _spread(
    nodes: Mapping[str, str], workers: Sequence[Candidate], taken: Mapping[str, Collection[str]]
) -> dict[str, str]:
    """Give each node its best-ranked worker that has room."""
    total = sum(worker.weight for worker in workers)
    if total <= 0:
        return {}
    room = {worker.id: _capacity(len(nodes) * worker.weight / total) for worker in workers}
    found: dict[str, str] = {}
    # A fixed order that has nothing to do with the names' order: else fs1..fs9 would crowd out fs10.
    for node in sorted(nodes, key=lambda name: (not nodes[name], _number("", name))):
        pin = nodes[node]
        able = [
            worker for worker in workers
            if worker.weight > 0 and node in worker.nodes and worker.id not in taken.get(node, ())
        ]  # fmt: skip
        pinned = [worker for worker in able if pin and (pin == worker.id or pin in worker.tags)]
        ranked = sorted(pinned or able, key=lambda worker: _score(worker, node), reverse=True)
        if ranked:
            best = next((worker for worker in ranked if room[worker.id] > 0), ranked[0])
            found[node] = best.id
            room[best.id] -= 1
    return found


def _capacity(share: float) -> int:
    return max(math.ceil(share - 1e-9), math.floor(share * SLACK))


def _score(worker: Candidate, node: str) -> float:
    """Weighted rendezvous: the share of nodes that a worker wins is that of its weight."""
    return -worker.weight / math.log(_number(worker.id, node))


@functools.lru_cache(maxsize=1 << 18)
def _number(worker: str, node: str) -> float:
    """A number between 0 and 1 (both excluded) that is the same everywhere."""
    digest = blake2b(f"{worker}\n{node}".encode(), digest_size=8).digest()
    return ((int.from_bytes(digest, "big") >> 11) + 0.5) / (1 << 53)
