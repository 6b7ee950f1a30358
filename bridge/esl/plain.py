"""The plain event format: ``Name: %-encoded value`` lines, a blank line, and perhaps a raw body.

This room never decodes before it has split the lines, so that no value can become a header, and never twice.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote_to_bytes

from bridge.errors import ProtocolError
from bridge.esl.headers import decode_block, parse_block

HeaderValue = str | list[str]

_LENGTHS: Final = re.compile(rb"^content-length:[ \t]*([0-9]{1,10})\r?$", re.IGNORECASE | re.MULTILINE)
_UNDEFINED: Final = b"_undef_"  # how the plain format writes an empty value
_ARRAY: Final = "ARRAY::"
_ARRAY_SEPARATOR: Final = "|:"


def split_plain(raw: bytes) -> tuple[bytes, bytes | None]:
    """Split an event into its header block and its body (None where there is none).

    Raises ``ProtocolError`` where the block has no end, or where what follows it is not as long as an inner
    Content-Length says: the sign of a frame that was torn on its way.
    """
    end = raw.find(b"\n\n")
    if end < 0:
        raise ProtocolError("a plain event without the blank line at its end: the stream is out of step")
    body = raw[end + 2 :]
    if not body:
        return raw[:end], None
    block = raw[:end]
    # A sender's own Content-Length can stand before the true one.
    if not any(int(length) == len(body) for length in _LENGTHS.findall(block)):
        raise ProtocolError("a plain event whose body has another length than it says: the stream is out of step")
    return block, body


def find_values(block: bytes, names: tuple[bytes, ...]) -> list[str]:
    """Return the decoded value of each header in ``names``, its last occurrence, ``""`` where absent.

    Names are given as ``b"\\nName: "``. Looks for these lines only; the others are not decoded.
    """
    lines = b"\n" + block
    values: list[str] = []
    for name in names:
        found = position = lines.find(name)
        while position >= 0:
            found = position
            position = lines.find(name, position + 1)
        if found < 0:
            values.append("")
            continue
        start = found + len(name)
        end = lines.find(b"\n", start)
        values.append(decode_value(lines[start:] if end < 0 else lines[start:end]))
    return values


def decode_value(value: bytes) -> str:
    """Decode one value: %XX once, then UTF-8 with U+FFFD for what is invalid. Other percent signs stay."""
    if value == _UNDEFINED:
        return ""
    return (unquote_to_bytes(value) if b"%" in value else value).decode("utf-8", "replace")


def decode_plain(block: bytes) -> tuple[dict[str, HeaderValue], bool]:
    """Decode a whole header block; also return whether invalid UTF-8 had to be replaced.

    The last of several equal names wins; ``ARRAY::a|:b`` becomes a list; an ``_undef_`` value is empty.
    """
    names: list[str] = []
    encoded: list[bytes] = []
    for line in block.split(b"\n"):
        name, colon, value = line.partition(b":")
        if not colon:
            continue
        names.append(name.decode("utf-8", "replace"))
        value = value[1:] if value[:1] == b" " else value
        encoded.append(b"" if value == _UNDEFINED else value)
    # One decoding for all values. NUL keeps them apart: it is in no C string, so only a hostile %00 collides.
    joined = b"\0".join(encoded)
    values = [joined] if b"%00" in joined else unquote_to_bytes(joined).split(b"\0")
    if len(values) != len(names):
        values = [unquote_to_bytes(value) for value in encoded]
    repaired = False
    headers: dict[str, HeaderValue] = {}
    for header, decoded in zip(names, values, strict=True):
        try:
            text = decoded.decode()
        except UnicodeDecodeError:
            text = decoded.decode("utf-8", "replace")
            repaired = True
        headers[header] = text[len(_ARRAY) :].split(_ARRAY_SEPARATOR) if text.startswith(_ARRAY) else text
    return headers, repaired


def parse_connect(head: bytes) -> dict[str, HeaderValue]:
    """Decode the answer to ``connect`` on an outbound socket: a frame's head that is an event itself.

    It has no body and no Content-Length, its values are %-encoded and its Content-Type stands near its end.
    Raises ``ProtocolError`` where it is no command/reply.
    """
    outer = decode_block(parse_block(head))
    if outer.get("content-type") not in ("command/reply", "command%2Freply"):
        raise ProtocolError("not the answer to connect")
    return decode_plain(head.replace(b"\r", b""))[0]
