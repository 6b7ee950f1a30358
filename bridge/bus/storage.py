"""What the fleet asks of a broker that can keep things: leases with fencing tokens, tables of entries that expire.

This room never knows who owns what, and never imports a driver.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import msgspec

NOTE_TTL = 3600.0
"""Seconds that a lease's note, and what ``write`` keeps, outlive their last writing."""
WORKERS = "workers"
"""The table of living workers: one entry each, which expires with them."""
NODES = "nodes"
"""The table of nodes that were added or taken out of service through the bus; its entries stay."""


class Grant(msgspec.Struct, frozen=True):
    """A lease that was given.

    ``token`` is greater than that of every grant of this name before it, also after the broker lost its memory;
    ``note`` is what the holder before left behind, b"" where there is nothing.
    """

    token: int
    note: bytes = b""


class Held(msgspec.Struct, frozen=True):
    """A lease that somebody else has: who, and for how many seconds it can last without being renewed."""

    holder: str
    remaining: float


@runtime_checkable
class Storage(Protocol):
    """A broker's memory. Every method raises ``BusUnavailable`` when the broker did not answer in time.

    After that it is open whether the operation happened; each may be repeated. All times are seconds.
    """

    async def open(self, lease_time: float) -> float:
        """Prepare what leases need; returns the lease time that the fleet really has (never less than asked for).

        Raises ``BusRefused`` where the broker keeps nothing for us.
        """

    async def acquire(self, name: str, holder: str, ttl: float) -> Grant | Held:
        """Take the lease ``name`` if nobody has it. One that ``holder`` has already is given again."""

    async def renew(self, name: str, token: int, ttl: float, note: bytes | None = None) -> bool:
        """Extend a lease, and keep ``note`` where it is given; False when it is no longer ours."""

    async def release(self, name: str, token: int, note: bytes | None = None) -> bool:
        """Give a lease back; ``note`` is for the next holder. False when it was no longer ours (nothing happens)."""

    async def put(self, table: str, key: str, value: bytes, ttl: float = 0.0) -> None:
        """Set an entry of a table; it expires ``ttl`` after its last writing (0: never), one value for a table."""

    async def remove(self, table: str, key: str) -> None:
        """Delete an entry; nothing happens where there is none."""

    async def entries(self, table: str) -> dict[str, bytes]:
        """All entries of a table that live."""

    async def write(self, name: str, what: str, value: bytes) -> None:
        """Keep something beside the lease ``name`` for ``NOTE_TTL``."""

    async def read(self, name: str, what: str) -> bytes:
        """What was kept, b"" where there is nothing. ``"note"`` is the lease's own note."""

    def tell(self, topic: str, payload: bytes) -> None:
        """Publish a word to the other workers, at most once, without waiting; lost while the broker is away."""
