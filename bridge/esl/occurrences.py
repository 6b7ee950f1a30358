"""What a connection can tell: the values that ``Protocol.receive_data`` returns, besides events themselves.

This room never interprets: an occurrence says what happened, its taker what to do.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from bridge.errors import EslError
from bridge.esl.ending import CloseReason, Notice
from bridge.esl.event import Event
from bridge.esl.frames import Frame
from bridge.esl.pending import PendingReply
from bridge.esl.replies import Reply


@dataclass(frozen=True, slots=True)
class AuthRequested:
    """The greeting: send ``auth`` or ``userauth`` now."""


class ReplyReceived(msgspec.Struct, frozen=True, gc=False):
    """The reply to a command. ``pending.abandoned`` means that it came late and nobody waits."""

    pending: PendingReply
    reply: Reply


@dataclass(frozen=True, slots=True)
class LogRecord:
    """One line of FreeSWITCH's log; ``uuid`` is the call it is about, or empty."""

    level: int
    text: str
    file: str = ""
    line: int = 0
    func: str = ""
    uuid: str = ""

    @classmethod
    def of(cls, frame: Frame) -> LogRecord:
        """Read a frame of type log/data; numbers that are none become 0."""
        headers = frame.headers
        return cls(
            _number(headers.get("log-level", "")),
            frame.body.decode("utf-8", "replace").rstrip("\n"),
            headers.get("log-file", ""),
            _number(headers.get("log-line", "")),
            headers.get("log-func", ""),
            headers.get("user-data", ""),
        )


@dataclass(frozen=True, slots=True)
class LogReceived:
    """A log line, after ``log <level>``."""

    record: LogRecord


@dataclass(frozen=True, slots=True)
class UnknownFrame:
    """A whole frame that is not for us (an unknown type, an event without content): skipped, worth a count."""

    content_type: str


@dataclass(frozen=True, slots=True)
class EventSkipped:
    """An event of ``size`` bytes, which is over the limit; nothing more is known of it."""

    size: int


@dataclass(frozen=True, slots=True)
class Closed:
    """The end; nothing comes after it. ``lost`` are the commands without a reply, oldest first.

    Those with ``sent`` may or may not have run; the others were not written.
    """

    reason: CloseReason
    error: EslError
    lost: list[PendingReply] = field(default_factory=list)


Occurrence = Event | AuthRequested | ReplyReceived | LogReceived | Notice | UnknownFrame | EventSkipped | Closed


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
