"""The way of an event from a link to the buffer: addresses, numbers, epochs, size limits, notices."""

from __future__ import annotations

import gc
import json
from typing import Any

import pytest

from bridge.bus.base import Message, StreamSpec
from bridge.bus.memory import MemoryBus
from bridge.esl.event import Event
from bridge.esl.protocol import LogRecord
from bridge.messages.event import EventMessage, decode_event
from bridge.relay.events import NodeRelay, new_epoch
from bridge.relay.notices import NoticeBoard
from bridge.relay.publisher import Publisher
from bridge.relay.routes import Route, RouteSettings
from bridge.switch.node import LinkGap, NodeChange, NodeState

CORE = "1cf893f9-c9cc-4e54-9e23-2e22ad9f7594"


class Meter:
    """Counts what it is told, by the name of what was told."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def events_received(self, node: str, count: int = 1) -> None:
        self._add("received", count)

    def events_published(self, node: str, count: int = 1) -> None:
        self._add("published", count)

    def events_dropped(self, node: str, reason: str, count: int = 1) -> None:
        self._add(f"dropped {reason}", count)

    def events_repaired(self, node: str, count: int = 1) -> None:
        self._add("repaired", count)

    def event_lag(self, node: str, waited: float) -> None:
        pass

    def event_read(self, node: str, lag: float) -> None:
        self._add("lag", 1)

    def node_up(self, node: str, up: bool) -> None:
        self._add("up" if up else "down", 1)

    def link_lost(self, node: str, reason: str) -> None:
        self._add(f"lost {reason}", 1)

    def reconnected(self, node: str) -> None:
        self._add("reconnected", 1)

    def gap(self, node: str, reason: str) -> None:
        self._add(f"gap {reason}", 1)

    def _add(self, name: str, count: int) -> None:
        self.counts[name] = self.counts.get(name, 0) + count


class NarrowBus(MemoryBus):
    """A bus with a small limit."""

    def __init__(self, limit: int) -> None:
        super().__init__("memory://")
        self._narrow = limit

    @property
    def max_payload(self) -> int:
        return self._narrow


class House:
    """One node's relay in front of a bus that is not started, so that all stays in the buffer."""

    def __init__(self, *, max_payload: int | None = None, **route: Any) -> None:
        self.bus = MemoryBus("memory://") if max_payload is None else NarrowBus(max_payload)
        self.meter = Meter()
        self.notices = NoticeBoard(worker="w1", instance="w1.1", codec="json")
        self.publisher = Publisher(self.bus, self.notices, self.meter)
        self.relay = NodeRelay(
            "fs1",
            bus=self.bus,
            publisher=self.publisher,
            notices=self.notices,
            meter=self.meter,
            routes=[RouteSettings(**route)],
            worker="w1",
        )

    def relay_events(self, *events: dict[str, Any] | bytes) -> list[Message]:
        raws = [one if isinstance(one, bytes) else json.dumps(one).encode() for one in events]
        self.relay.events([Event(raw, "json") for raw in raws])
        return [message for chunk in self.relay.buffer.take(1 << 30) for message in chunk.messages]

    def told(self, kind: str) -> list[dict[str, Any]]:
        return [json.loads(one.payload)["data"] for one in self.notices.take() if one.topic == f"fs.bridge.{kind}"]


def stamp(name: str, sequence: int, **headers: Any) -> dict[str, Any]:
    return {
        "Event-Name": name, "Core-UUID": CORE, "Event-Date-Timestamp": "1795375967373164",
        "Event-Sequence": str(sequence), **headers,
    }  # fmt: skip


def decoded(messages: list[Message]) -> list[EventMessage]:
    return [decode_event(one.payload, topic=one.topic, headers=dict(one.headers)) for one in messages]


def test_an_event_gets_its_topic_identity_and_envelope() -> None:
    house = House()
    [message] = house.relay_events(stamp("CHANNEL_ANSWER", 7, **{"Unique-ID": "u-1"}))
    assert message.topic == "fs.events.CHANNEL_ANSWER"
    assert message.id == f"{CORE}:7"
    assert message.type == "org.freeswitch.CHANNEL_ANSWER"
    assert message.content_type == "application/cloudevents+json"
    [event] = decoded([message])
    assert (event.uuid, event.node, event.worker, event.epoch) == ("u-1", "fs1", "w1", house.relay.epoch)


