from __future__ import annotations

import json

import msgpack
import pytest

from bridge.errors import InvalidRequest
from bridge.messages.codec import JSON, MSGPACK
from bridge.messages.command import CommandRequest, encode_request, fingerprint, parse_request

UUID = "7f4de4bc-17d7-11dd-b7a0-db4edd065621"
VALID = {
    "api": {"command": "status"},
    "bgapi": {"op": "bgapi", "command": "originate user/1000 &park", "accept": True},
    "execute": {"op": "execute", "uuid": UUID, "app": "playback", "arg": "a b", "wait": True},
    "hangup": {"op": "hangup", "uuid": UUID, "cause": "USER_BUSY"},
    "sendmsg": {"op": "sendmsg", "uuid": UUID, "headers": {"call-command": "nomedia"}, "body": "a\r\nb\n"},
    "sendevent": {"op": "sendevent", "event": "NOTIFY", "headers": {"profile": "x"}, "body": "x"},
}
COMMON = {
    "id": "abc",
    "to": "fs1",
    "timeout_ms": 1000,
    "deadline_ms": 1_700_000_000_000,
    "idempotent": True,
    "reply_to": "esl.reply.1",
    "meta": {"a": [1, {"b": None}]},
}


def refuse(fields: object, payload: bytes | None = None) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as info:
        parse_request(json.dumps(fields).encode() if payload is None else payload)
    assert str(info.value).startswith(info.value.field)
    return info.value


@pytest.mark.parametrize("op", VALID)
@pytest.mark.parametrize("codec", [JSON, MSGPACK])
def test_every_op_with_all_its_fields(op: str, codec: object) -> None:
    fields = {**VALID[op], **COMMON}
    payload = json.dumps(fields).encode() if codec is JSON else msgpack.packb(fields)
    request, found = parse_request(payload)
    assert found is codec
    assert request.op == op
    assert {name: getattr(request, name) for name in fields} == fields


@pytest.mark.parametrize("op", VALID)
@pytest.mark.parametrize("codec", [JSON, MSGPACK])
def test_what_the_client_encodes_is_read_back(op: str, codec: object) -> None:
    request = CommandRequest(**{**VALID[op], **COMMON})
    assert parse_request(encode_request(request, codec)) == (request, codec)


def test_absent_fields_are_not_written() -> None:
    assert encode_request(CommandRequest(command="status")) == b'{"command":"status"}'


def test_null_empty_text_and_integral_floats_are_forgiven() -> None:
    request, _ = parse_request(
        b'{"command":"status","uuid":null,"app":"","headers":null,"timeout_ms":2000.0,"id":null}'
    )
    assert request == CommandRequest(command="status", timeout_ms=2000)


