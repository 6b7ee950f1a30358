"""``esl-bridge run --workers N``: a parent that starts worker processes, passes signals on, and restarts the dead.

It never touches bus or FreeSWITCH. It is to its workers what systemd is to it: they tell it that they are ready and
alive, and one that is silent too long is ended and started anew.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import socket
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from bridge.cli import exits
from bridge.cli.loop import stop_on_signals
from bridge.errors import ConfigError
from bridge.ops.service import ServiceManager

if TYPE_CHECKING:
    from bridge.cli.loop import StopWish
    from bridge.config import Settings

log = structlog.get_logger(__name__)

# A worker that dies is started again after this, twice this, ...; one that lived for a while begins anew, in seconds.
FIRST_PAUSE, LONGEST_PAUSE, STABLE_AFTER = 0.5, 30.0, 60.0
# How long a worker's loop may be silent where systemd names no limit, in seconds.
WATCHDOG = 30.0
# What ends a process for good, whoever starts it again.
HOPELESS = (exits.WRONG_CONFIGURATION, exits.USAGE)
_PR_SET_PDEATHSIG = 1


class WorkerProcess:
    """One worker: its process, and what it tells through its own notify socket."""

    def __init__(self, number: int, command: list[str], environ: dict[str, str], folder: Path, watchdog: float) -> None:
        self.number = number
        self.ready = False
        self.process: asyncio.subprocess.Process | None = None
        self._command = command
        self._watchdog = watchdog
        self._heard = 0.0
        path = folder / f"{number}.sock"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(str(path))
        self._environ = {
            **environ,
            "NOTIFY_SOCKET": str(path),
            "WATCHDOG_USEC": str(int(watchdog * 1_000_000)),
        }
        self._environ.pop("WATCHDOG_PID", None)
        asyncio.get_running_loop().add_reader(self._socket, self._hear)

    def close(self) -> None:
        """Listen no more."""
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()

    async def start(self) -> asyncio.subprocess.Process:
        """Start the process anew."""
        self.ready, self._heard = False, 0.0
        self.process = await asyncio.create_subprocess_exec(
            *self._command,
            env=self._environ,
            stdin=asyncio.subprocess.DEVNULL,
            preexec_fn=_stand_apart,
        )
        return self.process

    def send(self, number: signal.Signals) -> None:
        """Send a signal, if it runs."""
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(number)

    def check(self) -> None:
        """End it when it has been silent for too long."""
        now = asyncio.get_running_loop().time()
        if self._heard and now - self._heard > self._watchdog:
            log.error("worker hangs", number=self.number, silent=round(now - self._heard, 1))
            self._heard = 0.0
            self.send(signal.SIGKILL)

    def _hear(self) -> None:
        while True:
            try:
                told = self._socket.recv(4096)
            except BlockingIOError:
                return
            lines = told.split(b"\n")
            if b"READY=1" in lines:
                self.ready = True
            if b"WATCHDOG=1" in lines:
                self._heard = asyncio.get_running_loop().time()
            if b"STOPPING=1" in lines:
                self._heard = 0.0  # it drains; its own time limit ends it


_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def _stand_apart() -> None:
    """In the new process: Ctrl-C of the terminal comes to the parent alone, whose end is the worker's too."""
    os.setpgid(0, 0)
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def listen_of(settings: Settings, number: int) -> str:
    """Where worker ``number`` (0, 1, ...) listens: each its own port, counted up from ``http.listen``."""
    host, colon, port = settings.http.listen.rpartition(":")
    if not colon or port == "0":
        return settings.http.listen
    wanted = int(port) + number
    if wanted > 65_535:
        raise ConfigError([("http.listen", f"leaves no port for worker {number + 1}")])
    return f"{host}:{wanted}"


async def supervise(settings: Settings, count: int, *, config: Path | None, log_level: str | None) -> int:
    """Run ``count`` workers until SIGTERM or SIGINT; return the exit code."""
    if settings.worker.id != "auto":
        raise ConfigError([("worker.id", 'must be "auto" with --workers: every worker needs a name of its own')])
    command = [sys.executable, "-m", "bridge", "run"]
    command += ["--config", str(config)] if config is not None else []
    command += ["--log-level", log_level] if log_level is not None else []
    manager = ServiceManager()
    watchdog = manager.watchdog or WATCHDOG
    with tempfile.TemporaryDirectory(prefix="esl-bridge-run-") as folder, stop_on_signals() as wish:
        crew = [
            WorkerProcess(
                number,
                command,
                {**os.environ, "ESL_BRIDGE_HTTP__LISTEN": listen_of(settings, number)},
                Path(folder),
                watchdog,
            )
            for number in range(count)
        ]
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, lambda: _pass_on(crew, signal.SIGHUP))
        log.info("workers start", count=count)
        keeping = [asyncio.create_task(_keep(one, wish)) for one in crew]
        watching = asyncio.create_task(_watch(crew, manager))
        await wish.wait()
        watching.cancel()
        manager.stopping(settings.worker.drain_timeout + 10)
        log.info("workers end", count=count)
        _pass_on(crew, signal.SIGTERM)
        impatient = asyncio.create_task(_press(crew, wish))
        codes = await asyncio.gather(*keeping)
        impatient.cancel()
        manager.close()
        for one in crew:
            one.close()
    return max(codes, default=exits.FINE)


def _pass_on(crew: list[WorkerProcess], number: signal.Signals) -> None:
    for one in crew:
        one.send(number)


async def _press(crew: list[WorkerProcess], wish: StopWish) -> None:
    """A second signal is passed on as one: they end at once."""
    await wish.impatient.wait()
    _pass_on(crew, signal.SIGTERM)


async def _keep(one: WorkerProcess, wish: StopWish) -> int:
    """Keep one worker running until the wish to end; its last exit code."""
    loop = asyncio.get_running_loop()
    pause = FIRST_PAUSE
    while True:
        process = await one.start()
        if wish.is_set():
            one.send(signal.SIGTERM)
        began = loop.time()
        code = await process.wait()
        if wish.is_set():
            if code == -signal.SIGTERM and not one.ready:
                return exits.FINE  # it had not even begun
            return code if code >= 0 else 128 - code
        if code in HOPELESS:
            log.error("worker cannot run", number=one.number, code=code)
            wish.set()
            return code
        if loop.time() - began > STABLE_AFTER:
            pause = FIRST_PAUSE
        log.warning("worker died, starts again", number=one.number, code=code, pause=pause)
        try:
            async with asyncio.timeout(pause):
                await wish.wait()
            return exits.FINE
        except TimeoutError:
            pause = min(pause * 2, LONGEST_PAUSE)


async def _watch(crew: list[WorkerProcess], manager: ServiceManager) -> None:
    """Tell the service manager when all are ready, and end those that hang."""
    told = False
    while True:
        ready = sum(one.ready for one in crew)
        if ready == len(crew) and not told:
            told = True
            manager.ready()
            manager.watch()
        manager.status(f"{ready} of {len(crew)} workers run")
        for one in crew:
            one.check()
        await asyncio.sleep(0.2)
