"""The event message: contract section 3 to the letter, in both codecs and envelopes."""

from __future__ import annotations

import json
from typing import Any

import msgpack
import pytest

from bridge.errors import InvalidMessage
from bridge.messages.event import (
    BARE_CONTENT_TYPES,
    CONTENT_TYPES,
    EventEncoder,
    EventFields,
    decode_event,
    drop_body,
    format_time,
)

CORE = "1cf893f9-c9cc-4e54-9e23-2e22ad9f7594"
UUID = "fb9f8c61-e0f1-4e42-8b2b-566b19253652"
DATA = (
    f'{{"Event-Name":"CHANNEL_ANSWER","Core-UUID":"{CORE}","Event-Sequence":"13663",'
    f'"Event-Date-Timestamp":"1795375967373164","Unique-ID":"{UUID}","variable_x":["a","b"]}}'
).encode()
EPOCH = "0000000000000007.019a00000000.beef"


def encoder(**changes: Any) -> EventEncoder:
    settings: dict[str, Any] = {
        "codec": "json", "envelope": "cloudevents", "node": "fs1", "worker": "w1", "epoch": EPOCH,
    }  # fmt: skip
    return EventEncoder(**{**settings, **changes})


def fields(**changes: Any) -> EventFields:
    values: dict[str, Any] = {
        "identity": f"{CORE}:13663",
        "event": "CHANNEL_ANSWER",
        "subject": UUID,
        "timestamp": "1795375967373164",
        "sequence": 42,
    }
    return EventFields(**{**values, **changes})


ENVELOPE = {
    "specversion": "1.0",
    "id": f"{CORE}:13663",
    "source": "/freeswitch/fs1",
    "type": "org.freeswitch.CHANNEL_ANSWER",
    "subject": UUID,
    "time": "2026-11-22T19:32:47.373164Z",
    "node": "fs1",
    "worker": "w1",
    "epoch": EPOCH,
    "sequence": "0000000042",
}


def test_json_message_is_a_cloudevent_around_freeswitchs_own_bytes() -> None:
    payload = encoder().encode(fields(), DATA)
    assert json.loads(payload) == {**ENVELOPE, "data": json.loads(DATA)}
    assert payload.endswith(b'"data":' + DATA + b"}")


def test_msgpack_message_is_the_same_map() -> None:
    payload = encoder(codec="msgpack").encode(fields(), DATA)
    assert msgpack.unpackb(payload) == {**ENVELOPE, "data": json.loads(DATA)}


@pytest.mark.parametrize("sequence", [1, 9_999_999_999, 10_000_000_000])
@pytest.mark.parametrize("node", ["fs1", "knoten-ü", "n" * 300])
@pytest.mark.parametrize("subject", [UUID, ""])
def test_msgpack_put_together_is_msgpack_encoded_at_once(sequence: int, node: str, subject: str) -> None:
    one = encoder(codec="msgpack", node=node)
    said = fields(sequence=sequence, subject=subject, synthetic=True, injected=True)
    whole = {**one.attributes(said), "data": json.loads(DATA)}
    assert one.encode(said, DATA) == msgpack.packb(whole)
    assert one.encode(said, json.loads(DATA)) == msgpack.packb(whole)


@pytest.mark.parametrize("codec", ["json", "msgpack"])
def test_flags_stand_only_where_they_apply(codec: str) -> None:
    one = decode_event(encoder(codec=codec).encode(fields(injected=True, truncated=True), DATA))
    assert (one.injected, one.truncated, one.synthetic) == (True, True, False)
    assert "synthetic" not in one.attributes
    other = decode_event(encoder(codec=codec).encode(fields(synthetic=True), DATA))
    assert (other.injected, other.truncated, other.synthetic) == (False, False, True)


@pytest.mark.parametrize("codec", ["json", "msgpack"])
def test_subject_and_time_are_absent_where_the_event_has_none(codec: str) -> None:
    event = decode_event(encoder(codec=codec).encode(fields(subject="", timestamp=""), DATA))
    assert "subject" not in event.attributes
    assert "time" not in event.attributes


@pytest.mark.parametrize("codec", ["json", "msgpack"])
@pytest.mark.parametrize("subject", ['a"b', "a\\b", "tab\there", "é\u2028", "x" * 500])
@pytest.mark.parametrize("identity", ['co"re:1', f"{CORE}:13663", "é:1", ":", "9" * 31, "9" * 32, "é" * 40, "x" * 256])
def test_what_a_caller_controls_is_quoted(subject: str, identity: str, codec: str) -> None:
    event = decode_event(encoder(codec=codec).encode(fields(subject=subject, identity=identity), DATA))
    assert event.uuid == subject
    assert event.id == identity


