from __future__ import annotations

import pytest

from bridge.relay.lately import Lately


@pytest.fixture
def clock() -> list[float]:
    return [100.0]


def test_an_entry_is_there_for_its_time(clock: list[float]) -> None:
    lately = Lately[int](10, 100, lambda: clock[0])
    lately.put("a", 1)
    clock[0] += 9.9
    assert ("a" in lately, lately.get("a"), "b" in lately, lately.get("b")) == (True, 1, False, None)
    clock[0] += 0.1
    assert ("a" in lately, lately.get("a"), lately.pop("a")) == (False, None, None)


def test_putting_it_again_begins_anew(clock: list[float]) -> None:
    lately = Lately[int](10, 100, lambda: clock[0])
    lately.put("a", 1)
    lately.put("b", 2)
    clock[0] += 6
    lately.put("a", 3)
    clock[0] += 6
    lately.put("c", 4)  # b leaves with it, though a was noted before b
    assert (lately.get("a"), lately.get("b"), len(lately)) == (3, None, 2)


def test_what_is_over_leaves_with_the_next_entry(clock: list[float]) -> None:
    lately = Lately[None](10, 1_000_000, lambda: clock[0])
    for number in range(5000):
        clock[0] += 0.1
        lately.put(str(number), None)
    assert len(lately) == 100


def test_it_holds_so_many_at_most(clock: list[float]) -> None:
    lately = Lately[int](10, 3, lambda: clock[0])
    for number in range(10):
        lately.put(str(number), number)
    assert (len(lately), lately.get("6"), lately.get("7")) == (3, None, 7)
    lately.clear()
    assert len(lately) == 0


@pytest.mark.parametrize(("seconds", "limit"), [(0, 10), (10, 0)])
def test_no_time_or_no_room_keeps_nothing(seconds: float, limit: int) -> None:
    lately = Lately[int](seconds, limit)
    lately.put("a", 1)
    assert (len(lately), lately.pop("a")) == (0, None)
