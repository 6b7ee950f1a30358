"""What every bus promises about queues, requests and replies."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from bridge.bus.base import Bus, Delivery
from bridge.errors import NoConsumer

Eventually = Callable[..., Any]


class Worker:
    """Answers every request with its text in capitals, as soon as it is told to."""

    def __init__(self, bus: Bus, name: str = "worker") -> None:
        self.bus = bus
        self.name = name
        self.taken: list[Delivery] = []
        self.hold = False
        self.consumer: Any = None

    async def start(self, queue: str) -> Worker:
        self.consumer = await self.bus.consume(queue, self.accept, room=lambda: 1000)
        return self

    def accept(self, delivery: Delivery) -> None:
        self.taken.append(delivery)
        if not self.hold:
            self.answer(delivery)

    def answer(self, delivery: Delivery) -> None:
        request = json.loads(delivery.payload)
        reply = {"id": request["id"], "worker": self.name, "result": request["text"].upper()}
        delivery.finish(address(delivery), json.dumps(reply).encode(), "application/json")


def address(delivery: Delivery) -> str:
    return delivery.reply_to or json.loads(delivery.payload)["reply_to"]


class Caller:
    """Sends requests and keeps their replies by id."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.replies: dict[str, list[dict[str, Any]]] = {}
        self.types: Counter[str] = Counter()

    async def ask(self, queue: str, identity: str, text: str = "hello") -> Any:
        replies = self.replies.setdefault(identity, [])

        def arrived(payload: bytes, content_type: str) -> None:
            replies.append(json.loads(payload))
            self.types[content_type] += 1

        reply_to = self.bus.new_reply_address()
        body = {"id": identity, "text": text} | ({"reply_to": reply_to} if reply_to else {})
        return await self.bus.request(queue, json.dumps(body).encode(), "application/json", arrived, reply_to=reply_to)

    def answered(self) -> int:
        return sum(1 for replies in self.replies.values() if replies)


async def test_a_request_gets_its_reply(station: Any, eventually: Eventually) -> None:
    worker = await Worker(await station.open()).start(station.queue)
    caller = Caller(await station.open())
    await caller.ask(station.queue, "r1")
    await eventually(caller.answered)
    assert caller.replies == {"r1": [{"id": "r1", "worker": "worker", "result": "HELLO"}]}
    (delivery,) = worker.taken
    assert isinstance(delivery, Delivery)
    assert delivery.queue == station.queue
    assert delivery.claimed is False
    assert delivery.doubtful is False
    assert isinstance(delivery.entry_id, str)
    assert dict(delivery.headers) is not None


async def test_many_requests_are_not_crossed(station: Any, eventually: Eventually) -> None:
    await Worker(await station.open()).start(station.queue)
    caller = Caller(await station.open())
    await asyncio.gather(*(caller.ask(station.queue, f"r{number}", f"text {number}") for number in range(200)))
    await eventually(lambda: caller.answered() == 200)
    for number in range(200):
        assert [reply["result"] for reply in caller.replies[f"r{number}"]] == [f"TEXT {number}"]


async def test_workers_share_a_queue(station: Any, eventually: Eventually) -> None:
    workers = [await Worker(await station.open(), name).start(station.queue) for name in "ab"]
    caller = Caller(await station.open())
    for number in range(100):
        await caller.ask(station.queue, f"r{number}")
    await eventually(lambda: caller.answered() == 100)
    assert all(len(replies) == 1 for replies in caller.replies.values())
    assert sum(len(worker.taken) for worker in workers) == 100


async def test_queues_are_apart(station: Any, eventually: Eventually) -> None:
    bus = await station.open()
    everybody = await Worker(bus, "everybody").start(station.queue)
    node = await Worker(bus, "node").start(f"{station.queue}.fs1")
    caller = Caller(await station.open())
    await caller.ask(station.queue, "r1")
    await caller.ask(f"{station.queue}.fs1", "r2")
    await eventually(lambda: caller.answered() == 2)
    assert [len(everybody.taken), len(node.taken)] == [1, 1]
    assert node.taken[0].queue == f"{station.queue}.fs1"


async def test_several_replies_come_in_order(station: Any, eventually: Eventually) -> None:
    bus = await station.open()
    worker = Worker(bus)

    def accept(delivery: Delivery) -> None:
        bus.send(address(delivery), b'{"status":"accepted"}', "application/json")
        worker.answer(delivery)

    await bus.consume(station.queue, accept, room=lambda: 10)
    caller = Caller(await station.open())
    await caller.ask(station.queue, "r1")
    await eventually(lambda: len(caller.replies["r1"]) == 2)
    assert caller.replies["r1"][0] == {"status": "accepted"}


