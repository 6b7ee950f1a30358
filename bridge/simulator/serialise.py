"""Writes events as FreeSWITCH does: plain with its %-encoding, JSON as its cJSON prints it, XML.

It never decides who gets an event, and it knows no socket.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from json.encoder import encode_basestring
from typing import Literal

Format = Literal["plain", "json", "xml"]
Value = str | list[str]
Headers = list[tuple[str, Value]]

# switch_url_encode: what it calls unsafe; a % that already begins an upper-case escape is left alone.
_UNSAFE = re.compile(rb'%(?![0-9A-F]{2})|[\x00-\x20\x7f-\xff"#&+:;<=>?@\[\\\]^`{|}]')
_ESCAPES = {bytes((byte,)): b"%%%02X" % byte for byte in range(256)}

_names: dict[str, str] = {}
_plain: dict[str, bytes] = {}
_CACHE_LIMIT = 8192


def to_bytes(text: str) -> bytes:
    """UTF-8 of a text; bytes that came in as invalid UTF-8 leave as they were."""
    return text.encode("utf-8", "surrogateescape")


def to_text(raw: bytes) -> str:
    """The text of bytes off the wire; nothing is lost where they are not UTF-8."""
    return raw.decode("utf-8", "surrogateescape")


def encode_plain(value: str) -> bytes:
    """One header value in FreeSWITCH's %-encoding."""
    known = _plain.get(value)
    if known is not None:
        return known
    encoded = _UNSAFE.sub(lambda match: _ESCAPES[match.group()], to_bytes(value)) or b"_undef_"
    if len(value) <= 64:
        if len(_plain) >= _CACHE_LIMIT:
            _plain.clear()
        _plain[value] = encoded
    return encoded


def _flat(value: Value) -> str:
    return value if isinstance(value, str) else "ARRAY::" + "|:".join(value)


def render_plain(headers: Iterable[tuple[str, Value]], body: str | None) -> bytes:
    """The text/event-plain body of an event, inner blank line included."""
    parts = [b"%b: %b\n" % (to_bytes(name), encode_plain(_flat(value))) for name, value in headers]
    if body:
        raw = to_bytes(body)
        parts.append(b"Content-Length: %d\n\n" % len(raw))
        parts.append(raw)
    else:
        parts.append(b"\n")
    return b"".join(parts)


def _learn(headers: Iterable[tuple[str, Value]]) -> None:
    """Remember the header names as they stand in JSON."""
    if len(_names) >= _CACHE_LIMIT:
        _names.clear()
    for name, _ in headers:
        _names[name] = encode_basestring(name) + ":"


def _json_value(value: Value) -> str:
    if isinstance(value, str):
        return encode_basestring(value)
    return f"[{','.join(map(encode_basestring, value))}]"


def render_json(headers: Collection[tuple[str, Value]], body: str | None) -> bytes:
    """The text/event-json body: unformatted, keys repeated where the event repeats them, ``_body`` last."""
    names, escape = _names, encode_basestring
    try:  # all names known and no array: nearly always
        parts = [names[name] + escape(value) for name, value in headers]  # type: ignore[arg-type]
    except (KeyError, TypeError):
        _learn(headers)
        parts = [names[name] + _json_value(value) for name, value in headers]
    if body is not None:
        parts.append(f'"Content-Length":"{len(to_bytes(body))}"')
        parts.append('"_body":' + escape(body))
    return to_bytes("{" + ",".join(parts) + "}")


def _xml(text: bytes) -> bytes:
    return text.replace(b"&", b"&amp;").replace(b"<", b"&lt;").replace(b">", b"&gt;")


def render_xml(headers: Iterable[tuple[str, Value]], body: str | None) -> bytes:
    """The text/event-xml body: values %-encoded and XML-escaped."""
    parts = [b"<event>\n  <headers>\n"]
    for name, value in headers:
        tag = to_bytes(name)
        parts.append(b"    <%b>%b</%b>\n" % (tag, _xml(encode_plain(_flat(value))), tag))
    parts.append(b"  </headers>\n")
    if body is not None:
        raw = to_bytes(body)
        indent = b"  " if raw.endswith(b"\n") else b""
        parts.append(b"  <Content-Length>%d</Content-Length>\n  <body>%b%b</body>\n" % (len(raw), _xml(raw), indent))
    parts.append(b"</event>\n")
    return b"".join(parts)


def render_frame(headers: Collection[tuple[str, Value]], body: str | None, format: Format) -> bytes:
    """A whole event frame; its Content-Length comes first, as FreeSWITCH writes it."""
    if format == "json":
        raw = render_json(headers, body)
        return b"Content-Length: %d\nContent-Type: text/event-json\n\n%b" % (len(raw), raw)
    if format == "plain":
        raw = render_plain(headers, body)
        return b"Content-Length: %d\nContent-Type: text/event-plain\n\n%b" % (len(raw), raw)
    raw = render_xml(headers, body)
    return b"Content-Length: %d\nContent-Type: text/event-xml\n\n%b" % (len(raw), raw)
