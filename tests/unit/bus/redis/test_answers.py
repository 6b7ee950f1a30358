"""Replies and removals: one transaction on one server, two steps in a Cluster; what is repeated and what is not."""

from __future__ import annotations

import asyncio
from typing import Any

import hiredis
import pytest

from bridge.bus.redis import answers as room
from bridge.bus.redis.answers import Answers
from bridge.bus.redis.link import Operation
from bridge.bus.redis.wire import Reply, ReplyError, command
from bridge.errors import BusUnavailable


class FakeWriters:
    """Keeps what is submitted until the test says what became of it."""

    def __init__(self, *, one_server: bool = True) -> None:
        self.one_server = one_server
        self.closed = False
        self.waiting: list[Operation] = []

    def together(self, one: bytes, other: bytes) -> bool:
        return self.one_server

    def submit(self, operation: Operation) -> None:
        self.waiting.append(operation)

    def flush(self) -> None:
        """The end of the loop's turn."""
        for operation in self.waiting:
            if operation.prepare is not None:
                operation.prepare()

    def names(self) -> list[list[bytes]]:
        """The verbs of each operation that waits, at the end of the turn."""
        self.flush()
        return [[parts[0] for parts in parsed(operation)] for operation in self.waiting]

    def answer(self, *replies: Reply) -> None:
        self.flush()
        self.waiting.pop(0).done(list(replies), None)

    def break_off(self) -> None:
        self.flush()
        operation = self.waiting.pop(0)
        operation.written = True
        operation.done([], BusUnavailable("cut"))


def parsed(operation: Operation) -> list[list[bytes]]:
    reader = hiredis.Reader()
    reader.feed(operation.commands)
    commands = []
    while (found := reader.gets()) is not False:
        commands.append(found)
    assert len(commands) == operation.count
    return commands


class FakeEntry:
    key = b"q"
    removal = (command(b"XACK", b"q"), 1)
    probe = command(b"XPENDING", b"q")

    def __init__(self) -> None:
        self.gone = False

    def is_there(self, reply: Reply) -> bool:
        return bool(reply)

    def removed(self) -> None:
        self.gone = True

    def dead_letter(self, reason: str) -> tuple[bytes, ...]:
        return (b"reason", reason.encode())


@pytest.fixture
def problems() -> list[str]:
    return []


def make(writers: Any, problems: list[str]) -> Answers:
    return Answers(writers, reply_ttl=60.0, dead="esl.dead", on_problem=problems.append)


TRANSACTION = [b"MULTI", b"RPUSH", b"PEXPIRE", b"XACK", b"EXEC"]
ABORTED = [b"OK", ReplyError("OOM command not allowed"), ReplyError("OOM"), b"QUEUED", ReplyError("EXECABORT")]


def test_reply_and_removal_are_one_transaction(problems: list[str]) -> None:
    writers, entry = FakeWriters(), FakeEntry()
    make(writers, problems).finish("esl.reply.1", b"payload", entry)
    assert writers.names() == [TRANSACTION]
    assert parsed(writers.waiting[0])[1:3] == [
        [b"RPUSH", b"esl.reply.1", b"payload"],
        [b"PEXPIRE", b"esl.reply.1", b"60000"],
    ]
    assert writers.waiting[0].waits
    assert not entry.gone
    writers.answer(b"OK", b"QUEUED", b"QUEUED", b"QUEUED", [1, 1, 1])
    assert entry.gone
    assert not writers.waiting


def test_without_an_address_only_the_entry_is_removed(problems: list[str]) -> None:
    writers, entry = FakeWriters(), FakeEntry()
    make(writers, problems).finish("", b"payload", entry)
    assert writers.names() == [[b"MULTI", b"XACK", b"EXEC"]]


@pytest.mark.parametrize("ran", [True, False])
def test_a_transaction_in_doubt_is_looked_up(ran: bool, problems: list[str]) -> None:
    writers, entry = FakeWriters(), FakeEntry()
    make(writers, problems).finish("esl.reply.1", b"payload", entry)
    writers.break_off()
    assert writers.names() == [[b"XPENDING"]]
    writers.break_off()  # the question may break off too
    assert writers.names() == [[b"XPENDING"]]
    writers.answer([] if ran else [[b"1-0", b"me", 5, 1]])
    if ran:
        assert entry.gone
        assert not writers.waiting
    else:
        assert writers.names() == [TRANSACTION]


def test_nothing_is_repeated_after_closing(problems: list[str]) -> None:
    writers, entry = FakeWriters(), FakeEntry()
    make(writers, problems).finish("esl.reply.1", b"payload", entry)
    writers.closed = True
    writers.break_off()
    assert not writers.waiting
    assert not entry.gone


def test_what_is_answered_in_one_turn_is_one_transaction(problems: list[str]) -> None:
    writers, entries = FakeWriters(), [FakeEntry(), FakeEntry(), FakeEntry()]
    answers = make(writers, problems)
    answers.finish("esl.reply.1", b"1", entries[0])
    answers.finish("", b"", entries[1])
    answers.finish("pubsub:esl.reply.3", b"3", entries[2])
    assert writers.names() == [
        [b"MULTI", b"RPUSH", b"PEXPIRE", b"XACK", b"XACK", b"PUBLISH", b"XACK", b"EXEC"],
    ]
    late = FakeEntry()
    answers.finish("esl.reply.4", b"4", late)
    assert writers.names()[1:] == [TRANSACTION]
    writers.answer(*([b"QUEUED"] * 7), [1, 1, 1, 1, ReplyError("WRONGTYPE"), 1])
    assert all(entry.gone for entry in entries)
    assert not late.gone
    assert writers.names()[1:] == [[b"XADD"]]  # the one whose reply was refused has a dead letter


