"""The heartbeat of a switch: HEARTBEAT and RE_SCHEDULE in their interval, and the numbers in them.

It never knows who listens.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from bridge.simulator.events import SimulatedEvent
from bridge.simulator.serialise import Headers

if TYPE_CHECKING:
    from bridge.simulator.server import SimulatedSwitch


def up_time(seconds: float) -> str:
    """An uptime in FreeSWITCH's words."""
    whole, microseconds = divmod(int(seconds * 1_000_000), 1_000_000)
    days, whole = divmod(whole, 86_400)
    years, days = divmod(days, 365)
    hours, whole = divmod(whole, 3600)
    minutes, whole = divmod(whole, 60)
    milliseconds, microseconds = divmod(microseconds, 1000)
    counted = (
        (years, "year"),
        (days, "day"),
        (hours, "hour"),
        (minutes, "minute"),
        (whole, "second"),
        (milliseconds, "millisecond"),
        (microseconds, "microsecond"),
    )
    return ", ".join(f"{number} {unit}{'' if number == 1 else 's'}" for number, unit in counted)


class Heart:
    """Beats every ``interval`` seconds."""

    def __init__(self, switch: SimulatedSwitch, interval: float) -> None:
        self._switch = switch
        self._timer: asyncio.TimerHandle | None = None
        self.interval = interval

    def start(self) -> None:
        """Begin; nothing happens when it beats already."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self.interval, self._turn)

    def stop(self) -> None:
        """Stand still."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _turn(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self.interval, self._turn)
        if not self._switch.faults.skips_heartbeat():
            self.beat()

    def beat(self) -> SimulatedEvent:
        """Fire a HEARTBEAT now, and the RE_SCHEDULE that follows it."""
        event = self._switch.fire("HEARTBEAT", self.headers())
        self._switch.fire(
            "RE_SCHEDULE",
            [
                ("Task-ID", "1"),
                ("Task-Desc", "heartbeat"),
                ("Task-Group", "core"),
                ("Task-Runtime", str(int(time.time() + self.interval))),
            ],
        )
        return event

    def headers(self) -> Headers:
        """The 14 fields of a HEARTBEAT."""
        switch, calls = self._switch, self._switch.calls
        return [
            ("Event-Info", "System Ready"),
            ("Up-Time", up_time(switch.uptime)),
            ("FreeSWITCH-Version", f"{switch.version}~64bit"),
            ("Uptime-msec", str(int(switch.uptime * 1000))),
            ("Session-Count", str(len(calls))),
            ("Max-Sessions", str(switch.max_sessions)),
            ("Session-Per-Sec", str(switch.sessions_per_second)),
            ("Session-Per-Sec-Last", str(calls.per_second)),
            ("Session-Per-Sec-Max", str(calls.peak_per_second)),
            ("Session-Per-Sec-FiveMin", str(calls.peak_per_second)),
            ("Session-Since-Startup", str(calls.total)),
            ("Session-Peak-Max", str(calls.peak)),
            ("Session-Peak-FiveMin", str(calls.peak)),
            ("Idle-CPU", f"{switch.idle_cpu:.6f}"),
        ]
