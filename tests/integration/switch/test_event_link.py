"""The event link over a real socket: subscribed, watched, made anew, every loss told with its class."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from bridge.errors import AccessDenied, AuthenticationFailed, CommandTimeout, NotPermitted, ProtocolError
from bridge.simulator import SimulatedSwitch, User
from bridge.switch.backoff import Backoff, Span
from bridge.switch.connection import EVENT_BUFFER
from bridge.switch.event_link import EventLink
from bridge.switch.node import NodeState
from bridge.switch.own_commands import OwnCommands

MakeLink = Callable[..., EventLink]
Until = Callable[[Callable[[], Any]], Awaitable[None]]


async def test_it_comes_up_in_order(switch: SimulatedSwitch, make_link: MakeLink, recorder: Any, until: Until) -> None:
    before = time.time()
    link = make_link(switch.url)
    await until(lambda: link.state is NodeState.UP)
    switch.fire("CHANNEL_CREATE", {"Unique-ID": "1"})
    await until(lambda: recorder.seen)
    assert [what if what != "node" else str(value.state) for what, value in recorder.all[:5]] == [
        "CONNECTING",
        "SYNCING",
        "up",
        "UP",
        "event",
    ]
    assert recorder.ups[0][0] == link.core_uuid == switch.core_uuid
    assert before <= recorder.ups[0][1] <= time.time()
    assert not any(change.restarted for change in recorder.changes)
    assert recorder.gaps == []
    assert link.connected
    assert link.reconnects == 0
    assert link.last_event_at >= before


async def test_every_event_once_and_in_order(
    switch: SimulatedSwitch, make_link: MakeLink, recorder: Any, until: Until
) -> None:
    link = make_link(switch.url)
    await until(lambda: link.connected)
    sent = [switch.fire("DTMF", {"Number": str(number)}) for number in range(5000)]
    await until(lambda: len(recorder.seen) >= len(sent))
    assert [event["Number"] for event in recorder.seen] == [str(number) for number in range(5000)]


@pytest.mark.parametrize("format", ["json", "plain"])
async def test_formats(switch: SimulatedSwitch, make_link: MakeLink, recorder: Any, until: Until, format: str) -> None:
    link = make_link(switch.url, format=format)
    await until(lambda: link.connected)
    switch.fire("CUSTOM", {"a": "1 2:3"}, "body\n", "sofia::register")
    await until(lambda: recorder.seen)
    (event,) = recorder.seen
    assert (event.format, event["a"], event.body, event.subclass) == (format, "1 2:3", "body\n", "sofia::register")


async def test_it_knows_that_something_waits_in_its_socket(
    switch: SimulatedSwitch, make_link: MakeLink, recorder: Any, until: Until
) -> None:
    link = make_link(switch.url)
    await until(lambda: link.connected)
    await until(lambda: not link.unread)
    session = link._session
    assert session is not None
    assert session.connection is not None
    assert session.connection._transport is not None
    session.connection._transport.pause_reading()
    switch.fire("DTMF", {"Number": "1"})
    await until(lambda: link.unread)
    session.connection._transport.resume_reading()
    await until(lambda: recorder.seen and not link.unread)


async def test_it_rests_after_a_full_read_for_as_long_as_it_is_told(
    switch: SimulatedSwitch, make_link: MakeLink, recorder: Any, until: Until
) -> None:
    asked: list[int] = []
    seen: list[int] = []

    def pause(size: int) -> float:
        asked.append(size)
        seen.append(len(recorder.seen))
        return 0.05

    link = make_link(switch.url, pause=pause)
    await until(lambda: link.connected)
    for number in range(3_000):
        switch.fire("DTMF", {"Number": str(number), "Filling": "x" * 500})
    await until(lambda: asked)
    for _ in range(5):
        await asyncio.sleep(0)
    assert len(recorder.seen) == seen[0] < 3_000
    await until(lambda: len(recorder.seen) >= 3_000)
    assert [event["Number"] for event in recorder.seen] == [str(number) for number in range(3_000)]
    assert min(asked) > EVENT_BUFFER // 4, "asked only where more may wait"
    assert seen == sorted(seen)


async def test_subscription_and_filters_are_restored_before_up(
    switch: SimulatedSwitch, make_link: MakeLink, recorder: Any, until: Until
) -> None:
    link = make_link(switch.url, subscribe=["DTMF", "CUSTOM a::b"], filters=["Wanted yes"])

    async def check(times: int) -> None:
        await until(lambda: link.state is NodeState.UP and len(recorder.ups) == times)
        for wanted in ("yes", "no"):
            switch.fire("DTMF", {"Wanted": wanted})
            switch.fire("CUSTOM", {"Wanted": wanted}, None, "a::b")
            switch.fire("CHANNEL_CREATE", {"Wanted": wanted})
        await until(lambda: len(recorder.seen) >= 2 * times)
        assert recorder.names() == ["DTMF", "CUSTOM"] * times
        assert {event["Wanted"] for event in recorder.seen} == {"yes"}

    await check(1)
    switch.drop_connections()
    await check(2)
    assert len(switch.connections) == 1


async def test_heartbeats_are_kept_from_those_who_did_not_ask(
    switch: SimulatedSwitch, make_link: MakeLink, recorder: Any, until: Until
) -> None:
    link = make_link(switch.url, subscribe=["DTMF"])
    await until(lambda: link.connected)
    switch.heart.beat()
    switch.fire("DTMF")
    await until(lambda: recorder.seen)
    assert recorder.names() == ["DTMF"]
    assert link.load is not None
    assert link.load.max_sessions == 10_000


async def test_heartbeats_pass_a_filter(switch: SimulatedSwitch, make_link: MakeLink, until: Until) -> None:
    link = make_link(switch.url, filters=["Unique-ID 4711"])
    await until(lambda: link.connected)
    switch.heart.beat()
    await until(lambda: link.load)


async def test_log_lines(switch: SimulatedSwitch, make_link: MakeLink, recorder: Any, until: Until) -> None:
    link = make_link(switch.url, log_level="debug")
    await until(lambda: link.connected)
    for connection in switch.connections:
        connection.offer_log(
            b"Content-Type: log/data\nContent-Length: 5\nLog-Level: 6\nText-Channel: 0\nLog-File: a.c\n"
            b"Log-Func: f\nLog-Line: 12\nUser-Data: \n\nhello"
        )
    await until(lambda: recorder.logs)
    assert [(line.level, line.text, line.file, line.line) for line in recorder.logs] == [(6, "hello", "a.c", 12)]


# --- losses ---


async def test_a_loss_is_a_gap_with_both_identities(
    switch: SimulatedSwitch, make_link: MakeLink, recorder: Any, until: Until
) -> None:
    link = make_link(switch.url)
    await until(lambda: link.connected)
    first = switch.fire("DTMF")
    await until(lambda: recorder.seen)
    started = time.time()
    switch.drop_connections()
    await until(lambda: link.state is NodeState.DOWN)
    switch.fire("DTMF")  # nobody hears this one
    await until(lambda: link.connected)
    switch.fire("DTMF")
    await until(lambda: len(recorder.seen) == 2)
    (gap,) = recorder.gaps
    assert (gap.before, gap.after) == (recorder.seen[0].identity, recorder.seen[1].identity)
    assert gap.before == f"{switch.core_uuid}:{first.header('Event-Sequence')}"
    assert gap.start <= started + 0.1
    assert gap.start <= gap.end == recorder.ups[1][1]
    kinds = [what for what, _ in recorder.all]
    assert kinds.index("gap") < len(kinds) - 1 - kinds[::-1].index("event")  # told before the new link's events
    assert link.reconnects == 1


async def test_a_gap_does_not_wait_for_an_event(
    switch: SimulatedSwitch, make_link: MakeLink, recorder: Any, until: Until
) -> None:
    link = make_link(switch.url)
    await until(lambda: link.connected)
    switch.drop_connections()
    await until(lambda: recorder.gaps)
    assert (recorder.gaps[0].before, recorder.gaps[0].after) == ("", "")


LOSSES: list[tuple[str, Callable[[SimulatedSwitch], Any]]] = [
    ("eof", lambda switch: switch.drop_connections()),
    ("disconnect", lambda switch: switch.say_goodbye()),
    ("lost_events", lambda switch: switch.kill_listeners()),
    ("shutdown", lambda switch: switch.shut_down()),
    ("protocol_error", lambda switch: (switch.faults.add("stray_reply"), switch.fire("DTMF"))),
    ("eof", lambda switch: (switch.faults.add("close"), switch.fire("DTMF"))),
    ("lost_events", lambda switch: (switch.faults.add("torn_notice"), switch.fire("DTMF"))),
]


@pytest.mark.parametrize(("reason", "happen"), LOSSES, ids=[f"{n}-{reason}" for n, (reason, _) in enumerate(LOSSES)])
async def test_every_loss_has_its_class_and_the_link_comes_back(
    switch: SimulatedSwitch,
    make_link: MakeLink,
    recorder: Any,
    until: Until,
    reason: str,
    happen: Callable[[SimulatedSwitch], Any],
) -> None:
    link = make_link(switch.url)
    await until(lambda: link.connected)
    happen(switch)
    await until(lambda: link.reconnects == 1)
    assert [lost for lost, _ in recorder.losses] == [reason]
    down = next(change for change in recorder.changes if change.state is NodeState.DOWN)
    assert down.reason.startswith(f"{reason}: ")
    assert recorder.states()[-4:] == ["DOWN", "CONNECTING", "SYNCING", "UP"]
    assert "DTMF" not in recorder.names() or reason == "protocol_error"  # no half event


async def test_an_absent_node_is_tried_again_without_noise(
    switch: SimulatedSwitch, make_link: MakeLink, recorder: Any, until: Until
) -> None:
    url = switch.url
    await switch.stop()
    link = make_link(url)
    await until(lambda: len(recorder.losses) >= 5)
    assert {reason for reason, _ in recorder.losses} == {"refused"}
    assert recorder.states() == ["CONNECTING", "DOWN"]
    await switch.start()
    await until(lambda: link.connected)
    assert recorder.states() == ["CONNECTING", "DOWN", "SYNCING", "UP"]


async def test_a_wrong_password_is_no_tight_loop(
    switch: SimulatedSwitch, make_link: MakeLink, recorder: Any, until: Until
) -> None:
    make_link(f"fs://:wrong@127.0.0.1:{switch.port}", backoff=Backoff())
    await until(lambda: recorder.losses)
    await asyncio.sleep(0.5)
    ((reason, error),) = recorder.losses
    assert switch.connections_made == 1
    assert reason == "auth_failed"
    assert isinstance(error, AuthenticationFailed)
    assert "wrong" not in recorder.changes[-1].reason.replace("wrong password", "")


async def test_the_acl_is_no_tight_loop(make_link: MakeLink, recorder: Any, until: Until) -> None:
    async with SimulatedSwitch(deny=True) as switch:
        link = make_link(switch.url, backoff=Backoff())
        await until(lambda: recorder.losses)
        await asyncio.sleep(0.5)
        ((reason, error),) = recorder.losses
        assert switch.connections_made == 1
        assert reason == "access_denied"
        assert isinstance(error, AccessDenied)
        await link.stop()


async def test_reconnects_do_not_storm(switch: SimulatedSwitch, make_link: MakeLink, recorder: Any) -> None:
    """A switch that kills every link at its first event: each attempt waits longer than the one before."""
    switch.faults.add("lost_events/1")
    make_link(switch.url, backoff=Backoff({"lost_events": Span(0.05, 60.0)}))
    end = time.monotonic() + 2
    while time.monotonic() < end:
        switch.fire("DTMF")
        await asyncio.sleep(0.005)
    # 0.05, 0.1, 0.2, 0.4, 0.8 and their jitter: 7 attempts fit into 2 s at the most.
    assert 3 <= switch.connections_made <= 8
    assert len(recorder.losses) in (switch.connections_made, switch.connections_made - 1)


async def test_a_link_that_is_cut_again_and_again_comes_back_quickly(
    switch: SimulatedSwitch, make_link: MakeLink, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link that was UP for longer than it was waited for is no storm: each loss is a new story."""
    monkeypatch.setattr("bridge.switch.event_link._STABLE_AT_LEAST", 0.1)
    backoff = Backoff({"eof": Span(0.02, 60.0)})
    link = make_link(switch.url, backoff=backoff)
    for cut in range(6):
        await until(lambda cut=cut: link.connected and link.reconnects == cut)
        await asyncio.sleep(0.15)
        switch.drop_connections()
        await until(lambda: not link.connected)
        assert backoff.failures("eof") == 1


