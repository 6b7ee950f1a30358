"""What a JetStream stream still takes before it refuses: by limits of its own, and by those of its account.

This room never asks the server; it reads what STREAM.INFO and the account's INFO say.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from bridge.bus.base import Message
from bridge.bus.nats.render import message_size

_STORED: Final = 64  # bytes that the server's file adds to a message, at most
NO_LIMIT: Final = 1 << 62
"""What ``largest_of`` says of a stream without a limit."""
_NO_END: Final = float("inf")


class Room(msgspec.Struct):
    """What is surely taken, in ``messages`` and bytes (``size``): half of what is free, as others write too."""

    messages: float
    size: float

    def take(self, batch: Sequence[Message], start: int, end: int) -> int:
        """How many of ``batch[start:end]`` surely fit; what they need is taken."""
        for position in range(start, end):
            message = batch[position]
            size = message_size(message) + len(message.topic) + _STORED
            if self.messages < 1 or self.size < size:
                return position - start
            self.messages -= 1
            self.size -= size
        return end - start


def room_of(info: dict[str, Any], account: dict[str, Any] | None = None) -> Room | None:
    """The room of a stream by its STREAM.INFO and its account's INFO; None where it never refuses for want of it."""
    config, state = info.get("config") or {}, info.get("state") or {}
    messages = _NO_END
    size = _free_of_account(account or {}, config)
    if config.get("discard") == "new":
        if config.get("discard_new_per_subject"):
            return Room(0, 0)  # one topic may be full and the next not: it cannot be foreseen
        most, largest = config.get("max_msgs", -1), config.get("max_bytes", -1)
        if most > 0:
            messages = most - state.get("messages", 0)
        if largest > 0:
            size = min(size, largest - state.get("bytes", 0))
    return None if messages == size == _NO_END else Room(messages / 2, size / 2)


def largest_of(info: dict[str, Any]) -> int:
    """The size in bytes of the largest message that the stream takes, by its STREAM.INFO; headers count."""
    most: int = (info.get("config") or {}).get("max_msg_size", -1)
    return most if most >= 0 else NO_LIMIT


def _free_of_account(account: dict[str, Any], config: dict[str, Any]) -> float:
    """Bytes of messages that the stream's account has left for it."""
    copies = max(1, config.get("num_replicas", 1))
    used, limit = ("memory", "max_memory") if config.get("storage") == "memory" else ("storage", "max_storage")
    tiers = account.get("tiers")
    # The limit of a tier is meant for one copy, that of a whole account for all; what is used is always all copies.
    part, scale = (tiers.get(f"R{copies}") or {}, copies) if tiers else (account, 1)
    most = (part.get("limits") or {}).get(limit, -1)
    if most < 0:
        return _NO_END
    free: float = (most * scale - part.get(used, 0)) / copies
    return free
