"""Events as FreeSWITCH makes them: their names, their stamp of 13 headers, their one sequence counter.

It never decides when an event happens, and never writes one to a socket.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from bridge.simulator.serialise import Format, Headers, Value, render_frame

EVENT_NAMES = tuple(
    """CUSTOM CLONE CHANNEL_CREATE CHANNEL_DESTROY CHANNEL_STATE CHANNEL_CALLSTATE CHANNEL_ANSWER CHANNEL_HANGUP
    CHANNEL_HANGUP_COMPLETE CHANNEL_EXECUTE CHANNEL_EXECUTE_COMPLETE CHANNEL_HOLD CHANNEL_UNHOLD CHANNEL_BRIDGE
    CHANNEL_UNBRIDGE CHANNEL_PROGRESS CHANNEL_PROGRESS_MEDIA CHANNEL_OUTGOING CHANNEL_PARK CHANNEL_UNPARK
    CHANNEL_APPLICATION CHANNEL_ORIGINATE CHANNEL_UUID API LOG INBOUND_CHAN OUTBOUND_CHAN STARTUP SHUTDOWN PUBLISH
    UNPUBLISH TALK NOTALK SESSION_CRASH MODULE_LOAD MODULE_UNLOAD DTMF MESSAGE PRESENCE_IN NOTIFY_IN PRESENCE_OUT
    PRESENCE_PROBE MESSAGE_WAITING MESSAGE_QUERY ROSTER CODEC BACKGROUND_JOB DETECTED_SPEECH DETECTED_TONE
    PRIVATE_COMMAND HEARTBEAT TRAP ADD_SCHEDULE DEL_SCHEDULE EXE_SCHEDULE RE_SCHEDULE RELOADXML NOTIFY PHONE_FEATURE
    PHONE_FEATURE_SUBSCRIBE SEND_MESSAGE RECV_MESSAGE REQUEST_PARAMS CHANNEL_DATA GENERAL COMMAND SESSION_HEARTBEAT
    CLIENT_DISCONNECTED SERVER_DISCONNECTED SEND_INFO RECV_INFO RECV_RTCP_MESSAGE SEND_RTCP_MESSAGE CALL_SECURE NAT
    RECORD_START RECORD_STOP PLAYBACK_START PLAYBACK_STOP CALL_UPDATE FAILURE SOCKET_DATA MEDIA_BUG_START
    MEDIA_BUG_STOP CONFERENCE_DATA_QUERY CONFERENCE_DATA CALL_SETUP_REQ CALL_SETUP_RESULT CALL_DETAIL DEVICE_STATE
    TEXT SHUTDOWN_REQUESTED ALL""".split()  # noqa: SIM905
)

_BY_NAME = {name: name for name in EVENT_NAMES}


def event_named(text: str) -> str | None:
    """The event name that a word of a command means (any case, a 13-byte prefix is skipped), or None."""
    upper = text.upper()
    return _BY_NAME.get(upper) or (_BY_NAME.get(upper[13:]) if len(upper) > 13 else None)


class Origin(NamedTuple):
    """The place in FreeSWITCH's source that makes an event."""

    file: str
    function: str
    line: str


ORIGINS = {
    "API": Origin("switch_loadable_module.c", "switch_api_execute", "3140"),
    "BACKGROUND_JOB": Origin("mod_event_socket.c", "api_exec", "1580"),
    "HEARTBEAT": Origin("switch_core.c", "send_heartbeat", "95"),
    "RE_SCHEDULE": Origin("switch_scheduler.c", "switch_scheduler_execute", "73"),
    "CHANNEL_STATE": Origin("switch_channel.c", "switch_channel_perform_set_running_state", "2409"),
    "CHANNEL_CALLSTATE": Origin("switch_channel.c", "switch_channel_perform_set_callstate", "302"),
    "CHANNEL_CREATE": Origin("switch_core_state_machine.c", "switch_core_session_run", "626"),
    "CHANNEL_OUTGOING": Origin("switch_core_session.c", "switch_core_session_outgoing_channel", "768"),
    "CHANNEL_ORIGINATE": Origin("switch_core_state_machine.c", "switch_core_session_run", "632"),
    "CHANNEL_EXECUTE": Origin("switch_core_session.c", "switch_core_session_exec", "2949"),
    "CHANNEL_EXECUTE_COMPLETE": Origin("switch_core_session.c", "switch_core_session_exec", "2972"),
    "CHANNEL_PROGRESS": Origin("switch_channel.c", "switch_channel_perform_mark_ring_ready_value", "3507"),
    "CHANNEL_PROGRESS_MEDIA": Origin("switch_channel.c", "switch_channel_perform_mark_pre_answered", "3562"),
    "CHANNEL_ANSWER": Origin("switch_channel.c", "switch_channel_perform_mark_answered", "3848"),
    "CHANNEL_BRIDGE": Origin("switch_ivr_bridge.c", "switch_ivr_multi_threaded_bridge", "1689"),
    "CHANNEL_UNBRIDGE": Origin("switch_ivr_bridge.c", "switch_ivr_multi_threaded_bridge", "1879"),
    "CHANNEL_HANGUP": Origin("switch_channel.c", "switch_channel_perform_hangup", "3447"),
    "CHANNEL_HANGUP_COMPLETE": Origin("switch_core_state_machine.c", "switch_core_session_reporting_state", "943"),
    "CHANNEL_DESTROY": Origin("switch_core_session.c", "switch_core_session_perform_destroy", "1588"),
    "CHANNEL_PARK": Origin("switch_ivr.c", "switch_ivr_park", "1002"),
    "CHANNEL_UNPARK": Origin("switch_ivr.c", "switch_ivr_park", "1213"),
    "CHANNEL_HOLD": Origin("switch_channel.c", "switch_channel_hard_hold", "2036"),
    "CHANNEL_UNHOLD": Origin("switch_channel.c", "switch_channel_hard_unhold", "2061"),
    "DTMF": Origin("switch_channel.c", "switch_channel_dequeue_dtmf", "678"),
    "CALL_UPDATE": Origin("switch_channel.c", "switch_channel_flip_cid", "3279"),
    "CODEC": Origin("switch_core_codec.c", "switch_core_session_set_read_codec", "300"),
    "PLAYBACK_START": Origin("switch_ivr_play_say.c", "switch_ivr_play_file", "1649"),
    "PLAYBACK_STOP": Origin("switch_ivr_play_say.c", "switch_ivr_play_file", "2023"),
    "CUSTOM": Origin("mod_sofia.c", "sofia_reg_handle_register_token", "2007"),
}
_NOWHERE = Origin("switch_event.c", "switch_event_fire", "1973")
SENDEVENT = Origin("mod_event_socket.c", "parse_command", "2283")


