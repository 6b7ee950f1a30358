"""The few headers that say what an event is, read without decoding the others.

This room never builds a map of an event: see event.py for its headers.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

import msgspec

from bridge.esl.plain import HeaderValue, decode_value

_FIELDS: Final = {
    "name": "Event-Name",
    "subclass": "Event-Subclass",
    "core_uuid": "Core-UUID",
    "sequence": "Event-Sequence",
    "timestamp": "Event-Date-Timestamp",
    "unique_id": "Unique-ID",
    "job_uuid": "Job-UUID",
    "command": "Command",
}
_PLAIN_NAMES: Final = tuple(header.encode() for header in _FIELDS.values())
_PLAIN_LINES: Final = re.compile(b"\n(" + b"|".join(_PLAIN_NAMES) + b"): ?(.*)")


class Envelope(msgspec.Struct, rename=_FIELDS, gc=False):
    """What an event is; each field a text, ``""`` where the event has no such header.

    Of a header that is there twice the last one counts: it is FreeSWITCH's own stamp, the others are a sender's.
    ``timestamp`` is in microseconds since 1970 by FreeSWITCH's clock.
    """

    name: str = ""
    subclass: str = ""
    core_uuid: str = ""
    sequence: str = ""
    timestamp: str = ""
    unique_id: str = ""
    job_uuid: str = ""
    command: str = ""


# FreeSWITCH looks headers up in any case, and some of its modules write this one in lower case.
_ANY_CASE: Final = re.compile(rb'"(unique-id)"\s*:', re.IGNORECASE)
_ANY_CASE_PLAIN: Final = re.compile(rb"(?:^|\n)unique-id: ?(.*)", re.IGNORECASE)

_ENVELOPE: Final = msgspec.json.Decoder(Envelope)
decode_strictly: Final = _ENVELOPE.decode
"""Read the envelope of a JSON event; raises one of ``UNREADABLE`` where it needs repair or is none."""
_HEADERS: Final = msgspec.json.Decoder(dict[str, HeaderValue])
# msgspec reports invalid UTF-8 as UnicodeDecodeError, which is a ValueError, and deep nesting as RecursionError.
UNREADABLE: Final = (msgspec.DecodeError, ValueError, RecursionError)


def other_spellings(raw: bytes) -> list[bytes]:
    """The spellings of Unique-ID that a JSON event may have for a header, in their order."""
    # Lowering the whole text costs a fraction of a search that ignores case.
    return _ANY_CASE.findall(raw) if b'"unique-id"' in raw.lower() else []


def decode_envelope(raw: bytes) -> Envelope:
    """Read the envelope of a JSON event; the whole text is checked to be a JSON object, except for its UTF-8.

    Raises ``ValueError`` where it is none even after repairing its UTF-8.
    """
    try:
        envelope = _ENVELOPE.decode(raw)
    except UNREADABLE:
        headers = _decode_leniently(raw)
        envelope = Envelope(**{field: _one(headers.get(header, "")) for field, header in _FIELDS.items()})
    if not envelope.unique_id and (spellings := other_spellings(raw)):
        headers = decode_json(raw)
        for spelling in spellings:  # the last one counts; what stands inside of a value is no header
            envelope.unique_id = _one(headers.get(spelling.decode(), envelope.unique_id))
    return envelope


def find_envelope(block: bytes) -> Envelope:
    """Read the envelope of a plain event from its header block; its other lines are not decoded."""
    lines = dict(_PLAIN_LINES.findall(b"\n" + block))
    envelope = Envelope(*[decode_value(lines[name]) if name in lines else "" for name in _PLAIN_NAMES])
    if not envelope.unique_id and (values := _ANY_CASE_PLAIN.findall(block)):
        envelope.unique_id = decode_value(values[-1])
    return envelope


def decode_json(raw: bytes) -> dict[str, HeaderValue]:
    """Decode a JSON event to a map. Raises ``ValueError`` where it is no JSON object even after repair."""
    try:
        return _HEADERS.decode(raw)
    except UNREADABLE:
        return _decode_leniently(raw)


def _decode_leniently(raw: bytes) -> dict[str, HeaderValue]:
    """Read what the strict decoder refuses: invalid UTF-8, half surrogate pairs, values that are no text."""
    try:
        event = json.loads(raw.decode("utf-8", "replace"))
    except RecursionError:
        raise ValueError("nested too deeply for an event") from None
    if not isinstance(event, dict):
        raise ValueError("not a JSON object")
    return {_text(name): [_text(v) for v in value] if isinstance(value, list) else _text(value)
            for name, value in event.items()}  # fmt: skip


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else "" if value is None else json.dumps(value)
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _one(value: HeaderValue) -> str:
    return value if isinstance(value, str) else (value[-1] if value else "")
