"""The Redis bus: its connections and what they are for.

This room never writes a command itself.
"""

from __future__ import annotations

import asyncio
import functools
import os
import secrets
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Literal

import structlog

from bridge.bus.base import BusState, Consumer, Delivery, Message, Received, StreamSpec, Subscription
from bridge.bus.clock import BrokerClock
from bridge.bus.problems import Problems
from bridge.bus.redis import rights
from bridge.bus.redis.address import RedisUrl
from bridge.bus.redis.answers import Answers
from bridge.bus.redis.link import Link, Operation
from bridge.bus.redis.list_queue import ListQueue
from bridge.bus.redis.publish import MAX_PAYLOAD, Publisher
from bridge.bus.redis.pulling import Pull
from bridge.bus.redis.records import RedisRecords
from bridge.bus.redis.replies import ReplyLanes
from bridge.bus.redis.servers import servers_for
from bridge.bus.redis.sharing import Sharing
from bridge.bus.redis.storage import RedisStorage
from bridge.bus.redis.stream_appender import StreamAppender
from bridge.bus.redis.stream_queue import StreamQueue
from bridge.bus.redis.topics import Topics
from bridge.bus.redis.watch import Share, Watch
from bridge.bus.redis.wire import Reply, ReplyError, WireOptions, command, tls_context
from bridge.bus.redis.writers import Writers
from bridge.bus.rights import Use
from bridge.errors import BusRefused, BusUnavailable, MessageTooLarge

log = structlog.get_logger(__name__)

_SETTLE = 2.0  # s; what close() waits for what was gathered


