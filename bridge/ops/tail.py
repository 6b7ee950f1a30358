"""The live tail: a sample of the events that this worker publishes, for those who look at a page, ours or another's.

It costs the event path one look at ``watched`` per socket read while nobody looks; it never delays an event, never
decodes one that is not shown, and never holds more than a fixed number.
"""

from __future__ import annotations

import asyncio
import fnmatch
import re
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

# Lines that one viewer gets a second, and how many events are looked at for header conditions.
LINES_PER_SECOND = 40.0
LOOKS_PER_SECOND = 2_000.0
WAITING_LINES = 100
MAX_VIEWERS = 16
# Of the pages of all other workers together.
MAX_FAR_VIEWERS = 64
VALUE_LIMIT = 120
_NAMES_KNOWN = 4_096

# What of an event is worth a line; those that it has are shown, in this order.
SHOWN = (
    "Caller-Caller-ID-Number",
    "Caller-Destination-Number",
    "Call-Direction",
    "Answer-State",
    "Channel-Call-State",
    "Hangup-Cause",
    "Application",
    "Application-Data",
    "DTMF-Digit",
    "Job-Command",
    "Job-Command-Arg",
    "API-Command",
    "API-Command-Argument",
    "Session-Count",
    "Idle-CPU",
    "Task-Desc",
    "Gateway",
    "from-user",
    "contact",
    "status",
)


class Names(Protocol):
    """The part of an event that is known without decoding it."""

    name: str
    subclass: str


class Passing(Protocol):
    """An event as the tail sees it."""

    @property
    def envelope(self) -> Names:
        """Its name."""

    @property
    def unique_id(self) -> str:
        """The call it is of, "" for none."""

    @property
    def timestamp_us(self) -> int:
        """FreeSWITCH's time, Unix microseconds."""

    def get(self, name: str) -> str | list[str] | None:
        """A header's value."""


class Filter:
    """What a viewer wants: event names and a node by glob, headers by glob; a comma separates alternatives of names.

    Raises ``ValueError`` for conditions that are not ``Header=glob``.
    """

    def __init__(self, names: str = "", node: str = "", where: Sequence[str] = ()) -> None:
        self.names, self.node, self.where = names, node, tuple(where)
        globs = [text.strip() for text in names.split(",") if text.strip()] or ["*"]
        self._names = re.compile("|".join(fnmatch.translate(glob) for glob in globs[:32]), re.IGNORECASE)
        self._node = re.compile(fnmatch.translate(node or "*"))
        self._where: list[tuple[str, re.Pattern[str]]] = []
        for text in where[:8]:
            header, equals, glob = text.partition("=")
            if not equals or not header.strip():
                raise ValueError(f"{text[:80]!r} is not Header=glob")
            self._where.append((header.strip(), re.compile(fnmatch.translate(glob.strip() or "*"))))
        self._known: dict[str, bool] = {}

    def wants_node(self, node: str) -> bool:
        """Whether events of the node are wanted at all."""
        return self._node.match(node) is not None

    def wants_name(self, names: Names) -> bool:
        """Whether events of this name are wanted; remembered, because it is asked for every event."""
        key = f"{names.name}:{names.subclass}" if names.subclass else names.name
        known = self._known.get(key)
        if known is None:
            known = self._names.match(key) is not None or self._names.match(names.name) is not None
            if len(self._known) < _NAMES_KNOWN:
                self._known[key] = known
        return known

    @property
    def looks_inside(self) -> bool:
        """Whether an event must be decoded to tell."""
        return bool(self._where)

    def wants(self, event: Passing) -> bool:
        """Whether its headers are as wanted."""
        for header, glob in self._where:
            value = event.get(header)
            values = value if isinstance(value, list) else [value]
            if not any(text is not None and glob.match(text) for text in values):
                return False
        return True


class _Allowance:
    """So many a second, saved up for at most one."""

    __slots__ = ("_rate", "_saved", "_since")

    def __init__(self, rate: float, now: float) -> None:
        self._rate = rate
        self._saved = rate
        self._since = now

    def take(self, now: float) -> bool:
        self._saved = min(self._rate, self._saved + (now - self._since) * self._rate)
        self._since = now
        if self._saved < 1.0:
            return False
        self._saved -= 1.0
        return True


