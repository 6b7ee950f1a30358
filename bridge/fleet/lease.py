"""A lease as its holder sees it: until when it may still be believed.

This room never believes the broker's clock, nor one that somebody can set: CLOCK_BOOTTIME, counted from before the
request left, less a fifth. It goes on while a process, or the whole machine, is asleep.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from bridge.bus.storage import Grant, Held, Storage

SAFETY = 0.8
"""The part of a lease's time that its holder counts on."""


def boot_time() -> float:
    """Seconds that nobody can set and that run while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Right(Protocol):
    """What entitles a worker to publish a node's events."""

    @property
    def token(self) -> int:
        """The fencing token, 0 where the bus keeps none."""

    @property
    def valid(self) -> bool:
        """Whether it does so at this instant."""


class Lease:
    """One name for one holder. ``ttl`` in s; ``token`` is 0 while it is not held."""

    def __init__(
        self, storage: Storage, name: str, holder: str, ttl: float, clock: Callable[[], float] = boot_time
    ) -> None:
        self.name = name
        self.ttl = ttl
        self.token = 0
        self.deadline = 0.0
        self._storage = storage
        self._holder = holder
        self._clock = clock

    @property
    def valid(self) -> bool:
        """Whether nobody else can have it at this instant."""
        return self.token != 0 and self._clock() < self.deadline

    async def acquire(self) -> Grant | Held:
        """Take it if it is free. Raises ``BusUnavailable``."""
        before = self._clock()
        answer = await self._storage.acquire(self.name, self._holder, self.ttl)
        if isinstance(answer, Grant):
            self.token = answer.token
            self.deadline = before + self.ttl * SAFETY
        return answer

    async def renew(self, note: bytes | None = None) -> bool:
        """Extend it; False when somebody else may have it now. Raises ``BusUnavailable``: nobody knows."""
        token, before = self.token, self._clock()
        if await self._storage.renew(self.name, token, self.ttl, note):
            self.deadline = max(self.deadline, before + self.ttl * SAFETY)
            return True
        self.token = 0
        return False

    async def release(self, note: bytes | None = None) -> bool:
        """Give it back; not valid from the first moment on. Raises ``BusUnavailable``."""
        token, self.token = self.token, 0
        self.deadline = 0.0
        return await self._storage.release(self.name, token, note)
