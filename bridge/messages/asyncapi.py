"""The bus's language as an AsyncAPI 3 document, made from the types that read and write it.

It never reads a configuration and never prints: values come in as arguments, a map goes out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from bridge.messages.envelope import EventEnvelope
from bridge.messages.notice import NOTICES, TYPE_PREFIX, Notice
from bridge.messages.reply import STATUSES, CommandReply
from bridge.messages.request import CommandRequest
from bridge.messages.topics import NOTICE_PREFIX
from bridge.messages.validation import required_fields

ASYNCAPI_VERSION = "3.0.0"
DURABLE_QUEUE = "esl.queue"
DEAD_LETTERS = "esl.dead"
QUEUE_GROUP = "esl-bridge"

Map = dict[str, Any]


class EventRoute(NamedTuple):
    """One more way for events: the template of its topics, encoding (``"json"``) and envelope (``"none"``)."""

    name: str
    topic: str
    codec: str
    envelope: str = "cloudevents"


_DESCRIPTION = (
    "Events of FreeSWITCH servers on topics; command requests on a queue, each with one correlated reply. "
    "Written from the bridge's side: it sends events and notices, and receives requests."
)


def describe_bus(
    *,
    version: str,
    bus: str,
    host: str,
    codec: str,
    topic: str,
    queue: str,
    envelope: str = "cloudevents",
    routes: Sequence[EventRoute] = (),
    nodes: Sequence[str] = (),
) -> Map:
    """Return the document for one bus (``"nats"`` or ``"redis"`` at ``host``).

    ``codec`` is that of events and notices, ``topic`` and ``envelope`` are those of the default route, ``routes`` the
    further ones, ``queue`` is the command queue, ``nodes`` the known nodes' names.
    """
    events, requests = f"application/cloudevents+{codec}", f"application/{codec}"
    channels: Map = {
        "events": _channel(
            _address(topic), "Every event of FreeSWITCH, on a topic of its name.", ["event"], _parameters(topic, nodes)
        ),
        **{
            f"notice_{kind}": _channel(NOTICE_PREFIX + kind, _summary(shape), [f"notice_{kind}"])
            for kind, shape in NOTICES.items()
        },
        "requests": _channel(queue, "Command requests; any worker takes one.", ["request"]),
        "node_requests": _channel(
            f"{queue}.{{node}}",
            "Command requests for one node, executed strictly one after another.",
            ["request"],
            {"node": _node_parameter(nodes)},
        ),
        "replies": {
            "address": None,
            "description": "The reply address of the request: NATS's own reply subject, or reply_to in the body.",
            "messages": {"reply": {"$ref": "#/components/messages/reply"}},
        },
        "dead_letters": _channel(
            DEAD_LETTERS,
            "Requests that could not be read or answered, as they came, with the reason beside them.",
            ["dead_letter"],
        ),
    }
    if bus == "nats":
        channels["durable_requests"] = _channel(
            DURABLE_QUEUE, "The same requests through JetStream; reply_to in the body is required.", ["request"]
        )
        channels["durable_node_requests"] = _channel(
            f"{DURABLE_QUEUE}.{{node}}",
            "The same through JetStream for one node, executed strictly one after another; reply_to is required.",
            ["request"],
            {"node": _node_parameter(nodes)},
        )
    messages = _messages(_event_type(codec, envelope), envelope, events, requests)
    for route in routes:
        name = "events_" + _plain(route.name)
        message = messages["event"] | _event(_event_type(route.codec, route.envelope), route.envelope)
        shared = message == messages["event"]
        if not shared:
            messages[name] = message | {"name": name}
        text = f'Events of the route "{route.name}".'
        told = ["event" if shared else name]
        channels[name] = _channel(_address(route.topic), text, told, _parameters(route.topic, nodes))
    return {
        "asyncapi": ASYNCAPI_VERSION,
        "info": {
            "title": "esl-bridge",
            "version": version,
            "description": _DESCRIPTION,
            "license": {"name": "MIT"},
        },
        "defaultContentType": requests,
        "servers": {"bus": {"host": host, "protocol": bus, "description": "The broker."}},
        "channels": channels,
        "operations": _operations(channels, bus, routes),
        "components": {"messages": messages, "schemas": _schemas()},
    }


def _operations(channels: Map, bus: str, routes: Sequence[EventRoute]) -> Map:
    def of(action: str, channel: str, summary: str) -> Map:
        return {"action": action, "channel": {"$ref": f"#/channels/{channel}"}, "summary": summary}

    operations = {"publish_events": of("send", "events", "Publish every event.")}
    for route in routes:
        channel = "events_" + _plain(route.name)
        operations[f"publish_{channel}"] = of("send", channel, f'Publish the events of the route "{route.name}".')
    for kind in NOTICES:
        operations[f"tell_{kind}"] = of("send", f"notice_{kind}", f"Tell a notice of kind {kind}.")
    takes = {"take_requests": "requests", "take_node_requests": "node_requests"}
    if "durable_requests" in channels:
        takes["take_durable_requests"] = "durable_requests"
        takes["take_durable_node_requests"] = "durable_node_requests"
    for name, channel in takes.items():
        operation = of("receive", channel, "Execute a request and answer it.")
        operation["reply"] = {
            "address": {
                "location": "$message.payload#/reply_to",
                "description": "Where the body has none: NATS's reply subject; on Redis the list esl.reply.<id>.",
            },
            "channel": {"$ref": "#/channels/replies"},
        }
        if bus == "nats" and channel == "requests":
            operation["bindings"] = {"nats": {"queue": QUEUE_GROUP}}
        operations[name] = operation
    operations["bury_requests"] = of("send", "dead_letters", "Keep what could not be answered.")
    return operations


def _event_type(codec: str, envelope: str) -> str:
    return f"application/{'cloudevents+' if envelope == 'cloudevents' else ''}{codec}"


def _event(content_type: str, envelope: str) -> Map:
    bare = {"type": "object", "description": "FreeSWITCH's own JSON event: header names as sent, body under _body."}
    whole = {"$ref": "#/components/schemas/EventEnvelope"}
    return {"contentType": content_type, "payload": whole if envelope == "cloudevents" else bare}


def _messages(event_type: str, envelope: str, events: str, requests: str) -> Map:
    correlation = {"location": "$message.payload#/id", "description": "The request's id, repeated in its reply."}
    messages: Map = {
        "event": {
            "name": "event",
            "title": "Event",
            **_event(event_type, envelope),
        },
        "request": {
            "name": "request",
            "title": "Command request",
            "contentType": requests,
            "correlationId": correlation,
            "payload": {"$ref": "#/components/schemas/CommandRequest"},
        },
        "reply": {
            "name": "reply",
            "title": "Command reply",
            "contentType": requests,
            "correlationId": correlation,
            "payload": {"$ref": "#/components/schemas/CommandReply"},
        },
        "dead_letter": {
            "name": "dead_letter",
            "title": "Dead letter",
            "description": "The request's bytes as they came.",
            "payload": {},
        },
    }
    for kind, shape in NOTICES.items():
        messages[f"notice_{kind}"] = {
            "name": f"notice_{kind}",
            "title": f"Notice: {kind}",
            "summary": _summary(shape),
            "contentType": events,
            "payload": {
                "allOf": [
                    {"$ref": "#/components/schemas/Notice"},
                    {
                        "properties": {
                            "type": {"const": TYPE_PREFIX + kind},
                            "data": {"$ref": f"#/components/schemas/{shape.__name__}"},
                        }
                    },
                ]
            },
        }
    return messages


def _schemas() -> Map:
    """Schemas of all types, with what the types alone cannot say added from the tables that the checks use."""
    _, schemas = msgspec.json.schema_components(
        [EventEnvelope, CommandRequest, CommandReply, Notice, *NOTICES.values()],
        schema_hook=lambda kind: {"description": "Any value"},
        ref_template="#/components/schemas/{name}",
    )
    schemas["CommandRequest"]["allOf"] = [
        {
            "if": {"properties": {"op": {"const": op}}, **({} if op == "api" else {"required": ["op"]})},
            "then": {"required": list(fields)},
        }
        for op, fields in required_fields().items()
    ]
    schemas["Status"]["description"] = "; ".join(f"{status}: {row.meaning}" for status, row in STATUSES.items())
    return schemas


def _channel(address: str, description: str, messages: Sequence[str], parameters: Map | None = None) -> Map:
    channel: Map = {
        "address": address,
        "description": description,
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in messages},
    }
    if parameters:
        channel["parameters"] = parameters
    return channel


PLACEHOLDERS = {
    "event": "Event-Name, or CUSTOM:<Event-Subclass>; one token, other characters as %XX",
    "name": "Event-Name",
    "subclass": "Event-Subclass, - where there is none",
    "node": "Name of the node",
    "uuid": "The channel's Unique-ID, - where there is none",
}


def _placeholders(topic: str) -> list[str]:
    return [part.partition("}")[0] for part in topic.split("{")[1:]]


def _address(topic: str) -> str:
    # AsyncAPI's parameter names know letters, digits, _ and -; a header's may hold more.
    for name in _placeholders(topic):
        topic = topic.replace(f"{{{name}}}", f"{{{_plain(name)}}}")
    return topic


def _parameters(topic: str, nodes: Sequence[str]) -> Map:
    parameters: Map = {}
    for name in _placeholders(topic):
        text = PLACEHOLDERS.get(name, f"The header {name}, - where there is none")
        parameters[_plain(name)] = _node_parameter(nodes) if name == "node" else {"description": text}
    return parameters


def _plain(name: str) -> str:
    return "".join(char if char.isalnum() or char in "_-" else "_" for char in name)


def _node_parameter(nodes: Sequence[str]) -> Map:
    parameter: Map = {"description": PLACEHOLDERS["node"]}
    if nodes:
        parameter["enum"] = list(nodes)
    return parameter


def _summary(kind: type) -> str:
    return (kind.__doc__ or "").strip().splitlines()[0].replace("``", "`")
