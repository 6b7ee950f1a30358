"""Server-sent events: the fleet's state once a second for all who look, and the tail for each of them.

While nobody looks it only notes two rates a second, for the picture of the last minutes; the state is rendered once
however many look.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiohttp import web

from bridge.ops.access import Access
from bridge.ops.tail import Tail, parse_filter

INTERVAL = 1.0
MAX_WATCHERS = 64
# Lines are gathered for so long, in seconds: a page is drawn a few times a second, not for every event.
TAIL_INTERVAL = 0.25
# A comment goes out when nothing else does, so that proxies and we notice who is gone, in seconds.
KEEP_ALIVE = 15.0
HISTORY = 120


def as_json(value: object) -> bytes:
    """Compact JSON; what JSON does not know goes as text."""
    return json.dumps(value, ensure_ascii=False, default=str, separators=(",", ":")).encode()


class Feed:
    """``state`` gives what the page shows; rates per second are reckoned here, from the counters in ``totals``.

    ``others`` gives those of the other workers; ``look`` is told when the first one looks and when the last one left.
    """

    def __init__(
        self,
        state: Callable[[], Mapping[str, Any]],
        totals: Callable[[], Mapping[str, int]],
        others: Callable[[], tuple[float, float]],
        look: Callable[[bool], None],
        tail: Tail,
        access: Callable[[], Access],
    ) -> None:
        self._state = state
        self._totals = totals
        self._others = others
        self._look = look
        self._tail = tail
        self._access = access
        self._watchers = 0
        self._payload = b""
        self._tick = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()
        self._events: deque[float] = deque(maxlen=HISTORY)
        self._commands: deque[float] = deque(maxlen=HISTORY)
        self._before: tuple[float, int, int] | None = None

    async def show_state(self, request: web.Request) -> web.StreamResponse:
        """``/feed``: the state, at once and then every second."""
        if self._watchers >= MAX_WATCHERS:
            return web.Response(status=503, text="too many are looking\n")
        self._watchers += 1
        if self._watchers == 1:
            self._look(True)
            self._render()
        try:
            response = await _begin(request)
            with contextlib.suppress(ConnectionResetError):
                while not self._closing.is_set():
                    await response.write(b"data: " + self._payload + b"\n\n")
                    async with self._tick:
                        await self._tick.wait()
            return response
        finally:
            self._watchers -= 1
            if not self._watchers:
                self._look(False)

    async def show_tail(self, request: web.Request) -> web.StreamResponse:
        """``/tail``: events as they pass, a sample of those that match the query."""
        refusal = self._access().refusal_of_reading(request.headers)
        if refusal:
            return web.Response(status=403, text=refusal + "\n")
        try:
            filter = parse_filter(request.query, request.query.getall("where", []))
        except ValueError as error:
            return web.Response(status=400, text=f"{error}\n")
        viewer = self._tail.open(filter)
        if viewer is None:
            return web.Response(status=503, text="too many are looking\n")
        try:
            response = await _begin(request)
            with contextlib.suppress(ConnectionResetError):
                await response.write(b": listening\n\n")
                while not self._closing.is_set():
                    lines, skipped = await self._unless_closing(viewer.next(KEEP_ALIVE))
                    if lines or skipped:
                        await response.write(b"data: " + as_json({"lines": lines, "skipped": skipped}) + b"\n\n")
                        await self._unless_closing(asyncio.sleep(TAIL_INTERVAL, ([], 0)))
                    else:
                        await response.write(b": still here\n\n")
            return response
        finally:
            self._tail.close(viewer)

    def start(self) -> None:
        """Begin to note the rates."""
        self._task = asyncio.create_task(self._turn(), name="page feed")

    async def close(self) -> None:
        """End all streams."""
        if self._task is not None:
            self._task.cancel()
        self._closing.set()
        async with self._tick:
            self._tick.notify_all()

    async def _unless_closing(
        self, work: Awaitable[tuple[list[dict[str, Any]], int]]
    ) -> tuple[list[dict[str, Any]], int]:
        task = asyncio.ensure_future(work)
        closing = asyncio.ensure_future(self._closing.wait())
        try:
            await asyncio.wait({task, closing}, return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() else ([], 0)
        finally:
            task.cancel()
            closing.cancel()

    async def _turn(self) -> None:
        while True:
            self._note_rates()
            if self._watchers:
                self._render()
                async with self._tick:
                    self._tick.notify_all()
            await asyncio.sleep(INTERVAL)

    def _note_rates(self) -> None:
        totals = self._totals()
        now = asyncio.get_running_loop().time()
        events, commands = totals.get("events_published", 0), totals.get("commands", 0)
        if self._before is not None:
            passed = max(now - self._before[0], 0.001)
            other_events, other_commands = self._others()
            self._events.append(round((events - self._before[1]) / passed + other_events, 1))
            self._commands.append(round((commands - self._before[2]) / passed + other_commands, 1))
        self._before = (now, events, commands)

    def _render(self) -> None:
        rates = {"interval": INTERVAL, "events": list(self._events), "commands": list(self._commands)}
        self._payload = as_json({**self._state(), "rates": rates})


async def _begin(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(
        headers={
            "Content-Type": "text/event-stream; charset=utf-8",
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            # What nginx needs to be told.
            "X-Accel-Buffering": "no",
        }
    )
    await response.prepare(request)
    return response
