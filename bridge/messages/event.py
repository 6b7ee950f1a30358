"""An event as it stands on the bus: a CloudEvents 1.0 map around FreeSWITCH's own JSON (contract section 3).

Encoding is by pieces: what does not change between two events is made once, and FreeSWITCH's bytes are passed
through. This room never decides where an event goes, and never reads a clock.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from bridge.errors import InvalidMessage
from bridge.messages.wrapping import (
    FLAGS,
    SOURCE_PREFIX,
    SPECVERSION,
    TYPE_PREFIX,
    JsonWrapping,
    PackedWrapping,
    Wrapping,
    format_time,
)

CONTENT_TYPES = {"json": "application/cloudevents+json", "msgpack": "application/cloudevents+msgpack"}
BARE_CONTENT_TYPES = {"json": "application/json", "msgpack": "application/msgpack"}

_from_json = msgspec.json.Decoder()
_from_msgpack = msgspec.msgpack.Decoder()


class EventFields(msgspec.Struct, gc=False):
    """What the envelope says of one event beside its data; texts are empty where the event has none.

    ``identity`` is ``<Core-UUID>:<Event-Sequence>``, ``event`` the address token (``CHANNEL_CREATE``,
    ``CUSTOM:sofia::register``), ``timestamp`` FreeSWITCH's microseconds since 1970 as text, ``sequence`` the
    number of the event per (epoch, topic).
    """

    identity: str
    event: str
    subject: str
    timestamp: str
    sequence: int
    synthetic: bool = False
    truncated: bool = False
    injected: bool = False


class EventEncoder:
    """Makes payloads for one (node, worker, epoch) in one codec and envelope.

    ``codec`` is ``"json"`` or ``"msgpack"``; ``envelope`` is ``"cloudevents"`` or ``"none"`` (the event's own map
    alone). ``unique_keys`` rewrites JSON events so that no key stands twice.
    """

    def __init__(
        self, *, codec: str, envelope: str, node: str, worker: str, epoch: str, unique_keys: bool = False
    ) -> None:
        self.codec = codec
        self.envelope = envelope
        self.node = node
        self.worker = worker
        self.epoch = epoch
        self.content_type = (CONTENT_TYPES if envelope == "cloudevents" else BARE_CONTENT_TYPES)[codec]
        self._unique_keys = unique_keys
        self.wrapping: Wrapping = (JsonWrapping if codec == "json" else PackedWrapping)(node, worker, epoch)
        self._base: dict[str, Any] = {"specversion": SPECVERSION, "id": "", "source": SOURCE_PREFIX + node, "type": ""}
        self._origin: dict[str, Any] = {"node": node, "worker": worker, "epoch": epoch}

    def encode(self, fields: EventFields, data: bytes | dict[str, Any]) -> bytes:
        """Return the payload; ``data`` is the event as one JSON object in valid UTF-8, or as a map.

        As JSON it is passed through as it is.
        """
        if self._unique_keys and isinstance(data, bytes):
            data = _from_json.decode(data)
        wrapping = self.wrapping
        body = wrapping.body(data)
        if self.envelope != "cloudevents":
            return body
        return wrapping.wrap(
            wrapping.lead(fields.event),
            wrapping.safe(fields.identity),
            fields.subject,
            fields.timestamp,
            fields.sequence,
            body,
            wrapping.flags(_flags(fields)),
        )

    def attributes(self, fields: EventFields) -> dict[str, Any]:
        """The envelope as a map without ``data``, for headers beside a bare event."""
        attributes = self._base.copy()
        attributes["id"] = fields.identity
        attributes["type"] = TYPE_PREFIX + fields.event
        if fields.subject:
            attributes["subject"] = fields.subject
        if time := self.wrapping.time(fields.timestamp):
            attributes["time"] = time
        attributes.update(self._origin)
        attributes["sequence"] = str(fields.sequence).zfill(10)
        attributes.update(dict.fromkeys(_flags(fields), True))
        return attributes

    def headers(self, fields: EventFields) -> tuple[tuple[str, str], ...]:
        """The metadata as CloudEvents binary-mode headers, for ``envelope = "none"``; empty otherwise."""
        if self.envelope == "cloudevents":
            return ()
        return tuple(
            (f"ce-{name}", "true" if value is True else str(value)) for name, value in self.attributes(fields).items()
        )


def drop_body(data: bytes | dict[str, Any]) -> dict[str, Any]:
    """The event as a map without its ``_body``, for a message over the bus's limit."""
    event: dict[str, Any] = dict(_from_json.decode(data) if isinstance(data, bytes) else data)
    event.pop("_body", None)
    return event


