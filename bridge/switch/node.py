"""What is known of one FreeSWITCH node: its state, its load, and the changes told about it.

This room holds values only; it never opens a socket and never reads a clock.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from bridge.esl.event import Event


class NodeState(StrEnum):
    """State of a node as its event link sees it."""

    CONNECTING = "CONNECTING"
    """TCP connect and authentication run."""
    SYNCING = "SYNCING"
    """Authenticated; subscriptions and filters are being restored."""
    UP = "UP"
    """Subscribed, HEARTBEATs come in time."""
    SUSPECT = "SUSPECT"
    """A HEARTBEAT is late."""
    DOWN = "DOWN"
    """No link; the next attempt waits for its back-off."""
    DRAINING = "DRAINING"
    """UP, but taken out of service by the operator or the worker."""


@dataclass(frozen=True, slots=True)
class NodeChange:
    """A node changed its state, or the reason of its state; ``at`` is Unix time (s)."""

    node: str
    state: NodeState
    previous: NodeState
    reason: str
    core_uuid: str
    restarted: bool
    """FreeSWITCH has another Core-UUID than the last time it was UP: every call known before is gone."""
    at: float


@dataclass(frozen=True, slots=True)
class LinkGap:
    """Events were missed between ``start`` and ``end`` (Unix time, s), after ``before`` and ahead of ``after``.

    ``before`` and ``after`` are event identities, "" where there is none.
    """

    node: str
    start: float
    end: float
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class NodeLoad:
    """What the last HEARTBEAT said; ``received_at`` is loop time (s), ``delay`` in s is the age it arrived with."""

    sessions: int
    max_sessions: int
    sessions_per_sec: int
    sessions_per_sec_last: int
    idle_cpu: float
    received_at: float
    delay: float
    interval: float = 20.0

    @classmethod
    def of_heartbeat(cls, event: Event, *, received_at: float, unix_time: float, interval: float) -> NodeLoad:
        """Read a HEARTBEAT; headers that are missing or no numbers count as 0 (Idle-CPU as 100)."""
        stamp = event.timestamp_us
        return cls(
            sessions=int(_number(event, "Session-Count", 0.0)),
            max_sessions=int(_number(event, "Max-Sessions", 0.0)),
            sessions_per_sec=int(_number(event, "Session-Per-Sec", 0.0)),
            sessions_per_sec_last=int(_number(event, "Session-Per-Sec-Last", 0.0)),
            idle_cpu=_number(event, "Idle-CPU", 100.0),
            received_at=received_at,
            delay=max(0.0, unix_time - stamp / 1e6) if stamp else 0.0,
            interval=interval,
        )

    def fresh(self, now: float) -> bool:
        """Whether it still says something at ``now`` (loop time, s): at most two and a half intervals old."""
        return now - self.received_at <= 2.5 * self.interval


def _number(event: Event, header: str, default: float) -> float:
    value = event.get(header)
    try:
        number = float(value) if isinstance(value, str) else default
    except ValueError:
        return default
    return number if math.isfinite(number) else default
