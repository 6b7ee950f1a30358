"""The outer header block of a frame: strict where it frames, lenient where it only informs.

This room never looks at a body, and never at the headers of an event inside one.
"""

from __future__ import annotations

from typing import Final

from bridge.errors import LimitExceeded, ProtocolError

CONTENT_LENGTH: Final = b"content-length"
CONTENT_TYPE: Final = b"content-type"

# What frames a message or carries its answer cannot say two things at once: two values mean that two
# frames were glued together (a reply cut by FreeSWITCH's 512-byte buffer, a notice written into a header).
_DECISIVE: Final = frozenset((CONTENT_LENGTH, CONTENT_TYPE, b"reply-text"))

_FRAMING: Final = (CONTENT_LENGTH, CONTENT_TYPE)
_EVENT: Final = b"text/event-"
_VARIABLE: Final = b"variable_"  # channel variables of the answer to connect, whose names are anybody's

# More digits than this are hostile whatever the limit; int() is never asked about them.
_MAX_DIGITS: Final = 10


def parse_block(block: bytes) -> dict[bytes, bytes]:
    """Split a header block (without its blank line) into lower-cased names and their raw values.

    The last of several equal names wins. Raises ``ProtocolError`` for a line that is no header, and for the signs
    of two heads in one: two different values of a header that frames the message, a whole head repeated.
    """
    headers: dict[bytes, bytes] = {}
    repeated: set[bytes] = set()
    for line in block.split(b"\n"):
        name, colon, value = line.partition(b":")
        name = name.strip().lower()
        if not colon or not name:
            raise ProtocolError(f"not a header line: {excerpt(line)}")
        value = value.strip(b" \t\r")
        if name in _DECISIVE:
            if name in headers:
                repeated.add(name)
                if headers[name] != value:
                    raise ProtocolError(f"two different values of {name.decode()}: two frames run into each other")
        elif name.endswith(_FRAMING) and not name.startswith(_VARIABLE):
            # A head that was cut in the middle of a name, and the next frame's head behind it.
            raise ProtocolError(f"a head in the middle of a line: two frames run into each other: {excerpt(line)}")
        headers[name] = value
    if CONTENT_LENGTH in repeated and (
        CONTENT_TYPE in repeated or headers.get(CONTENT_TYPE, b"").lower().startswith(_EVENT)
    ):
        # A head cut behind its first line: FreeSWITCH writes an event's length first.
        raise ProtocolError("two heads in one: two frames run into each other")
    return headers


def body_length(headers: dict[bytes, bytes], limit: int) -> int:
    """Return the body's length in bytes, 0 where no Content-Length says otherwise.

    Digits only: ``int()`` would take ``+5``, ``-1`` and ``1_0``. Raises ``LimitExceeded`` above ``limit``.
    """
    value = headers.get(CONTENT_LENGTH)
    if value is None:
        return 0
    if not value.isdigit():
        raise ProtocolError(f"Content-Length is not a number: {excerpt(value)}")
    if len(value) > _MAX_DIGITS or (length := int(value)) > limit:
        raise LimitExceeded(f"a body of {value[:24].decode()} bytes is over the limit of {limit}")
    return length


def content_type(headers: dict[bytes, bytes]) -> str:
    """Return the frame's Content-Type in lower case; raises ``ProtocolError`` where there is none, or more than one."""
    value = headers.get(CONTENT_TYPE)
    if not value:
        raise ProtocolError("a header block without Content-Type: the stream is out of step")
    if b":" in value:
        raise ProtocolError(f"a head in the middle of a Content-Type: two frames run into each other: {excerpt(value)}")
    return value.decode("utf-8", "replace").lower()


def decode_block(headers: dict[bytes, bytes]) -> dict[str, str]:
    """Decode names and values as UTF-8, invalid bytes replaced by U+FFFD."""
    return {name.decode("utf-8", "replace"): value.decode("utf-8", "replace") for name, value in headers.items()}


def excerpt(data: bytes, size: int = 60) -> str:
    """Return the beginning of ``data`` in a form that is safe and short enough for an error text."""
    return repr(data[:size])[1:] + ("..." if len(data) > size else "")
