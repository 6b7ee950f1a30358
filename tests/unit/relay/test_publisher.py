"""The publisher: everything leaves once and in order, doubt is told, an absent bus only makes buffers older."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest

from bridge.bus.appending import Pipeline
from bridge.bus.base import BusState, Message, StreamSpec
from bridge.bus.memory import MemoryBus
from bridge.errors import BusUnavailable, MessageTooLarge, PublishFailed, PublishWithdrawn
from bridge.relay import publisher
from bridge.relay.chunks import Chunk, Loss
from bridge.relay.notices import NoticeBoard
from bridge.relay.publisher import Publisher, gap_notice
from bridge.relay.reservoir import BufferLimits, Reservoir


class ScriptedBus:
    """A bus whose fate the test decides: what it published, whether it confirms, how the next batch fails."""

    url = "test://"
    max_payload = 1024 * 1024

    def __init__(self) -> None:
        self.connected = True
        self.confirms = True
        self.confirmed = 0
        self.number = 0
        self.published: list[Message] = []
        self.failure: Exception | None = None
        self.too_large: set[str] = set()
        self.while_waiting: Callable[[], None] = lambda: None
        self.on_broken: Callable[[], None] = lambda: None
        self.on_state: Callable[[BusState], None] = lambda state: None

    def message_size(self, message: Message) -> int:
        return self.max_payload + 1 if message.id in self.too_large else len(message.payload)

    async def publish_many(self, batch: Sequence[Message], allowed: Callable[[], bool] | None = None) -> int:
        self.while_waiting()
        if allowed is not None and not allowed():
            raise PublishWithdrawn
        failure, self.failure = self.failure, None
        if isinstance(failure, PublishFailed):
            self.published += batch[: failure.confirmed]
        if failure is not None:
            raise failure
        self.published += batch
        self.number += 1
        if self.confirms:
            self.confirmed = self.number
        return self.number

    async def flush(self, timeout: float) -> None:
        if not self.connected:
            raise BusUnavailable("away")
        self.confirmed = self.number


class Meter:
    def __init__(self) -> None:
        self.confirmed = 0
        self.lost: dict[str, int] = {}
        self.gaps_told = 0

    def events_published(self, node: str, count: int = 1) -> None:
        self.confirmed += count

    def events_dropped(self, node: str, reason: str, count: int = 1) -> None:
        self.lost[reason] = self.lost.get(reason, 0) + count

    def event_lag(self, node: str, waited: float) -> None:
        self.waited = waited

    def gap(self, node: str, reason: str) -> None:
        self.gaps_told += 1


class House:
    """A publisher with one node's buffer."""

    def __init__(self) -> None:
        self.bus = ScriptedBus()
        self.meter = Meter()
        self.notices = NoticeBoard(worker="w1", instance="w1.1", codec="json")
        reservoir = Reservoir(BufferLimits(age=1e10))
        self.publisher = Publisher(self.bus, self.notices, self.meter, reservoir)  # type: ignore[arg-type]
        self.buffer = self.publisher.buffer("fs1")

    def read(self, first: int, count: int) -> None:
        messages = [Message(topic="t", payload=b"x", id=str(number)) for number in range(first, first + count)]
        self.buffer.append(Chunk("e1", messages, count * 100, 1_000_000.0))
        self.publisher.wake()

    def ids(self) -> list[str]:
        return [message.id for message in self.bus.published if message.topic == "t"]

    def gaps(self) -> list[dict[str, object]]:
        return [json.loads(one.payload)["data"] for one in self.bus.published if one.topic == "fs.bridge.gap"]

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110 - the condition is anybody's state
                await asyncio.sleep(0.005)


@pytest.fixture
async def house() -> AsyncIterator[House]:
    house = House()
    house.publisher.start()
    yield house
    await house.publisher.stop(0.1)


async def test_what_is_read_leaves_in_order_and_is_counted_when_confirmed(house: House) -> None:
    house.bus.confirms = False
    house.read(0, 3)
    house.read(3, 2)
    await house.until(lambda: len(house.ids()) == 5)
    assert house.ids() == ["0", "1", "2", "3", "4"]
    assert house.meter.confirmed == 0
    house.bus.confirmed = house.bus.number
    house.publisher.wake()
    await house.until(lambda: house.meter.confirmed == 5)


