"""Processes of a benchmark: started, read line by line, measured, ended by their own id."""

from __future__ import annotations

import contextlib
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


class Contestant:
    """One process under measurement; ``lines`` are what it printed."""

    def __init__(self, *command: str, env: dict[str, str] | None = None, echo: bool = False) -> None:
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if echo else subprocess.DEVNULL,
            env={**os.environ, **(env or {})},
            text=True,
            bufsize=1,
        )
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def __enter__(self) -> Contestant:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line.strip())

    def line(self, start: str, timeout: float = 30.0) -> str:
        """The next line that begins so; raises ``RuntimeError`` when it does not come."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            with contextlib.suppress(queue.Empty):
                line = self._lines.get(timeout=0.1)
                if line.startswith(start):
                    return line
            if self.process.poll() is not None and self._lines.empty():
                raise RuntimeError(f"{self.process.args}: ended with {self.process.returncode}")
        raise RuntimeError(f"{self.process.args}: no {start!r} within {timeout:g} s")

    def tell(self, text: str) -> None:
        """Write a line to its stdin."""
        assert self.process.stdin is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()

    @property
    def cpu(self) -> float:
        """CPU seconds so far, user and system, all threads."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    @property
    def peak(self) -> int:
        """Largest resident size so far, in bytes."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        return 0


def wait_for(condition: Callable[[], bool], timeout: float, every: float = 0.005) -> bool:
    """Look ``every`` so many seconds; whether it came true in time."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(every)
    return True


def python() -> str:
    """The interpreter of this project."""
    return sys.executable
