"""What the two queues that are pulled share: ask when there is room, wait when there is none, stop without loss.

This room never says which command takes an entry.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from bridge.bus.base import Delivery
from bridge.bus.redis.answers import Answers
from bridge.bus.redis.link import Link, Operation, ignore
from bridge.bus.redis.wire import Reply, command
from bridge.errors import BusUnavailable

_PAUSE = 0.05  # s; before asking again when a server does not wait as it was asked to, or refuses
_UNKNOWN_ROOM = 256
Done = Callable[[list[Reply], Exception | None], None]


class Pull(ABC):
    """A consumer that asks for entries, one question at a time, on a connection of its own."""

    def __init__(
        self,
        name: str,
        handler: Callable[[Delivery], None],
        room: Callable[[], int] | None,
        *,
        link: Link,
        answers: Answers,
        block: float,
        peers: Sequence[Pull] = (),
    ) -> None:
        self.name = name
        self.key = name.encode()
        self._handler = handler
        self._room = room
        self._link = link
        self.answers = answers
        self._block = block
        self._peers = peers
        """Those that may draw on the same room."""
        self.promised = 0
        """How many entries the question that is asked may bring."""
        self._short = False  # others ask for all the room
        self._unblocking = False
        self._asked_at: float | None = None
        self._pause: asyncio.TimerHandle | None = None
        self._upkeep: asyncio.TimerHandle | None = None
        self.stopping = False
        self._quiet = asyncio.Event()
        link.on_up = self._up
        link.on_down = self._down

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
        await self._link.close()
        self._free_promise()
        if unanswered:
            self.give_back()

    def close(self) -> None:
        """End the upkeep: what is still in hand will be claimed by others."""
        self.stopping = True
        for timer in (self._upkeep, self._pause):
            if timer is not None:
                timer.cancel()

    async def disconnect(self) -> None:
        """End the consumer's connection."""
        self.close()
        await self._link.close()

    def room_left(self) -> int:
        """How many entries may be taken now: one, or more where others do not ask for them already."""
        if self._room is None:
            return _UNKNOWN_ROOM
        room = self._room()
        return min(room, max(1, self._common_room() - self._promised_to_others()))

    def _common_room(self) -> int:
        """What all peers draw on; the room of one may be less for a reason of its own (a line that is full)."""
        return max(one._room() for one in (self, *self._peers) if one._room is not None)

    def _promised_to_others(self) -> int:
        return sum([one.promised for one in self._peers if one is not self])

    def _share(self) -> int:
        """How many to ask for: what is left, divided with those who do not ask yet.

        One where all that is left was asked for by others, whose queues may be idle for long; but together no more
        than one each above the room: then the greatest of their questions is asked anew.
        """
        if self._room is None:
            return _UNKNOWN_ROOM
        room = self._room()
        if room <= 0:
            self._short = False
            return 0
        others = [one for one in self._peers if one is not self]
        left = self._common_room() - self._promised_to_others()
        if left > 0:
            share = left // (1 + sum([not one.promised and not one.stopping for one in others]))
            return min(room, max(1, share))
        self._short = -left > len(others)
        if not self._short:
            return 1
        max(others, key=lambda one: one.promised).ask_anew()
        return 0

    def ask_anew(self) -> None:
        """End the question that waits: others are short of what it may bring."""
        if self._asked_at is not None and self._link.connected and not self._unblocking:
            self._unblocking = self._unblock(self._unblocked)

    def _unblocked(self, replies: list[Reply], error: Exception | None) -> None:
        self._unblocking = False
        if error is None and replies[0] == 0 and any(one._short for one in self._peers):
            # The server had not come to it yet.
            asyncio.get_running_loop().call_later(_PAUSE, self.ask_anew)

    def _unblock(self, done: Done) -> bool:
        number = self._link.client_id
        if number:
            unblock = command(b"CLIENT", b"UNBLOCK", b"%d" % number)
            self.answers.submit(Operation(unblock, 1, done, key=self.key))
        return bool(number)

    def _free_promise(self) -> None:
        """Our question is answered; what it did not bring may be another's."""
        self.promised = 0
        for one in self._peers:
            if one._short:
                one._short = False
                asyncio.get_running_loop().call_soon(one.resume)

    def deliver(self, delivery: Delivery) -> None:
        """Hand an entry over."""
        try:
            self._handler(delivery)
        except Exception as error:  # a fault in the handler must not end the consumer
            asyncio.get_running_loop().call_exception_handler(
                {"message": f"the handler of {self.name} failed", "exception": error}
            )

    # --- asking ------------------------------------------------------------------------------------------

    def _up(self) -> None:
        self._asked_at = None
        self._free_promise()
        if not self.stopping:
            self.prepare()
            self._go_on()

    def _down(self, error: Exception) -> None:
        self._asked_at = None
        self._free_promise()
        self._quiet.set()

    def _go_on(self) -> None:
        self._pause = None
        if self.stopping or self._asked_at is not None or not self._link.connected:
            return
        room = self._share()
        if room > 0:
            self._asked_at = asyncio.get_running_loop().time()
            self.promised = room
            self._link.say(self.ask(room))

    def answered(self, replies: list[Reply], error: Exception | None) -> None:
        """The ``done`` of every question."""
        asked_at, self._asked_at = self._asked_at, None
        self._free_promise()
        if error is not None:
            return
        loop = asyncio.get_running_loop()
        reply = replies[0] if len(replies) == 1 else replies
        fault = next((r for r in replies if isinstance(r, Exception)), None)
        if fault is not None:
            self._fault(fault)
        elif not self.take(reply) and loop.time() - (asked_at or 0.0) < min(_PAUSE, self._block):
            self._pause = loop.call_later(_PAUSE, self._go_on)
        if self.stopping:
            self._quiet.set()
        elif self._pause is None:
            self._go_on()

    def _fault(self, fault: Exception) -> None:
        text = str(fault)
        loop = asyncio.get_running_loop()
        if "NOGROUP" in text or "UNBLOCKED" in text:
            self.prepare()  # the stream was deleted under us
        else:
            self.answers.problem(f"{self.name}: {text}")
            self._link.fail(BusUnavailable(text))
        self._pause = loop.call_later(_PAUSE, self._go_on)

    # --- upkeep ------------------------------------------------------------------------------------------

    def upkeep_soon(self) -> None:
        """There is more to look for: at once."""
        if self._upkeep is not None:
            self._upkeep.cancel()
        self._upkeep = asyncio.get_running_loop().call_soon(self._keep_up)  # type: ignore[assignment]

    def _keep_up(self) -> None:
        if not self.stopping or not self.idle:
            self._upkeep = asyncio.get_running_loop().call_later(self.upkeep_interval, self._keep_up)
            self.upkeep()
