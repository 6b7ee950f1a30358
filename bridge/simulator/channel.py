"""One channel (a leg of a made-up call): its state, and the headers FreeSWITCH puts into its events, in that order.

It never fires an event itself.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field

from bridge.simulator.serialise import Headers, Value

STATES = {
    "CS_NEW": 0,
    "CS_INIT": 1,
    "CS_ROUTING": 2,
    "CS_SOFT_EXECUTE": 3,
    "CS_EXECUTE": 4,
    "CS_EXCHANGE_MEDIA": 5,
    "CS_PARK": 6,
    "CS_CONSUME_MEDIA": 7,
    "CS_HIBERNATE": 8,
    "CS_RESET": 9,
    "CS_HANGUP": 10,
    "CS_REPORTING": 11,
    "CS_DESTROY": 12,
}
CALL_STATES = {"DOWN": 0, "DIALING": 1, "RINGING": 2, "EARLY": 3, "ACTIVE": 4, "HELD": 5, "HANGUP": 7}

CAUSES = {
    "NORMAL_CLEARING": 16,
    "USER_BUSY": 17,
    "NO_USER_RESPONSE": 18,
    "NO_ANSWER": 19,
    "CALL_REJECTED": 21,
    "DESTINATION_OUT_OF_ORDER": 27,
    "UNALLOCATED_NUMBER": 1,
    "NORMAL_TEMPORARY_FAILURE": 41,
    "ORIGINATOR_CANCEL": 487,
    "ATTENDED_TRANSFER": 601,
    "MANAGER_REQUEST": 503,
}

# Events that come without the channel's variables, unless FreeSWITCH is told to be verbose.
_BARE = frozenset({"CHANNEL_STATE", "CHANNEL_CALLSTATE", "CHANNEL_OUTGOING", "DTMF", "CODEC"})


def now() -> int:
    """Microseconds since the epoch."""
    return time.time_ns() // 1000


def _stamp(microseconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(microseconds // 1_000_000))


@dataclass
class Application:
    """One application that a channel is to execute."""

    name: str
    argument: str
    uuid: str
    loops: int = 1
    last: bool = False  # the channel ends with it


@dataclass(eq=False)
class Channel:
    """A leg. Times in microseconds since the epoch, 0 where it has not happened."""

    uuid: str
    name: str
    direction: str
    caller_name: str
    caller_number: str
    destination: str
    session_id: int
    callee_name: str = ""
    callee_number: str = ""
    context: str = "default"
    source: str = "mod_sofia"
    network_addr: str = ""
    codec: tuple[str, str, str] = ("PCMU", "8000", "64000")
    variables: dict[str, Value] = field(default_factory=dict)
    call_uuid: str = ""
    state: str = "CS_INIT"
    call_state: str = "DOWN"
    answer_state: str = "ringing"
    cause: str = ""
    routed: bool = False
    created: int = field(default_factory=now)
    answered: int = 0
    progress: int = 0
    bridged: int = 0
    hung_up: int = 0
    other: Channel | None = None
    originator: bool = False
    application: str = ""
    application_data: str = ""
    waiting: deque[Application] = field(default_factory=deque)
    running: list[Application] = field(default_factory=list)
    _profiles: dict[str, Headers] = field(default_factory=dict)
    _variables: Headers | None = None

    def __post_init__(self) -> None:
        self.call_uuid = self.call_uuid or self.uuid
        codec, rate, _ = self.codec
        own: dict[str, Value] = {"direction": self.direction}
        if self.direction == "outbound":
            own["is_outbound"] = "true"
        own |= {
            "uuid": self.uuid,
            "session_id": str(self.session_id),
            "channel_name": self.name,
            "call_uuid": self.call_uuid,
            "read_codec": codec,
            "read_rate": rate,
            "write_codec": codec,
            "write_rate": rate,
        }
        self.variables = own | self.variables

    # --- what changes ------------------------------------------------------------------------------

    def touch(self) -> None:
        """Times or names have changed."""
        self._profiles.clear()

    def set(self, name: str, value: Value) -> None:
        """Set a channel variable."""
        self.variables[name] = value
        self._variables = None

    def unset(self, name: str) -> None:
        """Remove a channel variable."""
        self.variables.pop(name, None)
        self._variables = None

    # --- headers -----------------------------------------------------------------------------------

    def profile(self, prefix: str) -> Headers:
        """The caller profile, for this channel's own events or for those of the one it is bridged with."""
        known = self._profiles.get(prefix)
        if known is not None:
            return known
        headers: Headers = [
            (f"{prefix}-Direction", self.direction),
            (f"{prefix}-Logical-Direction", self.direction),
            (f"{prefix}-Username", self.caller_number),
            (f"{prefix}-Dialplan", "XML"),
            (f"{prefix}-Caller-ID-Name", self.caller_name),
            (f"{prefix}-Caller-ID-Number", self.caller_number),
            (f"{prefix}-Orig-Caller-ID-Name", self.caller_name),
            (f"{prefix}-Orig-Caller-ID-Number", self.caller_number),
        ]
        if self.callee_number:
            headers.append((f"{prefix}-Callee-ID-Name", self.callee_name))
            headers.append((f"{prefix}-Callee-ID-Number", self.callee_number))
        if self.network_addr:
            headers.append((f"{prefix}-Network-Addr", self.network_addr))
        headers += [
            (f"{prefix}-ANI", self.caller_number),
            (f"{prefix}-Destination-Number", self.destination),
            (f"{prefix}-Unique-ID", self.uuid),
            (f"{prefix}-Source", self.source),
            (f"{prefix}-Context", self.context),
            (f"{prefix}-Channel-Name", self.name),
        ]
        if prefix == "Caller":
            headers.append(("Caller-Profile-Index", "1"))
        times = (
            ("Profile-Created", self.created),
            ("Channel-Created", self.created),
            ("Channel-Answered", self.answered),
            ("Channel-Progress", self.progress),
            ("Channel-Progress-Media", 0),
            ("Channel-Hangup", self.hung_up),
            ("Channel-Transfer", 0),
            ("Channel-Resurrect", 0),
            ("Channel-Bridged", self.bridged),
        )
        headers += [(f"{prefix}-{what}-Time", str(when)) for what, when in times]
        headers += [
            (f"{prefix}-Channel-Last-Hold", "0"),
            (f"{prefix}-Channel-Hold-Accum", "0"),
            (f"{prefix}-Screen-Bit", "true"),
            (f"{prefix}-Privacy-Hide-Name", "false"),
            (f"{prefix}-Privacy-Hide-Number", "false"),
        ]
        self._profiles[prefix] = headers
        return headers

    def headers(self, event: str, before: Headers | None = None, after: Headers | None = None) -> Headers:
        """The headers behind the stamp of one of its events: special ones, channel, codec, caller, variables."""
        codec, rate, bits = self.codec
        headers: Headers = list(before or ())
        headers += [
            ("Channel-State", self.state),
            ("Channel-Call-State", self.call_state),
            ("Channel-State-Number", str(STATES[self.state])),
            ("Channel-Name", self.name),
            ("Unique-ID", self.uuid),
            ("Call-Direction", self.direction),
            ("Presence-Call-Direction", self.direction),
            ("Channel-HIT-Dialplan", "true" if self.routed else "false"),
            ("Channel-Call-UUID", self.call_uuid),
            ("Answer-State", self.answer_state),
        ]
        if self.cause:
            headers.append(("Hangup-Cause", self.cause))
        headers += [
            ("Channel-Read-Codec-Name", codec),
            ("Channel-Read-Codec-Rate", rate),
            ("Channel-Read-Codec-Bit-Rate", bits),
            ("Channel-Write-Codec-Name", codec),
            ("Channel-Write-Codec-Rate", rate),
            ("Channel-Write-Codec-Bit-Rate", bits),
        ]
        headers += self.profile("Caller")
        if event in _BARE:
            headers += after or ()
            return headers
        if self.other is not None:
            headers.append(("Other-Type", "originatee" if self.originator else "originator"))
            headers += self.other.profile("Other-Leg")
        if self._variables is None:
            self._variables = [(f"variable_{name}", value) for name, value in self.variables.items()]
        headers += self._variables
        headers += after or ()
        return headers

    def report(self) -> None:
        """Set the variables that FreeSWITCH adds when a channel is done: causes, stamps, epochs, durations."""
        variables = self.variables
        variables["hangup_cause"] = self.cause
        variables["hangup_cause_q850"] = str(CAUSES.get(self.cause, 16) if CAUSES.get(self.cause, 16) < 128 else 16)
        variables["digits_dialed"] = "none"
        moments = {"start": self.created, "profile_start": self.created, "answer": self.answered, "end": self.hung_up}
        for what, when in moments.items():
            if when:
                variables[f"{what}_stamp"] = _stamp(when)
        epochs = {
            "start": self.created,
            "profile_start": self.created,
            "answer": self.answered,
            "bridge": self.bridged,
            "last_hold": 0,
            "resurrect": 0,
            "progress": self.progress,
            "progress_media": 0,
            "end": self.hung_up,
        }
        for what, when in epochs.items():
            variables[f"{what}_epoch"] = str(when // 1_000_000)
            variables[f"{what}_uepoch"] = str(when)
        if self.application:
            variables["last_app"] = self.application
        variables["caller_id"] = f'"{self.caller_name}" <{self.caller_number}>'
        total = self.hung_up - self.created
        talked = self.hung_up - self.answered if self.answered else 0
        until_answer = self.answered - self.created if self.answered else 0
        until_progress = self.progress - self.created if self.progress else 0
        spans = {
            "duration": total,
            "bill": talked,
            "progress": until_progress,
            "answer": until_answer,
            "wait": self.bridged - self.created if self.bridged else 0,
            "progress_media": 0,
            "flow_bill": total,
        }
        for unit, divisor in (("sec", 1_000_000), ("msec", 1000), ("usec", 1)):
            for what, span in spans.items():
                value = str(span // divisor)
                if what == "duration":
                    variables[{"sec": "duration", "msec": "mduration", "usec": "uduration"}[unit]] = value
                elif what in ("bill", "flow_bill") and unit == "msec":
                    variables[f"{what}msec"] = value
                else:
                    variables[f"{what}{unit}"] = value
        self._variables = None