def test_a_new_second_changes_the_time_and_an_old_one_comes_back() -> None:
    one = encoder()
    stamps = ["1795375967373164", "1795375968000001", "1795375967999999"]
    times = [decode_event(one.encode(fields(timestamp=stamp), DATA)).time for stamp in stamps]
    assert times == ["2026-11-22T19:32:47.373164Z", "2026-11-22T19:32:48.000001Z", "2026-11-22T19:32:47.999999Z"]


@pytest.mark.parametrize(
    "stamp", ["", "x", "12", "-1795375967373164", "١٧٩٥٣٧٥٩٦٧٣٧٣١٦٤", "1795375967٣٧٣١٦٤", "9" * 30]
)
def test_a_timestamp_that_is_none_gives_no_time(stamp: str) -> None:
    assert format_time(stamp) == ""
    for codec in ("json", "msgpack"):
        one = encoder(codec=codec)
        one.encode(fields(), DATA)  # the same second, told in digits
        assert "time" not in decode_event(one.encode(fields(timestamp=stamp), DATA)).attributes


def test_the_bare_envelope_publishes_the_event_alone_and_the_metadata_as_headers() -> None:
    one = encoder(envelope="none")
    assert one.encode(fields(), DATA) == DATA
    assert one.content_type == BARE_CONTENT_TYPES["json"]
    headers = dict(one.headers(fields(injected=True)))
    assert headers == {**{f"ce-{name}": value for name, value in ENVELOPE.items()}, "ce-injected": "true"}
    event = decode_event(DATA, headers=headers)
    assert (event.id, event.node, event.injected, event.synthetic) == (f"{CORE}:13663", "fs1", True, False)
    assert msgpack.unpackb(encoder(envelope="none", codec="msgpack").encode(fields(), DATA)) == json.loads(DATA)


def test_a_cloudevent_needs_no_headers() -> None:
    assert encoder().headers(fields()) == ()
    assert encoder().content_type == CONTENT_TYPES["json"]
    assert encoder(codec="msgpack").content_type == CONTENT_TYPES["msgpack"]


def test_repeated_keys_are_passed_through_and_the_last_wins() -> None:
    data = b'{"Event-Name":"CHANNEL_HANGUP_COMPLETE","Hangup-Cause":"A","Hangup-Cause":"B"}'
    payload = encoder().encode(fields(), data)
    assert payload.count(b"Hangup-Cause") == 2
    assert decode_event(payload)["Hangup-Cause"] == "B"
    strict = encoder(unique_keys=True).encode(fields(), data)
    assert strict.count(b"Hangup-Cause") == 1
    assert decode_event(strict)["Hangup-Cause"] == "B"


def test_an_event_without_its_body_keeps_all_else() -> None:
    data = b'{"Event-Name":"BACKGROUND_JOB","Content-Length":"3","_body":"+OK","x":["1"]}'
    assert drop_body(data) == {"Event-Name": "BACKGROUND_JOB", "Content-Length": "3", "x": ["1"]}
    assert drop_body(b'{"a":"b"}') == {"a": "b"}


def test_the_decoded_event_is_a_map_of_headers() -> None:
    event = decode_event(encoder().encode(fields(), DATA), topic="fs.events.CHANNEL_ANSWER")
    assert event.name == "CHANNEL_ANSWER"
    assert event["variable_x"] == ["a", "b"]
    assert event.get("absent") is None
    assert set(event) == set(json.loads(DATA))
    assert len(event) == 6
    assert (event.worker, event.epoch, event.sequence) == ("w1", EPOCH, "0000000042")
    assert event.topic == "fs.events.CHANNEL_ANSWER"
    assert event.body == ""
    assert event.subclass == ""
    assert f"{CORE}:13663" in repr(event)


@pytest.mark.parametrize(
    "payload", [b"", b"{", b"[]", b"\x93\x01\x02\x03", b'{"specversion":"1.0"}', b'{"specversion":"1.0","data":3}']
)
def test_what_is_no_event_is_a_clear_error(payload: bytes) -> None:
    with pytest.raises(InvalidMessage, match="event message"):
        decode_event(payload)
