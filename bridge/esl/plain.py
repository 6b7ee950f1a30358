"""The plain event format: ``Name: %-encoded value`` lines, a blank line, and perhaps a raw body.

This room never decodes before it has split the lines, so that no value can become a header, and never twice.
"""

from __future__ import annotations

import binascii
import re
from typing import Final
from urllib.parse import unquote_to_bytes

from bridge.errors import ProtocolError
from bridge.esl.headers import decode_block, parse_block

HeaderValue = str | list[str]

_LENGTHS: Final = re.compile(rb"^content-length:[ \t]*([0-9]{1,10})\r?$", re.IGNORECASE | re.MULTILINE)
# The head of another frame at the end of an event's header block: a notice, or the next frame, in place of the missing
# rest. A sender's own Content-Type never stands there, FreeSWITCH's stamp comes behind it.
_NEXT_HEAD: Final = re.compile(
    rb"(?:\nContent-Type: text/event-[a-z]+"
    rb"|Content-Type: (?:text/disconnect-notice|api/response)\nContent-Length: [0-9]+"
    rb"|Content-Type: command/reply\nReply-Text: [^\n]*"
    rb"|Content-Type: log/data\nContent-Length: [0-9]+\nLog-Level: (?:[^\n]*\n){2,5}User-Data: [^\n]*)\Z"
)
_LONGEST_HEAD: Final = 512
_UNDEFINED: Final = b"_undef_"  # how the plain format writes an empty value
_UNDEFINED_LINE: Final = b": _undef_\n"
_ARRAY: Final = "ARRAY::"
_ARRAY_SEPARATOR: Final = "|:"
# What JSON has an escape for and SIP puts into values (SDP above all); FreeSWITCH writes hex in capitals.
_ESCAPES: Final = ((b"%22", b'\\"'), (b"%5C", b"\\\\"), (b"%0A", b"\\n"), (b"%0D", b"\\r"), (b"%09", b"\\t"))
# A %XX that cannot be decoded within JSON as it is, and a percent sign that begins none.
_NO_PLAIN_ESCAPE: Final = re.compile(rb"%(?:22|5[Cc]|[01]|(?![0-9A-Fa-f]{2}))")
_BUT_MARKS: Final = bytes(byte for byte in range(256) if byte not in b'%: \n\r"\\')
_JSON_ARRAY: Final = re.compile(rb':"ARRAY::((?:[^"\\]|\\.)*+)"')
# Every line a name, one ": ", a value without colon: FreeSWITCH encodes colons, but not what is in names.
_REGULAR: Final = re.compile(rb"(?:[^:%\n\0]++: [^:\n\0]*+(?:\n(?!\Z)|\Z))++")


def split_plain(raw: bytes) -> tuple[bytes, bytes | None]:
    """Split an event into its header block and its body (None where there is none).

    Raises ``ProtocolError`` where the block has no end, or where what follows it is not as long as an inner
    Content-Length says: the sign of a frame that was torn on its way.
    """
    end = raw.find(b"\n\n")
    if end < 0:
        raise ProtocolError("a plain event without the blank line at its end: the stream is out of step")
    body = raw[end + 2 :]
    block = raw[:end]
    if _runs_into_another(block):
        raise ProtocolError("a plain event with another frame's head at its end: the stream is out of step")
    if not body:
        return block, None
    # A sender's own Content-Length can stand before the true one.
    if not any(int(length) == len(body) for length in _LENGTHS.findall(block)):
        raise ProtocolError("a plain event whose body has another length than it says: the stream is out of step")
    return block, body


def _runs_into_another(block: bytes) -> bool:
    # Nearly never is there a Content-Type at all so near to the end.
    return block.find(b"Content-Type: ", -_LONGEST_HEAD) >= 0 and _NEXT_HEAD.search(block[-_LONGEST_HEAD:]) is not None


def decode_value(value: bytes) -> str:
    """Decode one value: %XX once, then UTF-8 with U+FFFD for what is invalid. Other percent signs stay."""
    if value == _UNDEFINED:
        return ""
    return (unquote_to_bytes(value) if b"%" in value else value).decode("utf-8", "replace")


