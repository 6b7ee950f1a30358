"""What several kinds of tests share: real brokers from their wheels, and what to do when one cannot be had."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import NoReturn

import pytest

from bridge.bus.embedded import EmbeddedBroker, Kind
from bridge.cli.loop import loop_factory
from bridge.errors import BusError, ConfigError


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Tests run on the loop that workers run on: asyncio's own forgives what uvloop does not."""
    return {"as in production": loop_factory() or asyncio.new_event_loop}


def unavailable(reason: str) -> NoReturn:
    """Skip loudly; in CI a missing server is a failure."""
    if os.environ.get("CI"):
        pytest.fail(f"in CI every server must be there: {reason}")
    pytest.skip(reason)


@contextlib.contextmanager
def background_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop in a thread of its own: what is started there outlives the loops of single tests."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def broker(kind: Kind) -> Iterator[EmbeddedBroker]:
    server = EmbeddedBroker(kind)
    with background_loop() as loop:
        try:
            asyncio.run_coroutine_threadsafe(server.start(), loop).result()
        except (ConfigError, BusError, OSError) as error:
            unavailable(f"no {kind} server: {error}")
        yield server
        asyncio.run_coroutine_threadsafe(server.stop(), loop).result()


@pytest.fixture(scope="session")
def nats_server() -> Iterator[EmbeddedBroker]:
    """One nats-server with JetStream for the whole run; use names of your own."""
    yield from broker("nats")


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[EmbeddedBroker]:
    """One Valkey for the whole run; use names of your own."""
    yield from broker("redis")
