"""A live FreeSWITCH on its worst days, made by hand on a raw socket: nothing is lost silently, torn, or given twice."""

from __future__ import annotations

import asyncio
import gc
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from bridge.errors import ConnectionLost, LimitExceeded, ProtocolError
from bridge.esl import commands
from bridge.esl.url import EslUrl
from bridge.messages.reply import Executed, Status
from bridge.relay.execution import result_of
from bridge.simulator import SimulatedSwitch, User
from bridge.switch.backoff import Backoff, Span
from bridge.switch.command_pool import CommandPool, Outcome
from bridge.switch.connection import MAX_SKIPPED, Connection
from bridge.switch.event_link import EventLink
from bridge.switch.node import NodeState
from tests.integration.switch import wire
from tests.integration.switch.wire import RawConnection, RawSwitch, json_event, notice, proxy_to

MakeLink = Callable[..., EventLink]
MakePool = Callable[..., CommandPool]
Until = Callable[[Callable[[], Any]], Awaitable[None]]

LARGEST = 16 * 1024 * 1024


def sequences(recorder: Any) -> list[int]:
    return [int(event.envelope.sequence) for event in recorder.seen]


async def test_bytes_that_dribble(make_link: MakeLink, recorder: Any, until: Until) -> None:
    async with RawSwitch() as raw:
        link = make_link(raw.url)
        await until(lambda: link.connected and raw.listeners)
        (peer,) = raw.listeners
        for byte in b"".join(json_event(number) for number in range(1, 6)):
            peer.write(bytes([byte]))
            await asyncio.sleep(0)
        await until(lambda: len(recorder.seen) == 5)
        assert sequences(recorder) == [1, 2, 3, 4, 5]
        assert recorder.losses == []


async def test_the_largest_event_passes_and_a_larger_one_costs_only_itself(
    make_link: MakeLink, recorder: Any, until: Until
) -> None:
    async with RawSwitch() as raw:
        link = make_link(raw.url)
        await until(lambda: link.connected and raw.listeners)
        (peer,) = raw.listeners
        frame = json_event(1, padding="")
        body = frame.partition(b"\n\n")[2].replace(
            b'"padding": ""', b'"padding": "%b"' % (b"x" * (LARGEST - len(frame.partition(b"\n\n")[2])))
        )
        assert len(body) == LARGEST
        peer.write(b"Content-Length: %d\nContent-Type: text/event-json\n\n" % LARGEST + body + json_event(2))
        await until(lambda: len(recorder.seen) == 2)
        assert len(recorder.seen[0].raw) == LARGEST
        larger = b"Content-Length: %d\nContent-Type: text/event-json\n\n" % (LARGEST + 1) + body + b"\n"
        peer.write(json_event(3) + larger + json_event(4))
        await until(lambda: len(recorder.seen) == 4)
        told = [
            one[1] if one[0] == "skipped" else one[1].name for one in recorder.all if one[0] in ("event", "skipped")
        ]
        assert told == ["DTMF", "DTMF", "DTMF", LARGEST + 1, "DTMF"]
        assert recorder.losses == []
        peer.write(b"Content-Length: %d\nContent-Type: text/event-json\n\n{" % (MAX_SKIPPED + 1))
        await until(lambda: recorder.losses)
        reason, error = recorder.losses[0]
        assert reason == "protocol_error"
        assert isinstance(error, LimitExceeded)
        await until(lambda: link.reconnects == 1)


async def test_an_output_that_is_too_large_costs_no_other_command(
    switch: SimulatedSwitch, make_pool: MakePool, answers: Any, until: Until
) -> None:
    size = LARGEST + 1
    switch.api.commands["show"] = lambda argument: "x" * size
    pool = make_pool(switch.url, max_connections=1)
    deadline = asyncio.get_running_loop().time() + 30
    for number, line in enumerate(("echo a", "show channels as json", "echo b")):
        pool.submit(commands.api(line), answers.take(number), deadline=deadline)
    await until(lambda: len(answers) == 3)
    assert [answers[number].reply.text for number in range(3)] == ["a", "", "b"]
    assert [answers[number].reply.skipped for number in range(3)] == [0, size, 0]
    assert switch.connections_made == 1
    result = result_of(answers[1])
    assert (result.status, result.executed, result.result) == (Status.TOO_LARGE, Executed.YES, None)
    assert str(size) in result.error


