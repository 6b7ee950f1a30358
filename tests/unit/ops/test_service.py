from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.ops.service import ServiceManager


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield systemd


def told(systemd: socket.socket) -> list[str]:
    found = []
    while True:
        try:
            found.append(systemd.recv(4096).decode())
        except BlockingIOError:
            return found


def test_without_a_service_manager_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    manager = ServiceManager({"WATCHDOG_USEC": "1000"})
    assert not manager.present
    assert manager.watchdog == 0
    manager.ready()
    manager.status("fine")


def test_it_hears_of_every_step(systemd: socket.socket) -> None:
    manager = ServiceManager()
    manager.ready("started")
    manager.status("started")
    manager.status("ready")
    manager.reloading()
    manager.ready()
    manager.stopping(2.0)
    manager.close()
    manager.status("never told")
    ready, status, reloading, again, stopping = told(systemd)
    assert ready == "READY=1\nSTATUS=started"
    assert status == "STATUS=ready"
    assert reloading.startswith("RELOADING=1\nMONOTONIC_USEC=")
    assert again == "READY=1"
    assert stopping.startswith("STOPPING=1\nEXTEND_TIMEOUT_USEC=3000000\n")


@pytest.mark.parametrize(("pid", "watched"), [("", True), ("1", False)])
def test_the_watchdog_of_another_process_is_not_ours(systemd: socket.socket, pid: str, watched: bool) -> None:
    environ = {"NOTIFY_SOCKET": "x", "WATCHDOG_USEC": "3000000", **({"WATCHDOG_PID": pid} if pid else {})}
    manager = ServiceManager(environ)
    assert manager.watchdog == (3.0 if watched else 0.0)
    manager.close()


async def test_signs_of_life_come_from_the_loop_until_the_end(
    systemd: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "30000")
    manager = ServiceManager()
    manager.watch()
    signs = 0
    async with asyncio.timeout(10):
        while signs < 5:
            signs += told(systemd).count("WATCHDOG=1")
            await asyncio.sleep(0.005)
    manager.close()
    told(systemd)
    await asyncio.sleep(0.05)
    assert told(systemd) == []


def test_a_service_manager_that_does_not_read_stops_nobody(systemd: socket.socket) -> None:
    manager = ServiceManager()
    for number in range(5_000):
        manager.status(f"status {number}")
    manager.close()
    assert len(told(systemd)) < 5_000
