"""How FreeSWITCH reads texts: words and quotes, ``${...}`` expansions, variables that hold commands.

It never judges what it finds. Where FreeSWITCH's own reading depends on things unknown here (the value of a variable),
it raises ``Unreadable``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from urllib.parse import unquote

from bridge.relay.policy.patterns import Act

# Channel variables whose value FreeSWITCH runs. Group 1: the name, group 2: the value and whatever follows it.
_HOOK_NAME = (
    r"api_\w+|execute_on_\w+|exec_after_bridge_app|bridge_pre_execute_[ab]leg_app"
    r"|record_post_process_exec_(?:api|app)|group_confirm_file|group_confirm_cancel_file"
)
# An index belongs to no name: `api_hangup_hook[0]` is `api_hangup_hook`.
_HOOK = re.compile(rf"(?<![A-Za-z0-9-])(?:_nolocal_)?({_HOOK_NAME})\s*([=\[])", re.IGNORECASE)
_HOOK_ONLY = re.compile(rf"(?:nolocal:|local:|_nolocal_|sip_)?({_HOOK_NAME})\s*(?:\[.*)?\Z", re.IGNORECASE | re.DOTALL)
_HOOK_VALUE = re.compile(r"[\s'\"\\]*([^\s:,;'\"\\\]}>()|]+)(.*)", re.DOTALL)
_ENDPOINT_APP = re.compile(r"loopback/app=([^\s:,|'\"\]}]+):?", re.IGNORECASE)
_QUOTES = str.maketrans("", "", "'\"")
_AMPERSAND = re.compile(r"(&++)(?:\s*+([^\s('\"&]++))?")
_BRACKET = re.compile(r"\\.|['{}\[\]()]", re.DOTALL)
_ESCAPED = {"n": "\n", "r": "\r", "t": "\t", "s": " "}
_OWN_DELIMITER = re.compile(r"(?=\^\^)")
_MAX_DELIMITERS = 8
_MAX_NESTED = 16
_EXPANSION = re.compile(r"\$\{[^{}]*\}")
_ENCODED_EXPANSION = re.compile(r"%24\s*(?:%7b|\{)", re.IGNORECASE)


class Unreadable(Exception):
    """The text cannot be understood; the message says why, for people, ``acts`` what was found in it before."""

    acts: Sequence[Act] = ()


def words(text: str, limit: int = 0) -> list[str]:
    """Cut at spaces as FreeSWITCH does: ``'`` and ``"`` quote, a backslash escapes. The rest of ``limit`` stays whole.

    Raises ``Unreadable`` for a quote without end.
    """
    found: list[str] = []
    word = ""
    quote = ""
    inside = False
    position = 0
    while position < len(text):
        char = text[position]
        if not inside and limit and len(found) == limit - 1 and not char.isspace():
            return [*found, text[position:]]
        if char == "\\" and position + 1 < len(text):
            position += 1
            word += _ESCAPED.get(text[position], text[position])
            inside = True
        elif quote:
            if char == quote:
                quote = ""
            else:
                word += char
        elif char in "'\"":
            quote = char
            inside = True
        elif char.isspace():
            if inside:
                found.append(word)
                word, inside = "", False
        else:
            word += char
            inside = True
        position += 1
    if quote:
        raise Unreadable(f"a {quote} without its end")
    if inside:
        found.append(word)
    return found


def split(text: str, delimiter: str) -> list[str]:
    """Cut at a delimiter as FreeSWITCH does: ``'`` quotes where it has an end, a backslash escapes."""
    parts = [""]
    quoted = False
    position = 0
    while position < len(text):
        char = text[position]
        position += 1
        if char == "\\" and position < len(text):
            char = text[position]
            position += 1
            if char != delimiter and char not in "'\"\\":
                char = _ESCAPED.get(char, "\\" + char)
            parts[-1] += char
        elif char == "'" and (quoted or text.find("'", position) >= 0):
            quoted = not quoted
        elif char == delimiter and not quoted:
            parts.append("")
        else:
            parts[-1] += char
    return parts