def test_a_custom_event_is_addressed_by_its_subclass_as_one_token() -> None:
    house = House()
    one, two, three = house.relay_events(
        stamp("CUSTOM", 1, **{"Event-Subclass": "sofia::register"}),
        stamp("CUSTOM", 2, **{"Event-Subclass": "a.b *>"}),
        stamp("CUSTOM", 3),
    )
    assert one.topic == "fs.events.CUSTOM:sofia::register"
    assert two.topic == "fs.events.CUSTOM:a%2Eb%20%2A%3E"
    assert three.topic == "fs.events.CUSTOM"
    assert one.type == "org.freeswitch.CUSTOM:sofia::register"


def test_numbers_count_per_topic_and_start_anew_with_every_epoch() -> None:
    house = House()
    events = [stamp("A", 1), stamp("B", 2), stamp("A", 3)]
    assert [one.sequence for one in decoded(house.relay_events(*events))] == ["0000000001", "0000000001", "0000000002"]
    before = house.relay.epoch
    house.relay.link_up(CORE, 4_000_000_000.0)
    assert house.relay.epoch > before
    [event] = decoded(house.relay_events(stamp("A", 4)))
    assert (event.sequence, event.epoch) == ("0000000001", house.relay.epoch)


def test_a_template_by_header_counts_per_route() -> None:
    house = House(topic="fs.calls.{uuid}.{name}.{Caller-Destination-Number}")
    messages = house.relay_events(
        stamp("A", 1, **{"Unique-ID": "u.1", "Caller-Destination-Number": "1000"}),
        stamp("B", 2),
    )
    assert [one.topic for one in messages] == ["fs.calls.u%2E1.A.1000", "fs.calls.-.B.-"]
    assert [one.sequence for one in decoded(messages)] == ["0000000001", "0000000002"]


def test_an_injected_event_says_so() -> None:
    house = House()
    one, two = decoded(house.relay_events(stamp("A", 1, Command="sendevent A"), stamp("A", 2, Command="api status")))
    assert (one.injected, two.injected) == (True, False)


def test_the_bare_envelope_carries_the_metadata_in_headers() -> None:
    house = House(envelope="none")
    [message] = house.relay_events(stamp("A", 1))
    assert json.loads(message.payload) == stamp("A", 1)
    assert decoded([message])[0].id == f"{CORE}:1"


def test_msgpack_is_the_same_map() -> None:
    house = House(codec="msgpack")
    [message] = house.relay_events(stamp("A", 1, variable_x=["a", "b"]))
    assert message.content_type == "application/cloudevents+msgpack"
    assert decoded([message])[0]["variable_x"] == ["a", "b"]


def test_the_trail_of_a_mark_is_the_last_read_and_the_ends_of_those_before() -> None:
    relay = House().relay
    for read in ((1, 2), (3, 4, 5), ("end:a",), (6, 7, 8)):
        events = [stamp("A", 0, **{"Event-Sequence": str(one)}) for one in read]
        relay.events([Event(json.dumps(one).encode(), "json") for one in events])
    assert relay.mark != f"{CORE}:8"  # on its way
    assert [one.removeprefix(f"{CORE}:") for one in relay.trail] == ["7", "6", "5", "2"]


def test_an_event_that_was_made_up_is_no_mark() -> None:
    """No link of a standby brings it: whoever takes the node could not find it, and would say all again."""
    house = House()
    relay, buffer = house.relay, house.relay.buffer

    def read(*sequences: int | str) -> None:
        events = [stamp("A", 0, **{"Event-Sequence": str(one)}) for one in sequences]
        relay.events([Event(json.dumps(one).encode(), "json") for one in events])

    read(7)
    read("end:a-call", "end:another")
    first, made_up = buffer.take(1 << 30)
    buffer.settle(first, confirmed=True)
    assert relay.mark == f"{CORE}:7"  # the ends are on their way
    buffer.settle_part(made_up, 1, confirmed=True)
    assert relay.mark == f"{CORE}:7"
    buffer.settle_part(made_up, 1, confirmed=True)
    assert relay.mark == f"{CORE}:7"  # all is there
    read(8)
    assert relay.mark == f"{CORE}:7"
    [last] = buffer.take(1 << 30)
    buffer.settle(last, confirmed=True)
    assert relay.mark == f"{CORE}:8"


