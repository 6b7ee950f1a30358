"""What was noted within the last seconds, and nothing older: at most so many entries, each for at most so long.

This room never starts a timer: what is over leaves when the next entry comes.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Lately(Generic[Value]):
    """Values by key, each for ``seconds`` from when it was put; over ``limit`` the oldest leave before their time."""

    def __init__(self, seconds: float, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._limit = limit
        self._clock = clock
        # In the order of their expiry: all live equally long. A plain dict looks for its first entry among all those
        # that left before it: 45 us for 100,000 entries instead of 1.
        self._entries: OrderedDict[str, tuple[float, Value]] = OrderedDict()

    def __len__(self) -> int:
        """How many are held, those included that are over and did not leave yet."""
        return len(self._entries)

    def __contains__(self, key: object) -> bool:
        entry = self._entries.get(key)  # type: ignore[call-overload]
        return entry is not None and entry[0] > self._clock()

    def put(self, key: str, value: Value) -> None:
        """Note it, from now on anew where it was noted before."""
        now = self._clock()
        entries = self._entries
        entries.pop(key, None)
        entries[key] = (now + self._seconds, value)
        while entries and (len(entries) > self._limit or entries[next(iter(entries))][0] <= now):
            del entries[next(iter(entries))]

    def get(self, key: str) -> Value | None:
        """What was noted; None when that was not lately."""
        entry = self._entries.get(key)
        return entry[1] if entry is not None and entry[0] > self._clock() else None

    def pop(self, key: str) -> Value | None:
        """The same, and forget it."""
        entry = self._entries.pop(key, None)
        return entry[1] if entry is not None and entry[0] > self._clock() else None

    def clear(self) -> None:
        """Forget all."""
        self._entries.clear()
