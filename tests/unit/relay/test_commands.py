"""The way of one request, from its delivery to its reply."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from bridge.errors import BudgetSpent, ConnectTimeout, InvalidCommand, PoolBusy
from bridge.messages.command import Executed, Status
from bridge.relay.policy import Policy

OK, ERROR, TIMEOUT, LOST = Status.OK, Status.ERROR, Status.TIMEOUT, Status.CONNECTION_LOST


async def test_an_api_command_is_sent_and_its_output_is_the_result(world: Any) -> None:
    given = world.put(command="status", id="a1", meta={"k": [1]})
    sent = world.pool().take()
    assert sent.what == "api status\n\n"
    assert not given.answered
    sent.api("UP 0 years\n")
    reply = given.reply
    assert (reply.id, reply.status, reply.executed, reply.node, reply.worker) == ("a1", OK, Executed.YES, "fs1", "w1")
    assert reply.result == "UP 0 years\n"
    assert reply.meta == {"k": [1]}
    assert reply.timing.esl_ms == 1.5
    assert reply.elapsed_ms is not None
    address, _, content_type, headers = given.sent[0]
    assert (address, content_type, headers) == ("_INBOX.caller.1", "application/json", {})
    assert world.metrics == [("api", "ok")]
    assert world.audited[0][1].status is OK


async def test_the_reply_speaks_the_codec_of_the_request(world: Any) -> None:
    given = world.put(msgspec.msgpack.encode({"command": "status", "id": "x"}))
    world.pool().take().api("fine")
    assert given.sent[0][2] == "application/msgpack"
    assert msgspec.msgpack.decode(given.sent[0][1])["result"] == "fine"


@pytest.mark.parametrize(
    ("text", "status", "executed", "result", "error"),
    [
        ("+OK\n", OK, "yes", "+OK\n", ""),
        ("hello", OK, "yes", "hello", ""),
        ("", OK, "yes", "", ""),
        ("-ERR no reply\n", OK, "yes", "", ""),
        ("-ERR No such channel!\n", ERROR, "yes", None, "-ERR No such channel!"),
        ("-ERR nosuch Command not found!\n", ERROR, "yes", None, "-ERR nosuch Command not found!"),
        ("-USAGE: <uuid>\n", ERROR, "yes", None, "-USAGE: <uuid>"),
        ("INVALID COMMAND!\n-ERR inside\n", OK, "yes", "INVALID COMMAND!\n-ERR inside\n", ""),
    ],
)
async def test_outputs_of_api_are_judged_by_their_beginning(
    world: Any, text: str, status: str, executed: str, result: str | None, error: str
) -> None:
    given = world.put(command="something")
    world.pool().take().api(text)
    reply = given.reply
    assert (reply.status, reply.executed, reply.result, reply.error) == (status, executed, result, error)


@pytest.mark.parametrize("text", ["-ERR permission denied", "-ERR command not found", "-ERR invalid session id [x]"])
async def test_what_the_event_socket_itself_refuses_was_not_executed(world: Any, text: str) -> None:
    given = world.put(op="sendevent", event="CUSTOM", id="r")
    world.pool().take().command(text)
    assert (given.reply.status, given.reply.executed, given.reply.error) == (ERROR, Executed.NO, text)
    again = world.put(op="sendevent", event="CUSTOM", id="r")  # so the id is free
    world.pool().take().command("+OK 123")
    assert (again.reply.status, again.reply.result) == (OK, "+OK 123")


@pytest.mark.parametrize(
    ("request_", "block"),
    [
        (
            {"op": "execute", "uuid": "u1", "app": "playback", "arg": "a.wav"},
            "sendmsg u1\ncall-command: execute\nexecute-app-name: playback\nexecute-app-arg: a.wav\n\n",
        ),
        (
            {"op": "hangup", "uuid": "u1"},
            "sendmsg u1\ncall-command: hangup\nhangup-cause: NORMAL_CLEARING\n\n",
        ),
        (
            {"op": "hangup", "uuid": "u1", "cause": "USER_BUSY"},
            "sendmsg u1\ncall-command: hangup\nhangup-cause: USER_BUSY\n\n",
        ),
        (
            {"op": "sendmsg", "uuid": "u1", "headers": {"call-command": "nomedia"}},
            "sendmsg u1\ncall-command: nomedia\n\n",
        ),
        (
            {"op": "sendevent", "event": "NOTIFY", "headers": {"profile": "internal"}, "body": "é"},
            "sendevent NOTIFY\nprofile: internal\nContent-Length: 2\n\né",
        ),
        ({"op": "execute", "uuid": "u1", "app": "park", "wait": True}, "wait u1 park "),
        ({"op": "bgapi", "command": "show channels"}, "job show channels"),
        ({"command": "originate user/1 &park"}, "job originate user/1 &park"),
        ({"command": "expand ORIGINATE user/1 &park()"}, "job expand ORIGINATE user/1 &park()"),
        ({"command": "conference room dial user/1"}, "job conference room dial user/1"),
        ({"command": "conference room list"}, "api conference room list\n\n"),
    ],
)
async def test_ops_as_event_socket_commands(world: Any, request_: dict[str, Any], block: str) -> None:
    world.calls.learn("u1", "fs1")
    given = world.put(**request_)
    sent = world.pool().take()
    assert sent.what == block
    sent.command("+OK")
    assert given.reply.status is OK


async def test_a_job_is_answered_at_its_end_and_names_its_job(world: Any) -> None:
    given = world.put(op="bgapi", command="originate user/1 &park", id="j")
    sent = world.pool().take()
    sent.accept("job-1")
    assert not given.answered
    assert world.bus.sent == []
    sent.job("+OK 7f\n")
    assert (given.reply.status, given.reply.result, given.reply.job) == (OK, "+OK 7f\n", "job-1")


async def test_accept_gives_an_early_reply(world: Any) -> None:
    given = world.put(op="bgapi", command="status", id="j", accept=True, meta={"m": 1})
    sent = world.pool().take()
    sent.accept("job-1")
    address, early = world.bus.sent[0]
    assert address == "_INBOX.caller.1"
    assert (early.status, early.executed, early.job, early.meta) == (
        Status.ACCEPTED,
        Executed.UNKNOWN,
        "job-1",
        {"m": 1},
    )
    sent.job("-ERR USER_BUSY\n")
    assert (given.reply.status, given.reply.executed, given.reply.error) == (ERROR, Executed.YES, "-ERR USER_BUSY")


@pytest.mark.parametrize(
    ("request_", "seconds"),
    [
        ({"command": "status"}, 10.0),
        ({"command": "originate x y"}, 120.0),
        ({"op": "bgapi", "command": "status"}, 120.0),
        ({"command": "status", "timeout_ms": 1500}, 1.5),
        ({"command": "status", "timeout_ms": 99_999_999}, 3600.0),
    ],
)
async def test_the_budget(world: Any, request_: dict[str, Any], seconds: float) -> None:
    now = asyncio.get_running_loop().time()
    world.put(**request_)
    sent = world.pool().take()
    assert sent.deadline == pytest.approx(now + seconds, abs=0.5)
    sent.api("ok")


async def test_the_budget_begins_when_the_request_was_queued(world: Any) -> None:
    import time

    now = asyncio.get_running_loop().time()
    world.put(command="status", timeout_ms=5000, delivery={"queued_at": time.time() - 3})
    sent = world.pool().take()
    assert sent.deadline == pytest.approx(now + 2, abs=0.5)
    sent.api("ok")
    late = world.put(command="status", timeout_ms=5000, delivery={"queued_at": time.time() - 6})
    assert (late.reply.status, late.reply.executed) == (Status.EXPIRED, Executed.NO)
    assert late.reply.elapsed_ms >= 6000
    ahead = world.put(command="status", timeout_ms=5000, delivery={"queued_at": time.time() + 60})
    assert world.pool().given[-1].deadline == pytest.approx(now + 5, abs=0.5)  # a broker's clock that is ahead
    world.pool().take().api("ok")
    assert ahead.reply.status is OK
    past = world.put(command="status", deadline_ms=int(time.time() * 1000) - 1)
    assert past.reply.status is Status.EXPIRED
    assert world.pool().waiting == 0


async def test_timeout_then_late_answer(world: Any) -> None:
    given = world.put(command="uuid_broadcast x y", id="t", to="fs1", meta={"m": 1})
    sent = world.pool().take()
    sent.timeout()
    assert (given.reply.status, given.reply.executed) == (TIMEOUT, Executed.UNKNOWN)
    sent.api("+OK late", late=True)
    address, late = world.bus.sent[0]
    assert address == "_INBOX.caller.1"
    assert (late.id, late.status, late.executed, late.late, late.result) == ("t", OK, Executed.YES, True, "+OK late")
    assert late.meta == {"m": 1}
    assert world.late == [msgspec.to_builtins(late)]
    kept = world.put(command="uuid_broadcast x y", id="t", to="fs1")
    assert (kept.reply.status, kept.reply.replayed, kept.reply.late) == (OK, True, False)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (BudgetSpent("no connection was free"), Status.EXPIRED),
        (PoolBusy("full"), Status.BUSY),
        (ConnectTimeout("5 s"), Status.UNAVAILABLE),
    ],
)
async def test_what_was_never_written_was_not_executed(world: Any, error: Any, status: Status) -> None:
    given = world.put(command="x", id="n", to="fs1")
    world.pool().take().unsent(error)
    assert (given.reply.status, given.reply.executed) == (status, Executed.NO)
    assert str(error) in given.reply.error
    again = world.put(command="x", id="n", to="fs1")
    world.pool().take().api("+OK")
    assert (again.reply.status, again.reply.replayed) == (OK, False)


async def test_a_lost_connection_is_an_unknown_outcome(world: Any) -> None:
    given = world.put(command="x", id="n")
    world.pool().take().lost()
    assert (given.reply.status, given.reply.executed) == (LOST, Executed.UNKNOWN)
    assert given.sent[0][3]["Nats-Service-Error-Code"] == "502"


async def test_a_pool_that_refuses_the_text_makes_it_invalid(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise InvalidCommand("command", "holds a lone surrogate")

    monkeypatch.setattr(world.pool(), "submit_job", refuse)
    given = world.put(op="bgapi", command="x", id="n")
    assert (given.reply.status, given.reply.executed) == (Status.INVALID, Executed.NO)


# --- requests that are not carried out ------------------------------------------------------------------------


async def test_malformed_requests_are_answered_with_the_field(world: Any) -> None:
    given = world.put(command="a\nb", id="bad")
    assert (given.reply.id, given.reply.status, given.reply.executed) == ("bad", Status.INVALID, Executed.NO)
    assert "command" in given.reply.error
    assert given.sent[0][3]["Nats-Service-Error-Code"] == "400"
    assert "command" in given.sent[0][3]["Nats-Service-Error"]
    assert world.pool().given == []
    assert world.metrics == [("", "invalid")]


@pytest.mark.parametrize(
    "fields",
    [
        {"command": "a\nb"},
        {"command": "x", "timeout": 5},
        {"command": 7},
        {"op": "shout", "command": "x"},
        {"command": "x", "reply_to": "other.place"},
    ],
)
async def test_a_malformed_request_gets_its_id_and_its_meta_back(world: Any, fields: dict[str, Any]) -> None:
    given = world.put(id="bad", meta={"k": [1]}, **fields)
    reply = world.bus.sent[0][1] if given.rejected else given.reply
    assert (reply.id, reply.status, reply.meta) == ("bad", Status.INVALID, {"k": [1]})


async def test_a_meta_that_is_at_fault_is_not_sent_back(world: Any) -> None:
    given = world.put(command="x", meta=[1])
    assert (given.reply.status, given.reply.meta) == (Status.INVALID, None)


@pytest.mark.parametrize("payload", [b"", b"\x00nonsense", b"[1]", b'{"command": ', b"\x81\xa1"])
async def test_what_cannot_be_decoded_is_a_dead_letter_and_answered_where_it_can_be(world: Any, payload: bytes) -> None:
    garbage = world.put(payload)
    assert garbage.rejected == world.dead != []
    ((address, reply),) = world.bus.sent
    assert (address, reply.status, reply.executed) == ("_INBOX.caller.1", Status.INVALID, Executed.NO)
    assert world.metrics == [("", "invalid")]


async def test_what_cannot_be_answered_is_a_dead_letter(world: Any) -> None:
    given = world.put(command="status", delivery={"reply_to": ""})
    assert given.rejected == ["no reply address"]
    assert world.dead == ["no reply address"]
    assert world.put(b"\x00", delivery={"reply_to": ""}).rejected


@pytest.mark.parametrize("subject", ["$JS.ACK.x", "fs.events.HEARTBEAT", "esl.cmd", "esl.queue.fs1", "a.*"])
async def test_reply_subjects_of_others_are_never_written_to(world: Any, subject: str) -> None:
    given = world.put(command="status", delivery={"reply_to": subject})
    assert "not permitted" in given.rejected[0]
    assert world.pool().given == []


async def test_reply_to_in_the_body(world: Any) -> None:
    given = world.put(command="status", reply_to="esl.reply.mine", delivery={"reply_to": ""})
    world.pool().take().api("ok")
    assert given.sent[0][0] == "esl.reply.mine"
    both = world.put(command="status", reply_to="esl.reply.mine")
    world.pool().take().api("ok")
    assert both.sent[0][0] == "_INBOX.caller.1"


@pytest.mark.parametrize("bad", ["other.place", "esl.reply.*", "fs.events.X", "esl.reply.a b"])
async def test_a_reply_to_that_is_not_permitted_is_dead_and_invalid(world: Any, bad: str) -> None:
    given = world.put(command="status", id="r", reply_to=bad)
    assert given.rejected
    ((address, reply),) = world.bus.sent
    assert (address, reply.status, reply.id) == ("_INBOX.caller.1", Status.INVALID, "r")
    silent = world.put(command="status", reply_to=bad, delivery={"reply_to": ""})
    assert silent.rejected
    assert len(world.bus.sent) == 1
    assert world.pool().given == []


async def test_redis_replies_go_to_the_list_of_the_id(make_world: Any) -> None:
    world = make_world(reply_to=("esl.reply.*", "pubsub:esl.reply.*"), reply_to_glob=True, reply_prefix="esl.reply.")
    redis = {"reply_to": "", "entry_id": "1-1"}
    named = world.put(command="status", id="abc", delivery=redis)
    unnamed = world.put(command="status", delivery=redis)
    channel = world.put(command="status", reply_to="pubsub:esl.reply.x", delivery=redis)
    invalid = world.put(command="", id="bad", delivery=redis)
    for _ in range(3):
        world.pool().take().api("ok")
    assert [one.sent[0][0] for one in (named, unnamed, channel, invalid)] == [
        "esl.reply.abc",
        "esl.reply.1-1",
        "pubsub:esl.reply.x",
        "esl.reply.bad",
    ]
    assert unnamed.reply.id == "1-1"
    assert world.put(command="status", delivery={"reply_to": ""}).rejected


async def test_the_policy_denies_before_anything_else(world: Any) -> None:
    given = world.put(command="system rm -rf /", id="p")
    assert (given.reply.status, given.reply.executed) == (Status.DENIED, Executed.NO)
    assert given.sent[0][3]["Nats-Service-Error-Code"] == "403"
    assert len(world.denied) == 1
    assert world.denied[0][0] == "api"
    assert len(world.ledger) == 0
    assert world.pool().given == []


async def test_a_policy_about_nodes_is_asked_for_the_node(make_world: Any) -> None:
    world = make_world(["fs1", "fs2"], policy=Policy(deny=["node:fs1 reloadxml"]))
    assert world.put(command="reloadxml", to="fs1").reply.status is Status.DENIED
    elsewhere = world.put(command="reloadxml")
    world.pool("fs2").take().job("+OK")
    assert (elsewhere.reply.status, elsewhere.reply.node) == (OK, "fs2")
    assert len(world.denied) == 1


async def test_rate_limits_are_busy_and_another_node_may_take_it(make_world: Any) -> None:
    world = make_world(["fs1", "fs2"], rates={"originate": 1.0})
    first = [world.put(command="originate a b", to="fs1") for _ in range(2)]
    assert (first[1].reply.status, first[1].reply.executed) == (Status.BUSY, Executed.NO)
    assert "rate limit" in first[1].reply.error
    other = world.put(command="originate a b")
    world.pool("fs2").take().job("+OK")
    world.pool("fs1").take().job("+OK")
    assert other.reply.node == "fs2"
    assert world.put(command="originate a b").reply.status is Status.BUSY


async def test_limits_of_worker_and_node(make_world: Any) -> None:
    world = make_world(["fs1", "fs2"], max_in_flight=3, max_in_flight_node=2)
    assert world.relay.room() == 3
    given = [world.put(command="x", to="fs1") for _ in range(3)]
    assert given[2].reply.status is Status.BUSY
    assert "fs1" in given[2].reply.error
    other = world.put(command="x", to="fs2")
    assert (world.relay.room(), world.relay.in_flight) == (0, 3)
    over = world.put(command="x", to="fs2")
    assert (over.reply.status, over.reply.executed) == (Status.BUSY, Executed.NO)
    assert over.sent[0][3]["Nats-Service-Error-Code"] == "429"
    await asyncio.sleep(0)
    world.resumed = 0
    world.pool("fs2").take().api("ok")
    await asyncio.sleep(0)
    assert (world.resumed, world.relay.room()) == (1, 1)
    for _ in range(2):
        world.pool("fs1").take().api("ok")
    assert other.answered
    await asyncio.sleep(0)
    assert world.resumed == 1  # told once


async def test_requests_too_large_and_replies_too_large(make_world: Any) -> None:
    world = make_world(max_request=300)
    given = world.put(command="x" * 400, id="big")
    assert (given.reply.status, given.reply.executed) == (Status.TOO_LARGE, Executed.NO)
    world.bus.max_payload = 3000
    reply = world.put(command="uuid_setvar_multi u a=b", to="fs1", id="r", meta={"k": "v"})
    world.pool().take().api("é" * 1000)
    assert (reply.reply.status, reply.reply.executed, reply.reply.result) == (Status.TOO_LARGE, Executed.YES, None)
    assert reply.reply.meta == {"k": "v"}
    assert len(reply.sent[0][1]) < 2000
    again = world.put(command="uuid_setvar_multi u a=b", to="fs1", id="r")
    assert (again.reply.status, again.reply.replayed) == (Status.TOO_LARGE, True)


async def test_trace_context_is_handed_back(world: Any) -> None:
    given = world.put(command="status", delivery={"headers": {"traceparent": "00-ab-cd-01", "other": "x"}})
    world.pool().take().api("ok")
    assert given.sent[0][3] == {"traceparent": "00-ab-cd-01"}


async def test_a_fault_of_the_bridge_is_answered_honestly(
    world: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(world.pool(), "submit", lambda *_, **__: 1 / 0)
    given = world.put(command="x", id="a")
    assert (given.reply.status, given.reply.executed) == (LOST, Executed.UNKNOWN)
    assert "ZeroDivisionError" in caplog.text
    monkeypatch.setattr(world.relay._intake, "read", lambda _: 1 / 0)
    assert "fault" in world.put(command="x").rejected[0]


async def test_what_pulled_queues_bring_beyond_the_limit_waits_for_room(make_world: Any, until: Any) -> None:
    world = make_world(max_in_flight=2)
    pulled = {"pulled": True}
    given = [world.put(command=f"x {number}", timeout_ms=60_000, delivery=pulled) for number in range(4)]
    late = world.put(command="y", timeout_ms=20, delivery=pulled)
    pushed = world.put(command="z")
    assert pushed.reply.status is Status.BUSY
    assert (len(world.pool().given), world.relay.room()) == (2, 0)
    await until(lambda: late.answered)
    assert (late.reply.status, late.reply.executed) == (Status.EXPIRED, Executed.NO)
    for sent in (3, 4, 4, 4):
        world.pool().take().api("+OK")
        await asyncio.sleep(0)
        assert len(world.pool().given) == sent
    assert [one.reply.status for one in given] == [OK] * 4


async def test_a_drain_sends_away_what_waits_for_room(make_world: Any) -> None:
    world = make_world(max_in_flight=1)
    first = world.put(command="x", delivery={"pulled": True})
    second = world.put(command="y", delivery={"pulled": True})
    await world.relay.drain(0.01)
    assert (first.reply.status, second.reply.status) == (Status.CONNECTION_LOST, Status.DRAINING)
    assert second.reply.executed is Executed.NO


async def test_a_fault_of_the_bus_leaves_nothing_in_hand(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    given = world.put(command="status")
    monkeypatch.setattr(given, "finish", lambda *_: 1 / 0)
    world.pool().take().api("ok")
    assert world.relay.in_flight == 0


async def test_what_is_remembered_of_commands_is_bounded(make_world: Any) -> None:
    world = make_world(max_in_flight=1)
    world.put(command="status")
    for number in range(10_000):
        given = world.put(command=f"show {number}")
    assert given.reply.status is Status.BUSY
    assert len(world.relay._intake._plans) <= 1_024
    world.put(command="x" * 1_000)
    assert ("api", "x" * 1_000) not in world.relay._intake._plans
    world.pool().take().api("ok")


# --- idempotent requests --------------------------------------------------------------------------------------


async def test_an_idempotent_request_is_tried_again_after_an_unknown_outcome(world: Any) -> None:
    given = world.put(command="x", id="i", idempotent=True)
    world.pool().take().lost()
    assert not given.answered
    world.pool().take().api("+OK")
    assert given.reply.status is OK


async def test_an_idempotent_request_does_not_lie_when_the_next_attempt_does_not_run(world: Any) -> None:
    given = world.put(command="x", id="i", idempotent=True)
    world.pool().take().lost()
    world.pool().take().unsent(ConnectTimeout("gone"))
    assert (given.reply.status, given.reply.executed) == (LOST, Executed.UNKNOWN)


async def test_an_idempotent_request_is_tried_three_times_at_most(world: Any) -> None:
    given = world.put(command="x", id="i", idempotent=True)
    for _ in range(3):
        assert not given.answered
        world.pool().take().lost()
    assert (given.reply.status, world.pool().waiting) == (LOST, 0)


async def test_a_late_answer_ends_the_next_attempt(world: Any) -> None:
    given = world.put(command="x", id="i", idempotent=True)
    first = world.pool().take()
    first.timeout()
    second = world.pool().take()
    first.api("+OK", late=True)
    assert (given.reply.status, given.reply.late) == (OK, False)
    assert second.cancelled


async def test_others_are_never_sent_twice(world: Any) -> None:
    given = world.put(command="x", id="i")
    world.pool().take().lost()
    assert given.reply.status is LOST
    assert world.pool().waiting == 0


# --- draining -------------------------------------------------------------------------------------------------


async def test_drain_waits_for_what_is_in_hand(world: Any, until: Any) -> None:
    given = world.put(command="x", id="a")
    draining = asyncio.ensure_future(world.relay.drain(5))
    await asyncio.sleep(0)
    arrived = world.put(command="x", id="b")
    assert (arrived.reply.status, arrived.reply.executed) == (Status.DRAINING, Executed.NO)
    assert world.relay.room() == 0
    assert not draining.done()
    world.pool().take().api("ok")
    await draining
    assert given.reply.status is OK
    repeat = world.put(command="x", id="a")
    assert (repeat.reply.status, repeat.reply.replayed) == (OK, True)


async def test_drain_answers_the_rest_at_the_end(world: Any) -> None:
    sent = world.put(command="x", id="sent")
    repeat = world.put(command="x", id="sent")
    unsent = world.put(command="x", id="unsent")
    world.pool().given[1].written_at = 0.0
    everywhere = world.put(command="x", id="all", to="all")
    in_line = [world.put(command="x", delivery={"queue": "esl.cmd.fs1"}) for _ in range(2)]
    searching = world.put(command="uuid_kill nobody", id="s")
    await world.relay.drain(0.01)
    assert (sent.reply.status, sent.reply.executed) == (LOST, Executed.UNKNOWN)
    assert (repeat.reply.status, repeat.reply.replayed) == (LOST, True)
    assert (unsent.reply.status, unsent.reply.executed) == (Status.DRAINING, Executed.NO)
    assert everywhere.reply.replies[0].status is LOST
    assert [one.reply.status for one in in_line] == [LOST, Status.DRAINING]
    assert searching.reply.status is Status.DRAINING
    assert world.relay.in_flight == 0
