"""The storage of a memory broker: what its buses share. Never leaves the process."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from bridge.bus.storage import Grant, Held
from bridge.errors import BusUnavailable


class _Lease:
    def __init__(self, holder: str, token: int, until: float) -> None:
        self.holder = holder
        self.token = token
        self.until = until


class MemoryShelf:
    """What a memory broker keeps. ``clock`` gives seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.leases: dict[str, _Lease] = {}
        self.tokens: dict[str, int] = {}
        self.kept: dict[tuple[str, str], bytes] = {}
        self.tables: dict[str, dict[str, tuple[bytes, float]]] = {}


class _Bus(Protocol):
    @property
    def connected(self) -> bool: ...


class MemoryStorage:
    """See ``Storage``."""

    def __init__(self, bus: _Bus, shelf: MemoryShelf, publish: Callable[[str, bytes], None]) -> None:
        self._bus = bus
        self._shelf = shelf
        self._publish = publish

    def _open(self) -> MemoryShelf:
        if not self._bus.connected:
            raise BusUnavailable("not connected to the memory broker")
        return self._shelf

    def _held(self, name: str, token: int) -> _Lease | None:
        shelf = self._open()
        lease = shelf.leases.get(name)
        return lease if lease is not None and lease.token == token and lease.until > shelf.clock() else None

    async def open(self, lease_time: float) -> float:
        """See ``Storage``."""
        self._open()
        return lease_time

    async def acquire(self, name: str, holder: str, ttl: float) -> Grant | Held:
        """See ``Storage``."""
        shelf = self._open()
        now = shelf.clock()
        lease = shelf.leases.get(name)
        if lease is not None and lease.until > now:
            if lease.holder != holder:
                return Held(lease.holder, lease.until - now)
            lease.until = now + ttl
        else:
            token = shelf.tokens[name] = max(shelf.tokens.get(name, 0) + 1, int(time.time() * 1000))
            lease = shelf.leases[name] = _Lease(holder, token, now + ttl)
        return Grant(lease.token, shelf.kept.get((name, "note"), b""))

    async def renew(self, name: str, token: int, ttl: float, note: bytes | None = None) -> bool:
        """See ``Storage``."""
        lease = self._held(name, token)
        if lease is None:
            return False
        lease.until = self._shelf.clock() + ttl
        if note is not None:
            self._shelf.kept[name, "note"] = note
        return True

    async def release(self, name: str, token: int, note: bytes | None = None) -> bool:
        """See ``Storage``."""
        if self._held(name, token) is None:
            return False
        del self._shelf.leases[name]
        if note is not None:
            self._shelf.kept[name, "note"] = note
        return True

    async def put(self, table: str, key: str, value: bytes, ttl: float = 0.0) -> None:
        """See ``Storage``."""
        shelf = self._open()
        until = shelf.clock() + ttl if ttl else float("inf")
        shelf.tables.setdefault(table, {})[key] = (value, until)

    async def remove(self, table: str, key: str) -> None:
        """See ``Storage``."""
        self._open().tables.get(table, {}).pop(key, None)

    async def entries(self, table: str) -> dict[str, bytes]:
        """See ``Storage``."""
        shelf = self._open()
        now = shelf.clock()
        return {key: value for key, (value, until) in shelf.tables.get(table, {}).items() if until > now}

    async def write(self, name: str, what: str, value: bytes) -> None:
        """See ``Storage``."""
        self._open().kept[name, what] = value

    async def read(self, name: str, what: str) -> bytes:
        """See ``Storage``."""
        return self._open().kept.get((name, what), b"")

    def tell(self, topic: str, payload: bytes) -> None:
        """See ``Storage``."""
        if self._bus.connected:
            self._publish(topic, payload)
