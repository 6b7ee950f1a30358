from __future__ import annotations

import asyncio
import os
import signal

import pytest

from bridge.cli.loop import StopWish, stop_on_signals, until_stopped
from bridge.cli.run import _drain


async def test_a_signal_is_a_wish_and_a_second_one_is_impatience():
    with stop_on_signals() as wish:
        os.kill(os.getpid(), signal.SIGTERM)
        assert await wish.within(5)
        assert not wish.impatient.is_set()
        os.kill(os.getpid(), signal.SIGINT)
        async with asyncio.timeout(5):
            await wish.impatient.wait()
        assert wish.signals == 2


async def test_without_a_wish_the_time_passes():
    assert not await StopWish().within(0.001)


async def test_work_is_done_unless_the_wish_comes_first():
    wish = StopWish()
    assert await until_stopped(wish, asyncio.sleep(0, "done")) == "done"
    cleaned_up = []

    async def for_ever() -> str:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned_up.append(True)
        return "never"

    asyncio.get_running_loop().call_soon(wish.ask)
    assert await until_stopped(wish, for_ever()) is None
    assert cleaned_up == [True]


async def test_an_error_of_the_work_comes_through():
    async def fail() -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await until_stopped(StopWish(), fail())


async def test_a_drain_is_waited_for():
    assert await _drain(asyncio.sleep(0), StopWish(), 5.0)


@pytest.mark.parametrize("impatient", [True, False])
async def test_a_drain_that_hangs_ends_by_impatience_or_by_time(impatient, capsys):
    wish = StopWish()
    wish.ask()
    if impatient:
        asyncio.get_running_loop().call_soon(wish.ask)
    assert not await _drain(asyncio.sleep(3600), wish, 60.0 if impatient else 0.001)
    assert "before the drain was complete" in capsys.readouterr().err


async def test_an_error_while_draining_comes_through():
    async def fail() -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await _drain(fail(), StopWish(), 5.0)
