"""Between link and relay: kept while standing by, published while owning, and told where something was missed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bridge.esl.event import Event
from bridge.messages.fleet import Mark
from bridge.relay import feed as feed_room
from bridge.relay.chunks import Loss
from bridge.relay.feed import NodeFeed, together
from bridge.relay.known_calls import KnownCalls
from bridge.relay.ring import EventRing
from bridge.switch.node import LinkGap, NodeChange, NodeState


def event(number: int, name: str = "CUSTOM") -> Event:
    return Event.parse(
        json.dumps({"Event-Name": name, "Core-UUID": "c", "Event-Sequence": str(number), "Unique-ID": "u"}).encode()
    )


class Relay:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.node, self.token, self.epoch = "fs1", 0, "e"
        self.state: Any = NodeState.CONNECTING
        self.reason = ""
        self.published: list[str] = []
        self.changes: list[NodeChange] = []
        self.gaps: list[LinkGap] = []
        self.losses: list[Loss] = []
        self.overflows: list[tuple[int, int]] = []
        self.epochs: list[int] = []
        self.buffers = [self]
        self.links_again = 0

    def linked_again(self) -> None:
        self.links_again += 1

    def on_change(self, change: NodeChange) -> None:
        pass

    def link_up(self, core_uuid: str, started_at: float) -> None:
        self.epochs.append(self.token)

    def events(self, events: list[Event]) -> None:
        self.published += [one.envelope.sequence for one in events]

    def node_changed(self, change: NodeChange) -> None:
        self.changes.append(change)

    def gap(self, gap: LinkGap) -> None:
        self.gaps.append(gap)

    def skipped(self, size: int) -> None:
        self.published.append(f"skipped {size}")

    def dropped(self, count: int, start: float, end: float) -> None:
        self.overflows.append((count, len(self.published)))

    def lose(self, loss: Loss) -> None:
        self.losses.append(loss)


@pytest.fixture
def relay() -> Relay:
    return Relay()


@pytest.fixture
def feed(relay: Relay) -> NodeFeed:
    found = NodeFeed(relay, EventRing(), KnownCalls(), {})  # type: ignore[arg-type]
    found.link_up("c", 100.0)
    return found


def mark(number: int | str) -> Mark:
    return Mark(7, f"c:{number}" if number != "" else "", 99.0, 0, "other")


def test_standing_by_it_publishes_nothing_but_sees_everything(feed: NodeFeed, relay: Relay) -> None:
    change = NodeChange("fs1", NodeState.UP, NodeState.SYNCING, "subscribed", "c", False, 1.0)
    feed.node_changed(change)
    feed.events([event(1, "CHANNEL_CREATE")])
    assert (relay.published, relay.changes, relay.state) == ([], [], NodeState.UP)
    assert "u" in feed.known
    feed.take(9, None, overlapped=False)
    assert relay.changes == [change]  # the world hears the state from its owner


def test_a_take_over_publishes_what_is_behind_the_mark_and_then_the_rest(feed: NodeFeed, relay: Relay) -> None:
    feed.events([event(1), event(3), event(2)])
    assert feed.take(9, mark(3), overlapped=True) == 1
    feed.events([event(4)])
    assert relay.published == ["2", "4"]
    assert relay.epochs == [9]
    assert not relay.losses


def test_a_mark_in_a_hole_of_ours_is_found_by_what_came_before_it(feed: NodeFeed, relay: Relay) -> None:
    feed.events([event(1), event(2), event(3)])
    feed.gap(LinkGap("fs1", 1.0, 2.0, "c:3", "c:7"))
    feed.events([event(7)])
    last = Mark(7, "c:5", 99.0, 0, "other", True, ("c:4", "c:2", "c:1"))
    assert feed.take(9, last, overlapped=True) == 2
    assert relay.published == ["3", "7"]
    assert len(relay.gaps) == 1
    assert not relay.losses


def test_what_the_one_before_has_published_may_come_late_on_our_link(feed: NodeFeed, relay: Relay) -> None:
    feed.events([event(1), event(2)])
    last = Mark(7, "c:5", 99.0, 0, "other", True, ("c:4", "c:3", "c:2"))
    assert feed.take(9, last, overlapped=True) == 0
    feed.events([event(3), event(4)])
    feed.events([event(5), event(6)])
    assert relay.published == ["6"]
    feed.link_up("c", 200.0)  # nothing of before comes on a new link
    feed.events([event(4), event(7)])
    assert relay.published == ["6", "4", "7"]


def test_what_is_not_late_any_more_is_compared_with_nothing(
    feed: NodeFeed, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed.events([event(2)])
    feed.take(9, Mark(7, "c:5", 99.0, 0, "other", True, ("c:4", "c:3", "c:2")), overlapped=True)
    monkeypatch.setattr(feed_room.time, "time", lambda: feed._published_until + 1)
    feed.events([event(3)])
    assert relay.published == ["3"]
    assert not feed._published


def test_a_take_over_knows_which_calls_began_behind_the_mark(feed: NodeFeed) -> None:
    def of(number: int, name: str, uuid: str) -> Event:
        fields = {"Event-Name": name, "Core-UUID": "c", "Event-Sequence": str(number), "Unique-ID": uuid}
        return Event.parse(json.dumps(fields).encode())

    feed.events([of(1, "CHANNEL_CREATE", "before"), of(2, "CHANNEL_ANSWER", "before")])
    feed.events([of(3, "CHANNEL_CREATE", "since"), of(4, "CHANNEL_ANSWER", "older"), of(5, "CHANNEL_UUID", "renamed")])
    feed.take(9, mark(1), overlapped=True)
    assert feed.begun == {"since", "renamed"}
    feed.stop()
    feed.take(11, None, overlapped=True)
    assert not feed.begun


def test_the_first_owner_ever_publishes_all_and_misses_nothing(feed: NodeFeed, relay: Relay) -> None:
    feed.events([event(1)])
    feed.take(9, None, overlapped=False)
    assert (relay.published, relay.losses) == (["1"], [])


@pytest.mark.parametrize("number", [42, ""])
def test_beside_the_one_before_a_mark_that_is_older_than_the_ring_is_no_hole(
    feed: NodeFeed, relay: Relay, number: int | str
) -> None:
    feed.events([event(1)])
    feed.take(9, mark(number), overlapped=True)
    assert (relay.published, relay.losses) == (["1"], [])


def test_a_mark_that_is_older_than_what_was_trimmed_is_no_hole(feed: NodeFeed, relay: Relay) -> None:
    feed.events([event(1), event(2), event(3)])
    assert feed.ring.trim("c:2")  # the owner's entry was written after its lease's note
    feed.take(9, mark(1), overlapped=False)
    assert (relay.published, relay.losses) == (["3"], [])


def test_without_an_overlap_a_missing_mark_is_a_gap_and_everything_is_published(feed: NodeFeed, relay: Relay) -> None:
    feed.events([event(1)])
    feed.take(9, mark(42), overlapped=False)
    (loss,) = relay.losses
    assert (loss.reason, loss.before, loss.start, loss.end, loss.count) == ("failover", "c:42", 99.0, 100.0, None)
    assert loss.uncertain
    assert relay.published == ["1"]


def test_without_a_link_the_gap_ends_when_there_is_one(relay: Relay) -> None:
    feed = NodeFeed(relay, EventRing(), KnownCalls(), {})  # type: ignore[arg-type]
    feed.take(9, mark(42), overlapped=False)
    assert not relay.losses
    feed.link_up("c", 105.0)
    (loss,) = relay.losses
    assert (loss.start, loss.end, loss.uncertain) == (99.0, 105.0, False)


def test_a_hole_in_the_ring_is_told_in_its_place(feed: NodeFeed, relay: Relay) -> None:
    gap = LinkGap("fs1", 1.0, 2.0, "", "")
    feed.events([event(1)])
    feed.gap(gap)
    feed.events([event(2)])
    feed.take(9, mark(1), overlapped=True)
    assert (relay.gaps, relay.published) == ([gap], ["2"])


def test_what_the_ring_had_no_room_for_is_told_in_its_place(relay: Relay, tmp_path: Path) -> None:
    feed = NodeFeed(relay, EventRing(tmp_path, memory=4_000, disk=1_000), KnownCalls(), {})  # type: ignore[arg-type]
    feed.link_up("c", 100.0)
    for number in range(50):
        feed.events([event(number)])
    feed.take(9, mark(1), overlapped=True)
    ((count, place),) = relay.overflows
    assert count + len(relay.published) == 48
    assert [int(one) for one in relay.published] == [*range(2, 2 + place), *range(2 + place + count, 50)]
    assert not relay.losses


def test_it_is_part_of_the_gap_where_the_mark_was_among_it(relay: Relay, tmp_path: Path) -> None:
    feed = NodeFeed(relay, EventRing(tmp_path / "absent", memory=4_000), KnownCalls(), {})  # type: ignore[arg-type]
    feed.link_up("c", 100.0)
    for number in range(50):
        feed.events([event(number)])
    feed.take(9, mark(1), overlapped=True)
    assert not relay.overflows
    assert [loss.reason for loss in relay.losses] == ["failover"]


def test_who_stopped_keeps_again_and_a_return_begins_another_epoch(feed: NodeFeed, relay: Relay) -> None:
    feed.take(9, None, overlapped=False)
    feed.resume(10)
    feed.events([event(1)])
    feed.stop()
    feed.events([event(2)])
    assert (relay.published, relay.epochs) == (["1"], [9, 10])
    feed.take(12, mark(1), overlapped=True)
    assert relay.published == ["1", "2"]


def test_watchers_of_one_event_are_all_called() -> None:
    seen: list[str] = []
    both = together({"A": lambda _: seen.append("one")}, {"A": lambda _: seen.append("two"), "B": seen.append})  # type: ignore[dict-item]
    both["A"](event(1))
    assert seen == ["one", "two"]


def test_a_link_that_is_made_again_is_counted_by_its_owner(feed: NodeFeed, relay: Relay) -> None:
    feed.link_up("c", 101.0)
    assert relay.links_again == 0, "a standby's links are nobody's business"
    feed.take(7, mark(""), overlapped=False)
    assert relay.links_again == 0
    feed.link_up("c", 102.0)
    assert relay.links_again == 1
    feed.forget()
    feed.link_up("c", 103.0)
    assert relay.links_again == 1, "it was taken down on purpose"


def test_a_mark_that_is_our_own_commands_event_is_no_reason_to_say_all_again(feed: NodeFeed, relay: Relay) -> None:
    feed.events([event(1), event(2)])
    feed.ring.trim("c:1")
    feed.hidden("c:3", "c:2")
    feed.events([event(4)])
    feed.take(7, mark(3), overlapped=True)
    assert relay.published == ["4"]
    feed.hidden("c:5", "c:4")  # an owner need not know
    assert not feed.ring.trim("c:5")


def test_what_was_too_large_to_be_kept_is_told_by_the_owner_and_by_who_takes_over(feed: NodeFeed, relay: Relay) -> None:
    feed.events([event(1)])
    feed.skipped(99)
    feed.events([event(2)])
    feed.skipped(99)
    feed.events([event(3)])
    feed.take(7, mark(2), overlapped=True)
    assert (relay.published, relay.overflows) == (["3"], [(1, 0)]), "the first one was the owner's to tell"
    feed.skipped(99)
    assert relay.published == ["3", "skipped 99"]