def bare(text: str) -> str:
    """The text as it is when FreeSWITCH has cut it: without quotes."""
    return text.translate(_QUOTES) if "'" in text or '"' in text else text


def redelimited(text: str) -> Iterator[str]:
    """A text that brings a delimiter of its own (``^^;a;b``), with each of those that commands are written with."""
    if text.startswith("^^") and len(text) > 3:
        parts = split(text[3:], text[2])
        for usual in " ,|=":
            yield usual.join(parts)


def redelimited_within(text: str) -> Iterator[str]:
    """The same wherever one begins. Raises ``Unreadable`` for too many."""
    starts = [found.start() for found in _OWN_DELIMITER.finditer(text)]
    if len(starts) > _MAX_DELIMITERS:
        raise Unreadable(f"more than {_MAX_DELIMITERS} delimiters of its own")
    for start in starts:
        yield from redelimited(text[start:])


def unexpanded(text: str) -> str:
    """The text as it is when nothing is set of what it expands, some ``${...}`` deep."""
    found = text.count("${")
    for _ in range(_MAX_NESTED):
        if not found:
            break
        text, found = _EXPANSION.subn("", text)
    return text


def values(text: str) -> Iterator[str]:
    """The values of a header or variable: FreeSWITCH takes ``ARRAY::a`` for ``a``, ``ARRAY::a|:b`` for two."""
    if text.startswith("ARRAY::"):
        yield from text[7:].split("|:")
    else:
        yield text


def check_balance(text: str) -> None:
    """Raise ``Unreadable`` when brackets or quotes are not paired, so that nobody knows where a part ends."""
    open_brackets = ""
    quote = ""
    for mark in _BRACKET.findall(text):
        if mark == "'":
            quote = "" if quote else mark
        elif quote or mark[0] == "\\":
            continue
        elif mark in "{[(":
            open_brackets += mark
        elif not open_brackets or open_brackets[-1] + mark not in ("{}", "[]", "()"):
            raise Unreadable(f"a {mark} that closes nothing")
        else:
            open_brackets = open_brackets[:-1]
    if quote:
        raise Unreadable(f"a {quote} without its end")
    if open_brackets:
        raise Unreadable(f"a {open_brackets[-1]} without its end")


def expansions(text: str) -> Iterator[str]:
    """The command lines of all ``${command(arguments)}`` and ``${command arguments}``, inner ones left inside.

    ``${variable}`` is no command. Raises ``Unreadable`` for one without end and for a computed command.
    """
    start = text.find("${")
    while start >= 0:
        depth, end = 1, start + 2
        while end < len(text) and depth:
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        if depth:
            raise Unreadable("a ${ without its end")
        inner = text[start + 2 : end - 1]
        cut = re.search(r"[\s(]", inner)
        if cut is None:
            yield from expansions(inner)
        else:
            name = inner[: cut.start()]
            if not name or "$" in name:
                raise Unreadable("a command whose name is computed by an expansion")
            arguments = inner[cut.end() :].strip()
            if cut[0] == "(" and arguments.endswith(")"):
                arguments = arguments[:-1]
            yield f"{name} {arguments}".strip()
        start = text.find("${", end)


def decoded(text: str) -> str:
    """The text with ``%XX`` decoded where that would bring an expansion to light (``url_decode``), else nothing."""
    return unquote(text) if _ENCODED_EXPANSION.search(text) else ""


def hooks(text: str) -> Iterator[tuple[str, str, str]]:
    """``(kind, name, arguments)`` of every ``api_...=`` and ``execute_on_...=`` assignment in the text.

    The arguments run to the end of the text, without quotes: too much rather than too little.
    """
    lowered = text.lower()
    if not ("api_" in lowered or "exec" in lowered or "group_confirm" in lowered):
        return
    last = text.rfind("=")
    for match in _HOOK.finditer(text):
        if match.start(2) > last:
            return
        yield from hook(match[1], text[text.index("=", match.start(2)) + 1 :])


