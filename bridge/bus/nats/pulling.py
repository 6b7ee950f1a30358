"""A durable queue being pulled: as much as there is room for, renewed while in hand.

This room never makes a stream or a consumer, and never writes a reply; ``proof`` does.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from bridge.bus.base import Delivery
from bridge.bus.clock import BrokerClock
from bridge.bus.nats.entry import DurableEntry, InHand, read_ack
from bridge.bus.nats.inbox import NO_RESPONDERS
from bridge.bus.nats.keeper import LinkKeeper
from bridge.bus.nats.listener import Listener
from bridge.bus.nats.proof import Proof
from bridge.bus.nats.reading import Incoming
from bridge.errors import BusError, BusUnavailable

EXPIRES: Final = 1.5
"""Seconds that one pull waits at the server; a drain waits as long for what the last one may still bring."""
PATIENCE: Final = 3.0
"""Seconds after which a pull that the server should have ended is taken for lost (a new leader knows nothing of it)."""
PAUSE: Final = 0.25
"""Seconds before the stream or the consumer is looked for again."""
PATIENT_ATTEMPTS: Final = 5
"""How often that may fail before it is told."""
MAX_BATCH: Final = 256
PROOF: Final = "w"
"""First letter of the last word of the subjects on which the server tells that nobody listens for a reply."""


class DurableConsumer:
    """One durable queue being consumed. See ``Consumer``.

    ``prepare`` has the consumer at the server and returns its ``ack_wait`` (s) and the place of the last entry that the
    stream has; ``next_subject`` asks it for entries. A ``strict`` one takes one entry at a time. ``unkept`` is called
    when a dead letter finds no stream, ``problem`` with what people should know.
    """

    def __init__(
        self,
        queue: str,
        handler: Callable[[Delivery], None],
        room: Callable[[], int] | None,
        *,
        keeper: LinkKeeper,
        out: InHand,
        next_subject: str,
        dead_letters: str,
        inbox_prefix: str,
        strict: bool,
        clock: BrokerClock,
        prepare: Callable[[], Awaitable[tuple[float, int]]],
        unkept: Callable[[], None],
        problem: Callable[[str], None],
    ) -> None:
        self.queue = queue
        self.out = out
        self.dead_letters = dead_letters
        self._keeper = keeper
        self._make = prepare
        self.strict = strict
        self._clock = clock
        self._handler = handler
        self._room = room
        self._inbox = f"{inbox_prefix}.{secrets.token_hex(11)}."
        self._listener = Listener(self._inbox + "*", "", self._arrived)
        self._next = next_subject
        self._in_hand: dict[str, DurableEntry] = {}
        self._problem = problem
        self._proof = Proof(keeper, out, self._inbox + PROOF, self.let_go, unkept=unkept, problem=problem)
        self._ready = False
        self._preparing: asyncio.Task[None] | None = None
        self._round = 0
        self._open = 0  # entries that the pull of this round may still bring
        self._asked_at: float | None = None  # the first pull that the server has not ended
        self._abandoned = False  # a pull before this one was taken for lost
        self._watch: asyncio.TimerHandle | None = None
        self._renewal: asyncio.TimerHandle | None = None
        self._ack_wait = 30.0
        # A server that was killed may have forgotten deliveries of entries up to here.
        self._since = 0
        self.stopping = False
        self._quiet = asyncio.Event()

    # --- life ---------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin to consume. Raises what makes it impossible for good."""
        await self._keeper.add(self._listener)
        if self._keeper.link is not None:
            with contextlib.suppress(BusUnavailable):
                await self._prepare()
        if not self._ready:
            self.up()
        self._renew_later()

    async def _prepare(self) -> None:
        self._ack_wait, self._since = await self._make()
        self._ready = True
        self._ask()

    def up(self) -> None:
        """A link is there: have the consumer, write what waits, go on."""
        if self._keeper.link is None:
            return
        self._proof.up()
        if not self._ready and not self.stopping and self._preparing is None:
            self._preparing = asyncio.create_task(self._prepare_until_done(), name=f"prepare {self.queue}")

    async def _prepare_until_done(self) -> None:
        attempts = 0
        try:
            while not self.stopping and self._keeper.link is not None:
                try:
                    await self._prepare()
                except BusError as error:
                    attempts += 1
                    # A server that was just started, or lost its leader, needs a moment; a lost link is told elsewhere.
                    if attempts >= PATIENT_ATTEMPTS and self._keeper.link is not None:
                        self._problem(f"{self.queue} cannot be served: {error}")
                    await asyncio.sleep(PAUSE * random.uniform(1, 2))
                else:
                    return
        finally:
            self._preparing = None

    def lost(self) -> None:
        """The link broke: what it was asked for will not come; the consumer is looked at again."""
        self._ready = False
        self._over()
        self._ended_by_server()  # nothing that it was asked for comes over another link
        self._proof.lost()

    def resume(self) -> None:
        """See ``Consumer.resume``."""
        self._ask()

    async def drain(self, grace: float) -> None:
        """Ask for no more; what the last pull still brings is handed over. See ``Consumer``."""
        self.stopping = True
        if self._open:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace):
                    await self._quiet.wait()
        self._keeper.remove(self._listener)
        self._listener.detach()

    @property
    def over(self) -> bool:
        """Whether it was drained, and all that it took is answered for certain."""
        return self.stopping and not self._in_hand and self._proof.idle

    @property
    def proving(self) -> asyncio.Task[None] | None:
        """Done when the replies that were written are certain."""
        return self._proof.proving

    def close(self) -> None:
        """End all work."""
        self.stopping = True
        self._over()
        if self._renewal is not None:
            self._renewal.cancel()
        if self._preparing is not None:
            self._preparing.cancel()
        self._proof.close()

    # --- asking -------------------------------------------------------------------------------------

    def _ask(self) -> None:
        link = self._keeper.link
        if self.stopping or not self._ready or self._open or link is None:
            return
        room = MAX_BATCH if self._room is None else self._room()
        if room <= 0:
            return
        self._round += 1
        self._open = 1 if self.strict else min(room, MAX_BATCH)
        self._quiet.clear()
        self._asked_at = self._asked_at or time.monotonic()
        asked = b'{"batch":%d,"expires":%d}' % (self._open, EXPIRES * 1e9)
        link.wire.add(self._next, f"{self._inbox}{self._round:x}", asked, "", None)
        self.out.leave_soon()
        if self._watch is not None:
            self._watch.cancel()
        self._watch = asyncio.get_running_loop().call_later(EXPIRES + PATIENCE, self._taken_for_lost)

    def _over(self) -> None:
        """The pull of this round brings nothing more."""
        self._open = 0
        self._round += 1
        self._quiet.set()
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    def _over_and_on(self) -> None:
        self._over()
        self._ask()

    def _taken_for_lost(self) -> None:
        self._abandoned = True
        self._over_and_on()

    def _ended_by_server(self) -> None:
        self._asked_at, self._abandoned = None, False

    def _on_its_way_for_long(self) -> bool:
        """Whether an entry that comes now may have been given to another worker since it was given to us.

        We stood still, or the network did, and it lay in a socket. Longer than half the time after which the server
        gives it to another (``Refusals.perhaps_lost`` adds a third), and longer than a pull takes.
        """
        asked_at = self._asked_at
        return asked_at is not None and time.monotonic() - asked_at > max(self._ack_wait / 2, EXPIRES + 0.5)

    # --- arriving -----------------------------------------------------------------------------------

    def _arrived(self, message: Incoming) -> None:
        ack = message.reply
        if not ack:
            self._told(message)
            return
        if self._open:
            self._open -= 1
        facts = read_ack(ack)
        if facts is None:
            return
        known = self._in_hand.get(facts.entry_id)
        if known is not None:  # ours all the time; the server thought that we were gone
            known.ack = ack
        else:
            lost_at = time.monotonic() + self._ack_wait / 3
            entry = DurableEntry(
                message, self.queue, facts, ack, self, since=self._since, perhaps_lost_at=lost_at, clock=self._clock
            )
            if self._on_its_way_for_long():
                entry.claimed, entry.doubtful = True, False
            self._in_hand[facts.entry_id] = entry
            self._handler(entry)
        if not self._open:
            if not self._abandoned:
                self._ended_by_server()
            self._over_and_on()

    def _told(self, message: Incoming) -> None:
        """The server's word on a pull, or on a reply that nobody listens for."""
        status = (message.headers or {}).get("Status", "")
        if message.subject.startswith(self._inbox + PROOF):
            if status == NO_RESPONDERS:
                self._proof.nobody(message.subject)
            elif b'"error"' in message.data:
                self._proof.refused(message.data)
            return
        if status == "100" or message.subject != f"{self._inbox}{self._round:x}":
            return
        self._ended_by_server()
        self._over()
        if status in ("404", "408"):
            self._ask()
        else:  # the consumer was deleted, or has a new leader; or nobody answers at all
            self._ready = False
            asyncio.get_running_loop().call_later(PAUSE, self.up)

    # --- in hand ------------------------------------------------------------------------------------

    def finish(
        self,
        entry: DurableEntry,
        verb: bytes,
        address: str,
        payload: bytes,
        content_type: str,
        headers: Mapping[str, str] | None,
    ) -> None:
        """Write a reply or a dead letter, and acknowledge the entry when that is certain."""
        self._proof.write(entry, verb, address, payload, content_type, headers)

    def let_go(self, entry: DurableEntry) -> None:
        """It is over for good, or another worker's."""
        self._in_hand.pop(entry.entry_id, None)

    def waits(self, ack_wait: float) -> None:
        """How long the server waits for signs of work, by now."""
        if ack_wait != self._ack_wait and not self.stopping:
            self._ack_wait = ack_wait
            if self._renewal is not None:
                self._renewal.cancel()
            self._renew()

    def _renew_later(self) -> None:
        wait = self._ack_wait / 3 * random.uniform(0.8, 1.0)
        self._renewal = asyncio.get_running_loop().call_later(wait, self._renew)

    def _renew(self) -> None:
        """Show the server that we work on what is in hand."""
        if self._keeper.link is not None:
            for entry in self._in_hand.values():
                self.out.send(entry.ack, b"+WPI", "")
        self._renew_later()
