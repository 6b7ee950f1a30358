"""A worker's name as a lease: no two living workers of one fleet bear the same.

This room never renames anybody: who comes second waits one lease time and is refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import time

from bridge.bus.storage import Held, Storage
from bridge.errors import BusError, BusRefused, ConfigError
from bridge.fleet.lease import Lease


class WorkerName:
    """The lease ``worker.<id>`` of this run (``instance``)."""

    def __init__(self, storage: Storage, id: str, instance: str, ttl: float) -> None:
        self.lease = Lease(storage, f"worker.{id}", instance, ttl)
        self._id = id

    async def take(self) -> None:
        """Have the name; a worker that was killed a moment ago holds it for its lease time yet.

        Raises ``ConfigError`` where another worker lives under it, ``BusRefused`` where the bus keeps nothing.
        """
        patience = time.monotonic() + self.lease.ttl * 1.2 + 0.5
        while True:
            try:
                answer = await self.lease.acquire()
            except BusRefused:
                raise
            except BusError:
                await asyncio.sleep(1.0)
                continue
            if not isinstance(answer, Held):
                return
            if time.monotonic() > patience:
                raise ConfigError(
                    [("worker.id", f"{self._id!r} is the name of another living worker ({answer.holder})")]
                )
            await asyncio.sleep(min(answer.remaining + 0.02, 0.5))

    async def keep(self) -> bool:
        """Extend it, or take it again. Raises ``BusUnavailable``, ``ConfigError`` when it became another's."""
        if self.lease.token and await self.lease.renew():
            return False
        answer = await self.lease.acquire()
        if isinstance(answer, Held) and answer.holder:
            # It can only be a worker that was started under our name while we stood still.
            raise ConfigError([("worker.id", f"{self._id!r} was taken by another worker ({answer.holder})")])
        return False

    async def give_back(self) -> None:
        """Let the next one have it at once."""
        with contextlib.suppress(BusError):
            if self.lease.token:
                await self.lease.release()
