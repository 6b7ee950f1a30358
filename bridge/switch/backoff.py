"""How long to wait before the next attempt: exponential, jittered, capped, per class of failure.

This room never sleeps and never sets a timer.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Span:
    """First and longest delay of a class of failures, in s, before jitter."""

    base: float
    cap: float


LINK_SPANS: Final[Mapping[str, Span]] = {
    # The link was fine and went away: FreeSWITCH may be back at once.
    "eof": Span(0.25, 15.0),
    "disconnect": Span(0.25, 15.0),
    "heartbeat": Span(0.25, 15.0),
    "lost_log_lines": Span(0.5, 30.0),
    # We, or the network, were too slow; at once would be again too slow.
    "lost_events": Span(1.0, 30.0),
    # A restart takes a few seconds at least.
    "shutdown": Span(2.0, 15.0),
    "refused": Span(0.5, 15.0),
    "unreachable": Span(1.0, 30.0),
    "timeout": Span(1.0, 30.0),
    "protocol_error": Span(1.0, 60.0),
    # Only an operator can mend these; each try leaves a line in FreeSWITCH's log.
    "access_denied": Span(30.0, 300.0),
    "auth_failed": Span(30.0, 300.0),
    "setup_denied": Span(30.0, 300.0),
    "tls": Span(5.0, 120.0),
}
"""Classes of an event link."""

POOL_SPANS: Final[Mapping[str, Span]] = {
    # Callers wait for these: short, and while one runs they are told at once.
    "eof": Span(0.1, 2.0),
    "disconnect": Span(0.1, 2.0),
    "refused": Span(0.2, 2.0),
    "timeout": Span(0.5, 5.0),
    "protocol_error": Span(0.5, 10.0),
    "shutdown": Span(0.5, 2.0),
    "access_denied": Span(10.0, 120.0),
    "auth_failed": Span(10.0, 120.0),
}
"""Classes of a command pool."""

_OTHER = Span(0.5, 30.0)
_STEPS = 16  # 2**16 times any base is over any cap


class Backoff:
    """Delays of one node. Each class counts its own failures, so that no class inherits another's wait."""

    def __init__(self, spans: Mapping[str, Span] = LINK_SPANS, rng: random.Random | None = None) -> None:
        self._spans = spans
        self._rng = rng if rng is not None else random.Random()
        self._failures: dict[str, int] = {}

    def delay(self, reason: str) -> float:
        """Count one more failure of the class ``reason``; the s to wait: between a half and the whole of its step."""
        span = self._spans.get(reason, _OTHER)
        step = self._failures.get(reason, 0)
        self._failures[reason] = min(step + 1, _STEPS)
        return float(min(span.cap, span.base * 2.0**step)) * self._rng.uniform(0.5, 1.0)

    def failures(self, reason: str) -> int:
        """How often the class failed since the last reset."""
        return self._failures.get(reason, 0)

    def reset(self) -> None:
        """All is well again: the next failure waits the first delay."""
        self._failures.clear()
