"""Which events a route wants and which of their headers it tells: globs, compiled once.

This room never changes an event.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping

from bridge.esl.event import Event

_CACHE_LIMIT = 8192

Match = Callable[[str], object]


def globs(patterns: Iterable[str]) -> Match:
    """A function that says whether a text matches one of the patterns; case counts."""
    sources = [f"(?:{fnmatch.translate(pattern)})" for pattern in patterns]
    return re.compile("|".join(sources) or r"(?!)").match


class EventFilter:
    """Which names a route wants.

    Without ``events`` and ``subclasses`` it wants everything. ``subclasses``, where given, decide over CUSTOM events
    and ``events`` over all others; where not, ``events`` decide over all. ``CUSTOM:<subclass>`` in ``events`` names
    such an event in both cases.
    """

    def __init__(self, events: Iterable[str], subclasses: Iterable[str]) -> None:
        self._events = list(events)
        self._subclasses = list(subclasses)
        self._event = globs(self._events)
        self._named = globs(pattern for pattern in self._events if pattern.startswith("CUSTOM:"))
        self._subclass = globs(self._subclasses)

    def wants(self, name: str, subclass: str) -> bool:
        """Whether events of this name pass."""
        if not self._events and not self._subclasses:
            return True
        if name != "CUSTOM":
            return bool(self._event(name))
        if self._subclasses:
            return bool(self._subclass(subclass) or self._named(f"CUSTOM:{subclass}"))
        return bool(self._event("CUSTOM") or self._event(f"CUSTOM:{subclass}"))


class HeaderConditions:
    """Header conditions that all must hold: a name, and globs of which one must match a value of it."""

    def __init__(self, where: Mapping[str, Iterable[str]]) -> None:
        self._conditions = [(name, globs(patterns)) for name, patterns in where.items()]

    def hold(self, event: Event) -> bool:
        """Whether the event meets all of them; an absent header meets none."""
        for name, matches in self._conditions:
            value = event.get(name)
            if value is None:
                return False
            if isinstance(value, list):
                if not any(matches(one) for one in value):
                    return False
            elif not matches(value):
                return False
        return True


class Projection:
    """Which headers a route tells: those that ``keep`` matches (all, when empty) and ``drop`` does not."""

    def __init__(self, keep: Iterable[str], drop: Iterable[str]) -> None:
        keep = list(keep)
        self._keeps = globs(keep) if keep else None
        self._drops = globs(drop)
        self._known: dict[str, bool] = {}

    def of(self, event: dict[str, object]) -> dict[str, object]:
        """What is left of the event's map; the body is the header ``_body``."""
        known = self._known
        try:
            return {name: value for name, value in event.items() if known[name]}
        except KeyError:
            if len(known) > _CACHE_LIMIT:
                known.clear()
            for name in event:
                known[name] = (self._keeps is None or bool(self._keeps(name))) and not self._drops(name)
            return {name: value for name, value in event.items() if known[name]}
