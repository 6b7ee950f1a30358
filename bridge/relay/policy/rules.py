"""Allow and deny lists: whether a request may reach a node.

It never reads a request itself: ``acts`` says what it would do, ``patterns`` what a rule means.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from bridge.messages.request import CommandRequest
from bridge.relay.policy.acts import acts_of, block_of, plain_verb
from bridge.relay.policy.defaults import DEFAULT_DENY
from bridge.relay.policy.patterns import QUOTING, Act, Pattern
from bridge.relay.policy.text import Unreadable, unexpanded

_CACHE_LIMIT = 1024
_CACHED_LENGTH = 1024


class Denial(NamedTuple):
    """Why a request is denied.

    ``reason`` is for people and repeats no argument; ``pattern`` is empty where none hit.
    """

    reason: str
    pattern: str


class _Verdict(NamedTuple):
    denial: Denial | None
    verbs: tuple[str, ...]


class Policy:
    """The lists of ``[policy]``.

    Deny wins. An empty allow list allows everything; any other must allow every single act of a request, the wrapped
    ones too. On the deny list ``default`` stands for the built-in list. Raises ``ValueError`` naming a bad pattern.

    A command that cannot be understood (a quote or bracket without its end, a computed command name) is denied while
    some rule speaks of commands or applications.
    """

    __slots__ = (
        "_allow",
        "_by_verb",
        "_by_word",
        "_cache",
        "_exact",
        "_looks_inside",
        "_others",
        "_texts",
        "needs_node",
    )

    def __init__(self, allow: Iterable[str] = (), deny: Iterable[str] = DEFAULT_DENY) -> None:
        texts = [text for item in deny for text in (DEFAULT_DENY if item == "default" else (item,))]
        patterns = [Pattern(text) for text in dict.fromkeys(texts)]
        self._allow = tuple(Pattern(text, strict=True) for text in allow)
        self._looks_inside = bool(self._allow) or any(pattern.looks_inside for pattern in patterns)
        self.needs_node = any(pattern.needs_node for pattern in (*self._allow, *patterns))
        # The deny list, sorted by how fast it can be seen that a pattern does not hit.
        self._exact = {pattern.exact_name: pattern for pattern in patterns if pattern.exact_name}
        self._by_word: dict[str, list[Pattern]] = {}
        for pattern in patterns:
            if pattern.first_word and not pattern.exact_name:
                self._by_word.setdefault(pattern.first_word, []).append(pattern)
        self._texts = [pattern for pattern in patterns if pattern.whole_text]
        self._others = [pattern for pattern in patterns if not (pattern.first_word or pattern.whole_text)]
        self._by_verb: dict[tuple[str, str, str], _Verdict | None] = {}
        self._cache: dict[tuple[str, str, str, str], _Verdict] = {}

    def check(self, request: CommandRequest, node: str = "") -> Denial | None:
        """None when ``request`` may go to ``node``.

        Without a node nothing is denied for its node's sake: ask again when the node is chosen (``needs_node``).
        """
        return self._verdict(request, node).denial

    def verbs(self, request: CommandRequest) -> tuple[str, ...]:
        """The names of all commands and applications of a request, for rate limits; empty when it is unreadable."""
        return self._verdict(request, "").verbs

    def _verdict(self, request: CommandRequest, node: str) -> _Verdict:
        op: str = request.op
        if op == "api" or op == "bgapi":
            verb = plain_verb(request.command)
            if verb:
                plain = self._judge_verb(request, node, verb)
                if plain is not None:
                    return plain if plain.denial is not None else self._judge_text(request, node, plain)
            key = (op, request.command, "", node if self.needs_node else "")
            verdict = self._cache.get(key)
            return self._remember(key, self._judge(request, node)) if verdict is None else verdict
        if op != "execute" or self._allow:
            return self._judge(request, node)
        key = (op, request.app, request.arg, node if self.needs_node else "")
        verdict = self._cache.get(key) or self._remember(key, self._judge_acts(request, node, ""))
        # The uuid changes with every call and matters to the patterns over the whole text alone.
        return verdict if verdict.denial is not None else self._judge_text(request, node, verdict)

    def _judge_verb(self, request: CommandRequest, node: str, verb: str) -> _Verdict | None:
        """The verdict of a plain line, remembered by its verb; None where some rule asks for its arguments.

        Most lines never come again, they name a call: what was remembered of them would be of no use.
        """
        key = (request.op, verb, node if self.needs_node else "")
        cache = self._by_verb
        if key in cache:
            return cache[key]
        asked = (*self._by_word.get(verb, ()), *self._others, *self._allow)
        verdict = None if any(pattern.needs_line for pattern in asked) else self._judge_acts(request, node, "")
        if len(cache) >= _CACHE_LIMIT:
            cache.clear()
        cache[key] = verdict
        return verdict

    def _remember(self, key: tuple[str, str, str, str], verdict: _Verdict) -> _Verdict:
        if len(key[1]) + len(key[2]) <= _CACHED_LENGTH:
            if len(self._cache) >= _CACHE_LIMIT:
                self._cache.clear()
            self._cache[key] = verdict
        return verdict

    def _judge(self, request: CommandRequest, node: str) -> _Verdict:
        text = block_of(request)
        verdict = self._judge_acts(request, node, text)
        return verdict if verdict.denial is not None else self._judge_text(request, node, verdict, text)

    def _judge_text(self, request: CommandRequest, node: str, verdict: _Verdict, text: str | None = None) -> _Verdict:
        if self._texts:
            text = block_of(request) if text is None else text
            readings = [text]
            # FreeSWITCH takes quotes away when it cuts a line into its parts, and so it does with unset variables.
            if "'" in text or '"' in text or "\\" in text:
                readings.append(text.translate(QUOTING))
            if "${" in readings[-1]:
                readings.append(unexpanded(readings[-1]))
            act = Act("op", request.op, request.op)
            for pattern in self._texts:
                for one in readings:
                    if pattern.must_hold in one and pattern.matches(act, request.op, node, one):
                        denial = Denial(f"the policy denies this text (pattern {pattern.text!r})", pattern.text)
                        return _Verdict(denial, verdict.verbs)
        return verdict

    def _judge_acts(self, request: CommandRequest, node: str, text: str) -> _Verdict:
        op = request.op
        try:
            acts = acts_of(request)
        except Unreadable as error:
            if self._looks_inside:
                reason = f"the policy looks inside commands and cannot understand this one: {error}"
                return _Verdict(Denial(reason, ""), ())
            acts = [Act("op", op, op), *error.acts]  # limits hold all the same
        verbs = tuple([act.name for act in acts])
        for act in acts:
            pattern = self._exact.get(act.name)
            if pattern is None and act.name in self._by_word:
                pattern = _first_match(self._by_word[act.name], act, op, node, text)
            if pattern is None and self._others:
                pattern = _first_match(self._others, act, op, node, text)
            if pattern is not None:
                reason = f"the policy denies {_named(acts[0], act)} (pattern {pattern.text!r})"
                return _Verdict(Denial(reason, pattern.text), verbs)
            if act.computed and any(one.needs_line for one in self._by_word.get(act.name, ())):
                reason = f"the policy looks at the arguments of {_named(acts[0], act)}, and an expansion computes them"
                return _Verdict(Denial(reason, ""), verbs)
        if self._allow:
            for act in acts:
                if _first_match(self._allow, act, op, node, text) is None:
                    reason = f"the policy allows only what is listed, and {_named(acts[0], act)} is not"
                    return _Verdict(Denial(reason, ""), verbs)
        return _Verdict(None, verbs)


def _first_match(patterns: Sequence[Pattern], act: Act, op: str, node: str, text: str) -> Pattern | None:
    return next((pattern for pattern in patterns if pattern.matches(act, op, node, text)), None)


def _named(outer: Act, act: Act) -> str:
    kind = {"api": "the command", "app": "the application", "op": "the op"}[act.kind]
    name = f"{kind} {act.name[:64]!r}"
    return name if act is outer else f"{name} inside {outer.name[:64]!r}"
