"""The command pool over real sockets: every command one outcome, never another's, never past its deadline."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from bridge.errors import (
    AuthenticationFailed,
    BudgetSpent,
    CommandTimeout,
    ConnectionLost,
    InvalidCommand,
    NotConnected,
    NotPermitted,
    PoolBusy,
)
from bridge.esl import commands
from bridge.simulator import SimulatedSwitch, User
from bridge.switch.backoff import Backoff, Span
from bridge.switch.carriers import HUNG_AFTER
from bridge.switch.command_pool import CommandPool
from bridge.switch.own_commands import OwnCommands

MakePool = Callable[..., CommandPool]
Until = Callable[[Callable[[], Any]], Awaitable[None]]


def soon(seconds: float = 20.0) -> float:
    return asyncio.get_running_loop().time() + seconds


# --- replies ---


async def test_first_use_connects_and_the_connection_is_shared(switch: SimulatedSwitch, make_pool: MakePool) -> None:
    pool = make_pool(switch.url)
    assert switch.connections_made == pool.connections == 0
    for number in range(20):
        assert (await pool.api(f"echo {number}", 5)).text == str(number)
    assert switch.connections_made == pool.connections == 1
    assert pool.in_flight == pool.waiting == 0


async def test_2000_pipelined_commands_each_get_their_own_reply(
    switch: SimulatedSwitch, make_pool: MakePool, answers: Any, until: Until
) -> None:
    pool = make_pool(switch.url, max_waiting=2000)
    for number in range(2000):
        pool.submit(commands.api(f"echo {number}"), answers.take(number), deadline=soon())
    assert pool.waiting == 2000
    await until(lambda: len(answers) == 2000)
    for number in range(2000):
        assert len(answers.by_key[number]) == 1
        assert answers[number].reply.text == str(number)
        assert answers[number].esl_ms > 0
    assert 1 < pool.connections <= 4
    assert pool.in_flight == pool.waiting == 0
    assert sum(count for line, count in switch.executed.items() if line.startswith("echo")) == 2000


async def test_what_its_connection_did_not_write_counts_as_unwritten(
    switch: SimulatedSwitch, make_pool: MakePool, answers: Any
) -> None:
    pool = make_pool(switch.url)
    await pool.api("status", 5)
    submission = pool.submit(commands.api("status"), answers.take("s"), deadline=soon())
    assert submission.written_at > 0
    submission.lost(ConnectionLost("cut"), sent=False)
    assert submission.written_at == 0
    submission.cancel()
    assert pool.in_flight == pool.waiting == 0


async def test_a_refused_command_is_a_reply(switch: SimulatedSwitch, make_pool: MakePool) -> None:
    pool = make_pool(switch.url)
    reply = await pool.api("no_such_thing", 5)
    assert reply.status == "error"
    assert not reply.denied
    assert (await pool.command(b"nonsense\n\n", 5)).denied


async def test_nothing_is_told_before_submit_returned(make_pool: MakePool, answers: Any, until: Until) -> None:
    async with SimulatedSwitch() as switch:
        url = switch.url
    pool = make_pool(url)
    await pool.close()
    pool.submit(commands.api("status"), answers.take("x"), deadline=soon())
    assert "x" not in answers
    await until(lambda: "x" in answers)
    assert answers["x"].status == "unsent"


async def test_on_written_is_told_when_the_command_left(
    switch: SimulatedSwitch, make_pool: MakePool, answers: Any, until: Until
) -> None:
    pool = make_pool(switch.url)
    told: list[str] = []
    pool.submit(
        commands.api("status"), lambda outcome: told.append(outcome.status), deadline=soon(),
        on_written=lambda: told.append("written"),
    )  # fmt: skip
    await until(lambda: len(told) == 2)
    assert told == ["written", "reply"]


async def test_polling_gathers_the_replies(
    switch: SimulatedSwitch, make_pool: MakePool, answers: Any, until: Until
) -> None:
    pool = make_pool(switch.url, polling_interval=0.1)
    turns: list[float] = []
    await pool.api("status", 5)
    started = asyncio.get_running_loop().time()
    for _ in range(30):
        pool.submit(commands.api("status"), lambda _: turns.append(asyncio.get_running_loop().time()), deadline=soon())
    await until(lambda: len(turns) == 30)
    assert turns[0] - started >= 0.09
    assert sum(later - earlier > 0.05 for earlier, later in itertools.pairwise(turns)) <= 2  # few flushes


async def test_own_api_lines_are_noted(switch: SimulatedSwitch, make_pool: MakePool) -> None:
    own = OwnCommands()
    pool = make_pool(switch.url, own_commands=own)
    await pool.api("show channels", 5)
    assert own.take("show", "channels")


async def test_what_did_not_run_is_not_noted_as_our_own(make_pool: MakePool, answers: Any, until: Until) -> None:
    """Its event will not come, and would hide somebody else's."""
    user = User("secret", allowed_api=["status", "bgapi"])
    async with SimulatedSwitch(users={"u@x": user}) as switch:
        own = OwnCommands()
        pool = make_pool(f"fs://u@x:secret@127.0.0.1:{switch.port}", own_commands=own)
        assert (await pool.api("version", 5)).denied
        pool.submit_job("version", answers.take("job"), deadline=soon())
        await until(lambda: "job" in answers)
        assert answers["job"].reply.denied
        assert len(own) == 0
        # One that its connection did not write any more runs on another, and has one event.
        pool.submit(commands.api("status"), answers.take("moved"), deadline=soon())
        pool._carriers.ready[0].connection.abort()
        await until(lambda: "moved" in answers)
        assert answers["moved"].status == "reply"
        assert own.take("status", "")
        assert not own.take("status", "")
        await pool.close()


