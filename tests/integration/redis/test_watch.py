"""Many queues on one connection: the server tells which was written to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import redis.asyncio

from bridge.bus.base import Delivery
from bridge.bus.embedded import EmbeddedBroker
from bridge.bus.redis import RedisBus

pytestmark = pytest.mark.broker

Open = Callable[..., Any]
Eventually = Callable[..., Any]


@pytest.fixture(params=["stream", "list"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Line:
    """A node's own queue: what came, in its order, and what puts something in."""

    def __init__(self, client: redis.asyncio.Redis, kind: str, name: str) -> None:
        self.client = client
        self.kind = kind
        self.name = name
        self.room = 1000
        self.came: list[int] = []
        self.consumer: Any = None

    async def open(self, bus: RedisBus) -> None:
        self.consumer = await bus.consume(self.name, self.take, room=lambda: self.room, one_of_many=True)

    def take(self, delivery: Delivery) -> None:
        self.came.append(int(delivery.payload))
        delivery.finish("", b"", "")

    async def put(self, number: int) -> None:
        if self.kind == "stream":
            await self.client.xadd(self.name, {"data": b"%d" % number})
        else:
            await self.client.lpush(self.name, b"%d" % number)


@pytest.fixture
async def lines(client: redis.asyncio.Redis, kind: str, queue: str) -> list[Line]:
    return [Line(client, kind, f"{queue}.fs{number}") for number in range(100)]


async def connections(client: redis.asyncio.Redis, name: str) -> int:
    return len([info for info in await client.client_list() if info["name"] == name])


async def test_a_hundred_queues_have_one_connection(
    open_redis: Open, valkey_server: EmbeddedBroker, client: Any, lines: list[Line], eventually: Eventually, kind: str
) -> None:
    bus = await open_redis(valkey_server.url, queue_type=kind, name=lines[0].name)
    before = await connections(client, lines[0].name)
    for line in lines:
        await line.open(bus)
    await eventually(lambda: all(line.consumer.asleep for line in lines))
    for number in range(3):
        for line in lines:
            await line.put(number)
    await eventually(lambda: all(line.came == [0, 1, 2] for line in lines))
    assert await connections(client, lines[0].name) == before + 1


async def test_queues_that_come_and_go_disturb_no_other(
    open_redis: Open, valkey_server: EmbeddedBroker, client: Any, lines: list[Line], eventually: Eventually, kind: str
) -> None:
    """Two workers hand queues to each other while all are written to: every entry once, in order."""
    one, other = [await open_redis(valkey_server.url, queue_type=kind) for _ in range(2)]
    lines = lines[:10]
    for line in lines:
        await line.open(one)
    putting = True
    put = 0

    async def keep_putting() -> None:
        nonlocal put
        while putting:
            for line in lines:
                await line.put(put)
            put += 1

    writing = asyncio.create_task(keep_putting())
    for turn in range(6):
        for line in lines[:5]:
            await line.consumer.drain(5.0)
            await line.open(other if turn % 2 == 0 else one)
        length = put
        await eventually(lambda length=length: all(len(line.came) >= length for line in lines))
    putting = False
    await writing
    await eventually(lambda: all(len(line.came) >= put for line in lines))
    assert all(line.came == list(range(put)) for line in lines)


async def test_a_queue_without_room_waits_and_the_others_do_not(
    open_redis: Open, valkey_server: EmbeddedBroker, client: Any, lines: list[Line], eventually: Eventually, kind: str
) -> None:
    bus = await open_redis(valkey_server.url, queue_type=kind)
    full, free = lines[:2]
    full.room = 0
    await full.open(bus)
    await free.open(bus)
    for number in range(20):
        await full.put(number)
        await free.put(number)
    await eventually(lambda: len(free.came) == 20)
    assert full.came == []
    full.room = 1000
    full.consumer.resume()
    await eventually(lambda: full.came == list(range(20)))


