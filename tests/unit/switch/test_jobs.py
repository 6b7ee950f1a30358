from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from bridge.esl.event import Event
from bridge.switch.command_pool import CommandPool
from bridge.switch.jobs import Jobs
from bridge.switch.submission import Job, Outcome, State

KEY = "590dceaf-0000-4000-a000-000000000000"


def result(**headers: str) -> Event:
    return Event.parse(
        json.dumps({"Event-Name": "BACKGROUND_JOB", "Job-UUID": KEY, "_body": "+OK done\n", **headers}).encode()
    )


@pytest.fixture
def pool() -> Any:
    told: list[Outcome] = []
    stub = SimpleNamespace(jobs=Jobs(), time=lambda: 1.0, told=told)
    stub.settled = lambda job: None
    stub.tell = lambda job, outcome: told.append(outcome)
    return stub


def a_job(pool: Any) -> Job:
    job = Job(pool, "status", print, 10.0, None, None)
    job.key, job.state = KEY, State.WRITTEN
    pool.jobs.register(job)
    return job


def test_a_result_over_the_event_link_is_taken_once_the_job_was_accepted(pool: Any) -> None:
    """Before that it is the job's own connection that tells: its ``+OK`` comes first."""
    job = a_job(pool)
    CommandPool.job_ended(pool, result())
    assert (pool.told, len(pool.jobs)) == ([], 1)
    job.accepted = True
    CommandPool.job_ended(pool, result())
    CommandPool.job_ended(pool, result())
    assert [(one.status, one.result, one.late) for one in pool.told] == [("reply", "+OK done\n", False)]


def test_it_is_the_late_answer_of_a_job_that_was_given_up(pool: Any) -> None:
    job = a_job(pool)
    job.expired()
    assert pool.jobs.given_up == 1
    CommandPool.job_ended(pool, result())
    assert [(one.status, one.late) for one in pool.told] == [("timeout", False), ("reply", True)]


def test_an_injected_result_is_nobodys(pool: Any) -> None:
    job = a_job(pool)
    job.accepted = True
    CommandPool.job_ended(pool, result(Command="sendevent BACKGROUND_JOB"))
    assert (pool.told, len(pool.jobs)) == ([], 1)
