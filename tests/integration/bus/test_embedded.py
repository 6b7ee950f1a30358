from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bridge.bus import embedded
from bridge.bus.embedded import EmbeddedBroker, Kind
from bridge.bus.open import open_bus
from bridge.errors import BusUnavailable, ConfigError


def runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def is_there(folder: str) -> bool:
    return Path(folder).exists()


@pytest.fixture(params=["nats", "redis"])
def kind(request: pytest.FixtureRequest) -> Kind:
    request.getfixturevalue("nats_server" if request.param == "nats" else "valkey_server")
    found: Kind = request.param
    return found


async def test_a_broker_comes_and_goes(kind: Kind) -> None:
    broker = EmbeddedBroker(kind)
    assert broker.pid == 0
    async with broker:
        pid, url = broker.pid, broker.url
        assert runs(pid)
        bus = open_bus(url)
        await bus.connect(5)
        await bus.close()
        folder = broker._temporary or ""
        assert is_there(folder)
        await broker.kill()
        assert not runs(pid)
        await broker.start()
        assert broker.url == url
        pid = broker.pid
    assert not runs(pid)
    assert not is_there(folder)
    await broker.stop()


async def test_two_live_side_by_side(kind: Kind) -> None:
    async with EmbeddedBroker(kind) as one, EmbeddedBroker(kind) as two:
        assert one.url != two.url


async def test_a_taken_port_is_told(kind: Kind) -> None:
    async with EmbeddedBroker(kind) as one:
        with pytest.raises(BusUnavailable, match="did not start"):
            await EmbeddedBroker(kind, port=one.port).start()


async def test_a_wrong_configuration_is_told() -> None:
    with pytest.raises(BusUnavailable, match=r"did not start: .*Parse error"):
        await EmbeddedBroker("nats", config="nonsense: {").start()


async def test_a_missing_wheel_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise embedded.PackageNotFoundError(name)

    monkeypatch.setattr(embedded, "distribution", missing)
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda _name: None)
    for kind in ("nats", "redis"):
        with pytest.raises(ConfigError, match=r"esl-bridge\[demo\]"):
            await EmbeddedBroker(kind).start()  # type: ignore[arg-type]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the child")
async def test_it_is_not_left_behind_when_we_are_killed(kind: Kind) -> None:
    code = (
        "import asyncio\n"
        "from bridge.bus.embedded import EmbeddedBroker\n"
        "async def main():\n"
        f"    broker = EmbeddedBroker({kind!r})\n"
        "    await broker.start()\n"
        "    print(broker.pid, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    assert runs(pid)
    parent.send_signal(signal.SIGKILL)
    await parent.wait()
    for _ in range(500):
        if not runs(pid):
            return
        await asyncio.sleep(0.01)
    pytest.fail("the broker outlived its parent")
