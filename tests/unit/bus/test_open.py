from __future__ import annotations

import subprocess
import sys

import pytest

from bridge.bus.base import Bus, DurableTopics
from bridge.bus.memory import MemoryBus
from bridge.bus.nats import NatsBus
from bridge.bus.open import open_bus
from bridge.errors import ConfigError


def test_the_scheme_chooses() -> None:
    bus: Bus = open_bus("memory://somewhere")
    assert isinstance(bus, MemoryBus)
    assert isinstance(bus, DurableTopics)
    nats = open_bus("nats://u:secret@h1,h2:5000", name="worker")
    assert isinstance(nats, NatsBus)
    assert isinstance(nats, DurableTopics)
    assert nats.url == "nats://u:***@h1:4222,h2:5000"
    assert open_bus("redis://h1").url.startswith("redis://h1")


@pytest.mark.parametrize("url", ["", "nats", "localhost:4222", "amqp://u:secret@h", "nats:/u:secret@h", "memory:/"])
def test_other_urls_are_refused_without_their_secrets(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_bus(url)
    assert "secret" not in str(caught.value)
    assert "nats://" in str(caught.value)


def test_drivers_are_imported_when_they_are_asked_for() -> None:
    code = (
        "import sys; from bridge.bus.open import open_bus; open_bus('memory://');"
        "print([name for name in ('nats', 'redis') if name in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_nats_does_not_load_what_it_never_needs():
    code = (
        "import sys; from bridge.bus.open import open_bus; open_bus('nats://127.0.0.1:1'); "
        "assert 'aiohttp' not in sys.modules; import aiohttp; assert aiohttp.ClientSession"
    )
    program = f"import asyncio\nasync def main():\n    {code}\nasyncio.run(main())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
