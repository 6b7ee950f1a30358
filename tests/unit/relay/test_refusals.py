"""A "no" to an entry that may outlive it: recorded before it is told, repeated by whoever has the entry next."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import pytest

from bridge.bus.memory_records import MemoryRecords, RecordShelf
from bridge.bus.records import Record, Swapped
from bridge.errors import BusError, BusRefused, BusUnavailable, MessageTooLarge, PoolBusy
from bridge.messages.command import Executed, Status
from bridge.relay.ledger import MemoryLedger
from bridge.relay.policy import Policy
from bridge.relay.refusals import Refusals

ENTRY = {"pulled": True, "entry_id": "17-0", "queue": "esl.queue"}
CLAIMED = {**ENTRY, "claimed": True}


class Shelf(MemoryRecords):
    """One worker's way to what all have: answers can be held back, or be errors."""

    def __init__(self, shelf: RecordShelf) -> None:
        super().__init__(SimpleNamespace(connected=True, max_payload=1 << 20), shelf)
        self.asked = 0
        self.held: list[Any] | None = None
        self.errors: list[BusError] = []
        self.limit = 1 << 20

    def swap(self, key: str, value: bytes, expected: Record | None, ttl: float, answer: Swapped) -> None:
        if len(value) > self.limit:
            raise MessageTooLarge(len(value), self.limit)
        self.asked += 1
        if self.errors:
            asyncio.get_running_loop().call_soon(answer, False, None, self.errors.pop(0))
        elif self.held is not None:
            self.held.append(lambda: super(Shelf, self).swap(key, value, expected, ttl, answer))
        else:
            super().swap(key, value, expected, ttl, answer)

    def go(self) -> None:
        held, self.held = self.held or [], None
        for one in held:
            one()


class AllSee(MemoryLedger):
    """One that can say of a claimed request that nobody sent it."""

    shared = True
    lasting = 300.0


@pytest.fixture
def make_worker(make_world: Any) -> Any:
    """Command paths that share their records; ``worker.shelf`` is the way of each to them."""
    records = RecordShelf()

    def make(name: str = "w1", claim_after: float = 30.0, **settings: Any) -> Any:
        world = make_world(**settings)
        world.shelf = Shelf(records)
        world.refusals = Refusals(world.shelf, instance=name, lasting=300.0, claim_after=claim_after)
        world.relay.use(world.ledger, world.refusals)
        return world

    return make


def busy(world: Any) -> None:
    world.pool().take().unsent(PoolBusy("full"))


async def test_a_no_leaves_when_it_is_recorded(make_worker: Any, until: Any) -> None:
    world = make_worker()
    world.shelf.held = []
    given = world.put(command="x", id="a", delivery=ENTRY)
    busy(world)
    repeat = world.put(command="x", id="a", delivery={**ENTRY, "entry_id": "18-0"})
    await asyncio.sleep(0.01)
    assert not given.answered
    assert not repeat.answered
    world.shelf.go()
    await until(lambda: given.answered and repeat.answered)
    assert (given.reply.status, given.reply.replayed) == (Status.BUSY, False)
    assert world.relay.in_flight == 0


async def test_an_heir_repeats_it_and_the_same_id_in_another_entry_runs(make_worker: Any, until: Any) -> None:
    one, two = make_worker("w1"), make_worker("w2")
    first = one.put(command="x", id="a", meta={"n": 1}, delivery=ENTRY)
    busy(one)
    await until(lambda: first.answered)
    heir = two.put(command="x", id="a", meta={"n": 1}, delivery=CLAIMED)
    await until(lambda: heir.answered)
    assert (heir.reply.status, heir.reply.executed, heir.reply.error) == (Status.BUSY, Executed.NO, first.reply.error)
    assert (heir.reply.replayed, heir.reply.meta, heir.reply.id) == (True, {"n": 1}, "a")
    assert not two.pool().given
    again = two.put(command="x", id="a", delivery={**ENTRY, "entry_id": "18-0"})
    two.pool().take().api("+OK")
    assert (again.reply.status, again.reply.replayed) == (Status.OK, False)


