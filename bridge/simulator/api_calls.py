"""The API commands about calls: originate, hupall, and the uuid_ family, with FreeSWITCH's own texts.

It never invents a call by itself.
"""

from __future__ import annotations

import re
import uuid as uuids
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from bridge.simulator.channel import Application, Channel
from bridge.simulator.framing import whole
from bridge.simulator.serialise import Value, render_json, to_text

if TYPE_CHECKING:
    from bridge.simulator.server import SimulatedSwitch

_NO_CHANNEL = "-ERR No such channel!\n"
_ORIGINATE_USAGE = (
    "-USAGE: <call url> <exten>|&<application_name>(<app_args>) [<dialplan>] [<context>] [<cid_name>] [<cid_num>] "
    "[<timeout_sec>]\n"
)
_ENDPOINTS = frozenset({"loopback", "user", "sofia", "null", "error", "verto", "group"})
_ASSIGNMENT = re.compile(r"\s*([^=,]+)=('(?:[^'\\]|\\.)*'|[^,]*)(?:,|$)")
_APPLICATION = re.compile(r"&([^\s(]+)(?:\((.*)\))?", re.DOTALL)


def parse_variables(text: str) -> tuple[dict[str, str], str]:
    """The variables of a dial string's ``{a=b,c='d, e'}`` or ``[...]`` blocks, and what follows them."""
    variables: dict[str, str] = {}
    while text[:1] in ("{", "["):
        closing = "}" if text[0] == "{" else "]"
        depth = 0
        end = -1
        for at, letter in enumerate(text):
            depth += (letter == text[0]) - (letter == closing)
            if not depth:
                end = at
                break
        if end < 0:
            return variables, text
        for name, value in _ASSIGNMENT.findall(text[1:end]):
            variables[name.strip()] = value[1:-1] if value[:1] == "'" == value[-1:] and len(value) > 1 else value
        text = text[end + 1 :].lstrip()
    return variables, text