async def test_a_switch_that_is_silent_after_accepting(make_link: MakeLink, recorder: Any, until: Until) -> None:
    async with SimulatedSwitch() as switch:
        switch.faults.add("silent")
        link = make_link(switch.url, connect_timeout=0.1)
        await until(lambda: link.connected)
        assert [reason for reason, _ in recorder.losses] == ["timeout"]


async def test_subscriptions_that_are_never_confirmed(
    switch: SimulatedSwitch, make_link: MakeLink, recorder: Any, until: Until
) -> None:
    switch.faults.add("slow_api:60s")
    link = make_link(switch.url, command_timeout=0.2)
    await until(lambda: link.connected)
    ((reason, error),) = recorder.losses
    assert reason == "timeout"
    assert isinstance(error, CommandTimeout)


async def test_a_restart_is_told(switch: SimulatedSwitch, make_link: MakeLink, recorder: Any, until: Until) -> None:
    link = make_link(switch.url)
    await until(lambda: link.connected)
    old = switch.core_uuid
    await switch.restart()
    await until(lambda: link.reconnects == 1)
    assert recorder.losses[0][0] == "shutdown"
    assert [change.restarted for change in recorder.changes if change.state is NodeState.UP] == [False, True]
    assert recorder.ups[1][0] == link.core_uuid == switch.core_uuid != old


