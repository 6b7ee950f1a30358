"""The AsyncAPI document: valid by the official schema, and true to the messages that the bridge reads and writes."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
import yaml

from bridge.cli.asyncapi import document_of, render_yaml
from bridge.config import Settings
from bridge.errors import InvalidRequest
from bridge.messages.asyncapi import describe_bus
from bridge.messages.command import CommandReply, Executed, Status, Timing, encode_reply, parse_request
from bridge.messages.envelope import EventEnvelope
from bridge.messages.event import EventEncoder, EventFields
from bridge.messages.notice import NOTICES, GapNotice, encode_notice

DATA = Path(__file__).parent / "data" / "asyncapi" / "3.0.0-schema.json.gz"


@pytest.fixture(scope="module")
def official() -> jsonschema.Draft7Validator:
    return jsonschema.Draft7Validator(json.loads(gzip.decompress(DATA.read_bytes())))


def document(**other: Any) -> dict[str, Any]:
    given = {"bus": "nats", "host": "127.0.0.1:4222", "codec": "json", "topic": "fs.events.{event}", "queue": "esl.cmd"}
    return describe_bus(**{"version": "1.2.3", **given, **other})


def validator_of(schema: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator({"$ref": f"#/components/schemas/{schema}", **document()})


@pytest.mark.parametrize("codec", ["json", "msgpack"])
@pytest.mark.parametrize("bus", ["nats", "redis"])
@pytest.mark.parametrize("topic", ["fs.events.{event}", "fs.calls.{node}.{uuid}.{variable_sip_call-id}", "one.topic"])
def test_it_is_valid_by_the_official_schema(
    official: jsonschema.Draft7Validator, bus: str, topic: str, codec: str
) -> None:
    made = document(bus=bus, topic=topic, codec=codec, nodes=["fs1", "fs2"])
    assert [f"{error.json_path}: {error.message}" for error in official.iter_errors(made)] == []


def test_the_official_schema_refuses_a_wrong_document(official: jsonschema.Draft7Validator) -> None:
    made = document()
    made["operations"]["take_requests"]["action"] = "listen"
    assert not official.is_valid(made)


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def test_every_reference_leads_somewhere() -> None:
    made = document()
    found = set(references(made))
    assert "#/components/schemas/CommandRequest" in found
    for reference in found:
        place: Any = made
        for step in reference.removeprefix("#/").split("/"):
            place = place[step]


def test_every_field_is_described() -> None:
    bare = [
        f"{name}.{key}"
        for name, schema in document()["components"]["schemas"].items()
        for key, field in schema.get("properties", {}).items()
        if not field.get("description")
    ]
    assert bare == []


@pytest.mark.parametrize("subject", ["", "3a4db85e-ab29-4995-bb0a-f901dfd11871"])
@pytest.mark.parametrize("flag", ["", "synthetic", "truncated", "injected"])
@pytest.mark.parametrize("codec", ["json", "msgpack"])
def test_what_the_encoder_writes_is_what_is_documented(codec: str, flag: str, subject: str) -> None:
    encoder = EventEncoder(codec=codec, envelope="cloudevents", node="fs1", worker="gw-1", epoch="00.11.22")
    fields = EventFields("core:7", "CHANNEL_ANSWER", subject, "1795375967373164", 42, **({flag: True} if flag else {}))
    payload = encoder.encode(fields, b'{"Event-Name":"CHANNEL_ANSWER","variable_list":["a","b"]}')
    read = msgspec.json.decode if codec == "json" else msgspec.msgpack.decode
    envelope = read(payload, type=EventEnvelope)  # refuses attributes that it does not know
    assert envelope.id == "core:7"
    validator_of("EventEnvelope").validate(read(payload))


def test_the_documented_envelope_holds_nothing_that_the_encoder_never_writes() -> None:
    encoder = EventEncoder(codec="json", envelope="cloudevents", node="fs1", worker="gw-1", epoch="00.11.22")
    fields = EventFields("core:7", "X", "uuid", "1795375967373164", 1, synthetic=True, truncated=True, injected=True)
    assert set(msgspec.json.decode(encoder.encode(fields, b"{}"))) == set(EventEnvelope.__struct_fields__)


REQUESTS = [
    {"command": "status"},
    {"id": "1", "op": "bgapi", "command": "originate user/1000 &park", "accept": True, "timeout_ms": 1000},
    {"op": "execute", "uuid": "u", "app": "playback", "arg": "x.wav", "wait": True},
    {"op": "hangup", "uuid": "u", "cause": "USER_BUSY", "meta": {"any": [1, None]}},
    {"op": "sendmsg", "uuid": "u", "headers": {"call-command": "unicast"}, "body": "b"},
    {"op": "sendevent", "event": "NOTIFY", "headers": {"profile": "internal"}, "to": "all"},
]
WRONG = [
    {},
    {"op": "bgapi"},
    {"op": "execute", "uuid": "u"},
    {"op": "hangup"},
    {"op": "sendmsg", "uuid": "u"},
    {"op": "sendevent"},
    {"op": "shout", "command": "status"},
    {"command": "status", "timeout": 5},
    {"command": 5},
]


@pytest.mark.parametrize("request_map", REQUESTS, ids=json.dumps)
def test_schema_and_parser_take_the_same_requests(request_map: dict[str, Any]) -> None:
    parse_request(json.dumps(request_map).encode())
    validator_of("CommandRequest").validate(request_map)


@pytest.mark.parametrize("request_map", WRONG, ids=json.dumps)
def test_schema_and_parser_refuse_the_same_requests(request_map: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        parse_request(json.dumps(request_map).encode())
    assert not validator_of("CommandRequest").is_valid(request_map)


@pytest.mark.parametrize("status", list(Status))
def test_every_reply_fits_its_schema(status: Status) -> None:
    part = CommandReply(id="1", status=status, executed=Executed.UNKNOWN, node="fs1", timing=Timing(esl_ms=1.5))
    whole = CommandReply(id="1", status=status, executed=Executed.YES, result="+OK", meta={"a": 1}, replies=[part])
    validator_of("CommandReply").validate(json.loads(encode_reply(whole)))


@pytest.mark.parametrize("kind", sorted(NOTICES))
def test_every_kind_of_notice_has_a_channel_and_an_operation(kind: str) -> None:
    made = document()
    assert made["channels"][f"notice_{kind}"]["address"] == f"fs.bridge.{kind}"
    assert made["operations"][f"tell_{kind}"]["action"] == "send"


def test_a_notice_fits_its_schema() -> None:
    payload = encode_notice(
        "gap",
        GapNotice(reason="bus", start="2026-01-01T00:00:00.000000Z", count=3, exact=False),
        worker="gw-1",
        instance="i",
        number=1,
        time=1.0,
        node="fs1",
    )
    message = document()["components"]["messages"]["notice_gap"]["payload"]
    whole = jsonschema.Draft202012Validator({**message, **document()})
    whole.validate(json.loads(payload))
    assert not whole.is_valid({**json.loads(payload), "data": {"reason": "boredom"}})


def test_the_document_of_a_configuration_holds_no_secret_and_its_own_addresses() -> None:
    settings = Settings.model_validate(
        {
            "bus": {"url": "redis://alice:s3cr@t@bus.example:6390/1?x=1", "codec": "msgpack"},
            "commands": {"queue": "pbx.cmd"},
            "node": [{"name": "fs7", "url": "fs://:g3heim@10.0.0.5"}],
        }
    )
    made = document_of(settings)
    assert made["servers"]["bus"] == {"host": "bus.example:6390", "protocol": "redis", "description": "The broker."}
    assert made["channels"]["requests"]["address"] == "pbx.cmd"
    assert made["channels"]["node_requests"]["parameters"]["node"]["enum"] == ["fs7"]
    assert made["components"]["messages"]["event"]["contentType"] == "application/cloudevents+msgpack"
    assert "durable_requests" not in made["channels"]
    text = json.dumps(made)
    assert "cr@t" not in text
    assert "alice" not in text
    assert "g3heim" not in text


def test_routes_and_the_durable_queues_of_nodes_are_in_it(official: jsonschema.Draft7Validator) -> None:
    settings = Settings.model_validate(
        {
            "events": {
                "route": [
                    {"name": "calls", "topic": "pbx.calls.{node}.{uuid}.{variable_sip_call-id}"},
                    {"name": "raw-1", "topic": "pbx.raw.{name}", "envelope": "none", "codec": "msgpack"},
                ],
            },
            "node": [{"name": "fs7", "url": "fs://:x@10.0.0.5"}],
        }
    )
    made = document_of(settings)
    assert not list(official.iter_errors(made))
    channels, messages = made["channels"], made["components"]["messages"]
    assert channels["events_calls"]["address"] == "pbx.calls.{node}.{uuid}.{variable_sip_call-id}"
    assert channels["events_calls"]["parameters"]["node"]["enum"] == ["fs7"]
    assert channels["events_calls"]["messages"] == {"event": {"$ref": "#/components/messages/event"}}
    assert channels["events_raw-1"]["address"] == "pbx.raw.{name}"
    assert messages["events_raw-1"]["contentType"] == "application/msgpack"
    assert "$ref" not in messages["events_raw-1"]["payload"]
    assert made["operations"]["publish_events_raw-1"]["channel"] == {"$ref": "#/channels/events_raw-1"}
    assert channels["durable_node_requests"]["address"] == "esl.queue.{node}"
    assert channels["durable_node_requests"]["parameters"]["node"]["enum"] == ["fs7"]
    assert made["operations"]["take_durable_node_requests"]["reply"]


def test_bare_events_are_not_described_as_cloudevents() -> None:
    made = document_of(Settings.model_validate({"events": {"envelope": "none"}}))
    messages = made["components"]["messages"]
    assert messages["event"]["contentType"] == "application/json"
    assert "$ref" not in messages["event"]["payload"]
    assert messages["notice_gap"]["contentType"] == "application/cloudevents+json"


def test_yaml_and_json_say_the_same() -> None:
    made = document(nodes=["no", "1e3", "fs1"])
    assert yaml.safe_load("\n".join(render_yaml(made))) == json.loads(json.dumps(made))
