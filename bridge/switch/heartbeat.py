"""How long a link may be silent: HEARTBEATs are expected at an interval that is set, or learned from them.

This room keeps instants it is given (loop time, s); it never reads a clock and never sets a timer.
"""

from __future__ import annotations

from collections import deque
from enum import StrEnum
from typing import Final

DEFAULT_INTERVAL: Final = 20.0
"""FreeSWITCH's own default (s), assumed until the real one is learned."""

LATE: Final = 1.5
"""Intervals after which a HEARTBEAT is late."""

DEAD: Final = 3.5
"""Intervals of complete silence after which the link is dead: the third HEARTBEAT is late then."""

_LONGEST = 600.0
_SHORTEST = 0.05


class Verdict(StrEnum):
    """What the silence means."""

    FRESH = "fresh"
    LATE = "late"
    DEAD = "dead"


class HeartbeatWatch:
    """Watches one node's HEARTBEATs over all its links; ``interval`` in s, 0 = learn it."""

    def __init__(self, interval: float = 0.0) -> None:
        self._fixed = interval
        self._assumed = DEFAULT_INTERVAL
        self._distances: deque[float] = deque(maxlen=3)
        self._last_stamp = 0
        self._last_beat = 0.0
        self.last_byte = 0.0
        """When anything was last read from the link; the link keeps it."""

    @property
    def interval(self) -> float:
        """The expected distance of two HEARTBEATs in s."""
        if self._fixed > 0:
            return self._fixed
        return min(self._distances) if self._distances else self._assumed

    @property
    def learned(self) -> bool:
        """Whether the interval is known (set, or seen)."""
        return self._fixed > 0 or bool(self._distances)

    def expect(self, interval: float) -> None:
        """Take another interval; 0 = learn it."""
        self._fixed = interval

    def start(self, now: float) -> None:
        """A new link is subscribed: its first HEARTBEAT is due within an interval."""
        self._last_beat = self.last_byte = now
        self._last_stamp = 0

    def beat(self, now: float, timestamp_us: int = 0, interval: float = 0.0) -> None:
        """A HEARTBEAT, stamped ``timestamp_us`` by FreeSWITCH's clock; ``interval`` (s) where it names its own."""
        waited, self._last_beat = now - self._last_beat, now
        self.last_byte = now
        distance = interval
        if distance <= 0 and timestamp_us and self._last_stamp:
            # By the longer of the two: their clock may be set back, and two that waited in a queue come together.
            distance = max(waited, (timestamp_us - self._last_stamp) / 1e6)
        self._last_stamp = timestamp_us
        if _SHORTEST <= distance <= _LONGEST:
            # The shortest of the last three: one lost HEARTBEAT must not double the interval.
            self._distances.append(distance)

    def verdict(self, now: float) -> Verdict:
        """What the silence means at ``now``."""
        interval = self.interval
        if now >= max(self._last_beat, self.last_byte) + DEAD * interval:
            return Verdict.DEAD
        return Verdict.LATE if now >= self._last_beat + LATE * interval else Verdict.FRESH

    def next_check(self, now: float) -> float:
        """When the verdict can next change for the worse."""
        interval = self.interval
        late = self._last_beat + LATE * interval
        return late if now < late else max(self._last_beat, self.last_byte) + DEAD * interval

    def died(self) -> None:
        """The link was given up for silence: an interval that is not set may be too short by now, learned or not."""
        if self._fixed <= 0:
            self._assumed = min(self.interval * 2, _LONGEST / 2)
            self._distances.clear()
