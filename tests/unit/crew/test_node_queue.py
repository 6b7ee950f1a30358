"""A node's own queue: lost and taken again at once, left while it is being taken, never held twice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from bridge.crew.node_queue import NodeQueue
from bridge.errors import BusUnavailable


class Broker:
    """Gives consumers of one queue; ``gate`` holds the giving up, ``refuse`` times it is refused."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.refuse = 0
        self.held = self.most = self.given = self.resumed = 0

    async def consume(self, node: str) -> Any:
        if self.refuse:
            self.refuse -= 1
            raise BusUnavailable("away")
        self.held += 1
        self.given += 1
        self.most = max(self.most, self.held)
        await self.gate.wait()
        broker = self

        class Held:
            def resume(self) -> None:
                broker.resumed += 1

            async def drain(self, grace: float) -> None:
                await asyncio.sleep(0.01)
                broker.held -= 1

        return Held()


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


@pytest.fixture
def broker() -> Broker:
    return Broker()


async def test_lost_and_taken_again_at_once_it_is_taken(broker: Broker) -> None:
    queue = NodeQueue("fs1", broker.consume, lambda: True)
    queue.take()
    await until(lambda: queue.served)
    for _ in range(3):
        queue.leave()
        queue.take()
    assert not queue.served
    await until(lambda: queue.served)
    await asyncio.sleep(0.05)
    assert queue.served
    assert (broker.held, broker.most) == (1, 1)
    queue.resume()
    assert broker.resumed == 1
    await queue.close()
    assert broker.held == 0


async def test_left_while_it_is_being_taken_nobody_holds_it(broker: Broker) -> None:
    broker.gate.clear()
    queue = NodeQueue("fs1", broker.consume, lambda: True)
    queue.take()
    await until(lambda: broker.held)
    left = queue.leave()
    broker.gate.set()
    await left
    assert (broker.held, queue.served) == (0, False)


async def test_what_never_comes_does_not_hold_up_the_end(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridge.crew.node_queue.QUEUE_GRACE", 0.01)
    broker.gate.clear()
    queue = NodeQueue("fs1", broker.consume, lambda: True)
    queue.take()
    await until(lambda: broker.held)
    async with asyncio.timeout(5):
        await queue.close()


async def test_it_is_asked_for_again_and_only_while_that_is_allowed(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge.crew.node_queue.AGAIN", 0.005)
    allowed = False
    broker.refuse = 2
    queue = NodeQueue("fs1", broker.consume, lambda: allowed)
    queue.take()
    await asyncio.sleep(0.03)
    assert (broker.refuse, queue.served) == (2, False)
    allowed = True
    await until(lambda: queue.served)
    assert broker.refuse == 0
    await queue.close()


async def test_a_node_without_a_queue_of_its_own_is_served() -> None:
    queue = NodeQueue("fs1", None, lambda: True)
    queue.take()
    assert queue.served
    await queue.close()
