"""Bad days on demand: what can go wrong, as a table that people can read, and the switchboard that makes it happen.

It never decides by itself that something goes wrong: a fault is added by a test or by ``--fault``.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from bridge.simulator.connection import LOST_EVENTS, Connection, render_notice, render_reply

if TYPE_CHECKING:
    from bridge.simulator.events import SimulatedEvent

Trigger = Literal["event", "command", "connect", "heartbeat"]


@dataclass(frozen=True)
class FaultKind:
    """One row of the table: what a fault is called, its argument, what it waits for, what it does."""

    name: str
    argument: str
    default: float
    trigger: Trigger
    effect: str


FAULTS: dict[str, FaultKind] = {
    kind.name: kind
    for kind in (
        FaultKind("truncate", "bytes", 0, "event", "a frame loses its last bytes (0: half of it); the stream goes on"),
        FaultKind("stall", "time", 5, "event", "the connection writes nothing for so long, then goes on"),
        FaultKind("close", "", 0, "event", "half an event frame is written, then closed without a notice"),
        FaultKind("reset", "", 0, "event", "the connection is cut at once, without notice"),
        FaultKind("lost_events", "", 0, "event", "'killed listener because of lost events', then closed"),
        FaultKind("torn_notice", "", 0, "event", "the same, with the notice in the middle of an event frame"),
        FaultKind("latin1", "", 0, "event", "a value of the event is not UTF-8: its caller name gets a Latin-1 byte"),
        FaultKind("garbage", "bytes", 64, "event", "random bytes between two frames"),
        FaultKind("unknown_frame", "", 0, "event", "a frame with an unknown Content-Type between two events"),
        FaultKind("stray_reply", "", 0, "event", "a command/reply that nobody asked for"),
        FaultKind("shutdown", "", 0, "event", "'The system is being shut down.' and all connections closed"),
        FaultKind(
            "restart", "time", 0, "event", "FreeSWITCH restarts: away so long, then a new Core-UUID and no calls"
        ),
        FaultKind("late", "time", 5, "command", "a command runs, its reply comes so much later; the next ones wait"),
        FaultKind("slow_api", "time", 5, "command", "an api takes so long; its connection does nothing else meanwhile"),
        FaultKind("drop", "", 0, "command", "a command runs, and the connection closes instead of replying"),
        FaultKind("deaf", "", 0, "command", "a command is read and not run, and the connection closes"),
        FaultKind("refuse", "", 0, "connect", "the ACL turns the connection away"),
        FaultKind("wrong_auth", "", 0, "connect", "the right password is answered '-ERR invalid'"),
        FaultKind("silent", "", 0, "connect", "the connection is accepted and never greeted"),
        FaultKind("no_heartbeat", "", 0, "heartbeat", "a HEARTBEAT is left out"),
    )
}
_REMEMBERED = 100_000


@dataclass
class Fault:
    """One fault that waits: it fires ``after`` so many triggers, once, or then again at every ``every``-th."""

    kind: str
    argument: float
    after: int = 1
    every: int = 0
    seen: int = 0
    fired: int = 0

    def due(self) -> bool:
        """Count one trigger; whether the fault fires now."""
        self.seen += 1
        if self.every:
            due = self.seen >= self.after and (self.seen - self.after) % self.every == 0
        else:
            due = self.seen == self.after
        if due:
            self.fired += 1
        return due

    @property
    def spent(self) -> bool:
        """Whether it will never fire again."""
        return not self.every and self.fired > 0


class FaultSyntaxError(ValueError):
    """Not a fault in text form; the text says what is wrong and which names there are."""


def _number(text: str, what: str) -> float:
    for suffix, factor in (("ms", 0.001), ("s", 1.0), ("m", 60.0), ("h", 3600.0), ("", 1.0)):
        if suffix and not text.endswith(suffix):
            continue
        try:
            value = float(text.removesuffix(suffix)) * factor
        except ValueError:
            break
        if 0 <= value < float("inf"):
            return value
        break
    raise FaultSyntaxError(f"{what}: {text!r} is not a number or a time such as 5s or 200ms")


def _count(text: str, what: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text)):
        raise FaultSyntaxError(f"{what}: {text!r} is not a number of 1 or more")
    return int(text)


def parse_fault(text: str) -> Fault:
    """A fault from ``NAME[:ARGUMENT][@AFTER][/EVERY]``.

    ``stall:5s@1000`` fires once at the 1000th event, ``latin1/10`` at every tenth, ``drop`` at the next command.
    Raises FaultSyntaxError.
    """
    rest, slash, every = text.strip().partition("/")
    rest, at, after = rest.partition("@")
    name, colon, argument = rest.partition(":")
    name = name.strip().replace("-", "_")
    kind = FAULTS.get(name)
    if kind is None:
        raise FaultSyntaxError(f"unknown fault {name!r}; there are: {', '.join(FAULTS)}")
    if colon and not kind.argument:
        raise FaultSyntaxError(f"{name} takes no argument")
    step = _count(every, "/EVERY") if slash else 0
    return Fault(
        kind=name,
        argument=_number(argument, name) if colon else kind.default,
        after=_count(after, "@AFTER") if at else max(1, step),
        every=step,
    )


class Faults:
    """The faults of one switch.

    ``active`` is False while none waits, so that a good day costs nothing. Triggers are counted over all connections:
    every event frame written; every api, bgapi, sendmsg and sendevent (setting up a connection is not disturbed);
    every connection accepted or login; every HEARTBEAT due. ``fired`` names those that have happened, in order.
    """

    def __init__(self, restart: Callable[[float], None], shut_down: Callable[[], None]) -> None:
        self._restart = restart
        self._shut_down = shut_down
        self._waiting: list[Fault] = []
        self._random = random.Random(0)
        self.active = False
        self.fired: list[str] = []

    def add(self, fault: Fault | str) -> Fault:
        """Let a fault happen; gives it back, to be asked for ``fired``. Raises FaultSyntaxError."""
        if isinstance(fault, str):
            fault = parse_fault(fault)
        elif fault.kind not in FAULTS:
            raise FaultSyntaxError(f"unknown fault {fault.kind!r}; there are: {', '.join(FAULTS)}")
        self._waiting.append(fault)
        self.active = True
        return fault

    def remove(self, fault: Fault) -> None:
        """Take a fault back; nothing happens when it is gone already."""
        self._waiting = [waiting for waiting in self._waiting if waiting is not fault]
        self.active = bool(self._waiting)

    def clear(self) -> None:
        """Take all faults back."""
        self._waiting.clear()
        self.active = False

    def _due(self, kinds: Iterable[str]) -> list[Fault]:
        if not self.active:
            return []
        wanted = set(kinds)
        due = [fault for fault in self._waiting if fault.kind in wanted and fault.due()]
        for fault in due:
            self.fired.append(fault.kind)
            if len(self.fired) > _REMEMBERED:
                del self.fired[: _REMEMBERED // 2]
            if fault.spent:
                self.remove(fault)
        return due

    # --- what the rooms ask ------------------------------------------------------------------------

    def refuses(self) -> bool:
        """Whether the ACL turns this connection away."""
        return bool(self._due(("refuse",)))

    def silences(self) -> bool:
        """Whether this connection is never greeted."""
        return bool(self._due(("silent",)))

    def refuses_login(self, connection: Connection) -> bool:
        """Whether a right password is refused."""
        return bool(self._due(("wrong_auth",)))

    def skips_heartbeat(self) -> bool:
        """Whether this HEARTBEAT is left out."""
        return bool(self._due(("no_heartbeat",)))

    def api_delay(self) -> float:
        """How long (s) this api takes longer than it should."""
        return sum(fault.argument for fault in self._due(("slow_api",)))

    def command_taken(self) -> tuple[bool, bool, float]:
        """Of this command: whether it runs at all, whether it is answered, and how late (s)."""
        runs, answered, late = True, True, 0.0
        for fault in self._due(("deaf", "drop", "late")):
            if fault.kind == "late":
                late += fault.argument
            else:
                answered = False
                runs = runs and fault.kind == "drop"
        return runs, answered, late

    def event_written(self, connection: Connection, event: SimulatedEvent, out: list[bytes]) -> None:
        """An event frame was put last into ``out``: spoil it where a fault is due.

        Several may be due at one event: what one of them puts behind the frame, another never takes for the frame.
        """
        if not self.active:
            return
        place = len(out) - 1
        frame = out[place]
        for fault in self._due(kind.name for kind in FAULTS.values() if kind.trigger == "event"):
            match fault.kind:
                case "truncate":
                    keep = len(frame) - int(fault.argument) if fault.argument else len(frame) // 2
                    out[place] = frame[: max(0, keep)]
                case "stall":
                    connection.stall(fault.argument)
                case "close":
                    out[place:] = [frame[: len(frame) // 2]]
                    connection.close(None)
                case "reset":
                    del out[place:]
                    connection.abort(reset=True)
                case "lost_events":
                    connection.kill()
                case "torn_notice":
                    out[place:] = [frame[: len(frame) // 2] + render_notice(LOST_EVENTS)]
                    connection.close(None)
                case "latin1":
                    out[place] = event.spoiled().frame(connection.subscription.format)
                case "garbage":
                    out.append(self._random.randbytes(int(fault.argument)))
                case "unknown_frame":
                    out.append(b"Content-Type: text/of-the-future\nContent-Length: 5\n\nhello")
                case "stray_reply":
                    out.append(render_reply("+OK nobody asked"))
                case "shutdown":
                    self._shut_down()
                case "restart":
                    self._restart(fault.argument)
            if connection.closing:
                return