async def test_a_queue_that_cannot_be_read_is_told_and_stops_no_other(
    open_redis: Open,
    valkey_server: EmbeddedBroker,
    client: Any,
    lines: list[Line],
    eventually: Eventually,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bridge.bus.redis.pulling._ASIDE", 0.1)
    bus = await open_redis(valkey_server.url, queue_type=kind)
    problems: list[str] = []
    bus.on_problem = problems.append
    spoiled, sound = lines[:2]
    await spoiled.open(bus)
    await sound.open(bus)
    await eventually(lambda: spoiled.consumer.asleep and sound.consumer.asleep)
    async with client.pipeline(transaction=True) as together:
        together.delete(spoiled.name)
        together.set(spoiled.name, "neither a stream nor a list")
        await together.execute()
    await eventually(lambda: any("WRONGTYPE" in problem for problem in problems))
    link = bus._watch.link._wire
    for number in range(20):
        await sound.put(number)
    await eventually(lambda: len(sound.came) == 20)
    await client.delete(spoiled.name)
    await spoiled.put(7)
    await eventually(lambda: spoiled.came == [7])
    assert bus._watch.link._wire is link  # nothing was broken off for it


async def test_a_server_that_tells_nothing_gets_a_connection_a_queue(
    open_redis: Open, start_valkey: Any, queue: str, eventually: Eventually, kind: str
) -> None:
    server = await start_valkey("user default on nopass ~* &* +@all -client|tracking\n")
    bus = await open_redis(server.url, queue_type=kind, name="alone")
    async with redis.asyncio.from_url(server.url) as client:
        lines = [Line(client, kind, f"{queue}.fs{number}") for number in range(5)]
        before = await connections(client, "alone")
        for line in lines:
            await line.open(bus)
        for line in lines:
            await line.put(1)
        await eventually(lambda: all(line.came == [1] for line in lines))
        late = Line(client, kind, f"{queue}.late")
        await late.open(bus)
        await late.put(1)
        await eventually(lambda: late.came == [1])
        await eventually(lambda: connections(client, "alone"), lambda count: count == before + 6)
        await lines[0].consumer.drain(2.0)
        await eventually(lambda: connections(client, "alone"), lambda count: count == before + 5)


async def test_a_flushed_server_is_served_on(
    open_redis: Open, start_valkey: Any, queue: str, eventually: Eventually, kind: str
) -> None:
    server = await start_valkey()
    bus = await open_redis(server.url, queue_type=kind)
    async with redis.asyncio.from_url(server.url) as client:
        lines = [Line(client, kind, f"{queue}.fs{number}") for number in range(5)]
        for line in lines:
            await line.open(bus)
        await eventually(lambda: all(line.consumer.asleep for line in lines))
        await client.flushall()
        for line in lines:
            await line.put(1)
        await eventually(lambda: all(line.came == [1] for line in lines))


async def test_who_has_nothing_to_read_asks_nothing(
    open_redis: Open, start_valkey: Any, queue: str, eventually: Eventually, kind: str
) -> None:
    server = await start_valkey()
    bus = await open_redis(server.url, queue_type=kind)
    async with redis.asyncio.from_url(server.url) as client:
        lines = [Line(client, kind, f"{queue}.fs{number}") for number in range(5)]
        for line in lines:
            await line.open(bus)
        await eventually(lambda: all(line.consumer.asleep for line in lines))
        asked = "cmdstat_xreadgroup" if kind == "stream" else "cmdstat_lmove"
        before = (await client.info("commandstats"))[asked]["calls"]
        for line in lines[1:] * 20:
            line.consumer.resume()
        await lines[0].put(1)
        await eventually(lambda: lines[0].came == [1])
        most = 12 if kind == "list" else 6
        assert (await client.info("commandstats"))[asked]["calls"] - before <= most


async def test_a_small_room_of_its_own_is_no_reason_to_wait_for_those_with_a_large_one(
    open_redis: Open,
    valkey_server: EmbeddedBroker,
    client: Any,
    lines: list[Line],
    eventually: Eventually,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The shared queue's question may bring more than a node's line takes, and waits for long."""
    for module in ("stream_queue", "list_queue"):
        monkeypatch.setattr(f"bridge.bus.redis.{module}._BLOCK", 120)
    bus = await open_redis(valkey_server.url, queue_type=kind)
    shared, node, other = lines[:3]
    shared.consumer = await bus.consume(shared.name, shared.take, room=lambda: 512)
    await eventually(lambda: shared.consumer.promised)
    for line in (node, other):
        line.room = 4
        await line.open(bus)
        await line.put(1)
    await eventually(lambda: node.came == other.came == [1])


async def test_what_a_silent_worker_left_is_claimed_while_an_idle_queue_asks_for_all_the_room(
    open_redis: Open, valkey_server: EmbeddedBroker, client: Any, kind: str, queue: str, eventually: Eventually
) -> None:
    room = 20
    came: list[int] = []

    def take(delivery: Delivery) -> None:
        nonlocal room
        assert delivery.claimed
        room -= 1
        came.append(int(delivery.payload))

    heir = await open_redis(valkey_server.url, queue_type=kind, worker="heir", claim_after=0.3)
    await heir.consume(queue, take, room=lambda: room)
    dead = await open_redis(valkey_server.url, queue_type=kind, worker="dead", claim_after=0.3)
    line = Line(client, kind, f"{queue}.fs1")
    taken: list[Delivery] = []
    await dead.consume(line.name, taken.append, one_of_many=True)
    for number in range(30):
        await line.put(number)
    await eventually(lambda: len(taken) == 30)
    await heir.consume(line.name, take, room=lambda: min(room, 25), one_of_many=True)
    await dead.close()
    await eventually(lambda: room <= 0)
    assert came == list(range(len(came)))
    room = 50
    await eventually(lambda: came == list(range(30)))


async def test_an_entry_says_whose_it_is(
    open_redis: Open, valkey_server: EmbeddedBroker, client: Any, kind: str, queue: str, eventually: Eventually
) -> None:
    taken: list[Delivery] = []
    claimed: list[Delivery] = []
    slow = await open_redis(valkey_server.url, queue_type=kind, worker="slow", claim_after=30.0)
    line = Line(client, kind, queue)
    await slow.consume(queue, taken.append, one_of_many=True)
    for number in range(2):
        await line.put(number)
    await eventually(lambda: len(taken) == 2)
    before = taken[0].perhaps_lost_at
    said: list[bool | None] = []
    taken[0].still_ours(said.append)
    await eventually(lambda: said == [True])
    assert taken[0].perhaps_lost_at > before
    heir = await open_redis(valkey_server.url, queue_type=kind, worker="heir", claim_after=0.3)
    await client.delete(f"{{{queue}}}.alive.slow")  # it does not renew that before ten seconds
    await heir.consume(queue, claimed.append)
    await eventually(lambda: len(claimed) == 2)
    for delivery in taken:
        delivery.still_ours(said.append)
    await eventually(lambda: said == [True, False, False])
    await slow._writers.close()
    taken[0].still_ours(said.append)
    assert said[3:] == [None]
