"""A command request: what a caller may ask, and how it is read.

It never knows nodes, policy or the ledger.

Forgiving where no meaning can be lost: ``null`` and the empty text count as absent, ``2000.0`` as ``2000``.
Everything else that is wrong is refused by the name of its field, unknown fields too.
"""

from __future__ import annotations

import difflib
from hashlib import blake2b
from typing import Annotated, Any, Literal, get_args

import msgpack
import msgspec
from msgspec import Meta

from bridge.errors import InvalidMessage, InvalidRequest
from bridge.messages.codec import JSON, MSGPACK, Codec, codec_of
from bridge.messages.validation import MAX_ID, answerable_address, answerable_id, answerable_meta, check_request

Op = Literal["api", "bgapi", "execute", "hangup", "sendmsg", "sendevent"]


class CommandRequest(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """A request on ``esl.cmd``; fields that do not belong to its ``op`` stay empty."""

    id: Annotated[str, Meta(description="Correlation id, 1 to 128 printable characters")] = ""
    op: Annotated[Op, Meta(description="What kind of command it is")] = "api"
    command: Annotated[str, Meta(description="API command line, for api and bgapi")] = ""
    uuid: Annotated[str, Meta(description="The call, for execute, hangup and sendmsg")] = ""
    app: Annotated[str, Meta(description="Dialplan application, for execute")] = ""
    arg: Annotated[str, Meta(description="The application's argument, for execute")] = ""
    wait: Annotated[bool, Meta(description="For execute: reply when the application has ended")] = False
    cause: Annotated[str, Meta(description="Hangup cause, for hangup; NORMAL_CLEARING when absent")] = ""
    headers: Annotated[dict[str, str], Meta(description="Headers, for sendmsg and sendevent")] = {}
    body: Annotated[str, Meta(description="Body, for sendmsg and sendevent; may hold line ends")] = ""
    event: Annotated[str, Meta(description="Event name, for sendevent")] = ""
    to: Annotated[str, Meta(description="any, all, a node's name, call:<uuid> or tag:<tag>")] = ""
    timeout_ms: Annotated[int | None, Meta(description="Budget from being queued to being answered, ms")] = None
    deadline_ms: Annotated[int | None, Meta(description="The same as absolute Unix time, ms")] = None
    accept: Annotated[bool, Meta(description="For bgapi: also reply when FreeSWITCH took the job")] = False
    idempotent: Annotated[bool, Meta(description="Running it twice is harmless")] = False
    reply_to: Annotated[str, Meta(description="Reply address, at most 256 bytes, no wildcards")] = ""
    meta: Annotated[dict[str, object], Meta(description="Opaque map, echoed in the reply")] = {}

    def deadline(self, queued_at: float, default: float, maximum: float) -> float:
        """When the budget ends, in Unix seconds; ``default`` and ``maximum`` are seconds from ``queued_at``.

        The earlier of ``timeout_ms`` and ``deadline_ms`` where both are given.
        """
        if self.timeout_ms is None and self.deadline_ms is None:
            return queued_at + min(default, maximum)
        end = queued_at + maximum
        if self.timeout_ms is not None and self.timeout_ms < maximum * 1000:
            end = queued_at + self.timeout_ms / 1000
        if self.deadline_ms is not None and self.deadline_ms < end * 1000:
            end = self.deadline_ms / 1000
        return end


_TYPES: dict[str, type] = {
    **dict.fromkeys(CommandRequest.__struct_fields__, str),
    **dict.fromkeys(("wait", "accept", "idempotent"), bool),
    **dict.fromkeys(("timeout_ms", "deadline_ms"), int),
    **dict.fromkeys(("headers", "meta"), dict),
}
_TYPE_NAMES = {type(None): "null", dict: "map", list: "list", bytes: "bytes"}

_read_json = msgspec.json.Decoder(CommandRequest).decode
_read_msgpack = msgspec.msgpack.Decoder(CommandRequest).decode
_UNREADABLE = (msgspec.MsgspecError, ValueError, TypeError, OverflowError, RecursionError)


def parse_request(payload: bytes) -> tuple[CommandRequest, Codec]:
    """Read and check a request; its codec is the reply's.

    Raises ``InvalidRequest`` that names the field, with ``id`` and ``reply_to`` where they could be read.
    """
    try:
        codec = codec_of(payload)
    except InvalidMessage as error:
        raise InvalidRequest("", str(error)) from None
    try:
        request = _read_json(payload) if codec is JSON else _read_msgpack(payload)
    except _UNREADABLE:
        request = _read_patiently(payload, codec)
    check_request(request)
    return request, codec


def encode_request(request: CommandRequest, codec: Codec = JSON) -> bytes:
    """The bytes of a request; absent fields are left out."""
    return codec.encode(request)


def fingerprint(request: CommandRequest, node: str = "") -> bytes:
    """16 bytes that tell two contents apart, for "one id, two contents"; ``node`` is that of the queue it came from.

    ``id``, ``reply_to``, ``timeout_ms``, ``deadline_ms``, ``accept`` and ``meta`` say how to answer, not what to do,
    and are left out.
    """
    content = (
        request.op,
        request.command,
        request.uuid,
        request.app,
        request.arg,
        request.wait,
        request.cause,
        sorted(request.headers.items()) if request.headers else [],
        request.body,
        request.event,
        node or request.to,
        request.idempotent,
    )
    return blake2b(MSGPACK.encode(content), digest_size=16).digest()


def _read_patiently(payload: bytes, codec: Codec) -> CommandRequest:
    """Second look at what the typed decoder refused: forgive what may be forgiven, name the field of the rest."""
    utf8 = True
    try:
        fields = codec.decode(payload)
    except InvalidMessage as error:
        try:
            fields = _decode_with_repairs(payload, codec)
        except _UNREADABLE:
            raise InvalidRequest("", str(error)) from None
        utf8 = False
    if not isinstance(fields, dict):
        raise InvalidRequest("", "expected a map")
    identity: dict[str, Any] = {
        "id": answerable_id(fields.get("id")),
        "reply_to": answerable_address(fields.get("reply_to")),
        "meta": answerable_meta(fields.get("meta")),
    }
    present: dict[str, object] = {}
    for name, value in fields.items():
        kind = _TYPES.get(name) if isinstance(name, str) else None
        if kind is None:
            raise InvalidRequest(str(name)[:MAX_ID], "unknown field" + _suggestion(str(name)), **identity)
        if value is None:
            continue
        if not utf8 and "\ufffd" in repr(value):
            raise InvalidRequest(name, "not valid UTF-8", **identity)
        if kind is int and isinstance(value, float) and value.is_integer():
            value = int(value)
        if type(value) is not kind:
            got = _TYPE_NAMES.get(type(value), type(value).__name__)
            raise InvalidRequest(name, f"expected {_TYPE_NAMES.get(kind, kind.__name__)}, got {got}", **identity)
        present[name] = value
    if not utf8:
        raise InvalidRequest("", "not valid UTF-8", **identity)
    if present.get("op", "api") not in get_args(Op):
        raise InvalidRequest("op", f"expected one of {', '.join(get_args(Op))}, got {present['op']!r:.64}", **identity)
    headers = present.get("headers")
    if isinstance(headers, dict):
        for name, value in headers.items():
            if not isinstance(name, str):
                raise InvalidRequest("headers", "a header's name must be text", **identity)
            if not isinstance(value, str):
                got = _TYPE_NAMES.get(type(value), type(value).__name__)
                raise InvalidRequest(f"headers.{name}"[:MAX_ID], f"expected str, got {got}", **identity)
    return CommandRequest(**present)  # type: ignore[arg-type]


def _decode_with_repairs(payload: bytes, codec: Codec) -> object:
    """Decode although texts are not UTF-8, only to find whom to answer and which field to name."""
    if codec is JSON:
        return JSON.decode(payload.decode("utf-8", "replace").encode())
    return msgpack.unpackb(payload, unicode_errors="replace", strict_map_key=False)


def _suggestion(name: str) -> str:
    close = difflib.get_close_matches(name[:MAX_ID].lower(), _TYPES, 1)
    return f", did you mean {close[0]}?" if close else ""
