"""One command connection of a pool: what it carries, what it is set up for, whether it makes progress.

This room never opens a connection and never chooses which command goes where.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from bridge.errors import NotPermitted
from bridge.esl import commands
from bridge.esl import protocol as esl
from bridge.esl.event import Event
from bridge.esl.pending import PendingReply
from bridge.esl.replies import Reply
from bridge.switch.connection import Connection
from bridge.switch.deadlines import Deadline
from bridge.switch.jobs import Origin
from bridge.switch.submission import Execute, Need, Submission

if TYPE_CHECKING:
    from bridge.switch.command_pool import CommandPool

CORE_UUID_QUERY: Final = "global_getvar core_uuid"
"""The ``api`` line that tells FreeSWITCH's Core-UUID; a restricted user may not have it."""

_UUID_LENGTH = 36
_CALL_ID: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z._:-]{0,127}")  # what a filter can say; other ids are not watched
_EVENTS: Final = {Need.JOBS: "BACKGROUND_JOB", Need.EXECUTES: "CHANNEL_EXECUTE_COMPLETE"}
_HEADERS: Final = {Need.JOBS: "Job-UUID", Need.EXECUTES: "Application-UUID"}


def core_uuid_of(reply: Reply) -> str:
    """The Core-UUID that ``CORE_UUID_QUERY`` told; "" where it did not."""
    text = reply.text.strip()
    return text if reply.kind == "api" and len(text) == _UUID_LENGTH and text.count("-") == 4 else ""


def prefix_filter(prefix: str) -> str:
    """The filter value that matches all ids of one connection."""
    return f"/^{prefix}-/"


class Setting(Enum):
    """How far a connection is set up for a need."""

    NONE = 0
    ASKED = 1
    READY = 2
    DENIED = 3


class Step:
    """A set-up command of our own; its reply goes to ``told`` (None: nobody cares)."""

    __slots__ = ("told",)

    def __init__(self, told: object = None) -> None:
        self.told = told