async def test_garbage_closes_that_connection_only(
    switch: SimulatedSwitch, make_link: MakeLink, recorder: Any, until: Until
) -> None:
    link = make_link(switch.url)
    await until(lambda: link.connected)
    switch.faults.add("garbage:4000")
    for _ in range(3):
        switch.fire("DTMF")
    await until(lambda: recorder.losses or len(recorder.seen) == 3)
    if recorder.losses:
        assert isinstance(recorder.losses[0][1], ProtocolError)
    await until(lambda: link.connected)


# --- what the handler and the operator do ---


async def test_a_failing_handler_is_reported_and_kills_nothing(
    switch: SimulatedSwitch, make_link: MakeLink, recorder: Any, until: Until, failures: list[Exception]
) -> None:
    seen: list[str] = []

    class Failing(type(recorder)):  # type: ignore[misc]
        def events(self, events: Any) -> None:
            seen.extend(event.name for event in events)
            raise ZeroDivisionError

        def node_changed(self, change: Any) -> None:
            raise KeyError

    link = make_link(switch.url, handler=Failing())
    await until(lambda: link.connected)
    switch.fire("DTMF")
    await until(lambda: len(seen) == 1)
    switch.fire("DTMF")
    await until(lambda: len(seen) == 2)
    assert link.reconnects == 0
    assert {type(error) for error in failures} == {ZeroDivisionError, KeyError}


