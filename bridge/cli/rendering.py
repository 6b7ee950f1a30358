"""Events and replies as one readable line each, in colour where the terminal has it.

This room never lets a control character from an event reach the terminal, and never reads text as markup.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from rich.text import Text

if TYPE_CHECKING:
    from bridge.messages.command import CommandReply
    from bridge.messages.event import EventMessage

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
_VALUE_LIMIT = 80
WIDE = 100
"""Columns from which on an event's line has room for the names of its headers."""

_STYLES = (
    ("CHANNEL_CREATE", "cyan"),
    ("CHANNEL_ANSWER", "bold green"),
    ("CHANNEL_BRIDGE", "green"),
    ("CHANNEL_HANGUP", "red"),
    ("CHANNEL_DESTROY", "red"),
    ("CHANNEL_", "blue"),
    ("DTMF", "bold magenta"),
    ("BACKGROUND_JOB", "yellow"),
    ("API", "yellow"),
    ("HEARTBEAT", "dim"),
    ("RE_SCHEDULE", "dim"),
    ("CUSTOM", "magenta"),
)

_CALLER = ("Caller-Caller-ID-Number", "Caller-Destination-Number")

# The headers that say most about an event of this name; the longest matching beginning of a name counts.
_TELLING: Mapping[str, tuple[str, ...]] = {
    "CHANNEL_CREATE": ("Call-Direction",),
    "CHANNEL_ANSWER": ("Answer-State",),
    "CHANNEL_STATE": ("Channel-State",),
    "CHANNEL_CALLSTATE": ("Original-Channel-Call-State", "Channel-Call-State"),
    "CHANNEL_HANGUP": ("Hangup-Cause", "variable_billsec"),
    "CHANNEL_DESTROY": ("Hangup-Cause",),
    "CHANNEL_EXECUTE": ("Application", "Application-Data", "Application-Response"),
    "CHANNEL_APPLICATION": ("Application", "Application-Data"),
    "CHANNEL_BRIDGE": ("Other-Leg-Destination-Number", "Other-Leg-Unique-ID"),
    "CHANNEL_UNBRIDGE": ("Other-Leg-Destination-Number", "Hangup-Cause"),
    "CHANNEL_PARK": ("Channel-Name",),
    "CALL_UPDATE": ("Channel-Name", "Direction"),
    "CODEC": ("Channel-Read-Codec-Name", "Channel-Write-Codec-Name"),
    "DTMF": ("DTMF-Digit", "DTMF-Duration"),
    "HEARTBEAT": ("Session-Count", "Max-Sessions", "Idle-CPU"),
    "BACKGROUND_JOB": ("Job-Command", "Job-Command-Arg", "_body"),
    "API": ("API-Command", "API-Command-Argument"),
    "RE_SCHEDULE": ("Task-Desc",),
    "MODULE_": ("type", "name"),
    "SHUTDOWN": ("Event-Info",),
    "PRESENCE_IN": ("from", "status", "rpid"),
    "MESSAGE": ("from", "to", "_body"),
    "RECORD_": ("Record-File-Path",),
    "PLAYBACK_": ("Playback-File-Path",),
    "CUSTOM": ("from-user", "from-host", "contact", "network-ip", "Action", "Conference-Name", "gateway", "status"),
}
_NO_CALLER = ("HEARTBEAT", "BACKGROUND_JOB", "API", "RE_SCHEDULE", "MODULE_", "CUSTOM", "PRESENCE_IN", "MESSAGE")


