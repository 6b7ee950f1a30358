"""What the bridge asks of a broker: topics, queues, replies; opaque bytes in and out.

This room never knows what the bytes mean, and never imports a driver.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import msgspec

from bridge.bus.clock import BrokerClock
from bridge.bus.records import Records
from bridge.bus.rights import Use
from bridge.bus.storage import Storage


class Message(msgspec.Struct, gc=False):
    """One message for a topic or a stream.

    ``id`` removes duplicates (``Nats-Msg-Id``, stream field ``id``), ``type`` is the CloudEvents type
    (stream field ``type``), ``content_type`` the encoding of ``payload``. ``headers`` are further NATS
    headers or stream fields. ``sent_at`` is free for the sender.
    """

    topic: str
    payload: bytes
    id: str = ""
    type: str = ""
    content_type: str = ""
    headers: tuple[tuple[str, str], ...] = ()


class Received(msgspec.Struct, gc=False):
    """One message that came from a subscribed topic."""

    topic: str
    payload: bytes
    content_type: str = ""
    headers: Mapping[str, str] = {}


class StreamSpec(msgspec.Struct, frozen=True):
    """A durable stream of topics, and the limits it is created with when it is absent.

    ``name`` is JetStream's stream name (``FS_EVENTS``), ``key`` the Redis stream key (``fs.events``), ``topics`` the
    patterns that JetStream captures (``fs.events.>``). ``max_messages``, ``max_bytes`` and ``max_age`` (s) bound it
    (0: unbounded; Redis knows ``max_messages`` only, as ``MAXLEN ~``); within ``duplicate_window`` (s) JetStream drops
    a repeated ``Message.id``. ``replicas`` is JetStream's.
    """

    name: str
    key: str
    topics: tuple[str, ...] = ()
    max_messages: int = 10_000_000
    max_bytes: int = 4 << 30
    max_age: float = 86400.0
    duplicate_window: float = 600.0
    replicas: int = 1


class ServiceCard(msgspec.Struct, frozen=True):
    """How a worker shows itself where the broker knows services (``nats micro ls/info/stats``)."""

    name: str = "esl-bridge"
    version: str = "0.0.0"
    description: str = ""
    metadata: Mapping[str, str] = {}
    endpoint_metadata: Mapping[str, str] = {}


@runtime_checkable
class Delivery(Protocol):
    """One request taken from a queue; exactly one of ``finish``, ``reject`` and ``let_go`` is called for it.

    Nothing here blocks: what is to be written is gathered and leaves at the end of the loop's turn.
    """

    @property
    def payload(self) -> bytes: ...

    @property
    def headers(self) -> Mapping[str, str]: ...

    @property
    def queue(self) -> str:
        """The queue's address, ``esl.cmd`` or ``esl.cmd.<node>``."""

    @property
    def entry_id(self) -> str:
        """The queue entry's own id; empty where the queue has none (core NATS, lists)."""

    @property
    def reply_to(self) -> str:
        """The reply address that the broker itself carries (NATS reply subject); may be empty."""

    @property
    def queued_at(self) -> float | None:
        """When the broker got it, as this machine's clock showed then (Unix time, s); None where it does not say.

        What the broker wrote down is corrected by how far the clocks are apart (``Bus.clock``), where that is known.
        """

    @property
    def claimed(self) -> bool:
        """True when another worker had it in hand before and fell silent."""

    @property
    def doubtful(self) -> bool:
        """True when another worker may have had it before, and the broker does not know any more."""

    @property
    def pulled(self) -> bool:
        """True where it was asked for, and may wait here; a broker that pushes is told ``busy`` instead."""

    @property
    def told(self) -> bytes:
        """The reply with ``executed: no`` that somebody told, or was about to; empty where none is kept with it."""

    @property
    def perhaps_lost_at(self) -> float:
        """The instant (``time.monotonic``) from which another worker may have claimed it; infinite where none can."""

    def finish(
        self,
        address: str,
        payload: bytes,
        content_type: str,
        headers: Mapping[str, str] | None = None,
        *,
        refusal: bool = False,
    ) -> None:
        """Write the final reply to ``address`` (none when empty) and then remove the entry from the queue.

        A ``refusal`` says that the request did not run: it is not written where another worker may have run it since,
        because it has the entry by now. Where that is a matter of records (``relay.refusals``) it changes nothing.
        Raises ``MessageTooLarge`` before anything is written; the delivery is then still in hand.
        """

    def reject(self, reason: str) -> None:
        """Put the entry with its ``reason`` into the dead letters, then remove it from the queue."""

    def still_ours(self, told: Callable[[bool | None], None]) -> None:
        """Ask whether it is ours still, and renew it then: ``perhaps_lost_at`` moves on.

        ``told`` is called once, with None where the broker does not answer. A queue that cannot be asked says True.
        """

    def let_go(self) -> None:
        """Write nothing and renew the entry no more: another worker has it by now."""