def test_bad_utf8_is_repaired_and_counted_and_costs_no_event() -> None:
    house = House()
    raw = json.dumps(stamp("A", 1, caller="Zo?")).encode().replace(b"Zo?", b"Zo\xe9")
    one, two = decoded(house.relay_events(raw, stamp("A", 2)))
    assert one["caller"] == "Zo\ufffd"
    assert two.id == f"{CORE}:2"
    assert house.meter.counts["repaired"] == 1
    assert house.meter.counts["received"] == 2


def test_an_event_over_the_limit_goes_without_its_body_and_keeps_its_number() -> None:
    house = House(max_payload=8_000)
    small, big = decoded(
        house.relay_events(stamp("A", 1), stamp("A", 2, _body="x" * 20_000, **{"Content-Length": "20000"}))
    )
    assert (small.truncated, big.truncated) == (False, True)
    assert big.sequence == "0000000002"
    assert big.body == ""
    assert big["Content-Length"] == "20000"


def test_an_event_that_is_near_the_limit_but_fits_is_left_alone() -> None:
    house = House(max_payload=8_000)
    [event] = decoded(house.relay_events(stamp("A", 1, _body="x" * 5_000)))
    assert len(event.body) == 5_000
    assert not event.truncated


def test_an_event_that_cannot_be_made_small_enough_is_told_as_a_gap() -> None:
    house = House(max_payload=8_000)
    messages = house.relay_events(stamp("A", 1), stamp("A", 2, header="x" * 20_000), stamp("A", 3))
    assert [one.sequence for one in decoded(messages)] == ["0000000001", "0000000003"]
    assert house.meter.counts["dropped too_large"] == 1
    [loss] = house.relay.buffer.take_losses()
    assert (loss.reason, loss.count, loss.exact) == ("too_large", 1, True)


def test_an_event_that_was_too_large_to_be_read_is_told_as_a_gap() -> None:
    house = House()
    house.relay_events(stamp("A", 1))
    house.relay.skipped(20_000_000)
    house.relay_events(stamp("A", 3))
    [loss] = house.relay.buffer.take_losses()
    assert (loss.reason, loss.count, loss.exact) == ("too_large", 1, True)
    assert (loss.before, loss.after) == (f"{CORE}:1", f"{CORE}:3")
    assert house.meter.counts["dropped too_large"] == 1


def test_it_is_one_loss_although_it_would_have_gone_two_ways() -> None:
    house = House(max_payload=8_000, delivery="both", stream=StreamSpec("FS_EVENTS", "fs.events"))
    house.relay.events([Event(json.dumps(stamp("A", 1, header="x" * 20_000)).encode(), "json")])
    house.relay.events([Event(json.dumps(stamp("A", 2)).encode(), "json")])
    topics, kept = house.relay.buffers
    for buffer in (topics, kept):
        assert len(buffer.take(1 << 30)) == 1
    assert [loss.count for buffer in (topics, kept) for loss in buffer.take_losses()] == [1]
    assert house.meter.counts["dropped too_large"] == 1


@pytest.mark.parametrize(
    ("read", "around"),
    [
        ([2, -3, 4], (2, 4)),
        ([-3, 4], (1, 4)),
        ([2, -3], (2, 9)),
        ([-3], (1, 9)),
        ([2, -3, -4, 5], (2, 5)),
        ([-2, 3, -4, 5], (1, 5)),
    ],
)
def test_such_a_gap_stands_where_the_event_is_missing(read: list[int], around: tuple[int, int]) -> None:
    house = House(max_payload=8_000)
    house.relay_events(stamp("A", 1))
    house.relay_events(*[stamp("A", abs(one), header="x" * (20_000 if one < 0 else 1)) for one in read])
    house.relay_events(stamp("A", 9))
    [loss] = house.relay.buffer.take_losses()
    assert (loss.before, loss.after) == tuple(f"{CORE}:{one}" for one in around)
    assert loss.count == sum(one < 0 for one in read)


