"""A few headers of an event, read as the whole map would tell them."""

from __future__ import annotations

import pytest

from bridge.esl.event import Event, read_plain_event
from bridge.esl.pick import HeaderPick

PICK = HeaderPick("Old-Unique-ID", "Caller-Context", "Nothing")


def test_json_is_read_without_a_map():
    event = Event.parse(b'{"Event-Name":"CHANNEL_UUID","Caller-Context":"p\\u00fcb","Old-Unique-ID":"1","_body":"x"}')
    assert PICK.of(event) == ("1", "p\u00fcb", None)
    assert event._headers is None


@pytest.mark.parametrize("context", ["default", "50%25"])
def test_plain_is_read_too(context: str):
    raw = b"Event-Name: CHANNEL_UUID\nCaller-Context: %b\nOld-Unique-ID: 1\n\n" % context.encode()
    for event in (read_plain_event(raw), Event(raw, "plain")):
        assert PICK.of(event) == ("1", context.replace("%25", "%"), None)


def test_the_last_of_equal_names_counts():
    event = Event.parse(b'{"Event-Name":"A","Old-Unique-ID":"1","Old-Unique-ID":"2"}')
    assert PICK.of(event) == ("2", None, None)


def test_an_array_is_no_text_and_costs_the_others_nothing():
    event = Event.parse(b'{"Event-Name":"A","Old-Unique-ID":["1","2"],"Caller-Context":"c"}')
    assert PICK.of(event) == (None, "c", None)


def test_what_needs_repair_is_read_all_the_same():
    event = Event.parse(b'{"Event-Name":"A","Old-Unique-ID":"1","Caller-Context":"caf\xe9"}')
    assert PICK.of(event) == ("1", "caf\ufffd", None)
