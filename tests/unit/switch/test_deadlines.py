"""Deadlines: one heap, one timer, nothing forgotten, nothing kept."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from bridge.switch.deadlines import Deadlines


@pytest.fixture
async def loop() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


async def test_they_come_in_the_order_of_their_instants(loop: asyncio.AbstractEventLoop) -> None:
    deadlines, seen, over = Deadlines(), [], loop.create_future()
    now = loop.time()
    deadlines.add(now + 0.03, lambda: over.set_result(None))
    deadlines.add(now + 0.02, lambda: seen.append("b"))
    deadlines.add(now + 0.01, lambda: seen.append("a"))
    deadlines.add(now - 1, lambda: seen.append("past"))
    assert len(deadlines) == 4
    await over
    assert seen == ["past", "a", "b"]
    assert len(deadlines) == 0


async def test_a_cancelled_one_does_not_come(loop: asyncio.AbstractEventLoop) -> None:
    deadlines, seen, over = Deadlines(), [], loop.create_future()
    now = loop.time()
    first = deadlines.add(now + 0.01, lambda: seen.append("cancelled"))
    deadlines.add(now + 0.02, lambda: over.set_result(None))
    first.cancel()
    first.cancel()
    assert not first.active
    assert len(deadlines) == 1
    await over
    assert seen == []
    assert len(deadlines) == 0


async def test_one_cancelled_by_its_predecessor_of_the_same_turn_does_not_come(loop: asyncio.AbstractEventLoop) -> None:
    deadlines, seen, over = Deadlines(), [], loop.create_future()
    now = loop.time()
    deadlines.add(now - 0.02, lambda: second.cancel())
    second = deadlines.add(now - 0.01, lambda: seen.append("second"))
    deadlines.add(now, lambda: over.set_result(None))
    await over
    assert seen == []
    assert len(deadlines) == 0


async def test_many_cancelled_ones_are_swept() -> None:
    deadlines = Deadlines()
    kept = [deadlines.add(1e9, lambda: None) for _ in range(10)]
    for number in range(100_000):
        deadlines.add(1e9 + number, lambda: None).cancel()
        assert len(deadlines._heap) < 200
    assert len(deadlines) == len(kept)
    deadlines.close()
    assert len(deadlines) == 0


async def test_a_failing_callback_is_reported_and_stops_no_other(loop: asyncio.AbstractEventLoop) -> None:
    reported: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: reported.append(context))
    deadlines, over = Deadlines(), loop.create_future()
    deadlines.add(loop.time(), lambda: 1 / 0)
    deadlines.add(loop.time(), lambda: over.set_result(None))
    await over
    assert isinstance(reported[0]["exception"], ZeroDivisionError)


async def test_an_earlier_one_wakes_the_timer_earlier(loop: asyncio.AbstractEventLoop) -> None:
    deadlines, over = Deadlines(), loop.create_future()
    late = deadlines.add(loop.time() + 3600, lambda: None)
    deadlines.add(loop.time() + 0.01, lambda: over.set_result(None))
    await over
    assert late.active
    deadlines.close()
