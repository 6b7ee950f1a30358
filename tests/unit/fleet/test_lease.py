"""A lease is believed for less than its time, counted from before it was asked for."""

from __future__ import annotations

import secrets

import pytest

from bridge.bus.memory import MemoryBus
from bridge.bus.storage import Grant, Held
from bridge.errors import BusUnavailable
from bridge.fleet.lease import Lease, boot_time


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class House:
    def __init__(self) -> None:
        self.bus = MemoryBus(f"memory://{secrets.token_hex(4)}")
        self.bus.start()
        self.clock = Clock()
        self.bus.broker.shelf.clock = self.clock

    def lease(self, holder: str = "a") -> Lease:
        return Lease(self.bus.storage, "node.fs1", holder, 5.0, self.clock)


@pytest.fixture
async def house() -> House:
    return House()


async def test_it_is_valid_for_four_fifths_of_its_time(house: House) -> None:
    lease = house.lease()
    assert not lease.valid
    assert isinstance(await lease.acquire(), Grant)
    house.clock.now += 3.9
    assert lease.valid
    house.clock.now += 0.2
    assert not lease.valid
    assert isinstance(await house.lease("b").acquire(), Held)


async def test_a_slow_answer_does_not_make_it_longer(house: House) -> None:
    lease = house.lease()
    renew = house.bus.storage.renew

    async def slow(*arguments: object) -> bool:
        house.clock.now += 2.0
        return await renew(*arguments)  # type: ignore[arg-type]

    await lease.acquire()
    house.bus.storage.renew = slow  # type: ignore[method-assign,assignment]
    assert await lease.renew()
    house.clock.now += 2.1
    assert not lease.valid


async def test_a_renewal_extends_it_and_one_that_failed_ends_it(house: House) -> None:
    lease, other = house.lease(), house.lease("b")
    await lease.acquire()
    house.clock.now += 3
    assert await lease.renew(b"note")
    house.clock.now += 3
    assert lease.valid
    house.clock.now += 6
    assert isinstance(await other.acquire(), Grant)
    assert not await lease.renew()
    assert not lease.valid
    assert other.token > 0


async def test_an_unreachable_broker_leaves_it_as_it_is(house: House) -> None:
    lease = house.lease()
    await lease.acquire()
    house.bus.broker.stop()
    with pytest.raises(BusUnavailable):
        await lease.renew()
    assert lease.valid
    house.clock.now += 4.1
    assert not lease.valid


async def test_released_it_is_not_valid_even_before_the_broker_knows(house: House) -> None:
    lease = house.lease()
    await lease.acquire()
    house.bus.broker.stop()
    with pytest.raises(BusUnavailable):
        await lease.release()
    assert not lease.valid


def test_the_clock_is_one_that_nobody_sets() -> None:
    assert boot_time() <= boot_time()