class Carrier:
    """A command connection and its commands; a ``ConnectionOwner``."""

    def __init__(self, pool: CommandPool) -> None:
        self.pool = pool
        self.prefix = os.urandom(4).hex()
        """First 8 hex digits of the ids of its jobs."""
        self.connection: Connection | None = None
        self.unanswered = 0
        """Replies that are due, tombstones and set-up included."""
        self.waited_for = 0
        """Those of them that somebody waits for."""
        self.progress_at = 0.0
        """When the reply that is due next became the next one (loop time)."""
        self.fruitful = False
        """Whether it ever answered anything."""
        self.shuts_down = False
        """FreeSWITCH said that it is being shut down."""
        self.used_at = 0.0
        self.idle_check: Deadline | None = None
        self.born_at = 0.0
        self.core_uuid = ""
        self.adopted: set[Origin] = set()
        """Origins of lost connections whose jobs report here."""
        self.sees_begin = False
        """Whether FreeSWITCH's user may see that an application begins."""
        self._calls: Counter[str] = Counter()
        self.settings: dict[Need, Setting] = {Need.JOBS: Setting.NONE, Need.EXECUTES: Setting.NONE}
        self.denial: NotPermitted | None = None

    def open(self, connection: Connection, now: float) -> None:
        """The connection is authenticated."""
        self.connection = connection
        self.progress_at = self.used_at = self.born_at = now

    def new_key(self) -> str:
        """A new UUID-shaped id whose events this connection gets."""
        tail = os.urandom(12).hex()
        return f"{self.prefix}-{tail[:4]}-4{tail[5:8]}-a{tail[9:12]}-{tail[12:]}"

    # --- is it a good choice? ----------------------------------------------------------------------------------

    def serves(self, need: Need) -> bool:
        """Whether it is set up for the need."""
        return need is Need.NOTHING or self.settings[need] is Setting.READY

    def stalled(self, now: float, after: float) -> bool:
        """Whether the reply that is due next has been due for longer than ``after`` s: something slow runs."""
        return self.unanswered > 0 and now - self.progress_at > after

    @property
    def alive(self) -> bool:
        """Whether it is connected."""
        return self.connection is not None and self.connection.ready

    # --- writing -----------------------------------------------------------------------------------------------

    def write(self, submission: Submission, now: float) -> None:
        """Write a command; its time for the reply starts."""
        connection = self.connection
        assert connection is not None
        submission.carrier = self
        submission.written_at = self.used_at = now
        if self.unanswered == 0:
            self.progress_at = now
        command = submission.render(self)
        if isinstance(submission, Execute):
            self._watch(submission.uuid)
        if self.pool.own is not None:
            self.pool.own.add_command(command)
        submission.pending = connection.send(command, submission, submission.on_written)
        self.unanswered += 1
        self.waited_for += 1

    def abandon(self, pending: PendingReply) -> None:
        """Nobody waits for this reply any more."""
        self.waited_for -= 1
        if self.connection is not None:
            self.connection.abandon(pending)

    def _step(self, command: bytes, told: object = None) -> None:
        assert self.connection is not None
        if self.unanswered == 0:
            self.progress_at = self.pool.time()
        if self.pool.own is not None:
            self.pool.own.add_command(command)
        self.connection.send(command, Step(told))
        self.unanswered += 1

    def prepare(self, need: Need) -> None:
        """Begin to set it up for the need; the pool is told by ``prepared`` or ``refused``."""
        if need is Need.NOTHING or self.settings[need] is not Setting.NONE:
            return
        self.settings[need] = Setting.ASKED
        if not self.core_uuid:
            self._step(commands.api(CORE_UUID_QUERY), "core_uuid")
        # The filter first: FreeSWITCH sends no other job's event in between.
        self._step(commands.filter_add(_HEADERS[need], prefix_filter(self.prefix)))
        if need is Need.EXECUTES:
            # Alone: a name that is denied would take those behind it along, and these are not needed.
            self._step(commands.event("json", ["CHANNEL_EXECUTE"]), "sees_begin")
            self._step(commands.event("json", ["CHANNEL_DESTROY"]))
        self._step(commands.event("json", [_EVENTS[need]]), need)

    def adopt(self, origin: Origin) -> None:
        """Get the results of a lost connection's jobs, too."""
        self.adopted.add(origin)
        self._step(commands.filter_add(_HEADERS[origin[0]], prefix_filter(origin[1])))
        for execute in self.pool.jobs.executes_of(origin):
            execute.carrier = self
            self._watch(execute.uuid)

    def _watch(self, uuid: str) -> None:
        """Get the end of a call on which an application is waited for."""
        if _CALL_ID.fullmatch(uuid):
            self._calls[uuid] += 1
            if self._calls[uuid] == 1:
                self._step(commands.filter_add("Unique-ID", uuid))

    def unwatch(self, uuid: str) -> None:
        """One application less is waited for on this call."""
        if uuid not in self._calls:
            return
        self._calls[uuid] -= 1
        if not self._calls[uuid]:
            del self._calls[uuid]
            if self.alive:
                self._step(commands.filter_delete("Unique-ID", uuid))

    def release(self, origin: Origin) -> None:
        """The last job of an adopted origin is over."""
        self.adopted.discard(origin)
        if self.alive:
            self._step(commands.filter_delete(_HEADERS[origin[0]], prefix_filter(origin[1])))

    @property
    def origins(self) -> set[Origin]:
        """Whose results arrive here."""
        return {(need, self.prefix) for need in _EVENTS} | self.adopted

    # --- told by the connection ----------------------------------------------------------------------------------

    def occurred(self, connection: Connection, occurrences: list[esl.Occurrence]) -> None:
        """Hand replies and results to their commands."""
        now = self.pool.time()
        self.used_at = now
        for one in occurrences:
            if type(one) is esl.ReplyReceived:
                self.unanswered -= 1
                self.progress_at = now
                if not self.fruitful:
                    self.fruitful = True
                    self.pool.answered()
                pending = one.pending
                token: Any = pending.token
                if one.reply.denied:
                    self._not_run(token)
                if type(token) is Step:
                    self._stepped(token.told, one.reply)
                    continue
                if not pending.abandoned:
                    self.waited_for -= 1
                token.replied(one.reply, now)
            elif type(one) is Event:
                self._result(one, now)
            elif type(one) is esl.Notice and one.reason is esl.CloseReason.SHUTDOWN:
                self.shuts_down = True
        self.pool.progressed(self)

    def closed(self, connection: Connection, closed: esl.Closed) -> None:
        """The connection ended: whatever it carried is lost."""
        self.unanswered = self.waited_for = 0
        self.pool.carrier_lost(self, closed.error, closed.reason)
        for pending in closed.lost:
            if not pending.sent:
                self._not_run(pending.token)
            if isinstance(pending.token, Submission):
                pending.token.lost(closed.error, pending.sent)
        self.pool.progressed(self)

    def _not_run(self, token: object) -> None:
        """FreeSWITCH did not take this command: no event of it will come."""
        if self.pool.own is None:
            return
        if isinstance(token, Submission):
            self.pool.own.withdraw_command(token.rendered())
        elif isinstance(token, Step) and token.told == "core_uuid":
            self.pool.own.withdraw_command(commands.api(CORE_UUID_QUERY))

    def _result(self, event: Event, now: float) -> None:
        if event.injected:
            return  # a Job-UUID is no secret: anybody may fire an event that bears it
        envelope = event.envelope
        if envelope.name == _EVENTS[Need.JOBS]:
            key = envelope.job_uuid
        elif envelope.name in ("CHANNEL_EXECUTE", _EVENTS[Need.EXECUTES]):
            value = event.get(_HEADERS[Need.EXECUTES])
            key = value if isinstance(value, str) else ""
            if envelope.name == "CHANNEL_EXECUTE":
                self.pool.jobs.began(key)
                return
        else:
            if envelope.name == "CHANNEL_DESTROY":
                self.pool.jobs.call_destroyed(envelope.unique_id, now)
            return
        self.pool.jobs.complete(key, event, now)

    def _stepped(self, told: object, reply: Reply) -> None:
        if told == "core_uuid":
            self.core_uuid = core_uuid_of(reply)
            self.pool.core_uuid_told(self.core_uuid)
        elif told == "sees_begin":
            self.sees_begin = reply.ok
        elif isinstance(told, Need):
            if reply.ok:
                self.settings[told] = Setting.READY
                self.pool.prepared()
            else:
                self.settings[told] = Setting.DENIED
                self.denial = NotPermitted(
                    f"this user may not have {_EVENTS[told]}, so that no result would arrive: {reply.error}"
                )
                self.pool.refused(told, self.denial)
