"""An event as it stands on the bus: a CloudEvents 1.0 map around FreeSWITCH's own JSON (contract section 3).

Encoding is by pieces: what does not change between two events is made once, and FreeSWITCH's bytes are passed
through. This room never decides where an event goes, and never reads a clock.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from bridge.errors import InvalidMessage

SPECVERSION = "1.0"
TYPE_PREFIX = "org.freeswitch."
SOURCE_PREFIX = "/freeswitch/"
CONTENT_TYPES = {"json": "application/cloudevents+json", "msgpack": "application/cloudevents+msgpack"}
BARE_CONTENT_TYPES = {"json": "application/json", "msgpack": "application/msgpack"}

# Identities repeat some thirty times in a call's life, most of them within a moment. One table a node and route.
_QUOTED_LIMIT = 4096

_json = msgspec.json.Encoder()
_msgpack = msgspec.msgpack.Encoder()
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
        self._quoted: dict[str, str] = {}
        self._second = "-"
        self._second_time = ""
        self._second_text = ""
        self._base: dict[str, Any] = {"specversion": SPECVERSION, "id": "", "source": SOURCE_PREFIX + node, "type": ""}
        self._origin: dict[str, Any] = {"node": node, "worker": worker, "epoch": epoch}
        self._source = f'","source":{_quote(SOURCE_PREFIX + node)},"type":"{TYPE_PREFIX}'
        self._end = f',"node":{_quote(node)},"worker":{_quote(worker)},"epoch":{_quote(epoch)},"sequence":"'
        self._tail = 'Z"' + self._end

    def encode(self, fields: EventFields, data: bytes | dict[str, Any]) -> bytes:
        """Return the payload; ``data`` is the event as one JSON object in valid UTF-8, or as a map.

        As JSON it is passed through as it is.
        """
        if self._unique_keys and isinstance(data, bytes):
            data = _from_json.decode(data)
        if self.codec != "json":
            event = _from_json.decode(data) if isinstance(data, bytes) else data
            if self.envelope != "cloudevents":
                return _msgpack.encode(event)
            attributes = self.attributes(fields)
            attributes["data"] = event
            return _msgpack.encode(attributes)
        text = data if isinstance(data, bytes) else _json.encode(data)
        if self.envelope != "cloudevents":
            return text
        identity = fields.identity
        if not _is_plain(identity):
            identity = _quote(identity)[1:-1]
        flags = self._flags(fields) if fields.synthetic or fields.truncated or fields.injected else ""
        return self.wrap(
            self.lead(fields.event), identity, fields.subject, fields.timestamp, fields.sequence, text, flags
        )

    def lead(self, event: str) -> str:
        """What the envelope of an event token says between identity and subject, for ``wrap``."""
        # Only the event token is known to need no quoting (topics.event_token escapes it).
        return f'{self._source}{event}"'

    def wrap(
        self, lead: str, identity: str, subject: str, timestamp: str, sequence: int, data: bytes, flags: str = ""
    ) -> bytes:
        """Put a JSON envelope around ``data``: the pieces of it that change, the others are made once.

        ``identity`` must need no quoting, ``lead`` comes from ``lead()``.
        """
        quoted = (self._quoted.get(subject) or self._quote_subject(subject)) if subject else ""
        number = str(sequence).zfill(10)
        fraction = timestamp.removeprefix(self._second)
        if len(fraction) == 6 and fraction.isdigit():
            text = (
                f'{{"specversion":"1.0","id":"{identity}{lead}{quoted}{self._second_text}{fraction}'
                f'{self._tail}{number}"{flags},"data":'
            )
        else:
            text = (
                f'{{"specversion":"1.0","id":"{identity}{lead}{quoted}{self._start_second(timestamp)}'
                f'{self._end}{number}"{flags},"data":'
            )
        return b"".join((text.encode(), data, b"}"))

    def _quote_subject(self, subject: str) -> str:
        if len(self._quoted) >= _QUOTED_LIMIT:
            self._quoted.clear()
        quoted = self._quoted[subject] = f',"subject":{_quote(subject)}'
        return quoted

    def _start_second(self, timestamp: str) -> str:
        # One strftime a second of FreeSWITCH's clock, not one an event.
        time = format_time(timestamp)
        if not time:
            return ""
        self._second = timestamp[:-6]
        self._second_time = time[:-7]
        self._second_text = f',"time":"{self._second_time}'
        return f',"time":"{time}"'

    @staticmethod
    def _flags(fields: EventFields) -> str:
        return "".join(f',"{name}":true' for name in ("synthetic", "truncated", "injected") if getattr(fields, name))

    def attributes(self, fields: EventFields) -> dict[str, Any]:
        """The envelope as a map without ``data`` (for msgpack, and for headers beside a bare event)."""
        attributes = self._base.copy()
        attributes["id"] = fields.identity
        attributes["type"] = TYPE_PREFIX + fields.event
        if fields.subject:
            attributes["subject"] = fields.subject
        timestamp = fields.timestamp
        fraction = timestamp.removeprefix(self._second)
        if len(fraction) == 6 and fraction.isdigit():
            attributes["time"] = f"{self._second_time}{fraction}Z"
        elif time := format_time(timestamp):
            self._start_second(timestamp)
            attributes["time"] = time
        attributes.update(self._origin)
        attributes["sequence"] = str(fields.sequence).zfill(10)
        if fields.synthetic or fields.truncated or fields.injected:
            for flag in ("synthetic", "truncated", "injected"):
                if getattr(fields, flag):
                    attributes[flag] = True
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


def format_time(timestamp: str) -> str:
    """RFC 3339 UTC with microseconds from FreeSWITCH's microseconds since 1970; empty when it is no such number."""
    if not (timestamp.isascii() and timestamp.isdigit() and 7 <= len(timestamp) <= 17):
        return ""
    second = datetime.fromtimestamp(int(timestamp[:-6]), UTC)
    return f"{second:%Y-%m-%dT%H:%M:%S}.{timestamp[-6:]}Z"


def _quote(text: str) -> str:
    return _json.encode(text).decode()


def _is_plain(identity: str) -> bool:
    # Hex digits, dashes and one colon: what FreeSWITCH stamps. Anything else is quoted with care.
    return identity.replace("-", "").replace(":", "").isalnum() and identity.isascii()


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
        flags = {name: True for name in ("synthetic", "truncated", "injected") if bare.get(name) == "true"}
        return EventMessage({**bare, **flags}, message, topic)
    data = message.pop("data", None)
    if not isinstance(data, dict):
        raise InvalidMessage("event message: data: expected a map")
    return EventMessage(message, data, topic)
