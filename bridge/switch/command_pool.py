"""Commands for one node: each waits, is written once, and gets exactly one outcome.

This room never retries a command that was written, and never lets one command wait behind another that hangs.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import OrderedDict
from collections.abc import Callable

from bridge.errors import ConnectionLost, EslError, NotConnected, PoolBusy
from bridge.esl import commands
from bridge.esl.ending import CloseReason
from bridge.esl.event import Event
from bridge.esl.replies import Reply
from bridge.esl.url import EslUrl
from bridge.switch.backoff import POOL_SPANS, Backoff
from bridge.switch.carrier import Carrier
from bridge.switch.carriers import Carriers
from bridge.switch.deadlines import Deadlines
from bridge.switch.jobs import Jobs
from bridge.switch.own_commands import OwnCommands
from bridge.switch.submission import Execute, Job, Need, Outcome, State, Submission

__all__ = ["CommandPool", "Outcome", "Submission"]

_WRITTEN = State.WRITTEN
_NOTHING = Need.NOTHING
_LOOK_EVERY = 0.005  # s; how often further commands that have to wait have the connections looked at


class CommandPool:
    """Commands for one node. All times in s; ``deadline`` arguments are instants in loop time.

    ``command_timeout`` bounds the wait for FreeSWITCH's direct reply, from the write on; ``polling_interval`` > 0
    gathers outcomes and tells them every so often. ``done`` is called exactly once with the outcome, never before
    ``submit`` returned, and once more with ``late`` set when the answer came after a ``timeout``.
    """

    def __init__(
        self,
        node: str,
        url: EslUrl,
        *,
        connect_timeout: float,
        command_timeout: float,
        deadlines: Deadlines,
        polling_interval: float = 0.0,
        max_connections: int = 4,
        max_pipelined: int = 16,
        max_waiting: int = 1024,
        idle_timeout: float = 60.0,
        own_commands: OwnCommands | None = None,
        backoff: Backoff | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.node = node
        self.url = url
        self.deadlines = deadlines
        self.jobs = Jobs()
        self.core_uuid = ""
        self.in_flight = 0
        """Commands written, and jobs running, whose outcome is not told yet."""
        self.on_reached: Callable[[], object] = lambda: None
        """Called when an attempt to connect has ended, well or not: ``reached`` says which."""
        self.own = own_commands
        self._loop = asyncio.get_running_loop()
        self.time = time.monotonic
        """The clock of all instants here. It is the loop's, but uvloop's own ``time()`` counts whole ms."""
        self._command_timeout = command_timeout
        self._polling_interval = polling_interval
        self._max_waiting = max_waiting
        self._lanes: dict[Need, OrderedDict[Submission, None]] = {need: OrderedDict() for need in Need}
        self._gathered: list[tuple[Callable[[Outcome], None], Outcome]] = []
        self._look_at = 0.0
        self._carriers = Carriers(
            self,
            connect_timeout=connect_timeout,
            idle_timeout=idle_timeout,
            max_connections=max_connections,
            max_pipelined=max_pipelined,
            backoff=backoff if backoff is not None else Backoff(POOL_SPANS),
            tls=tls,
        )

    # --- for callers -----------------------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """Commands that wait for a connection."""
        return sum(map(len, self._lanes.values()))

    @property
    def connections(self) -> int:
        """Open connections, those with a hung command included."""
        return len(self._carriers)

    @property
    def reached(self) -> bool:
        """Whether the last attempt to connect succeeded; False before the first."""
        return self._carriers.reached

    def knock(self) -> None:
        """Connect, once the back-off allows, although no command waits; ``on_reached`` tells the end of it."""
        self._carriers.knock()

    def submit(
        self,
        command: bytes,
        done: Callable[[Outcome], None],
        *,
        deadline: float,
        on_written: Callable[[], None] | None = None,
    ) -> Submission:
        """Send a rendered command whose direct reply is its outcome. Never raises: faults are outcomes."""
        submission = Submission(self, command, done, deadline, on_written)
        self._take(submission)
        return submission

    def submit_job(
        self,
        line: str,
        done: Callable[[Outcome], None],
        *,
        deadline: float,
        on_accepted: Callable[[str], None] | None = None,
        on_written: Callable[[], None] | None = None,
    ) -> Submission:
        """Run the API line ``line`` as a ``bgapi`` with a Job-UUID of ours; the outcome is its BACKGROUND_JOB.

        ``on_accepted`` gets the Job-UUID when FreeSWITCH took the job. Raises InvalidCommand before anything is sent.
        """
        commands.bgapi(line, "00000000-0000-4000-a000-000000000000")  # refuses what cannot be written
        job = Job(self, line, done, deadline, on_written, on_accepted)
        self._take(job)
        return job

    def submit_execute_wait(
        self,
        uuid: str,
        app: str,
        arg: str,
        done: Callable[[Outcome], None],
        *,
        deadline: float,
        on_written: Callable[[], None] | None = None,
    ) -> Submission:
        """Run an application on the call ``uuid``; the outcome is its CHANNEL_EXECUTE_COMPLETE, or the call's end.

        Raises InvalidCommand before anything is sent.
        """
        commands.execute(uuid, app, arg, event_uuid="00000000-0000-4000-a000-000000000000")
        execute = Execute(self, uuid, app, arg, done, deadline, on_written)
        self._take(execute)
        return execute

    async def command(self, command: bytes, timeout: float) -> Reply:
        """Send a rendered command and wait for its reply at most ``timeout`` s. Raises the EslError of its outcome."""
        future: asyncio.Future[Outcome] = self._loop.create_future()

        def done(outcome: Outcome) -> None:
            if not future.done():
                future.set_result(outcome)

        submission = self.submit(command, done, deadline=self.time() + timeout)
        try:
            outcome = await future
        except asyncio.CancelledError:
            submission.cancel()
            raise
        if outcome.reply is None:
            raise outcome.error if outcome.error is not None else ConnectionLost("no reply")
        return outcome.reply

    async def api(self, line: str, timeout: float) -> Reply:
        """The same for an API command line."""
        return await self.command(commands.api(line), timeout)

    def node_up(self, core_uuid: str = "") -> None:
        """The node is known to be reachable: do not wait for the back-off; another Core-UUID ends its old jobs."""
        self._carriers.forgive()
        self.core_uuid_told(core_uuid)
        self._carriers.place_orphans()

    def job_ended(self, event: Event) -> None:
        """A BACKGROUND_JOB that the event link got: the job's own connection may be gone, and its copy with it."""
        if not event.injected:
            self.jobs.complete_unheard(event.envelope.job_uuid, event, self.time())

    def reconfigure(
        self,
        *,
        connect_timeout: float,
        command_timeout: float,
        polling_interval: float,
        max_connections: int,
        max_pipelined: int,
        max_waiting: int,
        idle_timeout: float,
    ) -> None:
        """Take other times (s) and limits for what is submitted from now on; connections stay."""
        self._command_timeout = command_timeout
        self._polling_interval = polling_interval
        self._max_waiting = max_waiting
        self._carriers.connect_timeout = connect_timeout
        self._carriers.idle_timeout = idle_timeout
        self._carriers.max_connections = max_connections
        self._carriers.max_pipelined = max_pipelined

    async def close(self, reason: str = "the command pool is closed") -> None:
        """End all connections; what waits is ``unsent``, what is written is ``lost``."""
        if self._carriers.unwanted is not None:
            return
        closing = self._carriers.unwanted = NotConnected(reason)
        self.fail_waiting(closing)
        await self._carriers.close(closing)
        self.jobs.end(ConnectionLost(reason))
        self._tell_gathered()

    # --- waiting and writing -----------------------------------------------------------------------------------

    def _take(self, submission: Submission) -> None:
        now = self.time()
        need = submission.need
        lane = self._lanes[need]
        if not lane and submission.deadline > now:
            carrier = self._carriers.choose(need, now)
            if carrier is not None:
                self._write(carrier, submission, now)
                if carrier.unanswered > 1:
                    self._carriers.relieve(carrier, now)
                return
        refusal = self._carriers.refusal(need, now)
        if refusal is None and self.waiting >= self._max_waiting:
            refusal = PoolBusy(f"{self._max_waiting} commands wait for a connection to {self.node} already")
        if refusal is not None:
            # Not before submit() returned: the caller may not hold the submission yet.
            self._loop.call_soon(submission.refused, refusal)
            return
        submission.timer = self.deadlines.add(submission.deadline, submission.expired)
        lane[submission] = None
        # Those that wait already had the connections looked at, and each answer has them looked at again.
        if len(lane) == 1 or now >= self._look_at:
            self._look_at = now + _LOOK_EVERY
            self.advance(now)

    def _write(self, carrier: Carrier, submission: Submission, now: float) -> None:
        until = now + self._command_timeout
        if submission.deadline < until:
            until = submission.deadline
        if submission.timer is not None:
            submission.timer.cancel()
        submission.timer = self.deadlines.add(until, submission.expired)
        submission.state = _WRITTEN
        self.in_flight += 1
        carrier.write(submission, now)

    def advance(self, now: float) -> None:
        """Give waiting commands to connections that are free; see to it that the others get one."""
        for need, lane in self._lanes.items():
            while lane:
                carrier = self._carriers.choose(need, now)
                if carrier is None:
                    break
                submission = lane.popitem(last=False)[0]
                if submission.deadline <= now:  # we stood still, and its timer has not come to it yet
                    submission.expired()
                else:
                    self._write(carrier, submission, now)
            if lane:
                self._carriers.provide(need, now)

    def fail_waiting(self, error: EslError) -> None:
        """No connection can be had: nobody waits his whole budget for it."""
        for lane in self._lanes.values():
            while lane:
                lane.popitem(last=False)[0].fail(error)

    # --- told by carriers ----------------------------------------------------------------------------------------

    def progressed(self, carrier: Carrier) -> None:
        """A carrier read something, or ended: there may be room."""
        carriers = self._carriers
        if carriers.parked and carrier in carriers.parked and not carrier.unanswered:
            carriers.unpark(carrier)
        if any(self._lanes.values()):
            now = self.time()
            self.advance(now)
            refusal = carriers.refusal(Need.NOTHING, now)
            if refusal is not None:
                self.fail_waiting(refusal)

    def answered(self) -> None:
        """A new carrier answered for the first time."""
        self._carriers.answered()

    def carrier_lost(self, carrier: Carrier, error: EslError, reason: CloseReason) -> None:
        """A connection ended; its commands are told next."""
        self._carriers.lost(carrier, error, reason)

    def prepared(self) -> None:
        """A carrier is set up for something."""
        self._carriers.place_orphans()

    def refused(self, need: Need, error: EslError) -> None:
        """FreeSWITCH's user may not have what the need takes."""
        self._carriers.not_wanted(need)
        lane = self._lanes[need]
        while lane:
            lane.popitem(last=False)[0].fail(error)

    def core_uuid_told(self, core_uuid: str) -> None:
        """The node's Core-UUID, as a connection learned it; "" says nothing."""
        if core_uuid and core_uuid != self.core_uuid:
            self.core_uuid = core_uuid
            self.jobs.restarted(core_uuid)

    # --- told by submissions -------------------------------------------------------------------------------------

    def withdraw(self, submission: Submission) -> None:
        """It does not wait any more."""
        self._lanes[submission.need].pop(submission, None)

    def put_back(self, submission: Submission) -> None:
        """Its connection ended before it was written: it goes on another one."""
        self.in_flight -= 1
        if submission.timer is not None:
            submission.timer.cancel()
        submission.carrier = submission.pending = None
        submission.written_at = 0.0  # whoever gives it up must not say that it may have run
        submission.state = State.WAITING
        if self._carriers.unwanted is not None:
            submission.fail(self._carriers.unwanted)
            return
        submission.timer = self.deadlines.add(submission.deadline, submission.expired)
        lane = self._lanes[submission.need]
        lane[submission] = None
        lane.move_to_end(submission, last=False)

    def settled(self, submission: Submission) -> None:
        """Its outcome is known."""
        self.in_flight -= 1
        if isinstance(submission, Execute) and submission.carrier is not None:
            submission.carrier.unwatch(submission.uuid)
        if submission.need is not _NOTHING:
            self._carriers.release_adopted()

    def tell(self, submission: Submission, outcome: Outcome) -> None:
        """Tell an outcome, at once or with the others of the polling interval."""
        if self._polling_interval <= 0:
            try:
                submission.done(outcome)
            except Exception as error:
                self.report("a command's callback failed", error)
            return
        self._gathered.append((submission.done, outcome))
        if len(self._gathered) == 1:
            self._loop.call_later(self._polling_interval, self._tell_gathered)

    def call(self, function: Callable[[str], None], argument: str) -> None:
        """Call a caller's function; what it raises is reported and goes no further."""
        try:
            function(argument)
        except Exception as error:
            self.report("a command's callback failed", error)

    def _tell_gathered(self) -> None:
        gathered, self._gathered = self._gathered, []
        for done, outcome in gathered:
            try:
                done(outcome)
            except Exception as error:
                self.report("a command's callback failed", error)

    def report(self, what: str, error: Exception) -> None:
        """Tell the loop's exception handler."""
        self._loop.call_exception_handler({"message": f"{self.node}: {what}", "exception": error})