@pytest.mark.parametrize("fields", [{"command": "status"}, {"command": "x", "idempotent": True}])
async def test_what_may_run_twice_does_not_run_after_a_no_either(make_worker: Any, until: Any, fields: Any) -> None:
    one, two = make_worker("w1"), make_worker("w2")
    first = one.put(**fields, delivery=ENTRY)
    busy(one)
    await until(lambda: first.answered)
    heir = two.put(**fields, delivery=CLAIMED)
    await until(lambda: heir.answered)
    assert (heir.reply.status, heir.reply.replayed) == (Status.BUSY, True)
    assert not two.pool().given


async def test_an_heir_of_whom_the_broker_knows_nothing_repeats_it_too(make_worker: Any, until: Any) -> None:
    one, two = make_worker("w1"), make_worker("w2")
    first = one.put(command="x", id="a", delivery=ENTRY)
    busy(one)
    await until(lambda: first.answered)
    heir = two.put(command="x", id="a", delivery={**ENTRY, "doubtful": True})
    await until(lambda: heir.answered)
    assert (heir.reply.status, heir.reply.replayed) == (Status.BUSY, True)
    fresh = two.put(command="x", id="b", delivery={**ENTRY, "entry_id": "18-0", "doubtful": True})
    await until(lambda: two.pool().waiting)
    two.pool().take().api("+OK")
    assert (fresh.reply.status, fresh.reply.replayed) == (Status.OK, False)


async def test_an_entry_that_comes_for_the_first_time_asks_nothing(make_worker: Any) -> None:
    world = make_worker()
    given = world.put(command="x", id="a", delivery=ENTRY)
    world.pool().take().api("+OK")
    lost = world.put(command="x", id="b", delivery={**ENTRY, "entry_id": "18-0"})
    world.pool().take().lost()
    assert [it.reply.executed for it in (given, lost)] == [Executed.YES, Executed.UNKNOWN]
    assert world.shelf.asked == 0


async def test_a_no_that_everybody_says_and_one_to_what_never_comes_again_are_not_recorded(make_worker: Any) -> None:
    world = make_worker()
    backlog = world.put(command="x", delivery={**ENTRY, "queued_at": time.time() - 60})
    pushed = world.put(command="x", id="a")
    busy(world)
    assert (backlog.reply.status, pushed.reply.status) == (Status.EXPIRED, Status.BUSY)
    assert world.shelf.asked == 0
    just_now = world.put(
        command="x", timeout_ms=1, delivery={**ENTRY, "queued_at": time.time() - 1}
    )  # or another clock
    await asyncio.sleep(0.01)
    assert just_now.reply.status is Status.EXPIRED
    assert world.shelf.asked == 1


async def test_one_who_was_taken_for_gone_leaves_the_answer_to_the_heir(make_worker: Any, until: Any) -> None:
    one, two = make_worker("w1"), make_worker("w2")
    first = one.put(command="status", delivery=ENTRY)
    heir = two.put(command="status", delivery=CLAIMED)
    await until(lambda: two.pool().waiting)
    busy(one)
    await until(lambda: first.let)
    assert not first.answered
    assert one.relay.in_flight == 0
    two.pool().take().api("UP")
    assert (heir.reply.status, heir.reply.replayed) == (Status.OK, True)


async def test_the_heir_of_an_heir_may_run_it_and_never_says_no(make_worker: Any, until: Any) -> None:
    workers = [make_worker(f"w{number}") for number in range(3)]
    first = workers[0].put(command="status", delivery=ENTRY)
    second = workers[1].put(command="status", delivery=CLAIMED)
    await until(lambda: workers[1].pool().waiting)
    third = workers[2].put(command="status", delivery=CLAIMED)
    await until(lambda: workers[2].pool().waiting)
    for worker in workers[:2]:
        busy(worker)
    await until(lambda: first.let and second.answered)
    busy(workers[2])
    await until(lambda: third.answered)
    # It ran at neither of them, but nobody can say what those before did with it.
    for heir in (second, third):
        assert (heir.reply.status, heir.reply.executed) == (Status.CONNECTION_LOST, Executed.UNKNOWN)


