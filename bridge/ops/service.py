"""The service manager (systemd) told how this process is: ready, reloading, stopping, alive.

Where there is none (no ``NOTIFY_SOCKET``) everything here does nothing. This room never decides what is told.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping

import sdnotify


class ServiceManager:
    """Speaks ``sd_notify``; ``watch`` sends the watchdog's sign of life from the event loop.

    A loop that hangs sends none, and systemd starts the process anew (``WatchdogSec``).
    """

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        environ = os.environ if environ is None else environ
        self.present = bool(environ.get("NOTIFY_SOCKET"))
        self._notifier = sdnotify.SystemdNotifier() if self.present else None
        if self._notifier is not None and self._notifier.socket is not None:
            # A service manager that does not read must not stop our loop; what it misses it misses.
            self._notifier.socket.setblocking(False)
        self._status = ""
        self._timer: asyncio.TimerHandle | None = None
        self.watchdog = self._watchdog_of(environ)
        """Longest silence in s that the service manager bears; 0.0 when it does not watch."""

    def _watchdog_of(self, environ: Mapping[str, str]) -> float:
        wanted, whose = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
        if not self.present or not wanted.isdigit() or (whose and whose != str(os.getpid())):
            return 0.0
        return int(wanted) / 1_000_000

    def ready(self, status: str = "") -> None:
        """It serves, or does so again after a reload."""
        self._tell("READY=1", status)

    def reloading(self) -> None:
        """It reads its configuration anew; ``ready`` ends that."""
        self._tell(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, timeout: float) -> None:
        """It drains, for ``timeout`` s at most."""
        self._tell(f"STOPPING=1\nEXTEND_TIMEOUT_USEC={int((timeout + 1) * 1_000_000)}", "draining")

    def status(self, text: str) -> None:
        """One line for ``systemctl status``; sent when it changed."""
        if text != self._status:
            self._tell("", text)

    def watch(self) -> None:
        """Send signs of life from the running loop, until ``close``."""
        if self.watchdog > 0:
            self._tell("WATCHDOG=1")
            # Half of the limit is what sd_watchdog_enabled(3) recommends; a third leaves room for a busy loop.
            self._timer = asyncio.get_running_loop().call_later(self.watchdog / 3, self.watch)

    def close(self) -> None:
        """Tell nothing more."""
        if self._timer is not None:
            self._timer.cancel()
        if self._notifier is not None and self._notifier.socket is not None:
            self._notifier.socket.close()
            self._notifier = None

    def _tell(self, text: str, status: str = "") -> None:
        if status:
            self._status = status
            text = f"{text}\nSTATUS={status}".strip()
        if self._notifier is not None and text:
            self._notifier.notify(text)
