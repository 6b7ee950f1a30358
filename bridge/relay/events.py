"""The way of an event: what a link read becomes messages and waits in the node's buffer for the bus.

One call for one socket read; no task, no await, nothing kept per event. This room never waits for the bus: the ESL
socket is drained whatever happens, because a slow reader can freeze FreeSWITCH.
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

import structlog

from bridge.bus.base import Bus, DurableTopics, Message, StreamSpec
from bridge.esl.envelope import Envelope
from bridge.esl.event import Event
from bridge.esl.protocol import LogRecord
from bridge.messages.notice import LogNotice, NodeNotice
from bridge.relay.buffer import EventBuffer
from bridge.relay.chunks import ENTRY_OVERHEAD, Chunk, Loss, identity_of, is_made_up
from bridge.relay.lately import Lately
from bridge.relay.notices import NoticeBoard
from bridge.relay.publisher import Publisher
from bridge.relay.routes import Line, Route, RouteSettings
from bridge.switch.node import LinkGap, NodeChange, NodeState

log = structlog.get_logger(__name__)

# A message is measured exactly only when its payload comes this near to the bus's limit: headers are smaller.
HEADER_ALLOWANCE = 4_096

# CUSTOM subclasses come from callers too (sendevent): what is remembered of names is bounded.
KNOWN_NAMES = 65_536

# How soon the log says again that events of a topic are over the bus's limit, in seconds: it may be every one.
TELL_AGAIN = 60.0

# A trail: so many events of the last read at most, and the last of so many reads before it.
TRAIL_EVENTS, TRAIL_READS = 256, 32

# States in which a node answers commands and sends events.
SERVING = (NodeState.UP, NodeState.SUSPECT, NodeState.DRAINING)


class EventMeter(Protocol):
    """Counters that the event path feeds (``ops.metrics`` fulfils it)."""

    def events_received(self, node: str, count: int = 1) -> None:
        """``count`` events were read from the node."""

    def events_dropped(self, node: str, reason: str, count: int = 1) -> None:
        """``count`` events of the node will not be published."""

    def events_repaired(self, node: str, count: int = 1) -> None:
        """``count`` events held invalid UTF-8."""

    def event_read(self, node: str, lag: float) -> None:
        """The last event of a read had this age, in s since FreeSWITCH's timestamp."""

    def node_up(self, node: str, up: bool) -> None:
        """Whether the node serves."""

    def link_lost(self, node: str, reason: str) -> None:
        """An event link ended or could not be made."""

    def reconnected(self, node: str) -> None:
        """An event link was made again."""


class _Lane:
    """One way out of a node: its buffer, and what the read under way has brought for it.

    ``missing`` are events of that read which are too large, each with the number of messages in front of it.
    """

    __slots__ = ("buffer", "messages", "missing")

    def __init__(self, buffer: EventBuffer) -> None:
        self.buffer = buffer
        self.messages: list[Message] = []
        self.missing: list[tuple[int, Loss]] = []

    def miss(self, loss: Loss) -> None:
        """Keep a loss of the read under way until it is known what comes behind it."""
        if self.messages:
            loss.before = identity_of(self.messages[-1])
        self.missing.append((len(self.messages), loss))

    def tell_missing(self) -> None:
        """Book what is missing in front of the read's messages, or between them; what is missing behind them stays."""
        missing, self.missing = self.missing, []
        for place, loss in missing:
            if place < len(self.messages):
                loss.after = identity_of(self.messages[place])
                self.buffer.miss(loss)
            else:
                self.missing.append((place, loss))

    def tell_rest(self) -> None:
        """Book what is missing behind the read's last message."""
        for _, loss in self.missing:
            self.buffer.miss(loss)
        self.missing.clear()


# A line of a route and the lanes that its messages take; in front of them their methods, which every event calls.
_Way = tuple[
    Callable[[Event, Envelope], Message | None], tuple[Callable[[Message], None], ...], Line, tuple[_Lane, ...]
]


