"""All deadlines of a worker in one heap, woken by one timer of the event loop.

This room never starts a task for a deadline, and never holds more than twice the deadlines that are alive.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Callable

_COMPACT_ABOVE = 64  # a smaller heap is not worth sweeping


class Deadline:
    """One entry of the heap; ``when`` is its instant in loop time (s)."""

    __slots__ = ("_book", "callback", "when")

    def __init__(self, when: float, callback: Callable[[], None], book: Deadlines) -> None:
        self.when = when
        self.callback: Callable[[], None] | None = callback
        self._book: Deadlines | None = book  # None once it has left the heap

    def cancel(self) -> None:
        """Forget it: its callback will not be called. Harmless when it is over already."""
        if self.callback is not None:
            self.callback = None
            if self._book is not None:
                self._book._cancelled += 1  # the heap is swept when most of it is dead

    @property
    def active(self) -> bool:
        """Whether it is still to come."""
        return self.callback is not None


class Deadlines:
    """A heap of instants (loop time, s), each with a callback; ``len()`` counts those still to come."""

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self._loop = loop
        self._heap: list[tuple[float, int, Deadline]] = []
        self._number = 0
        self._cancelled = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_when = 0.0

    def __len__(self) -> int:
        return len(self._heap) - self._cancelled

    def add(self, when: float, callback: Callable[[], None]) -> Deadline:
        """Call ``callback`` at ``when`` (loop time, s), at the next turn of the loop if that is past."""
        entry = Deadline(when, callback, self)
        self._number += 1
        heap = self._heap
        if self._cancelled > _COMPACT_ABOVE and self._cancelled * 2 > len(heap):
            self._compact()
        heapq.heappush(heap, (when, self._number, entry))
        if self._timer is None or when < self._timer_when:
            self._arm(when)
        return entry

    def close(self) -> None:
        """Forget everything; nothing is called any more."""
        for _, _, entry in self._heap:
            entry.callback = None
        self._heap.clear()
        self._cancelled = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _compact(self) -> None:
        # In place: add() holds a reference to the list.
        self._heap[:] = [item for item in self._heap if item[2].callback is not None]
        heapq.heapify(self._heap)
        self._cancelled = 0

    def _arm(self, when: float) -> None:
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        if self._timer is not None:
            self._timer.cancel()
        self._timer_when = when
        self._timer = self._loop.call_at(when, self._wake)

    def _wake(self) -> None:
        loop = self._loop
        assert loop is not None
        self._timer = None
        # The loop may call a little early (its clock's resolution), never for long.
        now = max(loop.time(), self._timer_when)
        heap = self._heap
        due: list[Deadline] = []
        while heap and (heap[0][2].callback is None or heap[0][0] <= now):
            entry = heapq.heappop(heap)[2]
            if entry.callback is None:
                self._cancelled -= 1
            else:
                entry._book = None
                due.append(entry)
        if heap:
            self._arm(heap[0][0])
        for entry in due:
            callback, entry.callback = entry.callback, None
            if callback is None:
                continue  # cancelled by a callback before it in this very turn
            try:
                callback()
            except Exception as error:
                loop.call_exception_handler({"message": "a deadline's callback failed", "exception": error})


def clock_of(loop: asyncio.AbstractEventLoop) -> Callable[[], float]:
    """The loop's clock, read directly: uvloop's own counts whole milliseconds and stands still within a turn."""
    return time.monotonic if abs(loop.time() - time.monotonic()) < 1.0 else loop.time
