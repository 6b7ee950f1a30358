"""A queue's entry in hand, as those must know it who write its reply and remove it.

This room only has the words for it.
"""

from __future__ import annotations

from typing import Protocol

from bridge.bus.redis.wire import Reply


class Entry(Protocol):
    """A queue's entry in hand, as this room must know it."""

    @property
    def key(self) -> bytes:
        """The queue's key."""

    @property
    def removal(self) -> tuple[bytes, int]:
        """The commands that remove it, and how many they are; harmless when it is gone."""

    @property
    def probe(self) -> bytes:
        """One command that asks whether it is still there."""

    def is_there(self, reply: Reply) -> bool:
        """What the answer to ``probe`` says."""

    def removed(self) -> None:
        """It is gone for good."""

    def dead_letter(self, reason: str) -> tuple[bytes, ...]:
        """Fields and values of its dead letter."""

    @property
    def perhaps_lost_at(self) -> float:
        """The instant (``time.monotonic``) from which another worker may have claimed it."""

    def keep_refusal(self, reply: bytes) -> bytes:
        """The command that puts the ``reply`` into the entry itself, if it is ours still; it answers 1 then, else 0.

        Empty where that is no matter: what is recorded elsewhere, or has it already.
        """

    def refusal_kept(self, done: bool) -> None:
        """Whether it has it now."""

    def if_ours(self, reply: bytes, payload: bytes, expiry: bytes) -> bytes:
        """The command that writes to the list ``reply`` and removes the entry, or neither; made by ``reply_if``.

        Without an ``expiry`` (ms) ``reply`` is a channel.
        """


def reply_if(condition: bytes, removal: bytes = b"") -> bytes:
    """A script for ``Entry.if_ours``: ``KEYS[2]``, ``ARGV[1]`` and ``ARGV[2]`` are the reply's, the others its own."""
    return b"""if not (%b) then return 0 end
%b
if ARGV[2] == '' then redis.call('PUBLISH', KEYS[2], ARGV[1]) return 1 end
redis.call('RPUSH', KEYS[2], ARGV[1])
redis.call('PEXPIRE', KEYS[2], ARGV[2])
return 1""" % (condition, removal)
