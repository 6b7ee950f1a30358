"""The buffer: order, bounds by count, bytes and age, and losses that are told exactly."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.bus.base import Message
from bridge.relay.buffer import BufferLimits, Chunk, EventBuffer, Loss
from bridge.relay.reservoir import PACE


def chunk(first: int, count: int = 1, *, size: int = 100, at: float = 0.0, epoch: str = "e1") -> Chunk:
    messages = [Message(topic="t", payload=b"x", id=str(number)) for number in range(first, first + count)]
    return Chunk(epoch, messages, size, at)


def ids(chunks: list[Chunk]) -> list[str]:
    return [message.id for one in chunks for message in one.messages]


def test_chunks_leave_in_their_order_and_in_batches_of_bytes() -> None:
    buffer = EventBuffer("fs1", BufferLimits())
    for number in range(0, 10, 2):
        assert buffer.append(chunk(number, 2)) == 0
    assert (buffer.events, buffer.size, len(buffer)) == (10, 500, 10)
    assert ids(buffer.take(250)) == ["0", "1", "2", "3"]
    assert ids(buffer.take(1)) == ["4", "5"]
    assert ids(buffer.take(10_000)) == ["6", "7", "8", "9"]
    assert buffer.take(1) == []
    assert (buffer.events, buffer.size) == (0, 0)
    assert buffer.take_losses() == []


def test_what_was_not_written_goes_back_to_the_front() -> None:
    buffer = EventBuffer("fs1", BufferLimits())
    for number in range(3):
        buffer.append(chunk(number))
    taken = buffer.take(200)
    buffer.put_back(taken)
    assert (buffer.events, buffer.size) == (3, 300)
    assert ids(buffer.take(10_000)) == ["0", "1", "2"]


def test_over_the_count_the_oldest_are_dropped_and_told_with_their_neighbours() -> None:
    buffer = EventBuffer("fs1", BufferLimits(events=10))
    buffer.append(chunk(0, 2))
    assert ids(buffer.take(1)) == ["0", "1"]
    for number in range(2, 12):
        assert buffer.append(chunk(number, at=float(number))) == 0
    assert buffer.append(chunk(12, at=12.0)) == 2
    assert ids(buffer.take(100))[0] == "4"
    [loss] = buffer.take_losses()
    assert loss == Loss("e1", "buffer", start=2.0, end=12.0, before="1", after="4", count=2, exact=True)
    assert buffer.take_losses() == []


def test_over_the_bytes_the_oldest_are_dropped_but_never_the_newest() -> None:
    buffer = EventBuffer("fs1", BufferLimits(size=1000))
    assert buffer.append(chunk(0, size=5000)) == 0
    assert buffer.append(chunk(1, size=5000)) == 1
    assert ids(buffer.take(1)) == ["1"]


def test_what_is_dropped_here_and_there_is_told_from_the_first_to_the_last_of_it() -> None:
    buffer = EventBuffer("fs1", BufferLimits())
    buffer.append(chunk(0))
    assert ids(buffer.take(1)) == ["0"]
    for first, count in ((1, 3), (4, 1), (5, 2)):
        buffer.append(chunk(first, count))
    assert buffer.keep(lambda message: message.id not in ("2", "4", "6"), 9.0) == 3
    buffer.append(chunk(7))
    assert ids(buffer.take(10_000)) == ["1", "3", "5", "7"]
    # What had nothing behind it when it was dropped is another loss.
    assert [(one.before, one.after, one.count) for one in buffer.take_losses()] == [("1", "5", 2), ("5", "7", 1)]


@given(st.sets(st.integers(1, 12)), st.lists(st.integers(1, 4), min_size=3, max_size=6), st.booleans())
def test_such_losses_stand_around_what_is_missing(gone: set[int], sizes: list[int], twice: bool) -> None:
    buffer = EventBuffer("fs1", BufferLimits())
    buffer.append(chunk(0))
    left = ids(buffer.take(1))
    number = 1
    for count in sizes:
        buffer.append(chunk(number, count))
        number += count
        if twice:
            buffer.keep(lambda message: int(message.id) not in gone, 9.0)
    buffer.keep(lambda message: int(message.id) not in gone, 9.0)
    buffer.append(chunk(number))
    left += ids(buffer.take(10_000))
    missing = [one for one in range(number + 1) if str(one) not in left]
    assert missing == sorted(gone & set(range(number)))
    losses = buffer.take_losses()
    assert sum(loss.count or 0 for loss in losses) == len(missing)
    around = [(int(loss.before), int(loss.after)) for loss in losses]
    assert all(any(before < one < after for before, after in around) for one in missing)
    assert all(any(before < one < after for one in missing) for before, after in around)


def test_over_the_age_they_are_dropped() -> None:
    buffer = EventBuffer("fs1", BufferLimits(age=60))
    buffer.append(chunk(0, 3, at=0.0))
    buffer.append(chunk(3, at=50.0))
    assert buffer.expire(60.0) == 0
    assert buffer.expire(61.0) == 3
    assert ids(buffer.take(1)) == ["3"]
    [loss] = buffer.take_losses()
    assert (loss.count, loss.reason, loss.after) == (3, "buffer", "3")


@pytest.mark.parametrize("step", [4000.0, -4000.0])
def test_a_clock_that_is_set_makes_nothing_older_or_younger(step: float) -> None:
    buffer = EventBuffer("fs1", BufferLimits(age=60))
    buffer.append(chunk(0, at=10_000.0))
    buffer.append(chunk(1, at=10_040.0))
    now = 10_050.0 + step
    buffer.append(chunk(2, at=now - 0.5))  # read between the step and its discovery
    buffer.clock_set(step, now)
    assert buffer.expire(now + 10.0) == 0
    assert buffer.expire(now + 11.0) == 1
    assert buffer.expire(now + 51.0) == 1
    assert buffer.expire(now + 59.0) == 0
    assert ids(buffer.take(1)) == ["2"]
    [loss] = buffer.take_losses()
    assert (loss.start, loss.end, loss.count) == (10_000.0 + step, now + 51.0, 2), "told by the clock that is right now"


def test_losses_of_one_kind_become_one_and_doubt_is_not_exact() -> None:
    buffer = EventBuffer("fs1", BufferLimits())
    buffer.lose(Loss("e1", "bus", 1.0, 2.0, before="7", count=3, exact=False))
    buffer.lose(Loss("e1", "bus", 2.0, 3.0, before="9", count=4, exact=False))
    buffer.lose(Loss("e1", "too_large", 2.0, 2.0, count=1))
    buffer.lose(Loss("e1", "link", 2.0, 4.0, before="9", count=None))
    assert buffer.take_losses() == []
    buffer.append(chunk(20))
    buffer.take(1)
    assert buffer.take_losses() == [
        Loss("e1", "bus", 1.0, 3.0, "7", "20", 7, False),
        Loss("e1", "too_large", 2.0, 2.0, "", "20", 1, True),
        Loss("e1", "link", 2.0, 4.0, "9", "20", None, True),
    ]


def test_the_end_of_a_worker_closes_every_loss() -> None:
    buffer = EventBuffer("fs1", BufferLimits())
    buffer.append(chunk(0, 5))
    assert buffer.close(9.0) == 5
    assert buffer.take_losses() == [], "it is for the next run to tell"
    [loss] = buffer.reservoir.untold.due("fs1", 0)
    assert (loss.count, loss.after, loss.exact) == (5, "", True)
    assert buffer.events == buffer.size == 0


def test_what_was_put_back_did_not_leave() -> None:
    buffer = EventBuffer("fs1", BufferLimits())
    for number in range(4):
        buffer.append(chunk(number))
    buffer.settle(buffer.take(1)[0], confirmed=True)
    buffer.put_back(buffer.take(200))
    assert buffer.close(9.0) == 3
    [loss] = buffer.reservoir.untold.due("fs1", 0)
    assert (loss.before, loss.count) == ("0", 3)


def test_a_node_that_comes_back_and_was_nobodys_tells_what_was_forgotten() -> None:
    buffer = EventBuffer("fs1", BufferLimits())
    for number in range(4):
        buffer.append(chunk(number, epoch="0000000000000007.0.0"))
    taken = buffer.take(200)
    assert buffer.discard(9.0) == 2
    buffer.put_back(taken)
    buffer.own_up(7)
    [loss] = buffer.take_losses()
    assert (loss.count, loss.exact) == (4, True)


def test_what_another_worker_had_meanwhile_is_not_told_as_lost() -> None:
    buffer = EventBuffer("fs1", BufferLimits())
    buffer.append(chunk(0, epoch="0000000000000007.0.0"))
    assert buffer.discard(9.0) == 1
    buffer.own_up(8)
    assert buffer.take_losses() == []
    assert buffer.reservoir.untold.nodes == []


def test_what_does_not_fit_the_bus_any_more_is_dropped_and_told() -> None:
    buffer = EventBuffer("fs1", BufferLimits())
    buffer.append(chunk(0, 4))
    buffer.append(chunk(4, 1))
    buffer.append(chunk(5, 2))
    assert buffer.keep(lambda message: message.id not in ("1", "4"), 9.0) == 2
    assert (buffer.events, buffer.size) == (5, 175)
    assert ids(buffer.take(1_000)) == ["0", "2", "3", "5", "6"]
    assert buffer.size == 0
    [loss] = buffer.take_losses()
    assert (loss.reason, loss.count, loss.exact) == ("too_large", 2, True)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("append"), st.integers(1, 20)),
            st.tuples(st.just("take"), st.integers(1, 2_000)),
            st.tuples(st.just("expire"), st.integers(0, 100)),
        ),
        max_size=80,
    )
)
def test_every_event_leaves_once_in_order_or_is_told(steps: list[tuple[str, int]]) -> None:
    buffer = EventBuffer("fs1", BufferLimits(events=50, size=3_000, age=40.0))
    added = dropped = 0
    left: list[str] = []
    now = 0.0
    for what, amount in steps:
        now += 1.0
        if what == "append":
            dropped += buffer.append(chunk(added, amount, size=amount * 100, at=now))
            added += amount
        elif what == "take":
            left += ids(buffer.take(amount))
        else:
            dropped += buffer.expire(now)
    left += ids(buffer.take(1_000_000))
    losses = buffer.take_losses()
    dropped_told = sum(loss.count or 0 for loss in losses)
    assert buffer.events == buffer.size == 0
    assert [int(one) for one in left] == sorted({int(one) for one in left})
    assert len(left) + dropped == added
    if left and int(left[-1]) == added - 1:
        assert dropped_told == dropped


@pytest.mark.parametrize("limits", [BufferLimits(size=6_000), BufferLimits(events=60)])
def test_a_reader_rests_while_much_waits_for_all_nodes(limits: BufferLimits) -> None:
    one = EventBuffer("fs1", limits)
    other = EventBuffer("fs2", reservoir=one.reservoir)
    for number in range(5):
        one.append(chunk(number))
        other.append(chunk(number))
    assert one.reservoir.pause(PACE) == 0.0
    other.append(chunk(5))
    assert one.reservoir.pause(PACE) == 1.0
    other.take(100)
    assert one.reservoir.pause(PACE) == 0.0
