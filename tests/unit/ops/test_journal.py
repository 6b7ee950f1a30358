from __future__ import annotations

import pytest

from bridge.messages.command import CommandReply, CommandRequest
from bridge.messages.reply import Executed, Status
from bridge.ops.journal import FAILED_KEPT, SLOWEST_KEPT, SLOWEST_WINDOW, TEXT_LIMIT, Journal
from bridge.redaction import Redactor


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def journal(clock: Clock) -> Journal:
    return Journal(Redactor(["s3cret-value"]), wall=clock)


def reply(status: Status = Status.OK, ms: float = 1.0, error: str = "") -> CommandReply:
    return CommandReply(id="1", status=status, executed=Executed.YES, node="fs1", elapsed_ms=ms, error=error)


def test_the_slowest_are_kept_in_order(journal: Journal) -> None:
    for ms in range(100):
        journal.note(CommandRequest(command=f"c{ms}"), reply(ms=float(ms)))
    slowest = journal.describe()["slowest"]
    assert [entry["command"] for entry in slowest] == [f"c{99 - place}" for place in range(SLOWEST_KEPT)]


def test_the_slowest_grow_old(journal: Journal, clock: Clock) -> None:
    journal.note(CommandRequest(command="old"), reply(ms=10_000))
    clock.now += SLOWEST_WINDOW + 1
    journal.note(CommandRequest(command="new"), reply())
    assert [entry["command"] for entry in journal.describe()["slowest"]] == ["new"]


def test_the_last_failures_are_kept_newest_first(journal: Journal) -> None:
    for number in range(FAILED_KEPT + 10):
        journal.note(CommandRequest(command=f"c{number}"), reply(Status.TIMEOUT, error="late"))
    told = journal.describe()
    assert len(told["failed"]) == FAILED_KEPT
    assert told["failed"][0]["command"] == f"c{FAILED_KEPT + 9}"
    assert told["outcomes"] == {"timeout": FAILED_KEPT + 10}


def test_texts_are_short_and_without_secrets(journal: Journal) -> None:
    journal.note(
        CommandRequest(command="originate {sip_auth_password=hidden}x s3cret-value " + "y" * 1000),
        reply(Status.ERROR, error="-ERR s3cret-value " + "z" * 1000),
    )
    (entry,) = journal.describe()["failed"]
    assert len(entry["command"]) <= TEXT_LIMIT
    assert len(entry["error"]) <= TEXT_LIMIT
    assert "hidden" not in str(entry)
    assert "s3cret" not in str(entry)


def test_other_ops_read_as_words(journal: Journal) -> None:
    journal.note(CommandRequest(op="execute", uuid="u1", app="playback", arg="x.wav"), reply(Status.NO_ROUTE))
    assert journal.describe()["failed"][0]["command"] == "execute playback x.wav u1"