def decode_plain(block: bytes) -> tuple[dict[str, HeaderValue], bool]:
    """Decode a whole header block; also return whether invalid UTF-8 had to be replaced.

    The last of several equal names wins; ``ARRAY::a|:b`` becomes a list; an ``_undef_`` value is empty.
    """
    if _REGULAR.fullmatch(block) and b"%00" not in block and _UNDEFINED not in block:
        # As FreeSWITCH writes it. One decoding for all values: NUL, which is in none of them, keeps them apart.
        joined = unquote_to_bytes(block.replace(b": ", b"\0").replace(b"\n", b"\0"))
        text, repaired = _decode_text(joined)
        parts = text.split("\0")
        headers: dict[str, HeaderValue] = dict(zip(parts[::2], parts[1::2], strict=True))
        if _ARRAY in text:
            for name, value in zip(parts[::2], parts[1::2], strict=True):
                headers[name] = _unfold(value)
        return headers, repaired
    headers = {}
    repaired = False
    for line in block.split(b"\n"):
        raw_name, colon, raw_value = line.partition(b":")
        if colon:
            raw_value = raw_value.removeprefix(b" ")
            decoded = b"" if raw_value == _UNDEFINED else unquote_to_bytes(raw_value)
            text, replaced = _decode_text(decoded)
            headers[raw_name.decode("utf-8", "replace")] = _unfold(text)
            repaired = repaired or replaced
    return headers, repaired


def transcribe(raw: bytes) -> bytes | None:
    """Write an event without a body as a JSON object, a dozen passes over the text instead of two strings a header.

    Returns None for what is out of the ordinary (a body, invalid UTF-8, odd names, values and percent signs): that is
    ``decode_plain``'s. What is returned has to be read as JSON before it is believed: lines that are no headers make
    it invalid.
    """
    text = raw[:-2]
    if not raw.endswith(b"\n\n") or _runs_into_another(text):
        return None
    marks = raw.translate(None, _BUT_MARKS)
    if b'"' in marks or b"\\" in marks or b"\r" in marks or b"%:" in marks:
        return None  # in a value they are encoded; in a name, which is not, a percent sign stands for itself
    separators = marks.count(b": ")
    if marks.count(b":") != separators or marks.count(b" ") != separators or _UNDEFINED_LINE in raw:
        return None
    if _NO_PLAIN_ESCAPE.search(text):
        for code, escape in _ESCAPES:
            text = text.replace(code, escape)
        if _NO_PLAIN_ESCAPE.search(text):
            return None
    # The separators first: values may hold the same characters, but encoded. Quoted-printable is the one encoding by
    # hex digits that is decoded in C; it has = where a URL has %.
    text = text.replace(b" ", b"").replace(b":", b'":"').replace(b"\n", b'","')
    text = text.replace(b"=", b"=3D").replace(b"%", b"=")
    text = b'{"%b"}' % binascii.a2b_qp(text)
    if not text.isascii():
        try:
            text.decode()
        except UnicodeDecodeError:
            return None
    if b':"ARRAY::' in text:
        text = _JSON_ARRAY.sub(_unfold_json, text)
    return text


def _unfold_json(found: re.Match[bytes]) -> bytes:
    return b':["%b"]' % found[1].replace(_ARRAY_SEPARATOR.encode(), b'","')


def parse_connect(head: bytes) -> dict[str, HeaderValue]:
    """Decode the answer to ``connect`` on an outbound socket: a frame's head that is an event itself.

    It has no body and no Content-Length, its values are %-encoded and its Content-Type stands near its end.
    Raises ``ProtocolError`` where it is no command/reply.
    """
    outer = decode_block(parse_block(head))
    if outer.get("content-type") not in ("command/reply", "command%2Freply"):
        raise ProtocolError("not the answer to connect")
    return decode_plain(head.replace(b"\r", b""))[0]


def _decode_text(data: bytes) -> tuple[str, bool]:
    try:
        return data.decode(), False
    except UnicodeDecodeError:
        return data.decode("utf-8", "replace"), True


def _unfold(text: str) -> HeaderValue:
    return text[len(_ARRAY) :].split(_ARRAY_SEPARATOR) if text.startswith(_ARRAY) else text
