from __future__ import annotations

import asyncio
from typing import Any

import pytest

from bridge.esl.event import Event
from bridge.ops.tail import LINES_PER_SECOND, MAX_VIEWERS, WAITING_LINES, Filter, Tail, TappedHandler, parse_filter


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def event(name: str = "CHANNEL_CREATE", **headers: str) -> Event:
    import json

    data = {"Event-Name": name, "Core-UUID": "c", "Event-Sequence": "1", **headers}
    return Event.parse(json.dumps({key.replace("_", "-"): value for key, value in data.items()}).encode())


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tail(clock: Clock) -> Tail:
    return Tail(clock)


async def lines(viewer: Any) -> list[dict[str, Any]]:
    return (await viewer.next(0.01))[0]


@pytest.mark.parametrize(
    ("names", "name", "subclass", "wanted"),
    [
        ("", "HEARTBEAT", "", True),
        ("CHANNEL_*", "CHANNEL_ANSWER", "", True),
        ("channel_*", "CHANNEL_ANSWER", "", True),
        ("CHANNEL_*", "HEARTBEAT", "", False),
        ("CHANNEL_ANSWER, HEARTBEAT", "HEARTBEAT", "", True),
        ("CUSTOM:sofia::*", "CUSTOM", "sofia::register", True),
        ("CUSTOM:sofia::*", "CUSTOM", "conference::maintenance", False),
        ("CUSTOM", "CUSTOM", "conference::maintenance", True),
    ],
)
def test_names_are_globs(names: str, name: str, subclass: str, wanted: bool) -> None:
    headers = {"Event_Subclass": subclass} if subclass else {}
    assert Filter(names).wants_name(event(name, **headers).envelope) is wanted


async def test_a_viewer_gets_what_it_asked_for(tail: Tail) -> None:
    viewer = tail.open(parse_filter({"names": "CHANNEL_*", "node": "fs1"}, ["Caller-Destination-Number=10*"]))
    assert viewer is not None
    tail.take("fs1", [event(Caller_Destination_Number="1001"), event("HEARTBEAT"), event()])
    tail.take("fs1", [event(Caller_Destination_Number="2001")])
    tail.take("fs2", [event(Caller_Destination_Number="1002")])
    (line,) = await lines(viewer)
    assert (line["node"], line["name"]) == ("fs1", "CHANNEL_CREATE")
    assert line["headers"] == {"Caller-Destination-Number": "1001"}


def test_a_condition_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="Header=glob"):
        parse_filter({}, ["nonsense"])


async def test_a_firehose_is_sampled_counted_and_bounded(tail: Tail, clock: Clock) -> None:
    viewer = tail.open(Filter())
    assert viewer is not None
    for _ in range(10):
        tail.take("fs1", [event() for _ in range(100)])
    shown, skipped = await viewer.next(1.0)
    assert len(shown) == LINES_PER_SECOND
    assert len(shown) + skipped == 1000
    for _ in range(20):
        clock.now += 1.0
        tail.take("fs1", [event() for _ in range(100)])
    shown, skipped = await viewer.next(1.0)
    assert len(shown) == WAITING_LINES
    assert len(shown) + skipped == 2000


async def test_events_that_are_not_shown_are_never_decoded(tail: Tail, clock: Clock) -> None:
    tail.open(Filter("CHANNEL_*"))
    broken = event("HEARTBEAT")

    class Refusing:
        envelope = broken.envelope

        def get(self, name: str) -> None:
            raise AssertionError("it was decoded")

    tail.take("fs1", [Refusing()])  # type: ignore[list-item]


def test_nobody_looks_so_nothing_is_watched(tail: Tail) -> None:
    assert tail.watched is False
    viewers = [tail.open(Filter()) for _ in range(MAX_VIEWERS)]
    assert tail.watched is True
    assert tail.open(Filter()) is None
    for viewer in viewers:
        assert viewer is not None
        tail.close(viewer)
    assert tail.watched is False


async def test_a_tapped_handler_passes_everything_on(tail: Tail) -> None:
    class Handler:
        owning = True

        def __init__(self) -> None:
            self.told: list[Any] = []

        def events(self, events: list[Any]) -> None:
            self.told.append(events)

        def __getattr__(self, name: str) -> Any:
            return lambda *told: self.told.append((name, *told))

    handler = Handler()
    tapped = TappedHandler("fs1", handler, tail)
    batch = [event()]
    tapped.events(batch)
    tapped.link_up("c", 1.0)
    tapped.link_lost("refused", OSError())
    assert handler.told[0] is batch
    assert [told[0] for told in handler.told[1:]] == ["link_up", "link_lost"]
    viewer = tail.open(Filter())
    assert viewer is not None
    tapped.events(batch)
    assert len(await lines(viewer)) == 1
    # A standby keeps what it reads: its owner publishes, and shows, it.
    handler.owning = False
    tapped.events(batch)
    assert handler.told[-1] is batch
    assert await lines(viewer) == []


async def test_waiting_ends_when_nothing_comes(tail: Tail) -> None:
    viewer = tail.open(Filter())
    assert viewer is not None
    async with asyncio.timeout(5):
        assert await viewer.next(0.01) == ([], 0)
