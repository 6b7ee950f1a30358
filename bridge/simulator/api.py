"""The API commands: what `status`, `show`, `msleep` and their kin answer, text for text.

It never knows who asked; commands about calls are in another room.
"""

from __future__ import annotations

import time
import uuid as uuids
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from bridge.simulator.serialise import Value

if TYPE_CHECKING:
    from bridge.simulator.server import SimulatedSwitch

Output = str | Awaitable[str]
Handler = Callable[[str], Output]


class Api:
    """The table of API commands of one switch."""

    def __init__(self, switch: SimulatedSwitch) -> None:
        self._switch = switch
        self.variables: dict[str, str] = {
            "hostname": switch.hostname,
            "domain": switch.host,
            "switchname": switch.switchname,
        }
        self.commands: dict[str, Handler] = {
            "create_uuid": lambda argument: str(uuids.uuid4()),
            "echo": lambda argument: argument,
            "hostname": lambda argument: switch.hostname,
            "switchname": lambda argument: switch.switchname,
            "msleep": self._msleep,
            "status": self._status,
            "version": self._version,
        }

    def run(self, verb: str, argument: str) -> Output:
        """The output of a command; an unknown one is told as FreeSWITCH tells it."""
        handler = self.commands.get(verb.lower())
        if handler is None:
            return f"-ERR {verb} Command not found!\n"
        return handler(argument)

    async def _msleep(self, argument: str) -> str:
        await self._switch.sleep(max(0, int(argument or "0")) / 1000)
        return "+OK"

    def _version(self, argument: str) -> str:
        return "FreeSWITCH Version 1.11.2-release~64bit ( 64bit)\n"

    def up_time(self) -> str:
        """The uptime in words."""
        microseconds = int(self._switch.uptime * 1_000_000)
        seconds, microseconds = divmod(microseconds, 1_000_000)
        days, seconds = divmod(seconds, 86_400)
        years, days = divmod(days, 365)
        hours, seconds = divmod(seconds, 3600)
        minutes, seconds = divmod(seconds, 60)
        milliseconds, microseconds = divmod(microseconds, 1000)
        counted = (
            (years, "year"),
            (days, "day"),
            (hours, "hour"),
            (minutes, "minute"),
            (seconds, "second"),
            (milliseconds, "millisecond"),
            (microseconds, "microsecond"),
        )
        return ", ".join(f"{number} {unit}{'' if number == 1 else 's'}" for number, unit in counted)

    def _status(self, argument: str) -> str:
        switch = self._switch
        return (
            f"UP {self.up_time()}\n"
            "FreeSWITCH (Version 1.11.2-release  64bit) is ready\n"
            "0 session(s) since startup\n"
            "0 session(s) - peak 0, last 5min 0 \n"
            f"0 session(s) per Sec out of max {switch.sessions_per_second}, peak 0, last 5min 0 \n"
            f"{switch.max_sessions} session(s) max\n"
            f"min idle cpu 0.00/{switch.idle_cpu:.2f}\n"
            "Current Stack Size/Max 240K/8192K\n"
        )

    def heartbeat(self) -> list[tuple[str, Value]]:
        """The 14 fields of a HEARTBEAT."""
        switch = self._switch
        return [
            ("Event-Info", "System Ready"),
            ("Up-Time", self.up_time()),
            ("FreeSWITCH-Version", "1.11.2-release~64bit"),
            ("Uptime-msec", str(int(switch.uptime * 1000))),
            ("Session-Count", "0"),
            ("Max-Sessions", str(switch.max_sessions)),
            ("Session-Per-Sec", str(switch.sessions_per_second)),
            ("Session-Per-Sec-Last", "0"),
            ("Session-Per-Sec-Max", "0"),
            ("Session-Per-Sec-FiveMin", "0"),
            ("Session-Since-Startup", "0"),
            ("Session-Peak-Max", "0"),
            ("Session-Peak-FiveMin", "0"),
            ("Idle-CPU", f"{switch.idle_cpu:.6f}"),
        ]


def now() -> int:
    """Microseconds since the epoch."""
    return time.time_ns() // 1000
