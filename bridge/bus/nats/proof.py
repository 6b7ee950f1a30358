"""Replies to entries of durable queues: written, proven to have reached a listener, and only then acknowledged.

A reply bears a reply subject, so that the server says at once when nobody listens; the PONG behind it is the proof that
somebody did. Never writes a reply twice that may have been heard: such an entry is given back, and the ledger answers.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from bridge.bus.nats.entry import DurableEntry, InHand
from bridge.bus.nats.keeper import LinkKeeper
from bridge.errors import BusUnavailable, MessageTooLarge

RETRY_AFTER: Final = 0.25
"""Seconds after which a reply that nobody listened for is written again."""
GIVE_UP_AFTER: Final = 15.0
"""Seconds that a caller has to come back (a broker restarted: clients take their time)."""


DEAD: Final = b"+TERM"
"""How an entry is acknowledged that became a dead letter."""


class _Fault(msgspec.Struct):
    description: str = ""


class _Refusal(msgspec.Struct):
    error: _Fault


_decode_refusal = msgspec.json.Decoder(_Refusal).decode


class _Reply:
    __slots__ = ("address", "content_type", "entry", "headers", "nobody", "payload", "since", "verb")

    def __init__(
        self,
        entry: DurableEntry,
        verb: bytes,
        address: str,
        payload: bytes,
        content_type: str,
        headers: Mapping[str, str] | None,
    ) -> None:
        self.entry = entry
        self.verb = verb
        self.address = address
        self.payload = payload
        self.content_type = content_type
        self.headers = headers
        self.nobody = False
        self.since = 0.0


class Proof:
    """The replies of one consumer that are not certain yet; ``gone`` is told of entries that are over for good.

    ``unkept`` is called when a dead letter finds no stream, ``problem`` with what people should know.
    """

    def __init__(
        self,
        keeper: LinkKeeper,
        out: InHand,
        base: str,
        gone: Callable[[DurableEntry], object],
        *,
        unkept: Callable[[], None],
        problem: Callable[[str], None],
    ) -> None:
        self._keeper = keeper
        self._out = out
        self._base = base
        self._gone = gone
        self._unkept = unkept
        self._problem = problem
        self._loop = asyncio.get_running_loop()
        self._count = 0
        self._written: dict[str, _Reply] = {}
        self._waiting: list[_Reply] = []
        self._doubtful: list[DurableEntry] = []
        self.proving: asyncio.Task[None] | None = None
        self._retry: asyncio.TimerHandle | None = None

    @property
    def idle(self) -> bool:
        """Whether everything is certain."""
        return not (self._written or self._waiting or self._doubtful)

    def write(
        self,
        entry: DurableEntry,
        verb: bytes,
        address: str,
        payload: bytes,
        content_type: str,
        headers: Mapping[str, str] | None,
    ) -> None:
        """Write a reply, now or when the link is back; ``verb`` acknowledges its entry. Raises ``MessageTooLarge``."""
        self._out.check_size(payload, headers)
        self._leave(_Reply(entry, verb, address, payload, content_type, headers))

    def nobody(self, subject: str) -> None:
        """The server says that nobody listens for the reply that bears this reply subject."""
        reply = self._written.get(subject)
        if reply is not None:
            reply.nobody = True

    def refused(self, answer: bytes) -> None:
        """A stream that takes what was written, a dead letter, says why it did not."""
        with contextlib.suppress(msgspec.DecodeError):
            self._problem(f"a dead letter was refused, and is lost: {_decode_refusal(answer).error.description}")

    def up(self) -> None:
        """A link is there."""
        doubtful, self._doubtful = self._doubtful, []
        for entry in doubtful:
            self._out.send(entry.ack, b"-NAK", "")
        self._again()

    def lost(self) -> None:
        """The link broke: whether the last replies were heard is open."""
        self._doubtful += [reply.entry for reply in self._written.values()]
        for entry in self._doubtful:
            self._gone(entry)
        self._written.clear()

    def close(self) -> None:
        """Write nothing more."""
        for end in (self.proving, self._retry):
            if end is not None:
                end.cancel()

    def _leave(self, reply: _Reply) -> None:
        if self._keeper.link is None:
            self._waiting.append(reply)
            return
        if not reply.address:
            self._acknowledge(reply)
            return
        self._count += 1
        subject = f"{self._base}{self._count:x}"
        self._out.send(reply.address, reply.payload, reply.content_type, reply.headers, reply=subject)
        self._written[subject] = reply
        if self.proving is None:
            self.proving = self._loop.create_task(self._prove(), name="prove replies")

    async def _prove(self) -> None:
        """One PING behind the replies of a turn, again while there are more."""
        try:
            while self._written and (link := self._keeper.link) is not None:
                batch = list(self._written)
                await link.confirm()
                for subject in batch:
                    reply = self._written.pop(subject, None)
                    if reply is not None:
                        self._proven(reply)
        except BusUnavailable:
            return  # ``lost`` has seen to them
        finally:
            self.proving = None

    def _proven(self, reply: _Reply) -> None:
        now = self._loop.time()
        reply.since = reply.since or now
        dead = reply.nobody and reply.verb == DEAD
        if not reply.nobody or now - reply.since > GIVE_UP_AFTER:
            if dead:
                self._problem(f"no stream takes dead letters ({reply.address}): they are lost")
            self._acknowledge(reply)
            return
        if dead:
            self._unkept()
        reply.nobody = False
        self._waiting.append(reply)
        if self._retry is None:
            self._retry = self._loop.call_later(RETRY_AFTER, self._again)

    def _again(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        waiting, self._waiting = self._waiting, []
        for reply in waiting:
            try:
                self._leave(reply)
            except MessageTooLarge:
                # This server takes less than the one that it was written for: whoever gets the entry says so.
                self._out.send(reply.entry.ack, b"-NAK", "")
                self._gone(reply.entry)

    def _acknowledge(self, reply: _Reply) -> None:
        self._out.send(reply.entry.ack, reply.verb, "")
        self._gone(reply.entry)
