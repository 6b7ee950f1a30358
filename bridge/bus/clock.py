"""The broker's clock, as far as it tells it: how far this machine's is ahead of it, and what an instant of it is here.

Entries bear the broker's time, budgets are judged by ours. This room never asks anybody.
"""

from __future__ import annotations

import logging
import time
from typing import Final

log = logging.getLogger(__name__)

ASK_EVERY: Final = 30.0
"""Seconds after which the broker is asked for its time again."""
_SLOW: Final = 1.0  # s; half of what a question takes is the error of its answer
_APART: Final = 1.0  # s; clocks that are kept by anything are nearer
_TOGETHER: Final = 0.5


class BrokerClock:
    """Notes answers to what the time is; all instants are Unix time (s)."""

    def __init__(self) -> None:
        self.ahead: float | None = None
        """How far this machine's clock is ahead of the broker's; None while nobody told."""
        self._told = False

    def noted(self, asked_at: float, said: float) -> None:
        """The broker ``said`` its time, and was asked at an instant of ours."""
        took = time.time() - asked_at
        if not 0 <= took <= _SLOW:  # or the clock was set meanwhile
            return
        self.ahead = ahead = asked_at + took / 2 - said
        if abs(ahead) > _APART and not self._told:
            self._told = True
            which = "ahead of" if ahead > 0 else "behind"
            text = "this machine's clock is %s the broker's, by %.3f s: deadline_ms of requests is judged by it"
            log.warning(text, which, abs(ahead))
        elif abs(ahead) < _TOGETHER and self._told:
            self._told = False
            log.info("this machine's clock and the broker's agree again")

    def here(self, said: float) -> float:
        """What this machine's clock showed at an instant that the broker told."""
        return said + (self.ahead or 0.0)
