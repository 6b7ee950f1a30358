"""Who is there: the living workers by their entries, and what they say of themselves.

This room never decides who owns what; an entry that stopped being written is gone when its time is over.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from bridge.bus.storage import WORKERS, Storage
from bridge.errors import InvalidMessage
from bridge.messages.fleet import WorkerEntry, decode_worker, encode


class Membership:
    """The workers that live, as this one (``id``) sees them. ``ttl`` in s, ``clock`` gives seconds."""

    def __init__(self, storage: Storage, id: str, ttl: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.members: dict[str, WorkerEntry] = {}
        self.expiry: dict[str, float] = {}
        """When an entry is gone unless it is written again (by ``clock``)."""
        self._storage = storage
        self._id = id
        self._ttl = ttl
        self._clock = clock
        self._seen: dict[str, bytes] = {}

    async def announce(self, entry: WorkerEntry) -> None:
        """Write the own entry. Raises ``BusUnavailable``."""
        await self._storage.put(WORKERS, self._id, encode(entry), self._ttl)

    async def look(self) -> None:
        """Read who is there. Raises ``BusUnavailable``."""
        before = self._clock()
        found = await self._storage.entries(WORKERS)
        members: dict[str, WorkerEntry] = {}
        for id, payload in found.items():
            if self._seen.get(id) == payload and id in self.members:
                members[id] = self.members[id]
                continue
            try:
                members[id] = decode_worker(payload)
            except InvalidMessage:
                continue  # of another version
            self.expiry[id] = before + self._ttl
        self._seen = found
        self.members = members
        self.expiry = {id: until for id, until in self.expiry.items() if id in members}

    async def leave(self) -> None:
        """Remove the own entry. Raises ``BusUnavailable``."""
        await self._storage.remove(WORKERS, self._id)

    def next_expiry(self) -> float:
        """When the first of the others would be gone, infinity where there is none."""
        return min((until for id, until in self.expiry.items() if id != self._id), default=float("inf"))

    def owner_of(self, node: str) -> WorkerEntry | None:
        """The living worker that says it owns the node."""
        return next((it for it in self.members.values() if any(one.name == node for one in it.owned)), None)
