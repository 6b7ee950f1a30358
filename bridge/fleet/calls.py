"""The look-up of calls on the bus: one question to all workers, answered by those that know.

This room keeps no calls; it fulfils ``relay.call_search.CallDirectory``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from bridge.messages.fleet import TOPIC, Word, encode

PATIENCE = 0.5
"""Most seconds for the answers of living workers."""


class CallLookup:
    """Asks on the topic of the fleet. ``others`` are the instances that will answer; ``say`` publishes a word."""

    def __init__(
        self,
        instance: str,
        *,
        say: Callable[[str, bytes], None],
        others: Callable[[], frozenset[str]],
        node_of: Callable[[str], str | None],
    ) -> None:
        self._instance = instance
        self._say = say
        self._others = others
        self._node_of = node_of
        self._number = 0
        self._open: dict[int, _Question] = {}

    def ask(self, uuid: str, deadline: float, answer: Callable[[str], None]) -> None:
        """See ``relay.call_search.CallDirectory``."""
        loop = asyncio.get_running_loop()
        others = self._others()
        if not others:
            loop.call_soon(answer, "")
            return
        self._number += 1
        number = self._number
        when = min(deadline, loop.time() + PATIENCE)
        timer = loop.call_at(when, self._end, number, "")
        self._open[number] = _Question(set(others), answer, timer)
        self._say(TOPIC, encode(Word("call", self._instance, uuid=uuid, number=number)))

    def heard(self, word: Word) -> None:
        """Answer a question of another worker, or take the answer to one of ours."""
        if word.kind == "call" and word.sender != self._instance:
            node = self._node_of(word.uuid) or ""
            told = Word("has", self._instance, uuid=word.uuid, node=node, number=word.number)
            self._say(f"{TOPIC}.{word.sender}", encode(told))
        elif word.kind == "has" and (question := self._open.get(word.number)) is not None:
            question.silent.discard(word.sender)
            if word.node or not question.silent:
                self._end(word.number, word.node)

    def _end(self, number: int, node: str) -> None:
        question = self._open.pop(number, None)
        if question is not None:
            question.timer.cancel()
            question.answer(node)


class _Question:
    """A question that is open: who has not answered yet."""

    __slots__ = ("answer", "silent", "timer")

    def __init__(self, silent: set[str], answer: Callable[[str], None], timer: asyncio.TimerHandle) -> None:
        self.silent = silent
        self.answer = answer
        self.timer = timer
