"""The stream as a queue: entries in hand, claims, renewals, what a broken connection leaves behind."""

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
from bridge.errors import BusRefused, BusUnavailable, MessageTooLarge
from tests.integration.redis.conftest import Proxy

pytestmark = pytest.mark.broker

Open = Callable[..., Any]
Eventually = Callable[..., Any]


@pytest.fixture(autouse=True, params=["own", "shared"])
def connection(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each queue has a connection of its own, or all share one: nobody can tell."""
    if request.param == "shared":
        monkeypatch.setattr(RedisBus, "consume", functools.partialmethod(RedisBus.consume, one_of_many=True))


async def test_requests_wait_in_a_stream_until_a_worker_comes(
    open_redis: Open, valkey_server: EmbeddedBroker, client: redis.asyncio.Redis, queue: str, eventually: Eventually
) -> None:
    for number in range(5):
        await client.xadd(queue, {"data": b"%d" % number, "traceparent": "00-1"})
    taken: list[Delivery] = []
    bus = await open_redis(valkey_server.url)
    await bus.consume(queue, taken.append)
    await eventually(lambda: len(taken) == 5)
    assert [delivery.payload for delivery in taken] == [b"0", b"1", b"2", b"3", b"4"]
    first = taken[0]
    assert first.queue == queue
    assert first.headers == {"traceparent": "00-1"}
    assert not first.claimed
    assert first.queued_at == pytest.approx(time.time(), abs=60)
    milliseconds, _, number = first.entry_id.partition("-")
    assert milliseconds.isdigit()
    assert number.isdigit()
    assert isinstance(first, Delivery)
    groups = await client.xinfo_groups(queue)
    assert [group["name"] for group in groups] == [b"esl-bridge"]


async def test_a_finished_request_leaves_nothing_but_its_reply(
    open_redis: Open, valkey_server: EmbeddedBroker, client: redis.asyncio.Redis, queue: str, eventually: Eventually
) -> None:
    bus = await open_redis(valkey_server.url, reply_ttl=60)
    address = f"esl.reply.{queue}"
    await bus.consume(queue, lambda delivery: delivery.finish(address, b"answer", "application/json"))
    await client.xadd(queue, {"data": b"x"})
    assert await client.blpop([address], timeout=10) == (address.encode(), b"answer")
    await client.xadd(queue, {"data": b"y"})
    await eventually(lambda: client.pttl(address), lambda value: 0 < value <= 60_000)
    assert await client.xlen(queue) == 0
    assert (await client.xpending(queue, "esl-bridge"))["pending"] == 0
    await client.delete(address)


async def test_a_reply_may_go_to_a_channel(
    open_redis: Open, valkey_server: EmbeddedBroker, queue: str, eventually: Eventually
) -> None:
    bus = await open_redis(valkey_server.url)
    await bus.consume(queue, lambda delivery: delivery.finish(f"pubsub:{queue}.answers", delivery.payload, ""))
    got: list[bytes] = []
    await bus.request(
        queue, b"hello", "", lambda payload, kind: got.append(payload), reply_to=f"pubsub:{queue}.answers"
    )
    await eventually(lambda: got == [b"hello"])


async def test_no_more_is_taken_than_there_is_room(
    open_redis: Open, valkey_server: EmbeddedBroker, client: redis.asyncio.Redis, queue: str, eventually: Eventually
) -> None:
    room = 2
    taken: list[Delivery] = []

    def take(delivery: Delivery) -> None:
        nonlocal room
        room -= 1
        taken.append(delivery)

    bus = await open_redis(valkey_server.url)
    consumer = await bus.consume(queue, take, room=lambda: room)
    for number in range(5):
        await client.xadd(queue, {"data": b"%d" % number})
    await eventually(lambda: len(taken) >= 2)
    assert (await client.xpending(queue, "esl-bridge"))["pending"] == 2
    assert len(taken) == 2
    room = 3
    consumer.resume()
    await eventually(lambda: len(taken) == 5)


async def test_a_silent_workers_entries_are_claimed(
    open_redis: Open, valkey_server: EmbeddedBroker, client: redis.asyncio.Redis, queue: str, eventually: Eventually
) -> None:
    dying = await open_redis(valkey_server.url, worker="dying", claim_after=60)
    in_its_hand: list[Delivery] = []
    await dying.consume(queue, in_its_hand.append)
    await client.xadd(queue, {"data": b"left behind"})
    await eventually(lambda: in_its_hand)
    await dying.close()
    taken: list[Delivery] = []
    heir = await open_redis(valkey_server.url, worker="heir", claim_after=0.3)
    await heir.consume(queue, taken.append)
    await eventually(lambda: taken)
    assert (taken[0].payload, taken[0].claimed) == (b"left behind", True)
    taken[0].reject("counted")
    entries: list[Any] = []
    while not entries:
        entries = [fields for _, fields in await client.xrange("esl.dead") if fields[b"queue"] == queue.encode()]
    assert entries[0][b"count"] == b"2"
    assert entries[0][b"reason"] == b"counted"
    assert entries[0][b"data"] == b"left behind"


@pytest.mark.parametrize("kind", ["", "pubsub:"])
async def test_no_refusal_is_told_for_an_entry_that_another_worker_has(
    open_redis: Open,
    valkey_server: EmbeddedBroker,
    client: redis.asyncio.Redis,
    queue: str,
    eventually: Eventually,
    kind: str,
) -> None:
    """A worker that stood still for longer than ``claim_after`` and says "no" when it is back."""
    bus = await open_redis(valkey_server.url, worker="frozen", claim_after=0.6)
    taken: list[Delivery] = []
    await bus.consume(queue, taken.append)
    heard: list[bytes] = []
    address = f"{kind}{queue}.answers"
    if kind:
        await bus.subscribe(f"{queue}.answers", lambda received: heard.append(received.payload))
    for name in (b"claimed", b"ours", b"claimed, and ran here"):
        await client.xadd(queue, {"data": name})
    await eventually(lambda: len(taken) == 3)
    for delivery in (taken[0], taken[2]):
        await client.xclaim(queue, "esl-bridge", "heir", 0, [delivery.entry_id])
    await eventually(lambda: time.monotonic() > taken[2].perhaps_lost_at)  # type: ignore[attr-defined]
    for delivery in taken:
        delivery.finish(address, delivery.payload, "", refusal=delivery is not taken[2])
    if not kind:
        await eventually(lambda: client.llen(address), lambda length: length >= 2)
        assert await client.pttl(address) > 0
        heard += await client.lrange(address, 0, -1)
    await eventually(lambda: len(heard) >= 2)
    assert sorted(heard) == [b"claimed, and ran here", b"ours"]
    pending = await client.xpending_range(queue, "esl-bridge", "-", "+", 10)
    assert [(one["message_id"].decode(), one["consumer"]) for one in pending] == [(taken[0].entry_id, b"heir")]
    assert await client.xlen(queue) == 1


async def test_a_refusal_is_told_where_scripts_are_not_allowed(
    open_redis: Open, start_valkey: Any, queue: str, eventually: Eventually
) -> None:
    server = await start_valkey('rename-command EVAL ""\n')
    bus = await open_redis(server.url, worker="w1", claim_after=0.03)
    taken: list[Delivery] = []
    await bus.consume(queue, taken.append)
    async with redis.asyncio.Redis(port=server.port) as client:
        await client.xadd(queue, {"data": b"x"})
        await eventually(lambda: taken)
        await eventually(lambda: time.monotonic() > taken[0].perhaps_lost_at)  # type: ignore[attr-defined]
        taken[0].finish(f"esl.reply.{queue}", b"no", "", refusal=True)
        assert await client.blpop([f"esl.reply.{queue}"], timeout=10) == (f"esl.reply.{queue}".encode(), b"no")
        assert await client.xlen(queue) == 0


async def test_an_entry_that_was_let_go_is_the_next_ones(
    open_redis: Open, valkey_server: EmbeddedBroker, client: redis.asyncio.Redis, queue: str, eventually: Eventually
) -> None:
    one = await open_redis(valkey_server.url, worker="one", claim_after=0.6)
    assert not one.apart(queue)  # one server
    in_hand: list[Delivery] = []
    await one.consume(queue, in_hand.append, room=lambda: 1 - len(in_hand))
    await client.xadd(queue, {"data": b"x"})
    await eventually(lambda: in_hand)
    in_hand[0].let_go()
    taken: list[Delivery] = []
    heir = await open_redis(valkey_server.url, worker="heir", claim_after=0.6)
    await heir.consume(queue, taken.append)
    await eventually(lambda: taken)
    assert (taken[0].payload, taken[0].claimed) == (b"x", True)
    taken[0].finish("", b"", "")
    await eventually(lambda: client.xlen(queue), lambda entries: entries == 0)


async def test_what_a_living_worker_has_in_hand_is_not_claimed(
    open_redis: Open, valkey_server: EmbeddedBroker, client: redis.asyncio.Redis, queue: str, eventually: Eventually
) -> None:
    slow = await open_redis(valkey_server.url, worker="slow", claim_after=0.6)
    other = await open_redis(valkey_server.url, worker="other", claim_after=0.6)
    in_hand: list[Delivery] = []
    await slow.consume(queue, in_hand.append)
    await client.xadd(queue, {"data": b"long work"})
    await eventually(lambda: in_hand)
    stolen: list[Delivery] = []
    await other.consume(queue, stolen.append)
    deadline = time.monotonic() + 2.0
    longest = 0
    while time.monotonic() < deadline:
        pending = await client.xpending_range(queue, "esl-bridge", "-", "+", 10)
        assert [entry["consumer"] for entry in pending] == [b"slow"]
        longest = max(longest, pending[0]["time_since_delivered"])
        await asyncio.sleep(0.05)
    assert not stolen
    assert longest < 600
    # Renewing is not delivering: a count that grew would look like an entry that kills its workers.
    assert pending[0]["times_delivered"] == 1


@pytest.mark.parametrize("scripts", [True, False])
async def test_a_renewal_takes_nothing_back_that_was_claimed(
    open_redis: Open, start_valkey: Any, queue: str, eventually: Eventually, scripts: bool
) -> None:
    """Without scripts only what was claimed before the renewal looked."""
    server = await start_valkey("" if scripts else 'rename-command EVAL ""\n')
    proxy = Proxy(server.port)
    await proxy.start()
    bus = await open_redis(proxy.url, worker="one", claim_after=60)
    taken: list[Delivery] = []
    consumer = await bus.consume(queue, taken.append)
    async with redis.asyncio.Redis(port=server.port) as client:
        for name in (b"before", b"while it looks", b"ours"):
            await client.xadd(queue, {"data": name})
        await eventually(lambda: len(taken) == 3)
        await client.xclaim(queue, "esl-bridge", "heir", 0, [taken[0].entry_id], idle=40_000)
        await client.xclaim(queue, "esl-bridge", "one", 0, [taken[2].entry_id], idle=40_000)
        if scripts:
            proxy.hold()
        held = proxy.held
        consumer.upkeep()
        if scripts:
            await eventually(lambda: proxy.held > held)
            await client.xclaim(queue, "esl-bridge", "heir", 0, [taken[1].entry_id])
            proxy.open.set()

        async def of(number: int) -> Any:
            found = await client.xpending_range(queue, "esl-bridge", taken[number].entry_id, taken[number].entry_id, 1)
            return found[0]

        await eventually(lambda: of(2), lambda found: found["time_since_delivered"] < 20_000)
        taken[2].finish(f"esl.reply.{queue}", b"x", "")  # behind whatever else the renewal has to say
        await client.blpop([f"esl.reply.{queue}"], timeout=10)
        assert (await of(0))["consumer"] == b"heir"
        if scripts:
            assert (await of(1))["consumer"] == b"heir"
    await bus.close()
    await proxy.stop()


@pytest.mark.parametrize("whose", ["ours", "heir"])
async def test_what_comes_after_a_standstill_is_looked_at_first(
    open_redis: Open,
    valkey_server: EmbeddedBroker,
    client: redis.asyncio.Redis,
    queue: str,
    eventually: Eventually,
    whose: str,
) -> None:
    """The server gave it away while we were frozen; another worker has claimed, answered and removed it since."""
    claim_after = 0.6
    bus = await open_redis(valkey_server.url, worker="frozen", claim_after=claim_after)
    taken: list[Delivery] = []
    consumer = await bus.consume(queue, taken.append)
    await client.xadd(queue, {"data": b"first"})
    await eventually(lambda: taken)
    await eventually(lambda: consumer.asleep or consumer._asked_at is not None)
    with redis.Redis(port=client.connection_pool.connection_kwargs["port"]) as other:  # our loop does not run
        ident = other.xadd(queue, {"data": b"while we were frozen"})
        time.sleep(claim_after)  # noqa: ASYNC251 - that is the freeze
        if whose == "heir":
            other.xclaim(queue, "esl-bridge", "heir", 0, [ident])
            other.xack(queue, "esl-bridge", ident)
            other.xdel(queue, ident)
    await client.xadd(queue, {"data": b"last"})
    await eventually(lambda: b"last" in [one.payload for one in taken])
    frozen = [b"while we were frozen"] if whose == "ours" else []
    await eventually(lambda: len(taken) == 2 + len(frozen))
    assert [one.payload for one in taken] == [b"first", *frozen, b"last"]
    assert list(consumer.in_hand.values()) == taken


async def test_what_comes_behind_one_that_must_be_looked_at_waits_for_it(
    open_redis: Open, valkey_server: EmbeddedBroker, client: redis.asyncio.Redis, queue: str, eventually: Eventually
) -> None:
    """Else it would overtake it, on a node's own queue too, where order is promised."""
    bus = await open_redis(valkey_server.url, worker="slow")
    taken: list[Delivery] = []
    consumer = await bus.consume(queue, taken.append)
    asked: list[tuple[Delivery, Callable[[bool | None], None]]] = []
    confirm, consumer.confirm = consumer.confirm, lambda *question: asked.append(question)
    await eventually(lambda: consumer.asleep or consumer._asked_at is not None)
    consumer._woke = True  # as after a standstill
    await client.xadd(queue, {"data": b"on its way for long"})
    await eventually(lambda: asked)
    await client.xadd(queue, {"data": b"fresh"})
    await eventually(lambda: len(consumer.in_hand) == 2)
    assert not taken
    for question in asked:
        confirm(*question)
    await eventually(lambda: len(taken) == 2)
    assert [one.payload for one in taken] == [b"on its way for long", b"fresh"]


async def test_an_earlier_lifes_entries_come_first_and_claimed(
    open_redis: Open, valkey_server: EmbeddedBroker, client: redis.asyncio.Redis, queue: str, eventually: Eventually
) -> None:
    first = await open_redis(valkey_server.url, worker="same")
    taken: list[Delivery] = []
    await first.consume(queue, taken.append)
    for number in range(3):
        await client.xadd(queue, {"data": b"%d" % number})
    await eventually(lambda: len(taken) == 3)
    await first.close()
    await client.xadd(queue, {"data": b"new"})
    again: list[Delivery] = []
    second = await open_redis(valkey_server.url, worker="same")
    await second.consume(queue, again.append, room=lambda: 2)
    await eventually(lambda: len(again) == 4)
    assert [(delivery.payload, delivery.claimed) for delivery in again] == [
        (b"0", True),
        (b"1", True),
        (b"2", True),
        (b"new", False),
    ]


async def test_an_entry_that_a_broken_connection_swallowed_comes_again_unclaimed(
    open_redis: Open, proxy: Any, client: redis.asyncio.Redis, queue: str, eventually: Eventually
) -> None:
    bus = await open_redis(proxy.url)
    taken: list[Delivery] = []
    consumer = await bus.consume(queue, taken.append)
    await client.xadd(queue, {"data": b"first"})
    await eventually(lambda: taken)
    await eventually(lambda: consumer.asleep or not consumer._link.waits_for_ring)
    proxy.hold()
    await client.xadd(queue, {"data": b"swallowed"})
    await eventually(lambda: proxy.held)
    if consumer.asleep:
        consumer._rung()  # what would ring it is held
    await eventually(lambda: client.xpending(queue, "esl-bridge"), lambda found: found["pending"] == 2)
    proxy.cut()
    proxy.open.set()
    await eventually(lambda: len(taken) == 2)
    assert (taken[1].payload, taken[1].claimed) == (b"swallowed", False)
    # The first one is in hand and does not come a second time.
    await client.xadd(queue, {"data": b"last"})
    await eventually(lambda: len(taken) == 3)
    assert taken[2].payload == b"last"


async def test_a_reply_whose_confirmation_was_lost_is_not_written_twice(
    open_redis: Open, proxy: Any, client: redis.asyncio.Redis, queue: str, eventually: Eventually
) -> None:
    bus = await open_redis(proxy.url)
    taken: list[Delivery] = []
    await bus.consume(queue, taken.append)
    await client.xadd(queue, {"data": b"x"})
    await eventually(lambda: taken)
    address = f"esl.reply.{queue}"
    proxy.hold()
    taken[0].finish(address, b"answer", "")
    assert await client.blpop([address], timeout=10) == (address.encode(), b"answer")
    await eventually(lambda: proxy.held)
    proxy.cut()
    proxy.open.set()
    await eventually(lambda: not bus.connected)
    await eventually(lambda: bus.connected)
    # A later reply over the same way shows that the one in doubt has been looked at.
    await client.xadd(queue, {"data": b"y"})
    await eventually(lambda: len(taken) == 2)
    taken[1].finish(address + ".2", b"later", "")
    assert await client.blpop([address + ".2"], timeout=10)
    assert await client.llen(address) == 0
    assert await client.xlen(queue) == 0


async def test_a_reply_that_was_never_written_is_written_when_the_bus_is_back(
    open_redis: Open, proxy: Any, client: redis.asyncio.Redis, queue: str, eventually: Eventually
) -> None:
    bus = await open_redis(proxy.url)
    taken: list[Delivery] = []
    await bus.consume(queue, taken.append)
    await client.xadd(queue, {"data": b"x"})
    await eventually(lambda: taken)
    proxy.cut()
    await eventually(lambda: not bus.connected)
    address = f"esl.reply.{queue}"
    taken[0].finish(address, b"answer", "")
    bus.send(f"{address}.early", b"accepted", "")
    assert await client.blpop([address], timeout=10) == (address.encode(), b"answer")
    assert await client.blpop([f"{address}.early"], timeout=10)
    await eventually(lambda: client.xlen(queue), lambda length: not length)


async def test_a_reply_that_cannot_be_written_becomes_a_dead_letter(
    open_redis: Open, valkey_server: EmbeddedBroker, client: redis.asyncio.Redis, queue: str, eventually: Eventually
) -> None:
    bus = await open_redis(valkey_server.url, dead=f"{queue}.dead")
    problems: list[str] = []
    bus.on_problem = problems.append
    await client.set(f"esl.reply.{queue}", "not a list", ex=60)
    await bus.consume(queue, lambda delivery: delivery.finish(f"esl.reply.{queue}", b"answer", ""))
    await client.xadd(queue, {"data": b"x"})
    await eventually(lambda: problems)
    assert "WRONGTYPE" in problems[0]
    await eventually(lambda: client.xlen(f"{queue}.dead"), lambda value: value)
    ((_, letter),) = await client.xrange(f"{queue}.dead")
    assert letter[b"data"] == b"x"
    assert b"WRONGTYPE" in letter[b"reason"]
    assert await client.xlen(queue) == 0


async def test_a_dead_letter_that_cannot_be_written_is_told(
    open_redis: Open, valkey_server: EmbeddedBroker, client: redis.asyncio.Redis, queue: str, eventually: Eventually
) -> None:
    bus = await open_redis(valkey_server.url, dead=f"{queue}.dead")
    problems: list[str] = []
    bus.on_problem = problems.append
    await client.set(f"{queue}.dead", "not a stream", ex=60)
    await bus.consume(queue, lambda delivery: delivery.reject("no reply address"))
    await client.xadd(queue, {"data": b"x"})
    await eventually(lambda: problems)
    assert problems[0].startswith("a dead letter was refused: WRONGTYPE")


async def test_an_entry_without_data_is_a_dead_letter(
    open_redis: Open, valkey_server: EmbeddedBroker, client: redis.asyncio.Redis, queue: str, eventually: Eventually
) -> None:
    bus = await open_redis(valkey_server.url, dead=f"{queue}.dead")
    taken: list[Delivery] = []
    await bus.consume(queue, taken.append)
    await client.xadd(queue, {"payload": b"x"})
    await eventually(lambda: client.xlen(f"{queue}.dead"), lambda value: value)
    ((_, letter),) = await client.xrange(f"{queue}.dead")
    assert letter[b"data"] == b"payload x"
    assert not taken


async def test_a_stream_that_is_deleted_comes_back(
    open_redis: Open, valkey_server: EmbeddedBroker, client: redis.asyncio.Redis, queue: str, eventually: Eventually
) -> None:
    bus = await open_redis(valkey_server.url)
    taken: list[Delivery] = []
    await bus.consume(queue, taken.append)
    await client.xadd(queue, {"data": b"1"})
    await eventually(lambda: taken)
    await client.delete(queue)
    await client.xadd(queue, {"data": b"2"})
    await eventually(lambda: len(taken) == 2)


@pytest.mark.parametrize("how", ["DESTROY", "SETID"])
async def test_a_group_that_is_reset_hands_nothing_over_twice(
    open_redis: Open,
    valkey_server: EmbeddedBroker,
    client: redis.asyncio.Redis,
    queue: str,
    eventually: Eventually,
    how: str,
) -> None:
    bus = await open_redis(valkey_server.url)
    taken: list[Delivery] = []
    await bus.consume(queue, taken.append)
    for number in range(3):
        await client.xadd(queue, {"data": b"%d" % number})
    await eventually(lambda: len(taken) == 3)
    if how == "DESTROY":
        await client.xgroup_destroy(queue, "esl-bridge")
    else:
        await client.xgroup_setid(queue, "esl-bridge", "0")
    await client.xadd(queue, {"data": b"3"})
    await eventually(lambda: b"3" in [delivery.payload for delivery in taken])
    assert [delivery.payload for delivery in taken] == [b"0", b"1", b"2", b"3"]
    for delivery in taken:
        delivery.finish(f"esl.reply.{queue}", delivery.payload, "")
    await eventually(lambda: client.llen(f"esl.reply.{queue}"), lambda length: length == 4)
    assert await client.xlen(queue) == 0
    await client.delete(f"esl.reply.{queue}")


@pytest.mark.parametrize("what", ["consumer", "entries"])
async def test_what_an_operator_deletes_while_it_is_in_hand_is_answered_here(
    open_redis: Open,
    valkey_server: EmbeddedBroker,
    client: redis.asyncio.Redis,
    queue: str,
    eventually: Eventually,
    what: str,
) -> None:
    bus = await open_redis(valkey_server.url, worker="one", claim_after=60)
    taken: list[Delivery] = []
    consumer = await bus.consume(queue, taken.append)
    for number in range(4):
        await client.xadd(queue, {"data": b"%d" % number})
    await eventually(lambda: len(taken) == 4)
    await client.xclaim(queue, "esl-bridge", "heir", 0, [taken[3].entry_id])
    if what == "consumer":
        await client.xgroup_delconsumer(queue, "esl-bridge", "one")
        # Before the next renewal puts them back: a refusal goes out all the same.
        taken[2].perhaps_lost_at = 0.0
        taken[2].finish(f"esl.reply.{queue}", b"2", "", refusal=True)
    else:
        await client.xtrim(queue, maxlen=0, approximate=False)
    consumer.upkeep()
    told: dict[bytes, list[bool | None]] = {}
    for times in (3, 6):
        for delivery in (taken[0], taken[1], taken[3]):
            delivery.still_ours(told.setdefault(delivery.payload, []).append)
        await eventually(lambda: sum(map(len, told.values())), lambda answers: answers == times)  # noqa: B023
    assert told == {b"0": [True] * 2, b"1": [True] * 2, b"3": [False] * 2}
    if what == "consumer":  # and when we die now, another worker finds them
        pending = await client.xpending_range(queue, "esl-bridge", "-", "+", 10, "one")
        assert [entry["message_id"].decode() for entry in pending] == [taken[0].entry_id, taken[1].entry_id]
    else:
        taken[2].finish(f"esl.reply.{queue}", b"2", "", refusal=True)
    taken[0].finish(f"esl.reply.{queue}", b"0", "", refusal=True)
    taken[1].finish(f"esl.reply.{queue}", b"1", "")
    await eventually(
        lambda: client.lrange(f"esl.reply.{queue}", 0, -1), lambda found: sorted(found) == [b"0", b"1", b"2"]
    )
    assert await client.xlen(queue) == (1 if what == "consumer" else 0)
    await client.delete(f"esl.reply.{queue}")


@pytest.mark.parametrize("how", ["DEL", "FLUSHALL", "XGROUP DESTROY"])
async def test_what_is_in_hand_when_the_stream_is_deleted_is_answered_here(
    open_redis: Open, start_valkey: Any, queue: str, eventually: Eventually, how: str
) -> None:
    server = await start_valkey()
    bus = await open_redis(server.url, worker="one", claim_after=60)
    taken: list[Delivery] = []
    consumer = await bus.consume(queue, taken.append)
    async with redis.asyncio.Redis(port=server.port) as client:
        for number in range(3):
            await client.xadd(queue, {"data": b"%d" % number})
        await eventually(lambda: len(taken) == 3)
        taken[2].perhaps_lost_at = 0.0  # another worker may have had it, and have answered it
        # In the same millisecond a new stream gives the same ids again.
        last = int(taken[2].entry_id.partition("-")[0])
        await eventually(client.time, lambda now: now[0] * 1000 + now[1] // 1000 > last)
        if how == "FLUSHALL":
            await client.flushall()
        elif how == "DEL":
            await client.delete(queue)
        else:
            await client.xgroup_destroy(queue, "esl-bridge")
        consumer.upkeep()
        await client.xadd(queue, {"data": b"3"})
        await eventually(lambda: b"3" in [delivery.payload for delivery in taken])
        told: dict[bytes, list[bool | None]] = {}
        for delivery in taken[:3]:
            delivery.still_ours(told.setdefault(delivery.payload, []).append)
        await eventually(lambda: sum(map(len, told.values())) == 3)
        # Where the stream is there yet it was handed to us anew, all of it.
        assert told == {b"0": [True], b"1": [True], b"2": [how == "XGROUP DESTROY"]}
        for delivery in taken[:2]:
            delivery.finish(f"esl.reply.{queue}", delivery.payload, "", refusal=True)
        await eventually(lambda: client.llen(f"esl.reply.{queue}"), lambda length: length == 2)
    await bus.close()


async def test_a_queue_of_another_kind_is_refused_by_name(
    open_redis: Open, valkey_server: EmbeddedBroker, client: redis.asyncio.Redis, queue: str
) -> None:
    await client.lpush(queue, b"x")
    bus = await open_redis(valkey_server.url)
    with pytest.raises(BusRefused, match=rf"{queue}.*stream"):
        await bus.consume(queue, lambda delivery: None)
    await client.delete(queue)


async def test_a_drained_consumer_leaves_what_comes_to_others(
    open_redis: Open, valkey_server: EmbeddedBroker, client: redis.asyncio.Redis, queue: str, eventually: Eventually
) -> None:
    bus = await open_redis(valkey_server.url)
    taken: list[Delivery] = []
    consumer = await bus.consume(queue, taken.append)
    await client.xadd(queue, {"data": b"1"})
    await eventually(lambda: taken)
    before = time.monotonic()
    await consumer.drain(4.0)
    assert time.monotonic() - before < 4.0  # the waiting read was ended, not waited out
    await client.xadd(queue, {"data": b"2"})
    taken[0].finish("", b"", "")
    await eventually(lambda: client.xlen(queue), lambda value: value == 1)
    assert len(taken) == 1
    assert (await client.xpending(queue, "esl-bridge"))["pending"] == 0


async def test_a_drain_while_replies_are_held_frees_what_was_not_seen(
    open_redis: Open, make_proxy: Any, valkey_server: EmbeddedBroker, client: Any, queue: str, eventually: Eventually
) -> None:
    proxy = await make_proxy(valkey_server.port)
    bus = await open_redis(proxy.url, claim_after=60)
    other = await open_redis(valkey_server.url, claim_after=60)
    taken: list[Delivery] = []
    consumer = await bus.consume(queue, taken.append)
    await client.xadd(queue, {"data": b"1"})
    await eventually(lambda: taken)
    await eventually(lambda: consumer.asleep or not consumer._link.waits_for_ring)
    proxy.hold()
    await client.xadd(queue, {"data": b"unseen"})
    await eventually(lambda: proxy.held)
    if consumer.asleep:
        consumer._rung()  # what would ring it is held
    await eventually(lambda: client.xpending(queue, "esl-bridge"), lambda found: found["pending"] == 2)
    await consumer.drain(0.05)
    proxy.open.set()

    async def idle() -> int:
        pending = await client.xpending_range(queue, "esl-bridge", "-", "+", 10)
        return int(max(entry["time_since_delivered"] for entry in pending))

    await eventually(idle, lambda value: value >= 60_000)
    heir: list[Delivery] = []
    await other.consume(queue, heir.append)
    await eventually(lambda: heir)
    assert (heir[0].payload, heir[0].claimed) == (b"unseen", True)
    assert len(taken) == 1


async def test_a_failing_handler_does_not_end_the_consumer(
    open_redis: Open, valkey_server: EmbeddedBroker, client: redis.asyncio.Redis, queue: str, eventually: Eventually
) -> None:
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))
    taken: list[bytes] = []

    def handler(delivery: Delivery) -> None:
        taken.append(delivery.payload)
        if delivery.payload == b"bad":
            raise ValueError("a fault of ours")

    bus = await open_redis(valkey_server.url)
    await bus.consume(queue, handler)
    await client.xadd(queue, {"data": b"bad"})
    await client.xadd(queue, {"data": b"good"})
    await eventually(lambda: taken == [b"bad", b"good"])
    assert isinstance(told[0]["exception"], ValueError)


