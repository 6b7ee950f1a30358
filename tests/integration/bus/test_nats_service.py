"""NATS: workers as a service, and no request lost when they come and go under load."""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import nats
import pytest
from nats.aio.client import Client

from bridge.bus.base import Delivery, ServiceCard
from bridge.bus.embedded import EmbeddedBroker

CARD = ServiceCard("esl-bridge-test", "1.2.3", "a test", {"worker": "w1"}, {"ops": "api,bgapi"})


@pytest.fixture
async def client(nats_server: EmbeddedBroker) -> AsyncIterator[Client]:
    """What a user would write."""
    connection = await nats.connect(nats_server.url)
    yield connection
    await connection.close()


def echo(delivery: Delivery) -> None:
    delivery.finish(delivery.reply_to, delivery.payload, "application/json")


async def ask(client: Client, subject: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads((await client.request(subject, timeout=5)).data)
    return answer


async def test_the_service_shows_itself(nats_server: EmbeddedBroker, open_nats: Any, client: Client) -> None:
    bus = await open_nats(nats_server.url, service=CARD)
    consumer = await bus.consume("svc.cmd", echo)
    node = await bus.consume("svc.cmd.fs1", lambda it: it.reject("malformed"))
    for subject in ("$SRV.PING", "$SRV.PING.esl-bridge-test"):
        ping = await ask(client, subject)
        assert (ping["type"], ping["name"], ping["version"]) == (
            "io.nats.micro.v1.ping_response",
            "esl-bridge-test",
            "1.2.3",
        )
        assert ping["metadata"] == {"worker": "w1"}
    info = await ask(client, f"$SRV.INFO.esl-bridge-test.{ping['id']}")
    assert info["type"] == "io.nats.micro.v1.info_response"
    assert info["description"] == "a test"
    assert info["endpoints"] == [
        {"name": name, "subject": subject, "queue_group": "esl-bridge", "metadata": {"ops": "api,bgapi"}}
        for name, subject in (("svc-cmd", "svc.cmd"), ("svc-cmd-fs1", "svc.cmd.fs1"))
    ]
    for _ in range(3):
        await client.request("svc.cmd", b"{}", timeout=5)
    await client.publish("svc.cmd.fs1", b"garbage")
    await client.flush()
    await bus.flush(5)
    stats = await ask(client, "$SRV.STATS.esl-bridge-test")
    assert stats["type"] == "io.nats.micro.v1.stats_response"
    assert [(it["name"], it["num_requests"], it["num_errors"]) for it in stats["endpoints"]] == [
        ("svc-cmd", 3, 0),
        ("svc-cmd-fs1", 1, 1),
    ]
    assert stats["endpoints"][0]["average_processing_time"] > 0
    assert stats["endpoints"][1]["last_error"] == "malformed"
    await consumer.drain(5)
    assert [it["name"] for it in (await ask(client, "$SRV.INFO.esl-bridge-test"))["endpoints"]] == ["svc-cmd-fs1"]
    await node.drain(5)
    with pytest.raises(nats.errors.NoRespondersError):
        await client.request("$SRV.PING.esl-bridge-test", timeout=5)


async def test_the_service_stays_the_same_over_a_reconnect(start_nats: Any, open_nats: Any, eventually: Any) -> None:
    server = await start_nats()
    bus = await open_nats(server.url, service=CARD)
    await bus.consume("svc.cmd", echo)
    answers: list[bytes] = []
    caller = await open_nats(server.url)
    await caller.request("$SRV.PING", b"", "", lambda payload, _type: answers.append(payload))
    await eventually(lambda: answers)
    await server.kill()
    await server.start()
    await eventually(lambda: bus.connected and caller.connected and answers[1:] == [] and bus.state.connected)
    await caller.request("$SRV.PING", b"", "", lambda payload, _type: answers.append(payload))
    await eventually(lambda: len(answers) == 2)
    assert json.loads(answers[0])["id"] == json.loads(answers[1])["id"]


async def test_errors_are_headers(nats_server: EmbeddedBroker, open_nats: Any, client: Client) -> None:
    bus = await open_nats(nats_server.url)
    headers = {"Nats-Service-Error": "busy", "Nats-Service-Error-Code": "503"}
    await bus.consume("svc.err", lambda it: it.finish(it.reply_to, b"{}", "application/json", headers))
    reply = await client.request("svc.err", b"{}", timeout=5)
    assert reply.headers == {"Content-Type": "application/json", **headers}


async def test_trace_headers_of_a_request_are_seen(nats_server: EmbeddedBroker, open_nats: Any, client: Client) -> None:
    bus = await open_nats(nats_server.url)
    seen: list[dict[str, str]] = []

    def accept(delivery: Delivery) -> None:
        seen.append(dict(delivery.headers))
        echo(delivery)

    await bus.consume("svc.trace", accept)
    await client.request("svc.trace", b"{}", timeout=5, headers={"traceparent": "00-ab-cd-01"})
    await client.request("svc.trace", b"{}", timeout=5)
    assert seen == [{"traceparent": "00-ab-cd-01"}, {}]


async def test_replies_over_the_limit_are_refused(nats_server: EmbeddedBroker, open_nats: Any, client: Client) -> None:
    from bridge.errors import MessageTooLarge

    bus = await open_nats(nats_server.url)
    limits: list[int] = []

    def accept(delivery: Delivery) -> None:
        try:
            delivery.finish(delivery.reply_to, b"x" * bus.max_payload, "text/plain")
        except MessageTooLarge as error:
            limits.append(error.limit)
            delivery.finish(delivery.reply_to, b"too large", "text/plain")

    await bus.consume("svc.large", accept)
    assert (await client.request("svc.large", b"{}", timeout=5)).data == b"too large"
    assert limits == [bus.max_payload]


def servers() -> list[str]:
    """The wheel's server, and the machine's own (often an older one) where it is named."""
    machine = os.environ.get("ESL_BRIDGE_TEST_NATS_URL")
    return ["wheel", *([machine] if machine else [])]


@pytest.mark.parametrize("server", servers())
async def test_restarts_under_load_lose_nothing(server: str, nats_server: EmbeddedBroker, open_nats: Any) -> None:
    """Two workers, replaced in turn, 32 callers with plain nats-py: every request is answered, once."""
    url = nats_server.url if server == "wheel" else server
    queue = f"esltest.restart.{os.getpid()}"
    connection = await nats.connect(url)
    answered: Counter[str] = Counter()
    taken: Counter[bytes] = Counter()
    stop = False

    def accept(delivery: Delivery) -> None:
        taken[delivery.payload] += 1
        echo(delivery)

    async def call(number: int) -> None:
        count = 0
        while not stop:
            count += 1
            identity = f"{number}/{count}"
            reply = await connection.request(queue, identity.encode(), timeout=5)
            answered[reply.data.decode()] += 1

    async def worker() -> tuple[Any, Any]:
        bus = await open_nats(url)
        return bus, await bus.consume(queue, accept)

    workers = [await worker(), await worker()]
    callers = [asyncio.create_task(call(number)) for number in range(32)]
    for _ in range(4):
        bus, consumer = workers.pop(0)
        await asyncio.sleep(0.05)
        await consumer.drain(5)
        await bus.close()
        workers.append(await worker())
    stop = True
    await asyncio.gather(*callers)
    assert len(answered) > 500
    assert set(answered.values()) == {1}
    assert set(taken.values()) == {1}
    await connection.close()
