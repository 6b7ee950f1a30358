"""The reliable list as a queue: what is in hand lies in the worker's own list until it is answered."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable
from typing import Any

import pytest
import redis.asyncio

from bridge.bus.base import Delivery
from bridge.bus.embedded import EmbeddedBroker
from bridge.bus.redis import RedisBus
from bridge.errors import BusRefused

pytestmark = pytest.mark.broker

Open = Callable[..., Any]
Eventually = Callable[..., Any]


@pytest.fixture(autouse=True, params=["own", "shared"])
def connection(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each queue has a connection of its own, or all share one: nobody can tell."""
    if request.param == "shared":
        monkeypatch.setattr(RedisBus, "consume", functools.partialmethod(RedisBus.consume, one_of_many=True))


@pytest.fixture
def open_list(open_redis: Open) -> Open:
    async def open_(url: str, **options: Any) -> RedisBus:
        return await open_redis(url, queue_type="list", **options)

    return open_


async def test_requests_are_taken_in_order_and_removed_when_answered(
    open_list: Open, valkey_server: EmbeddedBroker, client: redis.asyncio.Redis, queue: str, eventually: Eventually
) -> None:
    for number in range(30):
        await client.lpush(queue, b"%d" % number)
    bus = await open_list(valkey_server.url, worker="w1")
    taken: list[Delivery] = []
    await bus.consume(queue, taken.append)
    await eventually(lambda: len(taken) == 30)
    assert [int(delivery.payload) for delivery in taken] == list(range(30))
    assert await client.llen(f"{{{queue}}}.processing.w1") == 30
    first = taken[0]
    assert isinstance(first, Delivery)
    assert (first.queue, first.entry_id, first.reply_to, first.queued_at, first.claimed) == (queue, "", "", None, False)
    address = f"esl.reply.{queue}"
    for delivery in taken:
        delivery.finish(address, delivery.payload, "")
    await eventually(lambda: client.llen(address), lambda value: value >= 30)
    assert await client.lrange(address, 0, -1) == [b"%d" % number for number in range(30)]
    assert await client.llen(f"{{{queue}}}.processing.w1") == 0
    assert await client.llen(queue) == 0


async def test_no_more_is_taken_than_there_is_room(
    open_list: Open, valkey_server: EmbeddedBroker, client: redis.asyncio.Redis, queue: str, eventually: Eventually
) -> None:
    room = 3
    taken: list[Delivery] = []

    def take(delivery: Delivery) -> None:
        nonlocal room
        room -= 1
        taken.append(delivery)

    bus = await open_list(valkey_server.url)
    for number in range(10):
        await client.lpush(queue, b"%d" % number)
    consumer = await bus.consume(queue, take, room=lambda: room)
    await eventually(lambda: len(taken) == 3)
    assert await client.llen(queue) == 7
    room = 20
    consumer.resume()
    await eventually(lambda: len(taken) == 10)


async def test_a_silent_workers_list_is_taken_over(
    open_list: Open, valkey_server: EmbeddedBroker, client: redis.asyncio.Redis, queue: str, eventually: Eventually
) -> None:
    dying = await open_list(valkey_server.url, worker="dying", claim_after=0.3)
    in_its_hand: list[Delivery] = []
    await dying.consume(queue, in_its_hand.append)
    await client.lpush(queue, b"1", b"2", b"3")
    await eventually(lambda: len(in_its_hand) == 3)
    await dying.close()
    heir = await open_list(valkey_server.url, worker="heir", claim_after=0.3, dead=f"{queue}.dead")
    taken: list[Delivery] = []
    await heir.consume(queue, taken.append, room=lambda: 2)
    await eventually(lambda: len(taken) == 3)
    assert [(delivery.payload, delivery.claimed) for delivery in taken] == [(b"1", True), (b"2", True), (b"3", True)]
    for delivery in taken:
        delivery.reject("counted")
    await eventually(lambda: client.xlen(f"{queue}.dead"), lambda value: value >= 3)
    (_, letter), *_ = await client.xrange(f"{queue}.dead")
    assert letter == {b"data": b"1", b"reason": b"counted", b"queue": queue.encode(), b"count": b"2"}
    await eventually(lambda: client.smembers(f"{{{queue}}}.workers"), lambda value: value == {b"heir"})


async def test_no_refusal_is_told_for_an_entry_that_another_worker_has(
    open_list: Open, valkey_server: EmbeddedBroker, client: redis.asyncio.Redis, queue: str, eventually: Eventually
) -> None:
    """A worker that stood still for longer than ``claim_after`` and says "no" when it is back."""
    bus = await open_list(valkey_server.url, worker="frozen", claim_after=0.6)
    taken: list[Delivery] = []
    await bus.consume(queue, taken.append)
    await client.lpush(queue, b"claimed", b"ours", b"claimed, and ran here")
    await eventually(lambda: len(taken) == 3)
    mine, theirs = f"{{{queue}}}.processing.frozen", f"{{{queue}}}.processing.heir"
    for payload in (b"claimed", b"claimed, and ran here"):
        await client.lrem(mine, 1, payload)
        await client.lpush(theirs, payload)
    await eventually(lambda: time.monotonic() > taken[2].perhaps_lost_at)  # type: ignore[attr-defined]
    address = f"esl.reply.{queue}"
    for delivery in taken:
        delivery.finish(address, delivery.payload, "", refusal=delivery.payload != b"claimed, and ran here")
    await eventually(lambda: client.llen(address), lambda length: length >= 2)
    assert sorted(await client.lrange(address, 0, -1)) == [b"claimed, and ran here", b"ours"]
    assert await client.llen(mine) == 0
    assert await client.llen(theirs) == 2