class CallApi:
    """The table of these commands for one switch."""

    def __init__(self, switch: SimulatedSwitch) -> None:
        self._switch = switch
        self.commands: dict[str, Callable[[str], str | Awaitable[str]]] = {
            "originate": self._originate,
            "hupall": self._hupall,
            "uuid_answer": lambda argument: self._on_channel(argument, lambda channel, _: self._answer(channel)),
            "uuid_bridge": self._bridge,
            "uuid_broadcast": self._broadcast,
            "uuid_dump": self._dump,
            "uuid_exists": lambda argument: "true" if switch.has_call(argument.strip()) else "false",
            "uuid_getvar": self._getvar,
            "uuid_hold": self._hold,
            "uuid_kill": lambda argument: self._on_channel(argument, self._kill),
            "uuid_park": lambda argument: self._on_channel(argument, self._park),
            "uuid_send_dtmf": self._send_dtmf,
            "uuid_setvar": lambda argument: self._on_channel(argument, self._setvar),
            "uuid_setvar_multi": lambda argument: self._on_channel(argument, self._setvar_multi),
            "uuid_transfer": lambda argument: self._on_channel(argument, self._transfer),
        }

    def _on_channel(self, argument: str, act: Callable[[Channel, str], str]) -> str:
        uuid, _, rest = argument.strip().partition(" ")
        channel = self._switch.calls.get(uuid)
        return act(channel, rest) if channel is not None else _NO_CHANNEL

    def _kill(self, channel: Channel, rest: str) -> str:
        self._switch.calls.hang_up(channel, rest.strip() or "NORMAL_CLEARING")
        return "+OK\n"

    def _hupall(self, argument: str) -> str:
        cause = argument.split(" ")[0] or "MANAGER_REQUEST"
        self._switch.calls.hang_up_all(cause)
        return f"+OK hangup all channels with cause {cause}\n"

    def _answer(self, channel: Channel) -> str:
        self._switch.calls.answer(channel)
        return "+OK\n"

    def _park(self, channel: Channel, rest: str) -> str:
        self._switch.calls.unbridge(channel)
        self._switch.calls.applications.execute(channel, Application("park", "", str(uuids.uuid4())))
        return "+OK\n"

    def _transfer(self, channel: Channel, rest: str) -> str:
        words = [word for word in rest.split() if not word.startswith("-")]
        if not words:
            return "-USAGE: <uuid> [-bleg|-both] <dest-exten> [<dialplan>] [<context>]\n"
        channel.destination = words[0]
        channel.touch()
        self._switch.calls.state(channel, "CS_ROUTING")
        self._switch.calls.state(channel, "CS_EXECUTE")
        return "+OK\n"

    def _setvar(self, channel: Channel, rest: str) -> str:
        name, _, value = rest.partition(" ")
        if not name:
            return "-USAGE: <uuid> <var> [value]\n"
        if value:
            channel.set(name, value)
        else:
            channel.unset(name)
        return "+OK\n"

    def _setvar_multi(self, channel: Channel, rest: str) -> str:
        for pair in rest.split(";"):
            name, equals, value = pair.partition("=")
            if equals:
                channel.set(name.strip(), value)
        return "+OK\n"

    def _getvar(self, argument: str) -> str:
        def get(channel: Channel, rest: str) -> str:
            value = channel.variables.get(rest.strip())
            if value is None:
                return "_undef_"
            return value if isinstance(value, str) else "ARRAY::" + "|:".join(value)

        return self._on_channel(argument, get)

    def _dump(self, argument: str) -> str:
        def dump(channel: Channel, rest: str) -> str:
            headers = self._switch.stamp.headers("CHANNEL_DATA") + channel.headers("CHANNEL_DATA")
            if rest.strip() == "json":
                return to_text(render_json(headers, None))
            lines = (f"{name}: {value if isinstance(value, str) else '|:'.join(value)}\n" for name, value in headers)
            return "".join(lines) + "\n"

        return self._on_channel(argument, dump)

    def _bridge(self, argument: str) -> str:
        words = argument.split()
        if len(words) != 2:
            return "-USAGE: <uuid> <other_uuid>\n"
        calls = self._switch.calls
        one, two = calls.get(words[0]), calls.get(words[1])
        if one is None or two is None:
            return "-ERR Invalid uuid\n"
        calls.unbridge(one)
        calls.unbridge(two)
        calls.bridge(one, two)
        return f"+OK {two.uuid}\n"

    def _send_dtmf(self, argument: str) -> str:
        uuid, _, digits = argument.strip().partition(" ")
        channel = self._switch.calls.get(uuid)
        if channel is None:
            return "-ERR Cannot locate session!\n"
        self._switch.calls.dtmf(channel, digits.partition("@")[0])
        return f"+OK {uuid} sent DTMF {digits}.\n"

    def _hold(self, argument: str) -> str:
        word, _, rest = argument.strip().partition(" ")
        on = word not in ("off", "toggle")
        channel = self._switch.calls.get(rest.strip() if word in ("off", "toggle") else word)
        if channel is None:
            return "-ERR Operation failed\n"
        self._switch.calls.hold(channel, on)
        return "+OK Success\n"

    def _broadcast(self, argument: str) -> str:
        uuid, _, rest = argument.strip().partition(" ")
        channel = self._switch.calls.get(uuid)
        if channel is None:
            return _NO_CHANNEL
        name, colons, value = rest.partition("::")
        if colons:
            application = Application(name, value.split(" ")[0], str(uuids.uuid4()))
        else:
            application = Application("playback", rest.split(" ")[0], str(uuids.uuid4()))
        self._switch.calls.applications.execute(channel, application)
        return "+OK Message sent\n"

    # --- originate -----------------------------------------------------------------------------------

    def _originate(self, argument: str) -> str | Awaitable[str]:
        variables, rest = parse_variables(argument.strip())
        dial, _, what = rest.partition(" ")
        if not dial or not what.strip():
            return _ORIGINATE_USAGE
        inner, dial = parse_variables(dial)
        endpoint, slash, target = dial.partition("/")
        if not slash or endpoint not in _ENDPOINTS:
            return "-ERR CHAN_NOT_IMPLEMENTED\n"
        if endpoint == "error":
            return f"-ERR {target.upper() or 'NORMAL_TEMPORARY_FAILURE'}\n"
        if len(self._switch.calls) >= self._switch.max_sessions:
            return "-ERR DESTINATION_OUT_OF_ORDER\n"
        uuid = (variables | inner).get("origination_uuid", "")
        if uuid and self._switch.has_call(uuid):
            return "-ERR DUPLICATE_UUID\n"
        return self._dial(variables | inner, endpoint, target, what.strip())

    async def _dial(self, variables: dict[str, str], endpoint: str, target: str, what: str) -> str:
        switch, calls = self._switch, self._switch.calls
        number = target.split("/")[-2 if endpoint == "loopback" and target.count("/") else -1].partition("@")[0]
        all_variables: dict[str, Value] = {**variables, "originate_early_media": "true", "originate_endpoint": endpoint}
        channel = calls.create(
            uuid=variables.get("origination_uuid") or None,
            direction="outbound",
            name=f"{endpoint}/{target}",
            caller=(
                variables.get("origination_caller_id_name", ""),
                variables.get("origination_caller_id_number", "0000000000"),
            ),
            callee=("Outbound Call", number),
            destination=number,
            source=f"mod_{endpoint}",
            variables=all_variables,
        )
        calls.route(channel)
        calls.ring(channel)
        timeout = whole(variables.get("originate_timeout", "60")) or 60
        silent = "noanswer" in target
        await switch.sleep(timeout if silent else switch.answer_delay)
        if channel.uuid not in calls.channels:
            return f"-ERR {channel.cause}\n"
        if silent:
            calls.hang_up(channel, "NO_ANSWER")
            return "-ERR NO_ANSWER\n"
        calls.answer(channel)
        channel.routed = True
        calls.state(channel, "CS_EXECUTE")
        application = _APPLICATION.match(what)
        if application is not None:
            name, argument = application.group(1), application.group(2) or ""
            calls.applications.execute(channel, Application(name, argument, str(uuids.uuid4()), last=True))
        else:
            switch.spawn(calls.hang_up_after(channel, switch.call_duration))
        return f"+OK {channel.uuid}\n"
