"""``[events]`` and its routes: the path from FreeSWITCH to the bus, as the operator writes it.

This room checks; it knows neither bus nor relay and hands them plain values.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from bridge.config.section import Section
from bridge.config.values import EventName, TopicText, fault, required, setting
from bridge.messages.topics import DEFAULT_TOPIC, TopicTemplate

Delivery = Literal["pubsub", "durable", "both"]
Codec = Literal["json", "msgpack"]

# What brokers and disks count with.
_MOST = 2**63 - 1
# As long as it takes for "for ever", in seconds.
_AGES = 3_153_600_000.0

DEFAULT_STREAMS = {"nats": "FS_EVENTS", "redis": "fs.events"}
_OWN_PREFIX = "fs.events."


class RouteSection(Section):
    """``[[events.route]]``: one more way for events."""

    name: str = required("Name of the route, unique; part of the message id (<id>/<name>)")
    topic: TopicText = required("Template of the topic; not under fs.events., which is the default route's")
    events: list[str] = setting([], "Globs of Event-Name; empty: all, or, with subclasses, none but those")
    subclasses: list[str] = setting([], "Globs of Event-Subclass; where given they decide over CUSTOM events")
    where: dict[str, str | list[str]] = setting(
        {}, "Header conditions that all must hold: header = glob, or a list of globs of which one must match"
    )
    codec: Codec | None = setting(None, "Encoding; absent: that of [events]")
    envelope: Literal["cloudevents", "none"] | None = setting(None, "Envelope; absent: that of [events]")
    keep: list[str] = setting([], 'Globs of header names that are told ("_body" is the body); empty: all')
    drop: list[str] = setting([], "Globs of header names that are left out")
    delivery: Delivery = setting("pubsub", "As in [events]; durable and both need a stream")
    stream: str = setting("", "Name of the JetStream stream, or key of the Redis stream; each durable route its own")
    unique_keys: bool = setting(False, "As in [events]")

    @model_validator(mode="after")
    def _check(self) -> RouteSection:
        if not self.name or not self.name.replace("-", "").replace("_", "").isalnum() or not self.name.isascii():
            raise fault("must be letters, digits, - and _", "name")
        template = _template(self.topic)
        if template.literal_prefix.startswith(_OWN_PREFIX) or self.topic.rstrip(".") == _OWN_PREFIX[:-1]:
            raise fault("lies under fs.events., where only the default route publishes", "topic")
        if self.delivery != "pubsub" and not self.stream:
            raise fault(f'delivery = "{self.delivery}" needs a stream of its own', "stream")
        if self.delivery == "pubsub" and self.stream:
            raise fault('is for delivery = "durable" or "both"', "stream")
        return self


class EventSettings(Section):
    """``[events]``: the path from FreeSWITCH to the bus."""

    subscribe: list[EventName] = setting(
        ["ALL"], 'Events to subscribe to, such as "CHANNEL_ANSWER", "CUSTOM:sofia::register"'
    )
    topic: TopicText = setting(
        DEFAULT_TOPIC,
        "Template of the topic; placeholders {event} {name} {subclass} {node} {uuid} {<any header>}",
    )
    delivery: Delivery = setting(
        "pubsub", "pubsub: who listens gets it; durable: kept in a stream (NATS JetStream, Redis); both"
    )
    stream: str = setting("", "Stream of a durable delivery; empty: FS_EVENTS (JetStream), fs.events (Redis)")
    stream_events: int = setting(
        1_000_000, "Most events of a stream that the bridge creates (Redis: MAXLEN ~)", unit="events", ge=1, le=_MOST
    )
    stream_bytes: int = setting(
        4_294_967_296, "Most bytes of a JetStream stream that the bridge creates", unit="bytes", ge=1_048_576, le=_MOST
    )
    stream_age: float = setting(86_400.0, "Longest life of an event in such a stream", unit="s", ge=0.1, le=_AGES)
    stream_replicas: int = setting(1, "Replicas of such a stream", unit="servers", ge=1, le=5)
    envelope: Literal["cloudevents", "none"] = setting("cloudevents", "none publishes FreeSWITCH's own JSON alone")
    codec: Codec | None = setting(None, "Encoding of events; absent: that of the bus")
    unique_keys: bool = setting(False, "Rewrite events in which FreeSWITCH repeats a key, for strict JSON parsers")
    buffer_events: int = setting(
        100_000,
        "Most events of this worker that wait in memory while the bus is away or slow",
        unit="events",
        ge=1,
        le=_MOST,
    )
    buffer_bytes: int = setting(
        16_777_216,
        "Most bytes of events that wait in memory, of all nodes together",
        unit="bytes",
        ge=1_048_576,
        le=_MOST,
    )
    buffer_disk: int = setting(
        2_147_483_648,
        "Most bytes of events that wait on disk, in worker.state_dir; 0: none",
        unit="bytes",
        ge=0,
        le=_MOST,
    )
    buffer_age: float = setting(300.0, "An event that waited longer than this is dropped", unit="s", gt=0, le=_AGES)
    durable_age: float = setting(
        86_400.0, "The same for a durable delivery, restarts included", unit="s", gt=0, le=_AGES
    )
    buffer_drop: Literal["oldest", "newest", "class"] = setting(
        "oldest",
        "What is dropped when there is no room: the oldest, the newest, or by class: HEARTBEAT and its like first, "
        "CHANNEL_HANGUP_COMPLETE and BACKGROUND_JOB last",
    )
    routes: list[RouteSection] = Field(
        default_factory=list,
        alias="route",
        description="More ways for events, each a table [[events.route]]",
        json_schema_extra={"unit": ""},
    )

    @field_validator("topic")
    @classmethod
    def _check_topic(cls, topic: str) -> str:
        _template(topic)
        return topic

    def faults(self, scheme: str) -> Iterator[tuple[str, str]]:
        """Yield ``(key, text)`` for what is wrong between the routes, on a bus of this URL scheme."""
        names: set[str] = set()
        streams = {} if self.delivery == "pubsub" else {self.stream_of(scheme): "the default route"}
        if self.delivery == "pubsub" and self.stream:
            yield "stream", 'is for delivery = "durable" or "both"'
        prefixes = {self.topic: "the default route"}
        for number, route in enumerate(self.routes):
            if route.name in names:
                yield f"route[{number}].name", f'"{route.name}" is the name of an earlier route already'
            names.add(route.name)
            if route.topic in prefixes:
                yield f"route[{number}].topic", f"is the topic of {prefixes[route.topic]} already"
            prefixes[route.topic] = f'route "{route.name}"'
            if route.stream:
                if route.stream in streams:
                    yield (
                        f"route[{number}].stream",
                        f'"{route.stream}" is the stream of {streams[route.stream]} already',
                    )
                streams[route.stream] = f'route "{route.name}"'
        if scheme in ("nats", "tls"):
            for name, owner in streams.items():
                if not name or any(mark in name for mark in " .*>/\\"):
                    key = "stream" if owner == "the default route" else "route"
                    yield key, f'"{name}" cannot name a JetStream stream (no dots, spaces or wildcards)'
            yield from self._overlaps()

    def _overlaps(self) -> Iterator[tuple[str, str]]:
        """JetStream refuses a stream that captures a topic of another one, and the second would be there never."""
        known: list[tuple[str, str]] = []
        if self.delivery != "pubsub":
            known.append((_captured(self.topic), "the default route"))
        for number, route in enumerate(self.routes):
            if route.delivery == "pubsub":
                continue
            captured = _captured(route.topic)
            for other, owner in known:
                if _overlap(captured, other):
                    yield (
                        f"route[{number}].topic",
                        f"its stream would capture {captured}, that of {owner} {other}: JetStream takes no streams "
                        "that overlap; begin with other literals, or make one of them pubsub",
                    )
            known.append((captured, f'route "{route.name}"'))

    def stream_of(self, scheme: str) -> str:
        """The stream of the default route."""
        return self.stream or DEFAULT_STREAMS["nats" if scheme in ("nats", "tls", "memory") else "redis"]

    @property
    def durable(self) -> bool:
        """Whether any route is durable."""
        return self.delivery != "pubsub" or any(route.delivery != "pubsub" for route in self.routes)


def event_routes(events: EventSettings, *, bus_codec: str, scheme: str) -> list[dict[str, Any]]:
    """Every route as plain values, the default one first, what is absent filled in."""
    codec = events.codec or bus_codec
    routes: list[dict[str, Any]] = [
        {
            "topic": events.topic,
            "codec": codec,
            "envelope": events.envelope,
            "unique_keys": events.unique_keys,
            "delivery": events.delivery,
            "stream": _stream(events, events.stream_of(scheme), events.topic) if events.delivery != "pubsub" else None,
        }
    ]
    for route in events.routes:
        where = {name: [globs] if isinstance(globs, str) else globs for name, globs in route.where.items()}
        routes.append(
            {
                "name": route.name,
                "topic": route.topic,
                "codec": route.codec or codec,
                "envelope": route.envelope or events.envelope,
                "unique_keys": route.unique_keys,
                "delivery": route.delivery,
                "stream": _stream(events, route.stream, route.topic) if route.stream else None,
                "events": route.events,
                "subclasses": route.subclasses,
                "where": where,
                "keep": route.keep,
                "drop": route.drop,
            }
        )
    return routes


def _captured(topic: str) -> str:
    """What JetStream captures for a route: its topic, or all that begins as it does."""
    template = TopicTemplate(topic)
    return f"{template.literal_prefix}>" if template.placeholders else topic


def _overlap(one: str, other: str) -> bool:
    """Whether a topic can be captured by both."""
    short, long = sorted((one, other), key=len)
    return one == other or (short.endswith(">") and long.startswith(short[:-1]))


def _stream(events: EventSettings, name: str, topic: str) -> dict[str, Any]:
    return {
        "name": name,
        "key": name,
        "topics": [_captured(topic)],
        "max_messages": events.stream_events,
        "max_bytes": events.stream_bytes,
        "max_age": events.stream_age,
        "replicas": events.stream_replicas,
    }


def _template(topic: str) -> TopicTemplate:
    try:
        return TopicTemplate(topic)
    except ValueError as error:
        raise fault(str(error)) from None