async def test_a_failing_callback_hurts_nobody(
    switch: SimulatedSwitch, make_pool: MakePool, until: Until, failures: list[Exception]
) -> None:
    pool = make_pool(switch.url)
    pool.submit(commands.api("status"), lambda _: 1 / 0, deadline=soon())  # type: ignore[arg-type,return-value]
    assert (await pool.api("echo hello", 5)).text == "hello"
    await until(lambda: failures)
    assert isinstance(failures[0], ZeroDivisionError)
    assert pool.connections == 1


# --- time ---


async def test_a_hung_api_delays_nobody_else(
    switch: SimulatedSwitch, make_pool: MakePool, answers: Any, until: Until
) -> None:
    pool = make_pool(switch.url, max_connections=2)
    await pool.api("status", 5)
    pool.submit(commands.api("msleep 60000"), answers.take("hung"), deadline=soon())
    await asyncio.sleep(0.15)
    for number in range(50):
        assert (await pool.api(f"echo {number}", 1)).text == str(number)
    assert pool.connections == 2
    assert "hung" not in answers


async def test_commands_wait_unsent_rather_than_behind_hung_ones(
    switch: SimulatedSwitch, make_pool: MakePool, answers: Any, until: Until
) -> None:
    pool = make_pool(switch.url, max_connections=1)
    await pool.api("status", 5)
    pool.submit(commands.api("msleep 60000"), answers.take("hung"), deadline=soon())
    await asyncio.sleep(0.15)
    pool.submit(commands.api("echo waits"), answers.take("waits"), deadline=soon(0.2))
    await until(lambda: "waits" in answers)
    assert answers["waits"].status == "unsent"
    assert isinstance(answers["waits"].error, BudgetSpent)
    assert "echo waits" not in switch.executed


async def test_a_late_reply_goes_to_its_own_command(
    switch: SimulatedSwitch, make_pool: MakePool, answers: Any, until: Until
) -> None:
    pool = make_pool(switch.url, max_connections=1)
    await pool.api("status", 5)
    switch.faults.add("slow_api:0.4")
    pool.submit(commands.api("echo slow"), answers.take("slow"), deadline=soon(0.1))
    pool.submit(commands.api("echo next"), answers.take("next"), deadline=soon())
    await until(lambda: "slow" in answers)
    assert answers["slow"].status == "timeout"
    assert isinstance(answers["slow"].error, CommandTimeout)
    await until(lambda: "next" in answers)
    assert answers["next"].reply.text == "next"
    first, late = answers.by_key["slow"]
    assert not first.late
    assert (late.late, late.reply.text) == (True, "slow")
    assert pool.in_flight == 0


