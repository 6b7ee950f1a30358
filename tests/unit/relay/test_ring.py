"""A standby's ring: what comes behind the mark, in order, bounded, found by identity."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bridge.esl.event import Event
from bridge.relay.ring import EventRing, Overflow
from bridge.switch.node import LinkGap


def event(number: int, padding: int = 10) -> Event:
    return Event.parse(
        json.dumps(
            {"Event-Name": "CUSTOM", "Core-UUID": "c-1", "Event-Sequence": str(number), "x": "x" * padding}
        ).encode()
    )


def kept(ring: EventRing) -> list[str]:
    found = []
    for part in ring.take():
        assert not isinstance(part, LinkGap)
        found += [one.envelope.sequence for one in part]
    return found


def test_it_gives_what_came_behind_the_mark_in_its_own_order() -> None:
    ring = EventRing()
    ring.append([event(5), event(3)])
    ring.append([event(9), event(4)])
    assert ring.trim("c-1:3")
    assert kept(ring) == ["9", "4"]
    assert kept(ring) == []


def test_an_event_in_the_middle_of_a_read_is_found() -> None:
    ring = EventRing()
    ring.append([event(1), event(2), event(3)])
    assert ring.trim("c-1:2")
    assert ring.trim("c-1:2")  # it is still the mark
    assert len(ring) == 1
    assert kept(ring) == ["3"]


def test_a_mark_that_is_not_there_leaves_everything() -> None:
    ring = EventRing()
    ring.append([event(1)])
    assert not ring.trim("c-1:7")
    assert not ring.trim("c-2:1")
    assert kept(ring) == ["1"]


def test_a_mark_that_is_left_out_here_is_known_by_what_it_came_behind() -> None:
    """Each worker leaves out the API events of its own commands; the owner's mark may be one of ours."""
    ring = EventRing()
    ring.append([event(1), event(2)])
    ring.hide("c-1:3", "c-1:2")
    ring.hide("c-1:4", "c-1:2")
    ring.append([event(5)])
    assert ring.trim("c-1:3")
    assert ring.trim("c-1:4"), "the mark moved on, and nothing is behind it"
    assert kept(ring) == ["5"]


def test_what_is_left_out_is_bounded_and_forgotten() -> None:
    ring = EventRing()
    ring.append([event(1)])
    for number in range(2, 10_000):
        ring.hide(f"c-1:{number}", "c-1:1")
    assert len(ring._hidden) == 4096
    assert not ring.trim("c-1:2")
    assert ring.trim("c-1:9999")
    ring.clear()
    assert not ring.trim("c-1:9998")


def test_what_is_over_the_memory_goes_to_a_file_and_comes_back_in_order(tmp_path: Path) -> None:
    ring = EventRing(tmp_path, memory=20_000)
    for number in range(0, 200, 2):
        ring.append([event(number, 500), event(number + 1, 500)])
    assert ring.size <= 20_000
    assert ring.spilled > 0
    assert not ring.overflowed
    assert ring.trim("c-1:13")  # in the file
    assert kept(ring) == [str(number) for number in range(14, 200)]
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_an_overflow_and_a_later_mark_heals_it(tmp_path: Path) -> None:
    ring = EventRing(tmp_path, memory=10_000, disk=5_000)
    for number in range(100):
        ring.append([event(number, 500)])
    assert ring.overflowed
    assert ring.trim("c-1:98")
    assert not ring.overflowed
    assert kept(ring) == ["99"]


def test_what_a_full_disk_cost_keeps_its_place_behind_an_older_mark(tmp_path: Path) -> None:
    """What is on disk is older than what was dropped: the mark is found there, and the hole is behind it."""
    ring = EventRing(tmp_path, memory=10_000, disk=5_000)
    for number in range(100):
        ring.append([event(number, 500)])
    assert ring.trim("c-1:2")
    assert ring.overflowed
    parts = list(ring.take())
    (hole,) = [index for index, part in enumerate(parts) if isinstance(part, Overflow)]
    before = [one.envelope.sequence for part in parts[:hole] if isinstance(part, list) for one in part]
    after = [one.envelope.sequence for part in parts[hole + 1 :] if isinstance(part, list) for one in part]
    assert before == [str(number) for number in range(3, 3 + len(before))]
    assert after == [str(number) for number in range(100 - len(after), 100)]
    dropped = parts[hole]
    assert isinstance(dropped, Overflow)
    assert dropped.count == 100 - 3 - len(before) - len(after) > 0
    assert list(ring.take()) == []


def test_without_a_folder_to_write_to_it_overflows(tmp_path: Path) -> None:
    ring = EventRing(tmp_path / "absent", memory=5_000)
    for number in range(50):
        ring.append([event(number, 500)])
    assert ring.overflowed
    assert ring.size <= 5_000
    first, *rest = ring.take()
    assert isinstance(first, Overflow)
    assert first.count + len(rest) == 50


def test_a_hole_keeps_its_place() -> None:
    ring = EventRing()
    gap = LinkGap("fs1", 1.0, 2.0, "c-1:1", "")
    ring.append([event(1)])
    ring.hole(gap)
    ring.append([event(2)])
    parts = list(ring.take())
    assert parts[1] is gap
    assert [type(part) for part in (parts[0], parts[2])] == [list, list]


@pytest.mark.parametrize("format", ["json", "plain"])
def test_the_format_of_an_event_survives_the_file(tmp_path: Path, format: str) -> None:
    plain = Event.parse(b"Event-Name: CUSTOM\nCore-UUID: c-1\nEvent-Sequence: 0\nx: a%20b\n\n", "plain")
    ring = EventRing(tmp_path, memory=2_000)
    ring.append([plain if format == "plain" else event(0)])
    for number in range(1, 10):
        ring.append([event(number, 500)])
    first = next(ring.take())
    assert not isinstance(first, LinkGap)
    assert (first[0].format, first[0].identity) == (format, "c-1:0")
    ring.clear()
    assert first[0].get("x") == ("a b" if format == "plain" else "x" * 10)
