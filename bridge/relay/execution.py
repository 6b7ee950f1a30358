"""A request as Event Socket commands, and FreeSWITCH's answer as a status.

This room never chooses a node and never sends anything by itself; it renders, hands to a pool, and reads outcomes.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from typing import Final

import msgspec

from bridge.errors import BudgetSpent, EslError, InvalidCommand, InvalidRequest, LimitExceeded, PoolBusy
from bridge.esl import commands
from bridge.esl.frames import MAX_BODY
from bridge.esl.replies import Reply
from bridge.messages.reply import Executed, Status
from bridge.messages.request import CommandRequest
from bridge.relay.ledger import GONE
from bridge.relay.routing import Pool, Refusal, Submission
from bridge.switch.command_pool import Outcome

_YES: Final = Executed.YES
_NO: Final = Executed.NO
_UNKNOWN: Final = Executed.UNKNOWN
_OK: Final = Status.OK


class Manner(Enum):
    """How a command runs."""

    DIRECT = auto()
    """FreeSWITCH's direct reply is the answer."""
    JOB = auto()
    """As bgapi; the job's output is the answer."""
    AWAITED = auto()
    """As execute; CHANNEL_EXECUTE_COMPLETE is the answer."""


_DIRECT: Final = Manner.DIRECT


class Work(msgspec.Struct, gc=False):
    """A request, rendered once for however many nodes: ``block`` for direct commands, ``line`` for jobs."""

    manner: Manner
    block: bytes = b""
    line: str = ""
    uuid: str = ""
    app: str = ""
    arg: str = ""


class Result(msgspec.Struct, gc=False):
    """What came of the work on one node."""

    status: Status
    executed: Executed
    result: str | None = None
    error: str = ""
    job: str = ""
    esl_ms: float | None = None


# What the command path says by itself.
EXPIRED: Final = Refusal(Status.EXPIRED, "the budget was spent before it could be sent")
FLOODED: Final = Refusal(Status.BUSY, "too many requests wait for what the ledger says of them")
NO_LEDGER: Final = Refusal(Status.UNAVAILABLE, "the ledger cannot be reached")
DRAINING: Final = Refusal(Status.DRAINING, "the worker is shutting down")
WORKER_GONE: Final = Result(Status.CONNECTION_LOST, Executed.UNKNOWN, None, GONE)
RUNS: Final = Result(Status.TIMEOUT, Executed.UNKNOWN, None, "the same id was sent before and has no outcome yet")
UNASKED: Final = Result(
    Status.TIMEOUT, Executed.UNKNOWN, None, "not run now, and the ledger cannot be asked whether the id ran before"
)
FAULT: Final = Result(Status.CONNECTION_LOST, Executed.UNKNOWN, None, "a fault inside the bridge, its log says more")


def manner_of(request: CommandRequest, *, background: bool) -> Manner:
    """How the request has to run; it decides the default budget too. ``background`` is about its API command."""
    op = request.op
    if op == "api":
        return Manner.JOB if background else _DIRECT
    if op == "bgapi":
        return Manner.JOB
    return Manner.AWAITED if request.wait else _DIRECT


def render(request: CommandRequest, manner: Manner) -> Work:
    """The commands to write. Raises ``InvalidRequest`` where they cannot be written safely."""
    try:
        return _render(request, manner)
    except InvalidCommand as error:
        field = "command" if request.op in ("api", "bgapi") else error.field
        raise InvalidRequest(field, str(error).removeprefix(f"{error.field}: ")) from None


def _render(request: CommandRequest, manner: Manner) -> Work:
    op = request.op
    if op == "api" and manner is _DIRECT:
        return Work(manner, commands.api(request.command))
    if manner is Manner.JOB:
        return Work(manner, line=request.command)
    if op == "execute":
        block = commands.execute(request.uuid, request.app, request.arg)
        if manner is Manner.AWAITED:
            return Work(manner, uuid=request.uuid, app=request.app, arg=request.arg)
    elif op == "hangup":
        block = commands.hangup(request.uuid, request.cause or "NORMAL_CLEARING")
    elif op == "sendmsg":
        block = commands.sendmsg(request.uuid, request.headers, request.body or None)
    else:
        block = commands.sendevent(request.event, request.headers, request.body or None)
    return Work(manner, block)


def start(
    work: Work,
    pool: Pool,
    done: Callable[[Outcome], None],
    *,
    deadline: float,
    on_accepted: Callable[[str], None] | None = None,
) -> Submission:
    """Hand the work to a node's pool; ``deadline`` in loop time."""
    if work.manner is _DIRECT:
        return pool.submit(work.block, done, deadline=deadline)
    if work.manner is Manner.JOB:
        return pool.submit_job(work.line, done, deadline=deadline, on_accepted=on_accepted)
    return pool.submit_execute_wait(work.uuid, work.app, work.arg, done, deadline=deadline)


def result_of(outcome: Outcome) -> Result:
    """Status and honest ``executed`` of an outcome."""
    reply = outcome.reply
    if reply is not None:
        return _answered(reply, outcome)
    text = str(outcome.error) if outcome.error is not None else ""
    if outcome.status == "timeout":
        return Result(Status.TIMEOUT, _UNKNOWN, None, text or "no reply in time", outcome.job, outcome.esl_ms)
    if outcome.status == "lost":
        return Result(
            Status.CONNECTION_LOST, _UNKNOWN, None, text or "the connection was lost", outcome.job, outcome.esl_ms
        )
    return failed_to_start(outcome.error)


def failed_to_start(error: EslError | None) -> Result:
    """The result of a command that a pool did not write."""
    text = str(error) if error is not None else "the node cannot be reached"
    if isinstance(error, BudgetSpent):
        return Result(Status.EXPIRED, _NO, None, text)
    if isinstance(error, (PoolBusy, LimitExceeded)):
        return Result(Status.BUSY, _NO, None, text)
    if isinstance(error, InvalidCommand):
        return Result(Status.INVALID, _NO, None, text)
    return Result(Status.UNAVAILABLE, _NO, None, text)


def refused(refusal: Refusal) -> Result:
    """The result of a command that went nowhere."""
    return Result(refusal.status, _NO, None, refusal.error)


def _answered(reply: Reply, outcome: Outcome) -> Result:
    text = reply.text
    job, esl_ms = outcome.job, outcome.esl_ms
    if reply.skipped:
        error = f"the output of {reply.skipped} bytes is over the limit of {MAX_BODY} bytes"
        return Result(Status.TOO_LARGE, _YES, None, error, job, esl_ms)
    if text.startswith(("-ERR", "-USAGE")):
        if reply.no_output:  # FreeSWITCH's text for an api that ran and had nothing to say
            return Result(Status.OK, _YES, "", "", job, esl_ms)
        # Whatever the Event Socket itself answers -ERR to, it did not begin: denied, unknown session or command.
        executed = _NO if reply.kind == "command" else _YES
        return Result(Status.ERROR, executed, None, text.strip(), job if executed is _YES else "", esl_ms)
    if outcome.result is not None:
        text = outcome.result
    return Result(_OK, _YES, text, "", job, esl_ms)
