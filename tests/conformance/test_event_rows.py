"""The rows of the conformance table that are about what is in an event."""

from __future__ import annotations

import json

import pytest

from bridge.esl.event import Event


def test_row_17_plain_event_without_body(feed, protocol, plain_event):
    (event,) = feed(protocol, plain_event(b"Event-Name: CHANNEL_ANSWER\nUnique-ID: u\n\n"))
    assert (event.name, event.unique_id, event.body) == ("CHANNEL_ANSWER", "u", None)
    assert json.loads(event.json) == {"Event-Name": "CHANNEL_ANSWER", "Unique-ID": "u"}


def test_row_18_plain_event_with_body(feed, protocol, plain_event):
    (event,) = feed(protocol, plain_event(b"Event-Name: BACKGROUND_JOB\nContent-Length: 9\n\n+OK 7f..\n"))
    assert event.body == "+OK 7f..\n"
    assert json.loads(event.json) == {"Event-Name": "BACKGROUND_JOB", "Content-Length": "9", "_body": "+OK 7f..\n"}
    assert "_body" not in event.headers


def test_row_19_inner_length_twice(feed, protocol, plain_event):
    body = b"Event-Name: CUSTOM\nContent-Length: 5\nContent-Length: 12\n\nhello\nworld\n"
    (event,) = feed(protocol, plain_event(body))
    assert event.body == "hello\nworld\n"
    assert event.raw == body


def test_row_20_encoded_line_end_makes_no_header(feed, protocol, plain_event):
    (event,) = feed(protocol, plain_event(b"Event-Name: X\nvariable_v: a%0ABad: b%0D\n\n"))
    assert event["variable_v"] == "a\nBad: b\r"
    assert "Bad" not in event
    assert set(event.headers) == {"Event-Name", "variable_v"}


def test_row_21_decoded_once(feed, protocol, plain_event):
    (event,) = feed(protocol, plain_event(b"Event-Name: X\nv: %2520\n\n"))
    assert event["v"] == "%20"


def test_row_22_what_is_no_escape_stays(feed, protocol, plain_event):
    (event,) = feed(protocol, plain_event(b"Event-Name: X\na: %zz\nb: 50%\nc: %4\nd: %c3%a9\ne: %+1\nf: %%41\n\n"))
    assert [event[name] for name in "abcdef"] == ["%zz", "50%", "%4", "é", "%+1", "%A"]


def test_row_23_latin1_in_plain(feed, protocol, plain_event):
    first, second = feed(protocol, plain_event(b"Event-Name: X\nv: Zo%E9\n\n") + plain_event(b"Event-Name: Y\n\n"))
    assert first["v"] == "Zo\ufffd"
    assert (first.repaired, second.repaired) == (True, False)
    assert b"Zo%E9" in first.raw
    assert json.loads(first.json)["v"] == "Zo\ufffd"


@pytest.mark.parametrize(
    "raw",
    [
        b'{"Event-Name":"X","Core-UUID":"c","Event-Sequence":"1","v":"Zo\xe9"}',
        b'{"v":"Zo\xe9","Event-Name":"X","Core-UUID":"c","Event-Sequence":"1"}',
        b'{"Event-Name":"X","Core-UUID":"c","Event-Sequence":"1","v":"Zo\xe9","Unique-ID":"\xff"}',
    ],
)
def test_row_24_latin1_in_json(feed, protocol, json_event, raw):
    event, after = feed(protocol, json_event(raw=raw) + json_event("NEXT"))
    assert (event.name, event.identity) == ("X", "c:1")
    assert event["v"] == "Zo\ufffd"
    assert event.repaired
    assert json.loads(event.json)["v"] == "Zo\ufffd"
    assert event.raw == raw
    assert (after.name, after.repaired) == ("NEXT", False)


def test_row_25_json_array(feed, protocol, json_event):
    (event,) = feed(protocol, json_event("X", variable_x=["a", "b"], **{"Unique-ID": ["u1", "u2"]}))
    assert event["variable_x"] == ["a", "b"]
    assert event.name == "X"
    assert event.unique_id == "u2"


def test_row_26_plain_array(feed, protocol, plain_event):
    (event,) = feed(protocol, plain_event(b"Event-Name: X\nvariable_x: ARRAY%3A%3Aa%7C%3Ab%20c\n\n"))
    assert event["variable_x"] == ["a", "b c"]
    assert json.loads(event.json)["variable_x"] == ["a", "b c"]


@pytest.mark.parametrize("format", ["plain", "json"])
def test_row_27_spellings(feed, protocol, json_event, plain_event, format):
    data = (
        plain_event(b"Event-Name: X\nUnique-ID: A\nunique-id: B\nUnique-ID: C\nother: D\n\n")
        if format == "plain"
        else json_event(raw=b'{"Event-Name":"X","Unique-ID":"A","unique-id":"B","Unique-ID":"C","other":"D"}')
    )
    (event,) = feed(protocol, data)
    assert (event["unique-id"], event["Unique-ID"], event["OTHER"]) == ("B", "C", "D")
    assert event.unique_id == "C"
    assert event.get("UNIQUE-ID") in ("B", "C")
    assert event.get("absent") is None
    assert event.get("absent", "-") == "-"
    with pytest.raises(KeyError):
        event["absent"]


