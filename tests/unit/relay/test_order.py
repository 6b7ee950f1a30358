from __future__ import annotations

from bridge.relay.order import Line


def test_one_turn_at_a_time_in_order() -> None:
    line, turns = Line(), list[int]()
    for number in range(3):
        line.enter(lambda number=number: turns.append(number))
    assert (turns, len(line)) == ([0], 2)
    line.leave()
    assert turns == [0, 1]
    line.leave()
    line.leave()
    assert turns == [0, 1, 2]
    line.enter(lambda: turns.append(3))
    assert turns == [0, 1, 2, 3]


def test_places_can_be_given_up() -> None:
    line, turns = Line(), list[int]()
    first = line.enter(lambda: turns.append(0))
    second = line.enter(lambda: turns.append(1))
    line.enter(lambda: turns.append(2))
    assert not line.withdraw(first)
    assert line.withdraw(second)
    assert not line.withdraw(second)
    line.leave()
    assert turns == [0, 2]


def test_turns_that_end_at_once_do_not_nest() -> None:
    line = Line()
    ended = []

    def turn() -> None:
        ended.append(1)
        line.leave()

    line.enter(lambda: None)
    for _ in range(5_000):  # far deeper than Python's stack
        line.enter(turn)
    line.leave()
    assert len(ended) == 5_000
