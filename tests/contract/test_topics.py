"""What every bus promises about topics."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from bridge.bus.base import BusState, DurableTopics, Message, Received, StreamSpec
from bridge.errors import BusUnavailable, MessageTooLarge
from tests.appending import append_all

Eventually = Callable[..., Any]


def messages(topic: str, count: int, start: int = 0) -> list[Message]:
    return [
        Message(topic, f"payload {number}".encode(), f"core:{number}", "org.freeswitch.TEST", "application/json")
        for number in range(start, start + count)
    ]


async def test_a_batch_arrives_whole_and_in_order(station: Any, eventually: Eventually) -> None:
    publisher, listener = await station.open(), await station.open()
    got: list[Received] = []
    await listener.subscribe(f"{station.prefix}.events.*", got.append)
    batch = messages(f"{station.prefix}.events.A", 50) + messages(f"{station.prefix}.events.B", 50, 50)
    await publisher.publish_many(batch)
    await eventually(lambda: len(got) == 100)
    assert [(it.topic, it.payload) for it in got] == [(it.topic, it.payload) for it in batch]


async def test_batches_keep_their_order(station: Any, eventually: Eventually) -> None:
    publisher, listener = await station.open(), await station.open()
    got: list[bytes] = []
    await listener.subscribe(f"{station.prefix}.events.A", lambda received: got.append(received.payload))
    for start in range(0, 300, 3):
        await publisher.publish_many(messages(f"{station.prefix}.events.A", 3, start))
    await eventually(lambda: len(got) == 300)
    assert got == [f"payload {number}".encode() for number in range(300)]


async def test_payloads_are_opaque(station: Any, eventually: Eventually) -> None:
    publisher, listener = await station.open(), await station.open()
    got: list[bytes] = []
    await listener.subscribe(f"{station.prefix}.raw", lambda received: got.append(received.payload))
    payloads = [b"", b"\r\n", b"MSG a 1 5\r\n", bytes(range(256)), b"x" * 300_000]
    await publisher.publish_many([Message(f"{station.prefix}.raw", payload) for payload in payloads])
    await eventually(lambda: len(got) == len(payloads))
    assert got == payloads


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("events.*", {"events.HEARTBEAT", "events.CHANNEL_CREATE", "events.CUSTOM:sofia::register"}),
        ("events.CHANNEL_*", {"events.CHANNEL_CREATE"}),
        ("events.HEARTBEAT", {"events.HEARTBEAT"}),
    ],
)
async def test_patterns(station: Any, eventually: Eventually, pattern: str, expected: set[str]) -> None:
    bus = await station.open()
    got: set[str] = set()
    everything: list[str] = []
    start = len(station.prefix) + 1
    await bus.subscribe(f"{station.prefix}.{pattern}", lambda received: got.add(received.topic[start:]))
    await bus.subscribe(f"{station.prefix}.end", lambda received: everything.append(received.topic))
    topics = ["events.HEARTBEAT", "events.CHANNEL_CREATE", "events.CUSTOM:sofia::register", "other.HEARTBEAT", "end"]
    await bus.publish_many([Message(f"{station.prefix}.{topic}", b"x") for topic in topics])
    await eventually(lambda: everything and got >= expected)
    assert got == expected


async def test_a_closed_listener_gets_nothing(station: Any, eventually: Eventually) -> None:
    bus = await station.open()
    first: list[Received] = []
    second: list[Received] = []
    subscription = await bus.subscribe(f"{station.prefix}.a", first.append)
    await bus.subscribe(f"{station.prefix}.a", second.append)
    await bus.publish_many(messages(f"{station.prefix}.a", 1))
    await eventually(lambda: first and second)
    await subscription.close()
    await bus.publish_many(messages(f"{station.prefix}.a", 1))
    await eventually(lambda: len(second) == 2)
    assert len(first) == 1


async def test_batches_are_numbered_and_confirmed(station: Any, eventually: Eventually) -> None:
    bus = await station.open()
    assert bus.confirmed == 0
    assert [await bus.publish_many(messages(f"{station.prefix}.a", 2)) for _ in range(3)] == [1, 2, 3]
    await bus.flush(10)
    assert bus.confirmed == 3
    await bus.publish_many(messages(f"{station.prefix}.a", 2))
    # Confirmed without being asked.
    await eventually(lambda: bus.confirmed == 4)


async def test_what_is_too_large_is_refused_before_anything_is_written(station: Any, eventually: Eventually) -> None:
    bus = await station.open()
    if bus.max_payload > 32 << 20:
        pytest.skip("this broker's limit is too high to be tried")
    got: list[bytes] = []
    await bus.subscribe(f"{station.prefix}.a", lambda received: got.append(received.payload))
    large = Message(f"{station.prefix}.a", b"x" * bus.max_payload, "an id", "", "application/json")
    large.payload = b"x" * (2 * bus.max_payload - bus.message_size(large))
    assert bus.message_size(large) == bus.max_payload
    await bus.publish_many([large])
    larger = Message(large.topic, large.payload + b"x", large.id, "", large.content_type)
    with pytest.raises(MessageTooLarge):
        await bus.publish_many([Message(large.topic, b"small"), larger])
    await bus.publish_many([Message(large.topic, b"end")])
    await eventually(lambda: b"end" in got)
    assert [len(payload) for payload in got] == [len(large.payload), 3]


async def test_without_a_broker_nothing_is_written(station: Any) -> None:
    bus = station.new(station.absent_url)
    states: list[BusState] = []
    bus.on_state = states.append
    bus.start()
    assert not bus.connected
    with pytest.raises(BusUnavailable):
        await bus.publish_many(messages(f"{station.prefix}.a", 1))
    with pytest.raises(BusUnavailable):
        await bus.request(station.queue, b"{}", "application/json", lambda _payload, _type: None)
    bus.send(f"{station.prefix}.reply.1", b"waits", "application/json")


async def test_connect_says_that_the_broker_is_absent(station: Any) -> None:
    with pytest.raises(BusUnavailable):
        await station.new(station.absent_url).connect(5)


async def test_listeners_may_come_before_the_connection(station: Any, eventually: Eventually) -> None:
    bus = station.new()
    got: list[Received] = []
    await bus.subscribe(f"{station.prefix}.early", got.append)
    bus.start()
    await eventually(lambda: bus.connected)
    await bus.publish_many(messages(f"{station.prefix}.early", 1))
    await eventually(lambda: got)


async def test_states_are_told_and_close_may_be_called_twice(station: Any, eventually: Eventually) -> None:
    bus = station.new()
    states: list[BusState] = []
    bus.on_state = states.append
    bus.start()
    await eventually(lambda: bus.connected)
    await bus.close()
    await bus.close()
    assert [state.connected for state in states].count(True) == 1
    assert not bus.connected


async def test_close_flushes(station: Any, eventually: Eventually) -> None:
    publisher, listener = await station.open(), await station.open()
    got: list[Received] = []
    await listener.subscribe(f"{station.prefix}.last", got.append)
    await publisher.publish_many(messages(f"{station.prefix}.last", 1000))
    await publisher.close()
    await eventually(lambda: len(got) == 1000)


async def test_the_url_shows_no_secret(station: Any) -> None:
    if station.kind == "memory":
        pytest.skip("has no secrets")
    scheme, _, rest = station.absent_url.partition("://")
    bus = station.new(f"{scheme}://bob:pass-word@{rest}")
    bus.start()
    assert "pass-word" not in bus.url
    assert re.search(r"127\.0\.0\.1", bus.url)


async def test_durable_topics_take_batches(station: Any) -> None:
    bus = await station.open()
    assert isinstance(bus, DurableTopics)
    stream = StreamSpec(f"{station.prefix}", f"{station.prefix}.stream", (f"{station.prefix}.durable.>",))
    await bus.ensure_stream(stream)
    await bus.ensure_stream(stream)
    await append_all(bus, stream, messages(f"{station.prefix}.durable.A", 100))
    await append_all(bus, stream, messages(f"{station.prefix}.durable.A", 100))
