"""The jobs that run on one node, whichever connection started them.

This room never writes anything: it finds the job of a result, and the jobs that lost their connection.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from bridge.errors import ConnectionLost, EslError
from bridge.esl.event import Event
from bridge.esl.pending import JobTable
from bridge.switch.submission import Execute, Job, Need

Origin = tuple[Need, str]
"""What kind of job it is, and the prefix of the connection that started it."""


class Jobs:
    """Running jobs by their id; those given up keep a bounded tombstone for a late result."""

    def __init__(self) -> None:
        self._table = JobTable()
        self._running: dict[str, Job] = {}
        self.orphans: set[Origin] = set()
        """Origins whose connection is gone and whose results no other connection gets yet."""

    def __len__(self) -> int:
        return len(self._running)

    @property
    def given_up(self) -> int:
        """How many are remembered for a late result only."""
        return self._table.tombstones

    def register(self, job: Job) -> None:
        """Expect a result; to be called before the command is written. Raises LimitExceeded."""
        self._table.register(job.key, job)
        self._running[job.key] = job

    def forget(self, key: str) -> None:
        """No result will come, or nobody wants it."""
        self._table.forget(key)
        self._running.pop(key, None)

    def give_up(self, key: str, now: float) -> None:
        """Nobody waits any more; a result is late."""
        self._table.abandon(key, now)
        self._running.pop(key, None)

    def complete(self, key: str, event: Event, now: float) -> None:
        """Hand a result to its job; results of others are none of our business."""
        token = self._table.take(key) or self._table.take_abandoned(key)
        if isinstance(token, Job):
            self._running.pop(key, None)
            token.completed(event, now)

    def complete_unheard(self, key: str, event: Event, now: float) -> None:
        """The same for a result that came over a connection that carries no commands.

        It may overtake what the job's own connection says, so nothing is taken before FreeSWITCH took the job there.
        """
        job = self._running.get(key)
        if job is None or job.accepted:
            self.complete(key, event, now)

    def began(self, key: str) -> None:
        """An application began that is waited for."""
        job = self._running.get(key)
        if isinstance(job, Execute):
            job.began = True

    def call_destroyed(self, uuid: str, now: float) -> None:
        """A call is gone: so are the applications that are waited for on it."""
        for job in list(self._running.values()):
            if isinstance(job, Execute) and job.uuid == uuid:
                job.call_destroyed(now)

    def executes_of(self, origin: Origin) -> list[Execute]:
        """The applications of an origin that are waited for."""
        return [job for job in self._running.values() if isinstance(job, Execute) and origin_of(job) == origin]

    def owed_to(self, origins: Collection[Origin]) -> bool:
        """Whether a job of these origins still runs."""
        return any(origin_of(job) in origins for job in self._running.values())

    def orphan(self, origins: Collection[Origin]) -> None:
        """The connection that gets the results of these origins is gone."""
        for job in self._running.values():
            if job.accepted and origin_of(job) in origins:
                job.orphaned = job.unseen = True
                self.orphans.add(origin_of(job))

    def adopted(self, origin: Origin) -> None:
        """Another connection gets the results of this origin now."""
        self.orphans.discard(origin)
        for job in self._running.values():
            if origin_of(job) == origin:
                job.orphaned = False

    def waiting_orphans(self, need: Need) -> Iterator[Origin]:
        """Orphaned origins that still have a running job; the others are dropped."""
        for origin in list(self.orphans):
            if not self.owed_to((origin,)):
                self.orphans.discard(origin)
            elif origin[0] is need:
                yield origin

    def restarted(self, core_uuid: str) -> None:
        """FreeSWITCH has this Core-UUID now: jobs that began under another are gone."""
        error = ConnectionLost("FreeSWITCH restarted, its jobs are gone")
        for job in list(self._running.values()):
            if job.accepted and job.core_uuid and job.core_uuid != core_uuid:
                job.abandoned(error)
        self._table.forget_abandoned(
            lambda job: isinstance(job, Job) and bool(job.core_uuid) and job.core_uuid != core_uuid
        )

    def end(self, error: EslError) -> None:
        """No result can come any more, for any job."""
        for job in list(self._running.values()):
            job.abandoned(error)
        self._table.clear()


def origin_of(job: Job) -> Origin:
    """Where the job was started."""
    return job.need, job.key[:8]
