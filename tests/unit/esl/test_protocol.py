from __future__ import annotations

import pytest

from bridge.errors import AuthenticationFailed, ConnectionLost, NotConnected, ProtocolError
from bridge.esl import commands
from bridge.esl.protocol import (
    AuthRequested,
    Closed,
    CloseReason,
    EventSkipped,
    Notice,
    Protocol,
    ReplyReceived,
    State,
    UnknownFrame,
)

GREETING = b"Content-Type: auth/request\n\n"
ACCEPTED = b"Content-Type: command/reply\nReply-Text: +OK accepted\n\n"
BYE = b"Content-Type: command/reply\nReply-Text: +OK bye\n\n"
EVENT = b'Content-Length: 18\nContent-Type: text/event-json\n\n{"Event-Name":"X"}'
GOODBYE = (
    b"Content-Type: text/disconnect-notice\nContent-Length: 67\n\n"
    b"Disconnected, goodbye.\nSee you at ClueCon! http://www.cluecon.com/\n"
)


@pytest.fixture
def protocol() -> Protocol:
    protocol = Protocol()
    protocol.receive_data(GREETING)
    protocol.send(commands.auth("x"))
    protocol.data_to_send()
    protocol.receive_data(ACCEPTED)
    return protocol


def test_the_way_in():
    protocol = Protocol()
    assert protocol.state is State.GREETING
    assert protocol.receive_data(GREETING) == [AuthRequested()]
    assert protocol.state is State.AUTHENTICATING
    pending = protocol.send(commands.auth("ClueCon"), "token")
    assert (pending.command, pending.token, pending.sent) == ("auth", "token", False)
    assert protocol.data_to_send() == b"auth ClueCon\n\n"
    assert pending.sent
    (received,) = protocol.receive_data(ACCEPTED)
    assert received.pending is pending
    assert protocol.state is State.READY
    assert protocol.pending == 0


def test_commands_leave_in_order_and_once(protocol):
    protocol.send(commands.api("a"))
    protocol.send(commands.api("b"))
    assert protocol.data_to_send() == b"api a\n\napi b\n\n"
    assert protocol.data_to_send() == b""
    assert protocol.pending == 2


def test_a_command_before_auth_is_refused_by_the_peer_only():
    protocol = Protocol()
    protocol.receive_data(GREETING)
    protocol.send(commands.api("status"))
    protocol.data_to_send()
    (received,) = protocol.receive_data(b"Content-Type: command/reply\nReply-Text: -ERR command not found\n\n")
    assert received.reply.denied
    assert protocol.state is State.AUTHENTICATING


@pytest.mark.parametrize("text", [b"-ERR invalid", b"-ERR command not found", b"", b"strange"])
def test_any_other_answer_to_auth_fails(text):
    protocol = Protocol()
    protocol.receive_data(GREETING)
    waiting = protocol.send(commands.auth("x")), protocol.send(commands.api("status"))
    protocol.data_to_send()
    received, closed = protocol.receive_data(b"Content-Type: command/reply\nReply-Text: " + text + b"\n\n")
    assert received.pending is waiting[0]
    assert (closed.reason, closed.lost) == (CloseReason.AUTH_FAILED, [waiting[1]])
    assert isinstance(closed.error, AuthenticationFailed)


@pytest.mark.parametrize(
    "frame", [EVENT, b"Content-Type: log/data\nContent-Length: 1\n\nx", ACCEPTED, b"Content-Type: text/html\n\n"]
)
def test_not_an_event_socket(frame):
    (closed,) = Protocol().receive_data(frame)
    assert closed.reason is CloseReason.PROTOCOL_ERROR


@pytest.mark.parametrize("frame", [EVENT, b"Content-Type: api/response\nContent-Length: 1\n\nx"])
def test_nothing_but_the_answer_comes_before_authentication(frame):
    protocol = Protocol()
    protocol.receive_data(GREETING)
    protocol.send(commands.auth("x"))
    protocol.data_to_send()
    (closed,) = protocol.receive_data(frame)
    assert closed.reason is CloseReason.PROTOCOL_ERROR


def test_exit_is_our_own_end(protocol):
    protocol.send(commands.exit_())
    protocol.data_to_send()
    bye, notice = protocol.receive_data(BYE + GOODBYE)
    assert isinstance(bye, ReplyReceived)
    assert isinstance(notice, Notice)
    assert protocol.receive_eof()[0].reason is CloseReason.LOCAL


