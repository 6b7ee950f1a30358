"""What the demo shows: events and replies as lines, no more than can be read, and numbers now and at the end.

This room only prints; it never asks the bus for anything.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bridge.cli.rendering import WIDE, printable, render_event, render_parts, render_reply

if TYPE_CHECKING:
    from bridge.messages.command import CommandReply
    from bridge.messages.event import EventMessage

LINES_PER_SECOND = 6.0
_NOISY = (
    "CHANNEL_STATE", "CHANNEL_CALLSTATE", "CHANNEL_EXECUTE", "RE_SCHEDULE", "CALL_UPDATE", "PRESENCE", "API", "MODULE",
    "COMMAND",
)  # fmt: skip


class Show:
    """The demo's screen. Where there is no terminal it prints plain lines."""

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.console = console or Console(highlight=False, markup=False, emoji=False)
        self._clock = clock
        self._started = clock()
        self._budget = LINES_PER_SECOND
        self._refilled = self._started
        self._last = (self._started, 0)
        self.names: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        self.shown = 0
        self.first_event: float | None = None

    @property
    def events(self) -> int:
        """Events that came so far."""
        return self.names.total()

    def restart_clock(self) -> None:
        """Count the time from now on."""
        self._started = self._clock()
        self._last = (self._started, self.events)

    def line(self, text: Text | str, style: str = "") -> None:
        """Print one line: cut to a terminal's width, whole elsewhere."""
        line = Text(text, style=style) if isinstance(text, str) else text
        if self.console.is_terminal:
            self.console.print(line, overflow="ellipsis", no_wrap=True, crop=True)
        else:
            print(line.plain, file=self.console.file, flush=True)

    def event(self, event: EventMessage) -> None:
        """Count an event, and print it when a reader could still follow."""
        if self.first_event is None:
            self.first_event = self._clock() - self._started
        self.names[f"{event.name}:{event.subclass}" if event.subclass else event.name] += 1
        if self._may_print(event.name):
            self.shown += 1
            self.line(render_event(event, width=self.console.width if self.console.is_terminal else WIDE))

    def _may_print(self, name: str) -> bool:
        now = self._clock()
        self._budget = min(LINES_PER_SECOND, self._budget + (now - self._refilled) * LINES_PER_SECOND)
        self._refilled = now
        # What tells little gives way first.
        if self._budget < (LINES_PER_SECOND * 0.6 if name.startswith(_NOISY) else 1.0):
            return False
        self._budget -= 1.0
        return True

    def reply(self, command: str, reply: CommandReply, explanation: str) -> None:
        """Print a command with the reply that came for it."""
        self.outcomes[str(reply.status)] += 1
        self.line(render_reply(command, reply))
        for part in render_parts(reply):
            self.line(part)
        self.line(f"    {explanation}", style="dim italic")

    def failure(self, command: str, error: Exception) -> None:
        """Print a command that got no reply."""
        self.outcomes["no reply"] += 1
        self.line(f"▶ {printable(command, 60)}  {printable(str(error), 200)}", style="bold red")

    def numbers(self, page: str) -> None:
        """Print what flowed since the last time."""
        now = self._clock()
        then, before = self._last
        rate = (self.events - before) / max(now - then, 0.001)
        self._last = (now, self.events)
        answers = ", ".join(f"{count} {status}" for status, count in self.outcomes.most_common()) or "none yet"
        self.line(
            f"── {self.events} events ({rate:.1f}/s, {self.shown} shown) · commands: {answers} · page {page}",
            style="bold cyan",
        )

    def summary(self) -> None:
        """Print the table that stands at the end."""
        seconds = self._clock() - self._started
        rows = [
            ("ran for", f"{seconds:.1f} s"),
            ("events", f"{self.events} ({self.events / max(seconds, 0.001):.1f}/s) of {len(self.names)} kinds"),
            ("most often", ", ".join(f"{printable(name)} {count}" for name, count in self.names.most_common(4)) or "-"),
            ("commands", f"{self.outcomes.total()}"),
            ("answers", ", ".join(f"{count} {status}" for status, count in self.outcomes.most_common()) or "-"),
        ]
        if self.first_event is not None:
            rows.insert(1, ("first event", f"after {self.first_event:.1f} s"))
        if not self.console.is_terminal:
            for name, text in rows:
                self.line(f"{name}: {text}")
            return
        table = Table(title="the demo in numbers", title_justify="left", show_header=False)
        table.add_column(style="dim")
        table.add_column()
        for name, text in rows:
            table.add_row(Text(name), Text(text))
        self.console.print(table)

    def flush(self) -> None:
        """Let nothing wait in a buffer."""
        sys.stdout.flush()
