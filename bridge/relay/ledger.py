"""The memory of outcomes: which ids run, which ended and how, so that no command runs twice for one id.

This room never runs a command, and never answers one; it says whether the one at hand may run.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from enum import Enum, auto
from typing import Final, Protocol

import msgspec

from bridge.messages.reply import CommandReply, Executed, Status


class Verdict(Enum):
    """What the ledger says of an id."""

    NEW = auto()
    """The asker runs it now, and ends with ``keep`` or ``release``; a reply that comes along is an earlier unknown
    outcome, which the asker falls back on when it does not get to run it."""
    KEPT = auto()
    """It ended before, or just now while the asker waited; the reply comes along."""
    LOST = auto()
    """Somebody who is gone was about to write it, or had; the asker answers ``connection_lost`` and keeps that."""
    DIFFERENT = auto()
    """The id was used for another content."""
    PASSED_ON = auto()
    """It runs no more where the asker waited for it: another worker has its entry. The asker asks again."""
    UNREACHABLE = auto()
    """The ledger's storage cannot be asked; nothing may run."""


_NEW: Final = Verdict.NEW
GONE: Final = "the worker that had it fell silent; it may or may not have run"
MAY_HAVE_RUN: Final = CommandReply(id="", status=Status.CONNECTION_LOST, executed=Executed.UNKNOWN, error=GONE)
"""What a worker that is gone may have done."""

Answer = Callable[[Verdict, CommandReply | None], None]


class Ledger(Protocol):
    """Outcomes by key (an id). Every answer is a callback: at once where the ledger is in memory, else later."""

    @property
    def shared(self) -> bool:
        """Whether all workers see the same outcomes."""

    @property
    def lasting(self) -> float:
        """Seconds that a marker is there at least, even when nobody cares for it any more."""

    def begin(
        self,
        key: str,
        content: bytes,
        answer: Answer,
        *,
        again: bool = False,
        claimed: bool = False,
        waits: Callable[[], None] | None = None,
    ) -> None:
        """Ask for ``key`` and set its marker when it is new; ``answer`` is called exactly once.

        While the key runs, here or at another living worker, the answer waits for its end and is ``KEPT`` then;
        ``waits`` is called when that begins.
        ``content`` is the fingerprint of what is to run; ``again`` makes a key whose kept outcome is unknown
        ``NEW`` once more; ``claimed`` says that the asker took the request over from a worker that fell silent,
        whose marker, if there is one, means ``LOST`` (with ``again``: ``NEW``).
        """

    def keep(self, key: str, reply: CommandReply, stored: Callable[..., None]) -> None:
        """The key ended with this reply (``executed`` yes or unknown); ``stored`` is called once that is safe.

        It is given the outcome that another worker told meanwhile, where one took this one for gone.
        """

    def release(self, key: str, reply: CommandReply | None) -> None:
        """The key was not executed and is free again; whoever waits for it gets this reply.

        Without one another worker may be about to run it: who waits asks again.
        """

    def replace(self, key: str, reply: CommandReply) -> None:
        """A late answer takes the place of a kept ``timeout`` or ``connection_lost``; not executed frees the key."""


class _Kept(msgspec.Struct, gc=False):
    content: bytes
    reply: CommandReply
    expires: float
    size: int


class _Running:
    __slots__ = ("content", "waiting")

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.waiting: list[Answer] = []


class MemoryLedger:
    """A ledger of this worker alone, for ``window`` seconds after each outcome.

    Its memory is bounded: over ``max_entries`` or ``max_bytes`` (of texts) the oldest outcomes are forgotten before
    their time, which ``forgotten`` counts. What runs is never forgotten.
    """

    shared = False
    lasting = 0.0

    def __init__(
        self,
        window: float,
        *,
        max_entries: int = 1_000_000,
        max_bytes: int = 256 * 1024 * 1024,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.forgotten = 0
        self._window = window
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._clock = clock
        self._running: dict[str, _Running] = {}
        # In the order of their expiry; a plain dict is slow to find its first entry when many left from its front.
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._bytes = 0
        self._look_at = 0.0

    def __len__(self) -> int:
        return len(self._kept)

    def begin(
        self,
        key: str,
        content: bytes,
        answer: Answer,
        *,
        again: bool = False,
        claimed: bool = False,
        waits: Callable[[], None] | None = None,
    ) -> None:
        """See ``Ledger.begin``; ``claimed`` changes nothing, another worker's memory cannot be seen from here."""
        running = self._running.get(key)
        if running is not None:
            if running.content != content:
                answer(Verdict.DIFFERENT, None)
            else:
                running.waiting.append(answer)
                if waits is not None:
                    waits()
            return
        self._expire()
        kept = self._kept.get(key)
        if kept is not None:
            if kept.content != content:
                answer(Verdict.DIFFERENT, None)
                return
            if not (again and kept.reply.executed is Executed.UNKNOWN):
                answer(Verdict.KEPT, kept.reply)
                return
        self._running[key] = _Running(content)
        answer(_NEW, kept.reply if kept is not None else None)

    def keep(self, key: str, reply: CommandReply, stored: Callable[..., None]) -> None:
        """See ``Ledger.keep``."""
        running = self._running.pop(key)
        self._store(key, running.content, reply)
        stored()
        for answer in running.waiting:
            answer(Verdict.KEPT, reply)

    def release(self, key: str, reply: CommandReply | None) -> None:
        """See ``Ledger.release``."""
        for answer in self._running.pop(key).waiting:
            answer(Verdict.KEPT if reply is not None else Verdict.PASSED_ON, reply)

    def replace(self, key: str, reply: CommandReply) -> None:
        """See ``Ledger.replace``; nothing happens when the outcome is forgotten or known by now."""
        kept = self._kept.get(key)
        if kept is not None and kept.reply.executed is Executed.UNKNOWN and key not in self._running:
            if reply.executed is Executed.NO:
                del self._kept[key]
                self._bytes -= kept.size
            else:
                self._store(key, kept.content, reply)

    def _store(self, key: str, content: bytes, reply: CommandReply) -> None:
        if self._window <= 0:
            return
        old = self._kept.pop(key, None)
        if old is not None:
            self._bytes -= old.size
        size = _size_of(reply)
        self._bytes += size
        self._kept[key] = _Kept(content, reply, self._clock() + self._window, size)
        while self._kept and (len(self._kept) > self._max_entries or self._bytes > self._max_bytes):
            self._drop_oldest()
            self.forgotten += 1

    def _expire(self) -> None:
        kept = self._kept
        now = self._clock()
        if now < self._look_at:
            return
        while kept:
            self._look_at = kept[next(iter(kept))].expires
            if now < self._look_at:
                return
            self._drop_oldest()
        self._look_at = now + self._window  # what is kept from now on expires later

    def _drop_oldest(self) -> None:
        self._bytes -= self._kept.pop(next(iter(self._kept))).size


def _size_of(reply: CommandReply) -> int:
    size = len(reply.result or "") + len(reply.error)
    if reply.replies:
        size += sum(_size_of(part) for part in reply.replies)
    return size
