"""Durable queues on JetStream: nothing is lost, no more is taken than there is room for, in order where promised."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.js.api import DiscardPolicy
from nats.js.errors import BadRequestError, NotFoundError

from bridge.bus.base import Delivery
from bridge.bus.embedded import EmbeddedBroker
from bridge.bus.nats import NatsBus
from bridge.bus.nats.durable import QueueNames
from bridge.bus.nats.entry import read_ack
from bridge.errors import BusRefused, NoConsumer

QUEUE = "esl.queue"
OLD = os.environ.get("ESL_BRIDGE_TEST_OLD_NATS") or shutil.which("nats-server")

Eventually = Callable[..., Any]


@pytest.fixture(params=["wheel", *(["old"] if OLD else [])])
async def server(request: pytest.FixtureRequest) -> AsyncIterator[EmbeddedBroker]:
    """The server of the wheel, and the older one of this machine where there is one."""
    executable = Path(OLD or "") if request.param == "old" else None
    async with EmbeddedBroker("nats", executable=executable) as broker:
        yield broker


class Taker:
    """A worker that keeps what it takes until it is told to answer."""

    def __init__(self, bus: NatsBus, name: str) -> None:
        self.bus = bus
        self.name = name
        self.room = 1_000
        self.hold = False
        self.taken: list[Delivery] = []
        self.open: list[Delivery] = []

    async def start(self, queue: str = QUEUE) -> Taker:
        self.consumer = await self.bus.consume(queue, self.accept, room=lambda: max(0, self.room - len(self.open)))
        return self

    def accept(self, delivery: Delivery) -> None:
        self.taken.append(delivery)
        self.open.append(delivery)
        if not self.hold:
            asyncio.get_running_loop().call_soon(self.answer, delivery)

    def answer(self, delivery: Delivery) -> None:
        self.open.remove(delivery)
        body = json.loads(delivery.payload)
        delivery.finish(body["reply_to"], json.dumps({"n": body["n"], "by": self.name}).encode(), "application/json")
        self.consumer.resume()

    def release(self) -> None:
        self.hold = False
        for delivery in list(self.open):
            self.answer(delivery)

    @property
    def numbers(self) -> list[int]:
        return [json.loads(delivery.payload)["n"] for delivery in self.taken]


class Asker:
    def __init__(self, bus: NatsBus) -> None:
        self.bus = bus
        self.answers: dict[int, list[str]] = {}

    async def ask(self, number: int, queue: str = QUEUE) -> None:
        answers = self.answers.setdefault(number, [])
        address = self.bus.new_reply_address(queue)
        body = json.dumps({"n": number, "reply_to": address}).encode()
        await self.bus.request(
            queue,
            body,
            "application/json",
            lambda data, _type: answers.append(json.loads(data)["by"]),
            reply_to=address,
            headers={"traceparent": "00-aa-bb-01"},
        )

    @property
    def answered(self) -> int:
        return sum(map(bool, self.answers.values()))


async def test_an_entry_is_answered_and_gone(server: EmbeddedBroker, open_nats: Any, eventually: Eventually) -> None:
    taker = await Taker(await open_nats(server.url), "a").start()
    asker = Asker(await open_nats(server.url))
    for number in range(50):
        await asker.ask(number)
    await eventually(lambda: asker.answered == 50)
    assert set(map(tuple, asker.answers.values())) == {("a",)}
    one = taker.taken[0]
    assert isinstance(one, Delivery)
    assert (one.queue, one.reply_to, one.claimed, one.headers["traceparent"]) == (QUEUE, "", False, "00-aa-bb-01")
    assert one.queued_at is not None
    client = await nats.connect(server.url)
    info = await client.jetstream().stream_info("ESL_QUEUE")
    assert (str(info.config.retention), info.config.subjects) == ("workqueue", [QUEUE, f"{QUEUE}.>"])
    await eventually(lambda: not taker.open)
    async with asyncio.timeout(5):
        while (await client.jetstream().stream_info("ESL_QUEUE")).state.messages:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await client.close()


async def test_what_was_put_in_before_a_worker_came_is_served(
    server: EmbeddedBroker, open_nats: Any, eventually: Eventually
) -> None:
    asker = Asker(await open_nats(server.url))
    with pytest.raises(NoConsumer):
        await asker.ask(1)
    first = await Taker(await open_nats(server.url), "a").start()
    await first.consumer.drain(3)
    for number in range(2, 12):
        await asker.ask(number)
    assert asker.answered == 0
    await Taker(await open_nats(server.url), "b").start()
    await eventually(lambda: asker.answered == 10)


async def test_no_more_is_taken_than_there_is_room_for(
    server: EmbeddedBroker, open_nats: Any, eventually: Eventually
) -> None:
    taker = Taker(await open_nats(server.url), "a")
    taker.room, taker.hold = 4, True
    await taker.start()
    asker = Asker(await open_nats(server.url))
    for number in range(20):
        await asker.ask(number)
    await eventually(lambda: len(taker.open) == 4)
    other = await Taker(await open_nats(server.url), "b").start()
    await eventually(lambda: len(other.taken) == 16)
    assert len(taker.taken) == 4
    taker.release()
    await eventually(lambda: asker.answered == 20)


async def test_an_entry_in_hand_is_renewed_and_that_of_a_dead_worker_is_claimed(
    server: EmbeddedBroker, open_nats: Any, eventually: Eventually
) -> None:
    asker = Asker(await open_nats(server.url))
    slow = Taker(await open_nats(server.url, claim_after=1.0), "slow")
    slow.hold, slow.room = True, 1
    await slow.start()
    await asker.ask(1)
    await eventually(lambda: slow.open)
    dying = Taker(await open_nats(server.url, claim_after=1.0), "dying")
    dying.hold = True
    await dying.start()
    await asker.ask(2)
    await eventually(lambda: dying.open)
    heir = await Taker(await open_nats(server.url, claim_after=1.0), "heir").start()
    await dying.bus.close()
    await eventually(lambda: asker.answers[2] == ["heir"])
    assert [(one.claimed, json.loads(one.payload)["n"]) for one in heir.taken] == [(True, 2)]
    slow.release()
    await eventually(lambda: asker.answers[1] == ["slow"])
    assert len(slow.taken) == 1


async def test_what_lay_in_the_stream_before_the_link_is_in_doubt(
    server: EmbeddedBroker, open_nats: Any, eventually: Eventually
) -> None:
    """A server that is killed forgets deliveries of its last moments; what comes later nobody can have had."""
    taker = await Taker(await open_nats(server.url), "a").start()
    asker = Asker(await open_nats(server.url))
    for number in range(3):
        await asker.ask(number)
    await eventually(lambda: asker.answered == 3)
    assert [it.doubtful for it in taker.taken] == [False] * 3
    await taker.consumer.drain(5.0)  # or its last question could still be given what comes
    await taker.bus.close()
    await asker.ask(3)
    heir = await Taker(await open_nats(server.url), "b").start()
    await asker.ask(4)
    await eventually(lambda: asker.answered == 5)
    assert {number: it.doubtful for number, it in zip(heir.numbers, heir.taken, strict=True)} == {3: True, 4: False}
    heir.hold = True
    await asker.ask(5)
    await eventually(lambda: heir.open)
    await server.kill()
    await server.start()
    await eventually(lambda: heir.bus.connected and asker.bus.connected)
    heir.release()
    await eventually(lambda: asker.answered == 6)
    await asker.ask(6)
    await eventually(lambda: asker.answered == 7)
    assert not heir.taken[-1].doubtful


async def test_what_lay_in_our_socket_while_we_stood_still_counts_as_claimed(
    server: EmbeddedBroker, open_nats: Any, eventually: Eventually
) -> None:
    """By then the server may have given it to another worker, which may have run it, or refused it."""
    frozen = Taker(await open_nats(server.url, durable=QueueNames(), claim_after=3), "frozen")
    frozen.hold = True
    await frozen.start()
    await eventually(lambda: frozen.consumer._open)

    async def put(number: int) -> None:
        async with await nats.connect(server.url) as other:
            await other.jetstream().publish(QUEUE, json.dumps({"n": number}).encode())

    def meanwhile() -> None:
        asyncio.run(put(1))
        time.sleep(3)

    thread = threading.Thread(target=meanwhile)
    thread.start()
    thread.join()  # that is the freeze: our loop does not run
    await eventually(lambda: frozen.taken)
    assert (frozen.taken[0].claimed, frozen.taken[0].doubtful) == (True, False)
    await eventually(lambda: frozen.consumer._asked_at and time.monotonic() - frozen.consumer._asked_at < 1.0)
    await put(2)
    await eventually(lambda: len(frozen.taken) == 2)
    assert not frozen.taken[1].claimed


async def test_an_entry_that_was_let_go_is_the_next_ones(
    server: EmbeddedBroker, open_nats: Any, eventually: Eventually
) -> None:
    """Not acknowledged: whoever has it, or gets it, answers it."""
    asker = Asker(await open_nats(server.url))
    one = Taker(await open_nats(server.url, claim_after=1.0), "one")
    one.hold, one.room = True, 1
    await one.start()
    await asker.ask(1)
    await eventually(lambda: one.open)
    heir = await Taker(await open_nats(server.url, claim_after=1.0), "heir").start()
    assert one.bus.apart(QUEUE)
    assert not one.bus.apart("esl.cmd")
    one.open[0].let_go()
    one.open[0].let_go()
    await eventually(lambda: asker.answers[1] == ["heir"])
    assert [it.claimed for it in heir.taken] == [True]


async def test_a_nodes_queue_is_strict_and_one_at_a_time(
    server: EmbeddedBroker, open_nats: Any, eventually: Eventually
) -> None:
    one, two = Taker(await open_nats(server.url), "a"), Taker(await open_nats(server.url), "b")
    for taker in (one, two):
        await taker.start(f"{QUEUE}.fs1")
    most = 0
    order: list[int] = []
    for taker in (one, two):
        taken = taker.answer

        def answer(delivery: Delivery, taken: Any = taken) -> None:
            nonlocal most
            most = max(most, len(one.open) + len(two.open))
            order.append(json.loads(delivery.payload)["n"])
            taken(delivery)

        taker.answer = answer  # type: ignore[method-assign]
    asker = Asker(await open_nats(server.url))
    for number in range(30):
        await asker.ask(number, f"{QUEUE}.fs1")
    await eventually(lambda: asker.answered == 30)
    assert (order, most) == (list(range(30)), 1)


async def test_replies_wait_for_a_server_that_is_away(
    server: EmbeddedBroker, open_nats: Any, eventually: Eventually
) -> None:
    taker = Taker(await open_nats(server.url), "a")
    taker.hold = True
    await taker.start()
    asker = Asker(await open_nats(server.url))
    for number in range(5):
        await asker.ask(number)
    await eventually(lambda: len(taker.open) == 5)
    await server.kill()
    await eventually(lambda: not taker.bus.connected)
    taker.release()
    # The taker is back first, when nobody listens for its replies yet.
    asker.bus._keeper._rng.uniform = lambda low, high: 1.5  # type: ignore[method-assign]
    await server.start()
    await eventually(lambda: asker.answered == 5)
    await asker.ask(6)
    await eventually(lambda: asker.answered == 6)
    # What the killed server forgot of deliveries it makes again: no entry is lost, and the ledger knows repeats.
    assert set(taker.numbers) == {*range(5), 6}


async def test_a_drain_loses_nothing(server: EmbeddedBroker, open_nats: Any, eventually: Eventually) -> None:
    asker = Asker(await open_nats(server.url))
    taker = await Taker(await open_nats(server.url), "0").start()
    stop = asyncio.Event()

    async def keep_asking(first: int) -> None:
        number = first
        while not stop.is_set():
            await asker.ask(number)
            async with asyncio.timeout(10):
                while not asker.answers[number]:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
            number += 8

    callers = [asyncio.create_task(keep_asking(first)) for first in range(8)]
    for life in range(1, 4):
        following = await Taker(await open_nats(server.url), str(life)).start()
        await eventually(lambda following=following: len(following.taken) > 20)  # type: ignore[misc]
        await taker.consumer.drain(3)
        await eventually(lambda taker=taker: not taker.open)  # type: ignore[misc]
        taker = following
    stop.set()
    await asyncio.gather(*callers)
    assert all(len(answers) == 1 for answers in asker.answers.values())


async def test_a_rejected_entry_is_a_dead_letter_with_its_reason(
    server: EmbeddedBroker, open_nats: Any, eventually: Eventually
) -> None:
    bus = await open_nats(server.url)
    taken: list[Delivery] = []
    await bus.consume(QUEUE, lambda delivery: (taken.append(delivery), delivery.reject("no good: ü")), room=lambda: 9)
    client = await nats.connect(server.url)
    await client.jetstream().publish(QUEUE, b"\xff rubbish")
    await eventually(lambda: taken)
    dead = await client.jetstream().pull_subscribe("esl.dead", "reader", "ESL_DEAD")
    (letter,) = await dead.fetch(1, timeout=5)
    assert letter.data == b"\xff rubbish"
    assert letter.headers == {
        "Esl-Bridge-Reason": "no good: ?",
        "Esl-Bridge-Queue": QUEUE,
        "Esl-Bridge-Count": "1",
        "Esl-Bridge-Entry": taken[0].entry_id,
    }
    await client.close()


async def test_a_stream_of_the_operators_own_is_left_alone(
    server: EmbeddedBroker, open_nats: Any, eventually: Eventually
) -> None:
    client = await nats.connect(server.url)
    await client.jetstream().add_stream(name="MINE", subjects=["my.queue", "my.queue.>"], max_msgs=77)
    names = QueueNames("my.queue", "MINE")
    await Taker(await open_nats(server.url, durable=names), "a").start("my.queue")
    asker = Asker(await open_nats(server.url, durable=names))
    await asker.ask(1, "my.queue")
    await eventually(lambda: asker.answered == 1)
    config = (await client.jetstream().stream_info("MINE")).config
    assert (config.max_msgs, str(config.retention)) == (77, "limits")
    await client.close()


async def test_a_consumer_that_was_deleted_is_made_again(
    server: EmbeddedBroker, open_nats: Any, eventually: Eventually
) -> None:
    await Taker(await open_nats(server.url), "a").start()
    client = await nats.connect(server.url)
    await client.jetstream().delete_consumer("ESL_QUEUE", "esl-bridge")
    await client.close()
    asker = Asker(await open_nats(server.url))
    await asker.ask(1)
    await eventually(lambda: asker.answered == 1)


async def test_without_jetstream_it_is_said(open_nats: Any, start_nats: Any) -> None:
    executable = None
    async with EmbeddedBroker("nats", executable=executable) as broker:
        broker._nats_config = lambda folder: f'host: "127.0.0.1"\nport: {broker.port}\n'  # type: ignore[method-assign]
        await broker.kill()
        await broker.start()
        bus = await open_nats(broker.url)
        with pytest.raises(BusRefused, match="JetStream"):
            await bus.consume(QUEUE, lambda delivery: None)


@pytest.mark.parametrize(
    ("subject", "facts"),
    [
        ("$JS.ACK.ESL_QUEUE.esl-bridge.2.17.5.1700000000123456789.0", ("1700000000123-17", 2, 1700000000.1234567, 17)),
        ("$JS.ACK.hub.AbC1.ESL_QUEUE.esl-bridge.1.4.1.1700000000000000000.9", ("1700000000000-4", 1, 1700000000.0, 4)),
        ("$JS.ACK._.AbC1.S.c.1.4.1.1700000000000000000.9.x7", ("1700000000000-4", 1, 1700000000.0, 4)),
        ("$JS.ACK.x", None),
        ("_INBOX.a.b", None),
        ("$JS.ACK.S.c.one.2.3.4.5", None),
    ],
)
def test_acknowledgement_subjects_of_all_servers_are_read(subject: str, facts: Any) -> None:
    assert read_ack(subject) == facts


async def test_streams_that_somebody_deletes_are_made_again_and_told(
    server: EmbeddedBroker, open_nats: Any, eventually: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    bus = await open_nats(server.url)
    taker = Taker(bus, "a")
    await asyncio.gather(taker.start(), *(Taker(bus, name).start(f"{QUEUE}.{name}") for name in ("fs1", "fs2")))
    assert not caplog.messages
    asker = Asker(await open_nats(server.url))
    await asker.ask(0)
    await eventually(lambda: asker.answered == 1)
    client = await nats.connect(server.url)
    streams = client.jetstream()
    taker.hold = True
    await asker.ask(1)
    await eventually(lambda: taker.open)
    await streams.delete_stream("ESL_DEAD")
    taker.open.pop().reject("no reply address")

    async def dead_letters() -> int:
        with contextlib.suppress(NotFoundError):
            return (await streams.stream_info("ESL_DEAD")).state.messages
        return 0

    async with asyncio.timeout(10):
        while not await dead_letters():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    taker.hold = False
    await streams.delete_stream("ESL_QUEUE")
    await eventually(lambda: caplog.text.count("was made again") == 2)
    await asker.ask(2)
    await eventually(lambda: asker.answered == 2)
    assert [name in caplog.text for name in ("the stream ESL_DEAD", "the stream ESL_QUEUE")] == [True, True]
    await client.close()


async def test_a_queue_that_cannot_be_served_is_told_until_it_can(
    server: EmbeddedBroker, open_nats: Any, eventually: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    await Taker(await open_nats(server.url), "a").start()
    asker = Asker(await open_nats(server.url))
    client = await nats.connect(server.url)
    streams = client.jetstream()
    await streams.delete_stream("ESL_QUEUE")
    async with asyncio.timeout(10):
        while True:  # the worker makes its own again at once
            with contextlib.suppress(BadRequestError):
                await streams.add_stream(name="SOMEBODYS", subjects=["esl.queue"])
                break
            await streams.delete_stream("ESL_QUEUE")
    await eventually(lambda: "esl.queue cannot be served" in caplog.text)
    assert caplog.text.count("esl.queue cannot be served") == 1
    await streams.delete_stream("SOMEBODYS")

    async def asked() -> bool:
        with contextlib.suppress(NoConsumer):
            await asker.ask(1)
            return True
        return False

    async with asyncio.timeout(10):
        while not await asked():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await eventually(lambda: asker.answered == 1)
    await client.close()


async def test_dead_letters_that_their_stream_refuses_are_told(
    server: EmbeddedBroker, open_nats: Any, eventually: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    taker = await Taker(await open_nats(server.url), "a").start()
    taker.hold = True
    asker = Asker(await open_nats(server.url))
    client = await nats.connect(server.url)
    streams = client.jetstream()
    config = (await streams.stream_info("ESL_DEAD")).config
    config.max_msgs, config.discard = 1, DiscardPolicy.NEW
    await streams.update_stream(config)
    for number in range(3):
        await asker.ask(number)
    await eventually(lambda: len(taker.open) == 3)
    for delivery in taker.open:
        delivery.reject("no reply address")
    await eventually(lambda: "a dead letter was refused, and is lost: maximum messages exceeded" in caplog.text)
    assert caplog.text.count("a dead letter was refused") == 1
    await client.close()


async def test_what_somebody_makes_of_a_consumer_is_told_and_followed(
    server: EmbeddedBroker,
    open_nats: Any,
    eventually: Eventually,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bridge.bus.nats.durable.ASK_EVERY", 0.1)
    slow = await Taker(await open_nats(server.url), "slow").start()
    await slow.start(f"{QUEUE}.fs1")
    slow.hold = True
    client = await nats.connect(server.url)
    streams = client.jetstream()
    for name, changed in (
        ("esl-bridge", {"ack_wait": 1.0, "max_deliver": 3}),
        ("esl-bridge-fs1", {"max_ack_pending": 9}),
    ):
        config = (await streams.consumer_info("ESL_QUEUE", name)).config
        await streams.add_consumer("ESL_QUEUE", config.evolve(**changed))
    await eventually(lambda: "max_deliver is 3: a request whose workers die so often is never answered" in caplog.text)
    await eventually(lambda: "max_ack_pending is 9, not 1" in caplog.text)
    assert len(caplog.messages) == 2
    # What is in hand is renewed in time for the new limit: nobody else gets it.
    other = await Taker(await open_nats(server.url), "other").start()
    asker = Asker(await open_nats(server.url))
    other.room = 0
    await asker.ask(1)
    await eventually(lambda: slow.open)
    other.room = 1_000
    other.consumer.resume()
    began = time.monotonic()
    await eventually(lambda: other.taken or time.monotonic() - began > 2.5)
    assert not other.taken
    slow.release()
    await eventually(lambda: asker.answered == 1)
    await client.close()


async def test_queues_that_were_drained_are_forgotten(
    server: EmbeddedBroker, open_nats: Any, eventually: Eventually
) -> None:
    bus = await open_nats(server.url)
    asker = Asker(await open_nats(server.url))
    for number in range(4):
        taker = await Taker(bus, "a").start(f"{QUEUE}.fs1")
        await asker.ask(number, f"{QUEUE}.fs1")
        await eventually(lambda number=number: asker.answered == number + 1)
        await taker.consumer.drain(2)
    assert len(bus._durable._consumers) <= 2