async def test_one_who_had_it_in_hand_for_long_asks_before_it_runs(make_worker: Any, until: Any) -> None:
    """It stood in line while its worker was frozen; the heir said no."""
    one, two = make_worker("w1", claim_after=0.3), make_worker("w2", policy=Policy(deny=["x"]), ledger=AllSee(300))
    first, second = ({**ENTRY, "queue": "esl.cmd.fs1", "entry_id": id} for id in ("17-0", "18-0"))
    ahead = one.put(command="y", id="a", delivery=first)
    frozen = one.put(command="x", id="b", delivery=second)
    heir = two.put(command="x", id="b", delivery={**second, "claimed": True})
    await until(lambda: heir.answered)
    assert (heir.reply.status, one.shelf.asked) == (Status.DENIED, 0)
    await asyncio.sleep(0.15)
    one.pool().take().api("+OK")
    await until(lambda: frozen.answered)
    assert (ahead.reply.status, frozen.reply.status, frozen.reply.replayed) == (Status.OK, Status.DENIED, True)
    assert not one.pool().waiting


async def test_two_who_both_say_no_say_the_same(make_worker: Any, until: Any) -> None:
    one, two = make_worker("w1"), make_worker("w2", policy=Policy(deny=["x"]), ledger=AllSee(300))
    heir = two.put(command="x", id="a", delivery=CLAIMED)
    await until(lambda: heir.answered)
    first = one.put(command="x", id="a", delivery=ENTRY)
    busy(one)
    await until(lambda: first.answered)
    assert (first.reply.status, first.reply.replayed) == (Status.DENIED, True)


async def test_a_broker_that_is_away_is_asked_until_it_answers(make_worker: Any, until: Any) -> None:
    world = make_worker()
    world.shelf.errors = [BusUnavailable("away"), BusUnavailable("away")]
    given = world.put(command="x", id="a", delivery=ENTRY)
    busy(world)
    await asyncio.sleep(0.1)
    assert not given.answered
    await until(lambda: given.answered)
    assert world.shelf.asked == 3


async def test_what_a_broker_refuses_to_keep_is_told_all_the_same(make_worker: Any, until: Any) -> None:
    world = make_worker()
    world.shelf.errors = [BusRefused("full")] * 5
    for number, asked in ((1, 4), (2, 5), (3, 6)):  # it waits for the broker once, not for each
        given = world.put(command="x", id="a", delivery={**ENTRY, "entry_id": f"{number}-0"})
        busy(world)
        await until(lambda given=given: given.answered)
        assert world.shelf.asked == asked
    assert world.refusals.unrecorded == 2


async def test_a_reply_too_large_to_be_kept_is_kept_short(make_worker: Any, until: Any) -> None:
    one, two = make_worker("w1"), make_worker("w2", policy=Policy(deny=["x"]))
    one.shelf.limit = 1_500
    first = one.put(command="x", to="all", delivery=ENTRY)
    one.pool().take().unsent(PoolBusy("full " * 300))
    await until(lambda: first.answered)
    assert first.reply.replies
    heir = two.put(command="x", to="all", delivery=CLAIMED)
    await until(lambda: heir.answered)
    assert (heir.reply.status, heir.reply.replies) == (Status.BUSY, None)


async def test_a_drain_waits_for_the_record_and_a_closed_one_asks_no_more(make_worker: Any) -> None:
    world = make_worker()
    given = world.put(command="x", id="a", delivery=ENTRY)
    world.pool().take().written_at = 0.0
    await world.relay.drain(0.0)
    assert given.reply.status is Status.DRAINING
    world = make_worker(leaves_in_hand=True)
    world.shelf.errors = [BusUnavailable("away")] * 100
    given = world.put(command="x", id="a", delivery={**ENTRY, "entry_id": "18-0"})
    busy(world)
    await asyncio.sleep(0)
    world.refusals.close()
    asked = world.shelf.asked
    await asyncio.sleep(0.3)
    assert not given.answered
    assert world.shelf.asked == asked
