"""Node values, back-off, failure classes, heartbeat watch, own commands: all that needs no socket."""

from __future__ import annotations

import random

import pytest

from bridge.errors import (
    AccessDenied,
    AuthenticationFailed,
    ConnectionLost,
    ConnectTimeout,
    InvalidCommand,
    NotConnected,
    ProtocolError,
)
from bridge.esl.event import Event
from bridge.esl.replies import Reply
from bridge.switch.backoff import LINK_SPANS, POOL_SPANS, Backoff
from bridge.switch.failures import failure_class
from bridge.switch.heartbeat import HeartbeatWatch, Verdict
from bridge.switch.node import NodeLoad
from bridge.switch.own_commands import OwnCommands
from bridge.switch.subscription import Purpose, Subscription, split_names

# --- load ---


def heartbeat(**headers: str) -> Event:
    pairs = {"Event-Name": "HEARTBEAT", "Event-Date-Timestamp": "1700000000000000"} | headers
    return Event.parse(("{" + ",".join(f'"{k}":"{v}"' for k, v in pairs.items()) + "}").encode())


def load(**headers: str) -> NodeLoad:
    return NodeLoad.of_heartbeat(heartbeat(**headers), received_at=100.0, unix_time=1700000000.5, interval=20.0)


def test_a_heartbeat_is_read() -> None:
    read = load(
        **{
            "Session-Count": "12",
            "Max-Sessions": "1000",
            "Session-Per-Sec": "30",
            "Session-Per-Sec-Last": "3",
            "Idle-CPU": "75.500000",
        }
    )
    assert (read.sessions, read.max_sessions, read.sessions_per_sec, read.sessions_per_sec_last) == (12, 1000, 30, 3)
    assert read.idle_cpu == 75.5
    assert read.delay == pytest.approx(0.5)


def test_a_stale_load_says_nothing() -> None:
    assert load().fresh(149.0)
    assert not load().fresh(151.0)


@pytest.mark.parametrize("text", ["", "nan", "inf", "many"])
def test_numbers_that_are_none_do_not_break_a_heartbeat(text: str) -> None:
    read = load(**{"Session-Count": text, "Idle-CPU": text})
    assert (read.sessions, read.idle_cpu) == (0, 100.0)


# --- back-off ---


def test_delays_grow_to_their_cap_and_are_jittered() -> None:
    backoff = Backoff(LINK_SPANS, random.Random(1))
    delays = [backoff.delay("eof") for _ in range(40)]
    for step, delay in enumerate(delays):
        whole = min(15.0, 0.25 * 2**step)
        assert whole / 2 <= delay <= whole
    assert len(set(delays)) == len(delays)


@pytest.mark.parametrize("reason", ["access_denied", "auth_failed"])
def test_what_only_an_operator_can_mend_waits_long(reason: str) -> None:
    assert Backoff(LINK_SPANS).delay(reason) >= 15.0
    assert Backoff(POOL_SPANS).delay(reason) >= 5.0


def test_classes_do_not_inherit_each_others_wait_and_success_forgets() -> None:
    backoff = Backoff()
    for _ in range(10):
        backoff.delay("refused")
    assert backoff.delay("eof") <= 0.25
    backoff.reset()
    assert backoff.failures("refused") == 0
    assert backoff.delay("refused") <= 0.5


# --- classes of failures ---


def caused(error: NotConnected, cause: Exception) -> NotConnected:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (ConnectTimeout(""), "timeout"),
        (AccessDenied(""), "access_denied"),
        (AuthenticationFailed(""), "auth_failed"),
        (ProtocolError(""), "protocol_error"),
        (ConnectionLost(""), "eof"),
        (caused(NotConnected(""), ConnectionRefusedError()), "refused"),
        (caused(NotConnected(""), FileNotFoundError()), "refused"),
        (caused(NotConnected(""), OSError("no route")), "unreachable"),
        (RuntimeError(), "unreachable"),
    ],
)
def test_every_failure_has_its_class(error: Exception, name: str) -> None:
    assert failure_class(error) == name


# --- heartbeats ---


