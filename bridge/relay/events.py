"""The way of an event: what a link read becomes messages and waits in the node's buffer for the bus.

One call for one socket read; no task, no await, nothing kept per event. This room never waits for the bus: the ESL
socket is drained whatever happens, because a slow reader can freeze FreeSWITCH.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from typing import Protocol

import structlog

from bridge.bus.base import Bus, Message
from bridge.esl.event import Event
from bridge.esl.protocol import LogRecord
from bridge.messages.notice import LogNotice, NodeNotice
from bridge.relay.buffer import ENTRY_OVERHEAD, BufferLimits, Chunk, EventBuffer, Loss
from bridge.relay.notices import NoticeBoard
from bridge.relay.publisher import Publisher
from bridge.relay.routes import Route, RouteSettings
from bridge.switch.node import LinkGap, NodeChange, NodeState

log = structlog.get_logger(__name__)

# A message is measured exactly only when its payload comes this near to the bus's limit: headers are smaller.
HEADER_ALLOWANCE = 4_096

# States in which a node answers commands and sends events.
SERVING = (NodeState.UP, NodeState.SUSPECT, NodeState.DRAINING)

# What somebody else wants of an event that passes (the call table, a waiting execute): name -> callable.
Watchers = Mapping[str, Callable[[Event], None]]


class EventMeter(Protocol):
    """Counters that the event path feeds (``ops.metrics`` fulfils it)."""

    def events_received(self, node: str, count: int = 1) -> None:
        """``count`` events were read from the node."""

    def events_dropped(self, node: str, reason: str, count: int = 1) -> None:
        """``count`` events of the node will not be published."""

    def events_repaired(self, node: str, count: int = 1) -> None:
        """``count`` events held invalid UTF-8."""

    def event_lag(self, seconds: float) -> None:
        """FreeSWITCH's timestamp of the last event of a read to its hand-over to the bus."""

    def node_up(self, node: str, up: bool) -> None:
        """Whether the node serves."""

    def link_lost(self, node: str, reason: str) -> None:
        """An event link ended or could not be made."""


class NodeRelay:
    """The handler of one node's event link: publishes its events and tells its changes.

    A new epoch begins with every link; ``token`` is the fencing token of the ownership (0 without a fleet).
    ``state``, ``reason`` and ``received`` (events since the start) are for the operator's view.
    """

    def __init__(
        self,
        node: str,
        *,
        bus: Bus,
        publisher: Publisher,
        notices: NoticeBoard,
        meter: EventMeter,
        route: RouteSettings,
        limits: BufferLimits,
        worker: str,
        watchers: Watchers,
        token: int = 0,
    ) -> None:
        self.node = node
        self.token = token
        self.epoch = ""
        self.state = NodeState.CONNECTING
        self.reason = ""
        self.received = 0
        self.buffer = EventBuffer(node, limits)
        self.on_change: Callable[[NodeChange], None] = lambda change: None
        self._bus = bus
        self._publisher = publisher
        self._notices = notices
        self._meter = meter
        self._settings = route
        self._worker = worker
        self._watchers = watchers
        self._route = self._make_route(time.time())
        publisher.add(self.buffer)

    def link_up(self, core_uuid: str, started_at: float) -> None:
        """A new link stands: a new epoch begins before its first event."""
        self._route = self._make_route(started_at)

    def events(self, events: list[Event]) -> None:
        """Publish what one socket read brought."""
        now = time.time()
        route, watchers = self._route, self._watchers
        limit = self._bus.max_payload - HEADER_ALLOWANCE
        messages: list[Message] = []
        size = 0
        for event in events:
            watcher = watchers.get(event.envelope.name)
            if watcher is not None:
                watcher(event)
            message = route.encode(event)
            length = len(message.payload)
            if length > limit:
                fitting = self._fit(message, event)
                if fitting is None:
                    self._drop_too_large(message, now)
                    continue
                message = fitting
                length = len(message.payload)
            size += length + ENTRY_OVERHEAD
            messages.append(message)
        meter = self._meter
        self.received += len(events)
        meter.events_received(self.node, len(events))
        if messages:
            dropped = self.buffer.append(Chunk(route.epoch, messages, size, now))
            if dropped:
                meter.events_dropped(self.node, "buffer", dropped)
            self._publisher.wake()
        last = events[-1].timestamp_us
        if last:
            meter.event_lag(now - last / 1_000_000)
        repaired = sum(event.repaired for event in events)
        if repaired:
            meter.events_repaired(self.node, repaired)

    def node_changed(self, change: NodeChange) -> None:
        """Tell subscribers and the log that the node's state changed."""
        self.state = change.state
        self.reason = change.reason
        self._meter.node_up(self.node, change.state in SERVING)
        log.info("node", node=self.node, state=str(change.state), previous=str(change.previous), reason=change.reason)
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
        self.buffer.lose(
            Loss(self.epoch, "link", start=gap.start, end=gap.end, before=gap.before, after=gap.after, count=None)
        )
        self._publisher.wake()

    def link_lost(self, reason: str, error: Exception) -> None:
        """Count a link that ended or could not be made."""
        self._meter.link_lost(self.node, str(reason))
        log.warning("event link lost", node=self.node, reason=str(reason), error=str(error))

    def log_lines(self, records: list[LogRecord]) -> None:
        """Relay FreeSWITCH's own log lines."""
        for record in records:
            notice = LogNotice(
                level=record.level, text=record.text, file=record.file, line=record.line, uuid=record.uuid
            )
            self._notices.tell(notice, node=self.node)

    def close(self) -> None:
        """Forget the node (its buffer must be empty or given up)."""
        self._publisher.remove(self.buffer)

    def _make_route(self, started_at: float) -> Route:
        self.epoch = new_epoch(self.token, started_at)
        return Route(self._settings, node=self.node, worker=self._worker, epoch=self.epoch)

    def _fit(self, message: Message, event: Event) -> Message | None:
        limit = self._bus.max_payload
        if self._bus.message_size(message) <= limit:
            return message
        message = self._route.truncate(message, event)
        return message if self._bus.message_size(message) <= limit else None

    def _drop_too_large(self, message: Message, now: float) -> None:
        log.warning("event over the bus's limit", node=self.node, topic=message.topic, size=len(message.payload))
        self._meter.events_dropped(self.node, "too_large", 1)
        self.buffer.lose(Loss(self.epoch, "too_large", start=now, end=now, count=1))


def new_epoch(token: int, started_at: float) -> str:
    """Identity of a link under an ownership: compares greater as text for a later one.

    ``token`` is the fencing token, ``started_at`` the Unix time in seconds at which the link was made.
    """
    return f"{token:016x}.{int(started_at * 1000):012x}.{secrets.token_hex(2)}"
