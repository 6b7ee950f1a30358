"""What FreeSWITCH answers: ``+OK``, ``-ERR``, ``-USAGE``, or an output.

This room never searches a text for ``-ERR``: only its beginning says how a command went.
"""

from __future__ import annotations

from typing import Literal

from bridge.esl.frames import API_RESPONSE, Frame
from bridge.esl.headers import decode_block, parse_block

ReplyKind = Literal["api", "command"]
ReplyStatus = Literal["ok", "error", "usage", "output"]

_REFUSED = ("-ERR permission denied", "-ERR command not found")


class Reply:
    """The answer to one command.

    ``text`` is the output of an ``api`` command exactly as sent, or the Reply-Text of any other; invalid UTF-8 is
    replaced by U+FFFD. ``headers`` are those of the frame, names in lower case. ``skipped`` are the bytes of an output
    that was over the limit, so that there is no ``text`` of it.
    """

    __slots__ = ("_head", "_headers", "kind", "skipped", "text")

    def __init__(self, kind: ReplyKind, text: str, headers: dict[str, str] | None = None, *, head: bytes = b"") -> None:
        self.kind = kind
        self.text = text
        self.skipped = 0
        self._headers = headers
        self._head = head

    def __repr__(self) -> str:
        return f"Reply({self.kind!r}, {self.text!r})"

    @property
    def headers(self) -> dict[str, str]:
        """Read when somebody asks: those of an ``api`` reply say nothing but its length."""
        if self._headers is None:
            self._headers = decode_block(parse_block(self._head)) if self._head else {}
        return self._headers

    @classmethod
    def of(cls, frame: Frame) -> Reply:
        """Read a frame of type api/response or command/reply."""
        if frame.content_type == API_RESPONSE:
            return cls("api", frame.body.decode("utf-8", "replace"), head=frame.head)
        headers = frame.headers
        return cls("command", headers.get("reply-text", ""), headers)

    @property
    def status(self) -> ReplyStatus:
        """How it went, by the text's beginning alone."""
        text = self.text
        if text.startswith("+OK"):
            return "ok"
        if text.startswith("-ERR"):
            return "error"
        return "usage" if text.startswith("-USAGE") else "output"

    @property
    def ok(self) -> bool:
        """Whether it is neither ``-ERR`` nor ``-USAGE``."""
        return self.status in ("ok", "output")

    @property
    def error(self) -> str:
        """For people: what is wrong, without the ``-ERR``; empty where nothing is."""
        status = self.status
        if status == "error":
            return self.text.removeprefix("-ERR").strip() or "unknown error"
        return self.text.strip() if status == "usage" else ""

    @property
    def denied(self) -> bool:
        """Whether the Event Socket itself turned the command away, so that it did not run.

        The same words in the output of an ``api`` command are that command's own.
        """
        return self.kind == "command" and self.text.startswith(_REFUSED)

    @property
    def not_executed(self) -> bool:
        """Whether FreeSWITCH says that it did not begin: denied, or addressed to a session that is not there."""
        return self.denied or (self.kind == "command" and self.text.startswith("-ERR invalid session id"))

    @property
    def no_output(self) -> bool:
        """Whether an ``api`` command ran and had nothing to say (``-ERR no reply``)."""
        return self.kind == "api" and self.text.rstrip("\n") in ("", "-ERR no reply")

    @property
    def job_uuid(self) -> str:
        """The Job-UUID of an accepted ``bgapi``."""
        return self.headers.get("job-uuid", "")