async def test_the_command_timeout_begins_at_the_write(make_pool: MakePool, scripted: Any) -> None:
    """The greeting takes longer than esl_cmd_timeout; the reply does not."""
    url = await scripted(b"")
    async with SimulatedSwitch() as switch:

        async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await asyncio.sleep(0.4)
            inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", switch.port)

            async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
                while data := await source.read(65536):
                    sink.write(data)
                sink.close()

            await asyncio.gather(pump(inner_reader, writer), pump(reader, inner_writer))

        server = await asyncio.start_server(forward, "127.0.0.1", 0)
        url = f"fs://:ClueCon@127.0.0.1:{server.sockets[0].getsockname()[1]}"
        pool = make_pool(url, command_timeout=0.3)
        assert (await pool.api("echo hello", 5)).text == "hello"
        await pool.close()
        server.close()
        await asyncio.sleep(0.05)


async def test_the_budget_can_end_while_connecting(
    make_pool: MakePool, scripted: Any, answers: Any, until: Until
) -> None:
    pool = make_pool(await scripted(b""))
    pool.submit(commands.api("status"), answers.take("x"), deadline=soon(0.1))
    await until(lambda: "x" in answers)
    assert answers["x"].status == "unsent"
    assert isinstance(answers["x"].error, BudgetSpent)


async def test_what_waits_is_not_written_after_its_deadline_by_one_who_stood_still(
    switch: SimulatedSwitch, make_pool: MakePool, answers: Any, until: Until
) -> None:
    pool = make_pool(switch.url, max_connections=1, max_pipelined=1)
    await pool.api("echo first", 5)
    pool.submit(commands.api("msleep 50"), lambda _outcome: time.sleep(0.4), deadline=soon())
    pool.submit(commands.api("echo too late"), answers.take("late"), deadline=soon(0.3))
    pool.submit(commands.api("echo in time"), answers.take("next"), deadline=soon())
    await until(lambda: len(answers) == 2)
    assert isinstance(answers["late"].error, BudgetSpent)
    assert answers["late"].status == "unsent"
    assert answers["next"].reply.text == "in time"
    assert not switch.executed["echo too late"]


async def test_the_queue_is_bounded(make_pool: MakePool, scripted: Any, answers: Any, until: Until) -> None:
    pool = make_pool(await scripted(b""), max_waiting=10)
    for number in range(11):
        pool.submit(commands.api("status"), answers.take(number), deadline=soon())
    await until(lambda: 10 in answers)
    assert isinstance(answers[10].error, PoolBusy)
    assert len(answers) == 1
    assert pool.waiting == 10


async def test_cancelling(switch: SimulatedSwitch, make_pool: MakePool, answers: Any, until: Until) -> None:
    pool = make_pool(switch.url, max_connections=1, max_pipelined=1)
    await pool.api("status", 5)
    sent = pool.submit(commands.api("echo sent"), answers.take("sent"), deadline=soon())
    unsent = pool.submit(commands.api("echo unsent"), answers.take("unsent"), deadline=soon())
    sent.cancel()
    unsent.cancel()
    unsent.cancel()
    assert (await pool.api("echo after", 5)).text == "after"
    assert len(answers) == 0
    assert "echo sent" in switch.executed
    assert "echo unsent" not in switch.executed
    assert pool.in_flight == pool.waiting == 0


