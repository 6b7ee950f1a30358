from __future__ import annotations

import json

import pytest

from bridge.errors import ProtocolError
from bridge.esl.event import Event, read_json_event
from bridge.esl.plain import decode_plain, decode_value, split_plain

JSON = (
    b'{"Event-Name":"CUSTOM","Core-UUID":"c","Event-Sequence":"5","Event-Subclass":"a::b",'
    b'"_body":"x\\ny","Content-Length":"3"}'
)


def test_json_event():
    event = Event.parse(JSON)
    assert (event.name, event.subclass, event.identity, event.unique_id) == ("CUSTOM", "a::b", "c:5", "")
    assert event.body == "x\ny"
    assert "_body" not in event.headers
    assert event.get("_body") is None
    assert event.json is JSON
    assert not event.repaired
    assert not event.injected


def test_an_event_made_by_hand_is_read_on_demand():
    event = Event(JSON, "json")
    assert event.headers["Event-Name"] == "CUSTOM"
    assert event.envelope is event.envelope
    assert event.headers is event.headers
    with pytest.raises(ProtocolError):
        _ = Event(b"x").name
    with pytest.raises(ProtocolError):
        _ = Event(b"x").headers


def test_repr_is_short_and_never_fails():
    assert repr(Event.parse(JSON)) == f"<Event CUSTOM c:5, {len(JSON)} bytes json>"
    assert repr(Event(b"x")) == "<Event unread, 1 bytes json>"


def test_events_are_told_apart_by_what_they_are_not_by_their_content():
    assert Event(JSON) != Event(JSON)
    assert len({Event(JSON), Event(JSON)}) == 2


def test_valid_utf8_is_passed_through_as_it_is():
    raw = '{"Event-Name":"X","v":"Zoé \ufffd"}'.encode()
    event = Event.parse(raw)
    assert event.json is raw
    assert not event.repaired


@pytest.mark.parametrize("bad", [b"\xe9", b"\xed\xa0\x80", b"\xc3", b"\xf8\x88\x80\x80\x80", b"\xc0\x80"])
def test_invalid_utf8_is_repaired_everywhere(bad):
    raw = b'{"Event-Name":"X' + bad + b'","v":["a' + bad + b'"],"k' + bad + b'":"1","_body":"' + bad + b'"}'
    event = Event.parse(raw)
    assert event.repaired
    assert event.name.startswith("X\ufffd")
    assert json.loads(event.json.decode("utf-8")) == {**event.headers, "_body": event.body}
    assert event.raw is raw


def test_half_a_surrogate_pair_in_json_is_no_trouble():
    event = Event.parse(b'{"Event-Name":"X","v":"\\ud800"}')
    assert event["v"] == "?"
    assert event.name == "X"


def test_plain_event_as_json():
    raw = (
        b"Event-Name: MESSAGE\nEvent-Date-Local: 2026-01-01%2010%3A00%3A00\nempty: _undef_\n"
        b"list: ARRAY%3A%3Aa%7C%3Ab\nContent-Length: 4\n\n\xc3\xa9\n\n"
    )
    event = Event.parse(raw, "plain")
    assert json.loads(event.json) == {
        "Event-Name": "MESSAGE",
        "Event-Date-Local": "2026-01-01 10:00:00",
        "empty": "",
        "list": ["a", "b"],
        "Content-Length": "4",
        "_body": "é\n\n",
    }
    assert event.body == "é\n\n"
    assert not event.repaired


def test_plain_job_without_output_is_written_as_freeswitch_s_own_json():
    event = Event.parse(b"Event-Name: BACKGROUND_JOB\nJob-UUID: j\n\n", "plain")
    assert json.loads(event.json) == {
        "Event-Name": "BACKGROUND_JOB",
        "Job-UUID": "j",
        "Content-Length": "0",
        "_body": "",
    }


def test_latin1_in_a_plain_body_is_repaired():
    event = Event.parse(b"Event-Name: X\nContent-Length: 2\n\n\xe9\n", "plain")
    assert event.repaired
    assert json.loads(event.json) == {"Event-Name": "X", "Content-Length": "4", "_body": "\ufffd\n"}


def test_split_plain():
    assert split_plain(b"A: b\n\n") == (b"A: b", None)
    assert split_plain(b"A: b\nContent-Length: 2\n\nxy") == (b"A: b\nContent-Length: 2", b"xy")
    assert split_plain(b"content-length: 2\n\nxy")[1] == b"xy"
    # a length without a body is a sender's own header
    assert split_plain(b"A: b\nContent-Length: 7\n\n")[1] is None


@pytest.mark.parametrize(
    "block",
    [
        b"A: b\nC: d",
        b"A: b: c\nD\nE: f",
        b"A: b: c\nD",
        b"na%41me: v%41\nB: c",
        b"A: _undef_\nB: %5Fundef_",
        b"A: x%00y\nB: c",
        b"A: x\x00y\nB: c",
        b"A:b\nC: d",
        b"A: \nB: c",
        b"nocolon",
        b"",
        b"A: %E9\nB: %C3",
        b"A: %C3\nB: %A9",
        b"A: ARRAY::x\nB: ARRAY%3A%3Ax%7C%3Ay",
    ],
)
def test_the_fast_way_and_the_slow_way_agree(block):
    expected = {}
    repaired = False
    for line in block.split(b"\n"):
        name, colon, value = line.partition(b":")
        if colon:
            text = decode_value(value.removeprefix(b" "))
            repaired = repaired or "\ufffd" in text
            expected[name.decode()] = text[7:].split("|:") if text.startswith("ARRAY::") else text
    assert decode_plain(block) == (expected, repaired)


@pytest.mark.parametrize(
    ("text", "uuid"),
    [
        ('{"Event-Name":"X","unique-id":"A"}', "A"),
        ('{"Event-Name":"X","UNIQUE-ID":"A","unique-id" : "B"}', "B"),
        ('{"Event-Name":"X","unique-id":"A","Unique-ID":"B"}', "B"),
        ('{"Event-Name":"X","Unique-ID":"B","unique-id":"A"}', "B"),
        ('{"Event-Name":"X","other":"\\"unique-id\\": 5"}', ""),
        ('{"Event-Name":"X","Other-Leg-Unique-ID":"A"}', ""),
    ],
)
def test_the_call_is_found_in_any_spelling(text: str, uuid: str):
    assert Event.parse(text.encode()).unique_id == uuid
    fast = read_json_event(text.encode())
    assert fast is None or fast.unique_id == uuid
    lines = "".join(f"{name}: {value}\n" for name, value in json.loads(text).items() if name != "other")
    assert Event.parse(f"{lines}\n".encode(), "plain").unique_id == uuid
