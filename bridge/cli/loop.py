"""The event loop of a command: uvloop where it is there, and signals as a wish to end.

This room never cancels work in the middle: a signal sets an event that the command waits for.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

Result = TypeVar("Result")


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def run_async(main: Coroutine[Any, Any, Result]) -> Result:
    """Run a command's coroutine to its end."""
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(main)


class StopWish(asyncio.Event):
    """Set when the process is asked to end; ``signals`` counts how often it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.signals = 0
        self.impatient = asyncio.Event()

    def ask(self) -> None:
        """Note one SIGINT or SIGTERM; a second one says "now"."""
        self.signals += 1
        self.set()
        if self.signals > 1:
            self.impatient.set()

    async def within(self, seconds: float | None) -> bool:
        """Wait for the wish at most so long; say whether it came."""
        try:
            async with asyncio.timeout(seconds):
                await self.wait()
        except TimeoutError:
            return False
        return True


@contextmanager
def stop_on_signals() -> Iterator[StopWish]:
    """Turn SIGINT and SIGTERM into a wish, for as long as the context lasts."""
    loop = asyncio.get_running_loop()
    wish = StopWish()
    wanted = (signal.SIGINT, signal.SIGTERM)
    before = signal.getsignal(signal.SIGINT)
    for number in wanted:
        loop.add_signal_handler(number, wish.ask)
    try:
        yield wish
    finally:
        for number in wanted:
            loop.remove_signal_handler(number)
        # The loop leaves Python's own handler behind, whose KeyboardInterrupt could come anywhere.
        signal.signal(signal.SIGINT, before)


async def until_stopped(wish: StopWish, work: Coroutine[Any, Any, Result]) -> Result | None:
    """Do ``work`` unless the wish to end comes first (then it is cancelled and None returned)."""
    task = asyncio.ensure_future(work)
    waiter = asyncio.ensure_future(wish.wait())
    try:
        await asyncio.wait({task, waiter}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        task.cancel()
        await asyncio.wait({task})
        return None
    finally:
        waiter.cancel()
        task.cancel()