async def test_hung_connections_are_parked_and_their_late_replies_heard(
    switch: SimulatedSwitch, make_pool: MakePool, answers: Any, until: Until
) -> None:
    pool = make_pool(switch.url, max_connections=2, command_timeout=0.2)
    for number in range(2):
        pool.submit(commands.api(f"msleep {1500 + number}"), answers.take(number), deadline=soon())
        await until(lambda number=number: f"api msleep {1500 + number}" in switch.received)
        await asyncio.sleep(HUNG_AFTER * 1.2)
    await until(lambda: len(answers) == 2)
    assert {answers[number].status for number in range(2)} == {"timeout"}
    assert (await pool.api("echo hello", 1)).text == "hello"
    assert pool.connections == 3
    await until(lambda: all(len(answers.by_key[number]) == 2 for number in range(2)))
    assert all(answers.by_key[number][1].late for number in range(2))


async def test_idle_connections_are_closed(switch: SimulatedSwitch, make_pool: MakePool, until: Until) -> None:
    pool = make_pool(switch.url, idle_timeout=0.1)
    await pool.api("status", 5)
    await until(lambda: pool.connections == 0)
    await until(lambda: not switch.connections)
    assert (await pool.api("echo again", 5)).text == "again"
    assert switch.connections_made == 2


# --- losses ---


async def test_a_killed_link_fails_all_in_flight_at_once(
    switch: SimulatedSwitch, make_pool: MakePool, answers: Any, until: Until
) -> None:
    pool = make_pool(switch.url, max_connections=1)
    await pool.api("status", 5)
    switch.faults.add("slow_api:60s/1")
    for number in range(16):
        pool.submit(commands.api(f"echo {number}"), answers.take(number), deadline=soon(60))
    pool.submit(commands.api("echo 16"), answers.take(16), deadline=soon(60))
    assert (pool.in_flight, pool.waiting) == (16, 1)
    await until(lambda: "echo 0" in switch.executed)
    switch.faults.clear()
    switch.drop_connections()
    await until(lambda: len(answers) == 17)
    assert [answers[number].status for number in range(17)] == ["lost"] * 16 + ["reply"]
    assert isinstance(answers[0].error, ConnectionLost)
    assert all(len(answers.by_key[number]) == 1 for number in range(17))
    assert pool.in_flight == pool.waiting == 0


async def test_what_was_not_written_goes_on_another_connection(
    switch: SimulatedSwitch, make_pool: MakePool, answers: Any, until: Until
) -> None:
    pool = make_pool(switch.url)
    await pool.api("status", 5)
    written: list[int] = []
    for number in range(5):
        pool.submit(
            commands.api(f"echo {number}"), answers.take(number), deadline=soon(), on_written=lambda: written.append(1)
        )
    (carrier,) = pool._carriers.ready
    assert carrier.connection is not None
    carrier.connection.abort()  # in the same turn: nothing has been written yet
    await until(lambda: len(answers) == 5)
    assert [answers[number].reply.text for number in range(5)] == [str(number) for number in range(5)]
    assert len(written) == 5
    assert sum(switch.executed[f"echo {number}"] for number in range(5)) == 5


async def test_an_absent_node_fails_promptly_and_without_a_storm(
    switch: SimulatedSwitch, make_pool: MakePool, answers: Any, until: Until
) -> None:
    await switch.stop()
    pool = make_pool(switch.url, backoff=Backoff({"refused": Span(0.2, 0.2)}))
    pool.submit(commands.api("status"), answers.take("first"), deadline=soon(3600))
    await until(lambda: "first" in answers)
    assert answers["first"].status == "unsent"
    assert isinstance(answers["first"].error, NotConnected)
    for number in range(100):  # while the back-off runs: at once, no attempt
        pool.submit(commands.api("status"), answers.take(number), deadline=soon(3600))
    assert pool.waiting == 0
    await until(lambda: len(answers) == 101)
    await switch.start()
    await asyncio.sleep(0.25)
    assert (await pool.api("echo back", 5)).text == "back"
    assert switch.connections_made == 1