def hook(variable: str, value: str) -> Iterator[tuple[str, str, str]]:
    """The same for one variable and its value; nothing when the variable runs nothing or the value is empty."""
    known = _HOOK_ONLY.match(bare(variable).strip())
    if known is None:
        return
    lowered = known[1].lower()
    kind = "api" if lowered.startswith("api_") or lowered.endswith("_api") else "app"
    for one in values(value.lstrip(" '\"")):
        found = _HOOK_VALUE.match(one)
        if found is None:
            continue
        if "$" in found[1]:
            raise Unreadable(f"{known[1]} whose command is computed by an expansion")
        yield kind, found[1], bare(found[2]).lstrip(": ")


def ampersand_apps(text: str) -> Iterator[tuple[str, str]]:
    """``(application, argument)`` of ``&app(argument)``, as in ``originate``."""
    for match in _AMPERSAND.finditer(text):
        start, name = match.start(), match[2]
        if not name or (
            len(match[1]) == 1 and start and text[start - 1] not in "'\"" and not text[start - 1].isspace()
        ):
            continue
        if "$" in name:
            raise Unreadable("an application whose name is computed by an expansion")
        if text.startswith("(", match.end()):
            last = text.rfind(")")
            yield name, text[match.end() + 1 : last if last > match.end() else len(text)]
        else:
            yield name, ""


def endpoint_apps(text: str) -> Iterator[tuple[str, str]]:
    """``(application, argument)`` of ``loopback/app=...``."""
    if "loopback/app" not in text.lower():
        return
    for match in _ENDPOINT_APP.finditer(text):
        yield match[1], text[match.end() :]


def broadcast_app(path: str) -> tuple[str, str] | None:
    """``(application, argument)`` of ``app::argument`` and ``app!CAUSE::argument``; None for a file."""
    name, colons, argument = path.partition("::")
    return (name.partition("!")[0].strip(), argument) if colons else None


_INLINE_WORD = re.compile(r"(?<![\w-])inline(?![\w-])", re.IGNORECASE)
_INLINE_PREFIX = re.compile(r"\s*(?:inline:)+", re.IGNORECASE)
_INLINE_ARGUMENT = re.compile(r"(?<![\w-])inline:(.+)", re.IGNORECASE | re.DOTALL)


def inline_apps(text: str) -> Iterator[tuple[str, str]]:
    """``(application, argument)`` of every inline dialplan, ``'app:argument,app:argument' inline``.

    Inline may be one of several dialplans (``XML,inline``) and bring its applications along (``inline:app:argument``).
    Written as one word with its dialplan (``loopback/answer,park/default/inline``) every part counts as an application.
    """
    if not _INLINE_WORD.search(bare(text)):
        return
    found = words(text)
    for position, word in enumerate(found):
        if not _INLINE_WORD.search(word):
            continue
        if position and "/" not in word:
            yield from _inline_target(found[position - 1])
        if word.lower() != "inline":
            for part in (*re.split(r"[/,;|]", word), *_INLINE_ARGUMENT.findall(word)):
                yield from _inline_target(part.strip())


def _inline_target(target: str) -> Iterator[tuple[str, str]]:
    delimiter = ","
    target = _INLINE_PREFIX.sub("", target)
    if len(target) > 3 and target[0] == "m" and target[1] == ":" and target[3] == ":":
        delimiter, target = target[2], target[4:]
    if target.startswith("^^") and len(target) > 3:
        delimiter, target = target[2], target[3:]
    for part in split(target, delimiter):
        name, _, argument = part.strip().partition(":")
        if "$" in name:
            raise Unreadable("an application whose name is computed by an expansion")
        if name and name.lower() != "inline":
            yield name, argument
