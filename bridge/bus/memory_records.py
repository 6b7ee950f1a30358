"""The records of a memory broker: what its buses share. Never leaves the process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

from bridge.bus.records import Record, Swapped
from bridge.errors import BusUnavailable, MessageTooLarge


class RecordShelf:
    """What a memory broker keeps. ``clock`` gives seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.records: dict[str, tuple[Record, float]] = {}
        self.beats: dict[str, float] = {}
        self.revision = 0

    def get(self, key: str) -> Record | None:
        """What is there and has not expired."""
        found = self.records.get(key)
        return found[0] if found is not None and found[1] > self.clock() else None


class _Bus(Protocol):
    @property
    def connected(self) -> bool: ...

    @property
    def max_payload(self) -> int: ...


class MemoryRecords:
    """See ``Records``."""

    def __init__(self, bus: _Bus, shelf: RecordShelf) -> None:
        self._bus = bus
        self._shelf = shelf
        self._claim_after = 30.0

    async def open(self, lasting: float, claim_after: float) -> None:
        """See ``Records``."""
        if not self._bus.connected:
            raise BusUnavailable("not connected to the memory broker")
        self._claim_after = claim_after

    async def probe(self) -> None:
        """See ``Records``."""

    def swap(self, key: str, value: bytes, expected: Record | None, ttl: float, answer: Swapped) -> None:
        """See ``Records``."""
        if len(value) > self._bus.max_payload:
            raise MessageTooLarge(len(value), self._bus.max_payload)
        shelf = self._shelf
        if not self._bus.connected:
            self._later(answer, False, None, BusUnavailable("not connected to the memory broker"))
            return
        found = shelf.get(key)
        if found is not None and not _is(found, expected):
            self._later(answer, False, found, None)
            return
        shelf.revision += 1
        record = Record(value, shelf.revision)
        shelf.records[key] = (record, shelf.clock() + ttl)
        self._later(answer, True, record, None)

    def free(self, key: str, expected: Record, answer: Swapped) -> None:
        """See ``Records``."""
        if not self._bus.connected:
            self._later(answer, False, None, BusUnavailable("not connected to the memory broker"))
            return
        found = self._shelf.get(key)
        if found is not None and _is(found, expected):
            del self._shelf.records[key]
            found = None
        self._later(answer, found is None, found, None)

    def _later(self, answer: Swapped, written: bool, found: Record | None, error: BusUnavailable | None) -> None:
        asyncio.get_running_loop().call_soon(answer, written, found, error)

    def beat(self, instance: str) -> None:
        """See ``Records``."""
        if self._bus.connected:
            self._shelf.beats[instance] = self._shelf.clock()

    def leave(self, instance: str) -> None:
        """See ``Records``."""
        self._shelf.beats.pop(instance, None)

    def living(self, instance: str, answer: Callable[[bool], None]) -> None:
        """See ``Records``."""
        last = self._shelf.beats.get(instance)
        lives = last is not None and self._shelf.clock() - last < self._claim_after
        asyncio.get_running_loop().call_soon(answer, lives or not self._bus.connected)


def _is(found: Record, expected: Record | None) -> bool:
    if expected is None:
        return False
    return found.revision == expected.revision if expected.revision else found.value == expected.value
