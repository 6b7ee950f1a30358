"""What the shared ledger writes: a marker while a command runs, its reply afterwards. Bytes in, values out.

This room never decides anything.
"""

from __future__ import annotations

from typing import Final

import msgspec

from bridge.errors import BridgeError
from bridge.messages.codec import MSGPACK
from bridge.messages.reply import CommandReply, decode_reply, encode_reply

MARK: Final = b"M"
LOST: Final = b"L"
KEPT: Final = b"K"
_CONTENT: Final = 16
_HEAD: Final = 1 + _CONTENT


class Entry(msgspec.Struct, frozen=True, gc=False):
    """A record, read: ``owner`` of a marker, or the ``reply`` kept; ``content`` is the request's fingerprint.

    A ``lost`` marker took the place of a record of a command that may have run. ``number`` tells the owner's markers
    from one another.
    """

    content: bytes
    owner: str = ""
    number: int = 0
    lost: bool = False
    reply: CommandReply | None = None


def mark(content: bytes, owner: str, number: int, *, lost: bool = False) -> bytes:
    """The marker of a command that ``owner`` is about to write, or (``lost``) to tell of.

    No two of an owner's are alike: one that is taken away because nobody knows whether it was set must not be the one
    that was set for the same id since.
    """
    return b"%b%b%d %b" % (LOST if lost else MARK, content, number, owner.encode())


def kept(content: bytes, reply: CommandReply) -> bytes:
    """The record of an outcome."""
    return b"%b%b%b" % (KEPT, content, encode_reply(reply, MSGPACK))


def read(value: bytes) -> Entry | None:
    """A record as it was written; None for what is none of ours."""
    content, rest = value[1:_HEAD], value[_HEAD:]
    if len(content) < _CONTENT:
        return None
    try:
        if value[:1] in (MARK, LOST):
            number, _, owner = rest.partition(b" ")
            return Entry(content, owner=owner.decode(), number=int(number), lost=value[:1] == LOST)
        if value[:1] == KEPT:
            return Entry(content, reply=decode_reply(rest))
    except (BridgeError, ValueError):
        return None
    return None
