"""Every check of a command request that needs no configuration, and what may be said back to its sender.

It never decodes anything.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NoReturn

from bridge.errors import InvalidRequest
from bridge.messages.topics import MAX_REPLY_ADDRESS, check_node_name, reply_address_fault

if TYPE_CHECKING:
    from bridge.messages.request import CommandRequest

MAX_ID = 128
MAX_UUID = 256
MAX_META_DEPTH = 32

# Which of the fields that belong to one op must and may be there.
_REQUIRED: dict[str, tuple[str, ...]] = {
    "api": ("command",),
    "bgapi": ("command",),
    "execute": ("uuid", "app"),
    "hangup": ("uuid",),
    "sendmsg": ("uuid", "headers"),
    "sendevent": ("event",),
}
_OPTIONAL: dict[str, tuple[str, ...]] = {
    "api": (),
    "bgapi": ("accept",),
    "execute": ("arg", "wait"),
    "hangup": ("cause",),
    "sendmsg": ("body",),
    "sendevent": ("headers", "body"),
}
_OF_OPS = tuple(dict.fromkeys(name for fields in (_REQUIRED, _OPTIONAL) for row in fields.values() for name in row))
_FORBIDDEN = {op: tuple(n for n in _OF_OPS if n not in _REQUIRED[op] + _OPTIONAL[op]) for op in _REQUIRED}


_LINE_END = re.compile(r"[\r\n\0]")
_HEADER_NAME = re.compile(r"[!-9;-~]+\Z")
_EVENT_NAME = re.compile(r"[A-Za-z0-9_:.\-]+\Z")
_APP_NAME = re.compile(r"[!-~]+\Z")


def required_fields() -> dict[str, tuple[str, ...]]:
    """What each op needs, for documents."""
    return dict(_REQUIRED)


def optional_fields() -> dict[str, tuple[str, ...]]:
    """What else each op may have beside the fields that all ops share, for documents."""
    return dict(_OPTIONAL)


def check_request(request: CommandRequest) -> None:
    """Every check that needs no configuration. Raises ``InvalidRequest``."""
    op = request.op
    if op == "api" or op == "bgapi":
        command = request.command
        if not command or command.isspace():
            refuse(request, "command", f"is required for op {op}" if not command else "must not be blank")
        if not command.isprintable() and _LINE_END.search(command):
            refuse(request, "command", _line_end_text(command))
        if (
            request.uuid or request.app or request.arg or request.wait or request.cause or request.headers
            or request.body or request.event or (request.accept and op == "api")
        ):  # fmt: skip
            _refuse_strangers(request)
    else:
        _refuse_strangers(request)
        _check_call_fields(request)
    if request.id and (len(request.id) > MAX_ID or not request.id.isprintable()):
        refuse(request, "id", f"must be 1 to {MAX_ID} printable characters")
    if request.to:
        _check_target(request)
    if request.timeout_ms is not None and request.timeout_ms <= 0:
        refuse(request, "timeout_ms", "must be a positive number of milliseconds")
    if request.deadline_ms is not None and request.deadline_ms <= 0:
        refuse(request, "deadline_ms", "must be a positive Unix time in milliseconds")
    if request.reply_to:
        fault = reply_address_fault(request.reply_to)
        if fault:
            refuse(request, "reply_to", fault)
    if request.meta:
        fault = _meta_fault(request.meta, 1)
        if fault:
            refuse(request, "meta", fault)


def _refuse_strangers(request: CommandRequest) -> None:
    for name in _FORBIDDEN[request.op]:
        if getattr(request, name):
            refuse(request, name, f"does not belong to op {request.op}")


def answerable_id(value: object) -> str | None:
    """The id of a refused request, where it is one that a reply can bear."""
    if isinstance(value, str) and 0 < len(value) <= MAX_ID and value.isprintable() and "\ufffd" not in value:
        return value
    return None


def answerable_address(value: object) -> str | None:
    """The reply address of a refused request, where it is one that could be written to."""
    if isinstance(value, str) and len(value) <= MAX_REPLY_ADDRESS and "\ufffd" not in value:
        return None if reply_address_fault(value) else value
    return None


def answerable_meta(value: object) -> dict[str, object] | None:
    """The map of a refused request, where it is one that a reply can bear."""
    if isinstance(value, dict) and value and not _meta_fault(value, 1) and "\ufffd" not in repr(value):
        return value
    return None


def _check_call_fields(request: CommandRequest) -> None:
    for name in _REQUIRED[request.op]:
        if not getattr(request, name):
            refuse(request, name, f"is required for op {request.op}")
    for name in ("uuid", "app", "arg", "cause", "event"):
        value = getattr(request, name)
        if value and _LINE_END.search(value):
            refuse(request, name, _line_end_text(value))
    if request.uuid:
        fault = _uuid_fault(request.uuid)
        if fault:
            refuse(request, "uuid", fault)
    if request.app and not _APP_NAME.match(request.app):
        refuse(request, "app", "must be an application's name, without spaces")
    if request.cause and not (request.cause.isascii() and request.cause.replace("_", "").isalnum()):
        refuse(request, "cause", "must be a hangup cause, such as USER_BUSY")
    if request.event and not _EVENT_NAME.match(request.event):
        refuse(request, "event", "must be an event's name, without spaces")
    for name, value in request.headers.items():
        if not _HEADER_NAME.match(name):
            refuse(request, "headers", f"{name!r} is not a header's name")
        plain, index, _ = name.lower().partition("[")
        if plain == "content-length":
            refuse(request, "headers", "Content-Length is the bridge's to compute")
        if plain == "command" and index:  # FreeSWITCH writes its value over the very command that it is about to run
            refuse(request, "headers", f"{name!r} would take the place of the command")
        if _LINE_END.search(value):
            refuse(request, f"headers.{name}", _line_end_text(value))
    if "\0" in request.body:
        refuse(request, "body", "holds a NUL")


def _check_target(request: CommandRequest) -> None:
    to = request.to
    if to == "any":
        return
    if to == "all":
        if request.accept:
            refuse(request, "accept", "cannot be combined with to: all")
        return
    kind, colon, rest = to.partition(":")
    if not colon:
        try:
            check_node_name(to)
        except ValueError as error:
            refuse(request, "to", str(error))
    elif kind == "call":
        fault = _uuid_fault(rest)
        if fault:
            refuse(request, "to", f"the uuid {fault}")
    elif kind == "tag":
        if not rest or len(rest) > MAX_ID or not rest.isprintable() or " " in rest:
            refuse(request, "to", f"a tag is 1 to {MAX_ID} printable characters without spaces")
    else:
        refuse(request, "to", "expected any, all, a node's name, call:<uuid> or tag:<tag>")


def _uuid_fault(uuid: str) -> str:
    if uuid and len(uuid) <= MAX_UUID and uuid.isprintable() and " " not in uuid:
        return ""
    return f"must be 1 to {MAX_UUID} printable characters without spaces"


def _line_end_text(value: str) -> str:
    names = {"\r": "a carriage return", "\n": "a line feed", "\0": "a NUL"}
    return "holds " + next(text for char, text in names.items() if char in value)


def _meta_fault(value: object, depth: int) -> str:
    """Whatever could not be echoed in both codecs is refused at the door, not found out when the reply is due."""
    if depth > MAX_META_DEPTH:
        return f"is nested deeper than {MAX_META_DEPTH}"
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                return "holds a key that is not text"
            fault = _meta_fault(inner, depth + 1)
            if fault:
                return fault
        return ""
    if isinstance(value, list):
        return next((fault for inner in value if (fault := _meta_fault(inner, depth + 1))), "")
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        return "holds a number of more than 64 bits"
    if value is None or isinstance(value, (str, int, float, bool, bytes)):
        return ""
    return f"holds a {type(value).__name__}, which JSON has no word for"


def refuse(request: CommandRequest, field: str, text: str) -> NoReturn:
    """Raise ``InvalidRequest`` with what is known about whom to answer."""
    raise InvalidRequest(
        field,
        text,
        id=answerable_id(request.id),
        reply_to=answerable_address(request.reply_to),
        meta=answerable_meta(request.meta),
    ) from None
