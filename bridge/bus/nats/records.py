"""The records on NATS: a JetStream KV bucket, every step a write by revision, all that a turn asks in one write.

This room never waits for one record before it asks for the next, and never reads the server's clock.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import math
import re
import secrets
from collections.abc import Callable, Mapping
from hashlib import blake2b

import msgspec

from bridge.bus.nats.buckets import API, Bucket
from bridge.bus.nats.inbox import is_no_responders
from bridge.bus.nats.keeper import LinkKeeper
from bridge.bus.nats.listener import Listener
from bridge.bus.nats.questions import Questions
from bridge.bus.nats.reading import Incoming, parse_headers
from bridge.bus.records import Record, Swapped
from bridge.errors import BusError, BusRefused, BusUnavailable

log = logging.getLogger(__name__)

TIMEOUT = 5.0
"""Seconds after which a server that said nothing is taken to be away."""
_WRONG_REVISION, _NO_MESSAGE = 10071, 10037
_ENDED = -1.0
_DELETED = {"KV-Operation": "DEL"}
_SEQUENCE = re.compile(rb'"seq":\s?(\d+)')
_Took = Callable[[Incoming | None, str], None]


class NatsRecords:
    """See ``Records``. The bucket ``<prefix>-ledger``, whose TTL is for all; signs of life pass through it too."""

    def __init__(
        self,
        keeper: LinkKeeper,
        questions: Questions,
        inbox_prefix: str,
        leave_soon: Callable[[], None],
        *,
        prefix: str = "esl-bridge",
        replicas: int = 1,
    ) -> None:
        self._keeper = keeper
        self._questions = questions
        self._leave_soon = leave_soon
        self._bucket = Bucket(questions, f"{prefix}-ledger", ttl=600.0, replicas=replicas)
        self._base = f"{inbox_prefix}.{secrets.token_hex(11)}."
        self._listener = Listener(self._base + "*", "", self._arrived)
        self._alive = self._bucket.prefix + "alive."
        self._lives = Listener(self._alive + "*", "", self._beaten)
        self._opened = False
        self._count = 0
        self._open: dict[str, tuple[_Took, float]] = {}
        self._healing: asyncio.Task[None] | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        self._claim_after = 30.0
        self._lasting = 0.0
        self._look_at = math.inf
        self._seen: dict[str, float] = {}
        self._listening_since = 0.0

    async def open(self, lasting: float, claim_after: float) -> None:
        """See ``Records``; a bucket that keeps longer than asked for stays as it is."""
        self._claim_after = claim_after
        self._lasting = max(lasting, self._lasting)
        self._bucket.ttl, self._bucket.ready = self._lasting, False
        await self._bucket.make()
        if not self._opened:
            self._opened = True
            await self._keeper.add(self._listener)
            await self._keeper.add(self._lives)
            self._listening_since = asyncio.get_running_loop().time()
        self._look_at = asyncio.get_running_loop().time() + claim_after

    async def probe(self) -> None:
        """See ``Records``."""
        # Not JetStream's own INFO: a worker never asks that, and need not be let to.
        await Bucket(self._questions, self._bucket.name, ttl=0.0).make(create=False)

    # --- records ------------------------------------------------------------------------------------

    def swap(self, key: str, value: bytes, expected: Record | None, ttl: float, answer: Swapped) -> None:
        """See ``Records``."""
        subject = self._subject(key)
        if expected is None:
            self._put(subject, value, 0, answer)
        elif expected.revision:
            self._put(subject, value, expected.revision, answer)
        else:
            self._put_over(subject, value, expected, answer)

    def free(self, key: str, expected: Record, answer: Swapped) -> None:
        """See ``Records``."""
        subject = self._subject(key)
        if expected.revision:
            self._put(subject, b"", expected.revision, answer, _DELETED)
        else:
            self._put_over(subject, b"", expected, answer, _DELETED)

    def _put(
        self, subject: str, value: bytes, revision: int, answer: Swapped, headers: Mapping[str, str] | None = None
    ) -> None:
        def took(message: Incoming | None, fault: str) -> None:
            if message is None:
                answer(False, None, BusUnavailable(fault))
                return
            data = message.data
            if b'"error"' not in data:
                found = _SEQUENCE.search(data)
                if found is not None:
                    answer(True, Record(value, int(found[1])), None)
                    return
            if is_no_responders(message):
                self._heal()
                answer(False, None, BusUnavailable(f"the bucket {self._bucket.name} is not there"))
                return
            error = _error_of(data)
            if error.get("err_code") == _WRONG_REVISION:
                self._get(subject, lambda *found: self._conflict(subject, value, revision, answer, headers, *found))
            else:
                answer(False, None, BusRefused(f"the ledger: {error.get('description', 'no answer that is known')}"))

        lines = {"Nats-Expected-Last-Subject-Sequence": str(revision), **(headers or {})}
        self._ask(subject, value, lines, took)

    def _conflict(
        self,
        subject: str,
        value: bytes,
        revision: int,
        answer: Swapped,
        headers: Mapping[str, str] | None,
        found: Record | None,
        deleted: bool,
        error: BusError | None,
    ) -> None:
        """Somebody else's value is there, or none any more: then ours may be set."""
        if error is not None:
            answer(False, None, error)
        elif found is not None and not deleted:
            answer(False, found, None)
        elif headers is not None:
            answer(True, None, None)  # to be taken away, and gone
        else:
            at = found.revision if found is not None else 0
            if at == revision:
                answer(False, None, BusUnavailable("the ledger's bucket contradicts itself"))
            else:
                self._put(subject, value, at, answer)

    def _put_over(
        self, subject: str, value: bytes, expected: Record, answer: Swapped, headers: Mapping[str, str] | None = None
    ) -> None:
        """Set it over a value whose revision is not known."""

        def got(found: Record | None, deleted: bool, error: BusError | None) -> None:
            if error is not None:
                answer(False, None, error)
            elif found is not None and not deleted and found.value != expected.value:
                answer(False, found, None)
            elif headers is not None and (found is None or deleted):
                answer(True, None, None)
            else:
                self._put(subject, value, found.revision if found is not None else 0, answer, headers)

        self._get(subject, got)

    def _get(self, subject: str, got: Callable[[Record | None, bool, BusError | None], None]) -> None:
        """What the leader has: the record, whether it is a deletion; None where there is nothing."""

        def took(message: Incoming | None, fault: str) -> None:
            if message is None:
                got(None, False, BusUnavailable(fault))
                return
            try:
                answer = msgspec.json.decode(message.data or b"{}")
                error = answer.get("error")
                if error is not None and error.get("err_code") == _NO_MESSAGE:
                    got(None, False, None)
                elif error is not None:
                    got(None, False, BusUnavailable(f"the ledger: {error.get('description')}"))
                else:
                    kept = answer["message"]
                    headers = parse_headers(base64.b64decode(kept["hdrs"])) if kept.get("hdrs") else {}
                    value = base64.b64decode(kept.get("data") or "")
                    got(Record(value, kept["seq"]), "KV-Operation" in headers, None)
            except (msgspec.DecodeError, KeyError, ValueError):
                got(None, False, BusUnavailable("the ledger: an answer that cannot be read"))

        asked = msgspec.json.encode({"last_by_subj": subject})
        self._ask(f"{API}STREAM.MSG.GET.{self._bucket.stream}", asked, None, took)

    def _subject(self, key: str) -> str:
        # KV refuses many characters, and callers choose the ids.
        return self._bucket.prefix + _hex(key)

    # --- asking -------------------------------------------------------------------------------------

    def _ask(self, subject: str, payload: bytes, headers: Mapping[str, str] | None, took: _Took) -> None:
        link = self._keeper.link
        loop = asyncio.get_running_loop()
        if link is None:
            loop.call_soon(took, None, "the bus is away")
            return
        self._count += 1
        token = f"{self._count:x}"
        link.wire.add(subject, self._base + token, payload, "", headers)
        self._open[token] = (took, loop.time() + TIMEOUT)
        self._leave_soon()
        if self._sweeper is None:
            self._sweeper = loop.call_later(TIMEOUT, self._sweep)

    def _arrived(self, message: Incoming) -> None:
        found = self._open.pop(message.subject[len(self._base) :], None)
        if found is not None:
            found[0](message, "")

    def _sweep(self) -> None:
        """Tell those whose answer is overdue; they were asked in the order of their deadlines."""
        self._sweeper = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        overdue = []
        for token, (_took, deadline) in self._open.items():
            if deadline > now:
                self._sweeper = loop.call_at(deadline, self._sweep)
                break
            overdue.append(token)
        for token in overdue:
            self._open.pop(token)[0](None, f"no answer within {TIMEOUT:g} s")

    def lost(self, reason: str) -> None:
        """The link broke: nothing that was asked will be answered."""
        waiting, self._open = list(self._open.values()), {}
        self._listening_since = asyncio.get_running_loop().time()  # beats may be missed until it is back
        for took, _deadline in waiting:
            took(None, reason)

    def _heal(self) -> None:
        """Somebody deleted the bucket, or made its entries shorter-lived than markers have to be: have it as it was."""
        if self._healing is None or self._healing.done():
            self._bucket.ttl, self._bucket.ready = self._lasting, False
            self._healing = asyncio.create_task(self._make(), name="ledger bucket")

    async def _make(self) -> None:
        born = self._bucket.born
        with contextlib.suppress(BusError):
            await self._bucket.make()
        if born and self._bucket.born != born:
            log.warning("somebody deleted the bucket %s: outcomes of before are forgotten", self._bucket.name)

    # --- lives --------------------------------------------------------------------------------------

    def beat(self, instance: str) -> None:
        """See ``Records``. An ordinary message: whoever asks has listened, or waits until it has listened enough."""
        link, now = self._keeper.link, asyncio.get_running_loop().time()
        if self._lives.refusal:  # whom we are not let to hear is not gone
            self._listening_since = now
        if link is not None:
            if now >= self._look_at:
                self._look_at = now + self._claim_after
                self._heal()
            link.wire.add(self._alive + _hex(instance), "", b"1", "", None)
            self._leave_soon()

    def leave(self, instance: str) -> None:
        """See ``Records``."""
        link = self._keeper.link
        if link is not None:
            link.wire.add(self._alive + _hex(instance), "", b"", "", _DELETED)
            self._leave_soon()

    def living(self, instance: str, answer: Callable[[bool], None]) -> None:
        """See ``Records``."""
        loop = asyncio.get_running_loop()
        at = self._seen.get(_hex(instance), 0.0)
        # Whoever was not heard of yet, or not since our own outage, has as long as anybody else to be heard.
        recent = loop.time() - max(at, self._listening_since) < self._claim_after
        deaf = self._keeper.link is None or bool(self._lives.refusal)
        loop.call_soon(answer, deaf or (at != _ENDED and recent))

    def _beaten(self, message: Incoming) -> None:
        instance = message.subject[len(self._alive) :]
        self._seen[instance] = asyncio.get_running_loop().time() if message.data else _ENDED
        if len(self._seen) > 10_000:
            now = asyncio.get_running_loop().time()
            self._seen = {one: at for one, at in self._seen.items() if now - at < self._claim_after}


def _error_of(data: bytes) -> dict[str, object]:
    try:
        error = msgspec.json.decode(data).get("error")
    except (msgspec.DecodeError, AttributeError):
        return {}
    return error if isinstance(error, dict) else {}


def _hex(name: str) -> str:
    return blake2b(name.encode(), digest_size=16).hexdigest()