async def test_a_large_event_torn_by_a_notice(make_link: MakeLink, recorder: Any, until: Until) -> None:
    """The kill comes from another thread of FreeSWITCH, into the middle of 12 MB; an event may follow it."""
    async with RawSwitch() as raw:
        link = make_link(raw.url)
        await until(lambda: link.connected and raw.listeners)
        (peer,) = raw.listeners
        half = b"x" * 6_000_000
        head = json_event(7)[:-1].partition(b"\n\n")[2] + b', "padding": "'
        length = len(head) + 2 * len(half) + 2
        peer.write(json_event(6))
        peer.write(b"Content-Length: %d\nContent-Type: text/event-json\n\n" % length + head + half)
        peer.write(notice(wire.KILLED))
        await peer.drain()
        peer.close()
        await until(lambda: link.reconnects == 1)
        assert [reason for reason, _ in recorder.losses] == ["lost_events"]
        assert sequences(recorder) == [6]
        await until(lambda: recorder.gaps)
        assert recorder.gaps[0].before == f"{wire.CORE}:6"


@pytest.mark.parametrize("format", ["json", "plain"])
async def test_a_stream_that_goes_on_out_of_step_is_never_taken_for_events(
    make_link: MakeLink, recorder: Any, until: Until, format: str
) -> None:
    """After 600 s of a full socket FreeSWITCH drops the rest of a frame and carries on: wherever it was cut."""
    rng = random.Random(7)

    def plain(number: int) -> bytes:
        body = (
            f"Event-Name: DTMF\nCore-UUID: {wire.CORE}\nEvent-Sequence: {number}\nCaller-Name: Zo%C3%AB\nDigit: 1\n\n"
        ).encode()
        return b"Content-Length: %d\nContent-Type: text/event-plain\n\n%b" % (len(body), body)

    make = plain if format == "plain" else json_event
    async with RawSwitch() as raw:
        link = make_link(raw.url, format=format)
        for attempt in range(30):
            await until(lambda: link.connected and raw.listeners)
            lost = len(recorder.losses)
            first = attempt * 100
            frames = [make(first + number) for number in range(12)]
            frames[3] = frames[3][: rng.randrange(1, len(frames[3]))]
            raw.listeners[0].write(b"".join(frames))
            await until(lambda lost=lost: len(recorder.losses) > lost)
            assert isinstance(recorder.losses[-1][1], ProtocolError)
        told = sequences(recorder)
        assert told == [100 * attempt + number for attempt in range(30) for number in range(3)]


async def test_goodbye_and_the_events_behind_it(make_link: MakeLink, recorder: Any, until: Until) -> None:
    async with RawSwitch() as raw:
        link = make_link(raw.url)
        await until(lambda: link.connected and raw.listeners)
        (peer,) = raw.listeners
        peer.write(json_event(1) + notice(wire.GOODBYE) + json_event(2) + json_event(3))
        await peer.drain()
        peer.close()
        await until(lambda: link.reconnects == 1)
        assert sequences(recorder) == [1, 2, 3]
        assert [reason for reason, _ in recorder.losses] == ["disconnect"]


async def test_a_stall_longer_than_heartbeats(make_link: MakeLink, recorder: Any, until: Until) -> None:
    """Not a byte for longer than three HEARTBEATs, in the middle of an event: the half event is never told."""
    async with RawSwitch() as raw:
        link = make_link(raw.url, heartbeat_interval=0.1)
        await until(lambda: link.connected and raw.listeners)
        raw.listeners[0].write(json_event(1) + json_event(2)[:-10])
        await until(lambda: link.reconnects == 1)
        assert sequences(recorder) == [1]
        await until(lambda: raw.listeners)
        raw.listeners[-1].write(json_event(3))
        await until(lambda: recorder.gaps)
        assert {reason for reason, _ in recorder.losses} == {"heartbeat"}
        assert (recorder.gaps[0].before, recorder.gaps[0].after) == (f"{wire.CORE}:1", f"{wire.CORE}:3")


