"""One entry of a durable queue in hand: what its acknowledgement subject tells, and how it ends.

This room never asks the server for anything.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from bridge.bus.clock import BrokerClock
from bridge.bus.nats.reading import Incoming

REASON_LENGTH = 256
NO_HEADERS: Mapping[str, str] = {}


class InHand(Protocol):
    """The bus, as far as entries in hand need it."""

    @property
    def max_payload(self) -> int:
        """See ``Bus``."""

    def send(
        self,
        address: str,
        payload: bytes,
        content_type: str,
        headers: Mapping[str, str] | None = None,
        reply: str = "",
    ) -> None:
        """See ``Bus``; ``reply`` is the message's own reply subject."""

    def leave_soon(self) -> None:
        """Write what was gathered at the end of this turn of the loop."""

    def check_size(self, payload: bytes, headers: Mapping[str, str] | None) -> None:
        """Raise ``MessageTooLarge`` for what the server would refuse."""


class _Consumer(Protocol):
    out: InHand
    dead_letters: str

    def finish(
        self,
        entry: DurableEntry,
        verb: bytes,
        address: str,
        payload: bytes,
        content_type: str,
        headers: Mapping[str, str] | None,
    ) -> None: ...

    def let_go(self, entry: DurableEntry) -> None: ...


class AckFacts(NamedTuple):
    """``delivered`` counts deliveries, this one included; ``queued_at`` is Unix time by the server's clock (s).

    ``place`` is the number of the entry in its stream.
    """

    entry_id: str
    delivered: int
    queued_at: float
    place: int


def read_ack(subject: str) -> AckFacts | None:
    """What ``$JS.ACK....`` tells; None where it is something else."""
    words = subject.split(".")
    # $JS.ACK.<stream>.<consumer>.<delivered>.<stream seq>.<consumer seq>.<time>.<pending>, or with a domain and an
    # account's hash before the stream.
    first = 4 if len(words) == 9 else 6
    if len(words) < 9 or words[0] != "$JS" or words[1] != "ACK":
        return None
    try:
        nanoseconds = int(words[first + 3])
        # A stream that was deleted and made anew counts from 1 again: the time tells its entries apart.
        entry_id = f"{nanoseconds // 1_000_000}-{words[first + 1]}"
        return AckFacts(entry_id, int(words[first]), nanoseconds / 1e9, int(words[first + 1]))
    except (ValueError, IndexError):
        return None


class DurableEntry:
    """One request, behind the place ``since`` in the stream or in doubt. See ``Delivery``."""

    __slots__ = (
        "_consumer",
        "_message",
        "ack",
        "claimed",
        "count",
        "done",
        "doubtful",
        "entry_id",
        "payload",
        "perhaps_lost_at",
        "queue",
        "queued_at",
    )

    pulled = True
    told = b""
    reply_to = ""
    """What JetStream puts there is for acknowledgements; the reply address stands in the body."""

    def __init__(
        self,
        message: Incoming,
        queue: str,
        facts: AckFacts,
        ack: str,
        consumer: _Consumer,
        *,
        since: int,
        perhaps_lost_at: float,
        clock: BrokerClock,
    ) -> None:
        self.payload: bytes = message.data
        self.queue = queue
        self.entry_id = facts.entry_id
        self.queued_at: float | None = clock.here(facts.queued_at)
        self.count = facts.delivered
        self.claimed = facts.delivered > 1
        self.doubtful = not self.claimed and facts.place <= since
        self.perhaps_lost_at = perhaps_lost_at
        self.ack = ack
        self.done = False
        self._message = message
        self._consumer = consumer

    @property
    def headers(self) -> Mapping[str, str]:
        """The request's NATS headers."""
        return self._message.headers or NO_HEADERS

    def finish(
        self,
        address: str,
        payload: bytes,
        content_type: str,
        headers: Mapping[str, str] | None = None,
        *,
        refusal: bool = False,
    ) -> None:
        """See ``Delivery``."""
        if not self.done:
            self._consumer.finish(self, b"+ACK", address, payload, content_type, headers)
            self.done = True

    def reject(self, reason: str) -> None:
        """See ``Delivery``."""
        if self.done:
            return
        self.done = True
        payload, headers = dead_letter(
            self.payload, reason, self.queue, self.count, self._consumer.out.max_payload, entry=self.entry_id
        )
        content_type = self.headers.get("Content-Type", "")[:128]
        self._consumer.finish(self, b"+TERM", self._consumer.dead_letters, payload, content_type, headers)

    def still_ours(self, told: Callable[[bool | None], None]) -> None:
        """See ``Delivery``: JetStream takes a sign of work from anybody; only the entry's record tells more."""
        self.perhaps_lost_at = math.inf
        told(True)

    def let_go(self) -> None:
        """See ``Delivery``: an acknowledgement of ours would take it from whoever has it."""
        if not self.done:
            self.done = True
            self._consumer.let_go(self)


def dead_letter(
    payload: bytes, reason: str, queue: str, count: int, limit: int, *, entry: str = ""
) -> tuple[bytes, dict[str, str]]:
    """The request as it came, with headers that say why nobody answered it and how often it was delivered."""
    headers = {
        "Esl-Bridge-Reason": " ".join(reason.encode("ascii", "replace").decode()[:REASON_LENGTH].split()),
        "Esl-Bridge-Queue": queue,
        "Esl-Bridge-Count": str(count),
    }
    if entry:
        headers["Esl-Bridge-Entry"] = entry
    room = limit - 1024
    if len(payload) > room:
        payload = payload[:room]
        headers["Esl-Bridge-Truncated"] = "true"
    return payload, headers
