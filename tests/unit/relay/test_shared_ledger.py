"""The ledger on a broker: several workers, one memory, answers that come late or never."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from bridge.bus.memory_records import MemoryRecords, RecordShelf
from bridge.bus.records import Record, Swapped
from bridge.errors import BusRefused, BusUnavailable
from bridge.messages.reply import CommandReply, Executed, Status
from bridge.relay import record
from bridge.relay.ledger import Verdict
from bridge.relay.shared_ledger import SharedLedger

CONTENT = b"0123456789abcdef"
OTHER = b"fedcba9876543210"
OK = CommandReply(id="a", status=Status.OK, executed=Executed.YES, result="+OK done")
LOST = CommandReply(id="a", status=Status.CONNECTION_LOST, executed=Executed.UNKNOWN, error="gone")
BUSY = CommandReply(id="a", status=Status.BUSY, executed=Executed.NO)


class Broker:
    """Several workers' way to one shelf; ``away`` and ``deaf`` are faults of the way."""

    connected = True
    max_payload = 1 << 16

    def __init__(self) -> None:
        self.now = 1_000.0
        self.shelf = RecordShelf(lambda: self.now)


class Records(MemoryRecords):
    """``swallow`` answers are lost (what was asked for happened), ``refuse`` ones are refused."""

    def __init__(self, broker: Broker) -> None:
        super().__init__(broker, broker.shelf)
        self.swallow = self.refuse = 0

    def swap(self, key: str, value: bytes, expected: Record | None, ttl: float, answer: Swapped) -> None:
        if self.refuse:
            self.refuse -= 1
            asyncio.get_running_loop().call_soon(answer, False, None, BusRefused("OOM"))
            return
        if self.swallow:
            self.swallow -= 1
            lost = answer

            def answer(*_: Any) -> None:
                lost(False, None, BusUnavailable("the connection broke"))

        super().swap(key, value, expected, ttl, answer)


class Told:
    """What a worker was told of one request."""

    def __init__(self, ledger: SharedLedger, key: str = "a", content: bytes = CONTENT, **how: bool) -> None:
        self.verdicts: list[tuple[Verdict, CommandReply | None]] = []
        ledger.begin(key, content, lambda *one: self.verdicts.append(one), **how)

    async def verdict(self) -> Verdict:
        await until(lambda: bool(self.verdicts))
        assert len(self.verdicts) == 1
        return self.verdicts[0][0]

    @property
    def reply(self) -> CommandReply:
        reply = self.verdicts[0][1]
        assert reply is not None
        return reply


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


class World:
    def __init__(self) -> None:
        self.broker = Broker()
        self.ledgers: list[SharedLedger] = []

    async def worker(self, name: str, window: float = 300.0) -> Any:
        ledger = SharedLedger(Records(self.broker), instance=name, window=window, claim_after=30.0)
        await ledger.open()
        self.ledgers.append(ledger)
        return ledger

    def beat(self, *ledgers: SharedLedger) -> None:
        for ledger in ledgers:
            ledger._records.beat(ledger._instance)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    yield made
    for ledger in made.ledgers:
        ledger.close()


async def keep(ledger: SharedLedger, reply: CommandReply, key: str = "a") -> tuple[Any, ...]:
    stored: list[tuple[Any, ...]] = []
    ledger.keep(key, reply, lambda *told: stored.append(told))
    await until(lambda: bool(stored))
    assert len(stored) == 1
    return stored[0]


async def test_the_outcome_of_one_worker_answers_a_repeat_at_another(world: World) -> None:
    one, two = await world.worker("one"), await world.worker("two")
    assert await Told(one).verdict() is Verdict.NEW
    assert await keep(one, OK) == ()
    again = Told(two)
    assert (await again.verdict(), again.reply) == (Verdict.KEPT, OK)
    assert await Told(two, content=OTHER).verdict() is Verdict.DIFFERENT
    world.broker.now += 301
    assert await Told(two, content=OTHER).verdict() is Verdict.NEW


async def test_a_repeat_waits_for_the_worker_that_runs_it(world: World) -> None:
    one, two = await world.worker("one"), await world.worker("two")
    assert await Told(one).verdict() is Verdict.NEW
    here, there = Told(one), Told(two)
    await asyncio.sleep(0.1)
    assert not here.verdicts
    assert not there.verdicts
    await keep(one, OK)
    assert (await here.verdict(), await there.verdict()) == (Verdict.KEPT, Verdict.KEPT)
    assert here.reply == there.reply == OK


async def test_what_was_not_executed_is_free_for_the_one_that_waits(world: World) -> None:
    one, two = await world.worker("one"), await world.worker("two")
    assert await Told(one).verdict() is Verdict.NEW
    here, there = Told(one), Told(two)
    await asyncio.sleep(0.05)
    one.release("a", BUSY)
    assert (await here.verdict(), here.reply) == (Verdict.KEPT, BUSY)
    assert await there.verdict() is Verdict.NEW
    two.release("a", BUSY)
    assert await Told(one).verdict() is Verdict.NEW


