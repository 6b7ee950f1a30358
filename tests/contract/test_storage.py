"""Leases, tables and notes behave alike on every bus that keeps things."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from bridge.bus.nats import NatsBus
from bridge.bus.nats.storage import NatsStorage
from bridge.bus.redis import RedisBus
from bridge.bus.redis.storage import RedisStorage
from bridge.bus.storage import NODES, WORKERS, Grant, Held, Storage
from bridge.errors import BusUnavailable

TTL = 0.6


class Shelf:
    """One broker's storage, for as many workers as a test wants."""

    def __init__(self, station: Any) -> None:
        self._station = station
        self.names = f"esltest{secrets.token_hex(4)}"

    async def open(self, lease_time: float = TTL) -> Storage:
        bus = await self._station.open()
        storage: Storage = bus.storage
        if isinstance(bus, NatsBus):
            storage = NatsStorage(bus._storage_keeper, "_INBOX", prefix=self.names)
            self._nats = bus
        elif isinstance(bus, RedisBus):
            storage = RedisStorage(bus._storage_writers, prefix=self._station.prefix)
        await storage.open(lease_time)
        return storage

    async def forget_leases(self) -> None:
        """As if somebody had deleted what holds them."""
        if hasattr(self, "_nats"):
            await self._nats.storage._questions.ask(f"$JS.API.STREAM.DELETE.KV_{self.names}-leases", b"", 5.0)
        elif hasattr(self._station, "client"):
            client = self._station.client()
            await client.delete(*await client.keys(f"*{self._station.prefix}*"))
            await client.aclose()

    async def clean(self) -> None:
        if hasattr(self, "_nats"):
            for bucket in ("leases", "kept", "workers", "nodes"):
                await self._nats.storage._questions.ask(f"$JS.API.STREAM.DELETE.KV_{self.names}-{bucket}", b"", 5.0)


@pytest.fixture
async def shelf(station: Any) -> AsyncIterator[Shelf]:
    found = Shelf(station)
    yield found
    await found.clean()


async def taken(storage: Storage, name: str, holder: str, ttl: float = TTL) -> Grant:
    """Take a lease as soon as it can be had."""
    async with asyncio.timeout(10):
        while True:
            answer = await storage.acquire(name, holder, ttl)
            if isinstance(answer, Grant):
                return answer
            await asyncio.sleep(min(answer.remaining + 0.01, 0.1))


async def test_a_lease_has_one_holder_and_says_who(shelf: Shelf) -> None:
    one, two = await shelf.open(), await shelf.open()
    grant = await taken(one, "node.fs1", "a")
    held = await two.acquire("node.fs1", "b", TTL)
    assert isinstance(held, Held)
    assert held.holder == "a"
    assert 0 < held.remaining <= TTL
    assert await one.renew("node.fs1", grant.token, TTL)
    assert isinstance(await two.acquire("node.fs2", "b", TTL), Grant)


async def test_the_holder_gets_its_own_lease_again(shelf: Shelf) -> None:
    one = await shelf.open()
    grant = await taken(one, "node.fs1", "a")
    again = await one.acquire("node.fs1", "a", TTL)
    assert isinstance(again, Grant)
    assert again.token >= grant.token
    assert await one.renew("node.fs1", again.token, TTL)


async def test_a_lease_that_is_not_renewed_expires_and_the_next_token_is_greater(shelf: Shelf) -> None:
    one, two = await shelf.open(), await shelf.open()
    grant = await taken(one, "node.fs1", "a")
    other = await taken(two, "node.fs1", "b")
    assert other.token > grant.token
    assert not await one.renew("node.fs1", grant.token, TTL)
    assert not await one.release("node.fs1", grant.token)
    assert await two.renew("node.fs1", other.token, TTL)


async def test_a_renewed_lease_outlives_its_time(shelf: Shelf) -> None:
    one, two = await shelf.open(), await shelf.open()
    grant = await taken(one, "node.fs1", "a")
    for _ in range(8):
        await asyncio.sleep(TTL / 5)
        assert await one.renew("node.fs1", grant.token, TTL)
        assert isinstance(await two.acquire("node.fs1", "b", TTL), Held)


async def test_a_released_lease_is_free_at_once_and_hands_its_note_on(shelf: Shelf) -> None:
    one, two = await shelf.open(), await shelf.open()
    grant = await taken(one, "node.fs1", "a")
    assert grant.note == b""
    assert await one.renew("node.fs1", grant.token, TTL, b"first")
    assert await one.release("node.fs1", grant.token, b"last")
    other = await two.acquire("node.fs1", "b", TTL)
    assert isinstance(other, Grant)
    assert other.note == b"last"
    assert other.token > grant.token


async def test_a_note_outlives_its_holder(shelf: Shelf) -> None:
    one, two = await shelf.open(), await shelf.open()
    grant = await taken(one, "node.fs1", "a")
    assert await one.renew("node.fs1", grant.token, TTL, b"\x00mark")
    assert await one.renew("node.fs1", grant.token, TTL)
    assert (await taken(two, "node.fs1", "b")).note == b"\x00mark"
    assert await two.read("node.fs1", "note") == b"\x00mark"


