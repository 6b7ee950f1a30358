"""What one connection wants: event names, CUSTOM subclasses, and filters, with all of FreeSWITCH's oddities.

It never sends anything, and never parses more than the words of a command.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from bridge.simulator.events import EVENT_NAMES, SimulatedEvent, event_named
from bridge.simulator.serialise import Format

_FORMATS: dict[str, Format] = {"plain": "plain", "json": "json", "xml": "xml"}
_REGEX_FLAGS = {"i": re.IGNORECASE, "m": re.MULTILINE, "s": re.DOTALL, "x": re.VERBOSE}

MY_EVENTS = tuple(
    """CHANNEL_ANSWER CHANNEL_APPLICATION CHANNEL_BRIDGE CHANNEL_CREATE CHANNEL_DATA CHANNEL_DESTROY CHANNEL_EXECUTE
    CHANNEL_EXECUTE_COMPLETE CHANNEL_HANGUP CHANNEL_HANGUP_COMPLETE CHANNEL_ORIGINATE CHANNEL_OUTGOING CHANNEL_PARK
    CHANNEL_PROGRESS CHANNEL_PROGRESS_MEDIA CHANNEL_STATE CHANNEL_UNBRIDGE CHANNEL_UNPARK CALL_UPDATE
    CHANNEL_CALLSTATE DTMF PLAYBACK_START PLAYBACK_STOP""".split()  # noqa: SIM905
)


class Filter:
    """One ``filter`` line: a header, and a value that is plain, ``+``/``-`` signed, or a /regex/."""

    __slots__ = ("header", "matches", "positive", "value")

    def __init__(self, header: str, value: str) -> None:
        self.header = header
        self.value = value
        rest = value.lstrip("+- ")
        signs = value[: len(value) - len(rest)]
        self.positive = not signs.replace(" ", "").endswith("-")
        self.matches: Callable[[str], bool] = self._regex(value) if value.startswith("/") else self._text(rest)

    @staticmethod
    def _text(wanted: str) -> Callable[[str], bool]:
        folded = wanted.lower()
        return lambda value: value.lower() == folded

    @staticmethod
    def _regex(value: str) -> Callable[[str], bool]:
        body, _, options = value[1:].rpartition("/")
        flags = 0
        for letter in options:
            flags |= _REGEX_FLAGS.get(letter, 0)
        try:
            pattern = re.compile(body if body else options, flags)
        except re.error:
            return lambda value: False
        return lambda value: pattern.search(value) is not None


class Subscription:
    """The event list, the format, and the filters of one connection."""

    def __init__(self, custom_known: Callable[[], set[str]]) -> None:
        self._custom_known = custom_known
        self.format: Format = "plain"
        self.listening = False
        self.everything = False
        self.names: set[str] = set()
        self.subclasses: set[str] = set()
        self.filters: list[Filter] = []
        self.call: str | None = None

    # --- event, nixevent, noevents -------------------------------------------------------------------

    def add(self, words: list[str], allowed: Callable[[str, bool], bool]) -> str:
        """The ``event`` command. ``allowed(word, is_subclass)`` is the user's allow-list. Gives the Reply-Text."""
        custom = False
        found = 0
        for position, word in enumerate(words):
            if position == 0 and word.lower() in _FORMATS:
                self.format = _FORMATS[word.lower()]
                continue
            if custom:
                if not allowed(word, True):
                    return "-ERR permission denied"
                self.subclasses.add(word)
                continue
            name = event_named(word)
            if name is None:
                continue
            if not allowed(name, False):
                return "-ERR permission denied"
            found += 1
            self.listening = True
            if name == "ALL":
                self.everything = True
                self.names.update(EVENT_NAMES)
                self.subclasses |= self._custom_known()
            self.names.add(name)
            custom = name == "CUSTOM"
        if not found:
            return "-ERR no keywords supplied"
        return f"+OK event listener enabled {self.format}"

    def remove(self, words: list[str]) -> str:
        """The ``nixevent`` command."""
        custom = False
        found = 0
        for word in words:
            if custom:
                self.subclasses.discard(word)
                continue
            name = event_named(word)
            if name is None:
                continue
            found += 1
            if name == "CUSTOM":
                custom = True
            elif name == "ALL":
                self.everything = False
                self.names.clear()
            else:
                self.everything = False
                self.names.discard("ALL")
                self.names.discard(name)
        return "+OK events nixed" if found else "-ERR no keywords supplied"

    def clear(self) -> str:
        """The ``noevents`` command; the caller empties the queue."""
        if not self.listening:
            return "-ERR not listening for events"
        self.listening = False
        self.everything = False
        self.names.clear()
        self.subclasses.clear()
        return "+OK no longer listening for events"

    def follow(self, call: str) -> None:
        """The ``myevents`` command: the fixed list of types, and only this call's."""
        self.call = call
        self.listening = True
        self.names.update(MY_EVENTS)

    # --- filter --------------------------------------------------------------------------------------

    def filter(self, text: str) -> str:
        """The ``filter`` command without its first word."""
        header, space, value = text.lstrip(" ").partition(" ")
        if not space:
            return "-ERR invalid syntax"
        value = value.lstrip(" ")
        if header.lower() == "delete" and value:
            header, _, value = value.partition(" ")
            if header.lower() == "all":
                self.filters.clear()
            else:
                self.filters = [
                    filter
                    for filter in self.filters
                    if filter.header.lower() != header.lower() or (value and filter.value != value)
                ]
            return f"+OK filter deleted. [{header}][{value}]"
        if header.lower() == "add":
            header, space, value = value.partition(" ")
            if not space:
                return "-ERR invalid syntax"
        self.filters.append(Filter(header, value))
        return f"+OK filter added. [{header}]=[{value}]"

    # --- the question --------------------------------------------------------------------------------

    def wants(self, event: SimulatedEvent) -> bool:
        """Whether this connection gets the event."""
        if not self.everything:
            if event.name not in self.names:
                return False
            if event.name == "CUSTOM" and event.subclass and event.subclass not in self.subclasses:
                return False
        if self.call is not None and event.header("Unique-ID") != self.call:
            return False
        return not self.filters or self._passes(event)

    def _passes(self, event: SimulatedEvent) -> bool:
        passes = False
        for filter in self.filters:
            value = event.header(filter.header)
            if value is None or (passes and filter.positive):
                continue
            if filter.matches(value):
                if not filter.positive:
                    return False
                passes = True
        return passes