@pytest.mark.parametrize("whose", ["ours", "heir"])
async def test_what_comes_after_a_standstill_is_looked_at_first(
    open_list: Open,
    valkey_server: EmbeddedBroker,
    client: redis.asyncio.Redis,
    queue: str,
    eventually: Eventually,
    whose: str,
) -> None:
    """The server moved it to our list while we were frozen; another worker has taken it over and answered since."""
    claim_after = 0.6
    bus = await open_list(valkey_server.url, worker="frozen", claim_after=claim_after)
    taken: list[Delivery] = []
    consumer = await bus.consume(queue, taken.append)
    await client.lpush(queue, b"first")
    await eventually(lambda: taken)
    # Waiting at the server again, not asking for more of what was found.
    await eventually(lambda: consumer.asleep or (consumer._asked_at is not None and not consumer._more))
    with redis.Redis(port=client.connection_pool.connection_kwargs["port"]) as other:  # our loop does not run
        other.lpush(queue, b"while we were frozen")
        time.sleep(claim_after)  # noqa: ASYNC251 - that is the freeze
        if whose == "heir":
            mine = f"{{{queue}}}.processing.frozen"
            assert other.lrem(mine, 1, b"while we were frozen") or other.lrem(queue, 1, b"while we were frozen")
    await client.lpush(queue, b"last")
    await eventually(lambda: b"last" in [one.payload for one in taken])
    frozen = [b"while we were frozen"] if whose == "ours" else []
    await eventually(lambda: sorted(one.payload for one in taken) == sorted([b"first", b"last", *frozen]))
    assert sorted(consumer.in_hand.elements()) == sorted(one.payload for one in taken)


async def test_what_a_living_worker_has_in_hand_is_not_taken_over(
    open_list: Open, valkey_server: EmbeddedBroker, client: redis.asyncio.Redis, queue: str, eventually: Eventually
) -> None:
    slow = await open_list(valkey_server.url, worker="slow", claim_after=0.6)
    other = await open_list(valkey_server.url, worker="other", claim_after=0.6)
    in_hand: list[Delivery] = []
    consumer = await slow.consume(queue, in_hand.append)
    await client.lpush(queue, b"long work")
    await eventually(lambda: in_hand)
    await consumer.drain(1.0)  # draining is living too, while something is in hand
    stolen: list[Delivery] = []
    await other.consume(queue, stolen.append)
    deadline = asyncio.get_running_loop().time() + 2.0
    while asyncio.get_running_loop().time() < deadline:
        assert await client.lrange(f"{{{queue}}}.processing.slow", 0, -1) == [b"long work"]
        await asyncio.sleep(0.05)
    assert not stolen


async def test_an_earlier_lifes_entries_come_first_and_claimed(
    open_list: Open, valkey_server: EmbeddedBroker, client: redis.asyncio.Redis, queue: str, eventually: Eventually
) -> None:
    first = await open_list(valkey_server.url, worker="same")
    taken: list[Delivery] = []
    await first.consume(queue, taken.append)
    await client.lpush(queue, b"twice", b"once", b"twice")
    await eventually(lambda: len(taken) == 3)
    taken[0].finish("", b"", "")
    await eventually(lambda: client.llen(f"{{{queue}}}.processing.same"), lambda count: count == 2)
    await first.close()
    await client.lpush(queue, b"new")
    again: list[Delivery] = []
    second = await open_list(valkey_server.url, worker="same")
    await second.consume(queue, again.append, room=lambda: 1)
    await eventually(lambda: len(again) == 3)
    assert sorted((delivery.payload, delivery.claimed) for delivery in again[:2]) == [(b"once", True), (b"twice", True)]
    assert (again[2].payload, again[2].claimed) == (b"new", False)


async def test_an_entry_that_a_broken_connection_swallowed_comes_again_unclaimed(
    open_list: Open, proxy: Any, client: redis.asyncio.Redis, queue: str, eventually: Eventually
) -> None:
    bus = await open_list(proxy.url)
    taken: list[Delivery] = []
    consumer = await bus.consume(queue, taken.append)
    await client.lpush(queue, b"same bytes")
    await eventually(lambda: taken)
    await eventually(lambda: consumer.asleep or (consumer._more == 0 and consumer.promised == 1))  # it waits for one
    proxy.hold()
    await client.lpush(queue, b"same bytes")
    await eventually(lambda: proxy.held)
    if consumer.asleep:
        consumer._rung()  # what would ring it is held
    await eventually(lambda: client.llen(queue), lambda value: not value)
    proxy.cut()
    proxy.open.set()
    await eventually(lambda: len(taken) == 2)
    assert [delivery.claimed for delivery in taken] == [False, False]
    for delivery in taken:
        delivery.finish("", b"", "")
    await eventually(lambda: client.llen(f"{{{queue}}}.processing.{bus.worker}"), lambda value: not value)
    assert len(taken) == 2


