"""Routes: filters, header conditions, projections, numbers, ids, and that nothing is decoded that nobody asked for."""

from __future__ import annotations

import json
from typing import Any

import msgpack
import pytest

from bridge.bus.base import Message, StreamSpec
from bridge.bus.memory import MemoryBus
from bridge.esl.event import Event
from bridge.messages.event import decode_event
from bridge.relay.events import NodeRelay
from bridge.relay.filters import EventFilter, Projection
from bridge.relay.notices import NoticeBoard
from bridge.relay.publisher import Publisher
from bridge.relay.routes import RouteSettings
from tests.unit.relay.test_events import CORE, Meter, stamp

CALLS = StreamSpec(name="FS_CALLS", key="fs.calls", topics=("fs.calls.>",))


class World:
    """A relay with routes in front of a bus that is not started; ``lanes`` are what waits for topics and streams."""

    def __init__(self, *routes: RouteSettings) -> None:
        self.bus = MemoryBus("memory://")
        notices = NoticeBoard(worker="w1", instance="w1.1", codec="json")
        self.publisher = Publisher(self.bus, notices, Meter())
        self.relay = NodeRelay(
            "fs1", bus=self.bus, publisher=self.publisher, notices=notices, meter=Meter(), routes=routes, worker="w1",
        )  # fmt: skip

    def lanes(self, *events: dict[str, Any]) -> dict[str, list[Message]]:
        self.events = [Event(json.dumps(one).encode(), "json") for one in events]
        self.relay.events(self.events)
        return {
            buffer.lane: [message for chunk in buffer.take(1 << 30) for message in chunk.messages]
            for buffer in self.relay.buffers
        }


DEFAULT = RouteSettings()


def topics(messages: list[Message]) -> list[str]:
    return [one.topic for one in messages]


@pytest.mark.parametrize(
    ("events", "subclasses", "wanted"),
    [
        ([], [], ["CHANNEL_ANSWER", "DTMF", "CUSTOM:sofia::register", "CUSTOM:x"]),
        (["CHANNEL_*"], [], ["CHANNEL_ANSWER"]),
        (["CUSTOM"], [], ["CUSTOM:sofia::register", "CUSTOM:x"]),
        (["CUSTOM:sofia::*"], [], ["CUSTOM:sofia::register"]),
        ([], ["sofia::*"], ["CUSTOM:sofia::register"]),
        (["DTMF"], ["sofia::*"], ["DTMF", "CUSTOM:sofia::register"]),
        (["*"], ["x"], ["CHANNEL_ANSWER", "DTMF", "CUSTOM:x"]),
    ],
)
def test_names_and_subclasses_choose(events: list[str], subclasses: list[str], wanted: list[str]) -> None:
    chosen = EventFilter(events, subclasses)
    all_names = ["CHANNEL_ANSWER", "DTMF", "CUSTOM:sofia::register", "CUSTOM:x"]
    assert [one for one in all_names if chosen.wants(*(one.split(":", 1) if ":" in one else (one, "")))] == wanted


def test_a_route_adds_a_way_with_its_own_topic_and_numbers_after_the_filter() -> None:
    route = RouteSettings(
        name="calls", topic="fs.calls.{uuid}.{name}", events=("CHANNEL_*",), where={"Call-Direction": ("in*",)}
    )
    world = World(DEFAULT, route)
    lanes = world.lanes(
        stamp("CHANNEL_CREATE", 1, **{"Unique-ID": "u1", "Call-Direction": "inbound"}),
        stamp("CHANNEL_CREATE", 2, **{"Unique-ID": "u2", "Call-Direction": "outbound"}),
        stamp("DTMF", 3, **{"Unique-ID": "u1", "Call-Direction": "inbound"}),
        stamp("CHANNEL_ANSWER", 4, **{"Unique-ID": "u1", "Call-Direction": "inbound"}),
        stamp("CHANNEL_ANSWER", 5, **{"Unique-ID": "u1"}),
    )
    mine = [one for one in lanes[""] if one.topic.startswith("fs.calls.")]
    assert topics(mine) == ["fs.calls.u1.CHANNEL_CREATE", "fs.calls.u1.CHANNEL_ANSWER"]
    assert [decode_event(one.payload).sequence for one in mine] == ["0000000001", "0000000002"]
    assert [one.id for one in mine] == [f"{CORE}:1/calls", f"{CORE}:4/calls"]
    assert [decode_event(one.payload).id for one in mine] == [f"{CORE}:1", f"{CORE}:4"]
    assert len(lanes[""]) - len(mine) == 5


@pytest.mark.parametrize(
    ("topic", "numbers"),
    [
        ("all", [1, 2, 3, 4, 5, 6]),
        ("all.{node}", [1, 2, 3, 4, 5, 6]),
        ("all.{name}", [1, 2, 1, 3, 4, 2]),
        ("all.{subclass}", [1, 1, 1, 2, 2, 2]),
        ("all.{event}", [1, 1, 1, 2, 2, 2]),
    ],
)
@pytest.mark.parametrize("settings", [{}, {"where": {"Core-UUID": ("*",)}}, {"codec": "msgpack"}])
def test_events_of_several_names_on_one_topic_are_numbered_together(
    topic: str, numbers: list[int], settings: dict[str, Any]
) -> None:
    world = World(RouteSettings(name="r", topic=topic, **settings))
    names = [("CUSTOM", "a"), ("CUSTOM", "b"), ("DTMF", "")] * 2
    events = [stamp(name, n, **({"Event-Subclass": sub} if sub else {})) for n, (name, sub) in enumerate(names)]
    told = [int(decode_event(one.payload).sequence) for one in world.lanes(*events)[""]]
    assert told == numbers