class Consumer(Protocol):
    """A queue being consumed, across reconnects, until it is stopped."""

    def resume(self) -> None:
        """Tell a pull queue that there is room again (see ``room`` of ``Bus.consume``)."""

    async def drain(self, grace: float) -> None:
        """Take no more from the broker; what was already on its way to us is still handed over.

        Returns when nothing more can arrive (at most ``grace`` seconds). What is in hand stays the caller's:
        replies still leave afterwards.
        """


class Subscription(Protocol):
    """A topic pattern being listened to, across reconnects, until it is closed."""

    async def close(self) -> None: ...


class BusState(msgspec.Struct, frozen=True):
    """Whether the broker is there; ``reason`` is for people and holds no secret."""

    connected: bool
    reason: str = ""


class Bus(Protocol):
    """A broker. All methods belong to one event loop.

    After ``start`` the bus connects, and reconnects for ever with back-off and jitter; subscriptions and
    consumers come back by themselves. ``BusUnavailable`` means: nothing was written.
    """

    @property
    def url(self) -> str:
        """The broker's URL without its secrets."""

    @property
    def connected(self) -> bool: ...

    @property
    def max_payload(self) -> int:
        """Largest message in bytes, headers counted where the broker counts them."""

    @property
    def confirmed(self) -> int:
        """Number of the last batch of ``publish_many`` that the broker has certainly seen."""

    @property
    def storage(self) -> Storage:
        """What the broker keeps for the fleet; ``Storage.open`` raises ``BusRefused`` where it keeps nothing."""

    @property
    def records(self) -> Records:
        """What the broker keeps for the ledger; ``Records.open`` raises ``BusRefused`` where it keeps nothing."""

    @property
    def clock(self) -> BrokerClock:
        """The broker's, where durable queues are consumed and it tells the time."""

    @property
    def roll_call(self) -> str:
        """Where a request is answered by every worker with its service card; empty where the broker knows none."""

    def apart(self, queue: str) -> bool:
        """Whether a reply and its entry's removal from this queue are two steps: a worker may die between them.

        Where an entry cannot be told from another (a Redis list) nothing can be kept about it, and it says False.
        """

    on_state: Callable[[BusState], None]
    on_broken: Callable[[], None]
    """Called when the connection broke: batches after ``confirmed`` that were published before are in doubt."""
    on_denied: Callable[[str], None]
    """Called for each message that the broker refused for want of rights, with its topic in lower case, before the
    batch that it was in is ``confirmed`` (NATS; Redis breaks the connection off)."""

    async def refused(self, uses: Sequence[Use]) -> list[Use]:
        """Those of the uses that the broker would refuse us, found out without doing any of them.

        Raises ``BusRefused`` where it does not tell, and ``BusUnavailable``.
        """

    async def servers(self) -> int | None:
        """How many servers the broker has for copies of a stream; None where that is not known, or no matter."""

    async def connect(self, timeout: float) -> None:
        """Connect once, for tools. Raises ``BusUnavailable`` or ``BusRefused``."""

    def start(self) -> None:
        """Connect in the background and stay connected; never raises for an absent broker."""

    async def close(self) -> None:
        """Flush what was gathered, then disconnect."""

    def message_size(self, message: Message) -> int:
        """The size that the broker will compare with ``max_payload``."""

    async def publish_many(self, batch: Sequence[Message], allowed: Callable[[], bool] | None = None) -> int:
        """Write a batch to its topics in order, in one write, and return the batch's number (1, 2, ...).

        Waits while too many bytes are unconfirmed (flow control by bytes), and asks ``allowed`` after that, right
        before the write: where it says False nothing is written and ``PublishWithdrawn`` is raised. Raises
        ``BusUnavailable`` or ``MessageTooLarge`` when nothing was written and ``PublishFailed`` when the batch broke
        off. Nothing is ever sent twice.
        """

    async def flush(self, timeout: float) -> None:
        """Return when every batch so far is confirmed; raises ``BusUnavailable``."""

    async def subscribe(self, pattern: str, handler: Callable[[Received], None]) -> Subscription:
        """Listen to a topic pattern: ``*`` for one token, NATS' ``>`` (last) for the rest; on Redis a glob.

        A ``*`` inside a token stands for any characters of that token (``fs.events.CHANNEL_*``).
        """

    async def consume(
        self,
        queue: str,
        handler: Callable[[Delivery], None],
        *,
        room: Callable[[], int] | None = None,
        one_of_many: bool = False,
    ) -> Consumer:
        """Take requests from a queue shared with the other workers; ``handler`` must not block.

        From queues that are pulled no more than ``room()`` entries are taken at a time; when it said 0 the
        consumer waits for ``Consumer.resume``. Core NATS pushes and does not ask. ``one_of_many`` queues of this
        worker, most of them empty, may share a connection where each would else have its own.
        """

    def send(self, address: str, payload: bytes, content_type: str, headers: Mapping[str, str] | None = None) -> None:
        """Write one reply (``accepted``, late, replayed) to a reply address; gathered like ``Delivery.finish``.

        While the broker is away replies wait, within a bound, and leave once when it is back.
        """

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
        """Put a request into a queue and hand every reply, with its content type, to ``handler``.

        ``reply_to`` is what ``new_reply_address`` gave, and stands in the payload too where the broker does not
        carry it. Listening starts before the request is written; closing the result ends it. Raises
        ``BusUnavailable``; where the broker can tell that nobody consumes the queue, ``NoConsumer``.
        """

    def new_reply_address(self, queue: str = "") -> str:
        """An address for ``reply_to`` in the body of a request to ``queue`` (the ordinary one where it is empty).

        Empty where the broker carries it (NATS, its durable queues excepted).
        """


