"""The NATS bus: one link kept up, everything else hangs on it. Never knows what the bytes mean."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from bridge.bus.base import BusState, Consumer, Delivery, Message, Received, ServiceCard, Subscription
from bridge.bus.nats import rights
from bridge.bus.nats.address import NatsAddress, NatsFiles
from bridge.bus.nats.consumer import DEAD_LETTERS, QUEUE_GROUP, NatsConsumer
from bridge.bus.nats.durable import DurableQueues, QueueNames
from bridge.bus.nats.inbox import Inbox, is_no_responders
from bridge.bus.nats.jetstream import JetStream, check_not_captured
from bridge.bus.nats.keeper import LinkKeeper
from bridge.bus.nats.link import NatsLink
from bridge.bus.nats.listener import Listener
from bridge.bus.nats.questions import Questions, Unanswered
from bridge.bus.nats.reading import Incoming
from bridge.bus.nats.records import NatsRecords
from bridge.bus.nats.render import check_subject, message_size, render_one
from bridge.bus.nats.service import Endpoint, NatsService
from bridge.bus.nats.storage import NatsStorage
from bridge.bus.patterns import widened
from bridge.bus.rights import Use
from bridge.errors import BusError, BusUnavailable, MessageTooLarge, PublishWithdrawn

log = logging.getLogger(__name__)

WINDOW = 4 << 20
"""Unconfirmed bytes at which publishing waits."""
HELD_BYTES = 8 << 20
"""Bytes of replies that wait for the bus to come back; the oldest are dropped first."""
DEFAULT_MAX_PAYLOAD = 1 << 20
CLOSE_TIMEOUT = 2.0
LOOK_AGAIN = 60.0
"""Seconds between two looks whether the server's ``max_payload`` was raised, while messages are over it."""

_Reply = tuple[str, bytes, str, Mapping[str, str] | None]


class _TopicSubscription:
    def __init__(self, keeper: LinkKeeper, listener: Listener) -> None:
        self._keeper = keeper
        self._listener = listener

    async def close(self) -> None:
        self._keeper.remove(self._listener)
        self._listener.detach()