def test_a_name_over_the_limit_goes_on_with_the_numbers_of_its_topic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridge.relay.routes._KNOWN_LIMIT", 2)
    world = World(RouteSettings(name="r", topic="all.{name}"))
    events = [stamp("CUSTOM", n, **{"Event-Subclass": f"s{n % 4}"}) for n in range(8)]
    told = [int(decode_event(one.payload).sequence) for one in world.lanes(*events)[""]]
    assert told == list(range(1, 9))


def test_a_truncated_event_keeps_the_number_that_its_topic_gave_it() -> None:
    world = World(RouteSettings(name="r", topic="all"))
    world.bus.broker.max_payload = 8_000
    events = [stamp("A", 1), stamp("B", 2, _body="x" * 20_000), stamp("C", 3)]
    told = [decode_event(one.payload) for one in world.lanes(*events)[""]]
    assert [(one.sequence[-1], one.truncated) for one in told] == [("1", False), ("2", True), ("3", False)]


def test_a_condition_takes_any_of_its_globs_and_any_value_of_an_array() -> None:
    route = RouteSettings(name="r", topic="r.{name}", where={"variable_x": ("a*", "b")})
    world = World(route)
    lanes = world.lanes(
        stamp("A", 1, variable_x="abc"), stamp("A", 2, variable_x="b"), stamp("A", 3, variable_x="c"),
        stamp("A", 4, variable_x=["c", "b"]), stamp("A", 5),
    )  # fmt: skip
    assert [one.id for one in lanes[""]] == [f"{CORE}:{number}/r" for number in (1, 2, 4)]


def test_an_event_whose_headers_nobody_asks_for_is_never_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    route = RouteSettings(name="r", topic="r.{name}", events=("DTMF",), where={"x": ("*",)}, drop=("y",))
    world = World(DEFAULT, route)
    world.lanes(stamp("CHANNEL_CREATE", 1), stamp("DTMF", 2, x="1"))
    assert [event._headers is not None for event in world.events] == [False, True]


def test_a_projection_keeps_and_drops_for_its_route_alone() -> None:
    route = RouteSettings(
        name="r", topic="r.{name}", keep=("Event-*", "variable_*", "_body"), drop=("variable_secret*",)
    )
    world = World(DEFAULT, route)
    event = stamp("A", 1, variable_a="1", variable_secret_b="2", other="3", _body="text")
    plain, projected = (decode_event(one.payload) for one in world.lanes(event)[""])
    assert dict(plain) == event
    assert set(projected) == {"Event-Name", "Event-Date-Timestamp", "Event-Sequence", "variable_a", "_body"}
    assert projected.id == plain.id


def test_a_projection_remembers_names_and_meets_new_ones() -> None:
    projection = Projection([], ["b*"])
    assert projection.of({"a": "1", "b": "2"}) == {"a": "1"}
    assert projection.of({"a": "1", "c": "3", "bb": "4"}) == {"a": "1", "c": "3"}


def test_each_route_has_its_codec_and_envelope() -> None:
    world = World(
        DEFAULT, RouteSettings(name="m", topic="m.{name}", codec="msgpack", envelope="none", keep=("Event-Name",))
    )
    one, two = world.lanes(stamp("A", 1))[""]
    assert (one.content_type, two.content_type) == ("application/cloudevents+json", "application/msgpack")
    assert msgpack.unpackb(two.payload) == {"Event-Name": "A"}
    assert dict(two.headers)["ce-id"] == f"{CORE}:1"


def test_deliveries_choose_the_ways_out() -> None:
    world = World(
        DEFAULT,
        RouteSettings(name="d", topic="fs.calls.{name}", delivery="durable", stream=CALLS),
        RouteSettings(name="b", topic="both.{name}", delivery="both", stream=StreamSpec(name="BOTH", key="both")),
    )
    lanes = world.lanes(stamp("A", 1))
    assert {lane: topics(messages) for lane, messages in lanes.items()} == {
        "": ["fs.events.A", "both.A"], "FS_CALLS": ["fs.calls.A"], "BOTH": ["both.A"],
    }  # fmt: skip
    assert lanes[""][1].payload == lanes["BOTH"][0].payload


def test_where_a_stream_captures_its_topics_both_is_one_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MemoryBus, "append_publishes", True)
    world = World(RouteSettings(topic="fs.calls.{name}", delivery="both", stream=CALLS))
    assert {lane: topics(messages) for lane, messages in world.lanes(stamp("A", 1)).items()} == {
        "FS_CALLS": ["fs.calls.A"]
    }


def test_the_mark_is_where_the_slowest_way_is() -> None:
    world = World(DEFAULT, RouteSettings(name="d", topic="fs.calls.{name}", delivery="durable", stream=CALLS))
    relay = world.relay
    buffers = relay.buffers
    assert relay.mark == ""
    for number in (1, 2, 3):
        relay.events([Event(json.dumps(stamp("A", number)).encode(), "json")])
    fast, slow = buffers
    for chunk in fast.take(1 << 30):
        fast.settle(chunk, confirmed=True)
    assert relay.mark == ""
    [first, *rest] = slow.take(1 << 30)
    slow.settle(first, confirmed=True)
    assert relay.mark == f"{CORE}:1"
    for chunk in rest:
        slow.settle(chunk, confirmed=True)
    assert relay.mark == f"{CORE}:3"
