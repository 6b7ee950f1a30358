"""Patterns as globs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from bridge.bus.base import Received
from bridge.bus.redis.link import Backoff, Link
from bridge.bus.redis.topics import Topics, glob_of
from bridge.bus.redis.wire import WireOptions, open_wire
from bridge.errors import BusRefused

Eventually = Callable[..., Any]


@pytest.mark.parametrize(
    ("pattern", "glob"),
    [
        ("fs.events.*", "fs.events.*"),
        ("fs.>", "fs.*"),
        (">", "*"),
        ("fs.events.CHANNEL_*", "fs.events.CHANNEL_*"),
        ("a>b", "a>b"),
        ("what?[x]\\", "what\\?\\[x\\]\\\\"),
    ],
)
def test_globs(pattern: str, glob: str) -> None:
    assert glob_of(pattern) == glob


def push(*parts: bytes) -> bytes:
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)


@pytest.fixture
async def topics(server: Any) -> AsyncIterator[Topics]:
    server.script = lambda command: push(command[0].lower(), command[1], b"1")
    link = Link(lambda: open_wire(server.host, WireOptions(connect_timeout=0.2)), pulse=0.02, pushes=True)
    link._backoff = Backoff(0.001, 0.01)
    yield Topics(link)
    await link.close()


async def test_one_subscription_at_the_server_for_each_pattern(
    topics: Topics, server: Any, eventually: Eventually
) -> None:
    first: list[Received] = []
    second: list[Received] = []
    one = await topics.add("a.*", first.append)
    two = await topics.add("a.*", second.append)
    assert server.commands == [[b"PSUBSCRIBE", b"a.*"]]
    server.say(push(b"pmessage", b"a.*", b"a.b", b"1") + push(b"pmessage", b"a.*", b"a.b.c", b"not ours: two tokens"))
    await eventually(lambda: first and second)
    await one.close()
    server.say(push(b"pmessage", b"a.*", b"a.b", b"2"))
    await eventually(lambda: len(second) == 2)
    assert [received.payload for received in first] == [b"1"]
    await two.close()
    await two.close()
    await eventually(lambda: server.commands[-1] == [b"PUNSUBSCRIBE", b"a.*"])


async def test_subscriptions_come_back_by_themselves(topics: Topics, server: Any, eventually: Eventually) -> None:
    got: list[Received] = []
    await topics.add("a.*", got.append)
    await topics.add("b.>", got.append)
    server.cut()
    await eventually(lambda: server.commands[2:] == [[b"PSUBSCRIBE", b"a.*"], [b"PSUBSCRIBE", b"b.*"]])
    server.say(push(b"pmessage", b"b.*", b"b.c.d", b"x"))
    await eventually(lambda: got)


async def test_a_connection_that_owes_an_answer_is_left(
    topics: Topics, server: Any, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge.bus.redis.topics._GRACE", 0.05)
    await topics.add("a.*", lambda received: None)
    pings: list[bytes] = []
    server.greet = lambda command: pings.append(command[0])
    await eventually(lambda: server.connections == 2)
    assert pings[0] == b"PING"
    del server.greet
    await eventually(lambda: topics.connected)


async def test_a_refused_pattern_is_told_to_who_asked(topics: Topics, server: Any) -> None:
    good = server.script
    await topics.add("a.*", lambda received: None)
    server.script = lambda command: b"-NOPERM No permissions to access a channel\r\n"
    with pytest.raises(BusRefused, match=r"b\.\*"):
        await topics.add("b.*", lambda received: None)
    server.script = good
    await topics.add("c.*", lambda received: None)
    assert server.connections == 1


async def test_a_failing_handler_does_not_cost_the_others(topics: Topics, server: Any, eventually: Eventually) -> None:
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))
    got: list[Received] = []

    def fail(received: Received) -> None:
        raise ValueError("a fault of ours")

    await topics.add("a.*", fail)
    await topics.add("a.*", got.append)
    server.say(push(b"pmessage", b"a.*", b"a.b", b"1"))
    await eventually(lambda: got and told)
    assert server.connections == 1