async def test_one_write_takes_what_several_nodes_have(house: House) -> None:
    other = house.publisher.buffer("fs2")
    other.append(Chunk("e2", [Message(topic="t", payload=b"y", id="b")], 1, 0.0))
    house.read(0, 1)
    await house.until(lambda: len(house.ids()) == 2)
    assert house.bus.number == 1
    house.publisher.remove(other)


async def test_while_the_bus_is_away_events_wait_and_leave_when_it_is_back(house: House) -> None:
    house.bus.connected = False
    house.read(0, 2)
    await asyncio.sleep(0)
    assert (house.publisher.events, house.publisher.size) == (2, 200)
    house.bus.connected = True
    house.publisher.wake()
    await house.until(lambda: house.ids() == ["0", "1"])
    assert (house.publisher.events, house.publisher.size) == (0, 0)


async def test_a_bus_that_went_away_at_the_write_gets_the_same_events_later(house: House) -> None:
    house.bus.failure = BusUnavailable("gone")
    house.read(0, 2)
    await house.until(lambda: house.bus.failure is None)
    house.read(2, 1)
    await house.until(lambda: len(house.ids()) == 3)
    assert house.ids() == ["0", "1", "2"]
    assert house.gaps() == []


async def test_a_batch_that_broke_off_is_counted_told_and_continued(house: House) -> None:
    house.bus.failure = PublishFailed("cut", confirmed=2, uncertain=3)
    house.read(0, 4)
    house.read(4, 4)
    await house.until(lambda: house.bus.failure is None)
    house.publisher.wake()
    await house.until(lambda: bool(house.gaps()))
    assert house.ids() == ["0", "1", "5", "6", "7"]
    [gap] = house.gaps()
    assert {name: gap[name] for name in ("reason", "before", "after", "count", "exact")} == {
        "reason": "bus", "before": "1", "after": "5", "count": 3, "exact": False,
    }  # fmt: skip
    await house.until(lambda: house.meter.confirmed == 5)
    assert house.meter.lost == {"bus": 3}
    assert house.meter.gaps_told == 1


async def test_a_broken_connection_puts_unconfirmed_batches_in_doubt_and_sends_nothing_twice(house: House) -> None:
    house.read(0, 1)
    await house.until(lambda: house.meter.confirmed == 1 or house.ids() == ["0"])
    house.bus.confirms = False
    house.read(1, 2)
    await house.until(lambda: len(house.ids()) == 3)
    house.bus.on_broken()
    house.bus.confirms = True
    house.read(3, 1)
    await house.until(lambda: bool(house.gaps()))
    assert house.ids() == ["0", "1", "2", "3"]
    [gap] = house.gaps()
    assert (gap["before"], gap["after"], gap["count"], gap["exact"]) == ("0", "3", 2, False)
    await house.until(lambda: house.meter.confirmed == 2)


async def test_a_limit_that_shrank_costs_only_what_is_over_it(house: House) -> None:
    house.bus.failure = MessageTooLarge(1_100, 1_000)
    house.bus.too_large = {"1"}
    house.read(0, 3)
    await house.until(lambda: bool(house.gaps()))
    assert house.ids() == ["0", "2"]
    [gap] = house.gaps()
    assert (gap["reason"], gap["count"], gap["exact"]) == ("too_large", 1, True)
    assert house.meter.lost == {"too_large": 1}


async def test_a_fault_in_the_bus_does_not_end_the_relay_and_what_was_in_hand_is_told(house: House) -> None:
    house.bus.failure = RuntimeError("a fault of ours")
    house.notices.tell(gap_notice(Loss("e1", "link", 1.0, 2.0, count=None)), node="fs1")
    house.read(0, 2)
    await house.until(lambda: house.bus.failure is None)
    house.read(2, 1)
    await house.until(lambda: len(house.gaps()) == 2)
    # Nobody knows how far the write came: it is in doubt, and not sent again.
    assert house.ids() == ["2"]
    [link, gap] = house.gaps()
    assert link["reason"] == "link", "a notice bears its id, and may come twice"
    assert (gap["reason"], gap["after"], gap["count"], gap["exact"]) == ("bus", "2", 2, False)
    await house.until(lambda: house.buffer.in_flight == 0)
    assert house.meter.lost == {"bus": 2}


