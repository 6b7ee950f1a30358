from __future__ import annotations

import pytest

from bridge.relay.verbs import DEFAULT_BACKGROUND, DEFAULT_SAFE, Verbs

VERBS = Verbs()


@pytest.mark.parametrize(
    ("line", "verb", "call"),
    [
        ("status", "status", ""),
        ("  Show channels", "show", ""),
        ("uuid_kill 1-2 NORMAL", "uuid_kill", "1-2"),
        ("UUID_KILL\t1-2", "uuid_kill", "1-2"),
        ("uuid_kill", "uuid_kill", ""),
        ("create_uuid", "create_uuid", ""),
        ("   ", "", ""),
    ],
)
def test_verb_and_call(line: str, verb: str, call: str) -> None:
    facts = VERBS.read(line)
    assert (facts.verb, facts.call) == (verb, call)


@pytest.mark.parametrize(
    ("line", "background"),
    [
        ("originate user/1 &park", True),
        ("Originate user/1 &park", True),
        ("expand originate user/1 &park", True),
        ("expand uuid:1-2 originate user/1 &park", True),
        ("xml_wrap expand originate user/1", True),
        ("expand status", False),
        ("expand", False),
        ("sofia profile internal restart", True),
        ("sofia status", False),
        ("conference 3000 dial user/1", True),
        ("conference dial", False),
        ("uuid_kill x", False),
    ],
)
def test_background(line: str, background: bool) -> None:
    assert VERBS.read(line).background is background


@pytest.mark.parametrize(
    ("line", "safe"),
    [
        ("status", True),
        ("STATUS", True),
        ("show channels as json", True),
        ("sofia status profile internal", True),
        ("sofia profile internal restart", False),
        ("expand status", False),  # what is expanded may do anything
        ("hash insert/a/b/c", False),
        ("statusx", False),
    ],
)
def test_safe(line: str, safe: bool) -> None:
    assert VERBS.read(line).safe is safe


def test_own_lists() -> None:
    verbs = Verbs(background=["Slow * thing", "heavy"], safe=[])
    assert verbs.read("slow one thing now").background
    assert not verbs.read("slow one").background
    assert verbs.read("heavy").background
    assert not verbs.read("status").safe
    assert not Verbs(background=[""]).read("x").background


def test_the_lists_are_written_as_they_are_read() -> None:
    for entry in (*DEFAULT_BACKGROUND, *DEFAULT_SAFE):
        assert entry == " ".join(entry.lower().split())
    for unsafe in ("originate", "uuid_kill", "reloadxml", "fsctl", "expand", "eval", "bgapi", "sched_api"):
        assert not VERBS.read(unsafe).safe


LINES = [
    f"{verb} {rest}".strip()
    for verb in (
        "status",
        "STATUS",
        "originate",
        "sofia",
        "conference",
        "uuid_kill",
        "uuid_media",
        "expand",
        "fsctl",
        "md5",
        "show",
    )
    for rest in (
        "",
        "status",
        "profile internal",
        "recover",
        "3000 dial user/1",
        "3000 list",
        "status x",
        "originate x",
    )
]


def test_what_was_learnt_of_a_verb_changes_no_line() -> None:
    """Each line is read twice, in both orders: by a reader that knows the verb already, and by a new one."""
    old = Verbs()
    for line in [*LINES, *reversed(LINES)]:
        assert old.read(line) == Verbs().read(line), line
