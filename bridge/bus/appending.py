"""What the pipelines into streams have in common: how far they are, and who waits for room.

This room never writes: the vendors' rooms do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from bridge.errors import BusUnavailable


class Pipeline:
    """See ``bridge.bus.base.Appender``: the part that counts."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self.written = 0
        self.confirmed = 0
        self.failure = ""
        self.oversized = False
        self._changed = changed
        self._moved = asyncio.Event()

    @property
    def overtaking(self) -> int:
        """See ``Appender``."""
        return 0

    @property
    def outstanding(self) -> int:
        """Messages written and not confirmed."""
        return self.written - self.confirmed

    def confirm(self, count: int) -> None:
        """The first ``count`` messages of all are at the broker."""
        self.confirmed = count
        self._tell()

    def fail(self, reason: str) -> None:
        """Break off; the first reason counts."""
        if not self.failure:
            self.failure = reason
            self._tell()

    def close(self) -> None:
        """See ``Appender``."""
        self._changed = lambda: None
        self.fail("closed")

    async def until(self, outstanding: int) -> None:
        """Return when no more than so many messages are outstanding. Raises ``BusUnavailable`` when it broke off."""
        while not self.failure and self.written - self.confirmed > outstanding:
            self._moved.clear()
            await self._moved.wait()
        self.check()

    def check(self) -> None:
        """Raise ``BusUnavailable`` when it broke off."""
        if self.failure:
            raise BusUnavailable(self.failure)

    def _tell(self) -> None:
        self._moved.set()
        self._changed()
