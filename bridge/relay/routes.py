"""Where an event goes and as what: filter, template, codec, envelope and projection of a route, compiled per link.

This room never sees a bus or a buffer, and decodes no header that a route does not ask for.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from bridge.bus.base import Message, StreamSpec
from bridge.esl.envelope import Envelope
from bridge.esl.event import Event
from bridge.messages.event import EventEncoder, EventFields, drop_body
from bridge.messages.topics import TopicTemplate, event_token
from bridge.messages.wrapping import TYPE_PREFIX
from bridge.relay.chunks import MADE_UP
from bridge.relay.filters import EventFilter, HeaderConditions, Projection

# CUSTOM subclasses come from callers too (sendevent): what is remembered of names is bounded.
_KNOWN_LIMIT = 65_536

_decode = msgspec.json.Decoder().decode


class RouteSettings(msgspec.Struct, frozen=True):
    """One route as the operator wrote it; the default route has no ``name``.

    ``delivery`` is ``pubsub``, ``durable`` or ``both``; the latter two need a ``stream``. ``events`` and
    ``subclasses`` are globs, ``where`` header conditions that all must hold, ``keep`` and ``drop`` globs of header
    names.
    """

    topic: str = "fs.events.{event}"
    codec: str = "json"
    envelope: str = "cloudevents"
    unique_keys: bool = False
    name: str = ""
    delivery: str = "pubsub"
    stream: StreamSpec | None = None
    events: tuple[str, ...] = ()
    subclasses: tuple[str, ...] = ()
    where: Mapping[str, tuple[str, ...]] = {}
    keep: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()


class Route:
    """A route under one epoch of one node. Sequence numbers start anew with every epoch."""

    def __init__(self, settings: RouteSettings, *, node: str, worker: str, epoch: str) -> None:
        self.settings = settings
        self.epoch = epoch
        self.template = TopicTemplate(settings.topic)
        self.node = node
        self.suffix = f"/{settings.name}" if settings.name else ""
        self.conditions = HeaderConditions(settings.where) if settings.where else None
        self.projection = Projection(settings.keep, settings.drop) if settings.keep or settings.drop else None
        self.encoder = EventEncoder(
            codec=settings.codec,
            envelope=settings.envelope,
            node=node,
            worker=worker,
            epoch=epoch,
            unique_keys=settings.unique_keys and self.projection is None,
        )
        self.wrap = self.encoder.wrapping.wrap
        self.body = None if settings.codec == "json" else self.encoder.wrapping.body
        self.content_type = self.encoder.content_type
        self.count = 0
        """Events of this epoch that were numbered per route."""
        self.core = ""
        """The Core-UUID that the events bear; one that can stand in JSON and in headers as it is."""
        self._filter = EventFilter(settings.events, settings.subclasses)
        self._lines: dict[tuple[str, str], Line | None] = {}
        self._first: dict[str, Line] = {}  # of each topic: it holds the topic's number
        # Nothing of the event is looked at but its envelope.
        self._direct = (
            settings.envelope == "cloudevents"
            and not (settings.unique_keys and settings.codec == "json")
            and self.conditions is None
            and self.projection is None
            and self.template.per_topic
        )

    def line(self, name: str, subclass: str) -> Line | None:
        """What happens to the events of this name; None when the route does not want them."""
        key = (name, subclass)
        found = self._lines.get(key, _UNKNOWN)
        if found is not _UNKNOWN:
            return found
        line = None
        known = len(self._lines) < _KNOWN_LIMIT
        if self._filter.wants(name, subclass):
            topic = ""
            if self.template.per_topic:
                topic = self.template.render(name=name, subclass=subclass, node=self.node)
            first = self._first.get(topic)
            # A number must never be given twice within an epoch, so topics over the limit share one counter.
            if first is None and not known:
                topic = ""
            line = (DirectLine if self._direct and topic else Line)(self, topic, event_token(name, subclass))
            if first is not None:
                line = SharedLine(line, first)
            elif topic:
                self._first[topic] = line
        if known:
            self._lines[key] = line
        return line

    def close(self) -> None:
        """Its epoch is over: let go of its lines, each of which holds it."""
        self._lines.clear()
        self._first.clear()

    def data_of(self, event: Event) -> bytes | dict[str, object]:
        """The event as this route tells it: FreeSWITCH's own bytes, or a map of what is left of it."""
        if self.projection is None:
            return event.json
        return self.projection.of(_decode(event.json))

    def render_topic(self, event: Event, envelope: Envelope) -> str:
        """The topic of one event, where it depends on more than the event's name."""
        return self.template.render(
            name=envelope.name,
            subclass=envelope.subclass,
            node=self.node,
            uuid=envelope.unique_id,
            header=lambda name: _text(event.get(name)),
        )


