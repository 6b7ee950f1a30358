"""Who this worker is: a name that is stable over restarts, held by a lock file, and a name for this one run.

This room never asks the bus; that a name is unique among hosts is the operator's or the host name's business.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import socket
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from bridge.errors import ConfigError

# So many workers of one host can share a state directory.
MAX_WORKERS = 1_000


class Identity:
    """The name of a worker (``id``), of this run (``instance``) and its folder (``state_dir``).

    The lock is held until ``release`` or the end of the process.
    """

    def __init__(
        self, id: str, state_dir: Path, lock: IO[str], temporary: tempfile.TemporaryDirectory[str] | None
    ) -> None:
        self.id = id
        self.instance = f"{id}.{secrets.token_hex(4)}"
        self.state_dir = state_dir
        self._lock = lock
        self._reloads = 0
        self._temporary = temporary

    @property
    def temporary(self) -> bool:
        """Whether the state directory goes with this process."""
        return self._temporary is not None

    def note_reload(self, told: Mapping[str, object]) -> None:
        """Leave word of a reload beside the process id, for ``esl-bridge reload``."""
        self._reloads += 1
        self._lock.seek(0)
        self._lock.truncate()
        # One write: a reader sees all of it or finds it unreadable and looks again.
        self._lock.write(f"{os.getpid()}\n{json.dumps({'reloads': self._reloads, **told})}\n")
        self._lock.flush()

    def release(self) -> None:
        """Give the name and a temporary folder back."""
        self._lock.close()
        if self._temporary is not None:
            self._temporary.cleanup()
            self._temporary = None


def take_identity(id: str, state_dir: str, *, durable: bool = False) -> Identity:
    """Take a worker's name: ``id`` itself, or for ``"auto"`` the host name and the first free number.

    ``state_dir`` is made when it is not there; where it is not writable a temporary one serves, unless ``durable``
    says that something must outlive this process. Raises ``ConfigError`` naming ``worker.state_dir`` or
    ``worker.id``.
    """
    folder, temporary = _open_folder(state_dir, durable)
    if id != "auto":
        lock = _try_lock(folder / f"{id}.lock")
        if lock is None:
            raise ConfigError([("worker.id", f"{id!r} is held by another worker on this host ({folder})")])
        return Identity(id, folder, lock, temporary)
    host = re.sub(r"[^A-Za-z0-9_-]", "-", socket.gethostname().partition(".")[0]) or "worker"
    for number in range(1, MAX_WORKERS + 1):
        lock = _try_lock(folder / f"worker-{number}.lock")
        if lock is not None:
            # Without a lasting folder the number says nothing beyond this process, so its pid does.
            name = f"{host}-{number}" if temporary is None else f"{host}-{os.getpid()}"
            return Identity(name, folder, lock, temporary)
    raise ConfigError([("worker.state_dir", f"{MAX_WORKERS} workers already hold a number in {folder}")])


def _open_folder(state_dir: str, durable: bool) -> tuple[Path, tempfile.TemporaryDirectory[str] | None]:
    folder = Path(state_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(f"no right to write in {folder}")
    except OSError as error:
        if durable:
            raise ConfigError(
                [("worker.state_dir", f"{error.strerror or error}: a durable delivery needs it")]
            ) from None
        temporary = tempfile.TemporaryDirectory(prefix="esl-bridge-")
        return Path(temporary.name), temporary
    return folder, None


def _try_lock(path: Path) -> IO[str] | None:
    lock = path.open("a+", encoding="utf-8")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        return None
    lock.truncate(0)
    lock.write(f"{os.getpid()}\n")
    lock.flush()
    return lock
