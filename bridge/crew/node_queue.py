"""One node's own queue at this worker: taken and left as the node comes and goes, and never by two of us at a time.

This room never looks at a request, and never decides who owns the node.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import structlog

from bridge.bus.base import Consumer
from bridge.errors import BusError

log = structlog.get_logger(__name__)

QUEUE_GRACE = 2.0
"""Seconds that the broker is listened to after the queue was left."""
AGAIN = 1.0
"""Seconds until a broker that could not give us the queue is asked again."""


class NodeQueue:
    """``consume`` takes the queue of ``node``; it is asked only while ``allowed``. All of it is one event loop's."""

    def __init__(
        self, node: str, consume: Callable[[str], Awaitable[Consumer]] | None, allowed: Callable[[], bool]
    ) -> None:
        self._node = node
        self._consume = consume
        self._allowed = allowed
        self._consumer: Consumer | None = None
        self._turn: object | None = None
        self._taking: asyncio.Task[None] | None = None
        self._leaving: asyncio.Task[None] | None = None

    @property
    def served(self) -> bool:
        """Whether it is taken; True where nodes have no queue of their own."""
        return self._consume is None or self._consumer is not None

    def resume(self) -> None:
        """There is room again."""
        if self._consumer is not None:
            self._consumer.resume()

    def take(self) -> None:
        """Take it, in the background, behind what is still being left."""
        if self._consume is not None and self._turn is None:
            self._turn = object()
            self._taking = asyncio.create_task(
                self._take(self._consume, self._turn, self._leaving), name=f"queue-{self._node}"
            )

    def leave(self) -> asyncio.Task[None]:
        """Leave it from now on; the task ends when nothing more of it can arrive."""
        taking, consumer, before = self._taking, self._consumer, self._leaving
        self._turn = self._taking = self._consumer = None
        self._leaving = asyncio.create_task(_left(taking, consumer, before), name=f"leave-{self._node}")
        return self._leaving

    async def close(self) -> None:
        """Leave it for good."""
        taking = self._taking
        await self.leave()
        if taking is not None and not taking.done():
            taking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await taking

    async def _take(
        self, consume: Callable[[str], Awaitable[Consumer]], turn: object, before: asyncio.Task[None] | None
    ) -> None:
        if before is not None:
            await asyncio.wait({before})
        while self._turn is turn:
            if not self._allowed():
                await asyncio.sleep(AGAIN)
                continue
            try:
                consumer = await consume(self._node)
            except BusError as error:
                log.warning("the node's own queue cannot be taken", node=self._node, reason=str(error))
                await asyncio.sleep(AGAIN)
                continue
            if self._turn is not turn:  # left meanwhile; half a consumer cut off would have gone on taking
                await consumer.drain(QUEUE_GRACE)
                return
            self._consumer = consumer
            return


async def _left(
    taking: asyncio.Task[None] | None, consumer: Consumer | None, before: asyncio.Task[None] | None
) -> None:
    waiting = {task for task in (taking, before) if task is not None and not task.done()}
    if waiting:
        await asyncio.wait(waiting, timeout=QUEUE_GRACE)
    if consumer is not None:
        await consumer.drain(QUEUE_GRACE)