def test_gaps_at_both_ends_of_a_read_are_two() -> None:
    house = House(max_payload=8_000)
    house.relay_events(stamp("A", 1))
    house.relay_events(stamp("A", 2, header="x" * 20_000), stamp("A", 3), stamp("A", 4, header="x" * 20_000))
    house.relay_events(stamp("A", 5))
    losses = house.relay.buffer.take_losses()
    assert [(one.before[-1], one.after[-1], one.count) for one in losses] == [("1", "3", 1), ("3", "5", 1)]


def test_a_clock_that_is_set_back_makes_no_lower_epoch() -> None:
    house = House()
    epochs = []
    for started_at in (4_000_000_000.0, 1_000_000_000.0, 1_000_000_000.0):
        house.relay.link_up(CORE, started_at)
        epochs.append(house.relay.epoch[:-5])  # without the random digits
    assert epochs == sorted(set(epochs))


def test_a_change_of_the_node_is_told_with_the_epoch() -> None:
    house = House()
    changes: list[NodeChange] = []
    house.relay.on_change = changes.append
    change = NodeChange("fs1", NodeState.UP, NodeState.SYNCING, "subscribed", CORE, True, 1.0)
    house.relay.node_changed(change)
    assert house.told("node") == [
        {
            "state": "UP", "previous": "SYNCING", "reason": "subscribed", "owner": "w1",
            "epoch": house.relay.epoch, "core_uuid": CORE, "restarted": True,
        }
    ]  # fmt: skip
    assert changes == [change]
    assert house.relay.state is NodeState.UP
    assert house.meter.counts["up"] == 1


def test_an_outage_of_the_link_becomes_a_gap_without_a_count() -> None:
    house = House()
    house.relay.gap(LinkGap("fs1", 10.0, 12.5, f"{CORE}:1", ""))
    house.relay_events(stamp("A", 9))
    [loss] = house.relay.buffer.take_losses()
    assert (loss.reason, loss.before, loss.after, loss.count) == ("link", f"{CORE}:1", f"{CORE}:9", None)


def test_what_a_standby_had_no_room_for_is_told_as_an_upper_bound() -> None:
    house = House()
    house.relay_events(stamp("A", 1))
    house.relay.dropped(7, 10.0, 12.0)
    house.relay_events(stamp("A", 9))
    [loss] = house.relay.buffer.take_losses()
    assert (loss.reason, loss.count, loss.exact, loss.start, loss.end) == ("buffer", 7, False, 10.0, 12.0)
    assert (loss.before, loss.after) == (f"{CORE}:1", f"{CORE}:9")
    assert house.meter.counts["dropped buffer"] == 7


def test_log_lines_become_notices() -> None:
    house = House()
    house.relay.log_lines([LogRecord(level=3, text="boom\n", file="a.c", line=12, func="f", uuid="u-1")])
    assert house.told("log") == [{"level": 3, "text": "boom\n", "file": "a.c", "line": 12, "uuid": "u-1"}]


def test_a_lost_link_is_counted_by_its_reason() -> None:
    house = House()
    house.relay.link_lost("refused", ConnectionRefusedError("nobody there"))
    assert house.meter.counts["lost refused"] == 1


@pytest.mark.parametrize(
    ("earlier", "later"), [((1, 5.0), (1, 6.0)), ((1, 9.0), (2, 5.0)), ((9, 1.0), (16, 1.0)), ((0, 5.0), (0, 5.001))]
)
def test_a_later_epoch_compares_greater(earlier: tuple[int, float], later: tuple[int, float]) -> None:
    assert new_epoch(*earlier) < new_epoch(*later)
    assert [len(part) for part in new_epoch(*later).split(".")] == [16, 12, 4]


def test_an_epoch_that_is_over_is_gone_without_a_collector() -> None:
    house = House()
    epochs: list[str] = []
    gc.collect()
    gc.disable()
    try:
        for epoch in range(1, 11):
            house.relay.link_up(CORE, 4_000_000_000.0 + epoch)
            epochs.append(house.relay.epoch)
            assert house.relay_events(stamp("DTMF", epoch), stamp("CUSTOM", 100 + epoch, **{"Event-Subclass": "a::b"}))
        found = [one.epoch for one in gc.get_objects() if isinstance(one, Route) and one.epoch in epochs]
    finally:
        gc.enable()
    assert found == [house.relay.epoch]