async def test_a_peer_whose_network_is_gone(
    switch: SimulatedSwitch, make_link: MakeLink, make_pool: MakePool, recorder: Any, until: Until, answers: Any
) -> None:
    """Half-open: no FIN, no RST, nothing. The link is given up for silence, no command waits past its deadline."""
    async with proxy_to(switch.port) as proxy:
        link = make_link(proxy.url, heartbeat_interval=0.2, connect_timeout=0.3)
        pool = make_pool(proxy.url, connect_timeout=0.3, command_timeout=0.5)
        await until(lambda: link.connected)
        assert (await pool.api("echo before", timeout=5)).text == "before"
        proxy.freeze()
        begun = time.monotonic()
        for number in range(40):
            pool.submit(b"api echo %d\n\n" % number, answers.take(number), deadline=pool.time() + 2.0)
        await until(lambda: len(answers) == 40)
        assert Counter(outcome[0].status for outcome in answers.by_key.values()).keys() <= {"timeout", "unsent"}
        assert time.monotonic() - begun < 10  # the deadline is 2 s; the machine may be slow
        await until(lambda: recorder.losses)
        assert recorder.losses[0][0] == "heartbeat"
        assert isinstance(recorder.losses[0][1], ConnectionLost)
        proxy.thaw()
        await until(lambda: link.connected)
        while True:
            outcome = await ask(pool, "echo after")
            if outcome.status == "reply":
                break
            assert outcome.status == "unsent"
        assert outcome.reply is not None
        assert outcome.reply.text == "after"
        assert all(len(told) == 1 or told[1].late for told in answers.by_key.values())


async def ask(pool: CommandPool, line: str) -> Outcome:
    future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
    pool.submit(f"api {line}\n\n".encode(), future.set_result, deadline=pool.time() + 5)
    return await future