def _flags(fields: EventFields) -> tuple[str, ...]:
    return tuple([name for name in FLAGS if getattr(fields, name)])


class EventMessage(Mapping[str, str | list[str]]):
    """An event as a subscriber sees it: a map of FreeSWITCH's headers with the envelope as attributes.

    Attributes that the envelope does not have are empty; headers are looked up by their exact name.
    """

    __slots__ = ("attributes", "data", "topic")

    def __init__(self, attributes: Mapping[str, Any], data: Mapping[str, Any], topic: str = "") -> None:
        self.attributes = attributes
        self.data = data
        self.topic = topic

    def __getitem__(self, header: str) -> str | list[str]:
        value: str | list[str] = self.data[header]
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self.data)

    def __len__(self) -> int:
        return len(self.data)

    def __repr__(self) -> str:
        return f"<EventMessage {self.name} {self.id} of {self.node or '?'}>"

    @property
    def name(self) -> str:
        """``Event-Name``."""
        return str(self.data.get("Event-Name", ""))

    @property
    def subclass(self) -> str:
        """``Event-Subclass`` of a CUSTOM event."""
        return str(self.data.get("Event-Subclass", ""))

    @property
    def body(self) -> str:
        """The event's body (the output of a BACKGROUND_JOB)."""
        return str(self.data.get("_body", ""))

    @property
    def id(self) -> str:
        """``<Core-UUID>:<Event-Sequence>``, the same from every worker."""
        return str(self.attributes.get("id", ""))

    @property
    def uuid(self) -> str:
        """The channel's ``Unique-ID``."""
        return str(self.attributes.get("subject") or self.data.get("Unique-ID", ""))

    @property
    def node(self) -> str:
        """The FreeSWITCH node."""
        return str(self.attributes.get("node", ""))

    @property
    def worker(self) -> str:
        """The worker that relayed the event."""
        return str(self.attributes.get("worker", ""))

    @property
    def time(self) -> str:
        """When FreeSWITCH made the event, RFC 3339."""
        return str(self.attributes.get("time") or format_time(str(self.data.get("Event-Date-Timestamp", ""))))

    @property
    def epoch(self) -> str:
        """Identity of the ESL link; compares greater for a later one."""
        return str(self.attributes.get("epoch", ""))

    @property
    def sequence(self) -> str:
        """Ten digits, counted per (epoch, topic): a hole is a loss."""
        return str(self.attributes.get("sequence", ""))

    @property
    def synthetic(self) -> bool:
        """Made up by the bridge."""
        return self.attributes.get("synthetic") is True

    @property
    def truncated(self) -> bool:
        """Its ``_body`` was left out because the message was over the bus's limit."""
        return self.attributes.get("truncated") is True

    @property
    def injected(self) -> bool:
        """Came from somebody's ``sendevent``."""
        return self.attributes.get("injected") is True


def decode_event(payload: bytes, *, topic: str = "", headers: Mapping[str, str] | None = None) -> EventMessage:
    """Decode an event message of either codec and envelope.

    ``headers`` are the message's own, which carry the metadata of a bare event. Raises ``InvalidMessage``.
    """
    try:
        message = (_from_json if payload[:1] == b"{" else _from_msgpack).decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidMessage(f"event message: {error}") from None
    if not isinstance(message, dict):
        raise InvalidMessage(f"event message: expected a map, got {type(message).__name__}")
    if "specversion" not in message:
        bare = {name[3:]: value for name, value in (headers or {}).items() if name.startswith("ce-")}
        flags = {name: True for name in FLAGS if bare.get(name) == "true"}
        return EventMessage({**bare, **flags}, message, topic)
    data = message.pop("data", None)
    if not isinstance(data, dict):
        raise InvalidMessage("event message: data: expected a map")
    return EventMessage(message, data, topic)