def test_one_refused_reply_does_not_hold_up_the_others(problems: list[str]) -> None:
    writers, good, bad = FakeWriters(), FakeEntry(), FakeEntry()
    answers = make(writers, problems)
    answers.finish("esl.reply.1", b"1", good)
    answers.finish("other.key", b"2", bad)
    refused = ReplyError("NOPERM no access to this key")
    writers.answer(b"OK", b"QUEUED", b"QUEUED", b"QUEUED", refused, refused, b"QUEUED", ReplyError("EXECABORT"))
    assert writers.names() == [TRANSACTION, TRANSACTION]
    writers.answer(b"OK", b"QUEUED", b"QUEUED", b"QUEUED", [1, 1, 1])
    assert good.gone
    assert not bad.gone
    writers.answer(b"OK", refused, refused, b"QUEUED", ReplyError("EXECABORT"))
    assert writers.names() == [[b"XADD"], [b"MULTI", b"XACK", b"EXEC"]]


async def test_a_server_out_of_memory_is_tried_again(problems: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_RETRY_AFTER", 0.001)
    writers, entry = FakeWriters(), FakeEntry()
    make(writers, problems).finish("esl.reply.1", b"payload", entry)
    writers.answer(*ABORTED)
    assert writers.names() == [TRANSACTION]
    writers.answer(*ABORTED)
    assert not writers.waiting
    async with asyncio.timeout(5):
        while not writers.waiting:  # noqa: ASYNC110 - the answers' own timer
            await asyncio.sleep(0.001)
    assert writers.names() == [TRANSACTION]
    assert not problems


def test_a_reply_that_may_not_be_written_becomes_a_dead_letter(problems: list[str]) -> None:
    writers, entry = FakeWriters(), FakeEntry()
    make(writers, problems).finish("other.key", b"payload", entry)
    refused = ReplyError("NOPERM no access to this key")
    for _ in range(2):  # once with its turn, once by itself
        writers.answer(b"OK", refused, refused, b"QUEUED", ReplyError("EXECABORT"))
    assert writers.names() == [[b"XADD"], [b"MULTI", b"XACK", b"EXEC"]]
    assert b"NOPERM" in parsed(writers.waiting[0])[0][-1]
    assert "NOPERM" in problems[0]


def test_an_entry_that_may_not_be_removed_is_let_go(problems: list[str]) -> None:
    writers, entry = FakeWriters(), FakeEntry()
    make(writers, problems).finish("", b"", entry)
    for _ in range(2):
        writers.answer(b"OK", ReplyError("NOPERM xack"), ReplyError("EXECABORT"))
    assert entry.gone
    assert problems


def test_a_dead_letter_goes_before_the_removal(problems: list[str]) -> None:
    writers, entry = FakeWriters(), FakeEntry()
    make(writers, problems).reject(entry, "nonsense")
    assert writers.names() == [[b"MULTI", b"XADD", b"XACK", b"EXEC"]]
    assert parsed(writers.waiting[0])[1] == [
        b"XADD", b"esl.dead", b"MAXLEN", b"~", b"10000", b"*", b"reason", b"nonsense",
    ]  # fmt: skip


def test_in_a_cluster_the_reply_comes_first(problems: list[str]) -> None:
    writers, entry = FakeWriters(one_server=False), FakeEntry()
    make(writers, problems).finish("esl.reply.1", b"payload", entry)
    assert writers.names() == [[b"RPUSH", b"PEXPIRE"]]
    assert writers.waiting[0].key == b"esl.reply.1"
    writers.break_off()  # in doubt: at least once
    assert writers.names() == [[b"RPUSH", b"PEXPIRE"]]
    writers.answer(1, 1)
    assert writers.names() == [[b"MULTI", b"XACK", b"EXEC"]]
    writers.answer(b"OK", b"QUEUED", [1])
    assert entry.gone


def test_a_reply_to_a_channel_is_published(problems: list[str]) -> None:
    writers, entry = FakeWriters(), FakeEntry()
    make(writers, problems).finish("pubsub:esl.reply.x", b"payload", entry)
    writers.flush()
    assert parsed(writers.waiting[0])[1] == [b"PUBLISH", b"esl.reply.x", b"payload"]


def test_an_early_reply_is_sent_once_and_no_more(problems: list[str]) -> None:
    for one_server, verbs in ((True, [b"MULTI", b"RPUSH", b"PEXPIRE", b"EXEC"]), (False, [b"RPUSH", b"PEXPIRE"])):
        writers = FakeWriters(one_server=one_server)
        make(writers, problems).send("esl.reply.1", b"accepted")
        assert writers.names() == [verbs]
        assert writers.waiting[0].waits
        writers.break_off()
        assert not writers.waiting


def test_replies_of_one_turn_keep_their_order(problems: list[str]) -> None:
    writers = FakeWriters()
    answers = make(writers, problems)
    answers.finish("esl.reply.1", b"final 1", FakeEntry())
    answers.send("esl.reply.2", b"accepted 2")
    answers.finish("esl.reply.2", b"final 2", FakeEntry())
    writers.flush()
    (turn,) = writers.waiting
    assert [parts[2] for parts in parsed(turn) if parts[0] == b"RPUSH"] == [b"final 1", b"accepted 2", b"final 2"]


def test_an_early_reply_that_is_refused_is_told(problems: list[str]) -> None:
    writers = FakeWriters()
    make(writers, problems).send("esl.reply.1", b"accepted")
    writers.answer(b"OK", b"QUEUED", b"QUEUED", [ReplyError("WRONGTYPE"), 0])
    assert "WRONGTYPE" in problems[0]
