"""What FreeSWITCH leaves behind after ten minutes of a full socket: a frame without its end, and the stream goes on."""

from __future__ import annotations

import pytest

from bridge.errors import ProtocolError
from bridge.esl.event import Event
from bridge.esl.protocol import Closed, Protocol


@pytest.mark.parametrize("format", ["json", "plain"])
def test_a_frame_cut_anywhere_is_noticed_before_anything_wrong_is_told(format: str) -> None:
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
        occurred = protocol.receive_data(b"".join([*frames[:3], frames[3][:cut], *frames[4:]]))
        assert [one.envelope.sequence for one in occurred[:-1] if isinstance(one, Event)] == ["100", "101", "102"]
        assert isinstance(occurred[-1], Closed)
        assert isinstance(occurred[-1].error, ProtocolError)