@pytest.mark.parametrize(
    ("fields", "field", "text"),
    [
        ({}, "command", "is required for op api"),
        ({"command": "  "}, "command", "blank"),
        ({"op": "bgapi"}, "command", "is required"),
        ({"op": "execute", "app": "x"}, "uuid", "is required for op execute"),
        ({"op": "execute", "uuid": UUID}, "app", "is required"),
        ({"op": "hangup"}, "uuid", "is required"),
        ({"op": "sendmsg", "uuid": UUID}, "headers", "is required"),
        ({"op": "sendmsg", "headers": {"a": "b"}}, "uuid", "is required"),
        ({"op": "sendevent"}, "event", "is required"),
        ({"op": "nope", "command": "x"}, "op", "expected one of api, bgapi, execute, hangup, sendmsg, sendevent"),
        ({"op": 1, "command": "x"}, "op", "expected str, got int"),
        ({"command": "x", "timeout_ms": "5"}, "timeout_ms", "expected int, got str"),
        ({"command": "x", "timeout_ms": 1.5}, "timeout_ms", "expected int, got float"),
        ({"command": "x", "timeout_ms": True}, "timeout_ms", "expected int, got bool"),
        ({"command": "x", "timeout_ms": 0}, "timeout_ms", "positive"),
        ({"command": "x", "timeout_ms": -1}, "timeout_ms", "positive"),
        ({"command": "x", "deadline_ms": 0}, "deadline_ms", "positive"),
        ({"command": 5}, "command", "expected str, got int"),
        ({"command": ["status"]}, "command", "expected str, got list"),
        ({"command": "x", "accept": "yes", "op": "bgapi"}, "accept", "expected bool, got str"),
        ({"command": "x", "meta": []}, "meta", "expected map, got list"),
        ({"op": "sendevent", "event": "X", "headers": {"a": 1}}, "headers.a", "expected str, got int"),
        ({"op": "sendevent", "event": "X", "headers": {"a": None}}, "headers.a", "expected str, got null"),
        ({"command": "x", "timeout": 5}, "timeout", "unknown field, did you mean timeout_ms?"),
        ({"command": "x", "zzzzzz": 5}, "zzzzzz", "unknown field"),
        ({"command": "x", "app": "y"}, "app", "does not belong to op api"),
        ({"command": "x", "accept": True}, "accept", "does not belong to op api"),
        ({"command": "x", "wait": True}, "wait", "does not belong"),
        ({"command": "x", "headers": {"a": "b"}}, "headers", "does not belong"),
        ({"op": "hangup", "uuid": UUID, "command": "x"}, "command", "does not belong to op hangup"),
        ({"op": "sendevent", "event": "X", "uuid": UUID}, "uuid", "does not belong"),
        ({"op": "sendmsg", "uuid": UUID, "headers": {"a": "b"}, "event": "X"}, "event", "does not belong"),
        ({"command": "x", "id": "a" * 129}, "id", "1 to 128 printable"),
        ({"command": "x", "id": "a\tb"}, "id", "printable"),
        ({"command": "x", "id": 7}, "id", "expected str, got int"),
        ({"command": "x", "to": "fs 1"}, "to", "node name"),
        ({"command": "x", "to": "call:"}, "to", "uuid"),
        ({"command": "x", "to": "call:a b"}, "to", "uuid"),
        ({"command": "x", "to": "tag:"}, "to", "tag"),
        ({"command": "x", "to": "tag:a b"}, "to", "tag"),
        ({"command": "x", "to": "nodes:a"}, "to", "expected any, all"),
        ({"op": "bgapi", "command": "x", "to": "all", "accept": True}, "accept", "to: all"),
        ({"command": "x", "reply_to": "fs.events.X"}, "reply_to", "its own"),
        ({"command": "x", "reply_to": "esl.reply.*"}, "reply_to", "wildcard"),
        ({"command": "x", "reply_to": "a" * 257}, "reply_to", "256"),
        ({"op": "sendevent", "event": "X", "headers": {"Content-Length": "9"}}, "headers", "Content-Length"),
        ({"op": "sendevent", "event": "X", "headers": {"Content-Length[0]": "9"}}, "headers", "Content-Length"),
        ({"op": "sendevent", "event": "X", "headers": {"COMMAND[0]": "api x"}}, "headers", "place of the command"),
        ({"op": "sendevent", "event": "X", "headers": {"a b": "9"}}, "headers", "not a header's name"),
        ({"op": "sendevent", "event": "X", "headers": {"a:b": "9"}}, "headers", "not a header's name"),
        ({"op": "sendevent", "event": "X", "headers": {"": "9"}}, "headers", "not a header's name"),
        ({"op": "sendevent", "event": "A B"}, "event", "event's name"),
        ({"op": "execute", "uuid": UUID, "app": "play back"}, "app", "application's name"),
        ({"op": "execute", "uuid": "a b", "app": "x"}, "uuid", "printable"),
        ({"op": "execute", "uuid": "a" * 257, "app": "x"}, "uuid", "256"),
        ({"op": "hangup", "uuid": UUID, "cause": "A B"}, "cause", "hangup cause"),
    ],
)
def test_every_fault_is_named_by_its_field(fields: dict[str, object], field: str, text: str) -> None:
    error = refuse(fields)
    assert error.field == field
    assert text in str(error)


@pytest.mark.parametrize("char", ["\r", "\n", "\0"])
@pytest.mark.parametrize(
    ("op", "field"),
    [
        ("api", "command"),
        ("bgapi", "command"),
        ("execute", "uuid"),
        ("execute", "app"),
        ("execute", "arg"),
        ("hangup", "uuid"),
        ("hangup", "cause"),
        ("sendmsg", "uuid"),
        ("sendevent", "event"),
    ],
)
def test_line_ends_and_nul_are_refused_in_every_field_that_is_written_as_a_line(op: str, field: str, char: str) -> None:
    for value in (f"a{char}b", f"{char}a", f"a{char}"):
        error = refuse({**VALID[op], field: value})
        assert error.field == field
        assert "holds a" in str(error)


@pytest.mark.parametrize("char", ["\r", "\n", "\0"])
def test_line_ends_and_nul_are_refused_in_headers(char: str) -> None:
    assert refuse({**VALID["sendmsg"], "headers": {"x": f"a{char}b"}}).field == "headers.x"
    assert refuse({**VALID["sendmsg"], "headers": {f"x{char}": "a"}}).field == "headers"


def test_a_body_may_hold_line_ends_but_no_nul() -> None:
    assert parse_request(json.dumps({**VALID["sendevent"], "body": "a\r\n\nb"}).encode())[0].body == "a\r\n\nb"
    assert refuse({**VALID["sendevent"], "body": "a\0b"}).field == "body"


def test_other_odd_characters_of_a_command_line_are_no_fault() -> None:
    for line in ("a\tb", "é \u2028 \x85 \x0b", "originate {x='ü'}user/1000 &park"):
        assert parse_request(json.dumps({"command": line}).encode())[0].command == line


@pytest.mark.parametrize(
    "to", ["any", "all", "fs1", "call:" + UUID, "call:my id".replace(" ", "_"), "tag:media", "tag:eu.west"]
)
def test_targets(to: str) -> None:
    assert parse_request(json.dumps({"command": "x", "to": to}).encode())[0].to == to


