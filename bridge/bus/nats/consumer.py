"""Requests from a NATS queue group, until drained without a loss. Never pulls: core NATS pushes."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from bridge.bus.base import Delivery
from bridge.bus.nats.entry import dead_letter
from bridge.bus.nats.keeper import LinkKeeper
from bridge.bus.nats.link import NatsLink
from bridge.bus.nats.listener import Listener
from bridge.bus.nats.reading import Incoming
from bridge.bus.nats.service import Endpoint
from bridge.errors import BusUnavailable

QUEUE_GROUP = "esl-bridge"
DEAD_LETTERS = "esl.dead"
LINGER = 0.25
"""Seconds after the server confirmed our UNSUB in which requests still arrive (seen under load)."""
NO_HEADERS: Mapping[str, str] = {}


class Outgoing(Protocol):
    """Where replies and dead letters go."""

    dead_letters: str

    @property
    def max_payload(self) -> int:
        """See ``Bus``."""

    def send(self, address: str, payload: bytes, content_type: str, headers: Mapping[str, str] | None = None) -> None:
        """See ``Bus``."""


class NatsDelivery:
    """One request. See ``Delivery``."""

    __slots__ = ("_began", "_endpoint", "_message", "_outgoing", "payload", "queue", "reply_to")

    entry_id = ""
    queued_at: float | None = None
    claimed = False
    doubtful = False
    pulled = False
    told = b""
    perhaps_lost_at = math.inf

    def __init__(self, message: Incoming, queue: str, endpoint: Endpoint, outgoing: Outgoing) -> None:
        self.payload: bytes = message.data
        self.queue = queue
        self.reply_to: str = message.reply
        self._message = message
        self._endpoint = endpoint
        self._outgoing = outgoing
        self._began = time.perf_counter_ns()

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
        if address:
            self._outgoing.send(address, payload, content_type, headers)
        error = headers.get("Nats-Service-Error", "") if headers else ""
        self._endpoint.finished(time.perf_counter_ns() - self._began, error)

    def reject(self, reason: str) -> None:
        """See ``Delivery``: the request as it came goes to the dead letter subject."""
        payload, headers = dead_letter(self.payload, reason, self.queue, 1, self._outgoing.max_payload)
        self._outgoing.send(self._outgoing.dead_letters, payload, self.headers.get("Content-Type", "")[:128], headers)
        self._endpoint.finished(time.perf_counter_ns() - self._began, headers["Esl-Bridge-Reason"])

    def still_ours(self, told: Callable[[bool | None], None]) -> None:
        """See ``Delivery``: never asked for, nobody else can have it."""
        told(True)

    def let_go(self) -> None:
        """See ``Delivery``: never asked for, nobody else can have it."""


class NatsConsumer:
    """A queue being consumed. See ``Consumer``."""

    def __init__(
        self,
        keeper: LinkKeeper,
        queue: str,
        endpoint: Endpoint,
        handler: Callable[[Delivery], None],
        outgoing: Outgoing,
        guard: Callable[[NatsLink], Awaitable[None]],
    ) -> None:
        def arrived(message: Incoming) -> None:
            handler(NatsDelivery(message, queue, endpoint, outgoing))

        self.queue = queue
        self.endpoint = endpoint
        self.listener = Listener(queue, QUEUE_GROUP, arrived, guard)
        self._keeper = keeper
        self._drained: asyncio.Task[None] | None = None
        self.on_drained: Callable[[NatsConsumer], None] = lambda _consumer: None

    def resume(self) -> None:
        """Nothing to tell: core NATS does not ask."""

    async def drain(self, grace: float) -> None:
        """UNSUB, PING/PONG, then go on taking for a moment. See ``Consumer``."""
        if self._drained is None:
            self._drained = asyncio.create_task(self._drain(grace), name=f"drain {self.queue}")
        await asyncio.shield(self._drained)

    async def _drain(self, grace: float) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + grace
        self._keeper.remove(self.listener)
        self.on_drained(self)
        listener = self.listener
        link, handle = listener.link, listener.handle
        if link is None or handle is None or not link.alive:
            return
        with contextlib.suppress(BusUnavailable, TimeoutError):
            link.wire.unsubscribe(handle)
            async with asyncio.timeout_at(deadline):
                await link.confirm()
                await asyncio.sleep(LINGER)
        if link.alive:
            link.wire.forget(handle)
        listener.handle = None
