"""A command on its way through the pool: waiting, written, answered, or given up.

This room decides what happens to one command; it never chooses a connection and never touches a socket.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from bridge.errors import BudgetSpent, CommandTimeout, ConnectionLost, EslError
from bridge.esl import commands
from bridge.esl.event import Event
from bridge.esl.pending import PendingReply
from bridge.esl.replies import Reply

if TYPE_CHECKING:
    from bridge.switch.carrier import Carrier
    from bridge.switch.command_pool import CommandPool
    from bridge.switch.deadlines import Deadline


class Outcome(msgspec.Struct):
    """What became of a command."""

    status: Literal["reply", "timeout", "lost", "unsent"]
    """``unsent`` is sure not to have run; ``timeout`` and ``lost`` may have."""
    reply: Reply | None = None
    """FreeSWITCH's answer; of a job its output, judged like the result of an ``api``."""
    result: str | None = None
    """Output of a job, or the Application-Response of an application that was waited for."""
    error: EslError | None = None
    """Why there is no reply."""
    late: bool = False
    """The answer of a command whose outcome (``timeout``, or ``lost`` for a job) was told before."""
    job: str = ""
    """Job-UUID of a job, Event-UUID of an application that was waited for."""
    esl_ms: float = 0.0
    """From the write to the answer, in ms."""


class Need(Enum):
    """What a connection must be set up for before it can carry a command."""

    NOTHING = "nothing"
    JOBS = "jobs"
    EXECUTES = "executes"

    __hash__ = object.__hash__  # Enum's own is written in Python, and every command looks into a map by this


class State(Enum):
    """Where a command is."""

    WAITING = 1
    WRITTEN = 2
    GIVEN_UP = 3
    """Its outcome was told as timeout or lost; an answer is late."""
    OVER = 4


_WAITING, _WRITTEN, _GIVEN_UP, _OVER = State  # plain names: these are looked up for every command