async def test_draining(switch: SimulatedSwitch, make_link: MakeLink, recorder: Any, until: Until) -> None:
    link = make_link(switch.url)
    await until(lambda: link.connected)
    link.drain(True)
    assert link.state is NodeState.DRAINING
    switch.drop_connections()
    await until(lambda: link.reconnects == 1)
    assert link.state is NodeState.DRAINING
    link.drain(False)
    assert link.state is NodeState.UP


async def test_stopping_ends_the_connection_and_tells_nothing(
    switch: SimulatedSwitch, make_link: MakeLink, recorder: Any, until: Until
) -> None:
    link = make_link(switch.url)
    await until(lambda: link.connected)
    told = len(recorder.all)
    await link.stop()
    await until(lambda: not switch.connections)
    switch.fire("DTMF")
    assert len(recorder.all) == told
    assert not link.connected


async def test_own_api_events_are_suppressed(
    switch: SimulatedSwitch, make_link: MakeLink, recorder: Any, until: Until
) -> None:
    own = OwnCommands()
    link = make_link(switch.url, own_commands=own)
    await until(lambda: link.connected)
    own.add("status")
    switch.fire("CUSTOM", subclass="before")
    switch.fire("API", {"API-Command": "status"})
    switch.fire("API", {"API-Command": "status"})  # somebody else's
    switch.fire("DTMF")
    await until(lambda: "DTMF" in recorder.names())
    assert recorder.names() == ["CUSTOM", "API", "DTMF"]
    # Another worker's link has it: it is told where it would have been.
    (before, foreign, _) = recorder.seen
    core, _, number = foreign.identity.partition(":")
    assert recorder.left_out == [(f"{core}:{int(number) - 1}", before.identity)]


