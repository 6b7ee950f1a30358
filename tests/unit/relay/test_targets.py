"""Where requests go: any, a node, a tag, a call, all."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from bridge.errors import ConnectTimeout
from bridge.messages.command import Executed, Status

OK = Status.OK


async def test_a_named_node(make_world: Any) -> None:
    world = make_world(["fs1", "fs2"])
    given = world.put(command="status", to="fs2")
    world.pool("fs2").take().api("ok")
    assert given.reply.node == "fs2"
    unknown = world.put(command="status", to="fs9")
    assert (unknown.reply.status, unknown.reply.executed) == (Status.UNAVAILABLE, Executed.NO)
    world.nodes.states["fs2"] = "DOWN"
    assert world.put(command="status", to="fs2").reply.status is Status.UNAVAILABLE


async def test_any_tries_the_next_node_when_one_cannot_be_reached(make_world: Any) -> None:
    world = make_world(["fs1", "fs2"])
    given = world.put(command="x", id="a")
    first = next(pool for pool in world.nodes.pools.values() if pool.waiting)
    first.take().unsent(ConnectTimeout("5 s"))
    second = next(pool for pool in world.nodes.pools.values() if pool.waiting)
    assert second is not first
    second.take().unsent(ConnectTimeout("5 s too"))
    assert (given.reply.status, given.reply.error) == (Status.UNAVAILABLE, "5 s too")


async def test_any_without_a_node_that_is_up(make_world: Any) -> None:
    world = make_world(["fs1", "fs2"])
    world.nodes.states.update(fs1="DOWN", fs2="DRAINING")
    given = world.put(command="status")
    assert (given.reply.status, given.reply.executed) == (Status.UNAVAILABLE, Executed.NO)
    world.nodes.states.update(fs2="CONNECTING")
    given = world.put(command="status")
    world.pool("fs2").take().api("ok")  # nobody knows yet: its pool finds out
    assert given.reply.node == "fs2"
    alone = make_world(["fs1"])
    alone.nodes.states.update(fs1="DRAINING")
    assert alone.put(command="status").reply.status is Status.UNAVAILABLE


async def test_tags(make_world: Any) -> None:
    world = make_world(["fs1", "fs2", "fs3"])
    world.nodes.tagged.update(fs2=("media",), fs3=("media", "big"))
    given = world.put(command="status", to="tag:big")
    world.pool("fs3").take().api("ok")
    assert given.reply.node == "fs3"
    assert world.put(command="status", to="tag:none").reply.status is Status.NO_ROUTE
    world.nodes.states["fs3"] = "DOWN"
    assert world.put(command="status", to="tag:big").reply.status is Status.UNAVAILABLE


# --- calls ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_",
    [
        {"command": "uuid_kill u1"},
        {"command": "UUID_Dump u1 json"},
        {"op": "bgapi", "command": "uuid_transfer u1 1000"},
        {"op": "hangup", "uuid": "u1"},
        {"op": "execute", "uuid": "u1", "app": "park"},
        {"op": "sendmsg", "uuid": "u1", "headers": {"a": "b"}},
        {"command": "status", "to": "call:u1"},
    ],
)
async def test_commands_about_a_call_go_to_its_node(make_world: Any, request_: dict[str, Any]) -> None:
    world = make_world(["fs1", "fs2", "fs3"])
    world.calls.learn("u1", "fs2")
    given = world.put(**request_)
    world.pool("fs2").take().command("+OK")
    assert given.reply.node == "fs2"


async def test_an_explicit_target_wins_over_the_calls_node(make_world: Any) -> None:
    world = make_world(["fs1", "fs2"])
    world.calls.learn("u1", "fs2")
    given = world.put(command="uuid_kill u1", to="fs1")
    world.pool("fs1").take().api("-ERR No such channel!\n")
    assert given.reply.executed is Executed.YES


async def test_an_unknown_call_is_looked_for_on_every_node(make_world: Any) -> None:
    world = make_world(["fs1", "fs2"])
    given = world.put(command="uuid_kill u1", id="k")
    both = world.put(op="hangup", uuid="u1", id="h")  # the same search serves both
    questions = {name: pool.take() for name, pool in world.nodes.pools.items()}
    assert all(question.what == "api uuid_exists u1\n\n" for question in questions.values())
    questions["fs1"].api("false")
    questions["fs2"].api("true")
    assert [sent.what for sent in world.pool("fs2").given[1:]] == [
        "api uuid_kill u1\n\n",
        "sendmsg u1\ncall-command: hangup\nhangup-cause: NORMAL_CLEARING\n\n",
    ]
    world.pool("fs2").take().api("+OK")
    world.pool("fs2").take().command("+OK")
    assert (given.reply.node, both.reply.node) == ("fs2", "fs2")
    assert world.calls.node_of("u1") == "fs2"


async def test_a_call_that_nobody_has(make_world: Any) -> None:
    world = make_world(["fs1", "fs2"])
    given = world.put(command="uuid_kill u1", id="k")
    exists = world.put(command="uuid_exists u1")
    for pool in world.nodes.pools.values():
        pool.take().api("false")
    assert (given.reply.status, given.reply.executed) == (Status.NO_ROUTE, Executed.NO)
    assert (exists.reply.status, exists.reply.result, exists.reply.executed) == (OK, "false", Executed.YES)
    # remembered: nobody is asked again
    assert world.put(command="uuid_kill u1", id="k").reply.status is Status.NO_ROUTE
    assert world.put(command="uuid_exists u1").reply.result == "false"
    assert [len(pool.given) for pool in world.nodes.pools.values()] == [1, 1]


async def test_only_the_call_that_was_asked_for_does_not_exist(make_world: Any) -> None:
    world = make_world()
    elsewhere = world.put(command="uuid_exists u1", to="call:u2")
    itself = world.put(command="uuid_exists u2", to="call:u2")
    world.pool().take().api("false")
    assert (elsewhere.reply.status, elsewhere.reply.executed) == (Status.NO_ROUTE, Executed.NO)
    assert (itself.reply.status, itself.reply.result) == (OK, "false")


async def test_nodes_that_cannot_be_asked_leave_the_answer_open(make_world: Any) -> None:
    world = make_world(["fs1", "fs2", "fs3"])
    world.nodes.states["fs3"] = "DOWN"
    given = world.put(command="uuid_exists u1")
    world.pool("fs1").take().api("false")
    world.pool("fs2").take().timeout()
    assert (given.reply.status, given.reply.executed) == (Status.UNAVAILABLE, Executed.NO)
    assert "fs2" in given.reply.error
    assert "fs3" in given.reply.error
    assert not world.calls.is_unknown("u1")


async def test_no_look_up_unloads_the_event_socket(make_world: Any) -> None:
    world = make_world(["fs1", "fs2"])
    for uuid in ("unload-mod_event_socket", "MOD_EVENT_SOCKET:Reload"):
        given = world.put(command="status", to=f"call:{uuid}")
        assert (given.reply.status, given.reply.executed) == (Status.NO_ROUTE, Executed.NO)
    assert [pool.given for pool in world.nodes.pools.values()] == [[], []]


async def test_large_fleets_are_not_asked_node_by_node(make_world: Any) -> None:
    world = make_world(["fs1", "fs2"], scatter_limit=1)
    assert world.put(command="uuid_kill u1").reply.status is Status.NO_ROUTE
    assert world.pool("fs1").given == []


async def test_the_bus_is_asked_first(make_world: Any) -> None:
    class Directory:
        def __init__(self) -> None:
            self.asked: list[tuple[str, Any]] = []

        def ask(self, uuid: str, deadline: float, answer: Any) -> None:
            self.asked.append((uuid, answer))

    directory = Directory()
    world = make_world(["fs1", "fs2"], directory=directory)
    given = world.put(command="uuid_kill u1")
    directory.asked[0][1]("fs2")
    world.pool("fs2").take().api("+OK")
    assert given.reply.node == "fs2"
    given = world.put(command="uuid_kill u2")
    directory.asked[1][1]("")
    world.pool("fs1").take().api("true")
    world.pool("fs1").take().api("+OK")
    world.pool("fs2").take().api("false")
    assert given.reply.node == "fs1"


async def test_a_search_ends_with_the_budget(make_world: Any, until: Any) -> None:
    world = make_world()
    given = world.put(command="uuid_kill u1", id="k", timeout_ms=20)
    await until(lambda: given.answered)
    assert (given.reply.status, given.reply.executed) == (Status.EXPIRED, Executed.NO)
    world.pool().take().api("true")
    assert world.pool().waiting == 0
    assert len(world.deadlines) == 0


# --- all --------------------------------------------------------------------------------------------------------


async def test_all_nodes_answer(make_world: Any) -> None:
    world = make_world(["fs1", "fs2"])
    given = world.put(command="x", id="a", to="all", meta={"m": 1})
    world.pool("fs2").take().api("two")
    assert not given.answered
    world.pool("fs1").take().api("one")
    reply = given.reply
    assert (reply.id, reply.status, reply.executed, reply.meta) == ("a", OK, Executed.YES, {"m": 1})
    assert [(part.node, part.result, part.id, part.meta) for part in reply.replies] == [
        ("fs1", "one", "a", None),
        ("fs2", "two", "a", None),
    ]
    assert world.put(command="x", id="a", to="all").reply.replies[1].result == "two"


async def test_all_without_any_node(make_world: Any) -> None:
    world = make_world()
    world.nodes.pools.clear()
    reply = world.put(command="x", id="a", to="all").reply
    assert (reply.status, reply.executed) == (Status.UNAVAILABLE, Executed.NO)


async def test_all_tells_the_worst_and_where_they_disagree(make_world: Any) -> None:
    world = make_world(["fs1", "fs2", "fs3"])
    world.nodes.states["fs3"] = "DOWN"
    given = world.put(command="x", id="a", to="all")
    world.pool("fs1").take().api("+OK")
    world.pool("fs2").take().timeout()
    reply = given.reply
    assert (reply.status, reply.executed) == (Status.TIMEOUT, Executed.UNKNOWN)
    assert {part.node: part.status for part in reply.replies} == {
        "fs1": OK,
        "fs2": Status.TIMEOUT,
        "fs3": Status.UNAVAILABLE,
    }
    assert "fs3" in reply.error
    assert given.sent[0][3]["Nats-Service-Error-Code"] == "504"


async def test_all_of_nothing_executed_leaves_the_id_free(make_world: Any) -> None:
    world = make_world(["fs1", "fs2"])
    world.nodes.states.update(fs1="DOWN", fs2="DOWN")
    given = world.put(command="x", id="a", to="all")
    assert (given.reply.status, given.reply.executed) == (Status.UNAVAILABLE, Executed.NO)
    assert len(world.ledger) == 0


async def test_late_answers_of_all(make_world: Any) -> None:
    world = make_world(["fs1", "fs2"])
    world.put(command="x", id="a", to="all")
    first, second = world.pool("fs1").take(), world.pool("fs2").take()
    first.timeout()
    second.timeout()
    first.api("one", late=True)
    assert [late["node"] for late in world.late] == ["fs1"]
    assert world.bus.sent == []  # one late reply at most, when all are known
    second.api("two", late=True)
    ((_, late),) = world.bus.sent
    assert (late.status, late.executed, late.late) == (OK, Executed.YES, True)
    assert [part.result for part in late.replies] == ["one", "two"]
    assert world.put(command="x", id="a", to="all").reply.status is OK


async def test_accept_does_not_go_with_all(world: Any) -> None:
    assert world.put(op="bgapi", command="x", accept=True, to="all").reply.status is Status.INVALID


async def test_all_over_the_limit_keeps_the_statuses(make_world: Any) -> None:
    world = make_world(["fs1", "fs2"])
    world.bus.max_payload = 4096
    given = world.put(command="x", id="a", to="all")
    for pool in world.nodes.pools.values():
        pool.take().api("y" * 2000)
    reply = given.reply
    assert (reply.status, reply.executed) == (Status.TOO_LARGE, Executed.YES)
    assert [(part.status, part.executed, part.result) for part in reply.replies] == [
        (Status.TOO_LARGE, Executed.YES, None)
    ] * 2


# --- strict order -----------------------------------------------------------------------------------------------

LINE = {"queue": "esl.cmd.fs1"}


async def test_one_after_another_on_a_nodes_own_queue(world: Any) -> None:
    given = [world.put(command=f"x {n}", delivery=LINE) for n in range(3)]
    beside = world.put(command="status")
    sent = world.pool().given
    assert [one.what for one in sent] == ["api x 0\n\n", "api status\n\n"]
    sent[0].api("+OK")
    sent[1].api("+OK")
    assert [one.what for one in sent[2:]] == ["api x 1\n\n"]
    sent[2].timeout()  # its outcome is final, though unknown
    assert sent[3].what == "api x 2\n\n"
    sent[3].api("+OK")
    assert [one.reply.status for one in given] == [OK, Status.TIMEOUT, OK]
    assert beside.answered


async def test_a_job_in_line_ends_at_its_background_job(world: Any) -> None:
    world.put(op="bgapi", command="a", delivery=LINE)
    second = world.put(command="b", delivery=LINE)
    job = world.pool().take()
    job.accept()
    assert world.pool().waiting == 0
    job.job("+OK")
    world.pool().take().api("+OK")
    assert second.answered


async def test_a_request_that_waits_in_line_expires_there(world: Any, until: Any) -> None:
    world.put(command="a", delivery=LINE)
    waiting = world.put(command="b", timeout_ms=10, delivery=LINE)
    third = world.put(command="c", delivery=LINE)
    await until(lambda: waiting.answered)
    assert (waiting.reply.status, waiting.reply.executed) == (Status.EXPIRED, Executed.NO)
    world.pool().take().api("+OK")
    assert world.pool().given[1].what == "api c\n\n"
    world.pool().take().api("+OK")
    assert third.answered
    assert len(world.deadlines) == 0


async def test_a_nodes_own_queue_is_for_that_node(make_world: Any) -> None:
    world = make_world(["fs1", "fs2"])
    wrong = world.put(command="x", to="fs2", delivery=LINE)
    assert wrong.reply.status is Status.INVALID
    assert wrong.reply.error.startswith("to:")
    world.calls.learn("u", "fs2")
    right = world.put(command="uuid_kill u", to="fs1", delivery=LINE)
    world.pool("fs1").take().api("+OK")
    assert right.reply.node == "fs1"
    unknown = world.put(command="x", delivery={"queue": "esl.cmd.fs9"})
    assert unknown.reply.status is Status.UNAVAILABLE


async def test_a_line_has_its_own_limit(make_world: Any) -> None:
    world = make_world(max_in_flight=10, max_in_flight_node=2)
    assert world.relay.room_in_line("fs1") == 2
    for number in range(3):
        world.put(command=f"x {number}", delivery=LINE)
    assert (world.relay.room_in_line("fs1"), world.relay.room()) == (0, 7)
    over = world.put(command="x 3", id="over", delivery=LINE)
    assert (over.reply.status, over.reply.executed) == (Status.BUSY, Executed.NO)
    await asyncio.sleep(0)
    world.resumed = 0
    world.pool().take().api("+OK")
    await asyncio.sleep(0)
    assert (world.relay.room_in_line("fs1"), world.resumed) == (1, 1)
    for _ in range(2):
        world.pool().take().api("+OK")


async def test_repeats_and_refusals_do_not_hold_up_the_line(make_world: Any) -> None:
    world = make_world(max_in_flight=3)
    first = world.put(command="a", id="1", delivery=LINE)
    again = world.put(command="a", id="1", delivery=LINE)
    next_ = world.put(command="b", id="2", delivery=LINE)
    assert world.put(command="c", id="3", delivery=LINE).reply.status is Status.BUSY
    world.pool().take().api("+OK")
    world.pool().take().api("+OK")
    assert (first.reply.replayed, again.reply.replayed, next_.reply.status) == (False, True, OK)
    await asyncio.sleep(0)
    assert world.resumed == 1
