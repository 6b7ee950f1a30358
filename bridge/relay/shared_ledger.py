"""The ledger that all workers share, in the broker's memory: a marker before the write, the reply after it.

This room never runs a command, and never trusts its own memory over the broker's. What it asked and got no answer to is
put right later: no marker of a command that was not written stays behind.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Final

import msgspec

from bridge.bus.records import Record, Records
from bridge.errors import BusError, BusRefused, MessageTooLarge
from bridge.messages.reply import CommandReply, Executed
from bridge.relay import record
from bridge.relay.lately import Lately
from bridge.relay.ledger import MAY_HAVE_RUN, Answer, Verdict

log = logging.getLogger(__name__)

_RETRY: Final = 0.25  # s; while the broker does not answer
_REFUSALS: Final = 4  # refused so often, an outcome goes out unkept
_LOOK_FIRST, _LOOK_LAST = 0.02, 0.5  # s; between two looks at what another worker runs
_MAX_UNKNOWN: Final = 50_000
_QUIET: Final = 60.0  # s; until the same is told again
SHORTEST: Final = 60.0
"""Seconds that a marker lasts at least when nobody renews it."""


def lasting(window: float, claim_after: float) -> float:
    """Seconds that records last which nobody renews: over every claim of what a worker had in hand."""
    return max(window, 3 * claim_after, SHORTEST)


class _Running:
    """A key that this worker asks for, runs, or is about to let go."""

    __slots__ = ("again", "content", "ending", "record", "waiting", "waits", "written_at")

    def __init__(self, content: bytes, again: bool, first: Answer, waits: Callable[[], None] | None) -> None:
        self.content = content
        self.again = again
        self.waiting = [first]
        self.waits = waits  # of the first
        self.record: Record | None = None  # our marker, once it is set
        self.ending = False
        self.written_at = 0.0


class _Refused(msgspec.Struct, frozen=True):
    """An outcome that the broker refused to keep; ``over`` is our marker that it still has instead."""

    content: bytes
    reply: CommandReply
    over: Record | None
    expires: float


class SharedLedger:
    """See ``Ledger``. ``instance`` names this life of this worker; outcomes are kept for ``window`` s.

    A worker that is silent for ``claim_after`` s counts as gone. Markers last at least ``lasting`` s.
    """

    shared = True

    def __init__(self, records: Records, *, instance: str, window: float, claim_after: float) -> None:
        self.unkept = 0
        """Outcomes that the broker refused to keep, for a while or for good."""
        self.lasting = lasting(window, claim_after)
        self._records = records
        self._instance = instance
        self._window = window
        self._claim_after = claim_after
        self._loop = asyncio.get_running_loop()
        self._running: dict[str, _Running] = {}
        self._doubts: dict[str, bytes] = {}  # markers that may have been set, of commands that did not run
        self._leftovers: dict[str, set[bytes]] = {}  # those of them that are to be taken away
        self._refused: OrderedDict[str, _Refused] = OrderedDict()  # outcomes that the broker did not take yet
        # Kept, and may still become known, as long as the broker has them.
        self._unknown = Lately[tuple[bytes, Record]](window, _MAX_UNKNOWN)
        self._timer: asyncio.TimerHandle | None = None
        self._number = 0
        self._complain_at = 0.0

    async def open(self) -> None:
        """Have the broker's memory ready. Raises ``BusUnavailable``, ``BusRefused``."""
        await self._records.open(self.lasting, self._claim_after)
        if self._timer is None:
            self._keep_up()

    def close(self) -> None:
        """This worker ends; what it still runs counts as lost from now on."""
        if self._timer is not None:
            self._timer.cancel()
        self._records.leave(self._instance)

    def __len__(self) -> int:
        return len(self._running)

    # --- may it run? --------------------------------------------------------------------------------

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
        """See ``Ledger.begin``; ``claimed`` changes nothing: signs of life tell whether somebody is gone."""
        running = self._running.get(key)
        refused = self._refused.get(key)
        if refused is not None and refused.expires > self._loop.time():
            # The broker has our marker only, as if it had never been written.
            same = refused.content == content
            answer(Verdict.KEPT if same else Verdict.DIFFERENT, refused.reply if same else None)
        elif running is None:
            running = self._running[key] = _Running(content, again, answer, waits)
            self._mark(key, running, None, Verdict.NEW, None)
        elif running.content != content:
            answer(Verdict.DIFFERENT, None)
        else:
            running.waiting.append(answer)
            if waits is not None:
                waits()

    def _mark(
        self, key: str, running: _Running, over: Record | None, verdict: Verdict, kept: CommandReply | None
    ) -> None:
        """Set our marker; where it is set, the first that waits gets the verdict."""
        # Over a command that may have run the marker says so: if the answer is lost it still must not run.
        lost = verdict is Verdict.LOST or kept is not None
        value = self._marker(key, running.content, lost=lost)

        def swapped(written: bool, found: Record | None, error: BusError | None) -> None:
            if error is not None:
                if not lost:
                    self._doubts[key] = value
                self._unreachable(key, error)
            elif written:
                self._doubts.pop(key, None)
                running.record, running.written_at = found, self._loop.time()
                running.waiting.pop(0)(verdict, kept)
            else:
                assert found is not None
                self._found(key, running, found, _LOOK_FIRST)

        self._records.swap(key, value, over, self.lasting, swapped)

    def _marker(self, key: str, content: bytes, *, lost: bool = False) -> bytes:
        """A marker like no other; one in doubt serves again, until it is taken away."""
        doubted = self._doubts.get(key)
        if doubted is not None and not lost and doubted.startswith(record.MARK + content):
            return doubted
        self._number += 1
        return record.mark(content, self._instance, self._number, lost=lost)

    def _found(self, key: str, running: _Running, found: Record, wait: float) -> None:
        """The key is known to the broker."""
        entry = record.read(found.value)
        if entry is None or entry.content != running.content:
            self._tell_all(key, Verdict.DIFFERENT, None)
        elif entry.reply is not None:
            if running.again and entry.reply.executed is Executed.UNKNOWN:
                self._mark(key, running, found, Verdict.NEW, entry.reply)
            else:
                self._tell_all(key, Verdict.KEPT, entry.reply)
        elif entry.owner == self._instance:
            # Set, and its answer lost; it was told UNREACHABLE then, and nothing ran for it.
            if entry.lost:
                self._take_over(key, running, found)
            else:
                self._mark(key, running, found, Verdict.NEW, None)
        else:
            self._records.living(entry.owner, partial(self._look_at_owner, key, running, found, wait))

    def _look_at_owner(self, key: str, running: _Running, found: Record, wait: float, lives: bool) -> None:
        if not lives and wait > _LOOK_FIRST:
            self._take_over(key, running, found)
            return
        if not lives:
            # Its first sign of life may be on its way to another server of a Cluster.
            wait = _LOOK_LAST
        waits, running.waits = running.waits, None
        if waits is not None:
            waits()
        self._loop.call_later(wait, self._look_again, key, running, wait)

    def _take_over(self, key: str, running: _Running, found: Record) -> None:
        """Its worker is gone, and may have written it."""
        if running.again:
            self._mark(key, running, found, Verdict.NEW, MAY_HAVE_RUN)
        else:
            self._mark(key, running, found, Verdict.LOST, None)

    def _look_again(self, key: str, running: _Running, wait: float) -> None:
        """The other worker runs it still, or has ended: asking for the marker tells, and is right when it let it go."""
        value = self._marker(key, running.content)

        def swapped(written: bool, found: Record | None, error: BusError | None) -> None:
            if error is None and not written and found is not None:
                self._found(key, running, found, min(2 * wait, _LOOK_LAST))
            elif error is None:
                self._doubts.pop(key, None)
                running.record, running.written_at = found, self._loop.time()
                running.waiting.pop(0)(Verdict.NEW, None)
            else:
                self._doubts[key] = value
                self._unreachable(key, error)

        self._records.swap(key, value, None, self.lasting, swapped)

    def _unreachable(self, key: str, error: BusError) -> None:
        if isinstance(error, BusRefused) and self._loop.time() >= self._complain_at:
            self._complain_at = self._loop.time() + _QUIET
            log.error("requests wait for the ledger, which the broker refuses: %s", error)
        self._tell_all(key, Verdict.UNREACHABLE, None)

    def _tell_all(self, key: str, verdict: Verdict, kept: CommandReply | None) -> None:
        for answer in self._running.pop(key).waiting:
            answer(verdict, kept)

    # --- it ended -----------------------------------------------------------------------------------

    def keep(self, key: str, reply: CommandReply, stored: Callable[..., None]) -> None:
        """See ``Ledger.keep``; ``stored`` is given the outcome that another worker told meanwhile, if one did."""
        running = self._running[key]
        running.ending = True
        if self._window <= 0:
            self.release(key, reply)
            stored()
            return
        self._store(key, running, reply, stored, running.record, 0, None)

    def _store(
        self,
        key: str,
        running: _Running,
        reply: CommandReply,
        stored: Callable[..., None],
        over: Record | None,
        refusals: int,
        told: CommandReply | None,
    ) -> None:
        value = record.kept(running.content, reply)

        def again(refusals: int, over: Record | None) -> None:
            self._loop.call_later(_RETRY, self._store, key, running, reply, stored, over, refusals, told)

        def swapped(written: bool, found: Record | None, error: BusError | None) -> None:
            if written:
                if reply.executed is Executed.UNKNOWN and found is not None:
                    self._unknown.put(key, (running.content, found))
                self._kept(key, running, reply, stored, told)
            elif error is not None:
                if isinstance(error, BusRefused) and refusals + 1 >= _REFUSALS:
                    log.error("an outcome could not be kept: %s", error)
                    self.unkept += 1
                    self._note_refused(key, _Refused(running.content, reply, over, self._loop.time() + self._window))
                    self._kept(key, running, reply, stored, told)
                else:
                    again(refusals + isinstance(error, BusRefused), over)
            else:
                assert found is not None
                self._contested(key, running, reply, stored, found, refusals)

        try:
            self._records.swap(key, value, over, self._window, swapped)
        except MessageTooLarge:
            # The caller hears it whole; a repeat hears what fits.
            short = msgspec.structs.replace(
                reply, result=None, replies=None, error="the result was too large to be kept for a repeat"
            )
            self._store(key, running, short, stored, over, refusals, told)

    def _contested(
        self,
        key: str,
        running: _Running,
        reply: CommandReply,
        stored: Callable[..., None],
        found: Record,
        refusals: int,
    ) -> None:
        """Our marker is not there any more: it was renewed, or another worker took us for gone."""
        entry = record.read(found.value)
        if entry is None or entry.content != running.content:
            self._kept(key, running, reply, stored, None)
        elif entry.reply is None and entry.owner == self._instance:
            self._store(key, running, reply, stored, found, refusals, None)
        elif entry.reply is None:  # it is about to tell that we are lost; or tries again what may be tried again
            if refusals < _REFUSALS:
                self._loop.call_later(_RETRY, self._store, key, running, reply, stored, None, refusals + 1, None)
            else:
                self._kept(key, running, reply, stored, None)
        elif entry.reply.executed is Executed.UNKNOWN and reply.executed is not Executed.UNKNOWN:
            self._store(key, running, reply, stored, found, refusals, entry.reply)
        else:
            self._kept(key, running, entry.reply, stored, entry.reply)

    def _kept(
        self, key: str, running: _Running, reply: CommandReply, stored: Callable[..., None], told: CommandReply | None
    ) -> None:
        stored() if told is None else stored(told)
        if self._running.get(key) is running:
            self._tell_all(key, Verdict.KEPT, reply)

    def release(self, key: str, reply: CommandReply | None) -> None:
        """See ``Ledger.release``."""
        running = self._running[key]
        running.ending = True
        if running.record is not None:
            self._free(key, running.record, running.record.value)
        self._tell_all(key, Verdict.KEPT if reply is not None else Verdict.PASSED_ON, reply)

    def replace(self, key: str, reply: CommandReply) -> None:
        """See ``Ledger.replace``."""
        noted = self._unknown.pop(key)
        if noted is None or key in self._running:
            return
        content, found = noted
        if reply.executed is Executed.NO:
            self._records.free(key, found, lambda *_: None)
            return

        def swapped(written: bool, now: Record | None, error: BusError | None) -> None:
            if error is not None and not isinstance(error, BusRefused):
                self._unknown.put(key, noted)
                self._loop.call_later(_RETRY, self.replace, key, reply)
            elif written and reply.executed is Executed.UNKNOWN and now is not None:
                self._unknown.put(key, (content, now))

        try:
            self._records.swap(key, record.kept(content, reply), found, self._window, swapped)
        except MessageTooLarge:
            return

    def _note_refused(self, key: str, refused: _Refused) -> None:
        self._refused[key] = refused
        if len(self._refused) > _MAX_UNKNOWN:
            self._refused.popitem(last=False)

    def _offer_again(self) -> None:
        """Have the broker keep what it refused before."""
        now = self._loop.time()
        for key, refused in list(self._refused.items()):
            if refused.expires <= now:
                del self._refused[key]
                continue

            def swapped(written: bool, found: Record | None, error: BusError | None, key: str = key) -> None:
                if error is None:  # it has it, or somebody else's word by now
                    self._refused.pop(key, None)

            value = record.kept(refused.content, refused.reply)
            self._records.swap(key, value, refused.over, refused.expires - now, swapped)

    # --- upkeep -------------------------------------------------------------------------------------

    def _free(self, key: str, marker: Record, value: bytes) -> None:
        def freed(done: bool, found: Record | None, error: BusError | None) -> None:
            if error is not None:
                self._leftovers.setdefault(key, set()).add(value)
            elif not done and found is not None and found.value == value:  # it was renewed meanwhile
                self._records.free(key, found, lambda *_: None)

        self._records.free(key, marker, freed)

    def _keep_up(self) -> None:
        """Show that we live, renew markers of what runs long, take away those that were in doubt."""
        self._timer = self._loop.call_later(self._claim_after / 3, self._keep_up)
        self._records.beat(self._instance)
        self._offer_again()
        for key in [key for key in self._doubts if key not in self._running]:
            self._leftovers.setdefault(key, set()).add(self._doubts.pop(key))
        leftovers, self._leftovers = self._leftovers, {}
        for key, values in leftovers.items():
            for value in values:  # no marker of a command that runs: none is like another
                self._free(key, Record(value), value)
        due = self._loop.time() - self.lasting / 3
        for key, running in self._running.items():
            if running.record is not None and not running.ending and running.written_at < due:
                self._renew(key, running)

    def _renew(self, key: str, running: _Running) -> None:
        def swapped(written: bool, found: Record | None, error: BusError | None) -> None:
            if written and self._running.get(key) is running:
                running.record, running.written_at = found, self._loop.time()

        assert running.record is not None
        self._records.swap(key, running.record.value, running.record, self.lasting, swapped)
