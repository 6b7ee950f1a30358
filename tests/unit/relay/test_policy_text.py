from __future__ import annotations

import pytest

from bridge.relay.policy.text import (
    Unreadable,
    ampersand_apps,
    broadcast_app,
    check_balance,
    expansions,
    hooks,
    inline_apps,
    words,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a b  c", ["a", "b", "c"]),
        ("a 'b c' d", ["a", "b c", "d"]),
        ('a "b \'c" d', ["a", "b 'c", "d"]),
        ("a b\\ c", ["a", "b c"]),
        ("a 'b\\'c'", ["a", "b'c"]),
        ("", []),
        ("''", [""]),
        ("x'y z'w", ["xy zw"]),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected


def test_the_last_word_of_a_limit_stays_whole() -> None:
    assert words("a b 'c d' e", 3) == ["a", "b", "'c d' e"]
    assert words("a", 3) == ["a"]


@pytest.mark.parametrize("text", ["'a", 'a "b', "a 'b\\'"])
def test_a_quote_without_end(text: str) -> None:
    with pytest.raises(Unreadable):
        words(text)


@pytest.mark.parametrize("text", ["", "{a}[b](c)", "{a=[b(c)]}", "'{'", "\\{", "a \\' b"])
def test_balanced(text: str) -> None:
    check_balance(text)


@pytest.mark.parametrize("text", ["{", "}", "{]", "'", "({)}", "{'}"])
def test_unbalanced(text: str) -> None:
    with pytest.raises(Unreadable):
        check_balance(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("${a}", []),
        ("${a(b)}", ["a b"]),
        ("${a b}", ["a b"]),
        ("${a()}", ["a"]),
        ("$${a(b)} ${c d}", ["a b", "c d"]),
        ("${a(${b(c)})}", ["a ${b(c)}"]),
        ("${a${b}}", []),
        ("${x:0:2}", []),
        ("$x {a(b)}", []),
    ],
)
def test_expansions(text: str, expected: list[str]) -> None:
    assert list(expansions(text)) == expected


@pytest.mark.parametrize("text", ["${a", "${a(${b)}", "${(x)}", "${${a}(b)}", "${ a b}", "${a${b(c)}}"])
def test_expansions_that_cannot_be_read(text: str) -> None:
    with pytest.raises(Unreadable):
        list(expansions(text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{api_hangup_hook=lua x}", [("api", "lua", " x}")]),
        ("execute_on_answer='app::arg'", [("app", "app", "arg")]),
        ("record_post_process_exec_api=a:b", [("api", "a", "b")]),
        ("x=1", []),
        ("api_hangup_hook=", []),
        ("sip_h_X-api_key=abc", []),
    ],
)
def test_hooks(text: str, expected: list[tuple[str, str, str]]) -> None:
    assert [(kind, name, rest.strip()) for kind, name, rest in hooks(text)] == [
        (k, n, r.strip()) for k, n, r in expected
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x &park", [("park", "")]),
        ("&a(b(c)d)", [("a", "b(c)d")]),
        ("x '&a(b c)'", [("a", "b c")]),
        ("http://h?a=1&b=2", []),
        ("a & b", [("b", "")]),
        ("a &", []),
    ],
)
def test_ampersand_apps(text: str, expected: list[tuple[str, str]]) -> None:
    assert list(ampersand_apps(text)) == expected


def test_broadcast_paths() -> None:
    assert broadcast_app("/tmp/x.wav") is None
    assert broadcast_app("app::a::b") == ("app", "a::b")
    assert broadcast_app("app!CAUSE::a") == ("app", "a")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x a:b inline", [("a", "b")]),
        ("x 'a:b c,d' Inline ctx", [("a", "b c"), ("d", "")]),
        ("'m:^:a:1,2^b' inline", [("a", "1,2"), ("b", "")]),
        ("inline", []),
        ("streamline a", []),
        ("a/b:c/inline", [("a", ""), ("b", "c")]),
    ],
)
def test_inline_dialplans(text: str, expected: list[tuple[str, str]]) -> None:
    assert list(inline_apps(text)) == expected
