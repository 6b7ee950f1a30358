"""``esl-bridge reload``: the workers of this machine take a changed configuration over.

This room checks the file, finds the workers by their lock files, sends SIGHUP and prints what they say.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from bridge.cli import exits
from bridge.cli.options import ConfigOption


class Running(NamedTuple):
    """A worker that holds its lock: where, its process, and how often it has reloaded."""

    path: Path
    pid: int
    reloads: int
    told: dict[str, Any]


def reload(
    config: ConfigOption = None,
    wait: Annotated[
        float, typer.Option(help="Longest wait for the workers' answers, in seconds.", min=0, metavar="SECONDS")
    ] = 30.0,
) -> None:
    """Have the workers of this machine take a changed configuration over, without dropping what did not change.

    A configuration that is wrong is told here and reaches no worker. Workers are found in worker.state_dir; where they
    cannot be (another user, a container), send them SIGHUP: it does the same.

    [bold]Examples[/bold]

    \b
      esl-bridge reload
      esl-bridge reload -c /etc/esl-bridge/bridge.toml
    """
    from bridge.config import load_settings
    from bridge.wiring import rehearse

    settings = load_settings(config)
    rehearse(settings)
    folder = Path(settings.worker.state_dir)
    workers = find_workers(folder)
    if not workers:
        print(f"esl-bridge: no worker runs with worker.state_dir {folder}", file=sys.stderr)
        raise typer.Exit(exits.UNREACHABLE)
    code = exits.FINE
    for worker in workers:
        try:
            os.kill(worker.pid, signal.SIGHUP)
        except PermissionError:
            print(f"esl-bridge: worker {worker.pid} belongs to another user", file=sys.stderr)
            code = exits.UNREACHABLE
    deadline = time.monotonic() + wait
    for worker in workers:
        answer = _answer(worker, deadline)
        code = max(code, _print(worker, answer))
    raise typer.Exit(code)


def find_workers(folder: Path) -> list[Running]:
    """The workers that hold a lock in this folder."""
    found = []
    for path in sorted(folder.glob("*.lock")):
        try:
            with path.open("r", encoding="utf-8") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except OSError:
                    running = _read(path, file.read())
                    if running is not None:
                        found.append(running)
        except OSError:
            continue
    return found


def _read(path: Path, text: str) -> Running | None:
    pid, _, rest = text.partition("\n")
    if not pid.strip().isdigit():
        return None
    told: dict[str, Any] = {}
    if rest.strip():
        try:
            told = json.loads(rest)
        except ValueError:
            return None  # it is being written
    return Running(path, int(pid), told.get("reloads", 0), told)


def _answer(worker: Running, deadline: float) -> dict[str, Any] | None:
    while True:
        now = _read(worker.path, worker.path.read_text("utf-8")) if worker.path.exists() else None
        if now is not None and now.pid == worker.pid and now.reloads > worker.reloads:
            return now.told
        if time.monotonic() > deadline:
            return None
        time.sleep(0.05)


def _print(worker: Running, told: dict[str, Any] | None) -> int:
    name = worker.path.stem
    if told is None:
        print(f"{name} (pid {worker.pid}): no answer yet, its log will tell", file=sys.stderr)
        return exits.UNREACHABLE
    if told.get("problems"):
        print(f"{name} (pid {worker.pid}): refused, nothing changed", file=sys.stderr)
        for text in told["problems"]:
            print(f"  {text}", file=sys.stderr)
        return exits.WRONG_CONFIGURATION
    changes, restart = told.get("changes", []), told.get("restart", [])
    print(f"{name} (pid {worker.pid}): {len(changes)} change{'' if len(changes) == 1 else 's'}")
    for text in changes:
        print(f"  {text}")
    for text in restart:
        print(f"  after a restart: {text}")
    return exits.FINE
