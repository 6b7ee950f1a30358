"""What the server lets this user do: each command is queued in a transaction that is thrown away. Nothing runs.

A server checks rights when a command is queued, not when the transaction runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Final

from bridge.bus.redis.wire import MULTI, ReplyError, command
from bridge.bus.redis.writers import Writers
from bridge.bus.rights import Use

_DISCARD: Final = command(b"DISCARD")
_GROUP: Final = b"esl-bridge"


async def refused(writers: Writers, queue_type: str, uses: Sequence[Use]) -> list[Use]:
    """Those of the uses that the server would refuse. Raises ``BusUnavailable``."""
    tries = (_try(writers, _address(use), list(_commands(use, _address(use), queue_type))) for use in uses)
    answers = await asyncio.gather(*tries)
    return [use for use, allowed in zip(uses, answers, strict=True) if not allowed]


async def _try(writers: Writers, key: bytes, commands: list[tuple[bytes, ...]]) -> bool:
    written = b"".join((MULTI, *(command(*one) for one in commands), _DISCARD))
    replies = await writers.ask(key, written, len(commands) + 2)
    return not any(isinstance(reply, ReplyError) and reply.code == "NOPERM" for reply in replies)


def _address(use: Use) -> bytes:
    return use.address.removeprefix("pubsub:").encode()


def _commands(use: Use, address: bytes, queue_type: str) -> Iterator[tuple[bytes, ...]]:
    if use.kind == "topic" or use.address.startswith("pubsub:"):
        yield b"PUBLISH", address, b""
    elif use.kind == "stream":
        yield b"XADD", address, b"*", b"data", b""
    elif use.kind == "reply":
        yield b"RPUSH", address, b""
        yield b"PEXPIRE", address, b"1"
    elif queue_type == "list":
        taken = b"{%b}.processing.check" % address
        yield b"LMOVE", address, taken, b"RIGHT", b"LEFT"
        yield b"LREM", taken, b"-1", b""
    else:
        yield b"XGROUP", b"CREATE", address, _GROUP, b"0", b"MKSTREAM"
        yield b"XREADGROUP", b"GROUP", _GROUP, b"check", b"STREAMS", address, b">"
        yield b"XACK", address, _GROUP, b"0-0"
        yield b"XDEL", address, b"0-0"
