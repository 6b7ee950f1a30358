from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from bridge.messages.command import Status
from bridge.relay.routing import Refusal, Router
from bridge.switch.node import NodeLoad


class Setup:
    def __init__(self, **states: str) -> None:
        self.now = 100.0
        self.states = states
        self.loads: dict[str, NodeLoad] = {}
        self.router = Router(self, clock=lambda: self.now, max_in_flight_node=1000)

    def names(self) -> Any:
        return list(self.states)

    def pool(self, name: str) -> None:
        return None

    def state(self, name: str) -> str:
        return self.states.get(name, "")

    def load(self, name: str) -> NodeLoad | None:
        return self.loads.get(name)

    def tags(self, name: str) -> tuple[str, ...]:
        return ()

    def heartbeat(
        self, name: str, sessions: int = 0, idle: float = 100.0, most: int = 100, per_second: int = 30
    ) -> None:
        self.loads[name] = NodeLoad(sessions, most, per_second, 0, idle, self.now, 0.0)

    def pick(self, verb: str = "status", times: int = 1) -> list[str]:
        picked = []
        for _ in range(times):
            name = self.router.choose("any", verb)
            assert isinstance(name, str), name
            self.router.took(name, verb)
            picked.append(name)
        return picked


def test_the_least_loaded_node_gets_it() -> None:
    setup = Setup(a="UP", b="UP", c="UP")
    setup.heartbeat("a", sessions=50, idle=100)  # 50
    setup.heartbeat("b", sessions=20, idle=90)  # 72
    setup.heartbeat("c", sessions=0, idle=40)  # 40
    assert setup.pick(times=3) == ["b", "b", "b"]


def test_nodes_that_are_as_good_share_the_work() -> None:
    setup = Setup(a="UP", b="UP")
    setup.heartbeat("a", sessions=1)
    setup.heartbeat("b", sessions=0)
    assert sorted(setup.pick(times=10)) == ["a"] * 5 + ["b"] * 5
    unknown = Setup(a="UP", b="UP", c="UP")
    assert sorted(unknown.pick(times=6)) == ["a", "a", "b", "b", "c", "c"]


def test_calls_begun_since_the_heartbeat_count() -> None:
    setup = Setup(a="UP", b="UP")
    setup.heartbeat("a", sessions=0, most=100, per_second=0)
    setup.heartbeat("b", sessions=10, most=100, per_second=0)
    picked = setup.pick("originate", times=20)
    assert picked[:6] == ["a"] * 6  # until a is as full as b
    assert abs(picked.count("a") - 15) <= 4
    setup.now += 20
    setup.heartbeat("a", sessions=picked.count("a"), most=100, per_second=0)
    setup.heartbeat("b", sessions=10 + picked.count("b"), most=100, per_second=0)
    assert setup.router._reserved("a", setup.router._of("a")) == 0  # the heartbeat knows them now


def test_a_call_that_failed_gives_its_reservation_back() -> None:
    setup = Setup(a="UP")
    setup.heartbeat("a")
    setup.router.took("a", "originate")
    setup.router.gave_back("a", "originate", failed=False)
    assert setup.router._of("a").reserved == 1
    setup.router.took("a", "originate")
    setup.router.gave_back("a", "originate", failed=True)
    assert setup.router._of("a").reserved == 1


def test_stale_load_is_void() -> None:
    setup = Setup(a="UP", b="UP")
    setup.heartbeat("a", idle=100)
    setup.now += 1000
    setup.heartbeat("b", idle=10)
    assert setup.pick(times=3) == ["b", "b", "b"]


def test_session_per_sec_is_honoured() -> None:
    setup = Setup(a="UP", b="UP")
    setup.heartbeat("a", per_second=2, most=0)
    setup.heartbeat("b", per_second=1, most=0)
    assert sorted(setup.pick("originate", times=3)) == ["a", "a", "b"]
    refusal = setup.router.choose("any", "originate")
    assert isinstance(refusal, Refusal)
    assert refusal.status is Status.BUSY
    assert "Session-Per-Sec" in refusal.error
    assert isinstance(setup.router.choose("any", "status"), str)
    assert setup.router.choose("a", "originate") == "a"  # who names a node, means it
    setup.now += 1.1
    assert isinstance(setup.router.choose("any", "originate"), str)


