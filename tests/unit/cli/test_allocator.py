from __future__ import annotations

import os
import platform
import subprocess
import sys
from typing import Any

import pytest

from bridge.cli.allocator import KEPT, LARGE, keep_heap
from bridge.cli.run import serve
from bridge.config import Settings

# Blocks as a read, its messages and their rendering are; each round gives back more than glibc would keep.
PROGRAM = """
import resource, sys
from bridge.cli.allocator import LARGE, keep_heap
kept = keep_heap() if "keep" in sys.argv else None
def round():
    blocks = [bytes([1]) * (LARGE * 3 // 4) for _ in range(8)]
for _ in range(3):
    round()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    round()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
GLIBC = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library keeps what it likes")


def run_program(*words: str, **environ: str) -> tuple[str, int]:
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words], env={**os.environ, **environ}, capture_output=True, text=True,
        timeout=60, check=True,
    )  # fmt: skip
    kept, faults = ended.stdout.split()
    return kept, int(faults)


@GLIBC
def test_blocks_that_come_and_go_fault_no_page_twice() -> None:
    kept, faults = run_program("keep")
    assert kept == "True"
    _, usual = run_program()
    assert faults < usual / 10, (faults, usual)


@GLIBC
def test_more_than_is_kept_goes_back() -> None:
    program = f"""
import os
from bridge.cli.allocator import KEPT, LARGE, keep_heap
keep_heap()
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGESIZE")
before = resident()
blocks = [bytes([1]) * (LARGE // 2) for _ in range(200)]
assert resident() - before > 90 << 20
del blocks
assert resident() - before < {KEPT} + (4 << 20), resident() - before
large = [bytes([1]) * (2 * LARGE) for _ in range(20)]
del large[10:], large[:5]
assert resident() - before < {KEPT} + (14 << 20), resident() - before
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"])
def test_what_the_operator_has_set_is_left_alone(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "glibc.malloc.trim_threshold=131072")
    assert keep_heap() is False


def test_without_the_setting_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    assert keep_heap() is False


async def test_a_worker_keeps_its_heap_from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    class Worker:
        def __init__(self, settings: Settings) -> None:
            told.append("made")
            raise LookupError

    monkeypatch.setattr("bridge.cli.allocator.keep_heap", lambda: told.append("kept"))
    monkeypatch.setattr("bridge.worker.Worker", Worker)
    settings: Any = Settings.model_validate({"bus": {"url": "memory://"}})
    with pytest.raises(LookupError):
        await serve(settings)
    assert told == ["kept", "made"]
    assert LARGE < KEPT