async def test_a_doubt_about_what_another_worker_has_by_now_costs_nothing_later(house: House) -> None:
    def take_over() -> None:
        house.buffer.discard(1_000_000.0)

    house.bus.while_waiting = take_over
    house.bus.failure = PublishFailed("cut", confirmed=0, uncertain=2)
    house.read(0, 2)
    await house.until(lambda: house.bus.failure is None)
    house.bus.while_waiting = lambda: None
    house.bus.failure = BusUnavailable("gone")
    house.read(2, 2)
    await house.until(lambda: house.bus.failure is None)
    house.publisher.wake()
    await house.until(lambda: house.ids() == ["2", "3"])


async def test_what_the_broker_has_no_right_for_is_told_exactly_and_not_counted_as_published(house: House) -> None:
    other = house.publisher.buffer("fs2")
    house.bus.confirms = False
    house.read(0, 3)
    other.append(
        Chunk("e2", [Message(topic=topic, payload=b"x", id=f"b{topic}") for topic in ("t", "NO")], 100, 1_000_000.0)
    )
    house.buffer.append(Chunk("e1", [Message(topic="No", payload=b"x", id="3")], 100, 1_000_000.0))
    await house.until(lambda: house.bus.number == 1)
    for topic in ("no", "no", "_inbox.somebody", "fs.bridge.node"):
        house.bus.on_denied(topic)  # type: ignore[attr-defined]
    house.bus.confirms, house.bus.confirmed = True, 1
    house.read(4, 1)
    other.append(Chunk("e2", [Message(topic="t", payload=b"x", id="b4")], 100, 1_000_000.0))
    await house.until(lambda: len(house.gaps()) == 2)
    told = [(gap["reason"], gap["epoch"], gap["after"], gap["count"], gap["exact"]) for gap in house.gaps()]
    assert sorted(told) == [("bus", "e1", "4", 1, True), ("bus", "e2", "b4", 1, True)]
    await house.until(lambda: house.meter.confirmed == 6)
    assert house.meter.lost == {"bus": 2}
    assert (house.buffer.in_flight, other.in_flight) == (0, 0)
    house.publisher.remove(other)