@runtime_checkable
class DurableTopics(Protocol):
    """What a bus offers that keeps topics: JetStream, Redis streams.

    With ``append_publishes`` a stream captures the topics themselves: who listens to one gets what is appended.
    """

    append_publishes: bool

    async def ensure_stream(self, stream: StreamSpec) -> None:
        """Create the stream when it is absent; one that is there is left alone, whatever its limits.

        Raises ``BusUnavailable``, and ``BusRefused`` where the broker keeps nothing or forbids it.
        On Redis, where ``XADD`` creates the key, there is nothing to do.
        """

    def appender(self, stream: StreamSpec, changed: Callable[[], None]) -> Appender:
        """A new pipeline into the stream; ``changed`` is called when more is confirmed, and when it broke off."""


class Appender(Protocol):
    """A pipeline of messages into one stream, in order, used until it breaks off and then thrown away.

    ``written`` messages were handed over since it began, the first ``confirmed`` of them are at the broker. When
    ``failure`` says why it broke off (a refusal, a missing ack, a broken connection), what lies between the two is in
    doubt: the caller goes on from the first unconfirmed message with a new pipeline. It never repeats anything itself.
    Where it is ``oversized`` the first unconfirmed message is over a limit of the stream itself: it is never taken.
    ``overtaking`` messages behind one that was refused are in the stream: what is sent again comes behind them.

    JetStream: pipelined publishes with ``Nats-Msg-Id``, their acks read in a window. Redis: a transaction of ``XADD
    <key> MAXLEN ~`` for each batch, fields ``topic``, ``id``, ``type``, ``data`` and the message's headers.
    """

    written: int
    confirmed: int
    failure: str
    oversized: bool

    @property
    def overtaking(self) -> int: ...

    async def append(self, batch: Sequence[Message], allowed: Callable[[], bool] | None = None) -> None:
        """Write a batch behind what is written, as soon as there is room in the window for it.

        Asks ``allowed`` before every write: where it says False no more is written. Raises ``PublishWithdrawn`` and
        ``MessageTooLarge`` when nothing of the batch was written, ``BusUnavailable`` when the pipeline has broken off:
        ``written`` says whether that was before, amid or behind the batch.
        """

    def close(self) -> None:
        """Take note of nothing more."""