async def test_a_reply_whose_confirmation_was_lost_is_not_written_twice(
    open_list: Open, proxy: Any, client: redis.asyncio.Redis, queue: str, eventually: Eventually
) -> None:
    bus = await open_list(proxy.url)
    taken: list[Delivery] = []
    await bus.consume(queue, taken.append)
    await client.lpush(queue, b"x")
    await eventually(lambda: taken)
    address = f"esl.reply.{queue}"
    proxy.hold()
    taken[0].finish(address, b"answer", "")
    assert await client.blpop([address], timeout=10)
    await eventually(lambda: proxy.held)
    proxy.cut()
    proxy.open.set()
    await eventually(lambda: not bus.connected)
    await eventually(lambda: bus.connected)
    await client.lpush(queue, b"y")
    await eventually(lambda: len(taken) == 2)
    taken[1].finish(address + ".2", b"later", "")
    assert await client.blpop([address + ".2"], timeout=10)
    assert await client.llen(address) == 0


async def test_a_queue_of_another_kind_is_refused_by_name(
    open_list: Open, valkey_server: EmbeddedBroker, client: redis.asyncio.Redis, queue: str
) -> None:
    await client.xadd(queue, {"data": b"x"})
    bus = await open_list(valkey_server.url)
    with pytest.raises(BusRefused, match=rf"{queue}.*list"):
        await bus.consume(queue, lambda delivery: None)
    await client.delete(queue)


async def test_what_keeps_others_from_seeing_us_is_told(
    open_list: Open, valkey_server: EmbeddedBroker, client: redis.asyncio.Redis, queue: str, eventually: Eventually
) -> None:
    bus = await open_list(valkey_server.url, claim_after=0.3)
    problems: list[str] = []
    bus.on_problem = problems.append
    await client.set(f"{{{queue}}}.workers", "not a set", ex=60)
    await bus.consume(queue, lambda delivery: delivery.finish(f"esl.reply.{queue}", b"answer", ""))
    await eventually(lambda: problems)
    assert "other workers cannot see that this one lives: WRONGTYPE" in problems[0]
    await client.lpush(queue, b"x")  # served all the same
    assert await client.blpop([f"esl.reply.{queue}"], timeout=10)
    assert len(problems) == 1


async def test_a_drain_puts_back_what_was_not_seen(
    open_list: Open, proxy: Any, client: redis.asyncio.Redis, queue: str, eventually: Eventually
) -> None:
    bus = await open_list(proxy.url)
    taken: list[Delivery] = []
    consumer = await bus.consume(queue, taken.append)
    await client.lpush(queue, b"seen")
    await eventually(lambda: taken)
    proxy.hold()
    await client.lpush(queue, b"unseen")
    await eventually(lambda: proxy.held)
    await consumer.drain(0.05)
    proxy.open.set()
    await eventually(lambda: client.lrange(queue, 0, -1), lambda value: value == [b"unseen"])
    assert await client.lrange(f"{{{queue}}}.processing.{bus.worker}", 0, -1) == [b"seen"]
    assert len(taken) == 1


async def test_a_request_is_answered(
    open_list: Open, valkey_server: EmbeddedBroker, queue: str, eventually: Eventually
) -> None:
    bus = await open_list(valkey_server.url)
    await bus.consume(queue, lambda delivery: delivery.finish(delivery.payload.decode(), b"done", ""))
    address = bus.new_reply_address()
    got: list[bytes] = []
    await bus.request(queue, address.encode(), "", lambda payload, kind: got.append(payload), reply_to=address)
    await eventually(lambda: got == [b"done"])


async def test_what_was_taken_over_unseen_comes_claimed_though_something_new_comes_first(
    open_list: Open, valkey_server: EmbeddedBroker, client: redis.asyncio.Redis, queue: str, eventually: Eventually
) -> None:
    """The answer to a take-over was lost: our list holds what another worker may have answered."""
    bus = await open_list(valkey_server.url, worker="heir")
    taken: list[Delivery] = []
    consumer = await bus.consume(queue, taken.append)
    await eventually(lambda: consumer.asleep or consumer._asked_at is not None)
    await client.lpush(f"{{{queue}}}.processing.heir", b"another's")
    consumer._must_look = consumer._taking_over = True
    await client.lpush(queue, b"new")
    await eventually(lambda: len(taken) == 2)
    assert {one.payload: one.claimed for one in taken} == {b"new": False, b"another's": True}