def test_a_late_heartbeat_is_suspicious_and_silence_is_death() -> None:
    watch = HeartbeatWatch(10.0)
    watch.start(100.0)
    assert watch.verdict(114.9) is Verdict.FRESH
    assert watch.next_check(100.0) == 115.0
    assert watch.verdict(115.0) is Verdict.LATE
    assert watch.next_check(115.0) == 135.0
    assert watch.verdict(134.9) is Verdict.LATE
    assert watch.verdict(135.0) is Verdict.DEAD
    watch.beat(135.0)
    assert watch.verdict(135.0) is Verdict.FRESH


def test_any_byte_is_life_but_no_heartbeat() -> None:
    watch = HeartbeatWatch(10.0)
    watch.start(100.0)
    watch.last_byte = 130.0
    assert watch.verdict(135.0) is Verdict.LATE
    assert watch.verdict(165.0) is Verdict.DEAD


def test_the_interval_is_learned_and_one_lost_heartbeat_does_not_double_it() -> None:
    watch = HeartbeatWatch()
    watch.start(0.0)
    assert watch.interval == 20.0
    assert not watch.learned
    for second in (5, 10, 20, 25):
        watch.beat(float(second), 1_700_000_000_000_000 + second * 1_000_000)
    assert watch.interval == 5.0
    assert watch.learned


def test_the_interval_may_grow() -> None:
    watch = HeartbeatWatch()
    watch.start(0.0)
    for second in (5, 10, 70, 130, 190):
        watch.beat(float(second), 1_700_000_000_000_000 + second * 1_000_000)
    assert watch.interval == 60.0


def test_a_set_interval_is_not_learned_away() -> None:
    watch = HeartbeatWatch(30.0)
    watch.start(0.0)
    watch.beat(5.0, 1_000_000)
    watch.beat(10.0, 6_000_000)
    assert watch.interval == 30.0


def test_an_interval_that_was_only_assumed_gives_way() -> None:
    watch = HeartbeatWatch()
    for _ in range(10):
        watch.died()
    assert watch.interval == 300.0


def test_an_interval_that_was_learned_gives_way_to_a_longer_one() -> None:
    """FreeSWITCH was set to beat every 20 s instead of every second: no link would live to see two of them."""
    watch = HeartbeatWatch()
    watch.start(0.0)
    for second in (1, 2, 3, 4):
        watch.beat(float(second), 1_700_000_000_000_000 + second * 1_000_000)
    assert watch.interval == 1.0
    now, links = 4.0, 0
    while not (watch.learned and watch.interval == 20.0):
        links += 1
        assert links < 10, "it flaps for ever"
        watch.start(now)
        began = now
        for beat in range(20, 400, 20):
            if watch.verdict(began + beat) is Verdict.DEAD:
                watch.died()
                now = began + beat
                break
            watch.beat(began + beat, 1_700_000_000_000_000 + int(began + beat) * 1_000_000)
    assert links <= 5


def test_a_clock_that_is_set_back_makes_no_short_interval() -> None:
    """FreeSWITCH's clock went back by 19 s between two HEARTBEATs."""
    watch = HeartbeatWatch()
    watch.start(0.0)
    stamps = (20, 40, 41, 61, 81)
    for number, second in enumerate(stamps, 1):
        watch.beat(20.0 * number, 1_700_000_000_000_000 + second * 1_000_000)
        assert watch.interval == 20.0


def test_nor_do_heartbeats_that_waited_in_a_queue() -> None:
    watch = HeartbeatWatch()
    watch.start(0.0)
    for second in (20, 40, 60):
        watch.beat(60.0 + second / 1000, 1_700_000_000_000_000 + second * 1_000_000)
    assert watch.interval == 20.0


# --- own commands ---


def test_each_line_answers_once() -> None:
    own = OwnCommands()
    own.add_command(b"api status\n\n")
    own.add_command(b"bgapi show calls\nJob-UUID: x\n\n")
    own.add_command(b"sendmsg x\n\n")
    assert own.take("status", "")
    assert not own.take("status", "")
    assert own.take("show", "calls")
    assert not own.take("show", "channels")
    assert len(own) == 0


def test_a_command_that_did_not_run_has_no_event() -> None:
    own = OwnCommands()
    for command in (b"api status\n\n", b"api status\n\n", b"bgapi show calls\nJob-UUID: x\n\n"):
        own.add_command(command)
    for command in (b"api status\n\n", b"bgapi show calls\nJob-UUID: x\n\n", b"api other\n\n", b"sendmsg x\n\n"):
        own.withdraw_command(command)
    assert own.take("status", "")
    assert not own.take("status", "")
    assert not own.take("show", "calls")
    assert len(own) == 0