def test_close_by_us_tells_who_loses_a_reply(protocol):
    pending = protocol.send(commands.api("x"))
    (closed,) = protocol.close()
    assert (closed.reason, closed.lost, protocol.state) == (CloseReason.LOCAL, [pending], State.CLOSED)
    assert isinstance(closed.error, ConnectionLost)
    assert protocol.close() == protocol.receive_eof() == protocol.receive_data(EVENT) == []
    assert protocol.data_to_send() == b""
    assert protocol.closed
    with pytest.raises(NotConnected):
        protocol.send(commands.api("x"))


def test_close_with_a_reason(protocol):
    error = ProtocolError("late heartbeat")
    (closed,) = protocol.close(CloseReason.PROTOCOL_ERROR, error)
    assert (closed.reason, closed.error) == (CloseReason.PROTOCOL_ERROR, error)


def test_a_second_notice_does_not_replace_the_first_reason(protocol):
    killed = b"Content-Type: text/disconnect-notice\nContent-Length: 39\n\nkilled listener because of lost events\n"
    protocol.receive_data(killed + GOODBYE)
    assert protocol.receive_eof()[0].reason is CloseReason.LOST_EVENTS


def test_replies_still_come_after_the_notice(protocol):
    pending = protocol.send(commands.api("x"))
    protocol.data_to_send()
    _, received = protocol.receive_data(GOODBYE + b"Content-Type: api/response\nContent-Length: 1\n\nx")
    assert received.pending is pending
    assert protocol.receive_eof()[0].lost == []


def test_eof_names_how_far_the_frame_had_come(protocol):
    protocol.receive_data(EVENT[:-3])
    assert protocol.mid_frame
    (closed,) = protocol.receive_eof()
    assert "15 of 18 body bytes" in str(closed.error)


def test_eof_before_the_greeting():
    (closed,) = Protocol().receive_eof()
    assert closed.reason is CloseReason.EOF


def test_limits_reach_the_parser():
    protocol = Protocol(max_head=40, max_body=5)
    protocol.receive_data(GREETING)
    (closed,) = protocol.receive_data(b"Content-Type: x\nContent-Length: 6\n\n")
    assert isinstance(closed, Closed)
    assert closed.reason is CloseReason.PROTOCOL_ERROR


def test_what_is_too_large_to_be_kept_is_told(authenticated_with):
    protocol = authenticated_with(max_body=20, max_skipped=100)
    pending = [protocol.send(commands.api(one)) for one in ("a", "b")]
    protocol.data_to_send()
    api, event = b"Content-Type: api/response\n", b"Content-Type: text/event-json\n"
    large = b"Content-Length: 50\n\n" + b"x" * 50
    told = protocol.receive_data(api + large + event + large + b"Content-Type: a/b\n" + large)
    assert told[0].pending is pending[0]
    assert (told[0].reply.skipped, told[0].reply.text) == (50, "")
    assert told[1:] == [EventSkipped(50), UnknownFrame("a/b")]
    assert protocol.state is State.READY
    (closed,) = protocol.receive_data(b"Content-Type: command/reply\nReply-Text: +OK\n" + large)
    assert (closed.reason, closed.lost) == (CloseReason.PROTOCOL_ERROR, [pending[1]])


def test_a_reply_to_nothing_is_none_however_large(authenticated_with):
    protocol = authenticated_with(max_body=20, max_skipped=100)
    (closed,) = protocol.receive_data(b"Content-Type: api/response\nContent-Length: 50\n\n" + b"x" * 50)
    assert closed.reason is CloseReason.PROTOCOL_ERROR


@pytest.fixture
def authenticated_with():
    def make(**limits):
        protocol = Protocol(**limits)
        protocol.receive_data(GREETING)
        protocol.send(commands.auth("ClueCon"))
        protocol.data_to_send()
        protocol.receive_data(ACCEPTED)
        return protocol

    return make


def test_the_error_text_is_one_line(protocol):
    protocol.receive_data(GOODBYE)
    assert "\n" not in str(protocol.receive_eof()[0].error)


@pytest.mark.parametrize("linger", [b"", b"x", b"1x", b"9" * 5000, b"-"])
def test_an_odd_linger_time_is_endless(protocol, linger):
    (notice,) = protocol.receive_data(
        b"Content-Type: text/disconnect-notice\nContent-Disposition: linger\nLinger-Time: " + linger + b"\n\n"
    )
    assert (notice.kind, notice.linger_s) == ("linger", -1)