class Viewer:
    """One who looks: lines wait for him, at most ``WAITING_LINES``; ``skipped`` counts what he was not shown.

    ``number`` names him among ours; ``far`` when he looks at another worker's page.
    """

    def __init__(self, filter: Filter, clock: Callable[[], float], number: int = 0, far: bool = False) -> None:
        now = clock()
        self.filter = filter
        self.number = number
        self.far = far
        self.skipped = 0
        self._clock = clock
        self._lines: deque[dict[str, Any]] = deque()
        self._shown = _Allowance(LINES_PER_SECOND, now)
        self._looked = _Allowance(LOOKS_PER_SECOND, now)
        self._wake = asyncio.Event()

    def take(self, node: str, events: Sequence[Passing]) -> None:
        """Choose from what one socket read brought."""
        wanted = self.filter
        if not wanted.wants_node(node):
            return
        now = self._clock()
        for event in events:
            if not wanted.wants_name(event.envelope):
                continue
            if len(self._lines) >= WAITING_LINES:
                self.skipped += 1
                continue
            if wanted.looks_inside:
                if not self._looked.take(now):
                    self.skipped += 1
                    continue
                if not wanted.wants(event):
                    continue
            if self._shown.take(now):
                self._lines.append(line_of(node, event))
            else:
                self.skipped += 1
        if self._lines or self.skipped:
            self._wake.set()

    def take_lines(self, lines: Sequence[dict[str, Any]], skipped: int) -> None:
        """Lines that another worker chose for him, and how many it left out."""
        now = self._clock()
        self.skipped += skipped
        for line in lines:
            if len(self._lines) < WAITING_LINES and self._shown.take(now):
                self._lines.append(line)
            else:
                self.skipped += 1
        self._wake.set()

    async def next(self, patience: float) -> tuple[list[dict[str, Any]], int]:
        """The lines that wait and how many events were skipped; both empty after ``patience`` s without any."""
        try:
            async with asyncio.timeout(patience):
                await self._wake.wait()
        except TimeoutError:
            return [], 0
        self._wake.clear()
        lines, skipped = list(self._lines), self.skipped
        self._lines.clear()
        self.skipped = 0
        return lines, skipped


class Tail:
    """Hands passing events to the viewers; ``watched`` is all that the event path looks at meanwhile."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.watched = False
        self.on_open: Callable[[Viewer], None] = lambda viewer: None
        """Called when somebody begins to look at our own page."""
        self.on_close: Callable[[Viewer], None] = lambda viewer: None
        self._clock = clock
        self._viewers: list[Viewer] = []
        self._number = 0

    @property
    def viewers(self) -> list[Viewer]:
        """Those who look at our own page."""
        return [viewer for viewer in self._viewers if not viewer.far]

    def open(self, filter: Filter, *, far: bool = False) -> Viewer | None:
        """Let somebody look; None when too many do."""
        if sum(viewer.far is far for viewer in self._viewers) >= (MAX_FAR_VIEWERS if far else MAX_VIEWERS):
            return None
        self._number += 1
        viewer = Viewer(filter, self._clock, self._number, far)
        self._viewers.append(viewer)
        self.watched = True
        if not far:
            self.on_open(viewer)
        return viewer

    def close(self, viewer: Viewer) -> None:
        """He looks no more."""
        self._viewers.remove(viewer)
        self.watched = bool(self._viewers)
        if not viewer.far:
            self.on_close(viewer)

    def take(self, node: str, events: Sequence[Passing]) -> None:
        """Events of a node pass by; called only while ``watched``."""
        for viewer in self._viewers:
            viewer.take(node, events)


class TappedHandler:
    """A link's handler (``switch.event_link.LinkHandler``) with the tail beside it; all is passed on as it is.

    The tail sees what is published: a standby's events (``handler.owning`` is False) are shown by their owner.
    """

    def __init__(self, node: str, handler: Any, tail: Tail) -> None:
        self.link_up: Callable[..., None] = handler.link_up
        self.hidden: Callable[..., None] = handler.hidden
        self.node_changed: Callable[..., None] = handler.node_changed
        self.gap: Callable[..., None] = handler.gap
        self.skipped: Callable[..., None] = handler.skipped
        self.log_lines: Callable[..., None] = handler.log_lines
        self.link_lost: Callable[..., None] = handler.link_lost
        self._node = node
        self._handler = handler
        self._handle: Callable[[list[Any]], None] = handler.events
        self._tail = tail

    def events(self, events: list[Any]) -> None:
        """Pass a read's events on, first to whom they are for."""
        self._handle(events)
        if self._tail.watched and self._handler.owning:
            self._tail.take(self._node, events)


def line_of(node: str, event: Passing) -> dict[str, Any]:
    """What the page shows of an event."""
    names = event.envelope
    headers = {}
    for header in SHOWN:
        value = event.get(header)
        if value:
            text = ", ".join(value) if isinstance(value, list) else value
            headers[header] = text if len(text) <= VALUE_LIMIT else text[: VALUE_LIMIT - 1] + "…"
    return {
        "at": event.timestamp_us / 1_000_000,
        "node": node,
        "name": f"{names.name}:{names.subclass}" if names.subclass else names.name,
        "uuid": event.unique_id,
        "headers": headers,
    }


def parse_filter(query: Mapping[str, str], where: Sequence[str]) -> Filter:
    """The filter of a page's request. Raises ``ValueError``."""
    return Filter(query.get("names", "")[:400], query.get("node", "")[:64], [text[:200] for text in where])