class Line:
    """The events of one name and subclass on one route: their topic, and how many went there in this epoch."""

    __slots__ = ("count", "event", "lead", "route", "topic", "type")

    def __init__(self, route: Route, topic: str, event: str) -> None:
        self.route = route
        self.topic = topic
        self.event = event
        self.type = TYPE_PREFIX + event
        self.lead = route.encoder.wrapping.lead(event)
        self.count = 0

    def encode(self, event: Event, envelope: Envelope) -> Message | None:
        """Give the event its number and make its message; None where the route's conditions do not hold."""
        route = self.route
        if route.conditions is not None and not route.conditions.hold(event):
            return None
        topic = self.topic
        if topic:
            self.count = number = self.count + 1
        else:
            route.count = number = route.count + 1
            topic = route.render_topic(event, envelope)
        return self._message(topic, event, envelope, number, truncated=False)

    def truncate(self, message: Message, event: Event, envelope: Envelope) -> Message:
        """The same message, number included, without the event's ``_body``; called right after ``encode``."""
        number = self.count if self.topic else self.route.count
        return self._message(message.topic, event, envelope, number, truncated=True)

    def _message(self, topic: str, event: Event, envelope: Envelope, number: int, *, truncated: bool) -> Message:
        route = self.route
        identity = f"{envelope.core_uuid}:{envelope.sequence}"
        fields = EventFields(
            identity,
            self.event,
            envelope.unique_id,
            envelope.timestamp,
            number,
            truncated=truncated,
            injected=bool(envelope.command) and event.injected,
            # Made up by the bridge (relay/known_calls.py): FreeSWITCH stamps numbers only.
            synthetic=envelope.sequence.startswith(MADE_UP),
        )
        data = route.data_of(event)
        encoder = route.encoder
        return Message(
            topic,
            encoder.encode(fields, drop_body(data) if truncated else data),
            identity + route.suffix,
            self.type,
            encoder.content_type,
            encoder.headers(fields),
        )


class DirectLine(Line):
    """The same for a route that tells all of an event as it is: what nearly every event takes."""

    __slots__ = ()

    def encode(self, event: Event, envelope: Envelope) -> Message:
        """See ``Line``."""
        route = self.route
        core, sequence = envelope.core_uuid, envelope.sequence
        self.count = number = self.count + 1
        if core != route.core and is_plain(core):
            route.core = core
        if core != route.core or not sequence.isdigit() or (envelope.command and event.injected):
            return self._message(self.topic, event, envelope, number, truncated=False)
        identity = f"{core}:{sequence}"
        text = event.raw
        if event.format != "json" or not text.isascii():
            text = event.json
        if route.body is not None:
            text = route.body(text)
        return Message(
            self.topic,
            route.wrap(self.lead, identity, envelope.unique_id, envelope.timestamp, number, text),
            f"{identity}{suffix}" if (suffix := route.suffix) else identity,
            self.type,
            route.content_type,
        )


class SharedLine(Line):
    """The events of one more name on a topic: numbered together with those of its ``first`` line.

    Templates need not hold the whole name: ``fs.{node}`` is one topic for all events, ``fs.{name}`` one for all CUSTOM.
    """

    __slots__ = ("_first", "_own")

    def __init__(self, own: Line, first: Line) -> None:
        super().__init__(own.route, own.topic, own.event)
        self._own = own
        self._first = first

    def encode(self, event: Event, envelope: Envelope) -> Message | None:
        """See ``Line``."""
        own, first = self._own, self._first
        own.count = first.count
        message = own.encode(event, envelope)
        first.count = own.count
        return message

    def truncate(self, message: Message, event: Event, envelope: Envelope) -> Message:
        """See ``Line``."""
        return self._own.truncate(message, event, envelope)


def is_plain(core_uuid: str) -> bool:
    """Whether a Core-UUID is what FreeSWITCH stamps: hex digits and dashes. Anything else is quoted with care."""
    return core_uuid.isascii() and core_uuid.replace("-", "").isalnum()


def _text(value: str | list[str] | None) -> str | None:
    return "|:".join(value) if isinstance(value, list) else value


_UNKNOWN = Line.__new__(Line)
