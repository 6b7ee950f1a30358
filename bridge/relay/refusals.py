"""Who may say "no" to an entry of a durable queue, where the reply and the entry's removal are two steps.

A worker that dies between the two leaves an entry that was answered: its "no" is recorded before it is told, and who
has the entry next repeats it. Who claims an entry records that before it runs it, so that one who was taken for gone
cannot say "no" any more. This room never answers a request, and knows entries only, no ids: an id may come again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from enum import Enum, auto
from functools import partial
from typing import Final

import msgspec

from bridge.bus.base import Delivery
from bridge.bus.records import Record, Records
from bridge.errors import BusError, BusRefused, MessageTooLarge
from bridge.messages.reply import CommandReply
from bridge.relay import record

log = logging.getLogger(__name__)

_RETRY: Final = 0.25  # s; while the broker does not answer
_ATTEMPTS: Final = 4  # refused so often, it goes on without a record
_SHORT: Final = 1_000  # characters of a reason whose reply is too large to be kept
_CONTENT: Final = bytes(16)  # an entry has one content only


class Right(Enum):
    """What the record of an entry says."""

    MINE = auto()
    """The asker may go on."""
    TOLD = auto()
    """Somebody has said "no" already; the reply comes along."""
    THEIRS = auto()
    """Another worker has claimed the entry from the asker."""


Answer = Callable[[Right, CommandReply | None], None]


class Refusals:
    """The records of entries, in the broker's memory, for ``lasting`` s. ``instance`` names this life of this worker.

    A worker that is silent for ``claim_after`` s counts as gone.
    """

    def __init__(self, records: Records, *, instance: str, lasting: float, claim_after: float) -> None:
        self.unrecorded = 0
        """How often the broker refused to keep a record."""
        self.sure_for = claim_after / 3
        """Seconds that nobody can have claimed an entry from who was just told that it is his."""
        self._records = records
        self._instance = instance
        self._lasting = lasting
        self._claim_after = claim_after
        self._loop = asyncio.get_running_loop()
        self._closed = False
        self._refuses = False  # the broker, the last time: nobody waits for it again

    async def open(self) -> None:
        """Have the broker's memory ready. Raises ``BusUnavailable``, ``BusRefused``."""
        await self._records.open(self._lasting, self._claim_after)

    def close(self) -> None:
        """Ask no more; who waits for an answer gets none, and its entry is claimed by another worker."""
        self._closed = True

    @staticmethod
    def know(delivery: Delivery) -> bool:
        """Whether there can be a record of this entry: it may come again, and is told from every other."""
        return delivery.pulled and bool(delivery.entry_id)

    @staticmethod
    def inherited(delivery: Delivery) -> bool:
        """Whether another worker had it before, or may have had it."""
        return delivery.claimed or delivery.doubtful

    def perhaps_lost(self, held: float) -> bool:
        """Whether an entry in hand for so many seconds may have been claimed by another worker meanwhile."""
        return held > self.sure_for

    def claim(self, delivery: Delivery, answer: Answer, *, asked: bool = False) -> None:
        """Ask before a command runs whose entry others had, or may have by now, and record that it is ours.

        Who was given the entry after others takes it from whoever has it, unless it was ours already (``asked``).
        ``answer`` is called once, when the broker has answered; perhaps never after ``close``.
        """
        value = record.mark(_CONTENT, self._instance, 0)
        self._put(_key(delivery), value, self.inherited(delivery) and not asked, answer, None, 0)

    def refuse(self, delivery: Delivery, reply: CommandReply, answer: Answer, *, asked: bool) -> None:
        """Ask before a reply with ``executed: no`` leaves, and record it. ``answer`` as for ``claim``.

        ``asked`` says whether ``claim`` said that the entry is ours.
        """
        heir = self.inherited(delivery) and not asked
        self._put(_key(delivery), record.kept(_CONTENT, reply), heir, answer, None, 0, reply)

    def _put(
        self,
        key: str,
        value: bytes,
        heir: bool,
        answer: Answer,
        over: Record | None,
        refused: int,
        reply: CommandReply | None = None,
    ) -> None:
        if self._closed:
            return
        again = partial(self._put, key, value, heir, answer)

        def swapped(written: bool, found: Record | None, error: BusError | None) -> None:
            if written:
                self._refuses = False
                answer(Right.MINE, None)
            elif isinstance(error, BusRefused) and (self._refuses or refused + 1 >= _ATTEMPTS):
                self._go_without(answer, error)
            elif error is not None:
                # Nothing was told and nothing ran; what was written in spite of the error is found as ours.
                self._loop.call_later(_RETRY, again, over, refused + isinstance(error, BusRefused), reply)
            else:
                assert found is not None
                self._found(value, heir, answer, found, again)

        try:
            self._records.swap(key, value, over, self._lasting, swapped)
        except MessageTooLarge as error:
            if reply is None:
                self._go_without(answer, error)
                return
            # The caller hears it whole, an heir repeats what fits.
            short = msgspec.structs.replace(reply, replies=None, error=reply.error[:_SHORT])
            self._put(key, record.kept(_CONTENT, short), heir, answer, over, refused)

    def _go_without(self, answer: Answer, error: BusError) -> None:
        log.error("an entry goes on without a record: %s", error)
        self._refuses = isinstance(error, BusRefused)
        self.unrecorded += 1
        answer(Right.MINE, None)

    def _found(
        self, value: bytes, heir: bool, answer: Answer, found: Record, again: Callable[[Record, int], None]
    ) -> None:
        entry = record.read(found.value)
        if found.value == value:
            answer(Right.MINE, None)
        elif entry is not None and entry.reply is not None:
            answer(Right.TOLD, entry.reply)
        elif entry is None or heir or entry.owner == self._instance:
            again(found, 0)
        else:
            answer(Right.THEIRS, None)


def _key(delivery: Delivery) -> str:
    # The ledger lies in the same memory, and no id begins so.
    return f"\0{delivery.queue}/{delivery.entry_id}"