# --- restricted users ---


def userauth(switch: SimulatedSwitch, name: str = "bridge@example.org") -> str:
    return f"fs://{name}:secret@127.0.0.1:{switch.port}"


async def test_what_was_written_before_a_loss_hides_no_event_after_it(
    switch: SimulatedSwitch, make_link: MakeLink, recorder: Any, until: Until
) -> None:
    """Its own event was lost with the link: the same line of somebody else is told."""
    own = OwnCommands()
    link = make_link(switch.url, own_commands=own)
    await until(lambda: link.connected)
    own.add("status")
    switch.drop_connections()
    await until(lambda: link.reconnects == 1)
    switch.fire("API", {"API-Command": "status"})
    await until(lambda: any(event.get("API-Command") == "status" for event in recorder.seen))


async def test_a_user_without_api_learns_the_core_uuid_from_the_first_event(
    make_link: MakeLink, recorder: Any, until: Until
) -> None:
    async with SimulatedSwitch(users={"bridge@example.org": User("secret", allowed_api=[])}) as switch:
        link = make_link(userauth(switch))
        await until(lambda: link.state is NodeState.SYNCING and any("event json ALL" in r for r in switch.received))
        switch.fire("DTMF")
        await until(lambda: link.state is NodeState.UP)
        assert recorder.ups[0][0] == switch.core_uuid
        assert recorder.names() == ["DTMF"]
        await link.stop()


async def test_a_user_without_heartbeat_is_probed(make_link: MakeLink, recorder: Any, until: Until) -> None:
    user = User("secret", allowed_events=["DTMF"])
    async with SimulatedSwitch(users={"bridge@example.org": user}) as switch:
        link = make_link(userauth(switch), subscribe=["DTMF"], heartbeat_interval=0.1)
        await until(lambda: list(switch.received).count("ping") >= 8)
        assert recorder.losses == []
        assert "SUSPECT" not in recorder.states()
        assert list(switch.received).count("event json HEARTBEAT") == 1
        # And when nothing answers any more:
        (connection,) = switch.connections
        connection.stall(3600)
        await until(lambda: recorder.losses)
        assert recorder.losses[0][0] == "heartbeat"
        assert "SUSPECT" in recorder.states()
        await link.stop()


