"""One outcome for one id: repeats, claimed requests, ledgers in memory and ledgers that take their time."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from bridge.bus.memory_records import MemoryRecords, RecordShelf
from bridge.errors import PoolBusy
from bridge.messages.command import CommandReply, Executed, Status
from bridge.relay.ledger import MemoryLedger, Verdict
from bridge.relay.policy import Policy
from bridge.relay.settings import CommandSettings
from bridge.relay.shared_ledger import SharedLedger

OK, LOST = Status.OK, Status.CONNECTION_LOST


@pytest.fixture
async def two_workers(make_world: Any) -> Any:
    """Command paths with one ledger."""
    broker, worlds = SimpleNamespace(connected=True, max_payload=1 << 20), []
    shelf = RecordShelf()
    for name in ("one", "two"):
        ledger = SharedLedger(MemoryRecords(broker, shelf), instance=name, window=300.0, claim_after=30.0)
        await ledger.open()
        worlds.append(make_world(ledger=ledger))
    yield worlds
    for world in worlds:
        world.ledger.close()


async def test_a_repeat_gets_the_kept_reply(world: Any) -> None:
    world.put(command="uuid_hold u", to="fs1", id="a", meta={"n": 1})
    world.pool().take().api("-ERR nope\n")
    again = world.put(
        command="uuid_hold u", to="fs1", id="a", meta={"n": 2}, timeout_ms=7, delivery={"reply_to": "_INBOX.b"}
    )
    reply = again.reply
    assert (reply.status, reply.executed, reply.error, reply.node) == (Status.ERROR, Executed.YES, "-ERR nope", "fs1")
    assert (reply.replayed, reply.meta) == (True, {"n": 2})
    assert again.sent[0][0] == "_INBOX.b"
    assert len(world.pool().given) == 1


async def test_a_repeat_waits_for_the_one_that_runs(world: Any) -> None:
    first = world.put(command="x", id="a")
    repeats = [world.put(command="x", id="a") for _ in range(3)]
    assert len(world.pool().given) == 1
    world.pool().take().api("+OK")
    assert not first.reply.replayed
    assert [one.reply.replayed for one in repeats] == [True] * 3


async def test_a_repeat_of_one_that_was_not_executed_hears_the_same(world: Any) -> None:
    from bridge.errors import PoolBusy

    first = world.put(command="x", id="a")
    repeat = world.put(command="x", id="a")
    world.pool().take().unsent(PoolBusy("full"))
    assert (first.reply.status, repeat.reply.status) == (Status.BUSY, Status.BUSY)
    world.put(command="x", id="a")
    world.pool().take().api("+OK")


async def test_two_contents_of_one_id(world: Any) -> None:
    world.put(command="x", id="a")
    running = world.put(command="y", id="a")
    assert (running.reply.status, running.reply.executed) == (Status.INVALID, Executed.NO)
    assert running.reply.error.startswith("id:")
    world.pool().take().api("+OK")
    assert world.put(command="y", id="a").reply.status is Status.INVALID


async def test_an_id_of_one_nodes_queue_is_another_content_on_another_nodes(make_world: Any) -> None:
    world = make_world(["fs1", "fs2"])
    first = world.put(command="x", id="a", delivery={"queue": "esl.cmd.fs1"})
    world.pool("fs1").take().api("one")
    other = world.put(command="x", id="a", delivery={"queue": "esl.cmd.fs2"})
    assert (other.reply.status, other.reply.node) == (Status.INVALID, "")
    same = world.put(command="x", id="a", to="fs1")  # the same command for the same node
    assert (first.reply.node, same.reply.node, same.reply.replayed) == ("fs1", "fs1", True)


async def test_safe_verbs_write_nothing(world: Any) -> None:
    for _ in range(2):
        given = world.put(command="show channels", id="a")
        world.pool().take().api("0 total.")
        assert not given.reply.replayed
    assert len(world.ledger) == 0


async def test_the_queues_own_id_serves_where_there_is_none(world: Any) -> None:
    stream = {"entry_id": "17-0", "queue": "esl.cmd"}
    world.put(command="x", delivery=stream)
    world.pool().take().api("+OK")
    assert world.put(command="x", delivery=stream).reply.replayed
    other = world.put(command="x", delivery={"entry_id": "17-0", "queue": "esl.queue"})  # another queue's 17-0
    world.pool().take().api("+OK")
    assert (other.reply.replayed, other.reply.id) == (False, "17-0")


async def test_an_idempotent_repeat_of_an_unknown_outcome_runs_again(world: Any) -> None:
    world.put(command="x", id="a", idempotent=True)
    for _ in range(3):
        world.pool().take().lost()
    again = world.put(command="x", id="a", idempotent=True)
    world.pool().take().api("+OK")
    assert (again.reply.status, again.reply.replayed) == (OK, False)
    assert world.put(command="x", id="a", idempotent=True).reply.replayed


async def test_a_late_refusal_of_one_attempt_does_not_speak_for_the_others(world: Any) -> None:
    world.put(command="x", id="a", idempotent=True)
    for _ in range(2):
        world.pool().take().lost()
    last = world.pool().take()
    last.timeout()
    last.command("-ERR permission denied", late=True)
    assert (world.bus.sent, len(world.late)) == ([], 1)
    again = world.put(command="x", id="a", idempotent=True)
    for _ in range(3):
        world.pool().take().lost()
    assert again.reply.executed is Executed.UNKNOWN


async def test_an_idempotent_repeat_that_does_not_run_still_tells_the_earlier_doubt(make_world: Any) -> None:
    world = make_world(max_in_flight=1)
    world.put(command="x", id="a", idempotent=True)
    for _ in range(3):
        world.pool().take().lost()
    world.put(command="y")
    again = world.put(command="x", id="a", idempotent=True)
    assert (again.reply.status, again.reply.executed) == (LOST, Executed.UNKNOWN)
    world.pool().take().api("+OK")
    assert world.put(command="x", id="b").answered is False
    world.pool().take().api("+OK")


async def test_busy_and_draining_workers_still_know_outcomes(make_world: Any) -> None:
    world = make_world(max_in_flight=1)
    world.put(command="x", id="a")
    world.pool().take().api("+OK")
    world.put(command="x", id="b")
    assert world.put(command="x", id="a").reply.status is OK
    waiting = world.put(command="x", id="b")
    assert world.put(command="x", id="c").reply.status is Status.BUSY
    world.pool().take().api("+OK")
    assert (waiting.reply.status, waiting.reply.replayed) == (OK, True)


async def test_a_burst_is_answered_although_the_ledger_takes_its_time(make_world: Any, slow_ledger: Any) -> None:
    world = make_world(ledger=slow_ledger, max_in_flight=2)
    burst = [world.put(command="x", id=f"b{number}") for number in range(20_000)]
    slow_ledger.go()
    world.pool().take().api("+OK")
    world.pool().take().api("+OK")
    slow_ledger.go()
    statuses = Counter(one.reply.status for one in burst)
    assert (statuses, world.dead) == ({OK: 2, Status.BUSY: 19_998}, [])


async def test_too_many_repeats_are_told_to_come_again(make_world: Any) -> None:
    world = make_world(max_in_flight=1, max_waiting_repeats=2)
    given = [world.put(command="x", id="a") for _ in range(4)]
    assert (given[3].reply.status, given[3].reply.executed) == (Status.BUSY, Executed.NO)
    world.pool().take().api("+OK")
    assert [one.reply.status for one in given] == [OK, OK, OK, Status.BUSY]
    assert world.dead == []


@pytest.mark.parametrize("change", ["policy", "limit"])
async def test_a_repeat_hears_its_outcome_although_it_would_be_refused_by_now(make_world: Any, change: str) -> None:
    """The policy was reloaded, or a worker of another one ran it."""
    world = make_world()
    command = "x " + "y" * 200
    world.put(command=command, id="a")
    running = world.put(command=command, id="b")
    world.pool().take().api("+OK done")
    if change == "policy":
        world.relay.reconfigure(CommandSettings(), Policy(deny=["x"]))
    else:
        world.relay.reconfigure(CommandSettings(max_request=100), Policy())
    refusal = Status.DENIED if change == "policy" else Status.TOO_LARGE
    repeat = world.put(command=command, id="a")
    assert (repeat.reply.status, repeat.reply.executed, repeat.reply.result) == (OK, Executed.YES, "+OK done")
    waits = world.put(command=command, id="b")
    assert not waits.answered
    world.pool().take().api("+OK")
    assert (running.reply.status, waits.reply.status) == (OK, OK)
    first = world.put(command=command, id="c")
    assert (first.reply.status, first.reply.executed) == (refusal, Executed.NO)
    world.relay.reconfigure(CommandSettings(), Policy())
    world.put(command=command, id="c")
    world.pool().take().api("+OK")


async def test_a_claimed_request_that_may_have_run_is_not_refused(make_world: Any) -> None:
    """The worker that had it may have had another policy, and only its own memory knows."""
    world = make_world(policy=Policy(deny=["x", "status"]))
    given = world.put(command="x", id="a", delivery={"claimed": True, "entry_id": "1-1"})
    safe = world.put(command="status", delivery={"claimed": True, "entry_id": "1-2"})
    twice = world.put(command="x", id="b", idempotent=True, delivery={"claimed": True, "entry_id": "1-3"})
    for one in (given, safe, twice):
        assert (one.reply.status, one.reply.executed) == (LOST, Executed.UNKNOWN)
    assert world.put(command="x", id="c").reply.status is Status.DENIED


# --- a repeat that waits has a budget of its own -------------------------------------------------------------------


@pytest.mark.parametrize("shared", [False, True])
async def test_a_repeat_does_not_wait_beyond_its_own_budget(
    make_world: Any, two_workers: Any, until: Any, shared: bool
) -> None:
    one, two = two_workers if shared else [make_world()] * 2
    first = one.put(op="bgapi", command="x", id="a", timeout_ms=60_000)
    await until(lambda: one.pool().waiting)
    repeat = two.put(op="bgapi", command="x", id="a", timeout_ms=20, meta={"n": 2}, delivery={"reply_to": "_INBOX.b"})
    await until(lambda: repeat.answered)
    assert (repeat.reply.status, repeat.reply.executed, repeat.reply.meta) == (
        Status.TIMEOUT,
        Executed.UNKNOWN,
        {"n": 2},
    )
    assert (first.answered, two.relay.in_flight) == (False, 0 if shared else 1)
    one.pool().take().job("+OK done")
    await until(lambda: first.answered and two.bus.sent)
    ((address, late),) = two.bus.sent
    assert (address, late.status, late.late, late.replayed, late.meta) == ("_INBOX.b", OK, True, True, {"n": 2})
    assert (len(one.pool().given), two.late) == (1, [])


async def test_a_repeat_that_gave_up_does_not_run(two_workers: Any, until: Any) -> None:
    one, two = two_workers
    first = one.put(command="x", id="a")
    await until(lambda: one.pool().waiting)
    repeat = two.put(command="x", id="a", timeout_ms=20)
    behind = two.put(command="x", id="a")
    await until(lambda: repeat.answered)
    one.pool().take().unsent(PoolBusy("full"))
    await until(lambda: first.answered and behind.answered)
    assert (repeat.reply.status, repeat.reply.executed) == (Status.TIMEOUT, Executed.UNKNOWN)
    assert (two.bus.sent[0][1].executed, behind.reply.executed) == (Executed.NO, Executed.NO)
    assert two.pool().given == []
    again = two.put(command="x", id="a")
    await until(lambda: two.pool().waiting)
    two.pool().take().api("+OK")
    await until(lambda: again.answered)
    assert again.reply.status is OK


async def test_a_repeat_that_gave_up_keeps_what_became_of_a_dead_worker(two_workers: Any, until: Any) -> None:
    one, two = two_workers
    one.put(command="x", id="a")
    await until(lambda: one.pool().waiting)
    repeat = two.put(command="x", id="a", timeout_ms=20)
    await until(lambda: repeat.answered)
    one.ledger.close()  # dead
    again = two.put(command="x", id="a", delivery={"claimed": True})
    await until(lambda: again.answered)
    assert (repeat.reply.status, again.reply.status) == (Status.TIMEOUT, LOST)
    assert two.pool().given == []
    one.pool().take().api("+OK")


# --- claimed: another worker had it before --------------------------------------------------------------------


async def test_a_claimed_request_may_have_run(world: Any) -> None:
    claimed = {"claimed": True, "entry_id": "1-1"}
    given = world.put(command="x", id="a", delivery=claimed)
    assert (given.reply.status, given.reply.executed) == (LOST, Executed.UNKNOWN)
    assert world.put(command="x", id="a").reply.status is LOST  # one outcome
    assert world.put(command="x", delivery={"claimed": True}).reply.status is LOST
    assert world.pool().given == []


async def test_claimed_requests_that_can_run_twice_run(world: Any) -> None:
    safe = world.put(command="status", delivery={"claimed": True, "entry_id": "1-1"})
    twice = world.put(command="x", idempotent=True, delivery={"claimed": True, "entry_id": "1-2"})
    for _ in range(2):
        world.pool().take().api("+OK")
    assert (safe.reply.status, twice.reply.status) == (OK, OK)


async def test_with_a_shared_ledger_a_claimed_request_that_was_not_sent_runs(make_world: Any, slow_ledger: Any) -> None:
    world = make_world(ledger=slow_ledger)
    given = world.put(command="x", id="a", delivery={"claimed": True})
    slow_ledger.go()
    world.pool().take().api("+OK")
    slow_ledger.go()
    assert given.reply.status is OK


async def test_what_another_worker_had_before_is_answered_as_a_second_copy(world: Any) -> None:
    claimed = {"claimed": True, "entry_id": "1-1"}
    safe = world.put(command="status", delivery=claimed)
    world.pool().take().api("+OK")
    expired = world.put(command="x", timeout_ms=1, delivery={**claimed, "queued_at": time.time() - 1})
    unreadable = world.put(command="x", nonsense=1, delivery=claimed)
    lost = world.put(command="x", id="a", delivery=claimed)
    assert [it.reply.status for it in (safe, unreadable, lost)] == [OK, Status.INVALID, LOST]
    assert all(it.reply.replayed for it in (safe, expired, unreadable, lost))


class ContestedLedger(MemoryLedger):
    """Another worker took this one for gone, and told ``told``."""

    told: CommandReply

    def keep(self, key: str, reply: CommandReply, stored: Any) -> None:
        super().keep(key, self.told, lambda: stored(self.told))


@pytest.mark.parametrize("executed", [Executed.YES, Executed.UNKNOWN])
async def test_what_another_worker_told_meanwhile_is_told_as_a_second_copy(make_world: Any, executed: Executed) -> None:
    ledger = ContestedLedger(300)
    world = make_world(ledger=ledger)
    ledger.told = CommandReply(id="a", status=LOST, executed=executed, worker="w2", error="gone", replayed=False)
    given = world.put(command="x", id="a", meta={"k": 1})
    sent = world.pool().take()
    if executed is Executed.YES:  # an idempotent one that ran there, too
        ledger.told = msgspec.structs.replace(ledger.told, status=OK, result="theirs", error="")
        sent.api("ours")
    else:
        sent.timeout()
    said = given.reply
    assert (said.status, said.worker, said.result) == (ledger.told.status, "w2", ledger.told.result)
    assert (said.replayed, said.late, said.meta) == (True, False, {"k": 1})
    if executed is Executed.UNKNOWN:  # and when it is known here after all, that comes late, once
        sent.api("ours", late=True)
        assert [(reply.status, reply.late, reply.result) for _address, reply in world.bus.sent] == [(OK, True, "ours")]


async def test_what_another_worker_could_not_know_comes_late(make_world: Any) -> None:
    ledger = ContestedLedger(300)
    world = make_world(ledger=ledger)
    ledger.told = CommandReply(id="a", status=LOST, executed=Executed.UNKNOWN, worker="w2")
    given = world.put(command="x", id="a")
    world.pool().take().api("+OK")
    assert (given.reply.status, given.reply.late, given.reply.replayed) == (OK, True, False)


async def test_a_claimed_request_older_than_any_marker_may_have_run(make_world: Any, slow_ledger: Any) -> None:
    slow_ledger.lasting = 60.0
    world = make_world(ledger=slow_ledger)
    old = {"claimed": True, "queued_at": time.time() - 61}
    given = world.put(command="x", id="a", timeout_ms=600_000, delivery=old)
    slow_ledger.go()
    slow_ledger.go()
    assert given.reply.status is LOST
    assert world.pool().given == []


# --- a ledger that takes its time -------------------------------------------------------------------------------


async def test_nothing_is_sent_before_the_marker_and_nothing_answered_before_the_outcome_is_kept(
    make_world: Any, slow_ledger: Any
) -> None:
    world = make_world(ledger=slow_ledger)
    given = world.put(command="x", id="a")
    assert world.pool().waiting == 0
    slow_ledger.go()
    world.pool().take().api("+OK")
    assert not given.answered
    slow_ledger.go()
    assert given.reply.status is OK


async def test_a_late_answer_follows_the_final_reply_even_when_it_overtakes_the_ledger(
    make_world: Any, slow_ledger: Any
) -> None:
    world = make_world(ledger=slow_ledger)
    given = world.put(command="x", id="a")
    slow_ledger.go()
    sent = world.pool().take()
    sent.timeout()
    sent.api("+OK", late=True)
    assert (world.bus.sent, world.late) == ([], [])
    slow_ledger.go()
    assert given.reply.status is Status.TIMEOUT
    assert (world.bus.sent[0][1].status, len(world.late)) == (OK, 1)
    again = world.put(command="x", id="a")
    slow_ledger.go()
    assert again.reply.status is OK


async def test_a_repeat_that_expires_in_line_still_hears_the_outcome(world: Any, until: Any) -> None:
    line = {"queue": "esl.cmd.fs1"}
    world.put(command="x", id="a", to="fs1")
    world.pool().take().api("+OK")
    world.put(command="y", delivery=line)
    repeat = world.put(command="x", id="a", timeout_ms=5, delivery=line)
    await until(lambda: repeat.answered)
    assert (repeat.reply.status, repeat.reply.replayed) == (OK, True)
    world.pool().take().api("+OK")


async def test_the_budget_counts_while_the_ledger_thinks(make_world: Any, slow_ledger: Any) -> None:
    import asyncio

    world = make_world(ledger=slow_ledger)
    given = world.put(command="x", id="a", timeout_ms=1)
    await asyncio.sleep(0.005)
    slow_ledger.go()
    assert (given.reply.status, world.pool().given) == (Status.EXPIRED, [])
    again = world.put(command="x", id="a")
    slow_ledger.go()
    world.pool().take().api("+OK")
    slow_ledger.go()
    assert again.reply.status is OK


@pytest.mark.parametrize(
    ("verdict", "status", "executed"),
    [
        (Verdict.UNREACHABLE, Status.UNAVAILABLE, Executed.NO),
        (Verdict.DIFFERENT, Status.INVALID, Executed.NO),
    ],
)
async def test_verdicts_that_end_it(
    make_world: Any, slow_ledger: Any, verdict: Verdict, status: Status, executed: Executed
) -> None:
    world = make_world(ledger=slow_ledger)
    slow_ledger.override = verdict
    given = world.put(command="x", id="a")
    slow_ledger.go()
    assert (given.reply.status, given.reply.executed) == (status, executed)
    assert world.pool().given == []


async def test_a_lost_one_is_kept_as_connection_lost(make_world: Any, slow_ledger: Any) -> None:
    world = make_world(ledger=slow_ledger)
    slow_ledger.override = Verdict.LOST
    given = world.put(command="x", id="a", delivery={"claimed": True})
    slow_ledger.inner.begin("a", b"c", lambda *_: None)
    slow_ledger.go()
    slow_ledger.go()
    assert (given.reply.status, given.reply.executed) == (LOST, Executed.UNKNOWN)
    assert len(slow_ledger.inner) == 1


async def test_drain_leaves_to_the_ledger_what_only_it_can_say(make_world: Any, slow_ledger: Any) -> None:
    world = make_world(ledger=slow_ledger)
    world.put(command="x", id="a")
    slow_ledger.go()
    world.pool().take().api("+OK")
    slow_ledger.go()
    known, fresh = world.put(command="x", id="a"), world.put(command="x", id="b")
    await world.relay.drain(0.001)
    assert not known.answered
    slow_ledger.go()
    assert (known.reply.status, known.reply.replayed) == (OK, True)
    assert (fresh.reply.status, fresh.reply.executed) == (Status.DRAINING, Executed.NO)
    assert world.pool().waiting == 0
    assert slow_ledger.inner._running == {}


async def test_a_request_that_others_may_get_waits_for_a_ledger_that_is_away(
    make_world: Any, slow_ledger: Any, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge.relay.commands._ASK_AGAIN", 0.01)
    world = make_world(ledger=slow_ledger)
    slow_ledger.override = Verdict.UNREACHABLE
    given = world.put(command="x", id="a", delivery={"pulled": True})
    for _ in range(3):
        await until(lambda: bool(slow_ledger.steps))
        slow_ledger.go()
    assert not given.answered
    slow_ledger.override = None
    await until(lambda: bool(slow_ledger.steps))
    slow_ledger.go()
    await until(lambda: bool(slow_ledger.steps) or bool(world.pool().given))
    slow_ledger.go()
    world.pool().take().api("+OK")
    slow_ledger.go()
    assert given.reply.status is OK


async def test_a_request_hears_within_its_budget_that_the_ledger_alone_is_away(
    make_world: Any, slow_ledger: Any, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge.relay.commands._ASK_AGAIN", 0.01)
    world = make_world(ledger=slow_ledger)
    slow_ledger.override = Verdict.UNREACHABLE
    given = world.put(command="x", id="a", timeout_ms=1, delivery={"pulled": True})
    await asyncio.sleep(0.005)
    world.bus.connected = False  # another worker may have its entry by now: it waits
    for _ in range(3):
        await until(lambda: bool(slow_ledger.steps))
        slow_ledger.go()
        assert given.asked is None
    world.bus.connected = True
    await until(lambda: bool(slow_ledger.steps))
    slow_ledger.go()
    assert not given.answered
    given.asked(True)
    assert (given.reply.status, given.reply.executed) == (Status.TIMEOUT, Executed.UNKNOWN)
    assert "ledger" in given.reply.error
    assert not world.pool().given
    assert world.relay.in_flight == 0
