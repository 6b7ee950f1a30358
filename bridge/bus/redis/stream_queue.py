"""Requests from a stream: a consumer group, entries renewed while in hand, silent workers' entries claimed.

This room never decodes a request.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping
from functools import partial

from bridge.bus.base import Delivery
from bridge.bus.clock import BrokerClock
from bridge.bus.redis.answers import Answers
from bridge.bus.redis.link import Link, Operation, ignore
from bridge.bus.redis.pulling import Pull
from bridge.bus.redis.sharing import Sharing
from bridge.bus.redis.stream_scripts import GROUP, IF_OURS, RENEW, place
from bridge.bus.redis.watch import Share
from bridge.bus.redis.wire import Reply, ReplyError, command

FIELD = b"data"
_BLOCK = 5.0  # s; how long one XREADGROUP waits for entries
_COUNT = 256  # entries a read when the room is not known


class StreamEntry:
    """One request in hand: a ``Delivery``."""

    doubtful = False
    pulled = True
    told = b""
    __slots__ = ("_queue", "claimed", "count", "done", "entry_id", "headers", "ident", "payload", "perhaps_lost_at")

    def __init__(self, queue: StreamQueue, ident: bytes, fields: list[bytes], *, claimed: bool, count: int) -> None:
        self._queue = queue
        self.ident = ident
        self.claimed = claimed
        self.count = count
        self.entry_id = ident.decode()
        self.perhaps_lost_at = queue.perhaps_lost_at()
        self.done = False
        self.headers: Mapping[str, str] = {}
        if len(fields) == 2 and fields[0] == FIELD:
            self.payload = fields[1]
        else:
            pairs = dict(zip(fields[::2], fields[1::2], strict=False))
            self.payload = pairs.pop(FIELD, b"")
            self.headers = {k.decode("utf-8", "replace"): v.decode("utf-8", "replace") for k, v in pairs.items()}

    @property
    def queue(self) -> str:
        """See ``Delivery.queue``."""
        return self._queue.name

    @property
    def reply_to(self) -> str:
        """See ``Delivery.reply_to``."""
        return ""

    @property
    def queued_at(self) -> float | None:
        """See ``Delivery.queued_at``: the time in the entry's id."""
        return self._queue.clock.here(int(self.ident.partition(b"-")[0]) / 1000)

    def finish(
        self,
        address: str,
        payload: bytes,
        content_type: str,
        headers: Mapping[str, str] | None = None,
        *,
        refusal: bool = False,
    ) -> None:
        """See ``Delivery.finish``."""
        if not self.done:
            self._queue.answers.finish(address, payload, self, refusal=refusal)
            self.done = True

    def reject(self, reason: str) -> None:
        """See ``Delivery.reject``."""
        if not self.done:
            self.done = True
            self._queue.answers.reject(self, reason)

    def still_ours(self, told: Callable[[bool | None], None]) -> None:
        """See ``Delivery.still_ours``."""
        self._queue.confirm(self, told)

    def let_go(self) -> None:
        """See ``Delivery.let_go``."""
        if not self.done:
            self.done = True
            self.removed()

    # --- what its removal needs ------------------------------------------------------------------------

    @property
    def key(self) -> bytes:
        """See ``Entry.key``."""
        return self._queue.key

    @property
    def removal(self) -> tuple[bytes, int]:
        """See ``Entry.removal``."""
        ident = self.ident
        return self._queue.removal_form % (len(ident), ident, len(ident), ident), 2

    @property
    def probe(self) -> bytes:
        """See ``Entry.probe``."""
        return command(b"XPENDING", self.key, GROUP, self.ident, self.ident, b"1")

    def is_there(self, reply: Reply) -> bool:
        """See ``Entry.is_there``."""
        return bool(reply)

    def removed(self) -> None:
        """See ``Entry.removed``."""
        queue = self._queue
        queue.in_hand.pop(self.ident, None)
        if queue.gone is not None:
            queue.gone.add(self.ident)

    def keep_refusal(self, reply: bytes) -> bytes:
        """See ``Entry.keep_refusal``: entries that have ids are recorded elsewhere."""
        return b""

    def refusal_kept(self, done: bool) -> None:
        """See ``Entry.refusal_kept``."""

    def if_ours(self, reply: bytes, payload: bytes, expiry: bytes) -> bytes:
        """See ``Entry.if_ours``."""
        keys = (self.key, reply)
        return command(b"EVAL", IF_OURS, b"2", *keys, payload, expiry, GROUP, self.ident, self._queue.worker)

    def dead_letter(self, reason: str) -> tuple[bytes, ...]:
        """See ``Entry.dead_letter``."""
        return (
            *(b"data", self.payload, b"reason", reason.encode("utf-8", "replace"), b"queue", self.key),
            *(b"count", b"%d" % self.count, b"entry", self.ident),
        )


