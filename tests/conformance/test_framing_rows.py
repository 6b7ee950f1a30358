"""The rows of the conformance table that are about frames: where they end, what is too much, how links end."""

from __future__ import annotations

import pytest

from bridge.errors import ConnectionLost, LimitExceeded, ProtocolError
from bridge.esl import commands
from bridge.esl.event import Event
from bridge.esl.frames import FrameParser
from bridge.esl.protocol import (
    AuthRequested,
    Closed,
    CloseReason,
    LogReceived,
    LogRecord,
    Notice,
    Protocol,
    ReplyReceived,
    State,
    UnknownFrame,
)

GREETING = b"Content-Type: auth/request\n\n"
GOODBYE = (
    b"Content-Type: text/disconnect-notice\nContent-Length: 67\n\n"
    b"Disconnected, goodbye.\nSee you at ClueCon! http://www.cluecon.com/\n"
)


def test_row_01_greeting(feed):
    protocol = Protocol()
    assert feed(protocol, GREETING) == [AuthRequested()]
    assert protocol.state is State.AUTHENTICATING


def test_row_02_three_thousand_events_in_one_read(feed, protocol, json_event):
    data = b"".join(json_event(**{"Event-Sequence": str(n)}) for n in range(3000))
    events = feed(protocol, data)
    assert [event.envelope.sequence for event in events] == [str(n) for n in range(3000)]


def test_row_03_every_seam(json_event):
    data = GREETING + b"Content-Type: command/reply\nReply-Text: +OK\n\n" + json_event() + GOODBYE
    whole = FrameParser().feed(data)
    assert len(whole) == 4
    for cut in range(len(data) + 1):
        parser = FrameParser()
        assert parser.feed(data[:cut]) + parser.feed(data[cut:]) == whole, cut
        assert not parser.mid_frame


def test_row_04_cut_inside_a_utf8_sequence(feed, protocol, json_event):
    data = json_event(**{"Caller-Caller-ID-Name": "Zoé"})
    cut = data.index(b"\xc3") + 1
    assert feed(protocol, data)[0]["Caller-Caller-ID-Name"] == "Zoé"
    first, second = protocol.receive_data(data[:cut]), protocol.receive_data(data[cut:])
    assert first == []
    assert second[0]["Caller-Caller-ID-Name"] == "Zoé"


def test_row_05_length_counts_bytes(feed, protocol, json_event):
    protocol.send(commands.api("x"))
    body = "é\n".encode()
    result, event = feed(protocol, b"Content-Type: api/response\nContent-Length: 3\n\n" + body + json_event("NEXT"))
    assert result.reply.text == "é\n"
    assert event.name == "NEXT"


def test_row_06_nothing_is_parsed_inside_a_body(feed, protocol, api_result):
    protocol.send(commands.api("x"))
    body = b"a\n\nContent-Type: auth/request\n\nb"
    (result,) = feed(protocol, api_result(body))
    assert result.reply.text == body.decode()


@pytest.mark.parametrize("kind", ["api/response", "text/event-json"])
def test_row_08_content_length_zero(feed, protocol, json_event, kind):
    protocol.send(commands.api("x"))
    data = f"Content-Length: 0\nContent-Type: {kind}\n\n".encode()
    frames, error = feed.frames(data + GREETING)
    assert (error, [frame.body for frame in frames]) == (None, [b"", b""])
    first, event = feed(protocol, data + json_event("NEXT"))
    if kind == "api/response":
        assert first.reply.text == ""
    else:
        assert first == UnknownFrame("text/event-json")
    assert event.name == "NEXT"


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length:3\ncontent-type: api/response",
        b"CONTENT-TYPE:api/response\ncontent-length:   3",
        b"Content-Type: API/Response\nContent-Length: 3",
        b"Content-Type: api/response\nContent-Length: 3\nContent-Length: 3",
    ],
)
def test_row_30_header_spelling(feed, head):
    frames, error = feed.frames(head + b"\n\nabc" + GREETING)
    assert error is None
    assert [(frame.content_type, frame.body) for frame in frames] == [("api/response", b"abc"), ("auth/request", b"")]


