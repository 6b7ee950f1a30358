from __future__ import annotations

import pytest

from bridge.relay.policy.patterns import Act, Pattern, canonical


def hits(pattern: str, act: Act, *, op: str = "api", node: str = "fs1", text: str = "", strict: bool = False) -> bool:
    return Pattern(pattern, strict=strict).matches(act, op, node, text)


def command(line: str) -> Act:
    return Act("api", canonical(line).split()[0], canonical(line))


def application(line: str) -> Act:
    return Act("app", canonical(line).split()[0], canonical(line))


def test_canonical_form() -> None:
    assert canonical("  FsCtl  'shut\\down'\t\"now\" ") == "fsctl shutdown now"


@pytest.mark.parametrize(
    ("pattern", "line", "expected"),
    [
        ("status", "status", True),
        ("STATUS", "status", True),
        ("status", "status html", True),
        ("status", "statusx", False),
        ("uuid_*", "uuid_kill x", True),
        ("uuid_*", "xuuid_kill", False),
        ("uuid_?ill", "uuid_kill x", True),
        ("*", "anything at all", True),
        ("fsctl shutdown", "fsctl shutdown now", True),
        ("fsctl shutdown", "fsctl shutdown", True),
        ("fsctl shutdown", "fsctl shutdown}user/1", True),
        ("fsctl shutdown", "fsctl shutdown_check", False),
        ("fsctl shutdown", "fsctl", False),
        ("fsctl s*n now", "fsctl shutdown now", True),
        ("originate *intl*", "originate a/intl/b c", True),
        ("originate *intl*", "originate a/b", False),
        ("show [calls]", "show [calls]", True),
        ("show [calls]", "show c", False),
        ("a.c x", "abc x", False),
        ("a*b*c d", "a c b c b c d", True),
        ("a*b*c d", "a c d b", False),
        ("a**b x", "a1b x", True),
        ("a *x*", "a x", True),
        ("a *x*y", "a y x", False),
    ],
)
def test_names_and_lines(pattern: str, line: str, expected: bool) -> None:
    assert hits(pattern, command(line)) is expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [("fsctl shutdown", True), ("fsctl shutdown now", True), ("fsctl shutdown}x", False), ("fsctl shutdown,x", False)],
)
def test_on_an_allow_list_a_line_ends_at_a_space(line: str, expected: bool) -> None:
    assert hits("fsctl shutdown", command(line), strict=True) is expected


def test_kinds() -> None:
    assert hits("system", command("system x"))
    assert hits("system", application("system x"))
    assert hits("app:system", application("system x"))
    assert not hits("app:system", command("system x"))
    assert hits("api:system", command("system x"))
    assert not hits("api:system", application("system x"))
    assert hits("app:bridge sofia/*", application("bridge sofia/x"))
    assert not hits("app:bridge sofia/*", application("bridge user/x"))


def test_ops_nodes_and_texts() -> None:
    act = command("status")
    assert hits("op:api", act)
    assert not hits("op:bgapi", act)
    assert hits("op:*api status", act, op="bgapi")
    assert hits("node:fs?", act)
    assert hits("node:FS1 status", act)
    assert not hits("node:fs2 status", act)
    assert hits("text:*a  b*", act, text="x a b y")
    assert not hits("text:*a b*", act, text="ab")
    assert hits("op:api node:fs1 text:x*", act, text="xyz")
    assert not hits("op:api node:fs2 text:x*", act, text="xyz")


def test_an_unknown_node_is_no_reason_to_deny_nor_to_refuse() -> None:
    assert not hits("node:fs1 status", command("status"), node="")
    assert hits("node:fs1 status", command("status"), node="", strict=True)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "empty"),
        ("  ", "empty"),
        ("op:", "nothing stands behind op:"),
        ("node: x", "nothing stands behind node:"),
        ("op:api op:bgapi", "op: stands twice"),
        ("'\"", "nothing but quotes"),
    ],
)
def test_bad_patterns_are_refused(text: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        Pattern(text)


def test_a_colon_that_is_no_qualifier_belongs_to_the_name() -> None:
    assert hits("sofia::x", command("sofia::x y"))
