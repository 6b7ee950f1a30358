from __future__ import annotations

from bridge.simulator.events import Stamp

STANDARD = [
    "Event-Name",
    "Core-UUID",
    "FreeSWITCH-Hostname",
    "FreeSWITCH-Switchname",
    "FreeSWITCH-IPv4",
    "FreeSWITCH-IPv6",
    "Event-Date-Local",
    "Event-Date-GMT",
    "Event-Date-Timestamp",
    "Event-Calling-File",
    "Event-Calling-Function",
    "Event-Calling-Line-Number",
    "Event-Sequence",
]


def test_the_stamp_has_the_13_headers_in_order() -> None:
    stamp = Stamp("core", "host", "switch", "192.0.2.1", "::1")
    event = stamp.event("HEARTBEAT", [("Event-Info", "x")])
    assert [name for name, _ in event.headers] == [*STANDARD, "Event-Info"]
    assert event.header("core-uuid") == "core"


def test_the_subclass_of_a_custom_event_comes_first() -> None:
    event = Stamp("core", "host", "switch", "", "").event("CUSTOM", subclass="a::b")
    assert event.headers[:2] == [("Event-Subclass", "a::b"), ("Event-Name", "CUSTOM")]


def test_one_counter_numbers_all_events() -> None:
    stamp = Stamp("core", "host", "switch", "", "")
    assert [stamp.event("API").header("Event-Sequence") for _ in range(3)] == ["1", "2", "3"]


def test_a_frame_is_rendered_once_per_format() -> None:
    event = Stamp("core", "host", "switch", "", "").event("API")
    assert event.frame("json") is event.frame("json")
    assert event.frame("json") != event.frame("plain")


def test_a_spoiled_event_is_not_utf8() -> None:
    stamp = Stamp("core", "host", "switch", "", "")
    named = stamp.event("API", [("Caller-Caller-ID-Name", "Zoe")])
    assert b"Zoe Zo\xe9" in named.spoiled().frame("json")
    assert b"Zo\xe9" in stamp.event("API").spoiled().frame("json")
    assert b"\xe9" not in named.frame("json")
