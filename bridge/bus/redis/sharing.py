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

    stopping: bool

    @property
    def room(self) -> Callable[[], int] | None:
        """Gives how many entries it may take now; 0 when its worker takes none at all."""

    def resume(self) -> None:
        """There may be room again."""

    def ask_anew(self) -> None:
        """End the question that waits: others are short of what it may bring."""


class Sharing:
    """A consumer's room is a part of the worker's, which is the largest that any of them tells.

    All together ask for no more than one each above the worker's room. Nothing is set aside for those who ask only
    when there is something to read, however many they are: they ask one question, and have their answer at once.
    """

    def __init__(self) -> None:
        self._waiting: dict[Asker, None] = {}
        self._promised: dict[Asker, int] = {}
        self._sum = 0
        self._short: dict[Asker, None] = {}

    def join(self, asker: Asker) -> None:
        """Its questions wait at the server: it always asks for something."""
        self._waiting[asker] = None

    def leave(self, asker: Asker) -> None:
        """It asks no more."""
        self._waiting.pop(asker, None)
        self._short.pop(asker, None)
        self.promise(asker, 0)

    def promise(self, asker: Asker, entries: int) -> None:
        """Its question may bring so many; 0: it is answered, and what it did not bring may be another's."""
        self._sum += entries - self._promised.pop(asker, 0)
        if entries:
            self._promised[asker] = entries
        elif self._short:
            short, self._short = self._short, {}
            for one in short:
                asyncio.get_running_loop().call_soon(one.resume)

    def promised(self, asker: Asker) -> int:
        """What its question may bring."""
        return self._promised.get(asker, 0)

    def left(self, asker: Asker) -> int:
        """How many entries that wait for it already it may take now; what others ask for is theirs.

        One where they ask for all: a question to an idle queue brings nothing, for as long as it stands.
        """
        if asker.room is None:
            return UNKNOWN
        room = asker.room()
        return max(1, min(room, self._whole(room) - self._by_others(asker))) if room > 0 else 0

    def share(self, asker: Asker) -> int:
        """How many to ask for: what is left, divided with those who do not ask yet.

        One where all that is left was asked for by others, whose queues may be idle for long; when that is taken
        too, the greatest of their questions is asked anew.
        """
        if asker.room is None:
            return UNKNOWN
        room = asker.room()
        if room <= 0:
            return 0
        left = self._whole(room) - self._by_others(asker)
        if left > 0:
            idle = sum([it is not asker and it not in self._promised and not it.stopping for it in self._waiting])
            return min(room, max(1, left // (1 + idle)))
        if -left > len((self._waiting.keys() | self._promised.keys()) - {asker}):
            self._short[asker] = None
            max(self._promised, key=self._promised.__getitem__).ask_anew()
            return 0
        return 1

    def is_short(self) -> bool:
        """Whether somebody waits for what the questions of others may bring."""
        return bool(self._short)

    def _whole(self, room: int) -> int:
        return max([room, *(one.room() for one in self._waiting if one.room is not None)])

    def _by_others(self, asker: Asker) -> int:
        return self._sum - self._promised.get(asker, 0)
