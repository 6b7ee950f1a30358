"""Records behave alike on every bus: set once, swapped by who knows what is there, gone when they expire."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from bridge.bus.nats import NatsBus
from bridge.bus.nats.questions import Questions
from bridge.bus.nats.records import NatsRecords
from bridge.bus.records import Record, Records
from bridge.bus.redis import RedisBus
from bridge.bus.redis.records import RedisRecords
from bridge.errors import BusError, MessageTooLarge

Eventually = Callable[..., Any]


class Shelf:
    """One broker's records, for as many workers as a test wants; keys are the test's own."""

    def __init__(self, station: Any) -> None:
        self._station = station
        self.names = f"esltest{secrets.token_hex(4)}"
        self.buses: list[Any] = []

    async def open(self, lasting: float = 60.0, claim_after: float = 0.5) -> Records:
        bus = await self._station.open()
        self.buses.append(bus)
        records: Records = bus.records
        if isinstance(bus, NatsBus):
            records = NatsRecords(
                bus._keeper, Questions(bus._keeper, "_INBOX"), "_INBOX", bus.leave_soon, prefix=self.names
            )
            bus.records = records
        elif isinstance(bus, RedisBus):
            records = RedisRecords(bus._writers, prefix=self._station.prefix)
        assert isinstance(records, Records)
        await records.open(lasting, claim_after)
        return records

    async def clean(self) -> None:
        for bus in self.buses:
            if isinstance(bus, NatsBus):
                await Questions(bus._keeper, "_INBOX").ask(f"$JS.API.STREAM.DELETE.KV_{self.names}-ledger", b"", 5.0)
                return


@pytest.fixture
async def shelf(station: Any) -> AsyncIterator[Shelf]:
    made = Shelf(station)
    yield made
    await made.clean()


async def swap(
    records: Records, key: str, value: bytes, expected: Record | None = None, ttl: float = 60.0
) -> tuple[bool, Record | None]:
    answer: asyncio.Future[tuple[bool, Record | None]] = asyncio.get_running_loop().create_future()

    def swapped(written: bool, found: Record | None, error: BusError | None) -> None:
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result((written, found))

    records.swap(key, value, expected, ttl, swapped)
    return await asyncio.wait_for(answer, 10)


async def free(records: Records, key: str, expected: Record) -> bool:
    answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    records.free(key, expected, lambda done, _found, _error: answer.set_result(done))
    return await asyncio.wait_for(answer, 10)


async def lives(records: Records, instance: str) -> bool:
    answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    records.living(instance, answer.set_result)
    return await asyncio.wait_for(answer, 10)


async def test_a_key_is_set_once_and_swapped_by_who_knows_it(shelf: Shelf) -> None:
    one, two = await shelf.open(), await shelf.open()
    written, mine = await swap(one, "esl.cmd/a b*>\x7fü", b"first")
    assert written
    assert mine is not None
    written, found = await swap(two, "esl.cmd/a b*>\x7fü", b"second")
    assert not written
    assert found is not None
    assert found.value == b"first"
    written, now = await swap(two, "esl.cmd/a b*>\x7fü", b"second", found)
    assert written
    assert now is not None
    written, found = await swap(one, "esl.cmd/a b*>\x7fü", b"third", mine)
    assert not written
    assert found is not None
    assert found.value == b"second"


async def test_many_at_once_get_one_winner_each(shelf: Shelf) -> None:
    both = [await shelf.open(), await shelf.open()]
    answers = await asyncio.gather(
        *(swap(both[number % 2], f"k{number // 4}", str(number).encode()) for number in range(200))
    )
    for key in range(50):
        four = answers[4 * key : 4 * key + 4]
        assert sum(written for written, _ in four) == 1
        assert len({found.value for _, found in four if found is not None}) == 1


async def test_a_freed_key_is_free_again(shelf: Shelf) -> None:
    records = await shelf.open()
    _, mine = await swap(records, "key", b"mark")
    assert mine is not None
    assert not await free(records, "key", Record(b"other"))
    assert await free(records, "key", mine)
    assert await free(records, "key", mine)
    written, found = await swap(records, "key", b"again")
    assert (written, found and found.value) == (True, b"again")
    # By its value, where the revision is not known (the answer was lost).
    assert await free(records, "key", Record(b"again"))
    assert (await swap(records, "key", b"third"))[0]
    assert (await swap(records, "key", b"fourth", Record(b"third")))[0]
    assert not (await swap(records, "key", b"fifth", Record(b"third")))[0]


async def test_records_expire(shelf: Shelf) -> None:
    records = await shelf.open(lasting=1.0)
    await swap(records, "key", b"one", ttl=1.0)
    async with asyncio.timeout(15):
        while not (await swap(records, "key", b"two", ttl=1.0))[0]:  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def test_who_is_silent_is_gone_and_who_leaves_is_gone_at_once(shelf: Shelf) -> None:
    one, two = await shelf.open(), await shelf.open()
    one.beat("w1")
    one.beat("w2")
    await asyncio.sleep(0.1)
    assert await lives(two, "w1")
    one.leave("w2")
    async with asyncio.timeout(10):
        while await lives(two, "w2"):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        while await lives(two, "w1"):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    one.beat("w1")
    async with asyncio.timeout(10):
        while not await lives(two, "w1"):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_what_is_too_large_is_refused_before_it_is_written(shelf: Shelf) -> None:
    records = await shelf.open()
    with pytest.raises(MessageTooLarge):
        await swap(records, "key", bytes(shelf.buses[0].max_payload + 1))
    assert (await swap(records, "key", b"small"))[0]