@pytest.mark.parametrize("blank", [b"\r\n\r\n", b"\n\r\n", b"\r\n\n"])
def test_row_31_crlf_blank_line(feed, blank):
    frames, error = feed.frames(b"Content-Type: api/response\r\nContent-Length: 3" + blank + b"a\n\n" + GREETING)
    assert error is None
    assert [(frame.content_type, frame.body) for frame in frames] == [("api/response", b"a\n\n"), ("auth/request", b"")]


@pytest.mark.parametrize(
    "length",
    [
        b"-1",
        b"+5",
        b"1_0",
        b" 12a",
        b"99999999999",
        b"9" * 5000,
        b"",
        b"0x10",
        b"1.0",
        b"1e3",
        b"5 5",
        "٣".encode(),
        b"5\nContent-Length: 6",
    ],
)
def test_row_32_strict_length(feed, protocol, length):
    head = b"Content-Type: api/response\nContent-Length: " + length + b"\n\n"
    frames, error = feed.frames(GREETING + head)
    assert len(frames) == 1  # what came before the fault is not lost
    assert isinstance(error, ProtocolError)
    protocol.send(commands.api("x"))
    (closed,) = feed(protocol, head)
    assert (closed.reason, len(closed.lost)) == (CloseReason.PROTOCOL_ERROR, 1)
    assert protocol.state is State.CLOSED


def test_row_33_body_over_the_limit(feed):
    head = b"Content-Type: api/response\nContent-Length: %d\n\n"
    limit = 16 * 1024 * 1024
    parser = FrameParser()
    assert parser.feed(head % limit) == []
    assert parser.error is None
    frames, error = feed.frames(GREETING + head % (limit + 1))
    assert len(frames) == 1
    assert isinstance(error, LimitExceeded)
    frames, error = feed.frames(head % 11 + b"x" * 11, max_body=10)
    assert isinstance(error, LimitExceeded)


def test_row_34_endless_header_block():
    parser = FrameParser()
    line = b"variable_x: " + b"y" * 1000 + b"\n"
    fed = 0
    while parser.error is None:
        parser.feed(line)
        fed += len(line)
        assert fed < 3 * 1024 * 1024
    assert isinstance(parser.error, LimitExceeded)
    assert fed > 1024 * 1024
    assert len(parser.partial) <= 4096
    # in one piece it is the same
    parser = FrameParser(max_head=1000)
    parser.feed(b"Content-Type: auth/request\n" + b"a: b\n" * 300 + b"\n")
    assert isinstance(parser.error, LimitExceeded)


def test_row_34_a_large_header_block_is_fine(feed):
    head = b"".join(b"variable_%d: %b\n" % (n, b"v" * 90) for n in range(2000)) + b"Content-Type: command/reply\n\n"
    assert len(head) > 200_000
    frames, error = feed.frames(head)
    assert error is None
    assert len(frames[0].headers) == 2001


def test_row_35_unknown_content_type_is_skipped(feed, protocol, json_event):
    unknown = b"Content-Type: text/new-thing\nContent-Length: 4\n\n\n\n\n\n"
    first, event = feed(protocol, unknown + json_event("NEXT"))
    assert first == UnknownFrame("text/new-thing")
    assert event.name == "NEXT"


@pytest.mark.parametrize(
    "block",
    [
        b"Content-Length: 3\n\nabc",
        b"Reply-Text: +OK\n\n",
        b"\n\n",
        b"\n",
        b"HTTP/1.1 200 OK\nServer: x\n\n",
        b"Content-Type:\n\n",
        b"Content-Type: a\nContent-Type: b\n\n",
        b": x\n\n",
    ],
)
def test_row_36_block_without_content_type(feed, protocol, json_event, block):
    frames, error = feed.frames(GREETING + block + b"\n\n")
    assert len(frames) == 1
    assert isinstance(error, ProtocolError)
    event, closed = feed(protocol, json_event("BEFORE") + block + b"\n\n")
    assert event.name == "BEFORE"
    assert closed.reason is CloseReason.PROTOCOL_ERROR