class StreamQueue(Pull):
    """One consumed stream, across reconnects, until it is drained."""

    def __init__(
        self,
        name: str,
        handler: Callable[[Delivery], None],
        room: Callable[[], int] | None,
        *,
        link: Link | Share,
        answers: Answers,
        worker: str,
        claim_after: float,
        sharing: Sharing,
        clock: BrokerClock,
    ) -> None:
        super().__init__(name, handler, room, link=link, answers=answers, block=_BLOCK, sharing=sharing, clock=clock)
        self.worker = worker.encode()
        self._claim_after = claim_after
        self.in_hand: dict[bytes, StreamEntry] = {}
        key = self.key
        self.removal_form = (
            b"*4\r\n$4\r\nXACK\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(key), key, len(GROUP), GROUP)
            + b"$%d\r\n%b\r\n*3\r\n$4\r\nXDEL\r\n"
            + b"$%d\r\n%b\r\n" % (len(key), key)
            + b"$%d\r\n%b\r\n"
        )
        # What an earlier life of this worker left in hand is read before anything new.
        self._questions: dict[int, bytes] = {}  # by COUNT
        self._first_life = True
        self._cursor: bytes | None = b"0"
        self._maybe_claimed: set[bytes] = set()  # the answer to a claim was lost
        self._scripts = True  # the server lets us use them
        self.gone: set[bytes] | None = None
        """What was finished while our own list is read: an answer that is on its way may show it once more."""

    # --- reading ---------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """See ``Pull.prepare``."""
        create = command(b"XGROUP", b"CREATE", self.key, GROUP, b"0", b"MKSTREAM")
        self._link.post(Operation(create, 1, self._created))
        # An answer that a broken connection swallowed is in our list at the server: read it again.
        self._read_ours()

    def _read_ours(self) -> None:
        self._cursor = b"0"
        self.gone = self.gone or set()

    def _created(self, replies: list[Reply], error: Exception | None) -> None:
        if replies and isinstance(replies[0], Exception) and "BUSYGROUP" not in str(replies[0]):
            self.answers.problem(f"{self.name}: {replies[0]!s}")

    def ask(self, room: int) -> Operation:
        """See ``Pull.ask``."""
        count = min(room, _COUNT)
        if self._cursor is None and self._link.waits_for_ring:
            # The length first: what changes after it was asked is told.
            both = command(b"XLEN", self.key) + self._question(count, b"STREAMS", self.key, b">")
            return Operation(both, 2, self._looked)
        if self._cursor is None:
            asking = self._questions.get(count)
            if asking is None:
                block = (b"BLOCK", b"%d" % int(_BLOCK * 1000))
                asking = self._questions[count] = self._question(count, *block, b"STREAMS", self.key, b">")
            return Operation(asking, 1, self.answered, patience=_BLOCK)
        return Operation(self._question(count, b"STREAMS", self.key, self._cursor), 1, self.answered)

    def _looked(self, replies: list[Reply], error: Exception | None) -> None:
        fault = isinstance(replies[0], Exception) if replies else False
        self.answered(replies[:1] if fault else replies[1:], error)

    def _question(self, count: int, *more: bytes) -> bytes:
        return command(b"XREADGROUP", b"GROUP", GROUP, self.worker, b"COUNT", b"%d" % count, *more)

    def take(self, reply: Reply) -> bool:
        """Hand over what one XREADGROUP brought; False when it brought nothing."""
        # RESP3 has a map where RESP2 has pairs.
        entries = (next(iter(reply.values())) if isinstance(reply, dict) else reply[0][1]) if reply else []
        if self._cursor is None:
            for ident, fields in entries:
                if not self._reset(ident, fields):
                    self._hand_over(ident, fields, claimed=False, count=1)
            return bool(entries)
        if not entries:
            self._cursor = self.gone = None
            self._first_life = False
            self._maybe_claimed.clear()
            return True
        self._cursor = entries[-1][0]
        for ident, fields in entries:
            if ident not in self.in_hand and ident not in (self.gone or ()):
                claimed = self._first_life or ident in self._maybe_claimed
                self._hand_over(ident, fields, claimed=claimed, count=2)
        return True

    def uprooted(self) -> None:
        """See ``Pull.uprooted``: what was ours and went along with the stream can be nobody else's ever again."""

        def looked(entry: StreamEntry, replies: list[Reply], error: Exception | None) -> None:
            if error is None and replies[0] == []:
                entry.perhaps_lost_at = math.inf

        now = time.monotonic()
        for entry in [entry for entry in self.in_hand.values() if now < entry.perhaps_lost_at]:
            looking = command(b"XRANGE", self.key, entry.ident, entry.ident)
            self.answers.submit(Operation(looking, 1, partial(looked, entry), key=self.key))

    def _reset(self, ident: bytes, fields: list[bytes]) -> bool:
        """Whether it is in hand already, as the group was reset; one of a stream made anew may bear the same id."""
        known = self.in_hand.get(ident)
        return known is not None and known.payload in fields

    def _hand_over(self, ident: bytes, fields: list[bytes] | None, *, claimed: bool, count: int) -> None:
        if fields is None:  # deleted, but still in the list of what is pending
            gone = StreamEntry(self, ident, [], claimed=claimed, count=count)
            self.answers.submit(Operation(gone.removal[0], 2, ignore, key=self.key, waits=True))
            return
        entry = StreamEntry(self, ident, fields, claimed=claimed, count=count)
        self.in_hand[ident] = entry
        if FIELD not in fields[::2]:
            entry.payload = b" ".join(fields)
            entry.reject("the entry has no field 'data'")
            return
        self.deliver(entry)

    # --- liveness --------------------------------------------------------------------------------------

    @property
    def upkeep_interval(self) -> float:
        """See ``Pull.upkeep_interval``."""
        return self._claim_after / 3 * random.uniform(0.8, 1.0)

    def upkeep(self) -> None:
        """Renew what is in hand; look for what silent workers left."""
        if self.in_hand:
            lost_at = self.perhaps_lost_at()

            def renewed(mine: set[bytes] | None) -> None:
                for entry in [self.in_hand[ident] for ident in mine or () if ident in self.in_hand]:
                    entry.perhaps_lost_at = max(lost_at, entry.perhaps_lost_at)

            self._renew(list(self.in_hand), renewed)
        if not self.stopping and self.room_left() > 0:
            idle = b"%d" % int(self._claim_after * 1000)
            silent = command(b"XPENDING", self.key, GROUP, b"IDLE", idle, b"-", b"+", b"%d" % _COUNT)
            self.answers.submit(Operation(silent, 1, self._claim, key=self.key))

    def _renew(self, idents: list[bytes], told: Callable[[set[bytes] | None], None]) -> None:
        """Renew what is still ours; ``told`` gets that, or None where nobody could say.

        An entry that another has claimed meanwhile is not taken back.
        """

        idents = sorted(idents, key=place)
        # Between the first and the last may be some that we were given and have not seen.
        most = b"%d" % (len(self.in_hand) + _COUNT)

        def renewed(replies: list[Reply], error: Exception | None) -> None:
            if error is None and isinstance(replies[0], ReplyError):
                self._scripts = replies[0].code not in ("ERR", "NOPERM")
                two_steps()
            elif error is None and isinstance(replies[0], list):
                mine, gone = replies[0]
                for entry in [self.in_hand[ident] for ident in gone if ident in self.in_hand]:
                    entry.perhaps_lost_at = math.inf
                told(set(mine))
            else:
                told(None)

        def two_steps() -> None:  # who claims one in between loses it to us
            asking = command(b"XPENDING", self.key, GROUP, idents[0], idents[-1], most, self.worker)
            self.answers.submit(Operation(asking, 1, listed, key=self.key))

        def listed(replies: list[Reply], error: Exception | None) -> None:
            if error is not None or not isinstance(replies[0], list):
                told(None)
                return
            wanted = set(idents)
            mine = [pending[0] for pending in replies[0] if pending[0] in wanted]
            if mine:
                renewal = command(b"XCLAIM", self.key, GROUP, self.worker, b"0", *mine, b"JUSTID")
                self.answers.submit(Operation(renewal, 1, ignore, key=self.key))
            told(set(mine))

        if self._scripts:
            renewal = command(b"EVAL", RENEW, b"1", self.key, GROUP, self.worker, most, *idents)
            self.answers.submit(Operation(renewal, 1, renewed, key=self.key))
        else:
            two_steps()

    def confirm(self, delivery: Delivery, told: Callable[[bool | None], None]) -> None:
        """See ``Pull.confirm``."""
        assert isinstance(delivery, StreamEntry)
        ident, lost_at = delivery.ident, self.perhaps_lost_at()

        def renewed(mine: set[bytes] | None) -> None:
            if delivery.perhaps_lost_at == math.inf:  # deleted while it was ours
                told(True)
                return
            if mine is not None:
                delivery.perhaps_lost_at = lost_at
            told(None if mine is None else ident in mine)

        self._renew([ident], renewed)

    def _claim(self, replies: list[Reply], error: Exception | None) -> None:
        if error is not None or self.stopping:
            return
        if isinstance(replies[0], Exception):
            if "NOGROUP" not in str(replies[0]):
                self.answers.problem(f"{self.name}: {replies[0]!s}")
            return
        counts = {p[0]: p[3] for p in replies[0] if p[0] not in self.in_hand}
        wanted = list(counts)[: max(0, self.room_left())]
        if not wanted:
            return
        idle = b"%d" % int(self._claim_after * 1000)
        claim = command(b"XCLAIM", self.key, GROUP, self.worker, idle, *wanted)

        def claimed(replies: list[Reply], error: Exception | None) -> None:
            if error is not None:
                self._maybe_claimed.update(wanted)
                self._read_ours()
            if error is not None or not isinstance(replies[0], list):
                return
            for entry in replies[0]:
                if entry and entry[0] not in self.in_hand:
                    self._hand_over(entry[0], entry[1], claimed=True, count=counts[entry[0]] + 1)
            if len(wanted) < len(counts) or len(counts) >= _COUNT:
                self.upkeep_soon()

        self.answers.submit(Operation(claim, 1, claimed, key=self.key))

    def give_back(self) -> None:
        """What the server gave us and we never saw may be claimed at once."""
        mine = command(b"XPENDING", self.key, GROUP, b"-", b"+", b"%d" % (len(self.in_hand) + _COUNT), self.worker)

        def listed(replies: list[Reply], error: Exception | None) -> None:
            if error is None and isinstance(replies[0], list):
                unseen = [pending[0] for pending in replies[0] if pending[0] not in self.in_hand]
                if unseen:
                    idle = b"%d" % int(self._claim_after * 1000)
                    free = command(b"XCLAIM", self.key, GROUP, self.worker, b"0", *unseen, b"IDLE", idle, b"JUSTID")
                    self.answers.submit(Operation(free, 1, ignore, key=self.key, waits=True))

        self.answers.submit(Operation(mine, 1, listed, key=self.key))

    @property
    def idle(self) -> bool:
        """See ``Pull.idle``."""
        return not self.in_hand
