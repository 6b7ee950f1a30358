"""The grammar of policy patterns, and whether one matches.

It never looks into a request: ``acts`` says what a request would do.

A pattern is a row of words; all of them must match::

    status                      a command or application of this name
    uuid_*                      ... of such a name (* any text, ? one character)
    fsctl shutdown              a command whose line begins with these words; what follows is free
    originate *international*   ... with a glob over the whole line
    app:bridge                  an application (execute, &app, inline dialplan, execute_on_..., ...), not a command
    app:bridge sofia/*          ... with a glob over its argument
    api:system                  a command, not an application
    op:sendevent                any request of this op
    node:fs1 fsctl hupall       on this node only; combines with all of the above
    text:*secret*               a glob over the request's whole text

Upper and lower case are the same, quotes and backslashes do not count, and rows of spaces are one space.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

ActKind = Literal["api", "app", "op"]

QUOTING = str.maketrans("", "", "'\"\\")


class Act(NamedTuple):
    """One thing that a request would make FreeSWITCH do.

    ``name`` is the command, application or op; ``line`` is it with its arguments. Both are in canonical form.
    ``computed`` is true of a command whose arguments FreeSWITCH may fill in before it runs it: its line says little.
    """

    kind: ActKind
    name: str
    line: str
    computed: bool = False


def canonical(text: str) -> str:
    """Lower case, without quoting, rows of white space as one space: FreeSWITCH does not see these differences."""
    if "'" in text or '"' in text or "\\" in text:
        text = text.translate(QUOTING)
    return " ".join(text.lower().split())


class Pattern:
    """One pattern of an allow or deny list. Raises ``ValueError`` that names the fault.

    ``exact_name`` is set for a pattern that is nothing but a name, ``first_word`` for one that begins with a name
    without globs, ``needs_line`` for one that speaks of arguments, ``whole_text`` for a ``text:`` pattern, which speaks
    of no command at all; it cannot match a text without ``must_hold``.

    On a deny list (``strict`` False) a line pattern ends at any boundary of a word, on an allow list at a space:
    in doubt the answer is no.
    """

    __slots__ = (
        "_kind",
        "_line",
        "_name",
        "_node",
        "_op",
        "_strict",
        "_text",
        "exact_name",
        "first_word",
        "looks_inside",
        "must_hold",
        "needs_line",
        "needs_node",
        "text",
        "whole_text",
    )

    def __init__(self, text: str, *, strict: bool = False) -> None:
        self.text = text
        self._op: re.Pattern[str] | None = None
        self._node: re.Pattern[str] | None = None
        self._text: re.Pattern[str] | None = None
        self._kind: ActKind | None = None
        self.must_hold = ""
        self._strict = strict
        words = text.split()
        if not words:
            raise ValueError("a policy pattern must not be empty")
        while words:
            qualifier, colon, value = words[0].partition(":")
            qualifier = qualifier.lower()
            if not colon or qualifier not in ("op", "node", "text", "app", "api"):
                break
            if not value:
                raise ValueError(f"policy pattern {text!r}: nothing stands behind {qualifier}:")
            words.pop(0)
            if qualifier == "text":
                self._once(self._text, qualifier)
                glob = " ".join([value, *words])
                self._text = _glob(glob)
                self.must_hold = max(re.split(r"[*?]+", glob.lower()), key=len)
                words = []
            elif qualifier == "op":
                self._once(self._op, qualifier)
                self._op = _glob(value)
            elif qualifier == "node":
                self._once(self._node, qualifier)
                self._node = _glob(value)
            else:
                self._kind = "app" if qualifier == "app" else "api"
                words.insert(0, value)
                break
        line = canonical(" ".join(words))
        if words and not line:
            raise ValueError(f"policy pattern {text!r} holds nothing but quotes")
        name, _, rest = line.partition(" ")
        self._name = _glob(name) if name and not rest else None
        self._line = _line_glob(line, strict=strict) if rest else None
        self.needs_line = self._line is not None
        self.needs_node = self._node is not None
        self.looks_inside = bool(name)
        self.whole_text = self._text is not None
        literal = bool(name) and not set(name) & {"*", "?"}
        self.first_word = name if literal else ""
        plain = literal and not (self._op or self._node or self._kind or self._line)
        self.exact_name = name if plain else ""

    def _once(self, found: object, qualifier: str) -> None:
        if found is not None:
            raise ValueError(f"policy pattern {self.text!r}: {qualifier}: stands twice")

    def __repr__(self) -> str:
        return f"Pattern({self.text!r})"

    def matches(self, act: Act, op: str, node: str, text: str) -> bool:
        """True when one act of a request with this op, for this node, with this whole text is meant.

        While the node is not known (empty), ``node:`` hits on an allow list and does not on a deny list.
        """
        return (
            (self._kind is None or act.kind == self._kind)
            and (self._name is None or self._name.match(act.name) is not None)
            and (self._line is None or self._line.match(act.line) is not None)
            and (self._op is None or self._op.match(op) is not None)
            and (self._node is None or (self._node.match(node.lower()) is not None if node else self._strict))
            and (self._text is None or self._text.match(text) is not None)
        )


def _glob(text: str) -> re.Pattern[str]:
    return re.compile(_glob_source(text.lower(), r"\Z"), re.DOTALL)


def _line_glob(text: str, *, strict: bool) -> re.Pattern[str]:
    return re.compile(_glob_source(text, r"(?:\s|\Z)" if strict else r"(?!\w)"), re.DOTALL)


def _glob_source(text: str, end: str) -> str:
    """Every piece behind a ``*`` is taken at its first place and never again, so that no text makes matching slow."""
    first, *others = ["".join("." if char == "?" else re.escape(char) for char in piece) for piece in text.split("*")]
    if not others:
        return first + end
    *middle, last = others
    return first + "".join(f"(?>.*?{piece})" for piece in middle if piece) + (f".*?{last}{end}" if last else "")