async def test_a_clock_that_is_set_expires_nothing(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock:
        CLOCK_BOOTTIME = 7
        unix, steady = 1_000_000.0, 50.0

        def time(self) -> float:
            return self.unix

        def clock_gettime(self, which: int) -> float:
            assert which == self.CLOCK_BOOTTIME
            return self.steady

        def go(self, seconds: float, *, and_set: float = 0.0) -> None:
            self.steady += seconds
            self.unix += seconds + and_set

    clock = Clock()
    monkeypatch.setattr(publisher, "time", clock)
    one = Publisher(house.bus, house.notices, house.meter, Reservoir(BufferLimits(age=60.0)))  # type: ignore[arg-type]
    buffer = one.buffer("fs1")
    buffer.append(Chunk("e1", [Message(topic="t", payload=b"x", id="1")], 100, clock.time()))
    for seconds, step, events in ((50.0, 3_600.0, 1), (1.0, 0.0, 1), (1.0, -9_000.0, 1), (9.5, 0.0, 0)):
        clock.go(seconds, and_set=step)
        one._expire()
        assert one._expiry is not None
        one._expiry.cancel()
        assert buffer.events == events
    assert house.meter.lost == {"buffer": 1}


async def test_stop_publishes_what_is_left_and_has_it_confirmed() -> None:
    house = House()
    house.bus.confirms = False
    house.publisher.start()
    house.read(0, 5)
    assert await house.publisher.stop(5.0) == 0
    assert len(house.ids()) == 5
    assert house.meter.confirmed == 5


async def test_stop_gives_up_what_an_absent_bus_cannot_take_and_counts_it() -> None:
    house = House()
    house.bus.connected = False
    house.publisher.start()
    house.read(0, 5)
    assert await house.publisher.stop(0.05) == 5
    assert house.meter.lost == {"shutdown": 5}


async def test_notices_are_numbered_and_survive_an_absent_bus(house: House) -> None:
    house.bus.connected = False
    with contextlib.suppress(TimeoutError):
        for reason in ("link", "bus"):
            house.notices.tell(gap_notice(Loss("e1", "link", 1.0, 2.0, count=None, before=reason)), node="fs1")
    house.bus.connected = True
    house.publisher.wake()
    await house.until(lambda: len(house.gaps()) == 2)
    assert [one.id for one in house.bus.published] == ["w1.1:1", "w1.1:2"]
    assert house.gaps()[0] == {
        "epoch": "e1", "reason": "link", "from": "1970-01-01T00:00:01.000000Z", "to": "1970-01-01T00:00:02.000000Z",
        "before": "link",
    }  # fmt: skip


async def test_a_node_that_is_lost_while_the_bus_makes_us_wait_is_not_written(house: House) -> None:
    other = house.publisher.buffer("fs2")
    may = True
    house.buffer.gate = lambda: may

    def lose_it() -> None:
        nonlocal may
        may = False

    house.bus.while_waiting = lose_it
    other.append(Chunk("e2", [Message(topic="t", payload=b"x", id="other")], 100, 1_000_000.0))
    house.read(1, 3)
    await house.until(lambda: "other" in house.ids())
    assert house.ids() == ["other"]
    assert house.buffer.events == 3, "they wait behind their gate"
    house.bus.while_waiting = lambda: None
    may = True
    house.publisher.wake()
    await house.until(lambda: len(house.ids()) == 4)
    assert house.ids() == ["other", "1", "2", "3"]


async def test_what_is_written_is_remembered_without_its_events(house: House) -> None:
    house.bus.confirms = False
    payload = b"y" * 5_000 + b"z"
    before = sys.getrefcount(payload)
    house.buffer.append(Chunk("e1", [Message(topic="t", payload=payload, id="0")], 6_000, 1_000_000.0))
    house.publisher.wake()
    await house.until(lambda: house.ids() == ["0"])
    await asyncio.sleep(0)
    house.bus.published.clear()
    assert house.buffer.in_flight == 1
    assert sys.getrefcount(payload) == before


class TornPipeline(Pipeline):
    """Nothing of it is ever confirmed; it breaks off, and its end meets a fault."""

    async def append(self, batch: Sequence[Message], allowed: Callable[[], bool] | None = None) -> None:
        self.written += len(batch)
        asyncio.get_running_loop().call_soon(self.fail, "broken")

    def close(self) -> None:
        raise RuntimeError("the connection is closed")


class TearingBus(MemoryBus):
    """A memory bus whose first pipeline is torn."""

    torn = False

    def appender(self, stream: StreamSpec, changed: Callable[[], None]) -> Any:
        if self.torn:
            return super().appender(stream, changed)
        self.torn = True
        return TornPipeline(changed)


async def test_a_fault_at_the_end_of_a_pipeline_costs_a_stream_nothing(house: House) -> None:
    bus = TearingBus(f"memory://{id(house)}")
    await bus.connect(1)
    publisher = Publisher(bus, house.notices, house.meter, Reservoir(BufferLimits(durable_age=1e10)))
    buffer = publisher.buffer("fs1", StreamSpec("FS_EVENTS", "fs.events", ("fs.events.>",)))
    publisher.start()
    for number in range(3):
        buffer.append(Chunk("e1", [Message(topic="t", payload=b"x", id=str(number))], 100, 1_000_000.0))
        buffer.wake()
    await house.until(lambda: len(bus.broker.streams.get("FS_EVENTS", [])) == 3)
    assert [message.id for message in bus.broker.streams["FS_EVENTS"]] == ["0", "1", "2"]
    await publisher.stop(0.1)
    await bus.close()
