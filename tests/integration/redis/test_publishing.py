"""Batches to topics and streams on a real server: what is confirmed, what is in doubt, what was never written."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import redis.asyncio

from bridge.bus.base import DurableTopics, Message, Received, StreamSpec
from bridge.bus.embedded import EmbeddedBroker
from bridge.bus.redis import RedisBus
from bridge.errors import BusUnavailable, MessageTooLarge, PublishFailed, PublishWithdrawn
from tests.appending import append_all

pytestmark = pytest.mark.broker

Open = Callable[..., Any]
Eventually = Callable[..., Any]


def batch(queue: str, count: int, size: int = 10) -> list[Message]:
    return [Message(f"{queue}.events.E{n % 3}", b"%d " % n + b"x" * size, id=str(n), type="t") for n in range(count)]


async def test_batches_arrive_once_and_in_order(
    open_redis: Open, valkey_server: EmbeddedBroker, queue: str, eventually: Eventually
) -> None:
    bus, listener = await open_redis(valkey_server.url), await open_redis(valkey_server.url)
    got: list[Received] = []
    await listener.subscribe(f"{queue}.events.*", got.append)
    numbers = [await bus.publish_many(batch(queue, 500, size=2000)) for _ in range(10)]
    assert numbers == list(range(1, 11))
    await bus.flush(10)
    assert bus.confirmed == 10
    await eventually(lambda: len(got) == 5000)
    assert [int(received.payload.split()[0]) for received in got] == list(range(500)) * 10
    assert got[1].topic == f"{queue}.events.E1"


async def test_confirmed_follows_the_servers_replies(
    open_redis: Open, proxy: Any, queue: str, eventually: Eventually
) -> None:
    bus = await open_redis(proxy.url)
    await bus.publish_many(batch(queue, 3))
    await bus.flush(10)
    proxy.hold()
    assert await bus.publish_many(batch(queue, 3)) == 2
    await eventually(lambda: proxy.held)
    assert bus.confirmed == 1
    with pytest.raises(BusUnavailable):
        await bus.flush(0.05)
    proxy.open.set()
    await bus.flush(10)
    assert bus.confirmed == 2


async def test_a_broken_connection_leaves_what_was_not_confirmed_in_doubt(
    open_redis: Open, proxy: Any, queue: str, eventually: Eventually
) -> None:
    bus = await open_redis(proxy.url)
    broken: list[int] = []
    bus.on_broken = lambda: broken.append(bus.confirmed)
    await bus.publish_many(batch(queue, 3))
    await bus.flush(10)
    proxy.hold()
    await bus.publish_many(batch(queue, 3))
    await eventually(lambda: proxy.held)
    proxy.cut()
    proxy.open.set()
    await eventually(lambda: broken == [1])
    await eventually(lambda: bus.connected)
    assert await bus.publish_many(batch(queue, 3)) == 3
    await bus.flush(10)
    assert bus.confirmed == 3
    assert broken == [1]


async def test_publishing_waits_while_too_much_is_unconfirmed(
    open_redis: Open, proxy: Any, queue: str, eventually: Eventually
) -> None:
    bus: RedisBus = await open_redis(proxy.url)
    proxy.hold()
    big = batch(queue, 5, size=1024 * 1024)
    await bus.publish_many(big)
    waiting = asyncio.create_task(bus.publish_many(big))
    await eventually(lambda: proxy.held)
    assert not waiting.done()
    proxy.open.set()
    assert await asyncio.wait_for(waiting, 20) == 2
    await bus.flush(20)


async def test_who_lost_the_right_while_waiting_writes_nothing(
    open_redis: Open, proxy: Any, queue: str, eventually: Eventually
) -> None:
    bus: RedisBus = await open_redis(proxy.url)
    proxy.hold()
    big = batch(queue, 5, size=1024 * 1024)
    await bus.publish_many(big)
    right = True
    waiting = asyncio.create_task(bus.publish_many(big, lambda: right))
    await eventually(lambda: proxy.held)
    right = False
    proxy.open.set()
    with pytest.raises(PublishWithdrawn):
        await asyncio.wait_for(waiting, 20)
    assert await bus.publish_many(batch(queue, 1), lambda: True) == 2, "a number that was not used"


async def test_a_batch_that_waits_when_the_connection_breaks_was_not_written(
    open_redis: Open, proxy: Any, queue: str, eventually: Eventually
) -> None:
    bus: RedisBus = await open_redis(proxy.url)
    proxy.hold()
    big = batch(queue, 5, size=1024 * 1024)
    await bus.publish_many(big)
    waiting = asyncio.create_task(bus.publish_many(big))
    await eventually(lambda: proxy.held)
    proxy.cut()
    proxy.open.set()
    with pytest.raises(BusUnavailable):
        await waiting


async def test_a_batch_that_the_socket_does_not_take_is_in_doubt_when_the_server_dies(
    open_redis: Open, valkey_server: EmbeddedBroker, start_valkey: Any, queue: str, eventually: Eventually
) -> None:
    server = await start_valkey()
    bus: RedisBus = await open_redis(server.url)
    await bus.publish_many(batch(queue, 1))
    await bus.flush(10)
    server.pause()  # its socket fills up
    broken: list[int] = []
    bus.on_broken = lambda: broken.append(bus.confirmed)
    assert await bus.publish_many(batch(queue, 7, size=1024 * 1024)) == 2
    waiting = asyncio.create_task(bus.publish_many(batch(queue, 1)))
    await eventually(lambda: bus._events.outstanding)
    assert not waiting.done()
    await server.kill()
    with pytest.raises(BusUnavailable):
        await waiting
    assert broken == [1]


async def test_a_message_over_the_limit_keeps_the_whole_batch_back(
    open_redis: Open, valkey_server: EmbeddedBroker, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge.bus.redis.publish.MAX_PAYLOAD", 100)
    monkeypatch.setattr("bridge.bus.redis.stream_appender.MAX_PAYLOAD", 100)
    bus: RedisBus = await open_redis(valkey_server.url)
    small, big = Message(f"{queue}.a", b"x" * 100), Message(f"{queue}.a", b"x" * 101)
    with pytest.raises(MessageTooLarge):
        await bus.publish_many([small, big])
    with pytest.raises(MessageTooLarge):
        await append_all(bus, StreamSpec("X", f"{queue}.s"), [small, big])
    assert await bus.publish_many([small]) == 1
    assert bus.message_size(big) == 101


async def test_a_refused_topic_is_told_and_not_confirmed(
    open_redis: Open, valkey_server: EmbeddedBroker, client: redis.asyncio.Redis, queue: str, eventually: Eventually
) -> None:
    user = queue.replace(".", "")
    await client.execute_command("ACL", "SETUSER", user, "on", ">pw", "~*", "+@all", "&allowed.*")
    url = valkey_server.url.replace("redis://", f"redis://{user}:pw@")
    bus: RedisBus = await open_redis(url)
    reasons: list[str] = []
    bus.on_state = lambda state: reasons.append(state.reason)
    await bus.publish_many([Message("allowed.x", b"1")])
    await bus.flush(10)
    await bus.publish_many([Message("allowed.x", b"2"), Message("forbidden.x", b"3")])
    await eventually(lambda: not bus.connected)
    assert bus.confirmed == 1
    await eventually(lambda: any("channel" in reason for reason in reasons))
    await client.execute_command("ACL", "DELUSER", user)


async def test_durable_batches_are_appended_with_their_fields(
    open_redis: Open, valkey_server: EmbeddedBroker, client: redis.asyncio.Redis, queue: str
) -> None:
    bus: RedisBus = await open_redis(valkey_server.url)
    assert isinstance(bus, DurableTopics)
    stream = StreamSpec("FS", f"{queue}.stream", max_messages=1000)
    await bus.ensure_stream(stream)
    message = Message(
        "fs.events.A", b"{}", id="i-1", type="org.x", content_type="application/json", headers=(("h", "ä"),)
    )
    await append_all(bus, stream, [message, Message("fs.events.B", b"2")])
    (_, first), (_, second) = await client.xrange(stream.key)
    assert first == {
        b"topic": b"fs.events.A",
        b"id": b"i-1",
        b"type": b"org.x",
        b"content_type": b"application/json",
        b"h": "ä".encode(),
        b"data": b"{}",
    }
    assert second[b"data"] == b"2"
    await append_all(bus, stream, [])
    for _ in range(5):
        await append_all(bus, stream, batch(queue, 500))
    assert 1000 <= await client.xlen(stream.key) < 1400
    await client.delete(stream.key)


async def test_a_refused_append_says_how_far_it_came(
    open_redis: Open, valkey_server: EmbeddedBroker, client: redis.asyncio.Redis, queue: str
) -> None:
    bus: RedisBus = await open_redis(valkey_server.url)
    await client.set(f"{queue}.stream", "not a stream", ex=60)
    with pytest.raises(PublishFailed, match="WRONGTYPE") as failure:
        await append_all(bus, StreamSpec("X", f"{queue}.stream", max_messages=0), batch(queue, 3))
    assert (failure.value.confirmed, failure.value.uncertain) == (0, 3)
    assert bus.connected


async def test_an_append_that_breaks_off_is_in_doubt(
    open_redis: Open, proxy: Any, client: redis.asyncio.Redis, queue: str, eventually: Eventually
) -> None:
    bus: RedisBus = await open_redis(proxy.url)
    stream = StreamSpec("X", f"{queue}.stream")
    line = bus.appender(stream, lambda: None)
    await line.append(batch(queue, 2))
    await eventually(lambda: line.confirmed == 2)
    proxy.hold()
    await line.append(batch(queue, 3))
    await eventually(lambda: proxy.held)
    proxy.cut()
    await eventually(lambda: line.failure)
    assert (line.confirmed, line.written) == (2, 5)
    assert await client.xlen(stream.key) == 5
    proxy.open.set()
    await client.delete(stream.key)


async def test_a_server_without_memory_takes_no_batch_behind_one_that_it_refused(
    open_redis: Open, start_valkey: Any, eventually: Eventually
) -> None:
    server = await start_valkey()
    bus: RedisBus = await open_redis(server.url)
    stream = StreamSpec("X", "fs.events", max_messages=0)
    async with redis.asyncio.Redis(port=server.port) as client:
        await client.config_set("maxmemory-policy", "noeviction")
        line = bus.appender(stream, lambda: None)
        await line.append([Message("t", b"0")])
        await eventually(lambda: line.confirmed == 1)
        await client.config_set("maxmemory", 1)
        server.pause()
        for number in (1, 2, 3):
            await line.append([Message("t", b"%d" % number)])
        server.resume()
        await eventually(lambda: line.failure)
        assert "OOM" in line.failure
        await client.config_set("maxmemory", 0)
        assert (line.confirmed, line.written) == (1, 4)
        assert [fields[b"data"] for _, fields in await client.xrange("fs.events")] == [b"0"]
        with pytest.raises(BusUnavailable):
            await line.append([Message("t", b"9")])
        await append_all(bus, stream, [Message("t", b"%d" % number) for number in range(1, 4)])
        assert [fields[b"data"] for _, fields in await client.xrange("fs.events")] == [b"0", b"1", b"2", b"3"]


async def test_a_batch_whose_forerunner_did_not_run_does_not_run(
    open_redis: Open, valkey_server: EmbeddedBroker, client: redis.asyncio.Redis, queue: str, eventually: Eventually
) -> None:
    bus: RedisBus = await open_redis(valkey_server.url, worker="w1")
    stream = StreamSpec("X", f"{queue}.s")
    line = bus.appender(stream, lambda: None)
    await line.append([Message("t", b"0")])
    await eventually(lambda: line.confirmed == 1)
    # As if the second had been refused: its number is still in the set when the third comes.
    await client.sadd(f"{{{stream.key}}}.order.w1", 1)
    await line.append([Message("t", b"2")])
    await eventually(lambda: line.failure)
    assert line.confirmed == 1
    assert await client.xlen(stream.key) == 1
    assert 0 < await client.ttl(f"{{{stream.key}}}.order.w1") <= 3600


async def test_without_the_right_to_a_set_batches_go_one_by_one(
    open_redis: Open, valkey_server: EmbeddedBroker, client: redis.asyncio.Redis, queue: str
) -> None:
    user = queue.replace(".", "")
    await client.execute_command("ACL", "SETUSER", user, "on", ">pw", f"~{queue}.s", "+@all", "allchannels")
    bus: RedisBus = await open_redis(valkey_server.url.replace("redis://", f"redis://{user}:pw@"))
    stream = StreamSpec("X", f"{queue}.s")
    line = bus.appender(stream, lambda: None)
    for _ in range(20):
        await line.append(batch(queue, 3))
        assert line.outstanding <= 3
    await line.until(0)
    assert await client.xlen(stream.key) == 60
    await client.execute_command("ACL", "DELUSER", user)


@pytest.mark.parametrize("verb", ["srem", "watch"])
async def test_without_the_right_to_a_command_of_the_chain_batches_go_one_by_one(
    open_redis: Open, valkey_server: EmbeddedBroker, client: redis.asyncio.Redis, queue: str, verb: str
) -> None:
    user = queue.replace(".", "")
    await client.execute_command("ACL", "SETUSER", user, "on", ">pw", "~*", "+@all", f"-{verb}", "allchannels")
    bus: RedisBus = await open_redis(valkey_server.url.replace("redis://", f"redis://{user}:pw@"))
    stream = StreamSpec("X", f"{queue}.s")
    line = bus.appender(stream, lambda: None)
    for _ in range(5):
        await line.append(batch(queue, 3))
    await line.until(0)
    assert await client.xlen(stream.key) == 15
    await client.execute_command("ACL", "DELUSER", user)


async def test_without_the_right_to_a_transaction_nothing_is_appended_again_and_again(
    open_redis: Open, valkey_server: EmbeddedBroker, client: redis.asyncio.Redis, queue: str
) -> None:
    """Behind a refused ``MULTI`` each ``XADD`` would run by itself, and the batch count as not taken."""
    user = queue.replace(".", "")
    await client.execute_command("ACL", "SETUSER", user, "on", ">pw", "~*", "+@all", "allchannels")
    bus: RedisBus = await open_redis(valkey_server.url.replace("redis://", f"redis://{user}:pw@"))
    stream = StreamSpec("X", f"{queue}.s")
    line = bus.appender(stream, lambda: None)
    await line.append(batch(queue, 3))
    await line.until(0)
    await client.execute_command("ACL", "SETUSER", user, "-multi")
    for _ in range(5):
        with pytest.raises(BusUnavailable, match="multi"):
            await bus.appender(stream, lambda: None).append(batch(queue, 3))
    assert await client.xlen(stream.key) == 3
    await client.execute_command("ACL", "SETUSER", user, "+multi")
    await append_all(bus, stream, batch(queue, 3))
    assert await client.xlen(stream.key) == 6
    await client.execute_command("ACL", "DELUSER", user)


async def test_the_set_of_numbers_is_filled_again(
    open_redis: Open, valkey_server: EmbeddedBroker, client: redis.asyncio.Redis, queue: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("bridge.bus.redis.stream_appender._NUMBERS", 3)
    bus: RedisBus = await open_redis(valkey_server.url)
    stream = StreamSpec("X", f"{queue}.s")
    line = bus.appender(stream, lambda: None)
    for number in range(10):
        await line.append([Message("t", b"%d" % number)])
    await line.until(0)
    assert [int(fields[b"data"]) for _, fields in await client.xrange(stream.key)] == list(range(10))
