"""How many entries each consumer of a bus may ask for, where several draw on one room.

This room never asks for any.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

UNKNOWN = 256
"""Entries where a consumer does not know its room."""


class Asker(Protocol):
    """A consumer that asks for entries."""

    promised: int
    """How many entries the question that is asked may bring."""
    short: bool
    """Whether others ask for all the room."""
    stopping: bool

    @property
    def room(self) -> Callable[[], int] | None:
        """Gives how many entries it may take now; 0 when its worker takes none at all."""

    def resume(self) -> None:
        """There may be room again."""


class Sharing:
    """Those who may ask. A consumer's room is a part of the worker's, which is the largest that any of them tells.

    All together ask for no more than one each above the worker's room.
    """

    def __init__(self) -> None:
        self._askers: dict[Asker, None] = {}

    def join(self, asker: Asker) -> None:
        """It asks, or will."""
        self._askers[asker] = None

    def leave(self, asker: Asker) -> None:
        """It has nothing to ask for, for now."""
        self._askers.pop(asker, None)

    def left(self, asker: Asker) -> int:
        """How many entries it may take now; what others ask for already is theirs."""
        room, whole, promised, _waiting, _others = self._count(asker)
        return max(0, min(room, whole - promised)) if asker.room is not None else UNKNOWN

    def share(self, asker: Asker) -> int:
        """How many to ask for: what is left, divided with those who do not ask yet.

        One where all that is left was asked for by others, whose queues may be idle for long.
        """
        room, whole, promised, waiting, others = self._count(asker)
        if asker.room is None:
            return UNKNOWN
        left = whole - promised
        if left > 0:
            return min(room, max(1, left // (1 + waiting)))
        asker.short = room > 0 and -left > others
        return 1 if room > 0 and not asker.short else 0

    def freed(self) -> None:
        """A question was answered; what it did not bring may be another's."""
        for asker in self._askers:
            if asker.short:
                asker.short = False
                asyncio.get_running_loop().call_soon(asker.resume)

    def _count(self, asker: Asker) -> tuple[int, int, int, int, int]:
        room = whole = asker.room() if asker.room is not None else UNKNOWN
        promised = waiting = others = 0
        for one in self._askers:
            if one is not asker:
                others += 1
                promised += one.promised
                waiting += not one.promised and not one.stopping
                if one.room is not None:
                    whole = max(whole, one.room())
        return room, whole, promised, waiting, others
