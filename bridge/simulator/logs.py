"""Log lines as FreeSWITCH sends them to a connection that asked for them with ``log``.

It never writes a log of its own.
"""

from __future__ import annotations

import time

from bridge.simulator.serialise import to_bytes

NAMES = ("CONSOLE", "ALERT", "CRIT", "ERR", "WARNING", "NOTICE", "INFO", "DEBUG")


def render_log(
    level: int, text: str, file: str, function: str, line: int, uuid: str = "", channel: int = 3, idle: float = 97.5
) -> bytes:
    """A log/data frame. ``uuid`` is the User-Data: the channel that the line is about."""
    nanoseconds = time.time_ns()
    moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(nanoseconds // 1_000_000_000))
    microseconds = nanoseconds // 1000 % 1_000_000
    body = to_bytes(f"{moment}.{microseconds:06d} {idle:.2f}% [{NAMES[level]}] {file}:{line} {text}\n")
    head = (
        f"Content-Type: log/data\nContent-Length: {len(body)}\nLog-Level: {level}\nText-Channel: {channel}\n"
        f"Log-File: {file}\nLog-Func: {function}\nLog-Line: {line}\nUser-Data: {uuid}\n\n"
    )
    return to_bytes(head) + body
