"""Signs of life in the ledger on Redis: one that could not be written is tried again, until the worker leaves."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from bridge.bus.redis.link import Operation
from bridge.bus.redis.records import RedisRecords
from bridge.errors import BusUnavailable


class Writers:
    """A Cluster whose server for the sign of life has no connection yet."""

    connected = True

    def __init__(self) -> None:
        self.absent = True
        self.written: list[bytes] = []
        self.tries = 0

    def submit(self, operation: Operation) -> None:
        self.tries += 1
        if self.absent:
            operation.done([], BusUnavailable("the broker is away"))
        else:
            self.written.append(operation.commands)
            operation.done([b"OK"], None)


@pytest.fixture
def writers(monkeypatch: pytest.MonkeyPatch) -> Writers:
    monkeypatch.setattr("bridge.bus.redis.records._AGAIN", 0.001)
    return Writers()


async def tries(writers: Any, count: int) -> None:
    async with asyncio.timeout(10):
        while writers.tries < count:  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def test_a_sign_of_life_is_tried_again_until_it_is_written(writers: Any) -> None:
    RedisRecords(writers).beat("w1.1")
    await tries(writers, 3)
    writers.absent = False
    await tries(writers, writers.tries + 1)
    (written,) = writers.written
    assert b"SET" in written
    assert b"esl.ledger.alive.w1.1" in written
    before = writers.tries
    await asyncio.sleep(0.02)
    assert writers.tries == before


async def test_a_worker_that_left_gives_no_sign_of_life(writers: Any) -> None:
    records = RedisRecords(writers)
    records.beat("w1.1")
    writers.absent = False
    records.leave("w1.1")
    await asyncio.sleep(0.02)
    assert [b"DEL" in written for written in writers.written] == [True]
