from __future__ import annotations

import pytest

from bridge.bus.patterns import pattern_matcher, widened


@pytest.mark.parametrize(
    ("pattern", "topic", "expected"),
    [
        ("a.b", "a.b", True),
        ("a.b", "a.bc", False),
        ("a.*", "a.b", True),
        ("a.*", "a.b.c", False),
        ("a.*", "a", False),
        ("a.>", "a.b.c", True),
        ("a.>", "a", False),
        ("*.b", "a.b", True),
        ("a.CHANNEL_*", "a.CHANNEL_CREATE", True),
        ("a.CHANNEL_*", "a.CHANNEL_CREATE.x", False),
        ("a.CUSTOM:*::*", "a.CUSTOM:sofia::register", True),
        ("a.b+", "a.bb", False),
        (">", "a", True),
    ],
)
def test_matching(pattern: str, topic: str, expected: bool) -> None:
    assert bool(pattern_matcher(pattern)(topic)) is expected


def test_only_whole_token_wildcards_reach_the_broker() -> None:
    assert widened("a.*.>") == ("a.*.>", None)
    subject, matches = widened("a.CHANNEL_*.b")
    assert subject == "a.*.b"
    assert matches is not None
    assert matches("a.CHANNEL_X.b")
    assert not matches("a.DTMF.b")