async def test_a_holder_of_old_cannot_write_the_note(shelf: Shelf) -> None:
    one, two = await shelf.open(), await shelf.open()
    grant = await taken(one, "node.fs1", "a")
    assert await one.renew("node.fs1", grant.token, TTL, b"old")
    other = await taken(two, "node.fs1", "b")
    assert await two.renew("node.fs1", other.token, TTL, b"new")
    assert not await one.renew("node.fs1", grant.token, TTL, b"late")
    assert await two.read("node.fs1", "note") == b"new"


async def test_a_storage_that_lost_its_leases_gives_greater_tokens(shelf: Shelf) -> None:
    one, two = await shelf.open(), await shelf.open()
    for number in range(20):
        last = await taken(one, f"node.fs{number}", "a")
    await shelf.forget_leases()
    with contextlib.suppress(BusUnavailable):  # it finds the bucket gone, and makes it at the next try
        await two.acquire("node.fs0", "b", TTL)
    assert (await taken(two, "node.fs1", "b")).token > last.token


async def test_of_many_who_want_a_lease_one_gets_it(shelf: Shelf) -> None:
    storages = [await shelf.open(30.0) for _ in range(5)]
    answers = await asyncio.gather(*(one.acquire("node.fs1", f"w{n}", 30.0) for n, one in enumerate(storages)))
    assert sum(isinstance(answer, Grant) for answer in answers) == 1


async def test_many_leases_are_renewed_together(shelf: Shelf) -> None:
    one = await shelf.open()
    grants = {name: await taken(one, name, "a") for name in (f"node.fs{n}" for n in range(50))}
    assert all(await asyncio.gather(*(one.renew(name, it.token, TTL, b"m") for name, it in grants.items())))


async def test_entries_of_a_table_live_as_long_as_they_are_written(
    shelf: Shelf, eventually: Callable[..., Any]
) -> None:
    one, two = await shelf.open(), await shelf.open()
    await one.put(WORKERS, "host-1", b"one", TTL)
    await two.put(WORKERS, "host.2 é", b"two", TTL)
    assert await two.entries(WORKERS) == {"host-1": b"one", "host.2 é": b"two"}
    async with asyncio.timeout(10):
        while "host-1" in (found := await two.entries(WORKERS)):
            assert found["host.2 é"] == b"two"
            await two.put(WORKERS, "host.2 é", b"two", TTL)
            await asyncio.sleep(TTL / 8)
    await two.remove(WORKERS, "host.2 é")
    async with asyncio.timeout(10):
        while await one.entries(WORKERS):  # noqa: ASYNC110 - another client writes it
            await asyncio.sleep(0.02)


async def test_entries_without_a_time_stay_until_they_are_removed(shelf: Shelf) -> None:
    one = await shelf.open()
    assert await one.entries(NODES) == {}
    await one.put(NODES, "fs9", b"{}")
    await asyncio.sleep(TTL * 1.5)
    two = await shelf.open()
    assert await two.entries(NODES) == {"fs9": b"{}"}
    await two.remove(NODES, "fs9")
    await two.remove(NODES, "never")
    async with asyncio.timeout(10):
        while await one.entries(NODES):  # noqa: ASYNC110 - another client writes it
            await asyncio.sleep(0.02)


async def test_what_is_written_beside_a_lease_is_read_by_others(shelf: Shelf) -> None:
    one, two = await shelf.open(), await shelf.open()
    assert await two.read("node.fs1", "calls") == b""
    await one.write("node.fs1", "calls", b"\xff\x00")
    assert await two.read("node.fs1", "calls") == b"\xff\x00"


async def test_a_word_reaches_who_listens(shelf: Shelf, station: Any, eventually: Callable[..., Any]) -> None:
    one = await shelf.open()
    listener = await station.open()
    heard: list[bytes] = []
    await listener.subscribe(f"{station.prefix}.word", lambda received: heard.append(received.payload))
    async with asyncio.timeout(10):
        while not heard:  # a subscription of Redis' takes a moment
            one.tell(f"{station.prefix}.word", b"look")
            await asyncio.sleep(0.02)
    assert set(heard) == {b"look"}


async def test_a_bucket_that_was_deleted_is_made_again(shelf: Shelf, station: Any) -> None:
    if "nats" not in station.kind:
        return  # only JetStream has buckets
    one = await shelf.open()
    grant = await taken(one, "node.fs1", "a")
    for bucket in ("leases", "kept"):
        await shelf._nats.storage._questions.ask(f"$JS.API.STREAM.DELETE.KV_{shelf.names}-{bucket}", b"", 5.0)
    async with asyncio.timeout(10):
        while True:
            try:
                assert not await one.renew("node.fs1", grant.token, TTL, b"m")
                break
            except BusUnavailable:
                await asyncio.sleep(0.05)
    async with asyncio.timeout(10):
        while True:
            try:  # each bucket is missed once
                again = await taken(one, "node.fs1", "a")
                break
            except BusUnavailable:
                await asyncio.sleep(0.05)
    assert await one.renew("node.fs1", again.token, TTL, b"m")
    assert await one.read("node.fs1", "note") == b"m"
