"""The event loop of a command: uvloop where it is there, and signals as a wish to end.

This room never cancels work in the middle: a signal sets an event that the command waits for.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from bridge.client import Bridge

Result = TypeVar("Result")


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """What makes the loop that commands run on; None for asyncio's own."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def run_async(main: Coroutine[Any, Any, Result]) -> Result:
    """Run a command's coroutine to its end."""
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
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


@asynccontextmanager
async def connected(wish: StopWish, bridge: Bridge) -> AsyncIterator[bool]:
    """Have the bridge connected; False, and nothing is, when the wish to end comes first. Raises ``BusError``."""
    if await until_stopped(wish, bridge.__aenter__(), insist=True) is None or wish.is_set():
        await bridge.close()
        yield False
        return
    try:
        yield True
    finally:
        await bridge.close()


async def until_stopped(wish: StopWish, work: Coroutine[Any, Any, Result], *, insist: bool = False) -> Result | None:
    """Do ``work`` unless the wish to end comes first (then it is cancelled and None returned).

    With ``insist`` it is cancelled again while it goes on: before Python 3.12 ``wait_for``, which drivers connect
    with, loses a cancellation that comes in the same turn as its result.
    """
    task = asyncio.ensure_future(work)
    waiter = asyncio.ensure_future(wish.wait())
    try:
        await asyncio.wait({task, waiter}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        while not task.done():
            task.cancel()
            await asyncio.wait({task}, timeout=0.1 if insist else None)
        return None
    finally:
        waiter.cancel()
        task.cancel()