async def test_of_many_that_ask_at_once_one_runs_it(world: World) -> None:
    ledgers = [await world.worker(f"w{number}") for number in range(4)]
    asked = [Told(ledger) for ledger in ledgers for _ in range(3)]
    await until(lambda: any(one.verdicts for one in asked))
    await asyncio.sleep(0.05)
    (winner,) = [number for number, one in enumerate(asked) if one.verdicts]
    await keep(ledgers[winner // 3], OK)
    assert Counter([await one.verdict() for one in asked]) == {Verdict.NEW: 1, Verdict.KEPT: 11}


async def test_a_silent_workers_command_is_lost_and_its_late_outcome_is_told_so(world: World) -> None:
    one, two = await world.worker("one"), await world.worker("two")
    assert await Told(one).verdict() is Verdict.NEW
    heir = Told(two, claimed=True)
    await asyncio.sleep(0.1)
    assert not heir.verdicts  # its worker shows signs of life
    world.broker.now += 31
    world.beat(two)
    assert await heir.verdict() is Verdict.LOST
    await keep(two, LOST)
    repeat = Told(two)
    assert (await repeat.verdict(), repeat.reply.status) == (Verdict.KEPT, Status.CONNECTION_LOST)
    # It was not gone, only cut off.
    (told,) = await keep(one, OK)
    assert told.status is Status.CONNECTION_LOST
    repeat = Told(two)
    assert (await repeat.verdict(), repeat.reply) == (Verdict.KEPT, OK)


async def test_a_worker_that_left_is_gone(world: World) -> None:
    one, two = await world.worker("one"), await world.worker("two")
    assert await Told(one).verdict() is Verdict.NEW
    one.close()
    assert await Told(two).verdict() is Verdict.LOST


async def test_idempotent_requests_run_again(world: World) -> None:
    one, two = await world.worker("one"), await world.worker("two")
    assert await Told(one, again=True).verdict() is Verdict.NEW
    await keep(one, LOST)
    repeat = Told(two, again=True)
    assert (await repeat.verdict(), repeat.reply) == (Verdict.NEW, LOST)
    await keep(two, OK)
    assert await Told(one, again=True).verdict() is Verdict.KEPT
    assert await Told(one, "b", again=True).verdict() is Verdict.NEW
    one.close()
    assert await Told(two, "b", again=True).verdict() is Verdict.NEW


async def test_a_marker_in_doubt_runs_nothing_and_does_not_stay(world: World) -> None:
    one, two = await world.worker("one"), await world.worker("two")
    one._records.swallow = 1
    assert await Told(one).verdict() is Verdict.UNREACHABLE
    assert world.broker.shelf.get("a") is not None
    waiting = Told(two)
    await asyncio.sleep(0.05)
    assert not waiting.verdicts  # for all it knows the first one runs
    one._keep_up()
    assert await waiting.verdict() is Verdict.NEW
    two.release("a", BUSY)
    one._records.swallow = 1
    assert await Told(one).verdict() is Verdict.UNREACHABLE
    assert await Told(one).verdict() is Verdict.NEW


async def test_a_marker_that_is_taken_away_late_is_not_the_one_that_runs_now(world: World) -> None:
    one, two = await world.worker("one"), await world.worker("two")
    one._records.swallow = 1
    assert await Told(one).verdict() is Verdict.UNREACHABLE
    late: list[Callable[[], None]] = []
    free = one._records.free
    one._records.free = lambda *asked: late.append(lambda: free(*asked))
    one._keep_up()
    assert await Told(one).verdict() is Verdict.NEW
    for go in late:
        go()
    one._keep_up()
    assert late
    waiting = Told(two)
    await asyncio.sleep(0.05)
    assert not waiting.verdicts, "the first one runs it"
    await keep(one, OK)
    assert await waiting.verdict() is Verdict.KEPT


async def test_an_outcome_that_could_not_be_kept_runs_nothing_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge.relay.shared_ledger._RETRY", 0.01)
    one = await world.worker("one")
    assert await Told(one).verdict() is Verdict.NEW
    one._records.refuse = 4
    await keep(one, OK)
    told = Told(one)
    assert await told.verdict() is Verdict.KEPT
    assert told.reply.result == OK.result
    assert await Told(one, content=OTHER).verdict() is Verdict.DIFFERENT
    one._keep_up()  # the broker has room again
    two = await world.worker("two")
    assert await Told(two).verdict() is Verdict.KEPT
    assert not one._refused


async def test_a_takeover_in_doubt_still_knows_that_it_may_have_run(world: World) -> None:
    one, two, three = await world.worker("one"), await world.worker("two"), await world.worker("three")
    for key in "ab":
        assert await Told(one, key).verdict() is Verdict.NEW
    one.close()
    take = two._records.swap

    def lose_the_second(*asked: Any) -> None:
        two._records.swallow = asked[2] is not None
        take(*asked)

    two._records.swap = lose_the_second
    for key in "ab":
        assert await Told(two, key).verdict() is Verdict.UNREACHABLE
    two._records.swap = take
    two._keep_up()
    assert await Told(two, "a").verdict() is Verdict.LOST
    two.close()
    assert await Told(three, "b").verdict() is Verdict.LOST


async def test_an_outcome_is_kept_when_the_broker_is_back(world: World) -> None:
    one, two = await world.worker("one"), await world.worker("two")
    assert await Told(one).verdict() is Verdict.NEW
    one._records.swallow = 2  # it was stored, and nobody knows
    await keep(one, OK)
    assert await Told(two).verdict() is Verdict.KEPT
    assert await Told(one, "b").verdict() is Verdict.NEW
    world.broker.connected = False
    stored: list[Any] = []
    one.keep("b", OK, lambda *_: stored.append(1))
    await asyncio.sleep(0.4)
    assert not stored
    world.broker.connected = True
    await until(lambda: bool(stored))
    assert await Told(two, "b").verdict() is Verdict.KEPT


async def test_an_outcome_that_the_broker_refuses_to_keep_is_told_all_the_same(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge.relay.shared_ledger._RETRY", 0.01)
    one = await world.worker("one")
    assert await Told(one).verdict() is Verdict.NEW
    one._records.refuse = 100
    await keep(one, OK)
    assert one.unkept == 1


async def test_a_late_answer_replaces_an_unknown_outcome_only(world: World) -> None:
    one, two = await world.worker("one"), await world.worker("two")
    assert await Told(one).verdict() is Verdict.NEW
    await keep(one, LOST)
    one.replace("a", OK)
    await until(lambda: b"+OK done" in (world.broker.shelf.get("a") or Record(b"")).value)
    assert (repeat := Told(two)).verdicts == []
    assert (await repeat.verdict(), repeat.reply) == (Verdict.KEPT, OK)
    one.replace("a", LOST)
    assert await Told(two).verdict() is Verdict.KEPT
    assert await Told(one, "b").verdict() is Verdict.NEW
    await keep(one, LOST, "b")
    one.replace("b", BUSY)  # refused after all: it did not run
    await until(lambda: world.broker.shelf.get("b") is None)


async def test_unknown_outcomes_leave_with_the_window(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    one = await world.worker("one", window=60)
    now = [0.0]
    monkeypatch.setattr(one._unknown, "_clock", lambda: now[0])
    for number in range(300):
        assert await Told(one, str(number)).verdict() is Verdict.NEW
        await keep(one, LOST, str(number))
        now[0] += 1
    assert len(one._unknown) <= 61


async def test_a_result_too_large_to_be_kept_is_kept_without_it(world: World) -> None:
    one, two = await world.worker("one"), await world.worker("two")
    assert await Told(one).verdict() is Verdict.NEW
    await keep(one, CommandReply(id="a", status=Status.OK, executed=Executed.YES, result="x" * (1 << 16)))
    repeat = Told(two)
    assert await repeat.verdict() is Verdict.KEPT
    assert (repeat.reply.status, repeat.reply.result) == (Status.OK, None)
    assert "too large" in repeat.reply.error


async def test_markers_of_what_runs_long_are_renewed(world: World) -> None:
    one, two = await world.worker("one"), await world.worker("two")
    assert await Told(one).verdict() is Verdict.NEW
    for _ in range(10):
        world.broker.now += 100
        for running in one._running.values():
            running.written_at -= 100
        one._keep_up()
        two._keep_up()
        await asyncio.sleep(0)
    assert world.broker.now > 1_000 + 3 * one.lasting
    waiting = Told(two)
    await asyncio.sleep(0.05)
    assert not waiting.verdicts
    await keep(one, OK)
    assert await waiting.verdict() is Verdict.KEPT


async def test_without_a_window_nothing_is_kept(world: World) -> None:
    one, two = await world.worker("one", window=0), await world.worker("two", window=0)
    assert await Told(one).verdict() is Verdict.NEW
    await keep(one, OK)
    await until(lambda: world.broker.shelf.get("a") is None)
    assert await Told(two).verdict() is Verdict.NEW


def test_records_of_others_are_not_taken_for_ours() -> None:
    assert record.read(b"") is None
    assert record.read(b"X" + CONTENT) is None
    assert record.read(b"K" + CONTENT + b"\xff\xfe") is None
    assert record.read(record.mark(CONTENT, "w1", 7)) == record.Entry(CONTENT, "w1", 7)
    assert record.read(record.kept(CONTENT, OK)) == record.Entry(CONTENT, reply=OK)


async def test_a_worker_whose_first_sign_of_life_is_late_is_not_taken_for_gone(world: World) -> None:
    """In a Cluster it travels to another server than the marker, and may come behind it."""
    one, two = await world.worker("one"), await world.worker("two")
    assert await Told(one).verdict() is Verdict.NEW
    world.broker.shelf.beats.pop("one")
    repeat = Told(two)
    await asyncio.sleep(0.1)
    world.beat(one)
    await keep(one, OK)
    assert await repeat.verdict() is Verdict.KEPT
