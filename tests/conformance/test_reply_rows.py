"""The rows of the conformance table that are about whom an answer belongs to, jobs, and getting in."""

from __future__ import annotations

import pytest

from bridge.errors import AccessDenied, AuthenticationFailed, ConnectionLost, LimitExceeded, NotConnected
from bridge.esl import commands
from bridge.esl.event import Event
from bridge.esl.pending import JobTable
from bridge.esl.protocol import AuthRequested, CloseReason, Protocol, ReplyReceived, State

GREETING = b"Content-Type: auth/request\n\n"
ACCEPTED = b"Content-Type: command/reply\nReply-Text: +OK accepted\n\n"
GOODBYE = (
    b"Content-Type: text/disconnect-notice\nContent-Length: 67\n\n"
    b"Disconnected, goodbye.\nSee you at ClueCon! http://www.cluecon.com/\n"
)
REJECTION = b"Content-Type: text/rude-rejection\nContent-Length: 24\n\nAccess Denied, go away.\n"


def test_row_07_no_reply_is_no_output(feed, protocol, api_result):
    protocol.send(commands.api("global_getvar x"))
    (received,) = feed(protocol, api_result(b"-ERR no reply\n"))
    assert received.reply.no_output
    assert received.reply.error == "no reply"


def test_row_09_denied_api_keeps_the_order(feed, protocol, reply, api_result):
    first, second = protocol.send(commands.api("x"), "x"), protocol.send(commands.api("y"), "y")
    denied, result = feed(protocol, reply(b"-ERR permission denied") + api_result(b"why"))
    assert denied.pending is first
    assert denied.reply.denied
    assert not denied.reply.ok
    assert (result.pending, result.reply.text) == (second, "why")
    assert not result.reply.denied


def test_row_10_pipelined_with_events_between(feed, protocol, api_result, json_event):
    protocol.send(commands.api("a"), "a")
    protocol.send(commands.api("b"), "b")
    happened = feed(protocol, json_event("E1") + api_result(b"A") + json_event("E2") + api_result(b"B"))
    assert [o.name if isinstance(o, Event) else (o.pending.token, o.reply.text) for o in happened] == [
        "E1",
        ("a", "A"),
        "E2",
        ("b", "B"),
    ]


def test_row_11_late_reply_meets_its_tombstone(feed, protocol, api_result):
    a, b = protocol.send(commands.api("a"), "a"), protocol.send(commands.api("b"), "b")
    protocol.abandon(a)
    late, answer = feed(protocol, api_result(b"A") + api_result(b"B"))
    assert (late.pending, late.pending.abandoned, late.reply.text) == (a, True, "A")
    assert (answer.pending, answer.pending.abandoned, answer.reply.text) == (b, False, "B")


def test_row_12_reply_to_nothing(feed, protocol, reply, api_result):
    (closed,) = feed(protocol, api_result(b"x"))
    assert closed.reason is CloseReason.PROTOCOL_ERROR
    other = Protocol()
    other.receive_data(GREETING)
    (closed,) = feed(other, reply(b"+OK"))
    assert closed.reason is CloseReason.PROTOCOL_ERROR


def test_row_12_reply_to_what_was_not_written_yet(protocol, api_result):
    pending = protocol.send(commands.api("x"))
    (closed,) = protocol.receive_data(api_result(b"x"))
    assert (closed.reason, closed.lost, pending.sent) == (CloseReason.PROTOCOL_ERROR, [pending], False)


def test_row_13_job_registered_before_its_result(feed, protocol, json_event):
    jobs = JobTable()
    jobs.register("1a2b3c4d-0001", "caller")
    protocol.send(commands.bgapi("status", "1a2b3c4d-0001"))
    (event,) = feed(protocol, json_event("BACKGROUND_JOB", **{"Job-UUID": "1a2b3c4d-0001", "_body": "+OK\n"}))
    assert jobs.take(event.envelope.job_uuid) == "caller"
    assert event.body == "+OK\n"
    assert jobs.take(event.envelope.job_uuid) is None


def test_row_14_foreign_job_is_an_ordinary_event(feed, protocol, json_event):
    jobs = JobTable()
    jobs.register("ours", "caller")
    (event,) = feed(protocol, json_event("BACKGROUND_JOB", **{"Job-UUID": "theirs"}))
    assert isinstance(event, Event)
    assert jobs.foreign(event.envelope.job_uuid)
    assert jobs.take(event.envelope.job_uuid) is None
    assert len(jobs) == 1


def test_row_15_job_without_output(feed, protocol, json_event, plain_event):
    plain = plain_event(b"Event-Name: BACKGROUND_JOB\nJob-UUID: j\n\n")
    json = json_event("BACKGROUND_JOB", **{"Job-UUID": "j", "Content-Length": "0", "_body": ""})
    assert [event.body for event in feed(protocol, plain + json)] == ["", ""]


