from __future__ import annotations

import asyncio

import pytest

from bridge.bus.base import BusState, Message, StreamSpec
from bridge.bus.memory import MemoryBus
from bridge.errors import BusUnavailable, ConfigError, MessageTooLarge
from tests.appending import append_all


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_names_are_brokers() -> None:
    one, same, other = MemoryBus("memory://a"), MemoryBus("memory://a"), MemoryBus("memory://b")
    assert one.broker is same.broker
    assert one.broker is not other.broker


async def test_outages_can_be_played() -> None:
    bus = MemoryBus("memory://outage")
    states: list[BusState] = []
    broken: list[int] = []
    bus.on_state = states.append
    bus.on_broken = lambda: broken.append(bus.confirmed)
    await bus.connect(1)
    await bus.publish_many([Message("a", b"x")])
    bus.broker.stop()  # before the confirmation could come
    await turns()
    assert broken == [0]
    with pytest.raises(BusUnavailable):
        await bus.publish_many([Message("a", b"x")])
    got: list[bytes] = []
    await bus.subscribe("reply", lambda received: got.append(received.payload))
    bus.send("reply", b"waits", "")
    bus.broker.start()
    await turns()
    assert got == [b"waits"]
    assert [state.connected for state in states] == [True, False, True]


async def test_streams_keep_one_of_each_id() -> None:
    bus = MemoryBus("memory://streams")
    await bus.connect(1)
    stream = StreamSpec("S", "s")
    await append_all(bus, stream, [Message("a", b"1", "one"), Message("a", b"2", "two")])
    await append_all(bus, stream, [Message("a", b"2", "two"), Message("a", b"3"), Message("a", b"3")])
    assert [message.payload for message in bus.broker.streams["S"]] == [b"1", b"2", b"3", b"3"]


async def test_limits() -> None:
    bus = MemoryBus("memory://limits")
    bus.broker.max_payload = 10
    await bus.connect(1)
    with pytest.raises(MessageTooLarge):
        await bus.publish_many([Message("a", b"x" * 11)])
    with pytest.raises(MessageTooLarge):
        bus.send("a", b"x" * 11, "")
    with pytest.raises(ConfigError):
        MemoryBus("memory")