async def test_a_knock_connects_once_when_the_backoff_allows(make_pool: MakePool, until: Until) -> None:
    async with SimulatedSwitch() as gone:
        url, port = gone.url, gone.port
    pool = make_pool(url, backoff=Backoff({"refused": Span(0.05, 0.05)}))
    tried: list[bool] = []
    pool.on_reached = lambda: tried.append(pool.reached)
    pool.knock()
    await until(lambda: tried)
    async with SimulatedSwitch(port=port) as switch:
        pool.knock()
        pool.knock()
        assert tried == [False]
        await until(lambda: len(tried) == 2)
        assert (tried, pool.connections, switch.connections_made) == ([False, True], 1, 1)
        pool.knock()
        assert pool.connections == 1
    await pool.close()
    assert not pool.reached


async def test_news_of_the_node_end_the_backoff(switch: SimulatedSwitch, make_pool: MakePool) -> None:
    await switch.stop()
    pool = make_pool(switch.url, backoff=Backoff({"refused": Span(3600, 3600)}))
    for _ in range(2):
        with pytest.raises(NotConnected):
            await pool.api("status", 5)
    await switch.start()
    pool.node_up()
    assert (await pool.api("echo back", 5)).text == "back"


async def test_a_wrong_password_is_tried_once(switch: SimulatedSwitch, make_pool: MakePool) -> None:
    long = Backoff({"auth_failed": Span(3600, 3600)})
    pool = make_pool(f"fs://:wrong@127.0.0.1:{switch.port}", backoff=long)
    for _ in range(20):
        with pytest.raises(AuthenticationFailed):
            await pool.api("status", 5)
    assert switch.connections_made == 1


async def test_closing(switch: SimulatedSwitch, make_pool: MakePool, answers: Any, until: Until) -> None:
    pool = make_pool(switch.url, max_connections=1, max_pipelined=1)
    await pool.api("status", 5)
    pool.submit(commands.api("msleep 60000"), answers.take("sent"), deadline=soon())
    pool.submit(commands.api("echo unsent"), answers.take("unsent"), deadline=soon())
    await asyncio.sleep(0)
    await pool.close("shutting down")
    assert answers["sent"].status == "lost"
    assert answers["unsent"].status == "unsent"
    assert "shutting down" in str(answers["unsent"].error)
    await until(lambda: not switch.connections)


# --- jobs ---


async def test_a_job(switch: SimulatedSwitch, make_pool: MakePool, answers: Any, until: Until) -> None:
    pool = make_pool(switch.url)
    accepted: list[str] = []
    pool.submit_job("echo hello", answers.take("job"), deadline=soon(), on_accepted=accepted.append)
    await until(lambda: "job" in answers)
    outcome = answers["job"]
    assert (outcome.status, outcome.result, outcome.reply.text, outcome.job) == ("reply", "hello", "hello", accepted[0])
    assert [len(part) for part in outcome.job.split("-")] == [8, 4, 4, 4, 12]
    assert pool.in_flight == 0


async def test_nobody_ends_anothers_job_with_an_event_of_his_own(
    switch: SimulatedSwitch, make_pool: MakePool, answers: Any, until: Until
) -> None:
    pool = make_pool(switch.url)
    jobs: list[str] = []
    pool.submit_job("msleep 300", answers.take("j"), deadline=soon(), on_accepted=jobs.append)
    await until(lambda: jobs)
    forged = commands.sendevent("BACKGROUND_JOB", {"Job-UUID": jobs[0], "Job-Command": "msleep"}, "+OK forged")
    assert (await pool.command(forged, 5)).ok
    await until(lambda: "j" in answers.by_key)
    assert "forged" not in answers["j"].result


async def test_many_jobs_over_many_connections_get_their_own_results(
    switch: SimulatedSwitch, make_pool: MakePool, answers: Any, until: Until
) -> None:
    pool = make_pool(switch.url)
    for number in range(500):
        pool.submit_job(f"echo {number}", answers.take(number), deadline=soon())
    await until(lambda: len(answers) == 500)
    assert all(answers[number].result == str(number) for number in range(500))
    assert len({answers[number].job for number in range(500)}) == 500
    assert pool.connections > 1


