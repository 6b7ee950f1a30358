"""Operations that wait, and those that are written again because they certainly did not run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from bridge.bus.redis import writers as room
from bridge.bus.redis.address import RedisUrl
from bridge.bus.redis.link import Operation
from bridge.bus.redis.servers import servers_for
from bridge.bus.redis.wire import Reply, WireOptions, command
from bridge.bus.redis.writers import Writers
from bridge.errors import BusUnavailable

Eventually = Callable[..., Any]


@pytest.fixture
async def writers(server: Any, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Writers]:
    monkeypatch.setattr(room, "_RETRY_AFTER", 0.01)
    url = RedisUrl.parse(f"redis://{server.host}")
    found = Writers(servers_for(url, WireOptions(connect_timeout=1)), pulse=5, patience=5)
    yield found
    await found.close()


def operation(told: list[Any], *, waits: bool, name: bytes = b"x") -> Operation:
    def done(replies: list[Reply], error: Exception | None) -> None:
        told.append(error or replies)

    return Operation(command(b"ECHO", name), 1, done, key=b"k", waits=waits)


async def test_what_may_wait_waits_and_the_rest_is_told(writers: Writers, server: Any, eventually: Eventually) -> None:
    told: list[Any] = []
    writers.submit(operation(told, waits=False))
    assert isinstance(told[0], BusUnavailable)
    writers.submit(operation(told, waits=True))
    assert writers.outstanding == 1
    writers.start()
    await eventually(lambda: told[1:] == [[b"OK"]])
    assert len(server.commands) == 1


async def test_what_waits_when_we_close_is_told(server: Any) -> None:
    url = RedisUrl.parse("redis://127.0.0.1:1")
    writers = Writers(servers_for(url, WireOptions()), pulse=5, patience=5)
    writers.start()
    told: list[Any] = []
    writers.submit(operation(told, waits=True))
    await writers.close()
    assert isinstance(told[0], BusUnavailable)
    writers.submit(operation(told, waits=True))
    assert isinstance(told[1], BusUnavailable)


async def test_too_much_does_not_wait(writers: Writers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_MAX_WAITING", 3)
    told: list[Any] = []
    for _ in range(5):
        writers.submit(operation(told, waits=True))
    assert len(told) == 2


@pytest.mark.parametrize(
    "error", [b"-TRYAGAIN later\r\n", b"-CLUSTERDOWN no\r\n", b"-LOADING data\r\n", b"-READONLY\r\n"]
)
async def test_what_certainly_did_not_run_is_written_again(
    writers: Writers, server: Any, error: bytes, eventually: Eventually
) -> None:
    answers = iter([error, error])
    server.script = lambda command: next(answers, b"+done\r\n")
    writers.start()
    await eventually(lambda: writers.connected)
    told: list[Any] = []
    writers.submit(operation(told, waits=True))
    await eventually(lambda: told == [[b"done"]])
    assert len(server.commands) == 3
    # A server that is no longer the master is left.
    assert (server.connections > 1) == (error in (b"-LOADING data\r\n", b"-READONLY\r\n"))


async def test_other_errors_are_replies(writers: Writers, server: Any, eventually: Eventually) -> None:
    server.script = lambda command: b"-WRONGTYPE no\r\n"
    writers.start()
    await eventually(lambda: writers.connected)
    told: list[Any] = []
    writers.submit(operation(told, waits=True))
    await eventually(lambda: told)
    assert told[0][0].code == "WRONGTYPE"
    assert len(server.commands) == 1


async def test_settle_waits_for_replies(writers: Writers, server: Any, eventually: Eventually) -> None:
    writers.start()
    await eventually(lambda: writers.connected)
    told: list[Any] = []
    for _ in range(3):
        writers.submit(operation(told, waits=True))
    await writers.settle(5)
    assert len(told) == 3
    server.script = server.greet = lambda command: None
    writers.submit(operation(told, waits=True))
    await writers.settle(0.02)
    assert len(told) == 3
