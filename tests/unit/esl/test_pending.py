from __future__ import annotations

import pytest

from bridge.errors import LimitExceeded
from bridge.esl.pending import JobTable, PendingReplies, PendingReply


def test_replies_first_in_first_out_and_bounded():
    pending = PendingReplies(2)
    first, second = PendingReply("api", 1), PendingReply("api", 2)
    pending.add(first)
    pending.add(second)
    with pytest.raises(LimitExceeded):
        pending.add(PendingReply("api"))
    assert (pending.first, len(pending), list(pending)) == (first, 2, [first, second])
    assert (pending.take(), pending.take(), pending.take()) == (first, second, None)
    pending.add(first)
    assert pending.clear() == [first]
    assert (len(pending), pending.first) == (0, None)


def test_a_pending_reply_shows_no_token():
    pending = PendingReply("api", "secret")
    pending.sent = pending.abandoned = True
    assert repr(pending) == "<PendingReply api sent abandoned>"


def test_job_is_taken_once():
    jobs = JobTable()
    jobs.register("a", 1)
    assert "a" in jobs
    assert not jobs.foreign("a")
    assert (jobs.take("a"), jobs.take("a"), len(jobs)) == (1, None, 0)
    assert jobs.foreign("a")


def test_abandoned_job_is_recognised_once():
    jobs = JobTable()
    jobs.register("a", 1)
    jobs.abandon("a")
    assert (jobs.foreign("a"), jobs.take("a"), jobs.tombstones) == (False, None, 1)
    assert (jobs.take_abandoned("a"), jobs.take_abandoned("a"), jobs.tombstones) == (1, None, 0)
    jobs.abandon("unknown")
    assert jobs.tombstones == 0


def test_job_table_is_bounded():
    jobs = JobTable(max_jobs=2, max_tombstones=3)
    for n in range(10):
        jobs.register(f"t{n}", n)
        jobs.abandon(f"t{n}")
    assert jobs.tombstones == 3
    assert [jobs.take_abandoned(f"t{n}") for n in (6, 7)] == [None, 7]
    jobs.register("a", 1)
    jobs.register("b", 2)
    with pytest.raises(LimitExceeded):
        jobs.register("c", 3)


def test_an_abandoned_job_is_forgotten_after_its_time():
    jobs = JobTable(late_for=100)
    for now in range(1000):
        jobs.register(str(now), now)
        jobs.abandon(str(now), now)
    assert jobs.tombstones == 101
    assert (jobs.take_abandoned("898"), jobs.take_abandoned("899")) == (None, 899)


def test_abandoned_jobs_without_hope_are_forgotten():
    jobs = JobTable()
    for n in range(4):
        jobs.register(str(n), n)
        jobs.abandon(str(n))
    jobs.forget_abandoned(lambda token: token % 2 == 0)
    assert [jobs.take_abandoned(str(n)) for n in range(4)] == [None, 1, None, 3]


def test_a_job_uuid_is_registered_once():
    jobs = JobTable()
    jobs.register("a", 1)
    with pytest.raises(ValueError, match="registered already"):
        jobs.register("a", 2)
    jobs.abandon("a")
    with pytest.raises(ValueError, match="registered already"):
        jobs.register("a", 2)


def test_forget_and_clear():
    jobs = JobTable()
    jobs.register("refused", 1)
    jobs.forget("refused")
    assert jobs.foreign("refused")
    for n in range(3):
        jobs.register(str(n), n)
    jobs.abandon("1")
    assert list(jobs) == ["0", "2"]
    assert jobs.clear() == [0, 2]
    assert (len(jobs), jobs.tombstones) == (0, 0)