def test_whom_to_answer_is_recovered_from_a_refused_request() -> None:
    error = refuse({"id": "r1", "reply_to": "esl.reply.r1", "command": 5})
    assert (error.id, error.reply_to) == ("r1", "esl.reply.r1")
    error = refuse({"id": "r1", "reply_to": "esl.reply.r1", "command": "a\nb"})
    assert (error.id, error.reply_to) == ("r1", "esl.reply.r1")


def test_what_is_itself_wrong_is_not_recovered() -> None:
    error = refuse({"id": "a\nb", "reply_to": "fs.events.X", "command": 5})
    assert (error.id, error.reply_to) == (None, None)
    error = refuse({"id": "a\nb", "reply_to": "fs.events.X", "command": "x"})
    assert (error.id, error.reply_to) == (None, None)


def test_text_that_is_not_utf8_names_its_field_and_still_finds_the_sender() -> None:
    error = refuse(None, b'{"id":"r1","command":"caf\xe9"}')
    assert (error.field, error.id) == ("command", "r1")
    error = refuse(None, b"\x82\xa2id\xa2r1\xa7command\xa4caf\xe9")
    assert (error.field, error.id) == ("command", "r1")
    error = refuse(None, b'{"id":"\xff","command":"x"}')
    assert (error.field, error.id) == ("id", None)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"hello",
        b"[]",
        b"{",
        b"{} {}",
        b'"x"',
        b"null",
        b'{"id":"\\ud800"}',
        b'{"meta":' + b'{"a":' * 50_000,
        b"\x81",
        b"\xdf\xff\xff\xff\xff",
    ],
)
def test_what_is_no_map_at_all(payload: bytes) -> None:
    assert refuse(None, payload).id is None


def test_meta_that_could_not_be_echoed_is_refused_at_the_door() -> None:
    deep: object = "x"
    for _ in range(40):
        deep = [deep]
    assert refuse({"command": "x", "meta": {"a": deep}}).field == "meta"
    assert refuse({"command": "x", "meta": {"a": 2**70}}).field == "meta"
    for value in ({1: "a"}, msgpack.ExtType(5, b"x"), msgpack.Timestamp(1, 1)):
        assert refuse(None, msgpack.packb({"command": "x", "meta": {"a": value}})).field == "meta"


def test_meta_may_hold_whatever_both_codecs_can_say() -> None:
    meta = {"a": [1, -(2**63), 2**64 - 1, 1.5, None, True, "é", {"b": {}}]}
    assert parse_request(json.dumps({"command": "x", "meta": meta}).encode())[0].meta == meta


def test_the_deadline_is_the_earlier_of_all_limits() -> None:
    def deadline(**fields: int) -> float:
        return CommandRequest(command="x", **fields).deadline(1000.0, 10.0, 3600.0)

    assert deadline() == 1010.0
    assert deadline(timeout_ms=2500) == 1002.5
    assert deadline(timeout_ms=60_000) == 1060.0
    assert deadline(timeout_ms=10**400) == 4600.0
    assert deadline(deadline_ms=1_001_500) == 1001.5
    assert deadline(deadline_ms=10**400) == 4600.0
    assert deadline(deadline_ms=5) == 0.005
    assert deadline(timeout_ms=2500, deadline_ms=1_001_500) == 1001.5
    assert deadline(timeout_ms=1000, deadline_ms=1_001_500) == 1001.0
    assert CommandRequest(command="x").deadline(1000.0, 10.0, 5.0) == 1005.0


def test_a_fingerprint_is_of_the_content_alone() -> None:
    base = CommandRequest(op="sendmsg", uuid=UUID, headers={"a": "1", "b": "2"})
    same = CommandRequest(
        op="sendmsg",
        uuid=UUID,
        headers={"b": "2", "a": "1"},
        id="x",
        reply_to="r",
        timeout_ms=5,
        deadline_ms=6,
        meta={"m": 1},
    )
    assert fingerprint(base) == fingerprint(same)
    assert len(fingerprint(base)) == 16


@pytest.mark.parametrize("op", VALID)
def test_every_field_of_content_changes_the_fingerprint(op: str) -> None:
    fields = {k: v for k, v in VALID[op].items() if k not in ("op", "accept")}
    request = CommandRequest(**VALID[op])
    seen = {fingerprint(request), fingerprint(CommandRequest(**{**VALID[op], "to": "fs1"}))}
    for name, value in fields.items():
        changed = not value if isinstance(value, bool) else {"z": "z"} if isinstance(value, dict) else value + "x"
        seen.add(fingerprint(CommandRequest(**{**VALID[op], name: changed})))
    assert len(seen) == 2 + len(fields)


def test_text_cannot_slip_from_one_field_into_the_next() -> None:
    first = CommandRequest(op="execute", uuid="u", app="ab", arg="c")
    second = CommandRequest(op="execute", uuid="u", app="a", arg="bc")
    assert fingerprint(first) != fingerprint(second)
