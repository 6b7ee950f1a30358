"""Placement: everybody computes the same, evenly, and few nodes move."""

from __future__ import annotations

from collections import Counter

import pytest

from bridge.fleet.placement import Candidate, place

NODES = {f"fs{number}": "" for number in range(1000)}
ALL = frozenset(NODES)


def workers(count: int, **options: object) -> list[Candidate]:
    return [Candidate(f"w{number}", nodes=ALL, **options) for number in range(count)]  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [1, 2, 3, 7, 16])
def test_nodes_are_spread_evenly(count: int) -> None:
    share = Counter(place(NODES, workers(count)).owners.values())
    assert sum(share.values()) == 1000
    assert max(share.values()) <= 1000 / count * 1.11 + 1
    assert min(share.values()) >= 1000 / count * 0.7


def test_few_nodes_over_two_workers_are_halved() -> None:
    for name in ("a", "b", "c"):
        nodes = {f"{name}{number}": "" for number in range(4)}
        both = [Candidate(id, nodes=frozenset(nodes)) for id in ("one", "two")]
        assert sorted(Counter(place(nodes, both).owners.values()).values()) == [2, 2]


def test_the_order_of_workers_does_not_matter() -> None:
    assert place(NODES, workers(5)) == place(NODES, workers(5)[::-1])


@pytest.mark.parametrize("count", [2, 4, 15])
def test_few_nodes_move_when_a_worker_comes(count: int) -> None:
    before, after = place(NODES, workers(count)).owners, place(NODES, workers(count + 1)).owners
    moved = sum(before[node] != after[node] for node in NODES)
    ideal = 1000 / (count + 1)
    assert ideal * 0.7 <= moved <= ideal * 1.7


def test_weights_are_shares() -> None:
    two = [Candidate("small", nodes=ALL), Candidate("big", weight=3.0, nodes=ALL)]
    share = Counter(place(NODES, two).owners.values())
    assert share["big"] == pytest.approx(750, abs=60)


def test_a_pin_is_a_worker_or_a_tag_and_only_a_wish() -> None:
    nodes = {"one": "w1", "two": "eu", "three": "nowhere"}
    known = frozenset(nodes)
    both = [Candidate("w1", nodes=known), Candidate("w2", tags=("eu",), nodes=known)]
    owners = place(nodes, both).owners
    assert (owners["one"], owners["two"]) == ("w1", "w2")
    assert owners["three"] in ("w1", "w2")
    assert set(place(nodes, both[:1]).owners.values()) == {"w1"}


def test_a_worker_gets_only_nodes_that_it_knows() -> None:
    both = [Candidate("one", nodes=frozenset({"fs1"})), Candidate("two", nodes=frozenset({"fs2"}))]
    placement = place({"fs1": "", "fs2": "", "fs3": ""}, both)
    assert placement.owners == {"fs1": "one", "fs2": "two"}
    assert placement.owner("fs3") == ""


def test_a_standby_is_another_worker() -> None:
    placement = place(NODES, workers(4), standby=1)
    for node in NODES:
        (standby,) = placement.standbys[node]
        assert standby != placement.owners[node]
    share = Counter(one for (one,) in placement.standbys.values())
    assert max(share.values()) <= 1000 / 4 * 1.11 + 1
    assert place(NODES, workers(1), standby=1).standbys == {}


def test_without_workers_nothing_is_placed() -> None:
    assert place(NODES, []).owners == {}
