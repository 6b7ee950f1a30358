"""Requests from a reliable list: moved to a list of the worker's own while in hand, removed after the reply.

This room never decodes a request.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping

import msgspec

from bridge.bus.base import Delivery
from bridge.bus.clock import BrokerClock
from bridge.bus.redis.answers import Answers
from bridge.bus.redis.entry import reply_if
from bridge.bus.redis.link import Link, Operation, ignore
from bridge.bus.redis.pulling import Pull
from bridge.bus.redis.sharing import Sharing
from bridge.bus.redis.watch import Share
from bridge.bus.redis.wire import Reply, ReplyError, command

_BLOCK = 5  # s; how long one BLMOVE waits
_FIRST_TAKE = 4
_MAX_TAKE = 128

# The list of what a worker has in hand is changed by others only where they took it for gone.
_IF_OURS = reply_if(b"redis.call('LREM', KEYS[1], -1, ARGV[3]) == 1")

# A request begins with a brace, or is a msgpack map: one that was refused does not look like any.
_REFUSED = b"\0no\0"
# The reply and the entry lie on different servers: it goes into the entry, wherever that is moved to.
_KEEP = b"""if redis.call('LREM', KEYS[1], -1, ARGV[1]) == 1 then redis.call('LPUSH', KEYS[1], ARGV[2]) return 1 end
return redis.call('LPOS', KEYS[1], ARGV[2]) and 1 or 0"""

_NO_HEADERS: Mapping[str, str] = {}


class ListEntry:
    """One request in hand: a ``Delivery``. A list has neither ids, times nor headers."""

    __slots__ = ("_kept", "_queue", "claimed", "content", "done", "payload", "perhaps_lost_at", "told")

    doubtful = False
    pulled = True
    entry_id = ""
    reply_to = ""
    queued_at: float | None = None
    headers = _NO_HEADERS

    def __init__(self, queue: ListQueue, content: bytes, *, claimed: bool) -> None:
        self._queue = queue
        self.content = content
        """What lies in the list: the request, or what became of it (``keep_refusal``)."""
        self._kept = b""
        self.told, self.payload = _read_refused(content) if content.startswith(_REFUSED) else (b"", content)
        self.claimed = claimed
        self.done = False
        self.perhaps_lost_at = queue.perhaps_lost_at()

    @property
    def queue(self) -> str:
        """See ``Delivery.queue``."""
        return self._queue.name

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
        # The oldest lie at the end.
        return command(b"LREM", self._queue.processing, b"-1", self.content), 1

    @property
    def probe(self) -> bytes:
        """See ``Entry.probe``."""
        return command(b"LPOS", self._queue.processing, self.content, b"COUNT", b"0")

    def is_there(self, reply: Reply) -> bool:
        """See ``Entry.is_there``."""
        # The same bytes may have been put in twice: is there one for each of them that is in hand?
        return isinstance(reply, list) and len(reply) >= self._queue.in_hand[self.content]

    def removed(self) -> None:
        """See ``Entry.removed``."""
        self._queue.let_go(self.content)

    def keep_refusal(self, reply: bytes) -> bytes:
        """See ``Entry.keep_refusal``."""
        if self.told:
            return b""
        self._kept = _REFUSED + msgspec.msgpack.encode((reply, self.payload))
        self._queue.in_hand[self._kept] += 1  # either may be found in our list from now on
        return command(b"EVAL", _KEEP, b"1", self._queue.processing, self.content, self._kept)

    def refusal_kept(self, done: bool) -> None:
        """See ``Entry.refusal_kept``."""
        self._queue.let_go(self.content if done else self._kept)
        if done:
            self.content = self._kept

    def if_ours(self, reply: bytes, payload: bytes, expiry: bytes) -> bytes:
        """See ``Entry.if_ours``."""
        keys = (self._queue.processing, reply)
        return command(b"EVAL", _IF_OURS, b"2", *keys, payload, expiry, self.content)

    def dead_letter(self, reason: str) -> tuple[bytes, ...]:
        """See ``Entry.dead_letter``."""
        return (
            *(b"data", self.payload, b"reason", reason.encode("utf-8", "replace"), b"queue", self.key),
            *(b"count", b"2" if self.claimed else b"1"),
        )


def _read_refused(content: bytes) -> tuple[bytes, bytes]:
    """The reply that was told, and the request."""
    try:
        return msgspec.msgpack.decode(content[len(_REFUSED) :], type=tuple[bytes, bytes])
    except msgspec.DecodeError:
        return b"", content


class ListQueue(Pull):
    """One consumed list, across reconnects, until it is drained.

    ``{<queue>}.processing.<worker>`` holds what a worker has in hand, ``{<queue>}.alive.<worker>`` lives as long as it
    renews it, ``{<queue>}.workers`` names them all.
    """

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
        self._worker = worker.encode()
        self._claim_after = claim_after
        self._prefix = b"{%b}." % self.key
        self.processing = self._prefix + b"processing." + self._worker
        self.in_hand: Counter[bytes] = Counter()
        self._first_life = True
        self._taking_over = False
        self._left_over: list[bytes] = []  # found in our list, waiting for room
        self._must_look = True
        self._more = 0

    def let_go(self, payload: bytes) -> None:
        """One entry with these bytes is gone."""
        self.in_hand[payload] -= 1
        if self.in_hand[payload] <= 0:
            del self.in_hand[payload]

    # --- reading ---------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """See ``Pull.prepare``."""
        # What an earlier life left, or what a broken connection swallowed, lies in our own list.
        self._must_look = True
        self._left_over = []
        self._link.post(Operation(self._sign_of_life(), 2, self._shown))

    def ask(self, room: int) -> Operation:
        """See ``Pull.ask``."""
        if self._must_look:
            self._must_look = False
            return Operation(command(b"LRANGE", self.processing, b"0", b"-1"), 1, self._found_in_ours)
        if self._left_over:
            return Operation(command(b"LLEN", self.processing), 1, self.answered)  # a turn of the loop
        if self._link.waits_for_ring:
            # The length first: what changes after it was asked is told, our own moves too.
            count = min(self._more or _FIRST_TAKE, room)
            moving = command(b"LMOVE", self.key, self.processing, b"RIGHT", b"LEFT") * count
            return Operation(command(b"LLEN", self.key) + moving, 1 + count, self._looked)
        if self._more:
            count = min(self._more, room)
            return Operation(command(b"LMOVE", self.key, self.processing, b"RIGHT", b"LEFT") * count, count, self.more)
        self.promise_only(1)
        asking = command(b"BLMOVE", self.key, self.processing, b"RIGHT", b"LEFT", b"%d" % _BLOCK)
        return Operation(asking, 1, self.answered, patience=_BLOCK)

    def take(self, reply: Reply) -> bool:
        """Hand over what one question brought; False when it brought nothing."""
        if self._left_over:
            for _ in range(max(0, self.room_left())):
                if not self._left_over:
                    break
                self._hand_over(self._left_over.pop(), claimed=self._first_life or self._taking_over)
            return True
        if not self._must_look:  # what is said of our list is true until it was looked at
            self._first_life = self._taking_over = False
        if isinstance(reply, bytes):
            self._more = _FIRST_TAKE
            self._hand_over(reply, claimed=False)
            return True
        return reply is not None

    def _found_in_ours(self, replies: list[Reply], error: Exception | None) -> None:
        if error is None and isinstance(replies[0], list):
            found: Counter[bytes] = Counter(replies[0])
            found -= self.in_hand
            self._left_over = [one for one in replies[0] if found[one] > 0 and not found.subtract([one])]
        else:
            self._must_look = True
        self.answered(replies, error)

    def _looked(self, replies: list[Reply], error: Exception | None) -> None:
        self.more(replies[1:], error, empty=None)

    def more(self, replies: list[Reply], error: Exception | None, empty: Reply = 0) -> None:
        """The ``done`` of several LMOVEs: go on with twice as many, or wait again; ``empty`` when none brought one."""
        if error is None:
            payloads = [reply for reply in replies if isinstance(reply, bytes)]
            self._more = min(_MAX_TAKE, self._more * 2) if len(payloads) == len(replies) else 0
            for payload in payloads:
                self._hand_over(payload, claimed=False)
            replies = [next((r for r in replies if isinstance(r, Exception)), 0 if payloads else empty)]  # 0: go on
        self.answered(replies, error)

    def _hand_over(self, payload: bytes, *, claimed: bool) -> None:
        self.in_hand[payload] += 1
        self.deliver(ListEntry(self, payload, claimed=claimed))

    # --- liveness --------------------------------------------------------------------------------------

    @property
    def upkeep_interval(self) -> float:
        """See ``Pull.upkeep_interval``."""
        return self._claim_after / 3 * random.uniform(0.8, 1.0)

    @property
    def idle(self) -> bool:
        """See ``Pull.idle``."""
        return not self.in_hand

    def _sign_of_life(self) -> bytes:
        lifetime = b"%d" % max(1, int(self._claim_after * 1000))
        alive = command(b"SET", self._prefix + b"alive." + self._worker, b"1", b"PX", lifetime)
        return alive + command(b"SADD", self._prefix + b"workers", self._worker)

    def _shown(self, replies: list[Reply], error: Exception | None) -> None:
        refusal = next((reply for reply in replies if isinstance(reply, ReplyError)), None)
        if refusal is not None and error is None:
            self.answers.problem(f"{self.name}: other workers cannot see that this one lives: {refusal}")

    def upkeep(self) -> None:
        """Renew our sign of life; look for what silent workers left."""
        self.answers.submit(Operation(self._sign_of_life(), 2, self._shown, key=self.key))
        if not self.stopping and self.room_left() > 0:
            members = command(b"SMEMBERS", self._prefix + b"workers")
            self.answers.submit(Operation(members, 1, self._found_workers, key=self.key))

    def confirm(self, delivery: Delivery, told: Callable[[bool | None], None]) -> None:
        """See ``Pull.confirm``: with a sign of life whatever is in our list stays there."""
        assert isinstance(delivery, ListEntry)
        lost_at = self.perhaps_lost_at()

        def looked(replies: list[Reply], error: Exception | None) -> None:
            if error is None:
                delivery.perhaps_lost_at = lost_at
            self._must_look |= error is not None  # who lets it go then finds it again
            told(None if error is not None else delivery.is_there(replies[-1]))

        self.answers.submit(Operation(self._sign_of_life() + delivery.probe, 3, looked, key=self.key))

    def _found_workers(self, replies: list[Reply], error: Exception | None) -> None:
        if error is not None or not isinstance(replies[0], list):
            return
        others = [worker for worker in replies[0] if worker != self._worker]
        if not others:
            return
        asking = b"".join(command(b"EXISTS", self._prefix + b"alive." + worker) for worker in others)

        def told(replies: list[Reply], error: Exception | None) -> None:
            if error is None:
                for worker, alive in zip(others, replies, strict=True):
                    if alive == 0:
                        self._take_over(worker)

        self.answers.submit(Operation(asking, len(others), told, key=self.key))

    def _take_over(self, worker: bytes) -> None:
        """Move a silent worker's entries into our own list, as many as there is room for."""
        room = min(self.room_left(), _MAX_TAKE)
        if room <= 0 or self.stopping:
            return
        theirs = self._prefix + b"processing." + worker
        moving = command(b"LMOVE", theirs, self.processing, b"RIGHT", b"LEFT") * room

        def moved(replies: list[Reply], error: Exception | None) -> None:
            payloads = [reply for reply in replies if isinstance(reply, bytes)]
            for payload in payloads:
                self._hand_over(payload, claimed=True)
            if error is not None:
                self._must_look = self._taking_over = True  # some may have been moved unseen
            elif len(payloads) == room:
                self.upkeep_soon()
            else:
                # Forgotten only while it is silent still: one that came back has put itself in again by its next sign.
                gone = command(b"SREM", self._prefix + b"workers", worker)
                self.answers.submit(Operation(gone, 1, ignore, key=self.key))

        self.answers.submit(Operation(moving, room, moved, key=self.key))

    def uprooted(self) -> None:
        """See ``Pull.uprooted``: what is in hand lies in a list of its own."""

    def give_back(self) -> None:
        """What the server moved and we never saw goes back to where it came from."""
        looking = command(b"LRANGE", self.processing, b"0", b"-1")

        def looked(replies: list[Reply], error: Exception | None) -> None:
            if error is not None or not isinstance(replies[0], list):
                return
            for payload in (Counter(replies[0]) - self.in_hand).elements():
                back = command(b"LREM", self.processing, b"1", payload) + command(b"RPUSH", self.key, payload)
                self.answers.submit(Operation(back, 2, ignore, key=self.key, waits=True))

        self.answers.submit(Operation(looking, 1, looked, key=self.key))
