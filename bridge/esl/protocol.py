"""The inbound role of the Event Socket, sans-IO: bytes in, what happened out; commands in, bytes out.

This room never reads a socket or a clock, never raises for what the peer sends, and never guesses which command a
reply belongs to: replies come in the order of their commands.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, cast

from bridge.errors import (
    AccessDenied,
    AuthenticationFailed,
    ConnectionLost,
    EslError,
    LimitExceeded,
    NotConnected,
    ProtocolError,
)
from bridge.esl.ending import CloseReason, Notice, ends_in_notice, find_torn_notice, holds_notice
from bridge.esl.event import Event, read_json_event
from bridge.esl.frames import (
    API_RESPONSE,
    AUTH_REQUEST,
    COMMAND_REPLY,
    DISCONNECT_NOTICE,
    EVENT_JSON,
    EVENT_PLAIN,
    LOG_DATA,
    MAX_BODY,
    MAX_HEAD,
    RUDE_REJECTION,
    Frame,
    FrameParser,
    Oversized,
)
from bridge.esl.occurrences import (
    AuthRequested,
    Closed,
    EventSkipped,
    LogReceived,
    LogRecord,
    Occurrence,
    ReplyReceived,
    UnknownFrame,
)
from bridge.esl.pending import MAX_PENDING, PendingReplies, PendingReply
from bridge.esl.replies import Reply

__all__ = [
    "AuthRequested",
    "CloseReason",
    "Closed",
    "EventSkipped",
    "LogReceived",
    "LogRecord",
    "Notice",
    "Occurrence",
    "Protocol",
    "ReplyReceived",
    "State",
    "UnknownFrame",
]


class State(StrEnum):
    """Where a connection stands."""

    GREETING = "greeting"  # the peer's first frame has not come
    AUTHENTICATING = "authenticating"
    READY = "ready"
    CLOSING = "closing"  # the peer said goodbye; what is under way still comes
    CLOSED = "closed"


_AUTHENTICATING: Final = State.AUTHENTICATING
# What the first frame can be, and what can never come in a later state. Anything unknown is skipped there.
_FIRST: Final = frozenset((AUTH_REQUEST, RUDE_REJECTION, DISCONNECT_NOTICE))
_IMPOSSIBLE: Final[dict[State, frozenset[str]]] = {
    State.AUTHENTICATING: frozenset((AUTH_REQUEST, API_RESPONSE, EVENT_JSON, EVENT_PLAIN, LOG_DATA)),
    State.READY: frozenset((AUTH_REQUEST,)),
    State.CLOSING: frozenset((AUTH_REQUEST,)),
}
_AUTHENTICATED: Final = frozenset((State.READY, State.CLOSING))
_EVENTS: Final = frozenset((EVENT_JSON, EVENT_PLAIN))
_REPLIES: Final = frozenset((COMMAND_REPLY, API_RESPONSE))
_ONLY_EVENTS: Final = {Event}
_TAIL: Final = 64  # bytes by whose equality the end of a frame is found again in what was read
_AUTH_COMMANDS: Final = ("auth", "userauth")
_LONG_ALLOW_LIST: Final = (
    "FreeSWITCH cuts the reply to userauth at 511 bytes, and this user's allow-lists (esl-allowed-api, "
    "esl-allowed-events) are too long for it: shorten them"
)


class Protocol:
    """One connection that we opened.

    ``send`` reserves the place of a command's reply, ``data_to_send`` hands out what is to be written,
    ``receive_data`` and ``receive_eof`` say what the peer did. ``Closed`` is the last occurrence. A body of more than
    ``max_body`` and up to ``max_skipped`` bytes is read and not kept; a larger one ends the connection.
    """

    __slots__ = ("_exiting", "_notice", "_out", "_parser", "_pending", "_unsent", "state")

    def __init__(
        self,
        *,
        max_head: int = MAX_HEAD,
        max_body: int = MAX_BODY,
        max_skipped: int = 0,
        max_pending: int = MAX_PENDING,
    ) -> None:
        self.state = State.GREETING
        self._parser = FrameParser(max_head, max_body, max_skipped)
        self._pending = PendingReplies(max_pending)
        self._out: list[bytes] = []
        self._unsent: list[PendingReply] = []
        self._notice: Notice | None = None
        self._exiting = False

    # --- our side ---------------------------------------------------------------------------------

    @property
    def pending(self) -> int:
        """How many replies are due, tombstones included."""
        return len(self._pending)

    @property
    def closed(self) -> bool:
        """Whether it has ended, so that nothing more will occur."""
        return self.state is State.CLOSED

    @property
    def mid_frame(self) -> bool:
        """Whether a frame has begun that is not complete."""
        return self._parser.mid_frame

    @property
    def hint(self) -> str:
        """What a timeout at this moment probably means, for people; mostly empty."""
        first = self._pending.first
        if self.state is State.AUTHENTICATING and first is not None and first.command == "userauth":
            unfinished = self._parser.partial
            if unfinished.startswith(b"Content-Type: command/reply\nReply-Text: +OK accepted\n"):
                return _LONG_ALLOW_LIST
        return ""

    def send(self, command: bytes, token: object = None) -> PendingReply:
        """Queue a rendered command and reserve the place of its reply.

        Raises ``NotConnected`` when the connection is closing or closed, ``LimitExceeded`` when too many replies
        are due; nothing is queued then.
        """
        if self.state in (State.CLOSING, State.CLOSED):
            raise NotConnected("the connection is closing" if self.state is State.CLOSING else "not connected")
        pending = PendingReply(_verb(command), token)
        self._pending.add(pending)
        self._out.append(command)
        self._unsent.append(pending)
        if pending.command == "exit":
            self._exiting = True
        return pending

    def abandon(self, pending: PendingReply) -> None:
        """Nobody waits for this reply any more; its place stays until the reply has come."""
        pending.abandoned = True

    def data_to_send(self) -> bytes:
        """Return what is to be written now, and count it as written."""
        if not self._out:
            return b""
        data = self._out[0] if len(self._out) == 1 else b"".join(self._out)
        self._out.clear()
        for pending in self._unsent:
            pending.sent = True
        self._unsent.clear()
        return data

    def close(self, reason: CloseReason = CloseReason.LOCAL, error: EslError | None = None) -> list[Occurrence]:
        """End it from our side; returns the ``Closed`` with the commands that lose their replies."""
        if self.state is State.CLOSED:
            return []
        return [self._end(reason, error or ConnectionLost("closed by us"))]

    # --- the peer's side --------------------------------------------------------------------------

    def receive_data(self, data: bytes | bytearray | memoryview) -> list[Occurrence]:
        """Take what was read and return what happened, in order. Never raises; a fault is a ``Closed`` at the end."""
        if self.state is State.CLOSED:
            return []
        parser = self._parser
        authenticated = self.state in _AUTHENTICATED
        if authenticated and parser.read_event is None:
            parser.read_event = read_json_event
        frames = parser.feed(data)
        if parser.error is None and frames and set(map(type, frames)) == _ONLY_EVENTS:
            return cast("list[Occurrence]", frames)  # the hot path: nearly every read is all events
        occurrences: list[Occurrence] = []
        append = occurrences.append
        body = b""
        try:
            for frame in frames:
                if type(frame) is Event:
                    append(frame)
                    continue
                if type(frame) is Oversized:
                    body = b""
                    self._take_oversized(frame, occurrences)
                    continue
                assert type(frame) is Frame
                kind = frame.content_type
                body = frame.body
                if authenticated:
                    if body and kind in _EVENTS:
                        append(Event.parse(body, "json" if kind == EVENT_JSON else "plain"))
                        continue
                    if kind in _REPLIES:
                        self._take_reply(frame, occurrences)
                        continue
                self._take(frame, occurrences)
                if self.closed:
                    return occurrences
                authenticated = self.state in _AUTHENTICATED
            if parser.error is not None:
                append(self._fault(parser.error, parser.partial, data, occurrences))
        except ProtocolError as error:
            append(self._fault(error, body, data, occurrences))
        return occurrences

    def receive_eof(self) -> list[Occurrence]:
        """The peer closed, or the connection broke; returns the ``Closed``. A frame that is not whole is dropped."""
        if self.state is State.CLOSED:
            return []
        progress = self._parser.progress
        reason = CloseReason.EOF
        if self._notice is not None:
            reason = self._notice.reason
        elif progress:
            reason = find_torn_notice(self._parser.partial) or reason
        if self._exiting and reason in (CloseReason.EOF, CloseReason.DISCONNECT):
            reason = CloseReason.LOCAL
        return [self._end(reason, ConnectionLost(_ending(self._notice, f"connection ended {progress}".rstrip())))]

    def _take(self, frame: Frame, occurrences: list[Occurrence]) -> None:
        """Take a frame that is not an event with content; raises ``ProtocolError`` where it cannot come now."""
        kind = frame.content_type
        if kind not in _FIRST if self.state is State.GREETING else kind in _IMPOSSIBLE[self.state]:
            raise ProtocolError(f"{kind} in state {self.state}")
        if kind in _REPLIES:
            self._take_reply(frame, occurrences)
        elif kind == AUTH_REQUEST:
            self.state = State.AUTHENTICATING
            occurrences.append(AuthRequested())
        elif kind == DISCONNECT_NOTICE:
            notice = Notice.of(frame)
            if notice.kind == "disconnect":
                self._notice = self._notice or notice
                self.state = State.CLOSING
            occurrences.append(notice)
        elif kind == LOG_DATA:
            occurrences.append(LogReceived(LogRecord.of(frame)))
        elif kind == RUDE_REJECTION:
            text = frame.body.decode("utf-8", "replace").strip()
            occurrences.append(self._end(CloseReason.ACCESS_DENIED, AccessDenied(f"{text} (apply-inbound-acl)")))
        elif kind in (EVENT_JSON, EVENT_PLAIN) and "content-length" not in frame.headers:
            raise ProtocolError("an event without Content-Length: the stream is out of step")
        else:
            occurrences.append(UnknownFrame(kind))

    def _take_oversized(self, frame: Oversized, occurrences: list[Occurrence]) -> None:
        """Take a frame whose body was not kept; raises ``ProtocolError`` where a large one cannot come."""
        kind = frame.content_type
        if self.state not in _AUTHENTICATED or kind == COMMAND_REPLY:
            raise LimitExceeded(f"{kind} of {frame.size} bytes in state {self.state}")
        if kind == API_RESPONSE:
            reply = Reply("api", "", head=frame.head)
            reply.skipped = frame.size
            occurrences.append(ReplyReceived(self._due(), reply))
        elif kind in _EVENTS:
            occurrences.append(EventSkipped(frame.size))
        else:
            occurrences.append(UnknownFrame(kind))

    def _due(self) -> PendingReply:
        """Take the command whose reply this is; raises ``ProtocolError`` where none is due."""
        pending = self._pending.first
        if pending is None or not pending.sent:
            raise ProtocolError("a reply to nothing")
        self._pending.take()
        return pending

    def _take_reply(self, frame: Frame, occurrences: list[Occurrence]) -> None:
        if frame.content_type == COMMAND_REPLY and frame.body:
            hint = f" ({_LONG_ALLOW_LIST})" if b"\nAllowed-" in frame.head else ""
            raise ProtocolError(f"a reply ran into the frame behind it{hint}")
        if frame.content_type == API_RESPONSE and holds_notice(frame.body):
            raise ProtocolError("the output of a command with a notice in its middle")
        pending = self._due()
        reply = Reply.of(frame)
        occurrences.append(ReplyReceived(pending, reply))
        if self.state is _AUTHENTICATING and pending.command in _AUTH_COMMANDS:
            if reply.status == "ok":
                self.state = State.READY
            else:
                what = "user or password" if pending.command == "userauth" else "password"
                text = f"FreeSWITCH answered {pending.command} with {reply.text!r}: wrong {what}"
                error = AuthenticationFailed(text)
                occurrences.append(self._end(CloseReason.AUTH_FAILED, error))

    def _fault(
        self,
        error: ProtocolError,
        where: bytes,
        read: bytes | bytearray | memoryview,
        occurrences: list[Occurrence],
    ) -> Closed:
        """The stream makes no sense: after or around a notice that is how connections end, else the peer's fault.

        ``where`` is the frame at fault, and part of ``read``; ``occurrences`` are what came in front of it.
        """
        if self._notice is not None:
            reason: CloseReason | None = self._notice.reason
        else:
            rest = b""
            # Before we are in, a goodbye behind a reply that was cut does not say what is wrong.
            if where and self.state in _AUTHENTICATED:
                data = bytes(read)
                start = data.rfind(where[-_TAIL:])
                # A little before it, too: the notice may have begun in the frame in front.
                rest = data[max(0, start - _TAIL) :] if start >= 0 else b""
            reason = find_torn_notice(where, rest)
        if reason is None:
            return self._end(CloseReason.PROTOCOL_ERROR, error)
        closed = self._end(reason, ConnectionLost(_ending(self._notice, f"connection ended in a torn frame ({error})")))
        last = occurrences[-1] if occurrences else None
        if type(last) is ReplyReceived and last.reply.kind == "api" and ends_in_notice(last.reply.text):
            # The output in front was torn, so that it took the beginning of the notice for its end.
            occurrences.pop()
            closed.lost.insert(0, last.pending)
        return closed

    def _end(self, reason: CloseReason, error: EslError) -> Closed:
        self.state = State.CLOSED
        self._out.clear()
        self._unsent.clear()
        return Closed(reason, error, self._pending.clear())


def _ending(notice: Notice | None, text: str) -> str:
    return f"{text}: {' '.join(notice.text.split())}" if notice is not None else text


def _verb(command: bytes) -> str:
    words = command[:64].split(None, 1)
    return words[0].decode("utf-8", "replace").lower() if words else ""