class RedisBus:
    """A ``Bus`` over Redis or Valkey (6.2 or later): one server, Sentinels or a Cluster.

    ``queue_type`` says how queues are kept. ``worker`` names this worker to the others (its entries in hand bear the
    name); after ``claim_after`` seconds of its silence they claim what it had. Lists of replies live ``reply_ttl``
    seconds, dead letters go to the stream ``dead``. A connection that is idle
    is proven alive every ``pulse`` seconds, and given up when an answer is owed for ``silence`` seconds.
    Raises ``ConfigError``.
    """

    append_publishes = False

    def __init__(
        self,
        url: str,
        *,
        name: str = "",
        queue_type: Literal["stream", "list"] = "stream",
        worker: str = "",
        user: str = "",
        password: str = "",
        tls_ca_file: str = "",
        tls_cert_file: str = "",
        tls_key_file: str = "",
        claim_after: float = 30.0,
        reply_ttl: float = 60.0,
        dead: str = "esl.dead",
        connect_timeout: float = 5.0,
        pulse: float = 5.0,
        silence: float = 10.0,
    ) -> None:
        self._url = RedisUrl.parse(url, username=user, password=password)
        options = WireOptions(
            username=self._url.username,
            password=self._url.password,
            db=self._url.db,
            tls=tls_context(ca=tls_ca_file, cert=tls_cert_file, key=tls_key_file) if self._url.tls else None,
            name=name or "esl-bridge",
            connect_timeout=connect_timeout,
        )
        self._queue_type = queue_type
        self._worker = worker or f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self._claim_after = claim_after
        self._pulse = pulse
        self._silence = silence
        self._servers = servers_for(self._url, options)
        self._consumers: list[Pull] = []
        self._sharing = Sharing()
        self._started = False
        self._state = BusState(False, "not connected yet")
        self._changed = asyncio.Event()
        self.on_state: Callable[[BusState], None] = lambda state: None
        self.on_broken: Callable[[], None] = lambda: None
        self.on_denied: Callable[[str], None] = lambda _topic: None
        self.on_problem: Callable[[str], None] = lambda text: log.warning("redis", problem=text)
        problem = Problems(lambda text: self.on_problem(text))

        self._events = self._link(b"")
        self._publisher = Publisher(self._events)
        self._publisher.on_broken = lambda: self.on_broken()
        self._events.on_up = self._events_up
        self._events.on_down = self._events_down
        self._events.on_absent = self._absent
        self._streams: dict[bytes, Link] = {}
        self._writers = Writers(self._servers, pulse=pulse, patience=silence)
        self._writers.on_change = self._tell_state
        self._writers.on_absent = self._absent
        self._answers = Answers(self._writers, reply_ttl=reply_ttl, dead=dead, on_problem=problem)
        # A lease that waits behind megabytes of replies is lost: the storage has a connection of its own, once asked.
        self._storage_writers = Writers(self._servers, pulse=pulse, patience=silence)
        self.storage = RedisStorage(self._storage_writers)
        self.records = RedisRecords(self._writers)
        self.roll_call = ""
        self.clock = BrokerClock()
        self._watch = Watch(self._link(b""), self._cannot_watch)
        self._topics_link = Link(functools.partial(self._servers.open, b""), pulse=pulse, pushes=True)
        self._topics = Topics(self._topics_link)
        self._topics.on_problem = problem
        self._lanes = ReplyLanes(self._link, self._writers, tagged=self._servers.many)

    # --- state -------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """See ``Bus.url``."""
        return self._url.redacted

    @property
    def worker(self) -> str:
        """The name under which this worker holds entries."""
        return self._worker

    @property
    def connected(self) -> bool:
        """See ``Bus.connected``."""
        return self._events.connected and self._writers.connected

    @property
    def max_payload(self) -> int:
        """See ``Bus.max_payload``: our own limit."""
        return MAX_PAYLOAD

    def apart(self, queue: str) -> bool:
        """See ``Bus.apart``: in a Cluster the reply's key and the queue's lie apart."""
        return self._servers.many and self._queue_type == "stream"

    @property
    def confirmed(self) -> int:
        """See ``Bus.confirmed``."""
        return self._publisher.confirmed

    def message_size(self, message: Message) -> int:
        """Redis limits each value; the payload is the only large one."""
        return len(message.payload)

    async def refused(self, uses: Sequence[Use]) -> list[Use]:
        """See ``Bus.refused``."""
        return await rights.refused(self._writers, self._queue_type, uses)

    async def servers(self) -> int | None:
        """See ``Bus.servers``: Redis copies what it is set up to."""
        return None

    async def connect(self, timeout: float) -> None:
        """See ``Bus.connect``."""
        if self.connected:
            return
        try:
            async with asyncio.timeout(timeout):
                if not self._started:
                    probe = await self._servers.open()
                    probe.abort(BusUnavailable("it was a try"))
                    self.start()
                while not self._ready():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise BusUnavailable(self._state.reason or "no connection in time") from None

    def _ready(self) -> bool:
        return self._events.connected and self._writers.ready

    def start(self) -> None:
        """See ``Bus.start``."""
        if not self._started:
            self._started = True
            self._events.start()
            self._writers.start()

    async def close(self) -> None:
        """See ``Bus.close``. What is in hand stays pending, and is claimed by others."""
        # A read that is just cut off can still take an entry.
        await asyncio.gather(*(consumer.drain(_SETTLE) for consumer in self._consumers))
        if self._events.connected:
            with suppress(BusUnavailable):
                await self._publisher.flush(_SETTLE)
        await self._writers.settle(_SETTLE)
        for consumer in self._consumers:
            await consumer.disconnect()
        await self._watch.close()
        await self._lanes.close()
        await self._topics_link.close()
        for link in self._streams.values():
            await link.close()
        await self._storage_writers.close()
        await self._writers.close()
        await self._events.close()

    # --- topics ------------------------------------------------------------------------------------------

    async def publish_many(self, batch: Sequence[Message], allowed: Callable[[], bool] | None = None) -> int:
        """See ``Bus.publish_many``."""
        return await self._publisher.publish_many(batch, allowed)

    async def flush(self, timeout: float) -> None:
        """See ``Bus.flush``."""
        await self._publisher.flush(timeout)

    async def subscribe(self, pattern: str, handler: Callable[[Received], None]) -> Subscription:
        """See ``Bus.subscribe``."""
        return await self._topics.add(pattern, handler)

    async def ensure_stream(self, stream: StreamSpec) -> None:
        """See ``DurableTopics.ensure_stream``: ``XADD`` creates the key."""
        self._stream_link(stream.key.encode())

    def appender(self, stream: StreamSpec, changed: Callable[[], None]) -> StreamAppender:
        """See ``DurableTopics.appender``."""
        return StreamAppender(self._stream_link(stream.key.encode()), stream, self._worker, changed)

    # --- queues ------------------------------------------------------------------------------------------

    async def consume(
        self,
        queue: str,
        handler: Callable[[Delivery], None],
        *,
        room: Callable[[], int] | None = None,
        one_of_many: bool = False,
    ) -> Consumer:
        """See ``Bus.consume``. Raises ``BusRefused`` where the key is of another type, or forbidden."""
        if self._writers.connected:
            await self._check_queue(queue.encode())
        own = functools.partial(self._link, queue.encode())
        # The queues of a Cluster lie on several servers.
        share = one_of_many and not self._servers.many
        clock = BrokerClock() if one_of_many and self._servers.many else self.clock
        kind = ListQueue if self._queue_type == "list" else StreamQueue
        consumer: Pull = kind(
            queue,
            handler,
            room,
            link=Share(self._watch, queue.encode(), own) if share else own(),
            answers=self._answers,
            worker=self._worker,
            claim_after=self._claim_after,
            sharing=self._sharing,
            clock=clock,
        )
        self._consumers.append(consumer)
        consumer.start()
        return consumer

    async def _check_queue(self, key: bytes) -> None:
        """A queue of the wrong kind is a fault of the configuration: say so at once."""
        question = command(b"LLEN", key) if self._queue_type == "list" else command(b"XLEN", key)
        try:
            (answer,) = await self._writers.ask(key, question, 1)
        except BusUnavailable:
            return  # the broker is away: it tells when it is back
        if isinstance(answer, ReplyError) and answer.code in ("WRONGTYPE", "NOPERM"):
            raise BusRefused(f"{key.decode()} cannot be consumed as a {self._queue_type}: {answer}")

    def send(self, address: str, payload: bytes, content_type: str, headers: Mapping[str, str] | None = None) -> None:
        """See ``Bus.send``; Redis' replies have no headers."""
        if address:
            self._answers.send(address, payload)

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
        """See ``Bus.request``; nobody can tell whether somebody consumes the queue, which keeps it anyway."""
        if not self._writers.connected:
            raise BusUnavailable(self._state.reason or "the broker is away")
        if len(payload) > MAX_PAYLOAD:
            raise MessageTooLarge(len(payload), MAX_PAYLOAD)
        subscription: Subscription = _NoReplies()
        if reply_to.startswith("pubsub:"):
            subscription = await self._topics.add(reply_to[7:], lambda received: handler(received.payload, ""))
        elif reply_to:
            subscription = self._lanes.open(reply_to, handler)
        key = queue.encode()
        if self._queue_type == "list":
            commands = command(b"LPUSH", key, payload)
        else:
            extra = [text.encode() for pair in (headers or {}).items() for text in pair]
            commands = command(b"XADD", key, b"*", b"data", payload, *extra)
        written: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

        def done(replies: list[Reply], error: Exception | None) -> None:
            if not written.done():
                refused = next((reply for reply in replies if isinstance(reply, Exception)), None)
                written.set_result(refused or error)

        operation = Operation(commands, 1, done, key=key)
        self._writers.submit(operation)
        try:
            error = await written
        except BaseException:  # the caller gave up: nobody closes what he was not given yet
            await subscription.close()
            raise
        if error is not None:
            if operation.written and not isinstance(error, BusUnavailable):
                await subscription.close()
                raise BusRefused(f"{queue}: {error!s}")
            if not operation.written:
                await subscription.close()
                raise BusUnavailable(str(error))
            # Written and in doubt: the reply will show; the caller's own timeout is the answer where none comes.
        return subscription

    def new_reply_address(self, queue: str = "") -> str:
        """See ``Bus.new_reply_address``."""
        return self._lanes.new_address()

    # --- connections -------------------------------------------------------------------------------------

    def _cannot_watch(self, reason: str) -> None:
        log.info("each queue has a connection of its own", reason=reason)

    def _link(self, key: bytes) -> Link:
        return Link(functools.partial(self._servers.open, key), pulse=self._pulse, patience=self._silence)

    def _stream_link(self, key: bytes) -> Link:
        if not self._servers.many:
            return self._events
        link = self._streams.get(key)
        if link is None:
            link = self._streams[key] = self._link(key)
            link.start()
        return link

    def _events_up(self) -> None:
        self._publisher.link_up()
        self._tell_state()

    def _events_down(self, error: Exception) -> None:
        self._tell_state(str(error))
        self._publisher.link_down()

    def _absent(self, error: Exception) -> None:
        self._tell_state(str(error))

    def _tell_state(self, reason: str = "") -> None:
        reason = reason or self._events.reason or self._writers.reason
        state = BusState(self.connected, "" if self.connected else reason or "connecting")
        # While connecting, the first of several connections is no news yet.
        news = state.connected or self._state.connected or reason
        if news and state != self._state:
            self._state = state
            self.on_state(state)
        self._changed.set()


class _NoReplies:
    """A request that wants no reply."""

    async def close(self) -> None:
        return