def test_a_taken_line_does_not_age_another_out() -> None:
    own = OwnCommands(limit=10)
    for _ in range(1000):
        own.add("status")
        assert own.take("status", "")
    own.add("status")
    assert own.take("status", "")


def test_the_oldest_are_forgotten() -> None:
    own = OwnCommands(limit=10)
    for number in range(100):
        own.add(f"echo {number}")
    assert len(own) == 10
    assert not own.take("echo", "89")
    assert own.take("echo", "90")


# --- subscriptions ---


def lines(subscription: Subscription) -> list[str]:
    return [step.command.decode().strip() for step in subscription.steps]


@pytest.mark.parametrize(
    "subscribe",
    [
        ["CHANNEL_ANSWER", "CUSTOM sofia::register conference::maintenance"],
        ["CUSTOM", "sofia::register", "conference::maintenance", "channel_answer".upper()],
        ["CUSTOM:sofia::register", "CUSTOM:conference::maintenance", "CHANNEL_ANSWER"],
        ["sofia::register", "channel_answer", "conference::maintenance"],
    ],
)
def test_subclasses_come_last_however_they_are_written(subscribe: list[str]) -> None:
    made = lines(Subscription(subscribe, (), "json", None))
    assert made[-1] == "event json CHANNEL_ANSWER CUSTOM sofia::register conference::maintenance"
    assert made[-2] == "event json HEARTBEAT"


def test_names_are_in_upper_case_and_unique() -> None:
    assert split_names(["channel_answer", "CHANNEL_ANSWER", "ALL"]) == (["CHANNEL_ANSWER", "ALL"], [])


def test_all_is_one_command_and_the_core_uuid_is_asked_before_it() -> None:
    assert lines(Subscription(["ALL"], (), "plain", "notice")) == [
        "log notice",
        "api global_getvar core_uuid",
        "event plain ALL",
    ]


def test_heartbeat_and_jobs_pass_the_filters() -> None:
    made = lines(Subscription(["ALL"], ["Unique-ID 4711", ("Event-Name", "CHANNEL_CREATE")], "json", None))
    assert made[:4] == [
        "filter Unique-ID 4711",
        "filter Event-Name CHANNEL_CREATE",
        "filter Event-Name HEARTBEAT",
        "filter Event-Name BACKGROUND_JOB",
    ]
    assert made[-1] == "event json ALL"
    unasked = Subscription(["CHANNEL_CREATE"], ["Unique-ID 4711"], "json", None)
    assert not any("BACKGROUND_JOB" in line for line in lines(unasked))
    assert not unasked.wants_heartbeat


def test_filters_that_only_exclude_let_the_rest_pass() -> None:
    made = lines(Subscription(["ALL"], ["Event-Name -RE_SCHEDULE"], "json", None))
    assert made[:2] == ["filter Event-Name -RE_SCHEDULE", "filter Event-Name /./"]


@pytest.mark.parametrize("line", ["Event-Name -HEARTBEAT", "event-name -heartbeat", "Event-Name - HeartBeat"])
def test_an_excluded_heartbeat_still_reaches_the_link(line: str) -> None:
    subscription = Subscription(["ALL"], [line], "json", None)
    assert not subscription.wants_heartbeat
    assert not any(line.startswith("filter") for line in lines(subscription))


def test_a_line_end_in_a_filter_is_refused_at_once() -> None:
    with pytest.raises(InvalidCommand):
        Subscription(["ALL"], ["Unique-ID 1\n\napi shutdown"], "json", None)


def test_only_what_the_operator_asked_for_must_be_permitted() -> None:
    denied = Reply("command", "-ERR permission denied", {})
    faults = {step.purpose: step.fault(denied) for step in Subscription(["DTMF"], ["A b"], "json", "info").steps}
    assert faults[Purpose.CORE_UUID] is None
    assert faults[Purpose.HEARTBEAT] is None
    assert "event json DTMF" in str(faults[Purpose.EVENTS])
    assert faults[Purpose.FILTER] is not None
    assert faults[Purpose.LOG] is not None
