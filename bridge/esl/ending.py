"""How a connection ends: FreeSWITCH's notices, and the reasons that are told apart.

This room never decides what to do about an end: reconnecting is the switch floor's.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal

from bridge.esl.frames import Frame


class CloseReason(StrEnum):
    """Why a connection ended; each deserves its own back-off and its own metric."""

    EOF = "eof"
    DISCONNECT = "disconnect"
    SHUTDOWN = "shutdown"
    LOST_EVENTS = "lost_events"
    LOST_LOG_LINES = "lost_log_lines"
    ACCESS_DENIED = "access_denied"
    AUTH_FAILED = "auth_failed"
    PROTOCOL_ERROR = "protocol_error"
    LOCAL = "local"


NoticeKind = Literal["disconnect", "linger"]


@dataclass(frozen=True, slots=True)
class Notice:
    """FreeSWITCH says that it ends the connection, or that it lingers after a hangup (events still come).

    ``uuid`` is the call of an outbound socket, ``linger_s`` how long it lingers: -1 until we close.
    """

    text: str
    kind: NoticeKind
    reason: CloseReason = CloseReason.DISCONNECT
    uuid: str = ""
    linger_s: int = 0

    @classmethod
    def of(cls, frame: Frame) -> Notice:
        """Read a frame of type text/disconnect-notice."""
        headers = frame.headers
        uuid = headers.get("controlled-session-uuid", "")
        text = frame.body.decode("utf-8", "replace").strip()
        if headers.get("content-disposition") == "linger":
            seconds = headers.get("linger-time", "")
            digits = seconds.removeprefix("-")
            known = digits.isascii() and digits.isdigit() and len(digits) < 10
            return cls(text, "linger", uuid=uuid, linger_s=int(seconds) if known else -1)
        return cls(text, "disconnect", find_reason(frame.body) or CloseReason.DISCONNECT, uuid)


_TEXTS: Final = (
    (b"killed listener because of lost events", CloseReason.LOST_EVENTS),
    (b"killed listener because of lost log lines", CloseReason.LOST_LOG_LINES),
    (b"The system is being shut down", CloseReason.SHUTDOWN),
    (b"Disconnected, goodbye.", CloseReason.DISCONNECT),
)
_NOTICE: Final = b"Content-Type: text/disconnect-notice\n"
_NOTICE_HEAD: Final = _NOTICE + b"Content-Length: "
_BEGINNINGS: Final = tuple(_NOTICE_HEAD[:length].decode() for length in range(1, len(_NOTICE_HEAD) + 1))


def find_reason(text: bytes) -> CloseReason | None:
    """Return the reason that a notice's body gives; None for an unknown text."""
    for words, reason in _TEXTS:
        if words in text:
            return reason
    return None


def find_torn_notice(torn: bytes, rest: bytes = b"") -> CloseReason | None:
    """Find a notice that another thread of FreeSWITCH wrote into the middle of a frame.

    ``rest`` is what was read with it: the frame may have ended within the notice.
    """
    for place in (torn, rest):
        start = place.rfind(_NOTICE)
        if start >= 0:
            return find_reason(place[start:]) or find_reason(rest) or CloseReason.DISCONNECT
    return None


def holds_notice(body: bytes) -> bool:
    """Whether the output of a command has the head of a notice in it: then the output is not whole."""
    return _NOTICE_HEAD in body


def ends_in_notice(text: str) -> bool:
    """Whether a text ends in the beginning of a notice's head."""
    return text.endswith(_BEGINNINGS)
