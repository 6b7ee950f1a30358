"""What every bus over a network promises when its broker goes away: it comes back, and nothing comes twice."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from bridge.bus.base import Bus, BusState, Delivery, Message
from bridge.bus.embedded import EmbeddedBroker
from bridge.bus.open import open_bus
from bridge.errors import BusUnavailable, PublishFailed

Eventually = Callable[..., Any]


@pytest.fixture(params=["nats", "redis"])
async def broker(request: pytest.FixtureRequest) -> AsyncIterator[EmbeddedBroker]:
    # The session's server is asked for only because it skips, or fails in CI, when the wheel is missing.
    request.getfixturevalue("nats_server" if request.param == "nats" else "valkey_server")
    server = EmbeddedBroker(request.param)
    await server.start()
    yield server
    await server.stop()


async def opened(broker: EmbeddedBroker) -> Bus:
    bus = open_bus(broker.url)
    await bus.connect(10)
    return bus


async def heard(bus: Bus, payload: bytes, got: list[bytes]) -> None:
    """Publish until it is heard: a listener of another connection may come back a little later."""
    for _ in range(500):
        await bus.publish_many([Message("events.A", payload)])
        await asyncio.sleep(0.01)
        if payload in got:
            return
    pytest.fail("the listener did not come back")


async def test_everything_comes_back_with_the_broker(broker: EmbeddedBroker, eventually: Eventually) -> None:
    bus, other = await opened(broker), await opened(broker)
    states: list[BusState] = []
    broken: list[int] = []
    bus.on_state = states.append
    bus.on_broken = lambda: broken.append(bus.confirmed)
    got: list[bytes] = []
    await bus.subscribe("events.*", lambda received: got.append(received.payload))

    def accept(delivery: Delivery) -> None:
        reply_to = delivery.reply_to or json.loads(delivery.payload)["reply_to"]
        delivery.finish(reply_to, b'{"answer":1}', "application/json")

    await bus.consume("cmd", accept, room=lambda: 10)
    await other.publish_many([Message("events.A", b"before")])
    await eventually(lambda: got == [b"before"])
    for round_number in range(2):
        await broker.kill()
        await eventually(lambda: not bus.connected and not other.connected)
        with pytest.raises(BusUnavailable):
            await other.publish_many([Message("events.A", b"nobody hears this")])
        # Told a moment later: by the tasks that look after the connections, of which there are several.
        await eventually(lambda: len(broken) == round_number + 1 and states and not states[-1].connected)  # noqa: B023
        assert states[-1].reason
        await broker.start()
        await eventually(lambda: bus.connected and other.connected, 20)
        await heard(other, b"after %d" % round_number, got)
        replies: list[bytes] = []
        reply_to = other.new_reply_address()
        await other.request(
            "cmd",
            json.dumps({"reply_to": reply_to}).encode(),
            "application/json",
            lambda payload, _type, replies=replies: replies.append(payload),
            reply_to=reply_to,
        )
        await eventually(lambda replies=replies: replies)
    assert list(dict.fromkeys(got)) == [b"before", b"after 0", b"after 1"]
    assert other.confirmed >= 2
    await bus.close()
    await other.close()


async def test_the_broker_may_come_late(broker: EmbeddedBroker, eventually: Eventually) -> None:
    await broker.kill()
    bus = open_bus(broker.url)
    states: list[BusState] = []
    bus.on_state = states.append
    bus.start()
    got: list[bytes] = []
    await bus.subscribe("events.*", lambda received: got.append(received.payload))
    await eventually(lambda: states)
    assert states[0].connected is False
    await broker.start()
    await eventually(lambda: bus.connected, 20)
    await heard(bus, b"x", got)
    await bus.close()


async def test_replies_wait_for_the_broker(broker: EmbeddedBroker, eventually: Eventually) -> None:
    worker, caller = await opened(broker), await opened(broker)
    taken: list[Delivery] = []
    await worker.consume("cmd", taken.append, room=lambda: 10)
    replies: list[bytes] = []
    reply_to = caller.new_reply_address()
    await caller.request(
        "cmd",
        json.dumps({"reply_to": reply_to}).encode(),
        "application/json",
        lambda payload, _type: replies.append(payload),
        reply_to=reply_to,
    )
    await eventually(lambda: taken)
    await broker.kill()
    await eventually(lambda: not worker.connected and not caller.connected)
    delivery = taken[0]
    delivery.finish(delivery.reply_to or json.loads(delivery.payload)["reply_to"], b"late but here", "")
    await broker.start()
    # Whose connection is back first is chance: on NATS the reply has a listener only when the caller is.
    await eventually(lambda: worker.connected and caller.connected, 20)
    if broker.kind == "redis":
        await eventually(lambda: replies)
    await worker.close()
    await caller.close()


async def test_a_stream_of_batches_through_an_outage(broker: EmbeddedBroker, eventually: Eventually) -> None:
    """In order, nothing twice, and the break is told once."""
    publisher = await opened(broker)
    listener = await opened(broker)
    got: list[int] = []
    await listener.subscribe("events.*", lambda received: got.append(int(received.payload)))
    broken: list[int] = []
    publisher.on_broken = lambda: broken.append(publisher.confirmed)
    marks: list[int] = []

    async def outage() -> None:
        await eventually(lambda: len(got) > 200)
        await broker.kill()
        marks.append(value)
        await broker.start()

    task = asyncio.create_task(outage())
    value = 0
    after = 0
    while after < 50:
        values = range(value, value + 5)
        try:
            await publisher.publish_many([Message("events.A", b"%d" % it) for it in values])
        except BusUnavailable:
            await asyncio.sleep(0.01)
            continue
        except PublishFailed:
            pass  # in doubt: not again
        value += 5
        if marks and got[-1] > marks[0]:  # the listener is back too
            after += 1
        await asyncio.sleep(0)
    await task
    await publisher.flush(10)
    await eventually(lambda: got[-1] == value - 1, 20)
    assert got == sorted(set(got))
    assert len(broken) == 1
    await publisher.close()
    await listener.close()
