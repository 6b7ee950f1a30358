"""One FreeSWITCH event: its bytes as sent, a small envelope, its headers decoded on demand.

This room never merges an event's headers with those of the frame that carried it.
"""

from __future__ import annotations

from typing import Literal, TypeVar, overload

import msgspec

from bridge.errors import ProtocolError
from bridge.esl.envelope import (
    UNREADABLE,
    Envelope,
    decode_envelope,
    decode_json,
    decode_strictly,
    find_envelope,
    other_spellings,
)
from bridge.esl.headers import excerpt
from bridge.esl.plain import HeaderValue, decode_plain, split_plain, transcribe

Format = Literal["json", "plain"]
T = TypeVar("T")

_BODY = "_body"
_LENGTH = "Content-Length"
_MAX_TIMESTAMP = 20
# FreeSWITCH writes its mark of an injected event in front of the sender's headers, so that it is found here
# even where the sender gave a Command of his own.
_STAMP_AREA = 1024
_encode = msgspec.json.Encoder().encode


class Event(msgspec.Struct, gc=False, eq=False):
    """An event. ``raw`` is the frame's body as FreeSWITCH sent it, ``format`` says how to read it.

    ``Event.parse`` checks first; an event made with the constructor is checked when it is first read and raises
    ``ProtocolError`` then.
    """

    raw: bytes
    format: Format = "json"
    _envelope: Envelope | None = None
    _headers: dict[str, HeaderValue] | None = None
    _json: bytes | None = None
    _repaired: bool | None = None

    @classmethod
    def parse(cls, raw: bytes, format: Format = "json") -> Event:
        """Make an event of a frame's body. Raises ``ProtocolError`` where it is none; nothing raises later."""
        return read_plain_event(raw) if format == "plain" else cls(raw, format, _read_envelope(raw, format))

    @property
    def envelope(self) -> Envelope:
        """The headers that say what this event is, decoded at most once."""
        envelope = self._envelope
        if envelope is None:
            envelope = self._envelope = _read_envelope(self.raw, self.format)
        return envelope

    @property
    def name(self) -> str:
        """Event-Name."""
        return self.envelope.name

    @property
    def subclass(self) -> str:
        """Event-Subclass of a CUSTOM event."""
        return self.envelope.subclass

    @property
    def unique_id(self) -> str:
        """Unique-ID: the channel it happened on."""
        return self.envelope.unique_id

    @property
    def identity(self) -> str:
        """``<Core-UUID>:<Event-Sequence>``, the same on every connection that gets this event."""
        envelope = self.envelope
        return f"{envelope.core_uuid}:{envelope.sequence}"

    @property
    def timestamp_us(self) -> int:
        """Microseconds since 1970 by FreeSWITCH's clock; 0 where the event does not say."""
        text = self.envelope.timestamp
        return int(text) if text.isascii() and text.isdigit() and len(text) < _MAX_TIMESTAMP else 0

    @property
    def injected(self) -> bool:
        """Whether somebody fired it with ``sendevent``."""
        command = (self._envelope or self.envelope).command
        if not command:
            return False  # FreeSWITCH's mark, or the sender's own that hides it, would be there
        if command[:9].lower() == "sendevent":
            return True
        mark = b'"Command":"sendevent' if self.format == "json" else b"Command: sendevent"
        return self.raw.find(mark, 0, _STAMP_AREA) >= 0

    @property
    def size(self) -> int:
        """Bytes that it holds: as sent, and as JSON where that was made of it."""
        return len(self.raw) + (len(self._json) if self._json is not None and self._json is not self.raw else 0)

    @property
    def headers(self) -> dict[str, HeaderValue]:
        """All headers, names as sent, the last of equal names, arrays as lists; without the body."""
        headers = self._headers
        if headers is None:
            if self.format == "json":
                headers = self._decoded()
                headers.pop(_BODY, None)
            elif self._json is not None:
                headers = decode_json(self._json)
                headers.pop(_BODY, None)
            else:
                headers, self._repaired = decode_plain(split_plain(self.raw)[0])
            self._headers = headers
        return headers

    @overload
    def get(self, name: str) -> HeaderValue | None: ...
    @overload
    def get(self, name: str, default: T) -> HeaderValue | T: ...
    def get(self, name: str, default: object = None) -> object:
        """Return a header by its exact spelling, else by any spelling, as FreeSWITCH itself looks it up."""
        headers = self.headers
        value = headers.get(name)
        if value is not None:
            return value
        wanted = name.lower()
        for spelling in reversed(headers):
            if spelling.lower() == wanted:
                return headers[spelling]
        return default

    def __getitem__(self, name: str) -> HeaderValue:
        value = self.get(name)
        if value is None:
            raise KeyError(name)
        return value

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.get(name) is not None

    @property
    def body(self) -> str | None:
        """The body; ``""`` for a job without output, None for an event without a body."""
        if self.format == "json":
            body = self._decoded().get(_BODY) if b'"_body"' in self.raw else None
        else:
            raw = split_plain(self.raw)[1]
            body = None if raw is None else raw.decode("utf-8", "replace")
        if isinstance(body, list):
            body = "".join(body)
        # The plain format does not write an empty body.
        return "" if body is None and self.name == "BACKGROUND_JOB" else body

    @property
    def json(self) -> bytes:
        """The event as a JSON object: FreeSWITCH's own bytes where they are valid UTF-8, repaired otherwise.

        A plain event is written as FreeSWITCH's own JSON would be: the body under ``_body``, its length beside it.
        """
        text = self._json
        if text is None:
            if self.format == "json" and self.raw.isascii():
                return self.raw
            text = self._json = self._rendered()
        return text

    @property
    def repaired(self) -> bool:
        """Whether the event holds invalid UTF-8, which was replaced by U+FFFD."""
        if self._repaired is None:
            self._rendered()
        return bool(self._repaired)

    @property
    def was_repaired(self) -> bool:
        """The same of an event whose ``json`` was asked for; without looking, False."""
        return self._repaired is True

    def __repr__(self) -> str:
        envelope = self._envelope
        what = f"{envelope.name} {self.identity}" if envelope is not None else "unread"
        return f"<Event {what}, {len(self.raw)} bytes {self.format}>"

    def _decoded(self) -> dict[str, HeaderValue]:
        try:
            return decode_json(self.raw)
        except ValueError as error:
            raise _out_of_step(self.raw) from error

    def _rendered(self) -> bytes:
        raw = self.raw
        if self.format == "json":
            self._repaired = False
            if raw.isascii():
                return raw
            try:
                raw.decode()
            except UnicodeDecodeError:
                self._repaired = True
                return raw.decode("utf-8", "replace").encode()
            return raw
        block, raw_body = split_plain(raw)
        headers, self._repaired = decode_plain(block)
        body = self.body
        if body is not None:
            encoded = body.encode()
            self._repaired = self._repaired or encoded != (raw_body or b"")
            headers[_LENGTH] = str(len(encoded))
            headers[_BODY] = body
        return _encode(headers)


def read_json_event(raw: bytes) -> Event | None:
    """Make an event of a JSON body in one step; None for what ``Event.parse`` shall judge."""
    try:
        envelope = decode_strictly(raw)
    except UNREADABLE:
        return None
    if not envelope.unique_id and other_spellings(raw):
        return None
    return Event(raw, "json", envelope)


def read_plain_event(raw: bytes) -> Event:
    """Make an event of a plain body; what is ordinary becomes JSON at once. Raises ``ProtocolError`` as ``parse``."""
    text = transcribe(raw)
    if text is not None:
        event = read_json_event(text)
        # The plain format does not write a job's empty output, JSON does.
        if event is not None and event.name != "BACKGROUND_JOB":
            return Event(raw, "plain", event._envelope, None, text, False)
    return Event(raw, "plain", _read_envelope(raw, "plain"))


def _read_envelope(raw: bytes, format: Format) -> Envelope:
    if format != "json":
        return find_envelope(split_plain(raw)[0])
    try:
        return decode_envelope(raw)
    except ValueError as error:
        raise _out_of_step(raw) from error


def _out_of_step(raw: bytes) -> ProtocolError:
    return ProtocolError(f"an event that is no JSON object: the stream is out of step: {excerpt(raw)}")