def printable(text: str, limit: int | None = None) -> str:
    """Return text for a terminal: control characters as ``\\x1b``, cut to ``limit`` characters."""
    text = _UNPRINTABLE.sub(_escaped, text)
    return text if limit is None or len(text) <= limit else text[: limit - 1] + "…"


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    return {9: "\\t", 10: "\\n", 13: "\\r"}.get(code) or (f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")


def printable_output(text: str) -> str:
    """Like ``printable``, but line ends and tabs stay (a command's output)."""
    return "\n".join("\t".join(printable(part) for part in line.split("\t")) for line in text.split("\n"))


def _longest(table: Mapping[str, Any], name: str) -> Any:
    beginnings = [beginning for beginning in table if name.startswith(beginning)]
    return table[max(beginnings, key=len)] if beginnings else ()


def details(name: str, headers: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what is worth showing of an event, as ``(header, value)``; who calls whom has an empty header."""
    shown = []
    if not name.startswith(_NO_CALLER):
        caller, callee = (_one(headers.get(header)) for header in _CALLER)
        if caller or callee:
            shown.append(("", f"{caller or '-'} → {callee or '-'}"))
    for header in _longest(_TELLING, name):
        value = _one(headers.get(header))
        if value:
            shown.append((header, value.strip()))
    return shown


def _one(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)


def style_of(name: str) -> str:
    """The colour of an event's name."""
    return next((style for beginning, style in _STYLES if name.startswith(beginning)), "white")


def _local_clock(time: str) -> str:
    try:
        return datetime.fromisoformat(time).astimezone().strftime("%H:%M:%S.%f")[:-3]
    except ValueError:
        return time or "--:--:--.---"


def render_event(event: EventMessage, *, node_width: int = 6, width: int = WIDE) -> Text:
    """One line for an event: time, node, name, short uuid, and the headers that matter for it.

    On less than ``WIDE`` columns the headers' names stay away: their values would be cut off.
    """
    name = f"{event.name}:{event.subclass}" if event.subclass else event.name
    line = Text(no_wrap=True, overflow="ellipsis")
    line.append(_local_clock(event.time) + "  ", style="dim")
    line.append(f"{printable(event.node or '-', 64):<{node_width}}  ", style="dim cyan")
    line.append(f"{printable(name or '?', 64):<24} ", style=style_of(name))
    line.append(f"{printable(event.uuid[:8]) or '-':<8} ", style="dim")
    for header, value in details(event.name, event):
        line.append(" ")
        if header and width >= WIDE:
            line.append(f"{'' if header == '_body' else header + '='}", style="dim")
        line.append(printable(value, _VALUE_LIMIT))
    for flag in ("synthetic", "truncated", "injected"):
        if getattr(event, flag):
            line.append(f" [{flag}]", style="bold yellow")
    return line


def render_reply(command: str, reply: CommandReply, *, shorten: Callable[[str], str] | None = None) -> Text:
    """One line for a command and its correlated reply."""
    good = reply.status == "ok"
    text = (reply.result if good else reply.error) or ""
    first = text.strip().split("\n", 1)[0]
    line = Text(no_wrap=True, overflow="ellipsis")
    line.append("▶ ", style="bold yellow")
    line.append(printable(command, 60), style="bold")
    line.append("  ◀ ", style="bold yellow")
    line.append(str(reply.status), style="bold green" if good else "bold red")
    line.append(f" executed={reply.executed} {reply.elapsed_ms or 0:.0f} ms", style="dim")
    if reply.node:
        line.append(f" on {printable(reply.node)}", style="dim")
    if reply.replies:
        line.append(f" by {len(reply.replies)} node{'' if len(reply.replies) == 1 else 's'}", style="dim")
    line.append("  " + printable(shorten(first) if shorten else first, _VALUE_LIMIT))
    return line


def render_parts(reply: CommandReply) -> list[Text]:
    """One line for each node that answered a command to ``all``; none for other replies."""
    lines = []
    for part in reply.replies or []:
        good = part.status == "ok"
        text = " ".join(((part.result if good else part.error) or "").split())
        line = Text(no_wrap=True, overflow="ellipsis")
        line.append("    ◀ ", style="bold yellow")
        line.append(f"{printable(part.node)}: ", style="bold")
        if not good:
            line.append(f"{part.status} executed={part.executed} ", style="bold red")
        line.append(printable(text, _VALUE_LIMIT))
        lines.append(line)
    return lines
