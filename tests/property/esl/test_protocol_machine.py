"""A random life of a connection: each reply reaches its own command or its tombstone, and nothing hangs."""

from __future__ import annotations

from collections import deque

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from bridge.esl import commands
from bridge.esl.event import Event
from bridge.esl.pending import PendingReply
from bridge.esl.protocol import (
    AuthRequested,
    Closed,
    CloseReason,
    LogReceived,
    Notice,
    Occurrence,
    Protocol,
    ReplyReceived,
    State,
    UnknownFrame,
)

NOTICES = {
    b"Disconnected, goodbye.\nSee you at ClueCon! http://www.cluecon.com/\n": CloseReason.DISCONNECT,
    b"The system is being shut down.\n": CloseReason.SHUTDOWN,
    b"killed listener because of lost events\n": CloseReason.LOST_EVENTS,
}


class Connection(RuleBasedStateMachine):
    """We and a FreeSWITCH; ``wire`` is what it wrote and we have not read, ``expected`` what that must become."""

    @initialize()
    def connect(self) -> None:
        self.protocol = Protocol(max_pending=8)
        self.wire = b""
        self.expected: deque[object] = deque()
        self.waiting: deque[PendingReply] = deque()  # sent to FreeSWITCH, which has not answered
        self.unread: deque[PendingReply] = deque()  # answered, but we have not read it
        self.abandoned: set[PendingReply] = set()
        self.resolved: list[PendingReply] = []
        self.sent: list[PendingReply] = []
        self.commands = 0
        self.events = 0
        self.reason: CloseReason | None = None
        self.closed: Closed | None = None
        self.answer_frame(b"Content-Type: auth/request\n\n", AuthRequested())
        self.read(len(self.wire))
        self.command_sent(self.protocol.send(commands.auth("x"), 0))
        self.write()
        self.answer("command", "+OK accepted")
        self.read(len(self.wire))
        assert self.protocol.state is State.READY

    # --- what FreeSWITCH does

    def answer_frame(self, frame: bytes, becomes: object) -> None:
        self.wire += frame
        self.expected.append(becomes)

    def answer(self, kind: str, text: str) -> None:
        pending = self.waiting.popleft()
        self.unread.append(pending)
        if kind == "api":
            body = text.encode()
            frame = b"Content-Type: api/response\nContent-Length: %d\n\n%b" % (len(body), body)
        else:
            frame = b"Content-Type: command/reply\nReply-Text: %b\n\n" % text.encode()
        self.answer_frame(frame, (pending, text))

    @property
    def open(self) -> bool:
        return self.closed is None and self.reason is None

    @precondition(lambda self: self.open and self.waiting)
    @rule(
        kind=st.sampled_from(["api", "command"]),
        text=st.sampled_from(["+OK", "-ERR no", "a\n\nb é", "-ERR permission denied"]),
    )
    def freeswitch_answers(self, kind: str, text: str) -> None:
        if kind == "command":
            text = text.split("\n", 1)[0]
        self.answer(kind, f"{text} {self.waiting[0].token}")

    @precondition(lambda self: self.open)
    @rule(is_json=st.booleans(), filler=st.integers(0, 300))
    def freeswitch_fires(self, is_json: bool, filler: int) -> None:
        self.events += 1
        if is_json:
            body = b'{"Event-Name":"X","Event-Sequence":"%d","f":"%b"}' % (self.events, b"f" * filler)
        else:
            body = b"Event-Name: X\nEvent-Sequence: %d\nf: %b\n\n" % (self.events, b"f" * filler)
        kind = b"json" if is_json else b"plain"
        self.answer_frame(
            b"Content-Length: %d\nContent-Type: text/event-%b\n\n%b" % (len(body), kind, body), self.events
        )

    @precondition(lambda self: self.open)
    @rule()
    def freeswitch_logs(self) -> None:
        self.answer_frame(b"Content-Type: log/data\nContent-Length: 4\nLog-Level: 7\n\nx: y", LogReceived)

    @precondition(lambda self: self.open)
    @rule()
    def freeswitch_sends_something_new(self) -> None:
        self.answer_frame(b"Content-Type: text/new\nContent-Length: 2\n\n\n\n", UnknownFrame)

    @precondition(lambda self: self.open)
    @rule()
    def freeswitch_lingers(self) -> None:
        self.answer_frame(
            b"Content-Type: text/disconnect-notice\nContent-Disposition: linger\nContent-Length: 0\n\n", Notice
        )

    @precondition(lambda self: self.open)
    @rule(text=st.sampled_from(list(NOTICES)))
    def freeswitch_says_goodbye(self, text: bytes) -> None:
        self.answer_frame(b"Content-Type: text/disconnect-notice\nContent-Length: %d\n\n%b" % (len(text), text), Notice)
        self.reason = NOTICES[text]

    @precondition(lambda self: self.open and not self.waiting)
    @rule()
    def freeswitch_answers_nothing_we_asked(self) -> None:
        self.wire += b"Content-Type: command/reply\nReply-Text: +OK\n\n"
        self.reason = CloseReason.PROTOCOL_ERROR

    @precondition(lambda self: self.open)
    @rule(garbage=st.sampled_from([b"nonsense\n\n", b"Content-Type: auth/request\n\n", b"Content-Length: -1\n\n"]))
    def freeswitch_goes_mad(self, garbage: bytes) -> None:
        self.wire += garbage
        self.reason = CloseReason.PROTOCOL_ERROR

    # --- what we do

    def command_sent(self, pending: PendingReply) -> None:
        self.sent.append(pending)

    def write(self) -> None:
        data = self.protocol.data_to_send()
        written = [pending for pending in self.sent if pending.sent]
        assert data.count(b"\n\n") == len(written)
        for pending in written:
            self.waiting.append(pending)
        self.sent = [pending for pending in self.sent if not pending.sent]

    @precondition(lambda self: self.protocol.state is State.READY and self.protocol.pending < 8)
    @rule(verb=st.sampled_from(["api", "bgapi", "event", "filter"]))
    def we_send(self, verb: str) -> None:
        self.commands += 1
        render = {
            "api": lambda: commands.api("status"),
            "bgapi": lambda: commands.bgapi("status", f"job-{self.commands}"),
            "event": lambda: commands.event("json", ["ALL"]),
            "filter": lambda: commands.filter_add("A", "b"),
        }[verb]
        pending = self.protocol.send(render(), self.commands)
        assert pending.command == verb
        self.command_sent(pending)

    @precondition(lambda self: self.open)
    @rule()
    def we_write(self) -> None:
        self.write()

    @precondition(lambda self: self.waiting or self.sent or self.unread)
    @rule(data=st.data())
    def we_time_out(self, data: st.DataObject) -> None:
        pending = data.draw(st.sampled_from([*self.unread, *self.waiting, *self.sent]))
        self.protocol.abandon(pending)
        self.abandoned.add(pending)

    @precondition(lambda self: self.wire)
    @rule(size=st.integers(1, 400))
    def we_read(self, size: int) -> None:
        self.read(size)

    @precondition(lambda self: self.closed is None)
    @rule(whole=st.booleans())
    def the_connection_ends(self, whole: bool) -> None:
        if whole:
            self.read(len(self.wire))
        if self.closed is None:
            self.check(self.protocol.receive_eof())
            assert self.closed is not None

    @precondition(lambda self: self.closed is None)
    @rule()
    def we_close(self) -> None:
        self.check(self.protocol.close())
        assert self.closed is not None
        assert self.closed.reason is CloseReason.LOCAL

    @precondition(lambda self: self.closed is not None)
    @rule(data=st.binary(max_size=20))
    def nothing_comes_after_the_end(self, data: bytes) -> None:
        assert self.protocol.receive_data(self.wire + data) == self.protocol.receive_eof() == []
        assert self.protocol.data_to_send() == b""
        assert self.protocol.close() == []

    # --- what must hold

    def read(self, size: int) -> None:
        piece, self.wire = self.wire[:size], self.wire[size:]
        was_closed = self.closed is not None
        occurrences = self.protocol.receive_data(piece)
        assert not (was_closed and occurrences)
        self.check(occurrences)

    def check(self, occurrences: list[Occurrence]) -> None:
        for occurrence in occurrences:
            assert self.closed is None, "something after the end"
            if isinstance(occurrence, Closed):
                self.ended(occurrence)
                continue
            expected = self.expected.popleft()
            if isinstance(occurrence, ReplyReceived):
                assert (occurrence.pending, occurrence.reply.text) == expected
                assert occurrence.pending is self.unread.popleft()
                assert occurrence.pending.abandoned == (occurrence.pending in self.abandoned)
                self.resolved.append(occurrence.pending)
            elif isinstance(occurrence, Event):
                assert occurrence.envelope.sequence == str(expected)
            elif isinstance(occurrence, AuthRequested):
                assert occurrence == expected
            else:
                assert isinstance(expected, type)
                assert isinstance(occurrence, expected)

    def ended(self, closed: Closed) -> None:
        self.closed = closed
        assert closed.lost == [*self.unread, *self.waiting, *self.sent]
        assert not set(closed.lost) & set(self.resolved)
        assert [pending.sent for pending in closed.lost].count(False) == len(self.sent)
        if closed.reason in (CloseReason.PROTOCOL_ERROR, *NOTICES.values()):
            assert closed.reason is self.reason
            assert not self.expected or closed.reason is not CloseReason.PROTOCOL_ERROR

    @invariant()
    def nothing_is_lost_or_doubled(self) -> None:
        if hasattr(self, "protocol") and self.closed is None:
            assert self.protocol.pending == len(self.unread) + len(self.waiting) + len(self.sent)
            assert len(self.resolved) == len(set(self.resolved))
        elif hasattr(self, "protocol"):
            assert self.protocol.pending == 0
            assert self.protocol.state is State.CLOSED


Connection.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestConnection = Connection.TestCase
