"""Takes the client's bytes apart into commands, by the rules of mod_event_socket's read_packet.

It never runs a command, and never fails on what a client sends: what is wrong closes the connection.
"""

from __future__ import annotations

import re

from bridge.simulator.serialise import to_text

MAX_HEAD = 10_485_760
MAX_BODY = 16 * 1024 * 1024

_BLANK = re.compile(rb"\n\r*\n")
_LEADING = re.compile(rb"[\r\n]*")
_DIGITS = re.compile(r"\s*-?\d+")


def whole(text: str) -> int | None:
    """The whole number that a word is, None when it is none (or absurdly long)."""
    text = text.strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else None


class ClientCommand:
    """One command as it came: its line, its header lines, its body (cut at a NUL, as C strings are)."""

    __slots__ = ("body", "headers", "line", "raw_body")

    def __init__(self, line: str, headers: list[tuple[str, str]], raw_body: bytes) -> None:
        self.line = line
        self.headers = headers
        self.raw_body = raw_body
        self.body = to_text(raw_body.partition(b"\0")[0]) if raw_body else None

    def header(self, name: str) -> str | None:
        """The first header of this name in any case."""
        wanted = name.lower()
        for key, value in self.headers:
            if key.lower() == wanted:
                return value
        return None


class CommandReader:
    """Cuts a stream of bytes into commands; ``broken`` once a Content-Length can only be answered by closing."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._scanned = 0
        self._head: tuple[str, list[tuple[str, str]]] | None = None
        self._missing = 0
        self.broken = False

    @property
    def partial(self) -> bool:
        """Whether part of a command has come; FreeSWITCH writes no events meanwhile."""
        return bool(self._buffer) or self._head is not None

    def feed(self, data: bytes) -> None:
        """More bytes from the client."""
        self._buffer += data

    def clear(self) -> None:
        """Forget what has come."""
        self._buffer.clear()
        self._scanned = 0
        self._head = None

    def take(self) -> ClientCommand | None:
        """The next whole command, or None when more bytes are needed."""
        if self.broken:
            return None
        buffer = self._buffer
        if self._head is None:
            if not self._scanned:
                leading = _LEADING.match(buffer)
                if leading is not None and leading.end():
                    del buffer[: leading.end()]
            if not buffer:
                return None
            blank = _BLANK.search(buffer, self._scanned)
            if blank is None and len(buffer) < MAX_HEAD:
                # A blank line may be split over two reads, with any number of CRs inside.
                self._scanned = max(0, len(buffer) - 16)
                return None
            end, after = (blank.start(), blank.end()) if blank is not None else (MAX_HEAD, MAX_HEAD)
            head = bytes(buffer[:end])
            del buffer[:after]
            self._scanned = 0
            line, headers = self._parse(head)
            length = self._content_length(headers)
            if length is None:
                self.broken = True
                return None
            if not length:
                return ClientCommand(line, headers, b"")
            self._head = (line, headers)
            self._missing = length
        if len(buffer) < self._missing:
            return None
        body = bytes(buffer[: self._missing])
        del buffer[: self._missing]
        (line, headers), self._head = self._head, None
        return ClientCommand(line, headers, body)

    @staticmethod
    def _parse(head: bytes) -> tuple[str, list[tuple[str, str]]]:
        first, *rest = head.partition(b"\0")[0].split(b"\n")
        headers = []
        for raw in rest:
            name, colon, value = raw.partition(b"\r")[0].partition(b":")
            if colon:
                headers.append((to_text(name), to_text(value.lstrip(b" "))))
        return to_text(first.partition(b"\r")[0]), headers

    @staticmethod
    def _content_length(headers: list[tuple[str, str]]) -> int | None:
        """The length of the body, 0 without one, None when it is out of bounds."""
        for name, value in headers:
            if name.lower() == "content-length":
                digits = _DIGITS.match(value)
                length = int(digits.group()[:20]) if digits is not None else 0
                return length if 0 <= length <= MAX_BODY else None
        return 0
