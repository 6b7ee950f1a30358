from __future__ import annotations

from typing import Any

from bridge.messages.command import CommandReply, Executed, Status
from bridge.relay.ledger import MemoryLedger, Verdict

YES = CommandReply(status=Status.OK, executed=Executed.YES, result="+OK")
NO = CommandReply(status=Status.BUSY, executed=Executed.NO)
UNKNOWN = CommandReply(status=Status.TIMEOUT, executed=Executed.UNKNOWN)


class Asker:
    def __init__(self) -> None:
        self.heard: list[tuple[Verdict, CommandReply | None]] = []

    def __call__(self, verdict: Verdict, reply: CommandReply | None) -> None:
        self.heard.append((verdict, reply))


def ask(ledger: MemoryLedger, key: str = "a", content: bytes = b"1", **options: Any) -> Asker:
    asker = Asker()
    ledger.begin(key, content, asker, **options)
    return asker


def test_new_then_kept() -> None:
    ledger = MemoryLedger(300)
    assert ask(ledger).heard == [(Verdict.NEW, None)]
    waiting = ask(ledger)
    assert waiting.heard == []
    stored: list[int] = []
    ledger.keep("a", YES, lambda: stored.append(len(waiting.heard)))
    assert stored == [0]  # the first answer leaves before those of its repeats
    assert waiting.heard == [(Verdict.KEPT, YES)]
    assert ask(ledger).heard == [(Verdict.KEPT, YES)]
    assert ask(ledger, content=b"2").heard == [(Verdict.DIFFERENT, None)]


def test_a_running_key_of_another_content() -> None:
    ledger = MemoryLedger(300)
    ask(ledger)
    assert ask(ledger, content=b"2").heard == [(Verdict.DIFFERENT, None)]


def test_release_frees_the_key_and_tells_who_waits() -> None:
    ledger = MemoryLedger(300)
    ask(ledger)
    waiting = ask(ledger)
    ledger.release("a", NO)
    assert waiting.heard == [(Verdict.KEPT, NO)]
    assert ask(ledger, content=b"2").heard == [(Verdict.NEW, None)]


def test_outcomes_are_forgotten_after_the_window() -> None:
    now = [0.0]
    ledger = MemoryLedger(300, clock=lambda: now[0])
    ask(ledger)
    ledger.keep("a", YES, lambda: None)
    now[0] = 299
    ask(ledger, "b")
    ledger.keep("b", YES, lambda: None)
    assert ask(ledger).heard == [(Verdict.KEPT, YES)]
    now[0] = 300
    assert ask(ledger).heard == [(Verdict.NEW, None)]
    assert len(ledger) == 1
    assert ledger.forgotten == 0


def test_a_window_of_nothing_keeps_nothing_but_knows_what_runs() -> None:
    ledger = MemoryLedger(0)
    ask(ledger)
    waiting = ask(ledger)
    ledger.keep("a", YES, lambda: None)
    assert waiting.heard == [(Verdict.KEPT, YES)]
    assert len(ledger) == 0


def test_a_late_answer_replaces_an_unknown_outcome_only() -> None:
    ledger = MemoryLedger(300)
    ledger.replace("nobody", YES)
    ask(ledger)
    ledger.keep("a", UNKNOWN, lambda: None)
    ledger.replace("a", YES)
    assert ask(ledger).heard == [(Verdict.KEPT, YES)]
    ledger.replace("a", UNKNOWN)
    assert ask(ledger).heard == [(Verdict.KEPT, YES)]


def test_a_late_refusal_frees_the_key() -> None:
    ledger = MemoryLedger(300)
    ask(ledger)
    ledger.keep("a", UNKNOWN, lambda: None)
    ledger.replace("a", NO)
    assert ask(ledger).heard == [(Verdict.NEW, None)]
    assert ledger._bytes == 0


def test_again_makes_an_unknown_outcome_new() -> None:
    ledger = MemoryLedger(300)
    ask(ledger)
    ledger.keep("a", UNKNOWN, lambda: None)
    assert ask(ledger).heard == [(Verdict.KEPT, UNKNOWN)]
    assert ask(ledger, again=True).heard == [(Verdict.NEW, UNKNOWN)]
    ledger.replace("a", YES)  # of the first attempt, while the second runs
    ledger.keep("a", YES, lambda: None)
    assert ask(ledger, again=True).heard == [(Verdict.KEPT, YES)]


def test_memory_is_bounded() -> None:
    ledger = MemoryLedger(300, max_entries=3, max_bytes=100)
    for key in "abcd":
        ask(ledger, key)
        ledger.keep(key, YES, lambda: None)
    assert (len(ledger), ledger.forgotten) == (3, 1)
    big = CommandReply(status=Status.OK, executed=Executed.YES, result="x" * 98)
    ask(ledger, "e")
    ledger.keep("e", big, lambda: None)
    assert (len(ledger), ledger.forgotten) == (1, 4)
    assert ask(ledger, "e").heard == [(Verdict.KEPT, big)]
    parts = CommandReply(status=Status.OK, executed=Executed.YES, replies=[big, big])
    ask(ledger, "f")
    ledger.keep("f", parts, lambda: None)
    assert len(ledger) == 0
