"""What the ledger asks of a broker that can keep things: values set by compare-and-set, and who of the workers lives.

This room never knows what a value means, and never imports a driver.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import msgspec

from bridge.errors import BusError


class Record(msgspec.Struct, frozen=True, gc=False):
    """A value as the broker has it; ``revision`` is 0 where the broker compares values instead (Redis)."""

    value: bytes
    revision: int = 0


Swapped = Callable[[bool, Record | None, BusError | None], None]
"""Whether it was written, what is there now, and the error when the broker did not answer: then it is in doubt."""


@runtime_checkable
class Records(Protocol):
    """A broker's memory of ids. Nothing here blocks: what one turn of the loop asks leaves in one write.

    Every answer is called exactly once, later. A worker calls itself by an ``instance`` that no other life of it has.
    """

    async def open(self, lasting: float, claim_after: float) -> None:
        """Have room for records that last ``lasting`` s; who is silent for ``claim_after`` s counts as gone.

        Raises ``BusUnavailable``, and ``BusRefused`` where the broker keeps nothing for us.
        """

    async def probe(self) -> None:
        """Whether records could be kept; changes nothing. Raises as ``open``."""

    def swap(self, key: str, value: bytes, expected: Record | None, ttl: float, answer: Swapped) -> None:
        """Set a key that has no value, or ``expected``'s; ``ttl`` s is how long it lasts where the broker knows that.

        Raises ``MessageTooLarge`` before anything is written.
        """

    def free(self, key: str, expected: Record, answer: Swapped) -> None:
        """Take a key's value away if it is ``expected``'s (a revision of 0 stands for any)."""

    def beat(self, instance: str) -> None:
        """Show that this worker lives."""

    def leave(self, instance: str) -> None:
        """This worker ends and has nothing open."""

    def living(self, instance: str, answer: Callable[[bool], None]) -> None:
        """Whether a worker lives; True while that cannot be said yet."""