class SimulatedEvent:
    """One event: its headers in wire order (names may repeat, values are texts or arrays) and its body."""

    __slots__ = ("_frames", "body", "headers", "name", "subclass")

    def __init__(self, name: str, headers: Headers, body: str | None = None, subclass: str | None = None) -> None:
        self.name = name
        self.headers = headers
        self.body = body
        self.subclass = subclass
        self._frames: dict[Format, bytes] = {}

    def header(self, name: str) -> str | None:
        """The first value under this name in any case, as FreeSWITCH's own look-up finds it; None if absent."""
        wanted = name.lower()
        for key, value in self.headers:
            if key.lower() == wanted:
                return value if isinstance(value, str) else "ARRAY::" + "|:".join(value)
        return None

    def frame(self, format: Format) -> bytes:
        """The frame as written to a connection; rendered once per format, however many connections get it."""
        frame = self._frames.get(format)
        if frame is None:
            frame = self._frames[format] = render_frame(self.headers, self.body, format)
        return frame

    def spoiled(self) -> SimulatedEvent:
        """A copy whose caller name holds a Latin-1 byte, as old gateways send it."""
        headers: Headers = []
        found = False
        for name, value in self.headers:
            if name == "Caller-Caller-ID-Name" and isinstance(value, str):
                headers.append((name, value + " Zo\udce9"))
                found = True
            else:
                headers.append((name, value))
        if not found:
            headers.append(("variable_caller_name", "Zo\udce9"))
        return SimulatedEvent(self.name, headers, self.body, self.subclass)

    def seal(self, format: Format, frame: bytes) -> None:
        """Use these bytes as they are (a replayed capture)."""
        self._frames[format] = frame


def pairs(headers: Mapping[str, Value] | Iterable[tuple[str, Value]]) -> Headers:
    """Headers of a caller as a list of pairs in their order."""
    return list(headers.items()) if isinstance(headers, Mapping) else list(headers)


class Stamp:
    """Stamps events of one FreeSWITCH process: who, when, where, and the number from one counter."""

    def __init__(self, core_uuid: str, hostname: str, switchname: str, ipv4: str, ipv6: str) -> None:
        self.core_uuid = core_uuid
        self.sequence = 0
        self._who: Headers = [
            ("Core-UUID", core_uuid),
            ("FreeSWITCH-Hostname", hostname),
            ("FreeSWITCH-Switchname", switchname),
            ("FreeSWITCH-IPv4", ipv4),
            ("FreeSWITCH-IPv6", ipv6),
        ]
        self._second = -1
        self._dates: Headers = []

    def headers(self, name: str, origin: Origin | None = None) -> Headers:
        """The 13 standard headers of a new event; takes the next Event-Sequence."""
        self.sequence += 1
        microseconds = time.time_ns() // 1000
        second = microseconds // 1_000_000
        if second != self._second:
            self._second = second
            self._dates = [
                ("Event-Date-Local", time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second))),
                ("Event-Date-GMT", time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(second))),
            ]
        file, function, line = origin or ORIGINS.get(name, _NOWHERE)
        return [
            ("Event-Name", name),
            *self._who,
            *self._dates,
            ("Event-Date-Timestamp", str(microseconds)),
            ("Event-Calling-File", file),
            ("Event-Calling-Function", function),
            ("Event-Calling-Line-Number", line),
            ("Event-Sequence", str(self.sequence)),
        ]

    def event(
        self,
        name: str,
        headers: Iterable[tuple[str, Value]] = (),
        body: str | None = None,
        subclass: str | None = None,
        origin: Origin | None = None,
    ) -> SimulatedEvent:
        """A stamped event; of a CUSTOM one the Event-Subclass comes first, as on the wire."""
        stamped = self.headers(name, origin)
        if subclass:
            stamped.insert(0, ("Event-Subclass", subclass))
        stamped.extend(headers)
        return SimulatedEvent(name, stamped, body, subclass)
