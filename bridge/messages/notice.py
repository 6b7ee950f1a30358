"""Notices: what the bridge says about itself on ``fs.bridge.<kind>``, as CloudEvents maps.

It never decides when a notice is due.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, ClassVar, Literal
from urllib.parse import quote

import msgspec
from msgspec import Meta

from bridge.errors import InvalidMessage
from bridge.messages.codec import JSON, Codec, codec_of
from bridge.messages.reply import CommandReply

TYPE_PREFIX = "org.freeswitch.bridge."
MAX_SNAPSHOT_PART = 256 * 1024

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

GapReason = Literal["link", "buffer", "bus", "failover", "too_large"]
WorkerState = Literal["joined", "draining", "left", "lost"]


class NodeNotice(msgspec.Struct, omit_defaults=True):
    """A node changed its state."""

    kind: ClassVar[str] = "node"

    state: Annotated[str, Meta(description="CONNECTING, SYNCING, UP, SUSPECT, DOWN or DRAINING")]
    previous: Annotated[str, Meta(description="The state before")] = ""
    reason: Annotated[str, Meta(description="Why, for people")] = ""
    owner: Annotated[str, Meta(description="The worker that owns the node")] = ""
    epoch: Annotated[str, Meta(description="Identity of the ESL link; greater means later")] = ""
    core_uuid: Annotated[str, Meta(description="FreeSWITCH's Core-UUID")] = ""
    restarted: Annotated[bool, Meta(description="FreeSWITCH was restarted, its calls are gone")] = False


class WorkerNotice(msgspec.Struct, omit_defaults=True):
    """A worker came or went."""

    kind: ClassVar[str] = "worker"

    state: Annotated[WorkerState, Meta(description="joined, draining, left or lost")]
    nodes: Annotated[list[str], Meta(description="The nodes it owns or owned")] = []
    worker: Annotated[str, Meta(description="The worker that is lost, which cannot tell it itself")] = ""


class GapNotice(msgspec.Struct, omit_defaults=True):
    """Events are missing between two instants."""

    kind: ClassVar[str] = "gap"

    reason: Annotated[GapReason, Meta(description="Where they were lost")]
    epoch: Annotated[str, Meta(description="The link they belong to")] = ""
    start: Annotated[str, Meta(description="RFC 3339 time")] = msgspec.field(name="from", default="")
    end: Annotated[str, Meta(description="RFC 3339 time")] = msgspec.field(name="to", default="")
    before: Annotated[str, Meta(description="Identity of the last event before the gap")] = ""
    after: Annotated[str, Meta(description="Identity of the first event after the gap")] = ""
    count: Annotated[int | None, Meta(description="How many; absent for a link outage")] = None
    exact: Annotated[bool | None, Meta(description="False: count is an upper bound")] = None
    uncertain: Annotated[bool, Meta(description="At a take-over: perhaps none is missing, or some came twice")] = False


class SnapshotNotice(msgspec.Struct, omit_defaults=True):
    """One part of the list of a node's calls, at most 256 KiB."""

    kind: ClassVar[str] = "snapshot"

    snapshot: Annotated[str, Meta(description="Identity of the snapshot")]
    part: Annotated[int, Meta(description="1, 2, ...")]
    parts: Annotated[int, Meta(description="How many there are")]
    channels: Annotated[list[dict[str, object]], Meta(description="FreeSWITCH's own channel rows")]


class AuditNotice(msgspec.Struct, omit_defaults=True):
    """Who asked what, where, with which outcome; secrets are redacted before it is made."""

    kind: ClassVar[str] = "audit"

    id: Annotated[str, Meta(description="The request's id")] = ""
    op: Annotated[str, Meta(description="The request's op")] = ""
    command: Annotated[str, Meta(description="Command line, application with argument, cause, or event")] = ""
    uuid: Annotated[str, Meta(description="The call it was about")] = ""
    to: Annotated[str, Meta(description="The target that was asked for")] = ""
    queue: Annotated[str, Meta(description="The queue it came from")] = ""
    reply_to: Annotated[str, Meta(description="Where the reply went")] = ""
    status: Annotated[str, Meta(description="How it ended")] = ""
    executed: Annotated[str, Meta(description="Whether FreeSWITCH took the command")] = ""
    error: Annotated[str, Meta(description="What went wrong, for people")] = ""
    elapsed_ms: Annotated[float | None, Meta(description="From being queued to the reply, ms")] = None


