"""Events that wait for the bus: bounded by count, bytes and age, oldest dropped first, every loss kept to be told.

A chunk is what one socket read brought; it is the unit of all bookkeeping, so that nothing here is paid per event.
This room never talks to a bus and never reads a clock: the caller says what time it is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import msgspec

from bridge.bus.base import Message
from bridge.messages.notice import GapReason

# What an entry costs beside its payload: the Message, its strings, its place in a list.
ENTRY_OVERHEAD = 400


class Chunk(msgspec.Struct, gc=False):
    """Consecutive events of one link: ``size`` in bytes, ``at`` the Unix time when they were read."""

    epoch: str
    messages: list[Message]
    size: int
    at: float


class Loss(msgspec.Struct):
    """Events of one node that will never reach the bus, as the ``gap`` notice tells it.

    ``start`` and ``end`` are Unix times of reading, ``before`` and ``after`` the identities around the hole (empty
    when unknown), ``count`` how many; ``exact`` is False when the count is an upper bound. ``count`` is None for an
    outage of the link: nobody knows what FreeSWITCH said meanwhile.
    """

    epoch: str
    reason: GapReason
    start: float
    end: float
    before: str = ""
    after: str = ""
    count: int | None = 0
    exact: bool = True


class BufferLimits(msgspec.Struct, frozen=True):
    """How much one node may hold back: events, bytes, seconds."""

    events: int = 100_000
    size: int = 64 * 1024 * 1024
    age: float = 60.0


class EventBuffer:
    """The events of one node on their way to the bus, first in, first out.

    ``last_confirmed`` is the identity of the last event that the broker has certainly seen.
    """

    def __init__(self, node: str, limits: BufferLimits) -> None:
        self.node = node
        self.limits = limits
        self.events = 0
        self.size = 0
        self.losses: list[Loss] = []
        self.last_confirmed = ""
        self._chunks: deque[Chunk] = deque()
        self._open: dict[str, Loss] = {}
        self._last_taken = ""

    def __len__(self) -> int:
        return self.events

    def append(self, chunk: Chunk) -> int:
        """Add what was just read; returns how many events had to be dropped to stay within the limits."""
        self._chunks.append(chunk)
        self.events += len(chunk.messages)
        self.size += chunk.size
        limits = self.limits
        if self.events > limits.events or self.size > limits.size:
            return self._shed(chunk.at)
        return 0

    def expire(self, now: float) -> int:
        """Drop what is older than the age limit; returns how many events that were."""
        dropped = 0
        horizon = now - self.limits.age
        while self._chunks and self._chunks[0].at < horizon:
            dropped += self._drop_oldest(now)
        return dropped

    def take(self, limit: int) -> list[Chunk]:
        """Take chunks from the front: at least one, then more up to ``limit`` bytes."""
        taken: list[Chunk] = []
        size = 0
        chunks = self._chunks
        while chunks and (not taken or size + chunks[0].size <= limit):
            chunk = chunks.popleft()
            taken.append(chunk)
            size += chunk.size
            self.events -= len(chunk.messages)
            self._close_losses(chunk)
            self._last_taken = chunk.messages[-1].id
        self.size -= size
        return taken

    def put_back(self, chunks: list[Chunk]) -> None:
        """Return chunks that were taken and not written, to the front and in their order."""
        for chunk in reversed(chunks):
            self._chunks.appendleft(chunk)
            self.events += len(chunk.messages)
            self.size += chunk.size

    def keep(self, fits: Callable[[Message], bool], now: float) -> int:
        """Drop every message that does not fit the bus; returns how many events that were."""
        dropped = 0
        kept: deque[Chunk] = deque()
        for chunk in self._chunks:
            fitting = [message for message in chunk.messages if fits(message)]
            lost = len(chunk.messages) - len(fitting)
            if lost:
                dropped += lost
                self.events -= lost
                share = chunk.size * len(fitting) // len(chunk.messages)
                self.size -= chunk.size - share
                self.lose(Loss(chunk.epoch, "too_large", start=chunk.at, end=now, count=lost))
                chunk = Chunk(chunk.epoch, fitting, share, chunk.at)
            if fitting:
                kept.append(chunk)
        self._chunks = kept
        return dropped

    def lose(self, loss: Loss) -> None:
        """Book a loss that happened outside the buffer; it is closed by the next event that leaves.

        Consecutive losses of one reason and epoch become one.
        """
        key = f"{loss.reason}:{loss.epoch}"
        known = self._open.get(key)
        if known is None:
            if not loss.before:
                loss.before = self._last_taken
            self._open[key] = loss
            return
        known.end = max(known.end, loss.end)
        if known.count is not None and loss.count is not None:
            known.count += loss.count
        known.exact = known.exact and loss.exact

    def take_losses(self) -> list[Loss]:
        """Losses whose end is known, for the notices; each is returned once."""
        losses, self.losses = self.losses, []
        return losses

    def close(self, now: float) -> int:
        """Give up what is left (the worker ends); returns how many events that were, and closes every loss."""
        dropped = 0
        while self._chunks:
            dropped += self._drop_oldest(now)
        self._close_losses(None)
        return dropped

    def _shed(self, now: float) -> int:
        # Down to nine tenths: shedding a little more now keeps the cost off the next thousand reads.
        events, size = self.limits.events * 9 // 10, self.limits.size * 9 // 10
        dropped = 0
        while len(self._chunks) > 1 and (self.events > events or self.size > size):
            dropped += self._drop_oldest(now)
        return dropped

    def _drop_oldest(self, now: float) -> int:
        chunk = self._chunks.popleft()
        count = len(chunk.messages)
        self.events -= count
        self.size -= chunk.size
        self.lose(Loss(epoch=chunk.epoch, reason="buffer", start=chunk.at, end=now, count=count))
        return count

    def _close_losses(self, chunk: Chunk | None) -> None:
        if self._open:
            for loss in self._open.values():
                if not loss.after and chunk is not None:
                    loss.after = chunk.messages[0].id
                self.losses.append(loss)
            self._open.clear()