async def test_silence_after_a_probe_says_nothing_of_the_interval(
    make_link: MakeLink, recorder: Any, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was doubled at each death, and no HEARTBEAT could correct it: at last a silence took 17 minutes to notice."""
    monkeypatch.setattr("bridge.switch.heartbeat.DEFAULT_INTERVAL", 0.05)
    user = User("secret", allowed_events=["DTMF"])
    async with SimulatedSwitch(users={"bridge@example.org": user}) as switch:
        link = make_link(userauth(switch), subscribe=["DTMF"])
        for deaths in (1, 2, 3):
            probed = list(switch.received).count("ping")
            await until(lambda so_far=probed: list(switch.received).count("ping") > so_far)
            for connection in list(switch.connections):
                connection.stall(3600)
            await until(lambda number=deaths: [reason for reason, _ in recorder.losses].count("heartbeat") == number)
            assert link.heartbeat_interval == 0.05
            await until(lambda: link.connected)
        await link.stop()


async def test_what_the_operator_asked_for_must_be_permitted(make_link: MakeLink, recorder: Any, until: Until) -> None:
    user = User("secret", allowed_events=["HEARTBEAT"])
    async with SimulatedSwitch(users={"bridge@example.org": user}) as switch:
        link = make_link(userauth(switch), subscribe=["DTMF"])
        await until(lambda: recorder.losses)
        reason, error = recorder.losses[0]
        assert reason == "setup_denied"
        assert isinstance(error, NotPermitted)
        assert "event json DTMF" in str(error)
        assert "UP" not in recorder.states()
        await link.stop()


# --- liveness ---


async def test_a_late_heartbeat_makes_it_suspect_and_the_next_one_up(
    make_link: MakeLink, recorder: Any, until: Until
) -> None:
    async with SimulatedSwitch(heartbeat_interval=3600) as switch:
        link = make_link(switch.url, heartbeat_interval=0.2)
        await until(lambda: link.connected)
        await until(lambda: switch.fire("DTMF") and link.state is NodeState.SUSPECT)
        assert link.connected
        switch.heart.beat()
        await until(lambda: link.state is NodeState.UP)
        assert recorder.changes[-1].reason == "heartbeat"
        assert recorder.losses == []
        await link.stop()


async def test_other_events_keep_a_suspect_alive(make_link: MakeLink, recorder: Any, until: Until) -> None:
    async with SimulatedSwitch(heartbeat_interval=3600) as switch:
        link = make_link(switch.url, heartbeat_interval=0.1)
        await until(lambda: link.connected)
        end = time.monotonic() + 0.8
        while time.monotonic() < end:
            switch.fire("DTMF")
            await asyncio.sleep(0.01)
        assert link.state is NodeState.SUSPECT
        assert recorder.losses == []
        await link.stop()


async def test_three_missed_heartbeats_end_the_link(make_link: MakeLink, recorder: Any, until: Until) -> None:
    async with SimulatedSwitch(heartbeat_interval=3600) as switch:
        link = make_link(switch.url, heartbeat_interval=0.1)
        await until(lambda: recorder.losses)
        assert recorder.losses[0][0] == "heartbeat"
        assert recorder.states()[:5] == ["CONNECTING", "SYNCING", "UP", "SUSPECT", "DOWN"]
        await until(lambda: link.reconnects)
        await link.stop()


async def test_the_interval_is_learned(make_link: MakeLink, until: Until) -> None:
    async with SimulatedSwitch(heartbeat_interval=0.15) as switch:
        link = make_link(switch.url)
        assert link.heartbeat_interval == 20.0
        await until(lambda: link.heartbeat_interval < 1.0)
        assert link.heartbeat_interval > 0.05
        switch.faults.add("no_heartbeat/1")
        await until(lambda: link.reconnects)
        await link.stop()


async def test_an_injected_heartbeat_is_no_sign_of_life(
    switch: SimulatedSwitch, make_link: MakeLink, recorder: Any, until: Until
) -> None:
    link = make_link(switch.url)
    await until(lambda: link.connected)
    switch.fire("HEARTBEAT", {"Command": "sendevent HEARTBEAT", "Session-Count": "99999"})
    await until(lambda: "HEARTBEAT" in recorder.names())
    assert link.load is None
