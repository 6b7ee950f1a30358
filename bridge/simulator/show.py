"""The `show` command: live channels and calls as a table, as JSON, as XML.

It never changes anything.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from bridge.simulator.channel import Channel
    from bridge.simulator.server import SimulatedSwitch

_USAGE = (
    "-USAGE: codec|endpoint|application|api|dialplan|file|timer|calls [count]|channels [count|like <match string>]"
    "|calls|detailed_calls|bridged_calls|detailed_bridged_calls|aliases|complete|chat|management|modules|nat_map|say"
    "|interfaces|interface_types|tasks|limits|status\n"
)
_CODECS = {
    "ADPCM (IMA)": "mod_spandsp",
    "G.711 alaw": "CORE_PCM_MODULE",
    "G.711 ulaw": "CORE_PCM_MODULE",
    "G.722": "mod_spandsp",
    "G.726 16k": "mod_spandsp",
    "G.726 16k (AAL2)": "mod_spandsp",
    "G.726 24k": "mod_spandsp",
    "G.726 24k (AAL2)": "mod_spandsp",
    "G.726 32k": "mod_spandsp",
    "G.726 32k (AAL2)": "mod_spandsp",
    "G.726 40k": "mod_spandsp",
    "G.726 40k (AAL2)": "mod_spandsp",
    "GSM": "mod_spandsp",
    "LPC-10": "mod_spandsp",
    "PROXY PASS-THROUGH": "CORE_PCM_MODULE",
    "PROXY VIDEO PASS-THROUGH": "CORE_PCM_MODULE",
    "RAW Signed Linear (16 bit)": "CORE_PCM_MODULE",
    "Speex": "CORE_SPEEX_MODULE",
}
_CALL_COLUMNS = (
    *("uuid", "direction", "created", "created_epoch", "name", "state", "cid_name", "cid_num", "ip_addr", "dest"),
    *("presence_id", "presence_data", "accountcode", "callstate", "callee_name", "callee_num"),
)


class Show:
    """Answers `show ...` from the calls of one switch."""

    def __init__(self, switch: SimulatedSwitch) -> None:
        self._switch = switch

    def run(self, argument: str) -> str:
        """The output of `show <argument>`."""
        words = argument.lower().split()
        form = "delim"
        if "as" in words:
            at = words.index("as")
            form = words[at + 1] if at + 1 < len(words) else form
            words = words[:at]
        channels = list(self._switch.calls.channels.values())
        match words:
            case ["channels"]:
                rows = [self._channel(channel) for channel in channels]
            case ["channels", "like", text]:
                rows = [
                    row for row in map(self._channel, channels) if any(text in cell.lower() for cell in row.values())
                ]
            case ["calls" | "bridged_calls" | "detailed_calls" | "detailed_bridged_calls"]:
                rows = [self._call(channel) for channel in channels if channel.originator or channel.other is None]
            case ["channels" | "calls", "count"]:
                count = len(channels) if words[0] == "channels" else sum(self._first(channel) for channel in channels)
                return f'{{"row_count": {count}}}\n' if form == "json" else f"\n{count} total.\n"
            case ["codec" | "codecs"]:
                rows = [{"type": "codec", "name": name, "ikey": module} for name, module in _CODECS.items()]
            case ["registrations" | "tasks" | "aliases" | "limits" | "nat_map"]:
                rows = []
            case _:
                return _USAGE
        return self._render(rows, form)

    @staticmethod
    def _first(channel: Channel) -> bool:
        return channel.originator or channel.other is None

    def _channel(self, channel: Channel) -> dict[str, str]:
        codec, rate, bits = channel.codec
        epoch = channel.created // 1_000_000
        return {
            "uuid": channel.uuid,
            "direction": channel.direction,
            "created": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(epoch)),
            "created_epoch": str(epoch),
            "name": channel.name,
            "state": channel.state,
            "cid_name": channel.caller_name,
            "cid_num": channel.caller_number,
            "ip_addr": channel.network_addr,
            "dest": channel.destination,
            "application": channel.application,
            "application_data": channel.application_data,
            "dialplan": "XML",
            "context": channel.context,
            "read_codec": codec,
            "read_rate": rate,
            "read_bit_rate": bits,
            "write_codec": codec,
            "write_rate": rate,
            "write_bit_rate": bits,
            "secure": "",
            "hostname": self._switch.hostname,
            "presence_id": _text(channel, "presence_id"),
            "presence_data": "",
            "accountcode": _text(channel, "accountcode"),
            "callstate": channel.call_state,
            "callee_name": channel.callee_name,
            "callee_num": channel.callee_number,
            "callee_direction": "",
            "call_uuid": channel.call_uuid if channel.other is not None else "",
            "sent_callee_name": "",
            "sent_callee_num": "",
            "initial_cid_name": channel.caller_name,
            "initial_cid_num": channel.caller_number,
            "initial_ip_addr": channel.network_addr,
            "initial_dest": channel.destination,
            "initial_dialplan": "XML",
            "initial_context": channel.context,
        }

    def _call(self, channel: Channel) -> dict[str, str]:
        one = self._channel(channel)
        row = {key: one[key] for key in _CALL_COLUMNS}
        two = self._channel(channel.other) if channel.other is not None else dict.fromkeys(_CALL_COLUMNS, "")
        row |= {f"b_{key}": two[key] for key in _CALL_COLUMNS}
        row["call_created_epoch"] = str(channel.bridged // 1_000_000) if channel.bridged else ""
        row["hostname"] = self._switch.hostname
        return row

    @staticmethod
    def _render(rows: list[dict[str, str]], form: str) -> str:
        if form == "json":
            if not rows:
                return '{"row_count": 0}\n'
            return json.dumps({"row_count": len(rows), "rows": rows}, ensure_ascii=False, separators=(",", ":")) + "\n"
        if form == "xml":
            if not rows:
                return '<result row_count="0"/>\n'
            lines = [f'<result row_count="{len(rows)}">\n']
            for number, row in enumerate(rows, 1):
                cells = "".join(f"    <{key}>{escape(value)}</{key}>\n" for key, value in row.items())
                lines.append(f'  <row row_id="{number}">\n{cells}  </row>\n')
            return "".join(lines) + "</result>\n"
        if not rows:
            return "\n0 total.\n"
        table = [",".join(rows[0])]
        table += [",".join(f'"{cell}"' if "," in cell else cell for cell in row.values()) for row in rows]
        return "\n".join(table) + f"\n\n{len(rows)} total.\n"


def _text(channel: Channel, variable: str) -> str:
    value = channel.variables.get(variable, "")
    return value if isinstance(value, str) else ""
