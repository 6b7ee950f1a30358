from __future__ import annotations

import pytest

from bridge.cli.nodes import fitted
from bridge.cli.rendering import details, printable, printable_output, render_event, render_reply, style_of
from bridge.messages.event import EventMessage
from bridge.messages.reply import CommandReply, Executed, Status


def event(name: str, **headers: str) -> EventMessage:
    data = {"Event-Name": name, **{key.replace("_", "-"): value for key, value in headers.items()}}
    return EventMessage({"node": "fs1", "subject": "0123456789abcdef", "time": "2026-01-02T03:04:05.678901Z"}, data)


def test_a_line_holds_time_node_name_uuid_and_who_calls_whom():
    text = render_event(
        event(
            "CHANNEL_ANSWER", Caller_Caller_ID_Number="1000", Caller_Destination_Number="2000", Answer_State="answered"
        )
    ).plain
    assert ":05.678" in text
    for part in ("fs1", "CHANNEL_ANSWER", "01234567", "1000 → 2000", "Answer-State=answered"):
        assert part in text
    assert "0123456789" not in text


@pytest.mark.parametrize(
    ("name", "headers", "shown"),
    [
        ("CHANNEL_HANGUP_COMPLETE", {"Hangup-Cause": "USER_BUSY"}, ("Hangup-Cause", "USER_BUSY")),
        ("DTMF", {"DTMF-Digit": "5"}, ("DTMF-Digit", "5")),
        ("HEARTBEAT", {"Session-Count": "12", "Caller-Destination-Number": "no"}, ("Session-Count", "12")),
        ("BACKGROUND_JOB", {"Job-Command": "originate", "_body": "+OK\n"}, ("_body", "+OK")),
        ("CHANNEL_EXECUTE_COMPLETE", {"Application": "park"}, ("Application", "park")),
        ("CUSTOM", {"from-user": ["a", "b"]}, ("from-user", "a, b")),
    ],
)
def test_each_kind_of_event_shows_what_matters_for_it(name, headers, shown):
    assert shown in details(name, headers)


def test_an_event_of_an_unknown_name_is_shown_all_the_same():
    assert "SOMETHING_NEW" in render_event(event("SOMETHING_NEW")).plain
    assert style_of("SOMETHING_NEW")


def test_a_custom_event_is_named_by_its_subclass():
    assert "CUSTOM:sofia::register" in render_event(event("CUSTOM", Event_Subclass="sofia::register")).plain


def test_flags_are_shown():
    line = EventMessage({"synthetic": True, "truncated": True}, {"Event-Name": "CHANNEL_HANGUP_COMPLETE"})
    assert "[synthetic] [truncated]" in render_event(line).plain


@pytest.mark.parametrize("hostile", ["\x1b[2J\x1b]0;owned\x07", "a\rb", "a\nb", "\x9b31m", "‮abc", "\u2028x"])
def test_nothing_from_an_event_can_steer_the_terminal(hostile):
    text = render_event(event("CHANNEL_CREATE", Caller_Caller_ID_Number=hostile, Caller_Destination_Number="1")).plain
    assert not any(ord(character) < 32 or character in "\x7f\x9b\u202e\u2028" for character in text)


def test_nothing_from_an_event_is_read_as_markup():
    assert "[bold]1[/bold]" in render_event(event("CHANNEL_CREATE", Caller_Caller_ID_Number="[bold]1[/bold]")).plain


def test_long_values_are_cut():
    assert printable("x" * 100, 10) == "x" * 9 + "…"
    assert len(render_event(event("CHANNEL_EXECUTE", Application_Data="x" * 10_000)).plain) < 300


def test_an_output_keeps_its_lines():
    assert printable_output("a\tb\nc\x1b[1m\r\n") == "a\tb\nc\\x1b[1m\\r\n"


def test_a_reply_is_one_line():
    good = CommandReply(status=Status.OK, executed=Executed.YES, result="UP 0 years\nmore", node="fs1", elapsed_ms=2.4)
    assert render_reply("status", good).plain == "▶ status  ◀ ok executed=yes 2 ms on fs1  UP 0 years"
    bad = CommandReply(status=Status.DENIED, executed=Executed.NO, error="system is denied")
    assert render_reply("system ls", bad).plain == "▶ system ls  ◀ denied executed=no 0 ms  system is denied"


def test_on_a_narrow_terminal_values_have_the_room_of_their_names() -> None:
    line = event("CHANNEL_HANGUP", Hangup_Cause="NORMAL_CLEARING")
    assert "Hangup-Cause=NORMAL_CLEARING" in render_event(line).plain
    narrow = render_event(line, width=80).plain
    assert "NORMAL_CLEARING" in narrow[:80]
    assert "Hangup-Cause" not in narrow


def test_a_narrow_terminal_cuts_the_names_of_workers_where_they_are_alike():
    numbers = ("12", "6", "7%", "12.3 ms", "3")
    rows = [
        ("media-node-10", "UP", "esl-bridge-5d9c7c7b4f-x2x9k-1", "esl-bridge-5d9c7c7b4f-abcde-1", *numbers),
        ("fs1", "UP", "gw-1", "-", *numbers),
    ]
    first, second = fitted(rows, 80)
    assert (first[0], first[4:]) == ("media-node-10", numbers)
    assert first[2].startswith("…")
    assert first[2].endswith("x2x9k-1")
    assert first[3].endswith("abcde-1")
    assert second == rows[1]
    assert fitted(rows, 200) == rows