def test_row_37_eof_in_the_middle(protocol, json_event):
    data = json_event("WHOLE") + json_event("CUT")
    for cut in range(len(json_event("WHOLE")), len(data)):
        fresh = type(protocol)()
        fresh.receive_data(GREETING)
        fresh.send(commands.auth("x"))
        fresh.data_to_send()
        fresh.receive_data(b"Content-Type: command/reply\nReply-Text: +OK accepted\n\n")
        assert [event.name for event in fresh.receive_data(data[:cut])] == ["WHOLE"]
        (closed,) = fresh.receive_eof()
        assert closed.reason is CloseReason.EOF
        assert isinstance(closed.error, ConnectionLost)
        assert fresh.receive_eof() == []
        assert fresh.receive_data(data) == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"Disconnected, goodbye.\nSee you at ClueCon! http://www.cluecon.com/\n", CloseReason.DISCONNECT),
        (b"The system is being shut down.\n", CloseReason.SHUTDOWN),
        (b"killed listener because of lost events\n", CloseReason.LOST_EVENTS),
        (b"killed listener because of lost log lines\n", CloseReason.LOST_LOG_LINES),
    ],
)
@pytest.mark.parametrize("missing", [200, 1000])
def test_row_38_notice_in_the_missing_half(feed, protocol, json_event, plain_event, text, reason, missing):
    notice = b"Content-Type: text/disconnect-notice\nContent-Length: %d\n\n%b" % (len(text), text)
    for whole in (
        json_event("TORN", variable_x="x" * 1500),
        plain_event(b"Event-Name: TORN\nvariable_x: " + b"x" * 1500 + b"\n\n"),
    ):
        fresh = type(protocol)()
        fresh.receive_data(GREETING)
        fresh.send(commands.auth("x"))
        fresh.data_to_send()
        fresh.receive_data(b"Content-Type: command/reply\nReply-Text: +OK accepted\n\n")
        data = whole[:-missing] + notice
        # what follows a torn frame would be taken for its missing bytes: there is no trailing data here
        occurrences = fresh.receive_data(data) if feed.way == "with trailing data" else feed(fresh, data)
        occurrences += fresh.receive_eof()
        (closed,) = occurrences
        assert isinstance(closed, Closed)
        assert closed.reason is reason


@pytest.mark.parametrize("format", ["json", "plain"])
def test_row_38_however_much_is_missing(protocol, json_event, plain_event, format):
    """Also where the notice, or its head alone, is just as long as what is missing."""
    text = b"killed listener because of lost events\n"
    notice = b"Content-Type: text/disconnect-notice\nContent-Length: %d\n\n%b" % (len(text), text)
    headers = {f"variable_{number}": "x" for number in range(10)}
    whole = (
        json_event("TORN", **headers)
        if format == "json"
        else plain_event(b"Event-Name: TORN\n" + b"".join(b"variable_%d: x\n" % n for n in range(10)) + b"\n")
    )
    for missing in range(1, len(whole)):
        fresh = type(protocol)()
        fresh.receive_data(GREETING)
        fresh.send(commands.auth("x"))
        fresh.data_to_send()
        fresh.receive_data(b"Content-Type: command/reply\nReply-Text: +OK accepted\n\n")
        (closed,) = fresh.receive_data(whole[:-missing] + notice) + fresh.receive_eof()
        assert closed.reason is CloseReason.LOST_EVENTS, missing


@pytest.mark.parametrize("goes_on", [False, True])
@pytest.mark.parametrize(
    "torn",
    [
        b"Content-Type: api/response\nContent-Length: 200\n\n" + b"r" * 200,
        b"Content-Type: command/reply\nReply-Text: +OK Job-UUID: abc\nJob-UUID: abc\n\n",
        b"Content-Length: 39\nContent-Type: text/event-json\n\n" + b'{"Event-Name":"A","Event-Sequence":"1"}',
        b"Content-Length: 39\nContent-Type: text/event-plain\n\nEvent-Name: A\nEvent-Sequence: 1\nv: ABC\n\n",
    ],
)
def test_row_38_wherever_a_notice_tears_a_frame(protocol, torn, goes_on):
    """In head or body, in place of the rest or in front of it: no answer, no event, and the notice's reason."""
    text = b"The system is being shut down.\n"
    notice = b"Content-Type: text/disconnect-notice\nContent-Length: %d\n\n%b" % (len(text), text)
    for cut in range(1, len(torn)):
        fresh = type(protocol)()
        fresh.receive_data(GREETING)
        fresh.send(commands.auth("x"))
        fresh.data_to_send()
        fresh.receive_data(b"Content-Type: command/reply\nReply-Text: +OK accepted\n\n")
        pending = fresh.send(commands.api("x"))
        fresh.data_to_send()
        (closed,) = fresh.receive_data(torn[:cut] + notice + (torn[cut:] if goes_on else b"")) + fresh.receive_eof()
        assert closed.reason is CloseReason.SHUTDOWN, cut
        assert closed.lost == [pending]