class NatsBus(JetStream):
    """See ``Bus`` and ``DurableTopics``.

    ``url`` is ``nats://`` or ``tls://`` with one or more servers. ``user``, ``password``, ``token`` stand in for what
    the URL does not say; ``files`` names credentials, nkey and TLS files. Raises ``ConfigError`` for a bad URL.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str = "",
        user: str = "",
        password: str = "",
        token: str = "",
        files: NatsFiles | None = None,
        service: ServiceCard | None = None,
        dead_letters: str = DEAD_LETTERS,
        claim_after: float = 30.0,
        durable: QueueNames | None = None,
        inbox_prefix: str = "_INBOX",
        window: int = WINDOW,
        rng: random.Random | None = None,
    ) -> None:
        address = NatsAddress.parse(url, user=user, password=password, token=token)
        self.url = address.redacted
        self.on_state: Callable[[BusState], None] = lambda _state: None
        self.on_broken: Callable[[], None] = lambda: None
        self.on_denied: Callable[[str], None] = lambda _topic: None
        self.confirmed = 0
        self.dead_letters = dead_letters
        self._published = 0
        self._window = window
        self._keeper = keeper = LinkKeeper(address, files or NatsFiles(), name, rng)
        keeper.on_state = lambda state: self.on_state(state)
        keeper.on_lost = self._lost
        keeper.on_up = self._up
        keeper.on_confirmed = self._confirm
        keeper.on_denied = lambda topic: self.on_denied(topic)
        self._inbox = Inbox(keeper, inbox_prefix)
        self._service = NatsService(keeper, service or ServiceCard(), lambda to, data: self.send(to, data, ""))
        # A lease that waits behind megabytes of events is lost: the storage has a connection of its own, once asked.
        self._storage_keeper = LinkKeeper(address, files or NatsFiles(), name, rng)
        self.storage = NatsStorage(self._storage_keeper, inbox_prefix)
        self._storage_keeper.on_lost = lambda: self.storage.lost("the connection broke")
        self._questions = Questions(keeper, inbox_prefix)
        self.records = NatsRecords(keeper, self._questions, inbox_prefix, self.leave_soon)
        self.roll_call = f"$SRV.PING.{(service or ServiceCard()).name}"
        names = durable or QueueNames(dead=dead_letters)
        self._durable = DurableQueues(keeper, inbox_prefix, self, names=names, claim_after=claim_after)
        self.clock = self._durable.clock
        self._held: deque[_Reply] = deque()
        self._held_bytes = 0
        self._leaving = False
        self._max_payload = DEFAULT_MAX_PAYLOAD
        self._looking: asyncio.Task[None] | None = None
        self._look_again_at = 0.0
        JetStream.__init__(self, keeper, inbox_prefix)

    # --- the connection ----------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """See ``Bus``."""
        return self._keeper.link is not None

    def apart(self, queue: str) -> bool:
        """See ``Bus``."""
        return self._durable.covers(queue)

    @property
    def state(self) -> BusState:
        """The last state that was told."""
        return self._keeper.state

    @property
    def max_payload(self) -> int:
        """The server's ``max_payload``; headers count."""
        return self._max_payload

    async def refused(self, uses: Sequence[Use]) -> list[Use]:
        """See ``Bus``."""
        return await rights.refused(self._questions, uses)

    async def servers(self) -> int | None:
        """See ``Bus``."""
        return self._keeper.current().servers

    async def connect(self, timeout: float) -> None:
        """See ``Bus``."""
        await self._keeper.connect(timeout)

    def start(self) -> None:
        """See ``Bus``."""
        self._keeper.start()

    async def close(self) -> None:
        """See ``Bus``."""
        with contextlib.suppress(BusUnavailable):
            if self.connected:
                await self._durable.settle(CLOSE_TIMEOUT)
                await self.flush(CLOSE_TIMEOUT)
        self._durable.close()
        if self._looking is not None:
            self._looking.cancel()
        await self._storage_keeper.stop()
        await self._keeper.stop()

    def _lost(self) -> None:
        self.records.lost("the connection broke")
        self._durable.lost("the connection broke")
        self.break_off("the connection broke")
        self.on_broken()

    def _confirm(self, number: int) -> None:
        self.confirmed = max(self.confirmed, number)

    # --- publishing --------------------------------------------------------------------------------

    def message_size(self, message: Message) -> int:
        """See ``Bus``: payload and header block."""
        size = message_size(message)
        if size > self._max_payload:
            self._doubt_limit()
        return size

    def _doubt_limit(self) -> None:
        """Something is over the limit: look whether somebody has raised it since we connected."""
        loop = asyncio.get_running_loop()
        if self._looking is None and self._keeper.link is not None and loop.time() >= self._look_again_at:
            self._look_again_at = loop.time() + LOOK_AGAIN
            self._looking = loop.create_task(self._look_at_limit(self._keeper.link), name="nats limit")

    async def _look_at_limit(self, link: NatsLink) -> None:
        try:
            with contextlib.suppress(BusError):
                limit = await self._keeper.max_payload()
                if limit > link.wire.limit and link is self._keeper.link:
                    log.info("the server takes up to %d bytes now", limit)
                    self._max_payload = link.wire.limit = limit
        finally:
            self._looking = None

    async def publish_many(self, batch: Sequence[Message], allowed: Callable[[], bool] | None = None) -> int:
        """See ``Bus``."""
        link = self._keeper.current()
        while link.unconfirmed >= self._window:
            await link.room()
            link = self._keeper.current()
        if allowed is not None and not allowed():
            raise PublishWithdrawn
        number = self._published + 1
        try:
            link.write_batch(batch, number)
        except Exception:
            link.write()  # the replies that were gathered before it leave all the same
            raise
        self._published = number
        return number

    async def flush(self, timeout: float) -> None:
        """See ``Bus``."""
        link = self._keeper.current()
        try:
            async with asyncio.timeout(timeout):
                await link.confirm()
        except TimeoutError:
            raise BusUnavailable(f"no confirmation within {timeout:g} s") from None

    def send(
        self,
        address: str,
        payload: bytes,
        content_type: str,
        headers: Mapping[str, str] | None = None,
        reply: str = "",
    ) -> None:
        """See ``Bus``; ``reply`` is the message's own reply subject."""
        link = self._keeper.link
        if link is None:
            self._hold(address, payload, content_type, headers)
            return
        link.wire.add(address, reply, payload, content_type, headers)
        self.leave_soon()

    def leave_soon(self) -> None:
        """Write what was gathered at the end of the next turn of the loop.

        Not of this one: what other sockets have ready by then goes along, for one look at them and no waiting.
        """
        if not self._leaving:
            self._leaving = True
            loop = asyncio.get_running_loop()
            loop.call_soon(loop.call_soon, self._leave)

    def check_size(self, payload: bytes, headers: Mapping[str, str] | None) -> None:
        """Raise ``MessageTooLarge`` for a reply that the server would refuse."""
        if len(payload) + 1024 > self._max_payload:
            render_one("_", "", payload, "application/msgpack", headers, self._max_payload)

    def _leave(self) -> None:
        """Write the replies at once."""
        self._leaving = False
        link = self._keeper.link
        if link is not None:
            link.write()

    def _hold(self, address: str, payload: bytes, content_type: str, headers: Mapping[str, str] | None) -> None:
        """Keep a reply until the bus is back."""
        render_one(address, "", payload, content_type, headers, self._max_payload)
        self._held.append((address, payload, content_type, headers))
        self._held_bytes += len(payload)
        while self._held_bytes > HELD_BYTES:
            self._held_bytes -= len(self._held.popleft()[1])

    def _up(self, link: NatsLink) -> None:
        self._max_payload = link.wire.limit
        for address, payload, content_type, headers in self._held:
            # This server may have a lower limit than the one that the reply was checked against.
            with contextlib.suppress(MessageTooLarge):
                link.wire.add(address, "", payload, content_type, headers)
        self._held.clear()
        self._held_bytes = 0
        link.write()
        self._durable.up()

    # --- listening ---------------------------------------------------------------------------------

    async def subscribe(self, pattern: str, handler: Callable[[Received], None]) -> Subscription:
        """See ``Bus``. Raises ``BusRefused`` when the server denies it and ``ValueError`` for a bad pattern."""
        subject, matches = widened(pattern)

        def arrived(message: Incoming) -> None:
            if matches is not None and not matches(message.subject):
                return
            headers = message.headers
            if not headers:
                handler(Received(message.subject, message.data))
            elif not is_no_responders(message):
                handler(Received(message.subject, message.data, headers.get("Content-Type", ""), headers))

        listener = Listener(subject, "", arrived)
        await self._keeper.add(listener)
        return _TopicSubscription(self._keeper, listener)

    async def consume(
        self,
        queue: str,
        handler: Callable[[Delivery], None],
        *,
        room: Callable[[], int] | None = None,
        one_of_many: bool = False,
    ) -> Consumer:
        """See ``Bus``. Raises ``BusRefused`` when a JetStream stream captures the queue's subject.

        A durable queue (``esl.queue``, ``esl.queue.<node>``) is pulled from JetStream;
        ``BusRefused`` where there is none.
        """
        check_subject(queue)
        if self._durable.covers(queue):
            return await self._durable.consume(queue, handler, room)

        async def guard(link: NatsLink) -> None:
            await check_not_captured(link, queue)

        endpoint = Endpoint(queue, QUEUE_GROUP)
        consumer = NatsConsumer(self._keeper, queue, endpoint, handler, self, guard)
        consumer.on_drained = lambda it: self._service.remove(it.endpoint)
        await self._keeper.add(consumer.listener)
        await self._service.add(endpoint)
        return consumer

    async def request(
        self,
        queue: str,
        payload: bytes,
        content_type: str,
        handler: Callable[[bytes, str], None],
        *,
        reply_to: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> Subscription:
        """See ``Bus``. ``reply_to`` is for durable queues: elsewhere the broker carries the reply subject."""
        if not reply_to:
            return await self._inbox.request(queue, payload, content_type, handler, dict(headers) if headers else None)
        replies: Subscription
        if self._inbox.owns(reply_to):
            replies = await self._inbox.expect(reply_to, handler)
        else:
            replies = await self.subscribe(reply_to, lambda received: handler(received.payload, received.content_type))
        try:
            if self._durable.covers(queue):
                # Perhaps stored: the reply will show; the caller's own timeout is the answer where none comes.
                with contextlib.suppress(Unanswered):
                    await self._durable.put(queue, payload, content_type, headers)
            else:
                link = self._keeper.current()
                link.wire.add(queue, reply_to, payload, content_type, headers)
                link.write()
        except BaseException:
            await replies.close()
            raise
        return replies

    def new_reply_address(self, queue: str = "") -> str:
        """Empty, as NATS carries the reply subject; an inbox for durable queues, where it does not."""
        return self._inbox.new_address() if self._durable.covers(queue) else ""