async def test_connections_get_only_their_own_jobs(
    switch: SimulatedSwitch, make_pool: MakePool, answers: Any, until: Until
) -> None:
    one, two = make_pool(switch.url), make_pool(switch.url)
    one.submit_job("echo 1", answers.take(1), deadline=soon())
    two.submit_job("echo 2", answers.take(2), deadline=soon())
    await until(lambda: len(answers) == 2)
    switch.fire("BACKGROUND_JOB", {"Job-UUID": "foreign"}, "x")
    assert sorted(connection.events_sent for connection in switch.connections) == [1, 1]


async def test_a_pool_without_jobs_subscribes_to_nothing(switch: SimulatedSwitch, make_pool: MakePool) -> None:
    pool = make_pool(switch.url)
    await pool.api("status", 5)
    assert list(switch.received) == ["auth ***", "api status"]


async def test_a_job_that_is_refused(make_pool: MakePool, answers: Any, until: Until) -> None:
    user = User("secret", allowed_api=["status"])
    async with SimulatedSwitch(users={"u@d": user}) as switch:
        pool = make_pool(f"fs://u@d:secret@127.0.0.1:{switch.port}")
        pool.submit_job("originate x y", answers.take("job"), deadline=soon())
        await until(lambda: "job" in answers)
        assert answers["job"].reply.denied
        assert answers["job"].status == "reply"
        await pool.close()


async def test_a_user_without_background_job_hears_it_at_once(make_pool: MakePool, answers: Any, until: Until) -> None:
    user = User("secret", allowed_events=["HEARTBEAT"])
    async with SimulatedSwitch(users={"u@d": user}) as switch:
        pool = make_pool(f"fs://u@d:secret@127.0.0.1:{switch.port}")
        for number in range(3):
            pool.submit_job("echo x", answers.take(number), deadline=soon(3600))
            await until(lambda number=number: number in answers)  # type: ignore[misc]
            assert answers[number].status == "unsent"
            assert isinstance(answers[number].error, NotPermitted)
            assert "BACKGROUND_JOB" in str(answers[number].error)
        assert (await pool.api("echo still", 5)).text == "still"
        assert "echo x" not in switch.executed
        await pool.close()


async def test_a_late_job(switch: SimulatedSwitch, make_pool: MakePool, answers: Any, until: Until) -> None:
    pool = make_pool(switch.url)
    pool.submit_job("msleep 400", answers.take("job"), deadline=soon(0.2))
    await until(lambda: "job" in answers)
    assert answers["job"].status == "timeout"
    await until(lambda: len(answers.by_key["job"]) == 2)
    late = answers.by_key["job"][1]
    assert (late.late, late.result, late.job) == (True, "+OK", answers["job"].job)


async def test_the_command_timeout_does_not_bound_the_job(
    switch: SimulatedSwitch, make_pool: MakePool, answers: Any, until: Until
) -> None:
    pool = make_pool(switch.url, command_timeout=0.2)
    pool.submit_job("msleep 600", answers.take("job"), deadline=soon())
    await until(lambda: "job" in answers)
    assert answers["job"].status == "reply"


async def test_a_job_outlives_its_connection(
    switch: SimulatedSwitch, make_pool: MakePool, answers: Any, until: Until
) -> None:
    pool = make_pool(switch.url)
    accepted: list[str] = []
    pool.submit_job("msleep 800", answers.take("job"), deadline=soon(), on_accepted=accepted.append)
    await until(lambda: accepted)
    switch.drop_connections()
    await until(lambda: "job" in answers)
    assert (answers["job"].status, answers["job"].result, answers["job"].job) == ("reply", "+OK", accepted[0])
    prefix = accepted[0][:8]
    await until(lambda: f"filter delete Job-UUID /^{prefix}-/" in switch.received)
    assert f"filter Job-UUID /^{prefix}-/" in switch.received


