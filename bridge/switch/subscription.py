"""What an event link asks FreeSWITCH for: the commands of its set-up, in order, and what their answers mean.

This room writes nothing itself and keeps no state of a connection.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Literal

from bridge.errors import NotPermitted
from bridge.esl import commands
from bridge.esl.replies import Reply
from bridge.switch.carrier import CORE_UUID_QUERY

_EVENT_NAME = re.compile(r"[A-Z_]+")
_PASS_ALL = ("Event-Name", "/./")


class Purpose(Enum):
    """What a set-up command is for."""

    FILTER = "filter"
    LOG = "log"
    CORE_UUID = "core_uuid"
    HEARTBEAT = "heartbeat"
    EVENTS = "events"


@dataclass(frozen=True, slots=True)
class SetupStep:
    """One set-up command and its purpose."""

    purpose: Purpose
    command: bytes
    line: str

    def fault(self, reply: Reply) -> NotPermitted | None:
        """Why the link cannot be UP after this reply; None when it can.

        A user may be denied ``api`` and HEARTBEAT: the first event then tells the Core-UUID, and a cheap command
        whether FreeSWITCH lives.
        """
        if reply.ok or self.purpose in (Purpose.CORE_UUID, Purpose.HEARTBEAT):
            return None
        return NotPermitted(f"FreeSWITCH answered {self.line!r} with {reply.text.strip()!r}")


class Subscription:
    """The wishes of one node: event names, filters, format, log level.

    ``subscribe`` takes event names, ``CUSTOM``, and subclasses as ``CUSTOM sofia::register``,
    ``CUSTOM:sofia::register`` or, where they can be no names, alone. ``filters`` are ``"Header value"`` texts or
    pairs, with FreeSWITCH's meaning: alternatives, a value that begins with ``-`` excludes.

    Raises InvalidCommand for what cannot be written.
    """

    def __init__(
        self,
        subscribe: Sequence[str],
        filters: Iterable[str | tuple[str, str]],
        format: Literal["json", "plain"],
        log_level: str | None,
    ) -> None:
        self.names, self.subclasses = split_names(subscribe)
        self.everything = "ALL" in self.names
        self.wants_heartbeat = self.everything or "HEARTBEAT" in self.names
        """Whether the operator asked for HEARTBEATs; else the link keeps them to itself."""
        self._filters = self._complete([_pair(one) for one in filters])
        self._format = format
        self._log_level = log_level
        self.steps = tuple(self._steps())
        """The set-up commands. ``event`` is last: no event comes before its filters are set."""

    def _steps(self) -> list[SetupStep]:
        steps = [
            SetupStep(Purpose.FILTER, commands.filter_add(header, value), f"filter {header} {value}")
            for header, value in self._filters
        ]
        if self._log_level:
            steps.append(SetupStep(Purpose.LOG, commands.log(self._log_level), f"log {self._log_level}"))
        steps.append(SetupStep(Purpose.CORE_UUID, commands.api(CORE_UUID_QUERY), f"api {CORE_UUID_QUERY}"))
        names = list(self.names)
        if not self.everything:
            # Alone: a name that is denied would take those behind it along.
            names = [name for name in names if name != "HEARTBEAT"]
            steps.append(self._event(Purpose.HEARTBEAT, ["HEARTBEAT"], []))
        if names or self.subclasses:
            steps.append(self._event(Purpose.EVENTS, names, self.subclasses))
        return steps

    def _event(self, purpose: Purpose, names: list[str], subclasses: list[str]) -> SetupStep:
        command = commands.event(self._format, names, subclasses)
        return SetupStep(purpose, command, command.decode().strip())

    def _complete(self, filters: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """Keep reachable what the link and the jobs' owners need; filters that only exclude let the rest pass."""
        wanted = [one for one in filters if not _excludes_heartbeat(*one)]
        if len(wanted) < len(filters):  # the link needs them, so it leaves them out itself
            self.wants_heartbeat = False
            filters = wanted
        if not filters:
            return []
        if all(value.startswith("-") for _, value in filters):
            return [*filters, _PASS_ALL]
        needed = [("Event-Name", "HEARTBEAT")]
        if self.everything or "BACKGROUND_JOB" in self.names:
            needed.append(("Event-Name", "BACKGROUND_JOB"))
        return [*filters, *(one for one in needed if one not in filters)]


def split_names(subscribe: Sequence[str]) -> tuple[list[str], list[str]]:
    """Event names (upper case) and CUSTOM subclasses, each once, in order; what can be no name is a subclass."""
    names: dict[str, None] = {}
    subclasses: dict[str, None] = {}
    custom = False
    for item in subscribe:
        behind = False  # a CUSTOM of this very item
        for word in item.split():
            if word.upper().startswith("CUSTOM:"):
                names["CUSTOM"] = subclasses[word[len("CUSTOM:") :]] = None
            elif behind or (custom and _EVENT_NAME.fullmatch(word) is None):
                subclasses[word] = None
            elif _EVENT_NAME.fullmatch(word.upper()) is None:
                # As a name FreeSWITCH would skip it without a word.
                names["CUSTOM"] = subclasses[word] = None
            else:
                names[word.upper()] = None
                if word.upper() == "CUSTOM":
                    custom = behind = True
    return list(names), list(subclasses)


def _excludes_heartbeat(header: str, value: str) -> bool:
    # FreeSWITCH ignores case in both, and blanks behind the sign.
    return header.lower() == "event-name" and value[:1] == "-" and value[1:].strip().upper() == "HEARTBEAT"


def _pair(one: str | tuple[str, str]) -> tuple[str, str]:
    if isinstance(one, str):
        header, _, value = one.strip().partition(" ")
        return header, value.strip()
    return one[0], one[1]


def tells_api(subscribe: Sequence[str]) -> bool:
    """Whether a link with this ``subscribe`` list gets ``API`` events."""
    return not {"ALL", "API"}.isdisjoint(split_names(subscribe)[0])
