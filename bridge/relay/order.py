"""Strict order: the requests of one node's own queue, one after another.

This room never knows what a request does; it only says whose turn it is.
"""

from __future__ import annotations

from collections.abc import Callable


class Line:
    """One queue of waiting turns; at most one turn is taken at any time."""

    def __init__(self) -> None:
        self._waiting: dict[int, Callable[[], None]] = {}
        self._number = 0
        self._taken = False
        self._handing = False

    def __len__(self) -> int:
        return len(self._waiting)

    def enter(self, turn: Callable[[], None]) -> int:
        """Call ``turn`` when all before it have left, at once in an empty line. Returns the place.

        Whoever had its turn calls ``leave`` exactly once, perhaps from within ``turn``.
        """
        self._number += 1
        self._waiting[self._number] = turn
        place = self._number
        self._hand_on()
        return place

    def withdraw(self, place: int) -> bool:
        """Give up a place; True when the turn had not come and now never will."""
        return self._waiting.pop(place, None) is not None

    def leave(self) -> None:
        """The turn that was taken is over."""
        self._taken = False
        self._hand_on()

    def _hand_on(self) -> None:
        # A loop instead of recursion: many turns may end at once (a line whose requests have all expired).
        if self._handing:
            return
        self._handing = True
        try:
            while self._waiting and not self._taken:
                self._taken = True
                self._waiting.pop(next(iter(self._waiting)))()
        finally:
            self._handing = False


class Lines:
    """One line for each node, each at most ``limit`` long; ``on_room`` is called when one was full and is no more."""

    def __init__(self, limit: int, on_room: Callable[[], object]) -> None:
        self.limit = limit
        self._on_room = on_room
        self._lines: dict[str, Line] = {}

    def room(self, node: str) -> int:
        """How many more may wait in the node's line."""
        line = self._lines.get(node)
        return self.limit if line is None else max(0, self.limit - len(line))

    def enter(self, node: str, turn: Callable[[], None]) -> int:
        """See ``Line.enter``."""
        line = self._lines.get(node)
        if line is None:
            line = self._lines[node] = Line()
        return line.enter(turn)

    def withdraw(self, node: str, place: int) -> None:
        """See ``Line.withdraw``."""
        was_full = self.room(node) == 0
        self._lines[node].withdraw(place)
        if was_full:
            self._on_room()

    def leave(self, node: str) -> None:
        """See ``Line.leave``."""
        was_full = self.room(node) == 0
        self._lines[node].leave()
        if was_full:
            self._on_room()
