"""Whatever the peer sends, the outcome is a parse or a protocol error, and never anything else."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st

from bridge.errors import EslError
from bridge.esl import commands
from bridge.esl.event import Event
from bridge.esl.plain import decode_plain, decode_value, split_plain, transcribe
from bridge.esl.protocol import Closed, LogReceived, Notice, Protocol, ReplyReceived, State

RECORDED = gzip.decompress((Path(__file__).parents[2] / "data/captures/commands.rx.bin.gz").read_bytes())[82:60_000]

FRAGMENTS = [
    b"Content-Type: ",
    b"Content-Length: ",
    b"Reply-Text: ",
    b"command/reply",
    b"api/response",
    b"text/event-json",
    b"text/event-plain",
    b"text/disconnect-notice",
    b"text/rude-rejection",
    b"log/data",
    b"auth/request",
    b"Content-Disposition: linger\nLinger-Time: -",
    b"Log-Level: ",
    b"\n",
    b"\n\n",
    b"\r\n",
    b"0",
    b"2",
    b"17",
    b'{"Event-Name":"X"}',
    b'{"a":["\xe9"]}',
    b"Event-Name: A%0\n\n",
    b"%C3%",
    b"ARRAY::",
    b"_undef_",
    b"\x00",
    b"\xff\xfe",
    b"Content-Length: 18\nContent-Type: text/event-json\n\n",
    b"Content-Length: 17\nContent-Type: text/event-plain\n\n",
    b"Content-Type: command/reply\nReply-Text: +OK\n\n",
]
STREAMS = st.lists(st.sampled_from(FRAGMENTS) | st.binary(max_size=8), max_size=30).map(b"".join)
STATES = st.sampled_from([State.GREETING, State.AUTHENTICATING, State.READY])


def in_state(state: State) -> Protocol:
    protocol = Protocol(max_head=2000, max_body=10_000)
    if state is not State.GREETING:
        protocol.receive_data(b"Content-Type: auth/request\n\n")
        protocol.send(commands.auth("x"))
        protocol.data_to_send()
    if state is State.READY:
        protocol.receive_data(b"Content-Type: command/reply\nReply-Text: +OK accepted\n\n")
        protocol.send(commands.api("a"))
        protocol.send(commands.noevents())
        protocol.data_to_send()
    assert protocol.state is state
    return protocol


def read_everything(protocol: Protocol, data: bytes) -> None:
    """Feed it, end it, and read every property of what came out."""
    occurrences = protocol.receive_data(data) + protocol.receive_eof()
    closed = occurrences[-1]
    assert isinstance(closed, Closed)
    assert isinstance(closed.error, EslError)
    assert sum(isinstance(occurrence, Closed) for occurrence in occurrences) == 1
    assert (protocol.pending, protocol.state) == (0, State.CLOSED)
    for occurrence in occurrences:
        repr(occurrence)
        if isinstance(occurrence, Event):
            read_event(occurrence)
        elif isinstance(occurrence, ReplyReceived):
            reply = occurrence.reply
            _ = reply.status, reply.ok, reply.error, reply.denied, reply.not_executed, reply.no_output, reply.job_uuid
            reply.text.encode()
        elif isinstance(occurrence, LogReceived):
            occurrence.record.text.encode()
        elif isinstance(occurrence, Notice):
            assert occurrence.linger_s >= -1


def read_event(event: Event) -> None:
    assert isinstance(event.identity, str)
    assert event.timestamp_us >= 0
    _ = event.name, event.subclass, event.unique_id, event.injected, event.repaired
    for name, value in event.headers.items():
        name.encode()
        assert isinstance(value, str) or all(isinstance(one, str) for one in value)
        assert event[name] == value
    assert event.body is None or event.body.encode() is not None
    json.loads(event.json.decode("utf-8"))
    event.get("absent")


@settings(max_examples=300, deadline=None)
@given(STREAMS, STATES)
def test_any_stream_is_a_parse_or_a_protocol_error(data, state):
    read_everything(in_state(state), data)


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, len(RECORDED) - 4000),
    st.lists(st.tuples(st.integers(0, 3999), st.binary(max_size=3), st.integers(0, 60)), min_size=1, max_size=6),
)
def test_a_damaged_recording_is_a_parse_or_a_protocol_error(start, damages):
    data = RECORDED[start : start + 4000]
    for position, insert, removed in damages:
        data = data[:position] + insert + data[position + removed :]
    read_everything(in_state(State.READY), data)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(FRAGMENTS) | st.binary(max_size=6), max_size=8).map(b"".join), st.booleans())
@example(b'{"Event-Name":"\xe9"}', True)
@example(b'{"Event-Name":{"a":"\\ud800"},"x":1e999}', True)
@example(b"{}", True)
@example(b"\n\n", False)
@example(b"Content-Length: 1\n\nx", False)
def test_any_body_is_an_event_or_a_protocol_error(raw, is_json):
    try:
        event = Event.parse(raw, "json" if is_json else "plain")
    except EslError:
        return
    read_event(event)


def decode_line_by_line(block: bytes) -> dict[str, str | list[str]]:
    headers: dict[str, str | list[str]] = {}
    for line in block.split(b"\n"):
        name, colon, value = line.partition(b":")
        if colon:
            text = decode_value(value.removeprefix(b" "))
            headers[name.decode("utf-8", "replace")] = text[7:].split("|:") if text.startswith("ARRAY::") else text
    return headers


BLOCKS = st.lists(
    st.sampled_from([b"A", b"B: ", b": ", b":", b"\n", b"%", b"%41", b"%00", b"%25", b"%0A", b"\x00", b"_undef_"])
    | st.sampled_from([b"ARRAY::x", b"%C3", b"%A9", b"\xe9", b"C: ", b"\nD: ", b" ", b"ARRAY%3A%3Ax%7C%3Ay"]),
    max_size=14,
).map(b"".join)


@settings(max_examples=300, deadline=None)
@example(b":_undef_")
@given(BLOCKS)
def test_decoding_all_at_once_equals_decoding_line_by_line(block):
    assert decode_plain(block)[0] == decode_line_by_line(block)


PIECES = (
    b"a = =41 %3A %20 %25 %22 %5C %5c %0A %0D %01 %00 % %zz %2 %C3%A9 %c3%a9 %E9 _undef_ ARRAY%3A%3A ARRAY:: %7C%3A | ]"
)
LINES = st.lists(
    st.tuples(
        st.sampled_from([b"A", b"B", b"A B", b"A%41", b"%", b"", b'A"', b"A\\", b"A=", b"\xe9", b"Unique-ID"]),
        st.sampled_from([b": ", b": ", b": ", b": ", b":", b": a: ", b""]),
        st.lists(st.sampled_from(PIECES.split()), max_size=5).map(b"".join),
    ).map(b"".join),
    min_size=1,
    max_size=5,
)


@settings(max_examples=600, deadline=None)
@given(LINES)
@example([b"A: ARRAY%3A%3Aa%22%7C%3A", b"B: x"])
@example([b"A%41: x"])
@example([b"A: x", b"%: x"])
@example([b"A B:x"])
@example([b"A: %2%35"])
def test_a_plain_event_written_as_json_says_what_its_lines_say(lines):
    raw = b"\n".join(lines) + b"\n\n"
    text = transcribe(raw)
    try:
        told = json.loads(text) if text is not None else None
    except ValueError:
        told = None  # read_plain_event finds the same, and goes the long way
    assert told is None or told == decode_line_by_line(raw[:-2])


def test_what_freeswitch_sends_is_written_as_json_in_one_go():
    captures = Path(__file__).parents[2] / "data/captures"
    data = gzip.decompress((captures / "plain_all.rx.bin.gz").read_bytes())
    frames = json.loads(gzip.decompress((captures / "plain_all.json.gz").read_bytes()))["frames"]
    events = [data[at + head : at + head + body] for at, head, body, kind in frames if kind == "text/event-plain"]
    short = [(raw, text) for raw in events if (text := transcribe(raw)) is not None]
    assert len(short) > 0.95 * len(events)
    for raw, text in short:
        assert json.loads(text) == decode_line_by_line(raw[:-2])


VALUE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
NAME = st.text("ABCabc-_09[]", min_size=1, max_size=8)


def encode_as_freeswitch(value: str) -> bytes:
    kept = set(range(0x21, 0x7F)) - set(b'#%&+:;<=>?@[\\]^`{|}"')
    return b"".join(bytes([b]) if b in kept else b"%%%02X" % b for b in value.encode()) or b"_undef_"


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(NAME, VALUE, max_size=8), VALUE)
def test_what_freeswitch_encodes_comes_back(headers, body):
    block = b"".join(name.encode() + b": " + encode_as_freeswitch(value) + b"\n" for name, value in headers.items())
    payload = body.encode()
    raw = block + (b"Content-Length: %d\n\n%b" % (len(payload), payload) if payload else b"\n")
    event = Event.parse(b"Event-Name: X\n" + raw, "plain")
    expected = {"Event-Name": "X", **headers}
    if payload:
        expected |= {"Content-Length": str(len(payload)), "_body": body}
    for value in expected.values():
        if value.startswith(("ARRAY::", "_undef_")):
            return
    assert json.loads(event.json) == expected
    assert not event.repaired
    assert split_plain(event.raw)[1] == (payload or None)