@pytest.mark.parametrize("format", ["plain", "json"])
def test_row_28_injected_event(feed, protocol, json_event, plain_event, format):
    data = (
        plain_event(
            b"Command: sendevent%20CUSTOM\nCore-UUID: fake\nEvent-Sequence: 1\nCommand: mine\n"
            b"Event-Name: CUSTOM\nCore-UUID: real\nEvent-Sequence: 99\n\n"
        )
        if format == "plain"
        else json_event(
            raw=b'{"Command":"sendevent CUSTOM","Core-UUID":"fake","Event-Sequence":"1","Command":"mine",'
            b'"Event-Name":"CUSTOM","Core-UUID":"real","Event-Sequence":"99"}'
        )
    )
    injected, other = feed(protocol, data + json_event("CUSTOM"))
    assert injected.identity == "real:99"
    assert injected.injected
    assert not other.injected


def test_row_29_subclass_before_name(feed, protocol, json_event):
    (event,) = feed(protocol, json_event(raw=b'{"Event-Subclass":"sofia::register","Event-Name":"CUSTOM"}'))
    assert (event.name, event.subclass) == ("CUSTOM", "sofia::register")


def test_row_48_wire_order_whatever_the_sequence(feed, protocol, json_event):
    events = feed(protocol, b"".join(json_event(**{"Event-Sequence": n}) for n in ("11", "10", "12")))
    assert [event.envelope.sequence for event in events] == ["11", "10", "12"]


def test_row_49_one_event_has_one_identity_on_every_connection(feed, protocol, json_event, plain_event):
    stamp = {"Core-UUID": "c0", "Event-Sequence": "7"}
    one, other = feed(
        protocol, json_event("X", **stamp) + plain_event(b"Event-Name: X\nCore-UUID: c0\nEvent-Sequence: 7\n\n")
    )
    assert one.identity == other.identity == "c0:7"


def test_row_50_restart_changes_the_identity(feed, protocol, json_event):
    before, after = feed(
        protocol,
        json_event("X", **{"Core-UUID": "c0", "Event-Sequence": "7"})
        + json_event("X", **{"Core-UUID": "c1", "Event-Sequence": "7"}),
    )
    assert before.envelope.core_uuid != after.envelope.core_uuid
    assert before.identity != after.identity


@pytest.mark.parametrize("separator", ["\u2028", "\x85", "\x0b", "\x0c", "\x1c", "\u2029"])
def test_row_51_only_lf_ends_a_line(feed, protocol, json_event, plain_event, separator):
    encoded = "".join(f"%{byte:02X}" for byte in separator.encode()).encode()
    plain, raw_plain, as_json = feed(
        protocol,
        plain_event(b"Event-Name: X\nv: a" + encoded + b"Bad: b\n\n")
        + plain_event(b"Event-Name: X\nv: a" + separator.encode() + b"Bad: b\n\n")
        + json_event("X", v=f"a{separator}Bad: b"),
    )
    for event in (plain, raw_plain, as_json):
        assert event["v"] == f"a{separator}Bad: b"
        assert "Bad" not in event.headers
    # and in an outer header
    frames, error = feed.frames(b"Content-Type: command/reply\nReply-Text: a" + separator.encode() + b"Bad: b\n\n")
    assert error is None
    assert frames[0].headers["reply-text"] == f"a{separator}Bad: b"


def test_row_57_our_own_api_event_is_recognisable(feed, protocol, json_event):
    """Suppressing it is the link's; what it is recognised by is here."""
    (event,) = feed(protocol, json_event("API", **{"API-Command": "status", "API-Command-Argument": "x"}))
    assert (event.name, event["API-Command"]) == ("API", "status")


@pytest.mark.parametrize(
    "raw",
    [
        b"x",
        b"[]",
        b'"text"',
        b"null",
        b'{"Event-Name":"X"',
        b'{"Event-Name":"X"}x',
        b'{"Event-Name":"X\n"}',
        b'{"a":"\\q"}',
        b'{"a":nul}',
        b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_a_json_event_that_is_none_means_out_of_step(feed, protocol, json_event, raw):
    if feed.way == "byte by byte":
        raw = raw[:5000]
    before, closed = feed(protocol, json_event("BEFORE") + json_event(raw=raw))
    assert before.name == "BEFORE"
    assert closed.reason == "protocol_error"


@pytest.mark.parametrize("raw", [b"Event-Name: X\n", b"Event-Name: X\nContent-Length: 5\n\nabcd", b"A: b\n\nabc", b"x"])
def test_a_plain_event_that_is_none_means_out_of_step(feed, protocol, plain_event, raw):
    (closed,) = feed(protocol, plain_event(raw))
    assert closed.reason == "protocol_error"


def test_values_that_are_no_text_are_kept_readable(feed, protocol, json_event):
    (event,) = feed(protocol, json_event(raw=b'{"Event-Name":"X","n":1,"z":null,"o":{"a":[1]},"l":["a",2],"t":true}'))
    assert event.headers == {"Event-Name": "X", "n": "1", "z": "", "o": '{"a": [1]}', "l": ["a", "2"], "t": "true"}


def test_doubled_stamp_the_last_one_counts(feed, protocol, json_event):
    raw = (
        b'{"Event-Name":"COMMAND","Core-UUID":"c","Event-Date-Timestamp":"1","Event-Sequence":"24423",'
        b'"Event-Name":"PRIVATE_COMMAND","Core-UUID":"c","Event-Date-Timestamp":"2","Event-Sequence":"24438"}'
    )
    (event,) = feed(protocol, json_event(raw=raw))
    assert (event.name, event.identity, event.timestamp_us) == ("PRIVATE_COMMAND", "c:24438", 2)
    assert event.headers["Event-Name"] == "PRIVATE_COMMAND"
    assert event.json == raw


def test_timestamp_that_is_no_number():
    for text in ("", "x", "-1", "1.5", "٣", "9" * 30):
        assert Event(json.dumps({"Event-Date-Timestamp": text}).encode()).timestamp_us == 0
