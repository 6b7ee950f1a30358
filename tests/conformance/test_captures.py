"""Byte streams of a real FreeSWITCH: every frame where the reference parser found it, every answer at its command."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from typing import Any

import pytest

from bridge.esl.event import Event
from bridge.esl.frames import Frame, FrameParser
from bridge.esl.plain import parse_connect
from bridge.esl.protocol import (
    AuthRequested,
    Closed,
    CloseReason,
    LogReceived,
    Notice,
    Protocol,
    ReplyReceived,
    State,
    UnknownFrame,
)

ALL = [
    "json_all",
    "plain_all",
    "xml_short",
    "commands",
    "cmd_bodies",
    "auth_good_exit",
    "auth_bad",
    "auth_userauth_ok",
    "auth_userauth_longlist",
    "auth_acl_reject",
    "auth_timeout",
    "out_async_full",
    "out_sync_full",
    "slow_reader_killed",
    "torn_frame_reload",
]
BYTEWISE = 200_000


def parse(rx: bytes, sizes: Any) -> tuple[list[tuple[int, int, int, str]], FrameParser, list[Frame]]:
    parser = FrameParser()
    frames: list[Frame] = []
    position = 0
    while position < len(rx):
        size = sizes()
        frames += parser.feed(rx[position : position + size])
        position += size
    rows = []
    offset = 0
    for frame in frames:
        head = len(frame.head) + 2
        assert rx[offset : offset + head] == frame.head + b"\n\n"
        assert rx[offset + head : offset + head + len(frame.body)] == frame.body
        rows.append((offset, head, len(frame.body), frame.content_type))
        offset += head + len(frame.body)
    return rows, parser, frames


@pytest.mark.parametrize("name", ALL)
def test_whole(capture, name):
    recorded = capture(name)
    rows, parser, _ = parse(recorded.rx, lambda: len(recorded.rx))
    assert rows == recorded.frames
    assert parser.error is None
    tail = recorded.index.get("rx_unparsed_tail", 0)
    assert parser.mid_frame == bool(tail)
    offset, head, body, _ = recorded.frames[-1]
    assert len(recorded.rx) - (offset + head + body) == tail


@pytest.mark.parametrize("name", ALL)
def test_byte_by_byte(capture, name):
    recorded = capture(name)
    rx = recorded.rx[:BYTEWISE]
    rows, parser, _ = parse(rx, lambda: 1)
    assert rows == [frame for frame in recorded.frames if sum(frame[:3]) <= len(rx)]
    assert parser.error is None


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("largest", [100, 4096, 70_000])
def test_random_chunks(capture, name, largest):
    recorded = capture(name)
    rx = recorded.rx if largest > 1000 else recorded.rx[: 5 * BYTEWISE]
    chance = random.Random(f"{name} {largest}")
    rows, parser, _ = parse(rx, lambda: chance.randint(1, largest))
    assert rows == [frame for frame in recorded.frames if sum(frame[:3]) <= len(rx)]
    assert parser.error is None


def whole_commands(tx: bytes) -> list[tuple[int, bytes]]:
    """Cut what was sent into commands: (offset of its end, its bytes)."""
    found = []
    position = 0
    while position < len(tx):
        if tx[position : position + 1] == b"\n":
            position += 1
            continue
        blank = tx.index(b"\n\n", position)
        length = re.search(rb"(?im)^content-length:[ ]*(\d+)", tx[position:blank])
        end = blank + 2 + (int(length[1]) if length else 0)
        found.append((end, tx[position:end]))
        position = end
    return found


class Replay:
    """A recorded inbound connection, played through ``Protocol`` in the order of the recording."""

    def __init__(self, recorded: Any) -> None:
        self.protocol = Protocol()
        self.occurrences: list[Any] = []
        self.sent: list[bytes] = []
        waiting = whole_commands(recorded.tx)
        for _, direction, offset, length in recorded.index["chunks"]:
            if direction == "rx":
                self.occurrences += self.protocol.receive_data(recorded.rx[offset : offset + length])
                continue
            while waiting and waiting[0][0] <= offset + length:
                command = waiting.pop(0)[1]
                if self.protocol.state in (State.GREETING, State.AUTHENTICATING, State.READY):
                    self.sent.append(command)
                    self.protocol.send(command, len(self.sent) - 1)
                    self.protocol.data_to_send()
        self.occurrences += self.protocol.receive_eof()

    @property
    def counts(self) -> dict[str, int]:
        return dict(Counter(type(occurrence).__name__ for occurrence in self.occurrences))

    def all(self, kind: type) -> list[Any]:
        return [occurrence for occurrence in self.occurrences if isinstance(occurrence, kind)]


# name: what occurs, and how it ends
PLAYED: dict[str, tuple[dict[type, int], CloseReason]] = {
    "json_all": ({AuthRequested: 1, ReplyReceived: 175, Event: 4314, Closed: 1}, CloseReason.EOF),
    "plain_all": ({AuthRequested: 1, ReplyReceived: 155, Event: 3789, Closed: 1}, CloseReason.EOF),
    "xml_short": ({AuthRequested: 1, ReplyReceived: 13, UnknownFrame: 210, Closed: 1}, CloseReason.EOF),
    "commands": (
        {AuthRequested: 1, ReplyReceived: 143, Event: 60, LogReceived: 204, Notice: 1, Closed: 1},
        CloseReason.LOCAL,
    ),
    "cmd_bodies": ({AuthRequested: 1, ReplyReceived: 4, Event: 2, Notice: 1, Closed: 1}, CloseReason.DISCONNECT),
    "auth_good_exit": ({AuthRequested: 1, ReplyReceived: 2, Notice: 1, Closed: 1}, CloseReason.LOCAL),
    "auth_bad": ({AuthRequested: 1, ReplyReceived: 1, Closed: 1}, CloseReason.AUTH_FAILED),
    "auth_userauth_ok": ({AuthRequested: 1, ReplyReceived: 10, Notice: 1, Closed: 1}, CloseReason.LOCAL),
    "auth_userauth_longlist": ({AuthRequested: 1, Closed: 1}, CloseReason.PROTOCOL_ERROR),
    "auth_acl_reject": ({Closed: 1}, CloseReason.ACCESS_DENIED),
    "auth_timeout": ({AuthRequested: 1, Notice: 1, Closed: 1}, CloseReason.DISCONNECT),
    "torn_frame_reload": ({AuthRequested: 1, ReplyReceived: 2, Closed: 1}, CloseReason.SHUTDOWN),
}


@pytest.mark.parametrize("name", PLAYED)
def test_played_through_the_protocol(capture, name):
    replay = Replay(capture(name))
    expected, reason = PLAYED[name]
    assert replay.counts == {kind.__name__: count for kind, count in expected.items()}
    assert replay.occurrences[-1].reason is reason
    # every reply at its own command, in order
    replies = replay.all(ReplyReceived)
    assert [received.pending.token for received in replies] == list(range(len(replies)))


def test_each_answer_is_that_of_its_command(capture):
    replay = Replay(capture("commands"))
    checked = 0
    for received in replay.all(ReplyReceived):
        command, text = replay.sent[received.pending.token], received.reply.text
        if echo := re.fullmatch(rb"api echo (\S+)\n\n", command):
            assert text == echo[1].decode()
            checked += 1
        elif own := re.search(rb"\nJob-UUID: (.+)\n", command):
            assert received.reply.job_uuid == own[1].decode()
            assert text == f"+OK Job-UUID: {own[1].decode()}"
            checked += 1
        elif command.startswith((b"filter Unique-ID", b"filter add Unique-ID")):
            assert "[Unique-ID]" in text
            checked += 1
    assert checked > 25


def test_jobs_of_the_recording_are_matched(capture):
    replay = Replay(capture("commands"))
    accepted = {r.reply.job_uuid for r in replay.all(ReplyReceived) if r.reply.job_uuid}
    jobs = [event for event in replay.all(Event) if event.name == "BACKGROUND_JOB"]
    assert jobs
    assert {event.envelope.job_uuid for event in jobs} <= accepted
    assert all(isinstance(event.body, str) for event in jobs)


@pytest.mark.parametrize(("name", "format"), [("json_all", "json"), ("plain_all", "plain")])
def test_events_of_the_recording(capture, name, format):
    events = Replay(capture(name)).all(Event)
    identities = {event.identity for event in events}
    assert len(identities) == len(events)
    assert len({event.envelope.core_uuid for event in events}) == 1
    for event in events:
        assert event.format == format
        data = json.loads(event.json)
        body = data.pop("_body", None)
        assert body == event.body
        headers = event.headers
        if format == "plain":
            data.pop("Content-Length", None)
            assert data == {name: value for name, value in headers.items() if name != "Content-Length"}
        else:
            assert data == headers
        envelope = event.envelope
        assert headers["Event-Name"] == envelope.name != ""
        assert headers["Event-Sequence"] == envelope.sequence
        assert headers.get("Unique-ID", "") == envelope.unique_id
        assert headers.get("Event-Subclass", "") == envelope.subclass
        assert headers.get("Job-UUID", "") == envelope.job_uuid
        assert event.timestamp_us > 1_700_000_000_000_000
    if format == "json":
        assert all(event.json == event.raw for event in events if not event.repaired)


def test_replies_of_every_kind_are_classed(capture):
    replies = [received.reply for received in Replay(capture("commands")).all(ReplyReceived)]
    assert Counter(reply.status for reply in replies).keys() == {"ok", "error", "usage", "output"}
    assert sum(reply.no_output for reply in replies) == 4
    assert sum(reply.not_executed for reply in replies) > sum(reply.denied for reply in replies) > 0


def test_log_lines_of_the_recording(capture):
    records = [received.record for received in Replay(capture("commands")).all(LogReceived)]
    assert len(records) == 204
    assert all(0 <= record.level <= 7 and record.file and record.line and record.text for record in records)


def test_slow_reader_gets_every_event_and_the_reason(capture):
    recorded = capture("slow_reader_killed")
    protocol = Protocol()
    protocol.receive_data(b"Content-Type: auth/request\n\n")
    protocol.send(b"auth x\n\n")
    protocol.data_to_send()
    protocol.receive_data(b"Content-Type: command/reply\nReply-Text: +OK accepted\n\n")
    protocol.send(b"event plain all\n\n")
    protocol.data_to_send()
    occurrences: list[Any] = []
    for start in range(0, len(recorded.rx), 65_536):
        occurrences += protocol.receive_data(recorded.rx[start : start + 65_536])
    assert sum(isinstance(occurrence, Event) for occurrence in occurrences) == 4577
    (notice,) = [occurrence for occurrence in occurrences if isinstance(occurrence, Notice)]
    assert notice.reason is CloseReason.LOST_EVENTS
    assert protocol.receive_eof()[0].reason is CloseReason.LOST_EVENTS


def test_cut_allow_list_is_named(capture):
    recorded = capture("auth_userauth_longlist")
    protocol = Protocol()
    protocol.receive_data(recorded.rx[:28])
    protocol.send(b"userauth esl4@127.0.0.1:p4\n\n")
    protocol.data_to_send()
    assert protocol.receive_data(recorded.rx[28:566]) == []
    assert "esl-allowed-api" in protocol.hint


@pytest.mark.parametrize(("name", "mode"), [("out_async_full", "async"), ("out_sync_full", "static")])
def test_outbound_connect_reply(capture, name, mode):
    _, _, frames = parse(capture(name).rx, lambda: 4096)
    channel = parse_connect(frames[0].head)
    assert (channel["Reply-Text"], channel["Socket-Mode"], channel["Control"]) == ("+OK\n", mode, "full")
    assert channel["Event-Name"] == "CHANNEL_DATA"
    assert not any(value.startswith("%") for value in channel.values() if isinstance(value, str))
    for frame in frames:
        if frame.content_type == "text/event-plain":
            event = Event.parse(frame.body, "plain")
            assert json.loads(event.json)["Event-Name"] == event.name


def test_outbound_notices(capture):
    _, _, frames = parse(capture("out_async_full").rx, lambda: 4096)
    notices = [Notice.of(frame) for frame in frames if frame.content_type == "text/disconnect-notice"]
    assert [notice.kind for notice in notices] == ["linger", "disconnect"]
    assert all(len(notice.uuid) == 36 for notice in notices)


@pytest.mark.parametrize("name", ["json_all", "plain_all", "commands"])
def test_every_cut_of_a_recording_ends_without_half_an_event(capture, name):
    recorded = capture(name)
    chance = random.Random(name)
    ends = [(sum(frame[:3]), frame[3]) for frame in recorded.frames]
    for _ in range(10):
        cut = chance.randint(0, min(len(recorded.rx), 400_000))
        protocol = Protocol()
        occurrences = protocol.receive_data(recorded.rx[:28])
        for _ in range(500):
            protocol.send(b"auth x\n\n")
            protocol.data_to_send()
        occurrences = protocol.receive_data(recorded.rx[28:cut]) if cut > 28 else []
        events = sum(isinstance(occurrence, Event) for occurrence in occurrences)
        assert events == sum(end <= cut and kind.startswith("text/event") for end, kind in ends)
        (closed,) = protocol.receive_eof()
        assert closed.reason is CloseReason.EOF