class LogNotice(msgspec.Struct, omit_defaults=True):
    """One line of FreeSWITCH's log."""

    kind: ClassVar[str] = "log"

    level: Annotated[int | str, Meta(description="FreeSWITCH's log level")]
    text: Annotated[str, Meta(description="The line, without its end")]
    file: Annotated[str, Meta(description="Source file of FreeSWITCH that wrote it")] = ""
    line: Annotated[int | None, Meta(description="Line in that file")] = None
    uuid: Annotated[str, Meta(description="The call it belongs to")] = ""


class LateNotice(CommandReply, kw_only=True, omit_defaults=True):
    """The reply map of an answer that came after its ``timeout``."""

    kind: ClassVar[str] = "late"


NOTICES: Mapping[str, type[msgspec.Struct]] = {
    "node": NodeNotice,
    "worker": WorkerNotice,
    "gap": GapNotice,
    "late": LateNotice,
    "snapshot": SnapshotNotice,
    "audit": AuditNotice,
    "log": LogNotice,
}
"""Every kind with the shape of its data."""


class Notice(msgspec.Struct):
    """A notice as a subscriber reads it."""

    id: Annotated[str, Meta(description="<worker instance>:<n>, n counts from 1")]
    source: Annotated[str, Meta(description="/bridge/<worker>")]
    type: Annotated[str, Meta(description="org.freeswitch.bridge.<kind>")]
    time: Annotated[str, Meta(description="When it was told: RFC 3339, UTC, microseconds")]
    data: Annotated[dict[str, object], Meta(description="What happened; its fields depend on the kind")]
    node: Annotated[str, Meta(description="The node it is about; absent where there is none")] = ""
    worker: Annotated[str, Meta(description="The worker that tells it")] = ""
    specversion: Annotated[str, Meta(description="Version of CloudEvents")] = "1.0"

    @property
    def kind(self) -> str:
        """``node``, ``gap``, ..."""
        return self.type.removeprefix(TYPE_PREFIX)


_read_json = msgspec.json.Decoder(Notice).decode
_read_msgpack = msgspec.msgpack.Decoder(Notice).decode


def notice_id(instance: str, number: int) -> str:
    """``<worker instance>:<n>``."""
    return f"{instance}:{number}"


def encode_notice(
    kind: str,
    data: msgspec.Struct | Mapping[str, object],
    *,
    worker: str,
    instance: str,
    number: int,
    time: float,
    node: str = "",
    codec: Codec = JSON,
) -> bytes:
    """The bytes of a notice; ``time`` is Unix seconds. Raises ``ValueError`` for an unknown kind."""
    if kind not in NOTICES:
        raise ValueError(f"unknown kind of notice {kind!r}")
    event: dict[str, object] = {
        "specversion": "1.0",
        "id": notice_id(instance, number),
        "source": "/bridge/" + quote(worker, safe="-._~:@!$&'()*+,;="),
        "type": TYPE_PREFIX + kind,
        "time": rfc3339(time),
    }
    if node:
        event["node"] = node
    event["worker"] = worker
    event["data"] = data
    return codec.encode(event)


def decode_notice(payload: bytes) -> Notice:
    """Read a notice. Raises ``InvalidMessage``."""
    codec = codec_of(payload)
    try:
        notice = _read_json(payload) if codec is JSON else _read_msgpack(payload)
    except (msgspec.MsgspecError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise InvalidMessage(f"not a notice: {error}") from None
    if not notice.type.startswith(TYPE_PREFIX):
        raise InvalidMessage(f"not a notice: type {notice.type}")
    return notice


def rfc3339(time: float) -> str:
    """Unix seconds as RFC 3339 UTC with microseconds, ``2026-01-02T03:04:05.000006Z``."""
    return rfc3339_us(round(time * 1_000_000))


def rfc3339_us(microseconds: int) -> str:
    """Unix microseconds as RFC 3339 UTC with microseconds."""
    return (_EPOCH + timedelta(microseconds=microseconds)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
