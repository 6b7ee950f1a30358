"""Where an event goes and as what: a route's template, codec and envelope, compiled once per link.

This room never sees a bus or a buffer, and decodes no header that the template does not name.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from bridge.bus.base import Message
from bridge.esl.event import Event
from bridge.messages.event import TYPE_PREFIX, EventEncoder, EventFields, drop_body
from bridge.messages.topics import TopicTemplate, event_token

# CUSTOM subclasses come from callers too (sendevent): what is remembered of names is bounded.
_KNOWN_LIMIT = 65_536


class RouteSettings(msgspec.Struct, frozen=True):
    """One route as the operator wrote it."""

    topic: str = "fs.events.{event}"
    codec: str = "json"
    envelope: str = "cloudevents"
    unique_keys: bool = False


class Names(Protocol):
    """The only part of an event that every route needs."""

    name: str
    subclass: str


class _Address:
    """A topic and how many events of this epoch went to it."""

    __slots__ = ("count", "event", "topic", "type")

    def __init__(self, topic: str, event: str) -> None:
        self.topic = topic
        self.event = event
        self.type = TYPE_PREFIX + event
        self.count = 0


class Route:
    """A route under one epoch of one node. Sequence numbers start anew with every epoch."""

    def __init__(self, settings: RouteSettings, *, node: str, worker: str, epoch: str) -> None:
        self.template = TopicTemplate(settings.topic)
        self.epoch = epoch
        self._node = node
        self._encoder = EventEncoder(
            codec=settings.codec,
            envelope=settings.envelope,
            node=node,
            worker=worker,
            epoch=epoch,
            unique_keys=settings.unique_keys,
        )
        self._bare = settings.envelope != "cloudevents"
        self._addresses: dict[str, _Address] = {}
        self._count = 0

    def encode(self, event: Event) -> Message:
        """Give the event its number and make its message."""
        envelope = event.envelope
        subclass = envelope.subclass
        key = f"{envelope.name}\n{subclass}" if subclass else envelope.name
        address = self._addresses.get(key) or self._learn(key, envelope)
        topic = address.topic
        if topic:
            address.count = number = address.count + 1
        else:
            self._count = number = self._count + 1
            topic = self._render(event)
        identity = f"{envelope.core_uuid}:{envelope.sequence}"
        fields = EventFields(identity, address.event, envelope.unique_id, envelope.timestamp, number)
        if envelope.command and event.injected:
            fields.injected = True
        encoder = self._encoder
        return Message(
            topic,
            encoder.encode(fields, event.json),
            identity,
            address.type,
            encoder.content_type,
            encoder.headers(fields) if self._bare else (),
        )

    def truncate(self, message: Message, event: Event) -> Message:
        """The same message, number included, without the event's ``_body``."""
        envelope = event.envelope
        attributes = EventFields(
            message.id,
            message.type.removeprefix(TYPE_PREFIX),
            envelope.unique_id,
            envelope.timestamp,
            self._number_of(envelope),
            truncated=True,
            injected=event.injected,
        )
        payload = self._encoder.encode(attributes, drop_body(event.json))
        return Message(
            message.topic,
            payload,
            message.id,
            message.type,
            message.content_type,
            self._encoder.headers(attributes),
        )

    def _number_of(self, names: Names) -> int:
        # Called right after encode(): the counter still stands at this event's number.
        key = f"{names.name}\n{names.subclass}" if names.subclass else names.name
        address = self._addresses.get(key)
        return address.count if address is not None and address.topic else self._count

    def _learn(self, key: str, names: Names) -> _Address:
        event = event_token(names.name, names.subclass)
        topic = ""
        if self.template.per_topic and not self.template.needs_headers:
            topic = self.template.render(
                name=names.name, subclass=names.subclass, node=self._node, uuid="", header=lambda _: None
            )
        if len(self._addresses) >= _KNOWN_LIMIT:
            # A number must never be given twice within an epoch, so names over the limit share one counter.
            return _Address("", event)
        address = self._addresses[key] = _Address(topic, event)
        return address

    def _render(self, event: Event) -> str:
        envelope = event.envelope
        return self.template.render(
            name=envelope.name,
            subclass=envelope.subclass,
            node=self._node,
            uuid=envelope.unique_id,
            header=lambda name: _text(event.get(name)),
        )


def _text(value: str | list[str] | None) -> str | None:
    return "|:".join(value) if isinstance(value, list) else value