async def test_a_job_survives_several_losses(
    switch: SimulatedSwitch, make_pool: MakePool, answers: Any, until: Until
) -> None:
    pool = make_pool(switch.url)
    accepted: list[str] = []
    pool.submit_job("msleep 1500", answers.take("job"), deadline=soon(), on_accepted=accepted.append)
    await until(lambda: accepted)
    for times in (2, 3):
        switch.drop_connections()
        await until(lambda times=times: list(switch.received).count(f"filter Job-UUID /^{accepted[0][:8]}-/") == times)  # type: ignore[misc]
    await until(lambda: "job" in answers)
    assert answers["job"].status == "reply"


async def test_a_restart_ends_the_jobs(
    switch: SimulatedSwitch, make_pool: MakePool, answers: Any, until: Until
) -> None:
    pool = make_pool(switch.url)
    accepted: list[str] = []
    pool.submit_job("msleep 60000", answers.take("job"), deadline=soon(3600), on_accepted=accepted.append)
    pool.submit_job("msleep 60001", answers.take("given up"), deadline=soon(0.2))
    await until(lambda: accepted and "given up" in answers)
    assert (answers["given up"].status, pool.jobs.given_up) == ("timeout", 1)
    await switch.restart()
    await until(lambda: "job" in answers)
    assert answers["job"].status == "lost"
    assert "restarted" in str(answers["job"].error)
    assert (pool.in_flight, pool.jobs.given_up) == (0, 0)


async def test_a_job_whose_connection_is_never_replaced_is_lost_at_its_deadline(
    switch: SimulatedSwitch, make_pool: MakePool, answers: Any, until: Until
) -> None:
    pool = make_pool(switch.url)
    accepted: list[str] = []
    pool.submit_job("msleep 60000", answers.take("job"), deadline=soon(0.8), on_accepted=accepted.append)
    await until(lambda: accepted)
    await switch.stop()
    await until(lambda: "job" in answers)
    assert answers["job"].status == "lost"


async def test_an_idle_connection_with_a_running_job_stays(
    switch: SimulatedSwitch, make_pool: MakePool, answers: Any, until: Until
) -> None:
    pool = make_pool(switch.url, idle_timeout=0.05)
    pool.submit_job("msleep 500", answers.take("job"), deadline=soon())
    await until(lambda: "job" in answers)
    assert answers["job"].status == "reply"
    assert switch.connections_made == 1


async def test_what_cannot_be_written_is_refused_before_anything_is_sent(
    switch: SimulatedSwitch, make_pool: MakePool, answers: Any
) -> None:
    pool = make_pool(switch.url)
    with pytest.raises(InvalidCommand):
        pool.submit_job("status\n\napi shutdown", answers.take("x"), deadline=soon())
    with pytest.raises(InvalidCommand):
        pool.submit_execute_wait("uuid", "a\nb", "", answers.take("x"), deadline=soon())
    assert switch.connections_made == 0


async def test_an_application_that_is_waited_for(
    switch: SimulatedSwitch, make_pool: MakePool, answers: Any, until: Until
) -> None:
    pool = make_pool(switch.url)
    pool.submit_job("originate null/1 &park", answers.take("call"), deadline=soon())
    await until(lambda: "call" in answers)
    uuid = answers["call"].result.removeprefix("+OK ").strip()
    pool.submit_execute_wait(uuid, "set", "a=b", answers.take("app"), deadline=soon())
    pool.submit_execute_wait("no-such-call", "set", "a=b", answers.take("none"), deadline=soon())
    await until(lambda: "app" in answers and "none" in answers)
    assert answers["app"].status == "reply"
    assert answers["app"].reply.ok
    assert answers["none"].reply.not_executed
    assert pool.in_flight == 0


async def answered_call(pool: CommandPool, answers: Any, until: Until) -> str:
    pool.submit_job("originate null/1 &park", answers.take("call"), deadline=soon())
    await until(lambda: "call" in answers)
    return str(answers["call"].result.removeprefix("+OK ").strip())


