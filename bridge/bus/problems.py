"""What people should know of a broker, each thing again only after a while. Never decides where it is told."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

AGAIN: Final = 60.0
"""Seconds until the same is told again."""
_MOST: Final = 1024  # told apart


class Problems:
    """Hands a text on to ``tell``, the same at most once in ``AGAIN`` seconds: many attempts meet one trouble."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._told: dict[str, float] = {}

    def __call__(self, text: str) -> None:
        """Tell it, unless it was told a moment ago."""
        now = time.monotonic()
        if now - self._told.get(text, -AGAIN) < AGAIN:
            return
        if len(self._told) >= _MOST:
            self._told.clear()
        self._told[text] = now
        self._tell(text)
