"""Who waits for what: replies by position, jobs by Job-UUID, both bounded.

This room never looks at a clock, it is told ``now`` (s), and never forgets a slot before its reply came: a command that
timed out leaves a tombstone, so that its late reply finds that and no other command.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import Final

from bridge.errors import LimitExceeded

MAX_PENDING: Final = 4096
MAX_JOBS: Final = 65_536
MAX_TOMBSTONES: Final = 4096
LATE_FOR: Final = 3600.0
"""Seconds that an abandoned job is still recognised."""


class PendingReply:
    """One command whose reply has not come.

    ``token`` is whatever its owner wants back, ``command`` its verb in lower case, ``sent`` whether its bytes were
    handed out for writing, ``abandoned`` whether nobody waits any more: the slot is a tombstone.
    """

    __slots__ = ("abandoned", "command", "sent", "token")

    def __init__(self, command: str, token: object = None) -> None:
        self.command = command
        self.token = token
        self.sent = False
        self.abandoned = False

    def __repr__(self) -> str:
        flags = [word for word, on in (("sent", self.sent), ("abandoned", self.abandoned)) if on]
        return f"<PendingReply {' '.join([self.command, *flags])}>"


class PendingReplies:
    """The replies that are due, strictly first in, first out."""

    __slots__ = ("_slots", "limit")

    def __init__(self, limit: int = MAX_PENDING) -> None:
        self.limit = limit
        self._slots: deque[PendingReply] = deque()

    def __len__(self) -> int:
        return len(self._slots)

    def __iter__(self) -> Iterator[PendingReply]:
        return iter(self._slots)

    @property
    def first(self) -> PendingReply | None:
        """The one whose reply comes next."""
        return self._slots[0] if self._slots else None

    def add(self, pending: PendingReply) -> None:
        """Append a slot. Raises ``LimitExceeded`` when full; tombstones count, their replies are still due."""
        if len(self._slots) >= self.limit:
            raise LimitExceeded(f"{self.limit} commands wait for their replies")
        self._slots.append(pending)

    def take(self) -> PendingReply | None:
        """Remove and return the slot that the reply at hand belongs to; None when nothing is due."""
        return self._slots.popleft() if self._slots else None

    def clear(self) -> list[PendingReply]:
        """Remove and return all, in order: the connection is gone."""
        lost = list(self._slots)
        self._slots.clear()
        return lost


class JobTable:
    """Background jobs by their Job-UUID. Register before the ``bgapi`` is written: its result may come first.

    An abandoned job keeps its entry for ``late_for`` s as one of ``max_tombstones``, the oldest is forgotten first.
    """

    __slots__ = ("_abandoned", "_jobs", "late_for", "max_jobs", "max_tombstones")

    def __init__(
        self, max_jobs: int = MAX_JOBS, max_tombstones: int = MAX_TOMBSTONES, late_for: float = LATE_FOR
    ) -> None:
        self.max_jobs = max_jobs
        self.max_tombstones = max_tombstones
        self.late_for = late_for
        self._jobs: dict[str, object] = {}
        self._abandoned: OrderedDict[str, tuple[float, object]] = OrderedDict()  # and since when

    def __len__(self) -> int:
        return len(self._jobs)

    def __contains__(self, job_uuid: object) -> bool:
        return job_uuid in self._jobs

    def __iter__(self) -> Iterator[str]:
        return iter(self._jobs)

    @property
    def tombstones(self) -> int:
        """How many abandoned jobs are still recognised."""
        return len(self._abandoned)

    def register(self, job_uuid: str, token: object) -> None:
        """Expect a job's result. Raises ``LimitExceeded`` when full, ``ValueError`` for an id in use."""
        if job_uuid in self._jobs or job_uuid in self._abandoned:
            raise ValueError(f"job {job_uuid} is registered already")
        if len(self._jobs) >= self.max_jobs:
            raise LimitExceeded(f"{self.max_jobs} jobs wait for their results")
        self._jobs[job_uuid] = token

    def take(self, job_uuid: str) -> object | None:
        """Remove a job that somebody waits for and return its token; None for any other."""
        return self._jobs.pop(job_uuid, None)

    def take_abandoned(self, job_uuid: str) -> object | None:
        """Remove the tombstone of a job and return its token: its result came late. None for any other."""
        entry = self._abandoned.pop(job_uuid, None)
        return None if entry is None else entry[1]

    def foreign(self, job_uuid: str) -> bool:
        """Whether this is not a job of ours: BACKGROUND_JOB goes to every subscriber, so that is normal."""
        return job_uuid not in self._jobs and job_uuid not in self._abandoned

    def abandon(self, job_uuid: str, now: float = 0.0) -> None:
        """Leave a tombstone for a job that nobody waits for any more; unknown ids do nothing."""
        if job_uuid not in self._jobs:
            return
        abandoned = self._abandoned
        abandoned[job_uuid] = (now, self._jobs.pop(job_uuid))
        while len(abandoned) > self.max_tombstones or abandoned[next(iter(abandoned))][0] < now - self.late_for:
            abandoned.popitem(last=False)

    def forget_abandoned(self, hopeless: Callable[[object], bool]) -> None:
        """Remove the tombstones of jobs whose results cannot come any more, by their tokens."""
        for job_uuid in [one for one, (_, token) in self._abandoned.items() if hopeless(token)]:
            del self._abandoned[job_uuid]

    def forget(self, job_uuid: str) -> None:
        """Remove a job that FreeSWITCH refused: no result will come."""
        self._jobs.pop(job_uuid, None)
        self._abandoned.pop(job_uuid, None)

    def clear(self) -> list[object]:
        """Remove all; return the tokens of those that somebody waits for, oldest first."""
        tokens = list(self._jobs.values())
        self._jobs.clear()
        self._abandoned.clear()
        return tokens