async def test_a_closed_request_hears_no_more(station: Any, eventually: Eventually) -> None:
    worker = Worker(await station.open())
    worker.hold = True
    await worker.start(station.queue)
    caller = Caller(await station.open())
    pending = await caller.ask(station.queue, "r1")
    await eventually(lambda: worker.taken)
    await pending.close()
    worker.answer(worker.taken[0])
    worker.hold = False
    await caller.ask(station.queue, "r2")
    await eventually(lambda: caller.replies["r2"])
    assert caller.replies["r1"] == []


async def test_large_requests_and_replies(station: Any, eventually: Eventually) -> None:
    await Worker(await station.open()).start(station.queue)
    caller = Caller(await station.open())
    await caller.ask(station.queue, "r1", "x" * 700_000)
    await eventually(lambda: caller.replies["r1"])
    assert len(caller.replies["r1"][0]["result"]) == 700_000


async def test_nobody_consumes(station: Any) -> None:
    if not station.tells_no_consumer:
        pytest.skip("a request waits in this queue until somebody comes")
    caller = Caller(await station.open())
    with pytest.raises(NoConsumer):
        await caller.ask(station.queue, "r1")


async def test_a_rejected_request_is_a_dead_letter(station: Any, eventually: Eventually) -> None:
    bus = await station.open()
    await bus.consume(station.queue, lambda delivery: delivery.reject("not a map: \r\n é"), room=lambda: 10)
    caller = await station.open()
    await caller.request(station.queue, b"garbage", "application/json", lambda _payload, _type: None)
    for _ in range(500):
        if await station.dead_letters() == [b"garbage"]:
            break
        await asyncio.sleep(0.01)
    assert await station.dead_letters() == [b"garbage"]


async def test_finish_without_an_address_writes_nothing(station: Any, eventually: Eventually) -> None:
    bus = await station.open()
    taken: list[Delivery] = []

    def accept(delivery: Delivery) -> None:
        taken.append(delivery)
        delivery.finish("", b"", "application/json")

    await bus.consume(station.queue, accept, room=lambda: 10)
    caller = Caller(await station.open())
    await caller.ask(station.queue, "r1")
    await eventually(lambda: taken)
    await bus.flush(5)
    assert caller.replies["r1"] == []


async def test_replies_leave_after_the_drain(station: Any, eventually: Eventually) -> None:
    worker = Worker(await station.open())
    worker.hold = True
    await worker.start(station.queue)
    caller = Caller(await station.open())
    for number in range(10):
        await caller.ask(station.queue, f"r{number}")
    await eventually(lambda: len(worker.taken) == 10)
    await worker.consumer.drain(5)
    for delivery in worker.taken:
        worker.answer(delivery)
    began = asyncio.get_running_loop().time()
    await worker.bus.close()
    took = asyncio.get_running_loop().time() - began
    try:
        await eventually(lambda: caller.answered() == 10)
    except AssertionError:
        # All of them: close() gave a stalled broker up, their entries are pending. One: the broker lost it.
        missing = [identity for identity, replies in caller.replies.items() if not replies]
        raise AssertionError(f"no reply to {missing}; close() took {took:.2f} s") from None


async def test_workers_restart_in_turn_and_no_request_is_lost(station: Any, eventually: Eventually) -> None:
    """32 callers, two places for workers, each worker replaced several times under load."""
    if not station.forgets_closed_readers:
        pytest.skip("this fake goes on reading for connections that are closed")
    caller = Caller(await station.open())
    stop = False
    asked = 0

    async def call(number: int) -> None:
        nonlocal asked
        while not stop:
            asked += 1
            identity = f"r{number}-{asked}"
            await caller.ask(station.queue, identity)
            await eventually(lambda identity=identity: caller.replies[identity])

    async def place(name: str, pause: float) -> None:
        worker = await Worker(await station.open(), name).start(station.queue)
        for round_number in range(3):
            await asyncio.sleep(pause)
            successor = await Worker(await station.open(), f"{name}{round_number}").start(station.queue)
            await worker.consumer.drain(5)
            await worker.bus.close()
            worker = successor

    places = [asyncio.create_task(place("a", 0.1)), asyncio.create_task(place("b", 0.15))]
    await asyncio.sleep(0.05)
    callers = [asyncio.create_task(call(number)) for number in range(32)]
    await asyncio.gather(*places)
    stop = True
    await asyncio.gather(*callers)
    assert asked >= 32  # how many more is a matter of the machine
    assert all(len(replies) == 1 for replies in caller.replies.values())


async def test_an_early_consumer_serves_once_connected(station: Any, eventually: Eventually) -> None:
    bus = station.new()
    await Worker(bus).start(station.queue)
    bus.start()
    await eventually(lambda: bus.connected)
    caller = Caller(await station.open())
    await caller.ask(station.queue, "r1")
    await eventually(caller.answered)
