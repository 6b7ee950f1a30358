"""Replies as bytes: encoded in the request's codec, held under the bus's limit, with the headers of failures.

This room never decides how a request ended.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from bridge.messages.codec import Codec
from bridge.messages.reply import (
    STATUSES,
    CommandReply,
    Executed,
    Status,
    Timing,
    agreed_executed,
    encode_reply,
    worst_status,
)
from bridge.relay.execution import Result

# Subject, header lines and protocol words that a broker may count beside the payload.
_OVERHEAD: Final = 1_024
_HEADER_LIMIT: Final = 256
_CODES: Final = {status: row.code for status, row in STATUSES.items()}
_TRACE: Final = ("traceparent", "tracestate")


def compose(
    result: Result,
    *,
    id: str,
    node: str,
    worker: str,
    elapsed: float,
    meta: dict[str, object] | None,
    late: bool = False,
) -> CommandReply:
    """The reply that tells a result; ``elapsed`` in seconds since the request was queued."""
    elapsed_us = int(elapsed * 1e6)
    reply = CommandReply(
        id=id,
        status=result.status,
        executed=result.executed,
        node=node,
        worker=worker,
        result=result.result,
        error=result.error,
        job=result.job,
        elapsed_ms=elapsed_us / 1e3,
        meta=meta,
    )
    if result.esl_ms is not None:
        esl_us = int(result.esl_ms * 1e3)
        reply.timing = Timing(max(0, elapsed_us - esl_us) / 1e3, esl_us / 1e3)
    if late:
        reply.late = True
    return reply


def combine(replies: list[CommandReply]) -> Result:
    """The result of ``to: all``: the worst status, and ``executed`` where all agree."""
    worst = worst_status(part.status for part in replies)
    failed = [f"{part.node}: {part.error or part.status}" for part in replies if part.status is not Status.OK]
    return Result(worst, agreed_executed(part.executed for part in replies), None, "; ".join(failed)[:1_000])


def encode_within(reply: CommandReply, codec: Codec, limit: int) -> tuple[CommandReply, bytes]:
    """The bytes of a reply of at most ``limit`` bytes, and the reply that they tell.

    A reply that is too large is never cut: it says ``too_large`` instead of its result.
    """
    payload = encode_reply(reply, codec)
    room = limit - _OVERHEAD
    if len(payload) <= room:
        return reply, payload
    size = len(payload)
    reply = msgspec.structs.replace(
        reply,
        status=Status.TOO_LARGE if reply.executed is Executed.YES else reply.status,
        result=None,
        error=f"the reply of {size} bytes is over the bus's limit of {room} bytes",
        replies=[_without_text(part) for part in reply.replies] if reply.replies else None,
    )
    payload = encode_reply(reply, codec)
    if len(payload) > room:  # the caller's own map, or very many nodes
        reply = msgspec.structs.replace(reply, meta=None, replies=None)
        payload = encode_reply(reply, codec)
    return reply, payload


def headers_of(reply: CommandReply, received: Mapping[str, str]) -> dict[str, str] | None:
    """The headers that go with a reply: the service error of a failure, and the request's trace context."""
    headers: dict[str, str] | None = None
    code = _CODES[reply.status]
    if code:
        text = reply.error.encode("ascii", "replace").decode()
        headers = {
            "Nats-Service-Error": " ".join(text.split())[:_HEADER_LIMIT] or str(reply.status),
            "Nats-Service-Error-Code": code,
        }
    if received:
        for name in _TRACE:
            value = received.get(name)
            if value:
                headers = headers or {}
                headers[name] = value
    return headers


def _without_text(reply: CommandReply) -> CommandReply:
    if reply.result is None:
        return reply
    return msgspec.structs.replace(reply, result=None, status=Status.TOO_LARGE, error="left out, see the whole reply")