class Submission:
    """One command given to a pool; ``cancel`` is all that callers use."""

    __slots__ = (
        "carrier",
        "command",
        "deadline",
        "done",
        "on_written",
        "pending",
        "pool",
        "state",
        "timer",
        "written_at",
    )

    need: Need = Need.NOTHING
    key: str = ""

    def __init__(
        self,
        pool: CommandPool,
        command: bytes,
        done: Callable[[Outcome], None],
        deadline: float,
        on_written: Callable[[], None] | None,
    ) -> None:
        self.pool = pool
        self.command = command
        self.done = done
        self.deadline = deadline
        self.on_written = on_written
        self.state = _WAITING
        self.carrier: Carrier | None = None
        self.pending: PendingReply | None = None
        self.timer: Deadline | None = None
        self.written_at = 0.0

    def cancel(self) -> None:
        """Forget it: unsent it is never sent, sent its answer is swallowed. ``done`` is not called any more."""
        state, self.state = self.state, _OVER
        if state is _WAITING:
            self.pool.withdraw(self)
        elif state is _WRITTEN:
            self._abandon()
            self.pool.settled(self)
        self._disarm()

    # --- told by the carrier ---------------------------------------------------------------------------------

    def render(self, carrier: Carrier) -> bytes:
        """The bytes to write on this carrier."""
        return self.command

    def rendered(self) -> bytes:
        """The bytes that were written last."""
        return self.command

    def replied(self, reply: Reply, now: float) -> None:
        """The direct reply came."""
        self.pending = None  # they know each other: left so, only the garbage collector could free them
        self._answer(Outcome("reply", reply, esl_ms=(now - self.written_at) * 1e3))

    def lost(self, error: EslError, sent: bool) -> None:
        """The connection ended before the reply."""
        self.pending = None
        if self.state is not _WRITTEN:
            self.state = _OVER
        elif sent:
            self._give_up(Outcome("lost", error=error, job=self.key))
        else:
            self.pool.put_back(self)

    # --- inside ----------------------------------------------------------------------------------------------

    def expired(self) -> None:
        """Its time is up, waiting or written."""
        if self.state is _WAITING:
            self.pool.withdraw(self)
            self.fail(BudgetSpent("the deadline came before a connection was free"))
        elif self.state is _WRITTEN:
            error = CommandTimeout("no reply in time" if self.pending is not None else "no result in time")
            self._abandon()
            self._give_up(Outcome("timeout", error=error, job=self.key, esl_ms=self._age_ms()))

    def refused(self, error: EslError) -> None:
        """It could not even wait."""
        if self.state is _WAITING:
            self.fail(error)

    def fail(self, error: EslError) -> None:
        """It was not written and will not be."""
        self._disarm()
        self.state = _OVER
        self.pool.tell(self, Outcome("unsent", error=error))

    def _answer(self, outcome: Outcome) -> None:
        state, self.state = self.state, _OVER
        if state is _WRITTEN:
            timer = self.timer
            if timer is not None:
                timer.cancel()
            self.pool.settled(self)
            self.pool.tell(self, outcome)
        elif state is _GIVEN_UP:
            outcome.late = True
            self.pool.tell(self, outcome)

    def _give_up(self, outcome: Outcome) -> None:
        if self.key:
            self.pool.jobs.give_up(self.key, self.pool.time())  # a tombstone: its result may still come
        self._disarm()
        self.state = _GIVEN_UP
        self.pool.settled(self)
        self.carrier = None  # a tombstone outlives connections, and keeps none of them
        self.pool.tell(self, outcome)

    def _abandon(self) -> None:
        if self.carrier is not None and self.pending is not None:
            self.carrier.abandon(self.pending)

    def _age_ms(self) -> float:
        return (self.pool.time() - self.written_at) * 1e3

    def _disarm(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class Job(Submission):
    """A ``bgapi``: its own Job-UUID goes with it, its outcome is the BACKGROUND_JOB."""

    __slots__ = ("accepted", "core_uuid", "key", "line", "on_accepted", "orphaned", "unseen")

    need = Need.JOBS

    def __init__(
        self,
        pool: CommandPool,
        line: str,
        done: Callable[[Outcome], None],
        deadline: float,
        on_written: Callable[[], None] | None,
        on_accepted: Callable[[str], None] | None,
    ) -> None:
        super().__init__(pool, b"", done, deadline, on_written)
        self.line = line
        self.on_accepted = on_accepted
        self.accepted = False
        self.orphaned = False
        self.unseen = False
        """Its connection was lost for a while: something about it may have been missed."""
        self.key = ""
        self.core_uuid = ""

    def render(self, carrier: Carrier) -> bytes:
        """Give it an id of this carrier and register it: before the write, so that no result can come first."""
        self.key = carrier.new_key()
        self.core_uuid = carrier.core_uuid
        self.pool.jobs.register(self)
        return self.rendered()

    def rendered(self) -> bytes:
        """See ``Submission``."""
        return commands.bgapi(self.line, self.key)

    def replied(self, reply: Reply, now: float) -> None:
        """FreeSWITCH took the job, or refused it."""
        self.pending = None
        # An api's answer is no job of ours: the unload trap made something else of it, whose result has another id.
        other = reply.kind == "api"
        if other or not reply.ok:
            self.pool.jobs.forget(self.key)
            job = "" if other else self.key
            self._answer(Outcome("reply", reply, job=job, esl_ms=(now - self.written_at) * 1e3))
            return
        self.accepted = True
        if self.state is _WRITTEN:
            self._disarm()
            self.timer = self.pool.deadlines.add(self.deadline, self.expired)
            if self.on_accepted is not None:
                self.pool.call(self.on_accepted, self.key)

    def completed(self, event: Event, now: float) -> None:
        """Its BACKGROUND_JOB came."""
        self.pool.jobs.forget(self.key)
        text, reply = self._result(event)
        self._answer(Outcome("reply", reply, text, job=self.key, esl_ms=(now - self.written_at) * 1e3))

    def _result(self, event: Event) -> tuple[str, Reply]:
        text = event.body or ""
        return text, Reply("api", text, {})

    def lost(self, error: EslError, sent: bool) -> None:
        """The connection ended before FreeSWITCH took it; a result may still come, late, over another connection."""
        self.pending = None
        if self.state is _WRITTEN:
            if not sent:
                self.pool.jobs.forget(self.key)
            super().lost(error, sent)

    def abandoned(self, error: EslError) -> None:
        """No result can come any more."""
        self.pool.jobs.forget(self.key)
        if self.state is _WRITTEN:
            self._give_up(Outcome("lost", error=error, job=self.key, esl_ms=self._age_ms()))
        self.state = _OVER

    def expired(self) -> None:
        """Its time is up; the table keeps it for a late result."""
        if self.state is _WRITTEN and self.orphaned:
            error = CommandTimeout("the connection was lost and none could replace it before the deadline")
            self._give_up(Outcome("lost", error=error, job=self.key, esl_ms=self._age_ms()))
        else:
            super().expired()

    def cancel(self) -> None:
        """Forget it; a job that runs goes on running."""
        self.pool.jobs.forget(self.key)
        super().cancel()


CALL_GRACE: Final = 0.5
"""How long after its call ended (s) the CHANNEL_EXECUTE_COMPLETE may still come: events overtake one another."""


class Execute(Job):
    """An application that is waited for: its Event-UUID comes back as Application-UUID at CHANNEL_EXECUTE_COMPLETE.

    It ends with its call, too: what was queued behind another application never runs then, and completes never.
    """

    __slots__ = ("app", "began", "gone", "uuid")

    need = Need.EXECUTES

    def __init__(
        self,
        pool: CommandPool,
        uuid: str,
        app: str,
        arg: str,
        done: Callable[[Outcome], None],
        deadline: float,
        on_written: Callable[[], None] | None,
    ) -> None:
        super().__init__(pool, arg, done, deadline, on_written, None)
        self.uuid = uuid
        self.app = app
        self.began = False
        """Its CHANNEL_EXECUTE came."""
        self.gone = False
        """The CHANNEL_DESTROY of its call came."""

    def replied(self, reply: Reply, now: float) -> None:
        """The call took it, or there is no such call."""
        super().replied(reply, now)
        if self.gone and self.state is _WRITTEN:
            self.call_destroyed(now)

    def call_destroyed(self, now: float) -> None:
        """Its call is gone."""
        self.gone = True
        if self.accepted:
            self.pool.deadlines.add(now + CALL_GRACE, self._call_ended)

    def _call_ended(self) -> None:
        if self.state is not _WRITTEN:
            return
        self.pool.jobs.forget(self.key)
        if self.began:
            reply = Reply("api", "-ERR the call ended while the application ran", {})
        elif self.unseen or self.carrier is None or not self.carrier.sees_begin:
            self._give_up(
                Outcome(
                    "lost",
                    error=ConnectionLost("the call ended, and how far the application came was not seen"),
                    job=self.key,
                )
            )
            return
        else:
            reply = Reply("command", "-ERR the call ended before the application began", {})
        self._answer(Outcome("reply", reply, job=self.key, esl_ms=self._age_ms()))

    def rendered(self) -> bytes:
        """See ``Submission``."""
        return commands.execute(self.uuid, self.app, self.line, event_uuid=self.key)

    def _result(self, event: Event) -> tuple[str, Reply]:
        response = event.get("Application-Response")
        text = response if isinstance(response, str) else ""
        return text, Reply("command", "+OK", {})