def test_row_38_a_notice_that_lingers_tears_nothing(protocol):
    """A fault behind it in the same read is the peer's own."""
    linger = b"Content-Type: text/disconnect-notice\nContent-Disposition: linger\nContent-Length: 0\n\n"
    _, closed = protocol.receive_data(linger + b"Content-Type: command/reply\nReply-Text: +OK\n\n")
    assert closed.reason is CloseReason.PROTOCOL_ERROR


def test_row_38_notice_inside_a_body_that_goes_on(feed, protocol, json_event, plain_event):
    notice = b"Content-Type: text/disconnect-notice\nContent-Length: 31\n\nThe system is being shut down.\n"
    for whole in (
        json_event("TORN", variable_x="x" * 1500),
        plain_event(b"Event-Name: TORN\nvariable_x: " + b"x" * 1500 + b"\n\n"),
    ):
        fresh = type(protocol)()
        fresh.receive_data(GREETING)
        fresh.send(commands.auth("x"))
        fresh.data_to_send()
        fresh.receive_data(b"Content-Type: command/reply\nReply-Text: +OK accepted\n\n")
        (closed,) = feed(fresh, whole[:800] + notice + whole[800:])
        assert closed.reason is CloseReason.SHUTDOWN


def test_row_38_notice_inside_a_header_block(feed, protocol):
    text = b"killed listener because of lost events\n"
    notice = b"Content-Type: text/disconnect-notice\nContent-Length: %d\n\n%b" % (len(text), text)
    (closed,) = feed(protocol, b"Content-Length: 23" + notice + b"10\nContent-Type: text/event-json\n\n")
    assert isinstance(closed.error, ConnectionLost)
    # The notice's text lies behind the fault.
    assert closed.reason is (CloseReason.DISCONNECT if feed.way == "byte by byte" else CloseReason.LOST_EVENTS)


def test_row_39_goodbye_then_fin(feed, protocol):
    pending = protocol.send(commands.api("status"))
    (notice,) = feed(protocol, GOODBYE)
    assert (notice.kind, notice.reason) == ("disconnect", CloseReason.DISCONNECT)
    assert notice.text.startswith("Disconnected, goodbye.")
    assert protocol.state is State.CLOSING
    (closed,) = protocol.receive_eof()
    assert closed.reason is CloseReason.DISCONNECT
    assert "goodbye" in str(closed.error)
    assert closed.lost == [pending]


def test_row_40_linger_notice_closes_nothing(feed, protocol, json_event):
    linger = (
        b"Content-Type: text/disconnect-notice\nControlled-Session-UUID: 3ad3\nContent-Disposition: linger\n"
        b"Channel-Name: loopback/x\nLinger-Time: 7\nContent-Length: 0\n\n"
    )
    notice, first, second = feed(protocol, linger + json_event("A") + json_event("B"))
    assert (notice.kind, notice.uuid, notice.linger_s) == ("linger", "3ad3", 7)
    assert (first.name, second.name) == ("A", "B")
    assert protocol.state is State.READY
    assert protocol.receive_eof()[0].reason is CloseReason.EOF


def test_row_40_linger_without_end(feed, protocol):
    linger = (
        b"Content-Type: text/disconnect-notice\nContent-Disposition: linger\nLinger-Time: -1\nContent-Length: 0\n\n"
    )
    (notice,) = feed(protocol, linger)
    assert notice.linger_s == -1


