"""How far this machine's clock is from the broker's, by its answers."""

from __future__ import annotations

import logging
import types

import pytest

import bridge.bus.clock
from bridge.bus.clock import BrokerClock


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    shown = types.SimpleNamespace(at=1000.0)
    monkeypatch.setattr(bridge.bus.clock, "time", types.SimpleNamespace(time=lambda: shown.at))
    return shown


def test_the_middle_of_the_question_is_compared(now: types.SimpleNamespace) -> None:
    clock = BrokerClock()
    assert clock.ahead is None
    assert clock.here(7.0) == 7.0
    clock.noted(999.8, 989.9)
    assert clock.ahead == pytest.approx(10.0)
    assert clock.here(989.9) == pytest.approx(999.9)


@pytest.mark.parametrize("asked_at", [998.0, 1000.5])
def test_a_slow_answer_and_a_clock_that_was_set_meanwhile_say_nothing(
    now: types.SimpleNamespace, asked_at: float
) -> None:
    clock = BrokerClock()
    clock.noted(asked_at, 5.0)
    assert clock.ahead is None


def test_the_log_tells_once_and_when_it_is_over(now: types.SimpleNamespace, caplog: pytest.LogCaptureFixture) -> None:
    clock = BrokerClock()
    with caplog.at_level(logging.INFO):
        for said in (999.5, 1003.0, 1004.0, 1000.8, 1000.1, 1000.0, 998.0):
            clock.noted(1000.0, said)
    texts = [record.getMessage().partition(":")[0] for record in caplog.records]
    assert texts == [
        "this machine's clock is behind the broker's, by 3.000 s",
        "this machine's clock and the broker's agree again",
        "this machine's clock is ahead of the broker's, by 2.000 s",
    ]
