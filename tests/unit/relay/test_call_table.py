from __future__ import annotations

import json

from bridge.esl.event import Event
from bridge.relay.call_table import CallTable


def event(name: str, uuid: str, **headers: str) -> Event:
    return Event(json.dumps({"Event-Name": name, "Unique-ID": uuid, **headers}).encode(), "json")


def test_events_keep_the_table() -> None:
    calls = CallTable()
    one, two = calls.watchers("fs1"), calls.watchers("fs2")
    one["CHANNEL_CREATE"](event("CHANNEL_CREATE", "a"))
    two["CHANNEL_ANSWER"](event("CHANNEL_ANSWER", "b"))
    assert (calls.node_of("a"), calls.node_of("b"), calls.node_of("c")) == ("fs1", "fs2", None)
    two["CHANNEL_DESTROY"](event("CHANNEL_DESTROY", "a"))  # another node's channel of that name
    assert calls.node_of("a") == "fs1"
    one["CHANNEL_HANGUP_COMPLETE"](event("CHANNEL_HANGUP_COMPLETE", "a"))
    one["CHANNEL_DESTROY"](event("CHANNEL_DESTROY", "a"))
    assert calls.node_of("a") is None


def test_a_call_that_changes_its_uuid() -> None:
    calls = CallTable()
    calls.learn("old", "fs1")
    calls.watchers("fs1")["CHANNEL_UUID"](event("CHANNEL_UUID", "new", **{"Old-Unique-ID": "old"}))
    assert (calls.node_of("old"), calls.node_of("new")) == (None, "fs1")


def test_a_late_word_of_a_call_that_ended_does_not_bring_it_back() -> None:
    calls = CallTable()
    heard = calls.watchers("fs1")
    heard["CHANNEL_CREATE"](event("CHANNEL_CREATE", "a"))
    heard["CHANNEL_HANGUP_COMPLETE"](event("CHANNEL_HANGUP_COMPLETE", "a"))
    heard["CHANNEL_BRIDGE"](event("CHANNEL_BRIDGE", "a"))
    assert calls.node_of("a") is None
    assert len(calls) == 0
    calls.watchers("fs2")["CHANNEL_ANSWER"](event("CHANNEL_ANSWER", "a"))  # it moved there
    assert calls.node_of("a") == "fs2"
    heard["CHANNEL_CREATE"](event("CHANNEL_CREATE", "b"))
    heard["CHANNEL_UUID"](event("CHANNEL_UUID", "c", **{"Old-Unique-ID": "b"}))
    heard["CHANNEL_ANSWER"](event("CHANNEL_ANSWER", "b"))
    assert (calls.node_of("b"), calls.node_of("c")) == (None, "fs1")


def test_a_uuid_that_callers_chose_may_come_again() -> None:
    calls = CallTable()
    heard = calls.watchers("fs1")
    for name in ("CHANNEL_CREATE", "CHANNEL_DESTROY", "CHANNEL_CREATE"):
        heard[name](event(name, "a"))
    assert calls.node_of("a") == "fs1"


def test_what_a_node_answered_is_believed_for_a_while() -> None:
    """Nothing tells of the end of a call whose node's events another worker gets."""
    now = [0.0]
    calls = CallTable(clock=lambda: now[0])
    calls.note_unknown("a")
    calls.note_found("a", "fs9")
    assert (calls.node_of("a"), calls.is_unknown("a")) == ("fs9", False)
    now[0] = 60.0
    assert calls.node_of("a") is None
    for number in range(1000):
        now[0] += 1
        calls.note_found(str(number), "fs9")
    assert len(calls._found) <= 60


def test_made_up_events_teach_nothing() -> None:
    calls = CallTable()
    calls.watchers("fs1")["CHANNEL_CREATE"](event("CHANNEL_CREATE", "x", Command="sendevent CHANNEL_CREATE"))
    calls.learn("a", "fs1")
    calls.watchers("fs1")["CHANNEL_DESTROY"](event("CHANNEL_DESTROY", "a", Command="sendevent CHANNEL_DESTROY"))
    assert (calls.node_of("x"), calls.node_of("a")) == (None, "fs1")


def test_a_restarted_node_has_no_calls() -> None:
    calls = CallTable()
    calls.learn("a", "fs1")
    calls.learn("b", "fs2")
    calls.forget_node("fs1")
    assert (calls.node_of("a"), calls.node_of("b")) == (None, "fs2")
    calls.replace("fs2", ["c", "d"])
    assert [calls.node_of(uuid) for uuid in "bcd"] == [None, "fs2", "fs2"]


def test_unknown_calls_are_remembered_for_a_moment() -> None:
    now = [0.0]
    calls = CallTable(unknown_for=2.0, clock=lambda: now[0])
    assert not calls.is_unknown("a")
    calls.note_unknown("a")
    now[0] = 1.9
    assert calls.is_unknown("a")
    calls.note_unknown("b")
    now[0] = 2.0
    assert not calls.is_unknown("a")
    assert calls.is_unknown("b")
    calls.learn("b", "fs1")
    assert not calls.is_unknown("b")


def test_it_is_bounded() -> None:
    now = [0.0]
    calls = CallTable(limit=3, clock=lambda: now[0])
    for uuid in "abcde":
        calls.learn(uuid, "fs1")
        calls.note_unknown(uuid + "?")
    assert len(calls) == 3
    assert calls.node_of("a") is None
    assert len(calls._unknown) == 3
    now[0] = 10
    calls.note_unknown("z")
    assert len(calls._unknown) == 1