@pytest.mark.parametrize(
    ("states", "chosen"),
    [
        ({"a": "DOWN", "b": "UP", "c": "SUSPECT"}, "b"),
        ({"a": "DOWN", "b": "SYNCING", "c": "SUSPECT"}, "c"),
        ({"a": "DRAINING", "b": "SYNCING", "c": "CONNECTING"}, "b"),
        ({"a": "DOWN", "b": "CONNECTING"}, "b"),
        ({"a": "SUSPECT"}, "a"),
    ],
)
def test_states(states: dict[str, str], chosen: str) -> None:
    assert Setup(**states).pick() == [chosen]


@pytest.mark.parametrize("states", [{"a": "DOWN"}, {"a": "DRAINING"}, {"a": "DOWN", "b": "DRAINING"}])
def test_none_is_up(states: dict[str, str]) -> None:
    refusal = Setup(**states).router.choose("any", "status")
    assert isinstance(refusal, Refusal)
    assert refusal.status is Status.UNAVAILABLE


def test_full_nodes_are_passed_over() -> None:
    setup = Setup(a="UP", b="UP")
    setup.router = Router(setup, clock=lambda: setup.now, max_in_flight_node=2)
    assert sorted(setup.pick(times=4)) == ["a", "a", "b", "b"]
    refusal = setup.router.choose("any", "status")
    assert isinstance(refusal, Refusal)
    assert refusal.status is Status.BUSY
    setup.router.gave_back("b", "status", failed=False)
    assert setup.pick() == ["b"]


def test_nodes_without_an_idle_cpu_of_their_own_still_serve() -> None:
    setup = Setup(a="UP", b="UP")
    setup.heartbeat("a", idle=0.0)
    setup.heartbeat("b", idle=0.0)
    assert sorted(setup.pick(times=2)) == ["a", "b"]


def fleet(count: int = 300) -> Setup:
    setup = Setup(**{f"n{number}": "UP" for number in range(count)})
    for number in range(count):
        setup.heartbeat(f"n{number}", sessions=0 if number % 3 else 50)
    return setup


def test_of_many_nodes_the_good_ones_share_the_work() -> None:
    setup = fleet()
    picked = Counter(setup.pick(times=2_000))
    assert all(int(name[1:]) % 3 for name in picked), "none of those that have calls"
    assert len(picked) == 200
    assert max(picked.values()) <= 2 * min(picked.values())


def test_many_nodes_are_not_all_looked_at_for_each_command() -> None:
    setup = fleet()
    asked: Counter[str] = Counter()
    state = setup.state
    setup.state = lambda name: asked.update([name]) or state(name)  # type: ignore[assignment, func-returns-value]
    setup.pick(times=100)
    assert asked.total() < 300 + 100 * 10
    setup.now += 1
    setup.pick()
    assert asked.total() > 600, "now and then they are"


def test_one_of_many_that_goes_down_or_fills_up_gets_nothing_more() -> None:
    setup = fleet()
    setup.pick()
    good = [name for name in setup.states if int(name[1:]) % 3]
    for name in good[1:]:
        setup.states[name] = "DOWN"
    assert set(setup.pick(times=400)) <= {good[0], *(f"n{number}" for number in range(0, 300, 3))}
    setup.router.limit = setup.router.in_hand(good[0])
    setup.now += 1
    assert good[0] not in setup.pick(times=50)


def test_calls_begin_on_the_very_best_of_many() -> None:
    setup = fleet()
    setup.heartbeat("n7", sessions=0, most=10_000)
    for name in setup.states:
        if name != "n7":
            setup.heartbeat(name, sessions=60)
    setup.pick()
    assert setup.pick("originate", times=5) == ["n7"] * 5
