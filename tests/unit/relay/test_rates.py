from __future__ import annotations

import pytest

from bridge.relay.rates import RateLimits


def test_a_node_gets_so_many_a_second_and_no_more() -> None:
    rates = RateLimits({"originate": 3})
    assert [rates.take(["originate"], "fs1", 10.0) for _ in range(3)] == [0.0] * 3
    assert rates.take(["originate"], "fs1", 10.0) == pytest.approx(1 / 3)
    assert rates.take(["originate"], "fs1", 10.0 + 1 / 3) == 0.0
    assert rates.take(["originate"], "fs1", 10.0 + 1 / 3) > 0


def test_over_time_the_rate_is_kept_exactly() -> None:
    rates = RateLimits({"originate": 7})
    taken = sum(rates.take(["originate"], "fs1", tick / 1000) == 0.0 for tick in range(10_000))
    assert taken in (76, 77)  # the bucket's second and ten seconds more


def test_a_rest_fills_the_bucket_and_no_further() -> None:
    rates = RateLimits({"originate": 2})
    rates.take(["originate"], "fs1", 0.0)
    assert [rates.take(["originate"], "fs1", 1000.0) for _ in range(3)] == [0.0, 0.0, 0.5]


def test_nodes_and_verbs_have_their_own_buckets() -> None:
    rates = RateLimits({"originate": 1, "Bridge": 1})
    assert rates.take(["originate"], "fs1", 0.0) == 0.0
    assert rates.take(["originate"], "fs2", 0.0) == 0.0
    assert rates.take(["bridge"], "fs1", 0.0) == 0.0
    assert rates.take(["originate"], "fs1", 0.0) == 1.0
    assert rates.take(["status"], "fs1", 0.0) == 0.0


def test_a_slow_rate_still_allows_one() -> None:
    rates = RateLimits({"originate": 0.5})
    assert rates.take(["originate"], "fs1", 0.0) == 0.0
    assert rates.take(["originate"], "fs1", 0.0) == 2.0


def test_a_command_with_two_limited_verbs_takes_both_or_none() -> None:
    rates = RateLimits({"originate": 1, "bridge": 1})
    assert rates.take(["bridge"], "fs1", 0.0) == 0.0
    assert rates.take(["bgapi", "originate", "bridge"], "fs1", 0.0) == 1.0
    assert rates.take(["originate"], "fs1", 0.0) == 0.0


def test_a_clock_that_stands_still_or_stumbles_gives_nothing_away() -> None:
    rates = RateLimits({"originate": 1})
    assert rates.take(["originate"], "fs1", 10.0) == 0.0
    assert rates.take(["originate"], "fs1", 5.0) == 1.0


def test_no_limits_and_bad_limits() -> None:
    assert not RateLimits()
    assert RateLimits().take(["originate"], "fs1", 0.0) == 0.0
    for rate in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="originate"):
            RateLimits({"originate": rate})


def test_full_buckets_are_forgotten() -> None:
    rates = RateLimits({"originate": 1})
    for number in range(6000):
        rates.take(["originate"], f"fs{number}", float(number))
    assert len(rates._buckets) <= 4097
