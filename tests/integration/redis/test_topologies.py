"""A Cluster of three masters, and a service that Sentinels watch over."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import redis.asyncio

from bridge.bus.base import Message, Received, StreamSpec
from bridge.bus.embedded import EmbeddedBroker
from bridge.bus.redis import RedisBus
from bridge.bus.redis.servers import key_slot
from tests.appending import append_all
from tests.integration.redis.conftest import ask, free_port, url_of

pytestmark = pytest.mark.broker

Open = Callable[..., Any]
Eventually = Callable[..., Any]


@pytest.mark.parametrize("queue_type", ["stream", "list"])
async def test_a_cluster_does_everything(
    cluster: list[EmbeddedBroker], open_redis: Open, queue_type: str, eventually: Eventually
) -> None:
    worker: RedisBus = await open_redis(url_of(cluster), queue_type=queue_type, worker="w")
    # One seed that is gone must not matter.
    caller: RedisBus = await open_redis(
        "redis+cluster://127.0.0.1:1," + url_of(cluster[1:])[16:], queue_type=queue_type
    )
    heard: list[Received] = []
    await caller.subscribe("fs.events.*", heard.append)
    await worker.publish_many([Message(f"fs.events.E{n}", b"%d" % n) for n in range(50)])
    await eventually(lambda: len(heard) == 50)
    queues = ["esl.cmd", "esl.cmd.fs2", "esl.cmd.fs8"]
    assert {min(key_slot(name.encode()) // 5461, 2) for name in queues} == {0, 1, 2}
    for name in queues:
        await worker.consume(name, lambda delivery: delivery.finish(delivery.payload.decode(), b"done", ""))
    answers: list[bytes] = []
    for name in queues * 3:
        address = caller.new_reply_address()
        await caller.request(
            name, address.encode(), "", lambda payload, kind: answers.append(payload), reply_to=address
        )
    await eventually(lambda: len(answers) == len(queues) * 3)
    foreign = "esl.reply.somewhere.else"
    await caller.request(
        "esl.cmd", foreign.encode(), "", lambda payload, kind: answers.append(b"foreign"), reply_to=foreign
    )
    await eventually(lambda: b"foreign" in answers)
    for key in ("fs.events", "fs.calls"):
        stream = StreamSpec("X", key)
        await worker.ensure_stream(stream)
        await eventually(lambda key=key: worker._stream_link(key.encode()).connected)
        await append_all(worker, stream, [Message("fs.events.A", b"1")])


async def swapped(bus: RedisBus, key: str, value: bytes) -> tuple[bool, bytes]:
    answer: asyncio.Future[tuple[bool, bytes]] = asyncio.get_running_loop().create_future()

    def done(written: bool, found: Any, error: Any) -> None:
        answer.set_exception(error) if error else answer.set_result((written, found.value))

    bus.records.swap(key, value, None, 60.0, done)
    return await asyncio.wait_for(answer, 10)


async def test_a_cluster_keeps_the_ledger(cluster: list[EmbeddedBroker], open_redis: Open) -> None:
    one, two = await open_redis(url_of(cluster)), await open_redis(url_of(cluster))
    for bus in (one, two):
        await bus.records.open(60.0, 5.0)
    first = await asyncio.gather(*(swapped(one, f"id{n}", b"one") for n in range(60)))
    second = await asyncio.gather(*(swapped(two, f"id{n}", b"two") for n in range(60)))
    assert (set(first), set(second)) == ({(True, b"one")}, {(False, b"one")})
    assert all([await ask(node, "DBSIZE") for node in cluster])


async def test_a_user_with_just_enough_rights_is_enough_for_the_ledger(start_valkey: Any, open_redis: Open) -> None:
    server = await start_valkey("user esl on >pw ~esl.* ~{esl.* &* +@all -@admin\nuser default on >other ~* &* +@all")
    bus: RedisBus = await open_redis(f"redis://esl:pw@127.0.0.1:{server.port}")
    await bus.records.open(60.0, 5.0)
    assert await swapped(bus, "a", b"x") == (True, b"x")


async def test_a_slot_that_moves_is_followed(
    cluster: list[EmbeddedBroker], open_redis: Open, eventually: Eventually
) -> None:
    bus: RedisBus = await open_redis(url_of(cluster), worker="w")
    await bus.consume("esl.cmd", lambda delivery: delivery.finish(delivery.payload.decode(), b"done", ""))
    answers: list[bytes] = []

    async def call() -> None:
        address = bus.new_reply_address()
        count = len(answers)
        await bus.request(
            "esl.cmd", address.encode(), "", lambda payload, kind: answers.append(payload), reply_to=address
        )
        await eventually(lambda: len(answers) == count + 1)

    await call()
    slot = key_slot(b"esl.cmd")
    owner = cluster[min(slot // 5461, 2)]
    heir = cluster[(cluster.index(owner) + 1) % 3]
    identity = (await ask(heir, "CLUSTER MYID")).decode()
    await ask(heir, "CLUSTER SETSLOT", slot, "IMPORTING", (await ask(owner, "CLUSTER MYID")).decode())
    await ask(owner, "CLUSTER SETSLOT", slot, "MIGRATING", identity)
    keys = await ask(owner, "CLUSTER GETKEYSINSLOT", slot, 100)
    await ask(owner, "MIGRATE", "127.0.0.1", heir.port, "", 0, 5000, "KEYS", *keys)
    for node in (heir, owner, *cluster):
        await ask(node, "CLUSTER SETSLOT", slot, "NODE", identity)
    await call()
    await call()
    assert await ask(heir, "XLEN", "esl.cmd") == 0


async def test_the_bus_follows_a_sentinels_master(
    open_redis: Open, start_valkey: Any, start_sentinel: Any, queue: str, eventually: Eventually
) -> None:
    login = "requirepass secret\nmasterauth secret"
    master = await start_valkey(login)
    replica = await start_valkey(f"{login}\nreplicaof 127.0.0.1 {master.port}")
    port = free_port()
    await start_sentinel(port, master.port, "sentinel auth-pass main secret")
    url = f"redis+sentinel://:secret@127.0.0.1:1,127.0.0.1:{port}/main/1"
    bus: RedisBus = await open_redis(url)
    assert bus.url == f"redis+sentinel://:***@127.0.0.1:1,127.0.0.1:{port}/main/1"
    await bus.consume(queue, lambda delivery: delivery.finish(delivery.payload.decode(), b"done", ""))
    answers: list[bytes] = []
    address = bus.new_reply_address()
    await bus.request(queue, address.encode(), "", lambda payload, kind: answers.append(payload), reply_to=address)
    await eventually(lambda: answers)
    async with redis.asyncio.Redis(port=port) as sentinel:
        await eventually(lambda: sentinel.execute_command("SENTINEL REPLICAS", "main"))
    async with redis.asyncio.Redis(port=replica.port, password="secret") as client:
        await eventually(lambda: client.info("replication"), lambda info: info.get("master_link_status") == "up")
        await master.kill()
        await eventually(lambda: not bus.connected)
        await eventually(lambda: bus.connected, timeout=30)
        assert (await client.role())[0] == b"master"
    address = bus.new_reply_address()
    await bus.request(queue, address.encode(), "", lambda payload, kind: answers.append(payload), reply_to=address)
    await eventually(lambda: len(answers) == 2)


async def test_a_sentinel_that_wants_the_password_too(open_redis: Open, start_valkey: Any, start_sentinel: Any) -> None:
    master = await start_valkey("requirepass secret")
    port = free_port()
    await start_sentinel(port, master.port, "sentinel auth-pass main secret\nrequirepass secret")
    bus: RedisBus = await open_redis(f"redis+sentinel://:secret@127.0.0.1:{port}/main")
    assert bus.connected