class NodeRelay:
    """The handler of one node's event link: publishes its events and tells its changes.

    A new epoch begins with every link; ``token`` is the fencing token of the ownership (0 without a fleet).
    ``state``, ``reason`` and ``received`` (events since the start) are for the operator's view. ``buffer`` is the one
    of the default route, ``buffers`` are all.
    """

    def __init__(
        self,
        node: str,
        *,
        bus: Bus,
        publisher: Publisher,
        notices: NoticeBoard,
        meter: EventMeter,
        routes: Sequence[RouteSettings],
        worker: str,
        token: int = 0,
    ) -> None:
        self.node = node
        self.token = token
        self.epoch = ""
        self.state = NodeState.CONNECTING
        self.reason = ""
        self.received = 0
        self.on_change: Callable[[NodeChange], None] = lambda change: None
        self._bus = bus
        self._publisher = publisher
        self._notices = notices
        self._meter = meter
        self._settings = tuple(routes)
        self._worker = worker
        self._last = ""
        self._last_read: Sequence[Event] = ()
        self._read_ends: deque[str] = deque(maxlen=TRAIL_READS)
        self._reads = 0
        self._lanes: list[_Lane] = []
        self._lanes_of = [self._open_lanes(route) for route in self._settings]
        self._routes: list[Route] = []
        self._ways: dict[str, tuple[_Way, ...]] = {}
        self._told_large: Lately[None] = Lately(TELL_AGAIN, KNOWN_NAMES)
        self._begun_at = 0.0
        self._begin_epoch(time.time())

    @property
    def buffers(self) -> list[EventBuffer]:
        """One for the topics and one for each stream, as the routes need them."""
        return [lane.buffer for lane in self._lanes]

    @property
    def buffer(self) -> EventBuffer:
        """The buffer that the first route uses."""
        return self._lanes[0].buffer

    @property
    def mark(self) -> str:
        """Identity of the last event, in wire order, before which the broker has everything of every lane.

        Never of one that was made up here: a standby's link does not bring it.
        """
        busy = [buffer for buffer in self.buffers if buffer.events or buffer.in_flight]
        return min(busy, key=lambda buffer: buffer.confirmed_read).last_confirmed if busy else self._last

    @property
    def trail(self) -> tuple[str, ...]:
        """What came before the last event, the latest first: those of its read, and the last of the reads before."""
        read = [event.identity for event in reversed(self._last_read[:-1])]
        return (*read, *filter(None, reversed(self._read_ends)))

    def link_up(self, core_uuid: str, started_at: float) -> None:
        """A new link stands: a new epoch begins before its first event."""
        self._begin_epoch(started_at)

    def linked_again(self) -> None:
        """Count a link that was made anew after a loss."""
        self._meter.reconnected(self.node)

    def events(self, events: list[Event]) -> None:
        """Publish what one socket read brought."""
        now = time.time()
        known = self._ways
        limit = self._bus.max_payload - HEADER_ALLOWANCE
        for event in events:
            envelope = event._envelope or event.envelope
            name = envelope.name
            subclass = envelope.subclass
            key = f"{name}\n{subclass}" if subclass else name
            for encode, puts, line, lanes in known.get(key) or self._learn(key, name, subclass):
                message = encode(event, envelope)
                if message is None:
                    continue
                if len(message.payload) > limit:
                    message = self._fit(line, message, event, lanes, now)
                    if message is None:
                        continue
                for put in puts:
                    put(message)
        self.received += len(events)
        self._reads += 1
        for lane in self._lanes:
            if lane.missing:
                lane.tell_missing()
            if lane.messages:
                messages = lane.messages.copy()
                lane.messages.clear()
                size = len(messages) * ENTRY_OVERHEAD + sum([len(message.payload) for message in messages])
                lane.buffer.append(Chunk(self.epoch, messages, size, now, None, 0, self._reads), self._last)
                lane.buffer.wake()
            if lane.missing:
                lane.tell_rest()
        last = events[-1]
        identity = last.identity
        if not is_made_up(identity):
            self._read_ends.append(self._last)
            self._last, self._last_read = identity, events[-TRAIL_EVENTS:]
        meter = self._meter
        meter.events_received(self.node, len(events))
        stamped = last.timestamp_us
        if stamped:
            meter.event_read(self.node, now - stamped / 1_000_000)
        repaired = sum([event.was_repaired for event in events if event._repaired])
        if repaired:
            meter.events_repaired(self.node, repaired)

    def node_changed(self, change: NodeChange) -> None:
        """Tell subscribers and the log that the node's state changed."""
        self.state = change.state
        self.reason = change.reason
        self._meter.node_up(self.node, change.state in SERVING)
        tell = log.warning if change.state in (NodeState.DOWN, NodeState.SUSPECT) else log.info
        tell("node", node=self.node, state=str(change.state), previous=str(change.previous), reason=change.reason)
        notice = NodeNotice(
            state=change.state,
            previous=change.previous,
            reason=change.reason,
            owner=self._worker,
            epoch=self.epoch,
            core_uuid=change.core_uuid,
            restarted=change.restarted,
        )
        self._notices.tell(notice, node=self.node)
        self.on_change(change)

    def gap(self, gap: LinkGap) -> None:
        """FreeSWITCH spoke while nobody listened: told with the next event, how much was said nobody knows."""
        loss = Loss(self.epoch, "link", start=gap.start, end=gap.end, before=gap.before, after=gap.after, count=None)
        self.buffer.miss(loss)

    def dropped(self, count: int, start: float, end: float) -> None:
        """We had no room for so many while standing by: told with the next event. Some may be published."""
        self._meter.events_dropped(self.node, "buffer", count)
        self.buffer.miss(Loss(self.epoch, "buffer", start, end, count=count, exact=False))

    def skipped(self, size: int) -> None:
        """An event came that is too large to be kept: told with the next one."""
        log.warning("event over the limit of what is read", node=self.node, size=size)
        now = time.time()
        self._meter.events_dropped(self.node, "too_large", 1)
        self.buffer.miss(Loss(self.epoch, "too_large", now, now, before=self._last, count=1))

    def link_lost(self, reason: str, error: Exception) -> None:
        """Count a link that ended or could not be made."""
        self._meter.link_lost(self.node, str(reason))
        # The change of state that follows says it; further attempts that fail are no news.
        log.debug("event link lost", node=self.node, reason=str(reason), error=str(error))

    def log_lines(self, records: list[LogRecord]) -> None:
        """Relay FreeSWITCH's own log lines."""
        for record in records:
            notice = LogNotice(
                level=record.level, text=record.text, file=record.file, line=record.line, uuid=record.uuid
            )
            self._notices.tell(notice, node=self.node)

    def reroute(self, routes: Sequence[RouteSettings]) -> None:
        """Publish by other routes, in a new epoch: numbers begin anew. What waits already leaves as it is."""
        self._settings = tuple(routes)
        self._lanes_of = [self._open_lanes(route) for route in self._settings]
        self._begin_epoch(time.time())

    def close(self) -> None:
        """Forget the node (its buffers must be empty or given up)."""
        for lane in self._lanes:
            self._publisher.remove(lane.buffer)

    def _open_lanes(self, route: RouteSettings) -> tuple[_Lane, ...]:
        """The ways out that a route's messages take."""
        wanted: list[StreamSpec | None] = []
        if route.delivery != "durable":
            wanted.append(None)
        if route.delivery != "pubsub" and route.stream is not None:
            if self._bus_publishes_appended():
                wanted = []  # who listens to the topic gets what the stream captures
            wanted.append(route.stream)
        lanes = []
        for stream in wanted:
            buffer = self._publisher.buffer(self.node, stream)
            lane = next((lane for lane in self._lanes if lane.buffer is buffer), None)
            if lane is None:
                lane = _Lane(buffer)
                self._lanes.append(lane)
            lanes.append(lane)
        return tuple(lanes)

    def _bus_publishes_appended(self) -> bool:
        return isinstance(self._bus, DurableTopics) and self._bus.append_publishes

    def _begin_epoch(self, started_at: float) -> None:
        # Somebody may set the clock back; a later epoch has to be greater all the same.
        self._begun_at = max(started_at, self._begun_at + 0.002)
        self.epoch = epoch = new_epoch(self.token, self._begun_at)
        for route in self._routes:
            route.close()
        self._routes = [Route(one, node=self.node, worker=self._worker, epoch=epoch) for one in self._settings]
        self._ways = {}

    def _learn(self, key: str, name: str, subclass: str) -> tuple[_Way, ...]:
        """Which routes want the events of this name, and where they go."""
        ways = tuple(
            (line.encode, tuple(lane.messages.append for lane in lanes), line, lanes)
            for route, lanes in zip(self._routes, self._lanes_of, strict=True)
            if (line := route.line(name, subclass)) is not None
        )
        if len(self._ways) < KNOWN_NAMES:
            self._ways[key] = ways
        return ways

    def _fit(self, line: Line, message: Message, event: Event, lanes: tuple[_Lane, ...], now: float) -> Message | None:
        """A message near the bus's limit: as it is, without its body, or not at all."""
        limit = self._bus.max_payload
        size = self._bus.message_size
        if size(message) <= limit:
            return message
        message = line.truncate(message, event, event.envelope)
        if size(message) <= limit:
            return message
        if message.topic not in self._told_large:
            self._told_large.put(message.topic, None)
            log.warning("event over the bus's limit", node=self.node, topic=message.topic, size=len(message.payload))
        self._meter.events_dropped(self.node, "too_large", 1)
        # Told once, however many ways the message would have gone.
        lanes[0].miss(Loss(self.epoch, "too_large", start=now, end=now, count=1))
        return None


def new_epoch(token: int, started_at: float) -> str:
    """Identity of a link under an ownership: compares greater as text for a later one.

    ``token`` is the fencing token, ``started_at`` the Unix time in seconds at which the link was made.
    """
    return f"{token:016x}.{int(started_at * 1000):012x}.{secrets.token_hex(2)}"