async def test_an_application_that_never_runs_ends_with_its_call(
    switch: SimulatedSwitch, make_pool: MakePool, answers: Any, until: Until
) -> None:
    """Behind another application: the call is hung up before its turn comes, no CHANNEL_EXECUTE_COMPLETE will."""
    pool = make_pool(switch.url, max_connections=1)
    uuid = await answered_call(pool, answers, until)
    pool.submit_execute_wait(uuid, "sleep", "60000", answers.take("runs"), deadline=soon(60))
    await until(lambda: any(line.startswith("sendmsg") for line in switch.received))
    pool.submit_execute_wait(uuid, "set", "a=b", answers.take("waits"), deadline=soon(60))
    await until(lambda: sum(line.startswith("sendmsg") for line in switch.received) == 2)
    assert (await pool.api(f"uuid_kill {uuid}", 5)).ok
    await until(lambda: "runs" in answers and "waits" in answers)
    waits = answers["waits"]
    assert waits.status == "reply"
    assert waits.reply.text == "-ERR the call ended before the application began"
    assert waits.reply.kind == "command"  # executed: no
    assert answers["runs"].status == "reply"  # FreeSWITCH completes what runs when the call is hung up
    assert (await pool.api("echo still here", 5)).text == "still here"
    (connection,) = switch.connections
    assert "filter delete Unique-ID " + uuid in connection.commands
    assert pool.in_flight == 0


@pytest.mark.parametrize(
    ("denied", "status"),
    [("CHANNEL_EXECUTE", "lost"), ("CHANNEL_DESTROY", "timeout")],
)
async def test_a_user_that_may_not_see_it_all_gets_an_honest_outcome(
    make_pool: MakePool, answers: Any, until: Until, denied: str, status: str
) -> None:
    allowed = {"BACKGROUND_JOB", "CHANNEL_EXECUTE_COMPLETE", "CHANNEL_EXECUTE", "CHANNEL_DESTROY"} - {denied}
    async with SimulatedSwitch(users={"u@x": User("s", allowed_events=sorted(allowed))}) as switch:
        pool = make_pool(f"fs://u%40x:s@127.0.0.1:{switch.port}")
        uuid = await answered_call(pool, answers, until)
        pool.submit_execute_wait(uuid, "sleep", "60000", answers.take("runs"), deadline=soon(60))
        await until(lambda: any(line.startswith("sendmsg") for line in switch.received))
        pool.submit_execute_wait(uuid, "set", "a=b", answers.take("waits"), deadline=soon(2))
        await until(lambda: sum(line.startswith("sendmsg") for line in switch.received) == 2)
        assert (await pool.api(f"uuid_kill {uuid}", 5)).ok
        await until(lambda: "waits" in answers)
        assert answers["waits"].status == status
        await pool.close()


async def test_under_repeated_cuts_every_command_gets_one_outcome_and_runs_at_most_once(
    switch: SimulatedSwitch, make_pool: MakePool, answers: Any, until: Until
) -> None:
    pool = make_pool(switch.url, max_waiting=5000)
    switch.faults.add("drop@50/97")
    switch.faults.add("deaf@80/89")
    for number in range(1000):
        if number % 5:
            pool.submit(commands.api(f"echo {number}"), answers.take(number), deadline=soon())
        else:
            pool.submit_job(f"echo {number}", answers.take(number), deadline=soon(2))
        if number % 50 == 0:
            await asyncio.sleep(0.01)
        if number % 300 == 299:
            switch.drop_connections()
    await until(lambda: len(answers) == 1000)
    for number in range(1000):
        outcomes = [outcome for outcome in answers.by_key[number] if not outcome.late]
        assert len(outcomes) == 1
        ran = switch.executed[f"echo {number}"]
        assert ran <= 1
        if outcomes[0].status == "reply":
            assert outcomes[0].reply.text == str(number)
            assert ran == 1
        elif outcomes[0].status == "unsent":
            assert ran == 0
    statuses = [answers[number].status for number in range(1000)]
    # How many: a matter of luck, since a connection that dies before it answered anything fails all that wait.
    assert statuses.count("reply") > 50
    assert statuses.count("lost") > 0
    assert pool.in_flight == pool.waiting == 0
