"""A bus inside this process, for tests and for users' own tests. Never leaves the process, keeps nothing.

Buses with the same URL (``memory://<name>``) share one broker. It behaves like NATS: topics are pushed, a queue goes
round its consumers, a request that nobody can take is told, replies need no address of the caller's own.
"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from weakref import WeakValueDictionary

from bridge.bus.appending import Pipeline
from bridge.bus.base import BusState, Consumer, Delivery, Message, Received, StreamSpec, Subscription
from bridge.bus.clock import BrokerClock
from bridge.bus.memory_records import MemoryRecords, RecordShelf
from bridge.bus.memory_storage import MemoryShelf, MemoryStorage
from bridge.bus.patterns import Matcher, pattern_matcher
from bridge.bus.rights import Use
from bridge.errors import BusUnavailable, ConfigError, MessageTooLarge, NoConsumer, PublishWithdrawn

DEFAULT_MAX_PAYLOAD = 1 << 20
HELD_REPLIES = 10_000
"""Replies that wait for the broker to come back; the oldest are dropped first."""

TopicHandler = Callable[[Received], None]


class _Topic:
    """A subscribed pattern."""

    def __init__(self, broker: MemoryBroker, pattern: str, handler: TopicHandler) -> None:
        self._broker = broker
        self.matches: Matcher = pattern_matcher(pattern)
        self.handler = handler
        broker.topics.append(self)

    async def close(self) -> None:
        if self in self._broker.topics:
            self._broker.topics.remove(self)

    def hand_over(self, received: Received) -> None:
        if self in self._broker.topics:
            self.handler(received)


class MemoryBroker:
    """What the buses of one name share. ``stop`` and ``start`` play an outage; ``dead`` holds the dead letters."""

    def __init__(self) -> None:
        self.running = True
        self.max_payload = DEFAULT_MAX_PAYLOAD
        self.topics: list[_Topic] = []
        self.queues: dict[str, list[_MemoryConsumer]] = {}
        self.streams: dict[str, list[Message]] = {}
        self.dead: list[tuple[str, bytes, str]] = []
        """``(queue, payload, reason)`` of each rejected request."""
        self.buses: list[MemoryBus] = []
        self.records = RecordShelf()
        self.shelf = MemoryShelf()

    def stop(self) -> None:
        """The broker goes away; every bus notices."""
        self.running = False
        for bus in list(self.buses):
            bus._lost()

    def start(self) -> None:
        """The broker is back; every bus notices."""
        self.running = True
        for bus in list(self.buses):
            bus._back()

    def publish(self, received: Received) -> None:
        """Hand a message to every matching listener, after this turn of the loop."""
        loop = asyncio.get_running_loop()
        for topic in self.topics:
            if topic.matches(received.topic):
                loop.call_soon(topic.hand_over, received)

    def put(self, queue: str, payload: bytes, headers: Mapping[str, str], reply_to: str) -> bool:
        """Give a request to the next consumer of the queue; False when there is none."""
        consumers = self.queues.get(queue)
        if not consumers:
            return False
        consumers.append(consumers.pop(0))
        asyncio.get_running_loop().call_soon(
            consumers[-1].handler, MemoryDelivery(self, queue, payload, headers, reply_to)
        )
        return True


_brokers: WeakValueDictionary[str, MemoryBroker] = WeakValueDictionary()


class MemoryDelivery:
    """See ``Delivery``."""

    entry_id = ""
    queued_at: float | None = None
    claimed = False
    doubtful = False
    pulled = False
    told = b""
    perhaps_lost_at = math.inf

    def __init__(
        self, broker: MemoryBroker, queue: str, payload: bytes, headers: Mapping[str, str], reply_to: str
    ) -> None:
        self._broker = broker
        self.queue = queue
        self.payload = payload
        self.headers = headers
        self.reply_to = reply_to

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
        _check_size(len(payload), self._broker.max_payload)
        if address:
            self._broker.publish(Received(address, payload, content_type, headers or {}))

    def reject(self, reason: str) -> None:
        """See ``Delivery``."""
        self._broker.dead.append((self.queue, self.payload, reason))

    def still_ours(self, told: Callable[[bool | None], None]) -> None:
        """See ``Delivery``: never asked for, nobody else can have it."""
        told(True)

    def let_go(self) -> None:
        """See ``Delivery``: never asked for, nobody else can have it."""


class _MemoryConsumer:
    def __init__(self, broker: MemoryBroker, queue: str, handler: Callable[[Delivery], None]) -> None:
        self._broker = broker
        self._queue = queue
        self.handler = handler
        broker.queues.setdefault(queue, []).append(self)

    def resume(self) -> None:
        """Nothing to tell: this bus pushes."""

    async def drain(self, grace: float) -> None:
        """See ``Consumer``."""
        consumers = self._broker.queues.get(self._queue, [])
        if self in consumers:
            consumers.remove(self)
        await asyncio.sleep(0)  # what was put before is handed over in this turn


class MemoryBus:
    """See ``Bus`` and ``DurableTopics``. ``broker`` is open to tests: ``bus.broker.stop()``."""

    append_publishes = False

    def __init__(self, url: str = "memory://") -> None:
        scheme, found, name = url.partition("://")
        if scheme != "memory" or not found:
            raise ConfigError("bus.url: expected memory://[name]")
        self.url = url
        self.broker = _brokers.setdefault(name, MemoryBroker())
        self.on_state: Callable[[BusState], None] = lambda _state: None
        self.on_broken: Callable[[], None] = lambda: None
        self.on_denied: Callable[[str], None] = lambda _topic: None
        self.confirmed = 0
        self.connected = False
        self.roll_call = ""
        self.clock = BrokerClock()
        self.storage = MemoryStorage(self, self.broker.shelf, lambda to, data: self.broker.publish(Received(to, data)))
        self.records = MemoryRecords(self, self.broker.records)
        self._published = 0
        self._held: deque[Received] = deque(maxlen=HELD_REPLIES)

    @property
    def max_payload(self) -> int:
        """See ``Bus``."""
        return self.broker.max_payload

    def apart(self, queue: str) -> bool:
        """See ``Bus``: no entry outlives its worker here."""
        return False

    async def refused(self, uses: Sequence[Use]) -> list[Use]:
        """See ``Bus``: everybody may do everything."""
        return []

    async def servers(self) -> int | None:
        """See ``Bus``."""
        return None

    async def connect(self, timeout: float) -> None:
        """See ``Bus``."""
        if not self.broker.running:
            raise BusUnavailable("the memory broker is stopped")
        self.start()

    def start(self) -> None:
        """See ``Bus``."""
        if self not in self.broker.buses:
            self.broker.buses.append(self)
            if self.broker.running:
                self._back()

    async def close(self) -> None:
        """See ``Bus``."""
        if self in self.broker.buses:
            self.broker.buses.remove(self)
        if self.connected:
            self.connected = False
            self.on_state(BusState(False, "closed"))

    def _lost(self) -> None:
        self.connected = False
        self.on_broken()
        self.on_state(BusState(False, "the memory broker is stopped"))

    def _back(self) -> None:
        self.connected = True
        self.on_state(BusState(True))
        while self._held:
            self.broker.publish(self._held.popleft())

    def _check_connected(self) -> None:
        if not self.connected:
            raise BusUnavailable("not connected to the memory broker")

    def message_size(self, message: Message) -> int:
        """See ``Bus``: the payload."""
        return len(message.payload)

    async def publish_many(self, batch: Sequence[Message], allowed: Callable[[], bool] | None = None) -> int:
        """See ``Bus``."""
        self._check_connected()
        if allowed is not None and not allowed():
            raise PublishWithdrawn
        for message in batch:
            _check_size(len(message.payload), self.max_payload)
        for message in batch:
            headers = dict(message.headers)
            if message.id:
                headers["Nats-Msg-Id"] = message.id
            self.broker.publish(Received(message.topic, message.payload, message.content_type, headers))
        self._published += 1
        asyncio.get_running_loop().call_soon(self._confirm, self._published)
        return self._published

    def _confirm(self, number: int) -> None:
        if self.connected:
            self.confirmed = max(self.confirmed, number)

    async def flush(self, timeout: float) -> None:
        """See ``Bus``."""
        self._check_connected()
        await asyncio.sleep(0)

    async def subscribe(self, pattern: str, handler: Callable[[Received], None]) -> Subscription:
        """See ``Bus``."""
        return _Topic(self.broker, pattern, handler)

    async def consume(
        self,
        queue: str,
        handler: Callable[[Delivery], None],
        *,
        room: Callable[[], int] | None = None,
        one_of_many: bool = False,
    ) -> Consumer:
        """See ``Bus``; this bus pushes and does not ask for room."""
        return _MemoryConsumer(self.broker, queue, handler)

    def send(self, address: str, payload: bytes, content_type: str, headers: Mapping[str, str] | None = None) -> None:
        """See ``Bus``."""
        _check_size(len(payload), self.max_payload)
        received = Received(address, payload, content_type, headers or {})
        if self.connected:
            self.broker.publish(received)
        else:
            self._held.append(received)

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
        """See ``Bus``."""
        self._check_connected()
        _check_size(len(payload), self.max_payload)
        address = reply_to or f"_INBOX.{secrets.token_hex(8)}"
        replies = _Topic(self.broker, address, lambda received: handler(received.payload, received.content_type))
        if not self.broker.put(queue, payload, {"Content-Type": content_type, **(headers or {})}, address):
            await replies.close()
            raise NoConsumer(f"nobody consumes {queue}")
        return replies

    def new_reply_address(self, queue: str = "") -> str:
        """Empty: the broker carries the reply address."""
        return ""

    async def ensure_stream(self, stream: StreamSpec) -> None:
        """See ``DurableTopics``."""
        self._check_connected()
        self.broker.streams.setdefault(stream.name, [])

    def appender(self, stream: StreamSpec, changed: Callable[[], None]) -> MemoryAppender:
        """See ``DurableTopics``."""
        return MemoryAppender(self, stream, changed)


class MemoryAppender(Pipeline):
    """See ``Appender``; messages with an id that the stream has are dropped."""

    def __init__(self, bus: MemoryBus, stream: StreamSpec, changed: Callable[[], None]) -> None:
        super().__init__(changed)
        self._bus = bus
        self._stream = stream

    async def append(self, batch: Sequence[Message], allowed: Callable[[], bool] | None = None) -> None:
        """See ``Appender``."""
        self.check()
        if not self._bus.connected:
            self.fail("not connected to the memory broker")
            self.check()
        for message in batch:
            _check_size(len(message.payload), self._bus.max_payload)
        if allowed is not None and not allowed():
            raise PublishWithdrawn
        kept = self._bus.broker.streams.setdefault(self._stream.name, [])
        known = {message.id for message in kept if message.id}
        for message in batch:
            if message.id not in known:
                kept.append(message)
                if message.id:
                    known.add(message.id)
        self.written += len(batch)
        self.confirm(self.written)


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise MessageTooLarge(size, limit)
