"""Messages as bytes of the NATS protocol, checked before they are written. Pure: never touches a connection."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from bridge.bus.base import Message
from bridge.errors import MessageTooLarge

MAX_SUBJECT = 1024
"""Longest subject in bytes; servers close the connection at a control line of 4096."""

_SUBJECT = re.compile(r"[^\x00-\x20\x7f*>\ud800-\udfff]+")
_HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_NEWLINES = str.maketrans({"\r": " ", "\n": " "})
_KNOWN_LIMIT = 4096
_known: dict[str, str] = {}
"""Subjects that were checked, with the beginning of the control line of a message with headers."""
_fixed: dict[str, tuple[int, str]] = {}
"""Bytes of the header block beside the identity, and what comes behind that, by content type."""


def check_subject(subject: str) -> None:
    """Raise ``ValueError`` for what is no subject to publish to: empty, too long, blanks, wildcards, control bytes."""
    if subject in _known:
        return
    if not _SUBJECT.fullmatch(subject) or len(subject.encode()) > MAX_SUBJECT:
        raise ValueError(f"not a NATS subject: {subject[:80]!r}")
    if len(_known) >= _KNOWN_LIMIT:
        _known.clear()
    _known[subject] = f"HPUB {subject} "


def render_headers(content_type: str, identity: str = "", headers: Iterable[tuple[str, str]] = ()) -> str:
    """The header block, empty when there is nothing to say. Line breaks in values become blanks."""
    if identity:
        if "\n" in identity or "\r" in identity:
            identity = identity.translate(_NEWLINES)
        block = f"NATS/1.0\r\nNats-Msg-Id: {identity}\r\nContent-Type: {content_type}\r\n"
        if not content_type:
            block = f"NATS/1.0\r\nNats-Msg-Id: {identity}\r\n"
    elif content_type:
        block = f"NATS/1.0\r\nContent-Type: {content_type}\r\n"
    elif headers:
        block = "NATS/1.0\r\n"
    else:
        return ""
    for name, value in headers:
        if not _HEADER_NAME.fullmatch(name):
            raise ValueError(f"not a NATS header name: {name!r}")
        block += f"{name}: {value.translate(_NEWLINES)}\r\n"
    return block + "\r\n"


def message_size(message: Message) -> int:
    """Payload and headers, as the server counts them."""
    block = render_headers(message.content_type, message.id, message.headers)
    return len(message.payload) + (len(block) if block.isascii() else len(block.encode("utf-8", "replace")))


def check_batch(batch: Sequence[Message], limit: int) -> None:
    """Raise what writing the batch would raise: ``MessageTooLarge`` or ``ValueError``."""
    for message in batch:
        if message.topic not in _known:
            check_subject(message.topic)
        # Rendering twice is spared where the headers cannot matter.
        if message.headers or len(message.payload) + 4 * (len(message.id) + len(message.content_type)) + 100 > limit:
            size = message_size(message)
            if size > limit:
                raise MessageTooLarge(size, limit)


def render_batch(batch: Sequence[Message], pieces: list[bytes], limit: int, replies: str = "", first: int = 0) -> int:
    """Append the batch to ``pieces`` and return its bytes. Raises ``MessageTooLarge`` and ``ValueError``.

    With ``replies`` each message bears the reply subject ``<replies><number in hex>``, counted from ``first``.
    """
    written = 0
    known = _known
    for message in batch:
        topic = message.topic
        begin = known.get(topic)
        if begin is None:
            check_subject(topic)
            begin = known[topic]
        payload = message.payload
        size = len(payload)
        reply = ""
        if replies:
            reply = f"{replies}{first:x} "
            first += 1
        identity, kind = message.id, message.content_type
        fixed = _fixed.get(kind)
        if (
            fixed is not None
            and identity
            and not message.headers
            and identity.isascii()
            and "\n" not in identity
            and "\r" not in identity
        ):
            # What nearly every event is: nothing in it can break a line.
            length = fixed[0] + len(identity)
            size += length
            head = f"{begin}{reply}{length} {size}\r\nNATS/1.0\r\nNats-Msg-Id: {identity}{fixed[1]}".encode()
            if size > limit:
                raise MessageTooLarge(size, limit)
            pieces += (head, payload, b"\r\n")
            written += len(head) + size - length + 2
            continue
        if kind and kind.isascii() and kind.isprintable() and len(_fixed) < _KNOWN_LIMIT:
            _fixed[kind] = len(render_headers(kind, "-")) - 1, f"\r\nContent-Type: {kind}\r\n\r\n"
        block = render_headers(kind, identity, message.headers)
        if not block:
            head = f"PUB {topic} {reply}{size}\r\n".encode()
        else:
            length = len(block) if block.isascii() else len(block.encode("utf-8", "replace"))
            size += length
            head = f"{begin}{reply}{length} {size}\r\n{block}".encode("utf-8", "replace")
        if size > limit:
            raise MessageTooLarge(size, limit)
        pieces += (head, payload, b"\r\n")
        written += len(head) + len(payload) + 2
    return written


def render_one(
    subject: str, reply: str, payload: bytes, content_type: str, headers: Mapping[str, str] | None, limit: int
) -> bytes:
    """One message with a reply subject (may be empty). Raises ``MessageTooLarge`` and ``ValueError``."""
    # Not through the cache of known subjects: addresses of replies come once, and would push the others out.
    for address in (subject, reply) if reply else (subject,):
        if not _SUBJECT.fullmatch(address) or len(address) > MAX_SUBJECT // 4:
            check_subject(address)
    size = len(payload)
    block = render_headers(content_type, "", headers.items() if headers else ())
    if not block:
        head = f"PUB {subject} {reply} {size}\r\n".encode()
    else:
        length = len(block) if block.isascii() else len(block.encode("utf-8", "replace"))
        size += length
        head = f"HPUB {subject} {reply} {length} {size}\r\n{block}".encode("utf-8", "replace")
    if size > limit:
        raise MessageTooLarge(size, limit)
    return b"%b%b\r\n" % (head, payload)
