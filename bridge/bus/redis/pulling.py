"""What the two queues that are pulled share: ask when there is room, wait when there is none, stop without loss.

A question waits at the server, or, on a connection that is shared, is asked when the server told of a change.

This room never says which command takes an entry.
"""

from __future__ import annotations

import asyncio
import math
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable

from bridge.bus.base import Delivery
from bridge.bus.clock import ASK_EVERY, BrokerClock
from bridge.bus.redis.answers import Answers
from bridge.bus.redis.link import Link, Operation, ignore
from bridge.bus.redis.sharing import Sharing
from bridge.bus.redis.watch import Share
from bridge.bus.redis.wire import ELSEWHERE, REFUSALS, Reply, ReplyError, command
from bridge.errors import BusUnavailable

_PAUSE = 0.05  # s; before asking again when a server does not wait as it was asked to, or refuses
_ASIDE = 2.0  # s; before a queue that cannot be read is asked again, where others share its connection


class _Place:
    """An entry that waits to be handed over, and whether it is known to be ours."""

    __slots__ = ("delivery", "ours")

    def __init__(self, delivery: Delivery, ours: bool) -> None:
        self.delivery = delivery
        self.ours = ours


class Pull(ABC):
    """A consumer that asks for entries, one question at a time, on a connection of its own or on a shared one."""

    _claim_after: float

    def __init__(
        self,
        name: str,
        handler: Callable[[Delivery], None],
        room: Callable[[], int] | None,
        *,
        link: Link | Share,
        answers: Answers,
        block: float,
        sharing: Sharing,
        clock: BrokerClock,
    ) -> None:
        self.name = name
        self.key = name.encode()
        self._handler = handler
        self.room = room
        self._link = link
        self.answers = answers
        self._block = block
        self._sharing = sharing
        self.clock = clock
        self._ask_time_at = 0.0
        self._asked_at: float | None = None
        self._perhaps = True  # something may be there that was not read
        self._pause: asyncio.TimerHandle | None = None
        self._upkeep: asyncio.TimerHandle | None = None
        self._upkeep_due = math.inf
        self._answer_due = math.inf
        self._woke = False
        self._line: deque[_Place] = deque()  # those that must be looked at first, and what came behind them
        self._unblocking = False
        self.stopping = False
        self._quiet = asyncio.Event()
        link.on_up = self._up
        link.on_down = self._down
        link.on_ring = self._rung

    # --- what a queue does its own way -------------------------------------------------------------------

    @abstractmethod
    def prepare(self) -> None:
        """Post what must be there before the first question; after each connect."""

    @abstractmethod
    def ask(self, room: int) -> Operation:
        """The next question; its ``done`` is ``answered``."""

    @abstractmethod
    def take(self, reply: Reply) -> bool:
        """Hand over what the answer brought; False when it brought nothing."""

    @abstractmethod
    def upkeep(self) -> None:
        """Show that we live; look for what silent workers left."""

    @abstractmethod
    def confirm(self, delivery: Delivery, told: Callable[[bool | None], None]) -> None:
        """See ``Delivery.still_ours``."""

    @abstractmethod
    def uprooted(self) -> None:
        """The queue, or its group, was deleted under us."""

    @abstractmethod
    def give_back(self) -> None:
        """Free what the server gave us and we never saw."""

    @property
    @abstractmethod
    def upkeep_interval(self) -> float:
        """Seconds to the next upkeep."""

    @property
    @abstractmethod
    def idle(self) -> bool:
        """Whether nothing is in hand."""

    # --- the consumer ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to consume."""
        self._link.start()
        self._keep_up()

    def resume(self) -> None:
        """See ``Consumer.resume``."""
        if self._asked_at is None and self._pause is None:
            self._go_on()

    @property
    def asleep(self) -> bool:
        """Whether there is nothing to ask before the server tells of a change."""
        return self._link.waits_for_ring and not self._perhaps and self._asked_at is None

    async def drain(self, grace: float) -> None:
        """See ``Consumer.drain``."""
        if self.stopping:
            return
        self.stopping = True
        if self._asked_at is not None and self._link.connected:
            # The waiting question ends at once, and an entry that it brings is still handed over.
            self._unblock(ignore)
            try:
                async with asyncio.timeout(grace):
                    await self._quiet.wait()
            except TimeoutError:
                pass
        unanswered = self._asked_at is not None
        if unanswered and self._link.waits_for_ring:
            # A read that nobody waits for any more must not take an entry, or at least not after we looked for it.
            self._link.fail(BusUnavailable(f"{self.name}: a read was not answered in time"))
        await self._link.close()
        self._sharing.leave(self)
        if unanswered:
            self.give_back()

    def close(self) -> None:
        """End the upkeep: what is still in hand will be claimed by others."""
        self.stopping = True
        self._sharing.leave(self)
        for timer in (self._upkeep, self._pause):
            if timer is not None:
                timer.cancel()

    async def disconnect(self) -> None:
        """End the consumer's connection."""
        self.close()
        await self._link.close()

    def room_left(self) -> int:
        """How many entries may be taken now; what others ask for already is theirs."""
        return self._sharing.left(self)

    @property
    def promised(self) -> int:
        """How many entries the question that is asked may bring."""
        return self._sharing.promised(self)

    def promise_only(self, entries: int) -> None:
        """The question that is about to be asked brings no more than so many."""
        self._sharing.promise(self, entries)

    def ask_anew(self) -> None:
        """End the question that waits: others are short of what it may bring."""
        if self._asked_at is not None and self._link.connected and not self._unblocking:
            self._unblocking = self._unblock(self._unblocked)

    def _unblocked(self, replies: list[Reply], error: Exception | None) -> None:
        self._unblocking = False
        if error is None and replies[0] == 0 and self._sharing.is_short():
            # The server had not come to the question yet.
            asyncio.get_running_loop().call_later(_PAUSE, self.ask_anew)

    def _unblock(self, done: Callable[[list[Reply], Exception | None], None]) -> bool:
        number = self._link.client_id
        if not number or self._link.waits_for_ring:
            return False
        unblock = command(b"CLIENT", b"UNBLOCK", b"%d" % number)
        self.answers.submit(Operation(unblock, 1, done, key=self.key))
        return True

    def perhaps_lost_at(self) -> float:
        """From when on (``time.monotonic``) an entry taken now may be claimed by others, should we stand still."""
        return time.monotonic() + self._claim_after / 3

    def deliver(self, delivery: Delivery) -> None:
        """Hand an entry over that was just taken, behind those that were taken before it.

        A worker or a network that stood still may bring it long after the server gave it away: another may have
        answered it by now.
        """
        sure = not (self._woke or self._late())
        if sure and not self._line:
            self.hand_over(delivery)
            return
        place = _Place(delivery, sure)
        self._line.append(place)
        if not sure:
            self._look(place)

    def _late(self) -> bool:
        """Whether our sign of life is overdue, because we did not run, or the answer to what was asked.

        Else the server gave it to us within the last half of ``claim_after``; ``perhaps_lost_at`` adds a third.
        """
        return time.monotonic() - min(self._upkeep_due, self._answer_due) > self._claim_after / 6

    def _look(self, place: _Place) -> None:
        asked_at = time.monotonic()

        def told(ours: bool | None) -> None:
            if ours and time.monotonic() - asked_at > self._claim_after / 2:
                self._look(place)  # we stood still again
                return
            place.ours = bool(ours)
            if not ours:
                self._line.remove(place)
                self.answers.problem("a request was on its way to us for too long: it is left to whoever has it by now")
                place.delivery.let_go()
            while self._line and self._line[0].ours:
                self.hand_over(self._line.popleft().delivery)

        self.confirm(place.delivery, told)

    def hand_over(self, delivery: Delivery) -> None:
        """Hand an entry over that is ours for sure."""
        try:
            self._handler(delivery)
        except Exception as error:  # a fault in the handler must not end the consumer
            asyncio.get_running_loop().call_exception_handler(
                {"message": f"the handler of {self.name} failed", "exception": error}
            )

    # --- asking ------------------------------------------------------------------------------------------

    def _rung(self) -> None:
        self._perhaps = True
        self.resume()

    def _up(self) -> None:
        self._asked_at = None
        self._perhaps = True
        if not self._link.waits_for_ring:
            self._sharing.join(self)
        self._sharing.promise(self, 0)
        if not self.stopping:
            # Answered before the first entry: what it says of its age is right.
            self._link.post(self._what_time())
            self.prepare()
            self._go_on()

    def _down(self, error: Exception) -> None:
        self._asked_at = None
        self._sharing.promise(self, 0)
        self._quiet.set()

    def _go_on(self) -> None:
        self._pause = None
        if self.stopping or self._asked_at is not None or self.asleep or not self._link.connected:
            return
        room = self._sharing.share(self)
        if room > 0:
            self._asked_at = asyncio.get_running_loop().time()
            self._sharing.promise(self, room)
            self._perhaps = False
            question = self.ask(room)
            self._answer_due = time.monotonic() + question.patience
            self._link.say(question)

    def answered(self, replies: list[Reply], error: Exception | None) -> None:
        """The ``done`` of every question."""
        asked_at, self._asked_at = self._asked_at, None
        self._sharing.promise(self, 0)
        if error is not None:
            self._answer_due = math.inf
            return
        loop = asyncio.get_running_loop()
        reply = replies[0] if len(replies) == 1 else replies
        fault = next((r for r in replies if isinstance(r, Exception)), None)
        if fault is not None:
            self._fault(fault)
        elif self.take(reply):
            self._perhaps = True
        elif not self._link.waits_for_ring and loop.time() - (asked_at or 0.0) < min(_PAUSE, self._block):
            self._pause = loop.call_later(_PAUSE, self._go_on)
        self._woke, self._answer_due = False, math.inf
        if self.stopping:
            self._quiet.set()
        elif self._pause is None:
            self._go_on()

    def _fault(self, fault: Exception) -> None:
        text = str(fault)
        loop = asyncio.get_running_loop()
        self._perhaps = True
        if "NOGROUP" in text or "UNBLOCKED" in text:
            self.prepare()  # the stream was deleted under us
            self.uprooted()
        else:
            self.answers.problem(f"{self.name}: {text}")
            if self._link.waits_for_ring and not _is_of_all(fault):
                self._pause = loop.call_later(_ASIDE, self._go_on)  # the others' questions are answered
                return
            self._link.fail(BusUnavailable(text))
        self._pause = loop.call_later(_PAUSE, self._go_on)

    # --- upkeep ------------------------------------------------------------------------------------------

    def upkeep_soon(self) -> None:
        """There is more to look for: at once."""
        if self._upkeep is not None:
            self._upkeep.cancel()
        self._upkeep = asyncio.get_running_loop().call_soon(self._keep_up)  # type: ignore[assignment]

    def _what_time(self) -> Operation:
        asked_at = time.time()
        self._ask_time_at = time.monotonic() + ASK_EVERY

        def told(replies: list[Reply], error: Exception | None) -> None:
            if error is None and isinstance(replies[0], list):  # not where we may not ask it
                seconds, microseconds = replies[0]
                self.clock.noted(asked_at, int(seconds) + int(microseconds) / 1e6)

        return Operation(command(b"TIME"), 1, told, key=self.key)

    def _keep_up(self) -> None:
        if self._late():
            self._woke = True  # what the question brings that was asked before may be another's
        self._upkeep_due = math.inf
        if not self.stopping or not self.idle:
            interval = self.upkeep_interval
            self._upkeep_due = time.monotonic() + interval
            self._upkeep = asyncio.get_running_loop().call_later(interval, self._keep_up)
            self.upkeep()
            if time.monotonic() >= self._ask_time_at:
                self.answers.submit(self._what_time())
            if self._link.waits_for_ring and not self.stopping:
                self._rung()  # a server that was replaced behind our back tells nothing


def _is_of_all(fault: Exception) -> bool:
    """Whether it is not about this queue, but about the server or our rights there."""
    return isinstance(fault, ReplyError) and fault.code in ELSEWHERE | (REFUSALS - {"NOPERM"})