def test_row_16_disconnect_while_five_commands_and_three_jobs_pend(protocol):
    jobs = JobTable()
    for n in range(3):
        jobs.register(f"j{n}", f"job {n}")
    sent = [protocol.send(commands.api(f"c{n}"), n) for n in range(3)]
    protocol.data_to_send()
    unsent = [protocol.send(commands.api(f"c{n}"), n) for n in (3, 4)]
    protocol.receive_data(GOODBYE)
    (closed,) = protocol.receive_eof()
    assert closed.lost == sent + unsent
    assert [pending.sent for pending in closed.lost] == [True, True, True, False, False]
    assert isinstance(closed.error, ConnectionLost)
    assert jobs.clear() == ["job 0", "job 1", "job 2"]
    with pytest.raises(NotConnected):
        protocol.send(commands.api("x"))


def test_row_42_rude_rejection(feed):
    protocol = Protocol()
    (closed,) = feed(protocol, REJECTION + GOODBYE)
    assert closed.reason is CloseReason.ACCESS_DENIED
    assert isinstance(closed.error, AccessDenied)
    assert "apply-inbound-acl" in str(closed.error)


def test_row_43_wrong_password(feed, reply):
    protocol = Protocol()
    protocol.receive_data(GREETING)
    protocol.send(commands.auth("secret-password"))
    received, closed = feed(protocol, reply(b"-ERR invalid") + GOODBYE)
    assert isinstance(received, ReplyReceived)
    assert closed.reason is CloseReason.AUTH_FAILED
    assert isinstance(closed.error, AuthenticationFailed)
    assert "secret" not in str(closed.error)
    assert protocol.state is State.CLOSED


def test_row_44_userauth_reply_without_blank_line():
    protocol = Protocol()
    protocol.receive_data(GREETING)
    protocol.send(commands.userauth("u@d", "p"))
    protocol.data_to_send()
    assert protocol.hint == ""
    assert protocol.receive_data(ACCEPTED[:-1] + b"Allowed-Events: all\nAllowed-API: status,api_c") == []
    assert "allow-list" in protocol.hint
    assert protocol.state is State.AUTHENTICATING
    # and when another frame runs into it, nothing is taken for an answer
    (closed,) = protocol.receive_data(GOODBYE)
    assert closed.reason is CloseReason.PROTOCOL_ERROR


def test_row_45_second_auth_request(feed, protocol):
    (closed,) = feed(protocol, GREETING)
    assert closed.reason is CloseReason.PROTOCOL_ERROR
    other = Protocol()
    request, closed = feed(other, GREETING + GREETING)
    assert (request, closed.reason) == (AuthRequested(), CloseReason.PROTOCOL_ERROR)


@pytest.mark.parametrize(
    ("text", "status", "ok", "error"),
    [
        (b"+OK", "ok", True, ""),
        (b"+OK text", "ok", True, ""),
        (b"-ERR text", "error", False, "text"),
        (b"-ERR", "error", False, "unknown error"),
        (b"-USAGE: <x>", "usage", False, "-USAGE: <x>"),
        (b"bare text", "output", True, ""),
        (b"list:\n-ERR in the middle\n+OK", "output", True, ""),
        (b" -ERR", "output", True, ""),
        (b"", "output", True, ""),
    ],
)
def test_row_54_status_by_prefix(feed, protocol, api_result, text, status, ok, error):
    protocol.send(commands.api("x"))
    (received,) = feed(protocol, api_result(text))
    assert (received.reply.status, received.reply.ok, received.reply.error) == (status, ok, error)
    assert received.reply.text == text.decode()


@pytest.mark.parametrize("body", [b"", b"x", b"\n", b"-"])
def test_row_55_tiny_answers(feed, protocol, api_result, body):
    protocol.send(commands.api("x"))
    protocol.send(commands.noevents())
    protocol.send(commands.noevents())
    result, empty, missing = feed(
        protocol,
        api_result(body) + b"Content-Type: command/reply\nReply-Text: \n\n" + b"Content-Type: command/reply\n\n",
    )
    assert result.reply.text == body.decode()
    assert (empty.reply.text, missing.reply.text) == ("", "")
    for received in (result, empty, missing):
        assert received.reply.status == "output"
        assert received.reply.error == ""
        assert not received.reply.denied


def test_pending_replies_are_bounded():
    protocol = Protocol(max_pending=3)
    slots = [protocol.send(commands.api("x")) for _ in range(3)]
    for slot in slots:
        protocol.abandon(slot)
    with pytest.raises(LimitExceeded):
        protocol.send(commands.api("x"))
    assert protocol.pending == 3
    assert protocol.data_to_send() == b"api x\n\n" * 3