@pytest.mark.parametrize(
    ("greeting", "reason"),
    [
        (b"", "timeout"),
        (b"Content-Type: text/rude-rejection\nContent-Length: 24\n\nAccess Denied, go away.\n", "access_denied"),
        (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", "protocol_error"),
        (wire.GREETING + wire.notice(wire.GOODBYE), "eof"),
    ],
    ids=["silent", "acl", "another service", "goodbye"],
)
async def test_many_nodes_with_a_dead_freeswitch_make_no_storm(recorder: Any, greeting: bytes, reason: str) -> None:
    """40 links to a host that takes connections and serves none: the attempts of each get rarer, none stops."""
    nodes = 40
    spans = {reason: Span(0.2, 60.0)}
    patience = 0.2 if reason == "timeout" else 5.0
    async with RawSwitch() as raw:
        raw.greeting = greeting
        raw.answer = lambda connection, command: b""
        links = [
            EventLink(f"fs{n}", EslUrl.parse(raw.url), recorder, connect_timeout=patience, backoff=Backoff(spans))
            for n in range(nodes)
        ]
        for link in links:
            link.start()
        await asyncio.sleep(2.5)
        for link in links:
            await link.stop()
        # 0.2, 0.4, 0.8, 1.6 s and their jitter (a half at least): no more than 5 fit into 2.5 s.
        assert nodes * 2 <= len(raw.accepted_at) <= nodes * 6
        assert {told for told, _ in recorder.losses} == {reason}


async def test_a_wrong_password_later_on(
    switch: SimulatedSwitch, make_link: MakeLink, make_pool: MakePool, recorder: Any, until: Until
) -> None:
    """The password is changed there while we are connected, and changed back: each is noticed, neither hammers."""
    link = make_link(switch.url)
    pool = make_pool(switch.url)
    await until(lambda: link.connected)
    await pool.api("echo x", timeout=5)
    url_password, switch.password = switch.password, "another"
    switch.drop_connections()
    await until(lambda: recorder.losses and recorder.losses[-1][0] == "auth_failed")
    outcome = await ask(pool, "echo x")
    assert outcome.status == "unsent"
    assert "ClueCon" not in str(outcome.error)
    made = switch.connections_made
    for _ in range(20):
        assert (await ask(pool, "echo x")).status == "unsent"
    assert switch.connections_made - made <= 2
    switch.password = url_password
    await until(lambda: link.connected)
    pool.node_up()
    assert (await ask(pool, "echo x")).status == "reply"


async def test_a_user_with_too_long_an_allow_list(make_link: MakeLink, recorder: Any, until: Until) -> None:
    user = User("secret", allowed_api=[f"command_number_{n}" for n in range(60)])
    async with SimulatedSwitch(users={"bridge@example.org": user}) as switch:
        link = make_link(f"fs://bridge%40example.org:secret@127.0.0.1:{switch.port}", connect_timeout=0.3)
        await until(lambda: recorder.losses)
        assert recorder.losses[0][0] == "timeout"
        assert "allow-list" in str(recorder.losses[0][1])
        await link.stop()


async def test_a_restart_while_the_link_was_away_is_told(make_link: MakeLink, recorder: Any, until: Until) -> None:
    async with RawSwitch() as raw:
        link = make_link(raw.url)
        await until(lambda: link.connected and raw.listeners)
        raw.core = wire.CORE.replace("1", "9")
        raw.listeners[0].close()
        await until(lambda: link.reconnects == 1)
        assert [change.restarted for change in recorder.changes if change.state is NodeState.UP] == [False, True]


async def test_replies_in_one_read_with_events_and_a_torn_end(make_pool: MakePool, answers: Any, until: Until) -> None:
    """Of four commands two are answered before the cut: these have their replies, the others are lost, at once."""

    def answer(connection: RawConnection, command: str) -> bytes | None:
        if command == "api d":
            connection.write(wire.api("a") + json_event(1) + wire.api("b") + wire.api("cc")[:-1])
            connection.close()
        return b"" if command.startswith("api ") and len(command) == 5 else None

    async with RawSwitch() as raw:
        raw.answer = answer
        pool = make_pool(raw.url, max_connections=1)
        assert (await ask(pool, "echo")).status == "reply"
        for word in "abcd":
            pool.submit(f"api {word}\n\n".encode(), answers.take(word), deadline=pool.time() + 20)
        await until(lambda: len(answers) == 4)
        assert [answers[word].status for word in "abcd"] == ["reply", "reply", "lost", "lost"]
        assert [answers[word].reply.text for word in "ab"] == ["a", "b"]


async def test_a_connection_that_dies_behind_a_reply_gets_no_further_command(
    make_pool: MakePool, answers: Any, until: Until, failures: list[Exception]
) -> None:
    """Reply and fault in one read: who waits is not written on a connection that has ended, and not lost with it."""
    async with RawSwitch() as switch:

        def answer(connection: RawConnection, command: str) -> bytes | None:
            if command.startswith("api") and connection is switch.connections[0]:
                return wire.api("first") + b"a block without a Content-Type\n\n"
            return None

        switch.answer = answer
        pool = make_pool(switch.url, max_connections=1, max_pipelined=1)
        deadline = asyncio.get_running_loop().time() + 3600
        for number in range(5):
            pool.submit(commands.api(f"echo {number}"), answers.take(number), deadline=deadline)
        await until(lambda: len(answers) == 5)
        assert [answers[number].reply.text for number in range(5)] == ["first", *(f"ran echo {n}" for n in range(1, 5))]
        assert failures == []
        assert pool.in_flight == 0


async def test_a_connection_that_said_goodbye_holds_nobody_up(
    make_pool: MakePool, answers: Any, until: Until, failures: list[Exception]
) -> None:
    """FreeSWITCH may close long after its goodbye; commands and jobs go on another connection meanwhile."""
    async with RawSwitch() as switch:

        def answer(connection: RawConnection, command: str) -> bytes | None:
            if command.startswith("api") and connection is switch.connections[0]:
                return wire.api("last words") + notice(wire.GOODBYE)
            return None

        switch.answer = answer
        pool = make_pool(switch.url, max_connections=1)
        assert (await pool.api("status", 5)).text == "last words"
        [dying] = pool._carriers.ready
        pool.submit_job("status", answers.take("job"), deadline=asyncio.get_running_loop().time() + 3600)
        assert (await pool.api("echo", 5)).text == "ran echo"
        assert dying in pool._carriers.ready  # its socket is open still
        await until(lambda: any(one.startswith("bgapi") for one in switch.connections[1].commands))
        assert failures == []


async def test_connections_of_many_nodes_share_their_memory(
    switch: SimulatedSwitch, make_link: MakeLink, until: Until
) -> None:
    """A link's read buffer is half a megabyte: a worker with hundreds of nodes does not pay it for each."""
    links = [make_link(switch.url) for _ in range(20)]
    await until(lambda: all(link.connected for link in links))
    connections = [one for one in gc.get_objects() if isinstance(one, Connection) and not one.closed]
    assert len(connections) >= 20
    assert len({id(one.get_buffer(-1).obj) for one in connections}) == 1
