"""Lets our page see what the other workers publish and do, and lets theirs see ours: a sample, while somebody looks.

Each worker chooses and redacts what it shows of itself; nothing is sent while nobody looks, and no event ever comes
back from the bus.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

import msgspec

from bridge.errors import InvalidMessage
from bridge.messages.fleet import TOPIC, Seen, SeenLine, Watch, Word, decode_seen, decode_watch, encode
from bridge.ops.tail import Filter, Tail, Viewer

# How often we say that somebody still looks, and how long that holds for those who hear it, in seconds.
RENEWAL = 2.0
HOLDS = 7.0
# How often lines, and the numbers, leave for another worker's page, in seconds.
LINES_PAUSE = 0.25
NUMBERS_PAUSE = 1.0
# Pages of other workers that are told our numbers.
MAX_ASKERS = 64
# Lines in one word: a viewer is shown no more in that time anyway.
LINES_TOLD = 40


class _Far:
    """A viewer of another worker's page, and until when he looks (loop time)."""

    __slots__ = ("task", "until", "viewer")

    def __init__(self, viewer: Viewer, until: float) -> None:
        self.viewer = viewer
        self.until = until
        self.task: asyncio.Task[None] | None = None


class Lookout:
    """One worker's. ``say`` publishes to a topic, ``others`` are the instances of the living workers but us.

    ``numbers`` gives what pages show of us beside events.
    """

    def __init__(
        self,
        instance: str,
        tail: Tail,
        *,
        say: Callable[[str, bytes], None],
        others: Callable[[], Collection[str]],
        numbers: Callable[[], Mapping[str, Any]],
    ) -> None:
        self._instance = instance
        self._tail = tail
        self._say = say
        self._others = others
        self._numbers = numbers
        self._looking_since: float | None = None
        self._told: dict[str, tuple[float, dict[str, Any]]] = {}
        self._asking: asyncio.Task[None] | None = None
        self._again = asyncio.Event()
        self._far: dict[tuple[str, int], _Far] = {}
        self._askers: dict[str, float] = {}
        self._telling: asyncio.Task[None] | None = None
        tail.on_open = self._opened
        tail.on_close = self._closed

    # --- what our page shows of the others ---------------------------------------------------------------------------

    def look(self, on: bool) -> None:
        """Somebody opened our page, or the last one left it."""
        self._looking_since = asyncio.get_running_loop().time() if on else None
        self._told.clear()
        if on:
            self._ask_soon()
        else:
            self._tell_all("unwatch", 0)

    @property
    def numbers(self) -> dict[str, dict[str, Any]]:
        """What the others show of themselves, by instance; empty unless somebody looks."""
        oldest = asyncio.get_running_loop().time() - HOLDS
        others = self._others()
        return {it: numbers for it, (at, numbers) in self._told.items() if at >= oldest and it in others}

    @property
    def silent(self) -> set[str]:
        """Instances that were asked and told nothing for a while: older ones, or those that may not."""
        since = self._looking_since
        if since is None or asyncio.get_running_loop().time() < since + HOLDS:
            return set()
        return set(self._others()) - self.numbers.keys()

    def heard(self, word: Word) -> None:
        """A word of one of ``PAGE_WORDS``; ignored unless a living worker says it and it can be read."""
        if word.sender == self._instance or word.sender not in self._others():
            return
        with contextlib.suppress(InvalidMessage, ValueError):
            if word.kind == "watch":
                self._show(word, decode_watch(word.body))
            elif word.kind == "unwatch":
                self._hide(word.sender, word.number)
            else:
                self._take(word, decode_seen(word.body))

    async def close(self) -> None:
        """Show and see nothing more."""
        tasks = [self._asking, self._telling, *(far.task for far in self._far.values())]
        for task in tasks:
            if task is not None:
                task.cancel()
        await asyncio.gather(*(task for task in tasks if task is not None), return_exceptions=True)

    def _opened(self, viewer: Viewer) -> None:
        self._ask_soon()

    def _closed(self, viewer: Viewer) -> None:
        self._tell_all("unwatch", viewer.number)

    def _ask_soon(self) -> None:
        self._again.set()
        if self._asking is None or self._asking.done():
            self._asking = asyncio.get_running_loop().create_task(self._ask(), name="watch other workers")

    async def _ask(self) -> None:
        while self._looking_since is not None or self._tail.viewers:
            self._again.clear()
            if self._looking_since is not None:
                self._tell_all("watch", 0, Watch(numbers=True))
            for viewer in self._tail.viewers:
                wanted = viewer.filter
                self._tell_all("watch", viewer.number, Watch(wanted.names, wanted.node, wanted.where))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RENEWAL):
                    await self._again.wait()

    def _tell_all(self, kind: str, number: int, watch: Watch | None = None) -> None:
        if self._others():
            body = encode(watch) if watch is not None else b""
            self._say(TOPIC, encode(Word(kind, self._instance, number=number, body=body)))

    def _take(self, word: Word, seen: Seen) -> None:
        if seen.numbers is not None:
            if self._looking_since is not None:
                self._told[word.sender] = (asyncio.get_running_loop().time(), seen.numbers)
            return
        for viewer in self._tail.viewers:
            if viewer.number == word.number:
                viewer.take_lines(msgspec.to_builtins(seen.lines), max(0, seen.skipped))

    # --- what their pages show of us ---------------------------------------------------------------------------------

    def _show(self, word: Word, watch: Watch) -> None:
        until = asyncio.get_running_loop().time() + HOLDS
        if watch.numbers:
            if word.sender in self._askers or len(self._askers) < MAX_ASKERS:
                self._askers[word.sender] = until
            if self._telling is None or self._telling.done():
                self._telling = asyncio.get_running_loop().create_task(self._tell_numbers(), name="numbers for pages")
            return
        key = (word.sender, word.number)
        far = self._far.get(key)
        if far is not None:
            far.until = until
            return
        viewer = self._tail.open(Filter(watch.names, watch.node, watch.where), far=True)
        if viewer is not None:
            far = self._far[key] = _Far(viewer, until)
            far.task = asyncio.get_running_loop().create_task(self._tell_lines(key, far), name="tail for another page")

    def _hide(self, sender: str, number: int) -> None:
        if number == 0:
            self._askers.pop(sender, None)
        elif (far := self._far.get((sender, number))) is not None and far.task is not None:
            far.task.cancel()

    async def _tell_lines(self, key: tuple[str, int], far: _Far) -> None:
        loop = asyncio.get_running_loop()
        sender, number = key
        try:
            while (patience := far.until - loop.time()) > 0:
                lines, skipped = await far.viewer.next(patience)
                if lines or skipped:
                    shown = msgspec.convert(lines[:LINES_TOLD], tuple[SeenLine, ...])
                    seen = Seen(shown, skipped + len(lines) - len(shown))
                    self._answer(sender, number, seen)
                    await asyncio.sleep(LINES_PAUSE)
        finally:
            self._tail.close(far.viewer)
            del self._far[key]

    async def _tell_numbers(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            now = loop.time()
            self._askers = {it: until for it, until in self._askers.items() if until > now}
            if not self._askers:
                return
            seen = Seen(numbers=dict(self._numbers()))
            for sender in self._askers:
                self._answer(sender, 0, seen)
            await asyncio.sleep(NUMBERS_PAUSE)

    def _answer(self, sender: str, number: int, seen: Seen) -> None:
        self._say(f"{TOPIC}.{sender}", encode(Word("seen", self._instance, number=number, body=encode(seen))))
