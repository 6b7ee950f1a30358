"""A command reply: its fields, its statuses and what each says about execution.

It never decides which status a command earned.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from bridge.errors import InvalidMessage
from bridge.messages.codec import JSON, Codec, codec_of


class Status(StrEnum):
    """How a request ended (``accepted``: how it began)."""

    OK = "ok"
    ERROR = "error"
    ACCEPTED = "accepted"
    TIMEOUT = "timeout"
    CONNECTION_LOST = "connection_lost"
    EXPIRED = "expired"
    UNAVAILABLE = "unavailable"
    NO_ROUTE = "no_route"
    BUSY = "busy"
    DRAINING = "draining"
    DENIED = "denied"
    INVALID = "invalid"
    TOO_LARGE = "too_large"


class Executed(StrEnum):
    """Whether FreeSWITCH took the command and began it."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


_YES, _NO, _UNKNOWN = Executed.YES, Executed.NO, Executed.UNKNOWN


class StatusMeaning(msgspec.Struct, frozen=True):
    """One row of the status table.

    ``executed`` holds what may stand beside the status, the usual one first; ``code`` is the
    ``Nats-Service-Error-Code`` (empty for success); ``meaning`` is for people.
    """

    executed: tuple[Executed, ...]
    code: str
    meaning: str


# From the best to the worst: a `to: all` reply bears the worst status that occurs. Unknown outcomes are the worst
# news there is; a refusal before anything ran is worse than FreeSWITCH's own answer.
STATUSES: Mapping[Status, StatusMeaning] = {
    Status.OK: StatusMeaning((_YES,), "", "+OK or an output"),
    Status.ACCEPTED: StatusMeaning((_UNKNOWN,), "", "early reply, the job runs"),
    Status.ERROR: StatusMeaning(
        (_YES, _NO), "500", "FreeSWITCH answered -ERR or -USAGE; no where it refused to run it"
    ),
    Status.TOO_LARGE: StatusMeaning((_NO, _YES), "413", "over the limit: no for the request, yes for the reply"),
    Status.NO_ROUTE: StatusMeaning((_NO,), "404", "no node has this call or this tag"),
    Status.UNAVAILABLE: StatusMeaning((_NO,), "503", "the target node is down or unknown"),
    Status.BUSY: StatusMeaning((_NO,), "429", "the in-flight or queue limit is reached"),
    Status.DRAINING: StatusMeaning((_NO,), "503", "the worker is shutting down and could not hand the request on"),
    Status.EXPIRED: StatusMeaning((_NO,), "408", "the budget was spent before it could be sent"),
    Status.DENIED: StatusMeaning((_NO,), "403", "the command policy forbids it"),
    Status.INVALID: StatusMeaning((_NO,), "400", "malformed request; the error names the field"),
    Status.CONNECTION_LOST: StatusMeaning(
        (_UNKNOWN,), "502", "the link or the worker died after the command was written"
    ),
    Status.TIMEOUT: StatusMeaning((_UNKNOWN,), "504", "sent, no answer within the budget"),
}

EXECUTED: Mapping[Status, Executed] = {status: row.executed[0] for status, row in STATUSES.items()}
"""What usually stands beside a status; ``error`` and ``too_large`` know one exception each."""

_SEVERITY = {status: rank for rank, status in enumerate(STATUSES)}


class Timing(msgspec.Struct, omit_defaults=True, gc=False):
    """Where the time went, in ms."""

    queued_ms: Annotated[float | None, Meta(description="From being queued to the write to FreeSWITCH")] = None
    esl_ms: Annotated[float | None, Meta(description="From the write to FreeSWITCH's answer")] = None


# Data that cannot point back: a ledger of a million of them is nothing for the garbage collector to look through.
class CommandReply(msgspec.Struct, kw_only=True, omit_defaults=True, gc=False):
    """The answer to one request; absent fields are left out."""

    id: Annotated[str, Meta(description="The request's id")] = ""
    status: Annotated[Status, Meta(description="How it ended")]
    executed: Annotated[Executed, Meta(description="Whether FreeSWITCH took the command and began it")]
    node: Annotated[str, Meta(description="The node it was meant for or ran on")] = ""
    worker: Annotated[str, Meta(description="The worker that answers")] = ""
    result: Annotated[str | None, Meta(description="The api body, the job's output or the Reply-Text")] = None
    error: Annotated[str, Meta(description="What went wrong, for people")] = ""
    job: Annotated[str, Meta(description="Job-UUID")] = ""
    elapsed_ms: Annotated[float | None, Meta(description="From being queued to this reply, ms")] = None
    timing: Annotated[Timing | None, Meta(description="Where the time went")] = None
    replayed: Annotated[
        bool, Meta(description="Answered from the ledger, sent again, or taken over from another worker")
    ] = False
    late: Annotated[bool, Meta(description="Sent after its timeout")] = False
    meta: Annotated[dict[str, object] | None, Meta(description="The request's own map")] = None
    replies: Annotated[list[CommandReply] | None, Meta(description="For to: all, one reply a node")] = None

    @property
    def final(self) -> bool:
        """False for the early ``accepted`` reply."""
        return self.status is not Status.ACCEPTED


_read_json = msgspec.json.Decoder(CommandReply).decode
_read_msgpack = msgspec.msgpack.Decoder(CommandReply).decode


def encode_reply(reply: CommandReply, codec: Codec = JSON) -> bytes:
    """The bytes of a reply, fields in the contract's order."""
    return codec.encode(reply)


def decode_reply(payload: bytes) -> CommandReply:
    """Read a reply; fields that this version does not know are skipped. Raises ``InvalidMessage``."""
    codec = codec_of(payload)
    try:
        return _read_json(payload) if codec is JSON else _read_msgpack(payload)
    except (msgspec.MsgspecError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise InvalidMessage(f"not a command reply: {error}") from None


def worst_status(statuses: Iterable[Status]) -> Status:
    """The status of a ``to: all`` reply: ``ok`` when all are, else the worst that occurs. At least one is needed."""
    return max(statuses, key=_SEVERITY.__getitem__)


def agreed_executed(values: Iterable[Executed | Literal["yes", "no", "unknown"]]) -> Executed:
    """``executed`` of a ``to: all`` reply: ``yes`` or ``no`` when all agree, else ``unknown``."""
    said = set(values)
    return Executed(said.pop()) if len(said) == 1 else Executed.UNKNOWN
