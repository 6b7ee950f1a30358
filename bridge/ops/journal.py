"""What the operator wants to remember of commands: the last that failed, the slowest, and how they ended.

This room keeps a bounded number of short texts, redacted; it never sees a reply's result.
"""

from __future__ import annotations

import heapq
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

from bridge.messages.command import CommandReply, CommandRequest
from bridge.redaction import Redactor

FAILED_KEPT = 50
SLOWEST_KEPT = 20
TEXT_LIMIT = 200
# The slowest of the day before yesterday say nothing about now, in seconds.
SLOWEST_WINDOW = 3600.0


def command_text(request: CommandRequest) -> str:
    """How a request reads in one line, cut to ``TEXT_LIMIT`` characters; not redacted."""
    if request.op in ("api", "bgapi"):
        words = [request.command]
    else:
        words = [request.op, request.app or request.event, request.arg, request.cause, request.uuid]
    text = " ".join(word for word in words if word)
    return text if len(text) <= TEXT_LIMIT else text[: TEXT_LIMIT - 1] + "…"


class Journal:
    """Takes every final reply (``note``), keeps what stands out. ``wall`` gives Unix time in s."""

    def __init__(self, redactor: Redactor, *, wall: Callable[[], float] = time.time) -> None:
        self.redactor = redactor
        self._wall = wall
        self._failed: deque[dict[str, Any]] = deque(maxlen=FAILED_KEPT)
        self._slowest: list[tuple[float, int, dict[str, Any]]] = []
        self._number = 0
        self._outcomes: Counter[str] = Counter()

    def note(self, request: CommandRequest, reply: CommandReply) -> None:
        """Take a request with its final reply."""
        status, elapsed = reply.status, reply.elapsed_ms or 0.0
        self._outcomes[status] += 1
        slowest = self._slowest
        slow = len(slowest) < SLOWEST_KEPT or elapsed > slowest[0][0]
        if status == "ok" and not slow:
            return
        entry = self._entry(request, reply, elapsed)
        if status != "ok":
            self._failed.append(entry)
        if slow:
            self._number += 1
            item = (elapsed, self._number, entry)
            if len(slowest) < SLOWEST_KEPT:
                heapq.heappush(slowest, item)
            else:
                heapq.heapreplace(slowest, item)

    def _entry(self, request: CommandRequest, reply: CommandReply, elapsed: float) -> dict[str, Any]:
        error = self.redactor.command(reply.error or "")
        return {
            "at": round(self._wall(), 3),
            "op": request.op,
            "command": self.redactor.command(command_text(request)),
            "node": reply.node or request.to,
            "status": str(reply.status),
            "executed": str(reply.executed),
            "error": error[:TEXT_LIMIT],
            "ms": round(elapsed, 1),
        }

    def describe(self) -> dict[str, Any]:
        """What the page shows: ``outcomes`` by status, ``failed`` newest first, ``slowest`` slowest first."""
        oldest = self._wall() - SLOWEST_WINDOW
        fresh = [item for item in self._slowest if item[2]["at"] >= oldest]
        if len(fresh) != len(self._slowest):
            heapq.heapify(fresh)
            self._slowest = fresh
        return {
            "outcomes": dict(self._outcomes),
            "failed": list(reversed(self._failed)),
            "slowest": [item[2] for item in sorted(fresh, key=lambda item: (-item[0], item[1]))],
        }