async def test_a_reply_over_the_limit_is_refused_and_stays_in_hand(
    open_redis: Open,
    valkey_server: EmbeddedBroker,
    client: redis.asyncio.Redis,
    queue: str,
    eventually: Eventually,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bridge.bus.redis.answers.MAX_PAYLOAD", 10)
    bus = await open_redis(valkey_server.url)
    taken: list[Delivery] = []
    await bus.consume(queue, taken.append)
    await client.xadd(queue, {"data": b"x"})
    await eventually(lambda: taken)
    with pytest.raises(MessageTooLarge):
        taken[0].finish("esl.reply.x", b"x" * 11, "")
    taken[0].finish(f"esl.reply.{queue}", b"small", "")
    assert await client.blpop([f"esl.reply.{queue}"], timeout=10)


async def test_a_request_needs_the_bus(open_redis: Open, valkey_server: EmbeddedBroker, queue: str) -> None:
    bus = await open_redis(valkey_server.url, connect=False)
    with pytest.raises(BusUnavailable):
        await bus.request(queue, b"x", "", lambda payload, kind: None)


@pytest.mark.parametrize("callers", [1, 200])
async def test_many_requests_share_a_few_connections(
    open_redis: Open, valkey_server: EmbeddedBroker, client: redis.asyncio.Redis, queue: str, callers: int
) -> None:
    bus = await open_redis(valkey_server.url)
    asking = await open_redis(valkey_server.url, name=f"asking-{queue}")

    def answer(delivery: Delivery) -> None:
        address = delivery.payload.decode()
        bus.send(address, b"accepted " + delivery.payload, "")
        delivery.finish(address, b"final " + delivery.payload, "")

    await bus.consume(queue, answer)

    async def ask() -> None:
        for _ in range(5):
            address = asking.new_reply_address()
            got: list[bytes] = []
            both = asyncio.Event()

            def handler(payload: bytes, kind: str, got: list[bytes] = got, both: asyncio.Event = both) -> None:
                got.append(payload)
                if len(got) == 2:
                    both.set()

            request = await asking.request(queue, address.encode(), "", handler, reply_to=address)
            await asyncio.wait_for(both.wait(), 20)
            await request.close()
            assert got == [f"{word} {address}".encode() for word in ("accepted", "final")]

    await asyncio.gather(*(ask() for _ in range(callers)))
    mine = [info for info in await client.client_list() if info["name"] == f"asking-{queue}"]
    assert len(mine) <= 2 + 16
    assert len(mine) <= 2 + callers // 32 + 1


@pytest.mark.parametrize("kind", ["stream", "list"])
async def test_consumers_that_share_a_room_share_it(
    valkey_server: EmbeddedBroker, open_redis: Open, queue: str, eventually: Eventually, client: Any, kind: str
) -> None:
    """All of them ask at once, and a burst answers all: one entry each above the room at the most."""
    bus = await open_redis(valkey_server.url, queue_type=kind)
    taken: list[Any] = []
    queues = [queue, *(f"{queue}.fs{number}" for number in range(3))]
    consumers = [await bus.consume(name, taken.append, room=lambda: max(0, 20 - len(taken))) for name in queues]
    await eventually(lambda: all(one.promised or one.asleep for one in consumers))
    async with client.pipeline(transaction=True) as burst:
        for number in range(50):
            for name in queues:
                if kind == "stream":
                    burst.xadd(name, {"data": f"{number}"})
                else:
                    burst.lpush(name, f"{number}")
        await burst.execute()
    await eventually(lambda: len(taken) >= 20)
    await asyncio.sleep(0.2)
    assert len(taken) <= 20 + len(queues)
    finished = 0
    while finished < 200:
        await eventually(lambda: taken)
        assert len(taken) <= 20 + len(queues)
        done, taken[:] = list(taken), []
        finished += len(done)
        for delivery in done:
            delivery.finish("", b"", "")
        for consumer in consumers:
            consumer.resume()


async def test_a_queue_is_served_while_another_idle_one_asks_for_all_the_room(
    valkey_server: EmbeddedBroker, open_redis: Open, queue: str, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node's own queue, whose line is short, beside the common one that nobody uses."""
    monkeypatch.setattr("bridge.bus.redis.stream_queue._BLOCK", 600.0)
    bus = await open_redis(valkey_server.url, worker="w")
    taken: list[Any] = []

    def room_in_line() -> int:
        return max(0, 4 - len(taken))

    idle = await bus.consume(queue, taken.append, room=lambda: 512 - len(taken))
    await eventually(lambda: idle.promised == 512 or idle.asleep)
    own = await bus.consume(f"{queue}.fs1", taken.append, room=room_in_line)
    for number in range(30):
        await bus.request(f"{queue}.fs1", b"%d" % number, "", lambda payload, kind: None)
    for number in range(30):
        await eventually(lambda: taken)
        was_full = not room_in_line()
        delivery = taken.pop(0)
        assert delivery.payload == b"%d" % number
        delivery.finish("", b"", "")
        if was_full:
            own.resume()
