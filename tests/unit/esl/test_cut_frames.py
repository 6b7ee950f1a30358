"""What FreeSWITCH leaves behind after ten minutes of a full socket: a frame without its end, and the stream goes on."""

from __future__ import annotations

import pytest

from bridge.errors import ConnectionLost, ProtocolError
from bridge.esl.event import Event
from bridge.esl.protocol import Closed, Protocol

LOG = (
    b"Content-Type: log/data\nContent-Length: 5\nLog-Level: 7\nText-Channel: 0\nLog-File: f.c\nLog-Func: fn\n"
    b"Log-Line: 12\nUser-Data: \n\nline\n"
)
BEHIND = {
    "event": b"",
    "log": LOG,
    "reply": b"Content-Type: command/reply\nReply-Text: -ERR command not found\n\n",
    "api": b"Content-Type: api/response\nContent-Length: 5\n\n+OK x",
    "notice": b"Content-Type: text/disconnect-notice\nContent-Length: 39\n\nkilled listener because of lost events\n",
}


@pytest.mark.parametrize("behind", list(BEHIND))
@pytest.mark.parametrize("format", ["json", "plain"])
def test_a_frame_cut_anywhere_is_noticed_before_anything_wrong_is_told(format: str, behind: str) -> None:
    """FreeSWITCH may drop the rest of a frame and carry on: no half event, no event skipped without a word."""

    def frame(number: int) -> bytes:
        if format == "json":
            body = b'{"Event-Name": "DTMF", "Core-UUID": "1-2", "Event-Sequence": "%d", "x": "\\u00eb"}' % number
        else:
            body = b"Event-Name: DTMF\nCore-UUID: 1-2\nEvent-Sequence: %d\nx: Zo%%C3%%AB\n\n" % number
        return b"Content-Length: %d\nContent-Type: text/event-%b\n\n%b" % (len(body), format.encode(), body)

    frames = [frame(number) for number in range(100, 110)]
    for cut in range(1, len(frames[3])):
        protocol = Protocol()
        protocol.receive_data(b"Content-Type: auth/request\n\n")
        protocol.send(b"auth x\n\n")
        protocol.data_to_send()
        protocol.receive_data(b"Content-Type: command/reply\nReply-Text: +OK accepted\n\n")
        if behind in ("reply", "api"):
            protocol.send(b"ping\n\n")
            protocol.data_to_send()
        occurred = protocol.receive_data(b"".join([*frames[:3], frames[3][:cut], BEHIND[behind], *frames[4:]]))
        assert [one.envelope.sequence for one in occurred[:-1] if isinstance(one, Event)] == ["100", "101", "102"]
        assert isinstance(occurred[-1], Closed)
        assert isinstance(occurred[-1].error, ConnectionLost if behind == "notice" else ProtocolError)


@pytest.mark.parametrize("kind", ["text/disconnect-notice", "text/event-plain", "log/data"])
def test_an_injected_event_may_say_of_itself_what_it_likes(kind: str) -> None:
    """A sender's Content-Type stands in front of FreeSWITCH's stamp: nobody can cut our link with it."""
    raw = f"Command: sendevent%20X\nContent-Type: {kind}\nContent-Length: 2\nEvent-Name: X\nEvent-Sequence: 7\n"
    for end, body in (("Content-Length: 2\n\nhi", "hi"), ("\n", None)):
        event = Event.parse((raw + end).encode(), "plain")
        assert (event.name, event.injected, event.body) == ("X", True, body)
        assert event["Content-Type"] == kind
