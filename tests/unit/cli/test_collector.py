from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from typing import Any

import pytest

from bridge.cli.run import serve
from bridge.config import Settings

PROGRAM = """
import gc
import bridge.worker
from bridge.cli.collector import spare_what_lasts
before = len(gc.get_objects())
spare_what_lasts()
assert before > 10_000 and gc.get_freeze_count() > before / 2 and len(gc.get_objects()) < before / 10
class Circle: pass
one = Circle(); one.self = one
import weakref
gone = weakref.ref(one)
del one
assert gone() is not None
many = [[] for _ in range(20_000)]
assert gone() is None, "it still runs"
"""


def test_what_exists_is_spared_and_circles_still_go() -> None:
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr


async def test_a_worker_spares_what_lasts_once_it_has_started(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    class Worker:
        def __init__(self, settings: Settings) -> None:
            self.settings = settings
            self.failed: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            self.ready = False

        async def start(self) -> None:
            told.append("started")
            asyncio.get_running_loop().call_later(0.01, os.kill, os.getpid(), signal.SIGTERM)

        async def stop(self) -> None:
            told.append("stopped")

        def readiness(self) -> list[str]:
            return []

    monkeypatch.setattr("bridge.worker.Worker", Worker)
    monkeypatch.setattr("bridge.cli.collector.spare_what_lasts", lambda: told.append("spared"))
    monkeypatch.setattr(sys.modules["bridge.cli.run"], "_tell_readiness", lambda *_: asyncio.sleep(0))
    assert await serve(Settings()) == 0
    assert told == ["started", "spared", "stopped"]