def test_row_41_killed_for_lost_events(feed, protocol, json_event):
    killed = b"Content-Type: text/disconnect-notice\nContent-Length: 39\n\nkilled listener because of lost events\n"
    event, notice, after = feed(protocol, json_event("A") + killed + json_event("B"))
    assert (event.name, after.name) == ("A", "B")  # events can follow a notice
    assert isinstance(notice, Notice)
    assert notice.reason is CloseReason.LOST_EVENTS
    assert protocol.receive_eof()[0].reason is CloseReason.LOST_EVENTS


def test_row_41_a_fault_behind_the_notice_is_the_notice_s_end(feed, protocol):
    killed = b"Content-Type: text/disconnect-notice\nContent-Length: 39\n\nkilled listener because of lost events\n"
    notice, closed = feed(protocol, killed + b'ble_x":"y"}\n\n')
    assert notice.kind == "disconnect"
    assert closed.reason is CloseReason.LOST_EVENTS
    assert isinstance(closed.error, ConnectionLost)


def test_row_46_log_line(feed, protocol, json_event):
    body = b"2026-01-01 [INFO] a: b\n\nContent-Length: 5\n\nlast\n"
    head = (
        b"Content-Type: log/data\nContent-Length: %d\nLog-Level: 6\nText-Channel: 0\nLog-File: mod_x.c\n"
        b"Log-Func: fn\nLog-Line: 12\nUser-Data: \n\n"
    )
    log, event = feed(protocol, head % len(body) + body + json_event("NEXT"))
    assert log == LogReceived(LogRecord(6, body.decode().rstrip("\n"), "mod_x.c", 12, "fn", ""))
    assert event.name == "NEXT"


def test_row_47_format_changes_between_frames(feed, protocol, json_event, plain_event):
    plain = plain_event(b"Event-Name: A\nX: a%20b\n\n")
    events = feed(protocol, plain + json_event("B", X="a%20b") + plain)
    assert [(event.name, event["X"]) for event in events] == [("A", "a b"), ("B", "a%20b"), ("A", "a b")]
    assert all(isinstance(event, Event) for event in events)


def test_row_56_connect_reply(feed):
    from bridge.esl.plain import parse_connect

    head = (
        b"Event-Name: CHANNEL_DATA\nCore-UUID: 42\nvariable_a: x%0Ay\nvariable_list: ARRAY%3A%3Aa%7C%3Ab\n"
        b"Content-Type: command/reply\nReply-Text: %2BOK%0A\nSocket-Mode: async\nControl: full\n\n"
    )
    frames, error = feed.frames(head + GREETING)
    assert error is None
    assert [(frame.content_type, frame.body) for frame in frames] == [("command/reply", b""), ("auth/request", b"")]
    channel = parse_connect(frames[0].head)
    assert channel["variable_a"] == "x\ny"
    assert channel["variable_list"] == ["a", "b"]
    assert (channel["Reply-Text"], channel["Socket-Mode"]) == ("+OK\n", "async")
    with pytest.raises(ProtocolError):
        parse_connect(GREETING)


def test_a_reply_that_swallowed_the_next_frame_is_never_given_to_anybody(feed, protocol, reply, json_event):
    for glued in (
        b"Content-Type: command/reply\nReply-Text: +OK\nAllowed-API: aContent-Type: api/response\n"
        b"Content-Length: 3\n\nabc",
        b"Content-Type: command/reply\nReply-Text: +OK\nAllowed-API: a" + reply(b"+OK bye"),
        b"Content-Type: command/reply\nReply-Text: +OK\nAllowed-API: a" + json_event(),
    ):
        fresh = type(protocol)()
        fresh.receive_data(GREETING)
        fresh.send(commands.userauth("u@d", "x"))
        (closed,) = feed(fresh, glued)
        assert closed.reason is CloseReason.PROTOCOL_ERROR
        assert not any(isinstance(o, ReplyReceived) for o in [closed])


def test_an_event_without_length_is_out_of_step(feed, protocol):
    (closed,) = feed(protocol, b"Content-Type: text/event-json\n\n")
    assert closed.reason is CloseReason.PROTOCOL_ERROR
