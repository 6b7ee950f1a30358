"""Where a worker's requests come from: the shared queues and the own queues of its nodes; and which ledger is used.

This room only asks the bus and hands over to the command path; it never looks into a request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

import structlog

from bridge.bus.base import Bus, Consumer, Delivery
from bridge.config.settings import CommandSettings
from bridge.errors import BusRefused, BusUnavailable
from bridge.relay.commands import CommandRelay
from bridge.relay.ledger import Ledger
from bridge.relay.refusals import Refusals
from bridge.relay.shared_ledger import SharedLedger, lasting

log = structlog.get_logger(__name__)

# How long until a bus that was away is asked again, in seconds.
AGAIN = 1.0
# Between two looks whether a node serves by now, only while the worker starts, in seconds.
A_MOMENT = 0.02


class Reach(Protocol):
    """Whether requests of the shared queues can be run from here (``bridge.reach`` fulfils it)."""

    @property
    def near(self) -> bool:
        """Whether a node was reached."""

    def able(self) -> bool:
        """False while none is and another worker serves one: the requests are left to it."""


class Queues:
    """One worker's. ``ledger`` is what it begins with, its own memory; ``instance`` names this life of the worker."""

    def __init__(
        self,
        bus: Bus,
        relay: CommandRelay,
        commands: CommandSettings,
        reach: Reach,
        *,
        scheme: str,
        instance: str,
        ledger: Ledger,
    ) -> None:
        self.names = commands.queues(scheme)
        self.ledger = ledger
        self._bus = bus
        self._relay = relay
        self._reach = reach
        self._commands = commands
        self._instance = instance
        self._refusals: Refusals | None = None
        self._consumers: list[Consumer] = []
        self._chosen = asyncio.Event()

    @property
    def taken(self) -> bool:
        """Whether the shared queues are consumed."""
        return len(self._consumers) == len(self.names)

    async def take(self, patience: float) -> None:
        """Choose the ledger and consume the shared queues; returns when that is done.

        Before that it waits at most ``patience`` s for a node to be reached: what came sooner would be answered
        ``unavailable`` although another worker could have served it. Raises ``BusRefused`` where the broker refuses.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + patience
        while not self.taken:
            try:
                if not self._chosen.is_set():
                    await self._choose_ledger()
                    self._chosen.set()
                while not self._reach.near and loop.time() < deadline:
                    self._reach.able()
                    await asyncio.sleep(A_MOMENT)
                for name in self.names[len(self._consumers) :]:
                    self._consumers.append(await self._consume(name, self._room))
            except BusUnavailable as error:
                log.warning("requests cannot be taken yet", reason=str(error))
                await asyncio.sleep(AGAIN)
        log.info("requests are taken", queues=list(self.names), ledger="shared" if self.ledger.shared else "per worker")

    async def take_node(self, node: str) -> Consumer:
        """Consume the node's own queues. Raises ``BusError``."""
        await self._chosen.wait()
        room = self._relay.room_in_line
        return _Several(
            [await self._consume(f"{name}.{node}", lambda: room(node), one_of_many=True) for name in self.names]
        )

    def resume(self) -> None:
        """There is room again."""
        for consumer in self._consumers:
            consumer.resume()

    async def drain(self, grace: float) -> None:
        """See ``Consumer.drain``, for the shared queues."""
        await asyncio.gather(*(consumer.drain(grace) for consumer in self._consumers), return_exceptions=True)

    def close(self) -> None:
        """Everything is answered; what is not counts as lost."""
        if self._refusals is not None:
            self._refusals.close()
        if isinstance(self.ledger, SharedLedger):
            self.ledger.close()

    def _room(self) -> int:
        return self._relay.room() if self._reach.able() else 0

    async def _consume(self, name: str, room: Callable[[], int], *, one_of_many: bool = False) -> Consumer:
        def accept(delivery: Delivery) -> None:
            self._relay.accept(delivery)

        return await self._bus.consume(name, accept, room=room, one_of_many=one_of_many)

    async def _choose_ledger(self) -> None:
        self._refusals = await self._open_refusals()
        shared = await self._open_shared_ledger()
        if shared is not None:
            self.ledger = shared
        self._relay.use(self.ledger, self._refusals)

    async def _open_refusals(self) -> Refusals | None:
        """The records of entries, where a reply and its entry's removal are two steps."""
        commands = self._commands
        if not any(self._bus.apart(name) for name in self.names):
            return None
        refusals = Refusals(
            self._bus.records,
            instance=self._instance,
            lasting=lasting(commands.dedup_window, commands.claim_after),
            claim_after=commands.claim_after,
        )
        try:
            await refusals.open()
        except BusRefused as error:
            log.warning("a request answered no by a worker that dies just then may run after all", reason=str(error))
            return None
        return refusals

    async def _open_shared_ledger(self) -> SharedLedger | None:
        commands = self._commands
        if commands.ledger == "memory":
            return None
        shared = SharedLedger(
            self._bus.records,
            instance=self._instance,
            window=commands.dedup_window,
            claim_after=commands.claim_after,
        )
        try:
            await shared.open()
        except BusRefused as error:
            if commands.ledger == "shared":
                raise
            log.warning("the ledger is this worker's own", reason=str(error))
            return None
        return shared


class _Several:
    """Consumers that are one to their owner."""

    def __init__(self, consumers: list[Consumer]) -> None:
        self._consumers = consumers

    def resume(self) -> None:
        for consumer in self._consumers:
            consumer.resume()

    async def drain(self, grace: float) -> None:
        await asyncio.gather(*(consumer.drain(grace) for consumer in self._consumers))
