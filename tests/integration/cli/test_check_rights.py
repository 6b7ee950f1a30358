"""``esl-bridge check --connect``: what the broker will refuse is known before, and nobody notices that it was asked."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any

import nats
import pytest
import redis.asyncio

from bridge.bus.embedded import EmbeddedBroker
from bridge.cli import exits
from bridge.cli.check import connect_everything
from bridge.config import Settings
from tests.integration.test_security import documented

UUID = "00000000-0000-4000-8000-000000000000"
NODES = [{"name": name, "url": "fs://:x@127.0.0.1:1"} for name in ("fs1", "fs2")]


def settings(url: str, **sections: Any) -> Settings:
    return Settings.model_validate({"bus": {"url": url}, "node": NODES, **sections})


async def said_of_the_bus(given: Settings) -> list[str]:
    found = [it for it in await connect_everything(given) if it.what == "bus"]
    assert found[0].code == exits.FINE, found
    assert all(it.code == exits.WRONG_CONFIGURATION for it in found[1:])
    return [it.text for it in found[1:]]


@pytest.fixture
async def stack() -> Any:
    async with AsyncExitStack() as opened:
        yield opened


async def nats_with(stack: AsyncExitStack, allow: str) -> EmbeddedBroker:
    config = (
        "authorization { users = [ { user: bridge, password: secret, permissions { "
        f"publish = [{allow}], subscribe = ["
        '"_INBOX.>", "esl.cmd", "esl.cmd.fs1", "$SRV.>"] } }, { user: admin, password: admin } ] }'
    )
    return await stack.enter_async_context(EmbeddedBroker("nats", config=config))


ROUTE = {"events": {"route": [{"name": "calls", "topic": "pbx.calls.{uuid}"}]}}


async def test_nats_tells_which_rights_are_missing_and_nothing_is_published(stack: AsyncExitStack) -> None:
    broker = await nats_with(stack, '"$SYS.REQ.USER.INFO", "$JS.API.>", "fs.bridge.>", "esl.dead", "fs.other.>"')
    heard: list[str] = []
    watcher = await nats.connect(broker.url, user="admin", password="admin")
    stack.push_async_callback(watcher.close)

    async def hear(message: Any) -> None:
        heard.append(message.subject)

    for subject in ("fs.>", "esl.>", "pbx.>"):
        await watcher.subscribe(subject, cb=hear)
    await watcher.flush()
    url = broker.url.replace("://", "://bridge:secret@")
    assert await said_of_the_bus(settings(url, **ROUTE)) == [
        "events.topic: the broker does not let us publish to fs.events.CHANNEL_ANSWER",
        f'events.route "calls" topic: the broker does not let us publish to pbx.calls.{UUID}',
        "commands.queue: the broker does not let us take from esl.cmd.fs2",
        "commands.reply_to: the broker does not let us answer to _INBOX.check",
        "commands.reply_to: the broker does not let us answer to esl.reply.check",
    ]
    await watcher.flush()
    assert heard == []


async def test_nats_that_lets_us_finds_nothing_and_one_that_does_not_tell_is_believed(stack: AsyncExitStack) -> None:
    open_ = await stack.enter_async_context(EmbeddedBroker("nats"))
    durable = {"commands": {"durable": True}, "events": {"delivery": "durable"}}
    assert await said_of_the_bus(settings(open_.url, **durable)) == []
    silent = await nats_with(stack, '"$JS.API.>", "fs.bridge.>"')
    given = settings(silent.url.replace("://", "://bridge:secret@"))
    assert await said_of_the_bus(given) == []
    assert (
        "not told: the server does not let us publish to $SYS.REQ.USER.INFO"
        in (await connect_everything(given))[0].text
    )


async def test_more_copies_than_there_are_servers(stack: AsyncExitStack) -> None:
    broker = await stack.enter_async_context(EmbeddedBroker("nats"))
    events = {"delivery": "durable", "stream_replicas": 3}
    assert await said_of_the_bus(settings(broker.url, events=events)) == [
        "events.stream_replicas: 3 servers are asked for, and the server stands alone"
    ]


@pytest.mark.parametrize("kind", ["stream", "list"])
async def test_redis_tells_which_rights_are_missing_and_nothing_is_written(stack: AsyncExitStack, kind: str) -> None:
    rule = "user bridge on >secret resetchannels &fs.bridge.* ~esl.cmd ~{esl.cmd}.* ~esl.ledger.* ~esl.dead +@all\n"
    broker = await stack.enter_async_context(EmbeddedBroker("redis", config=rule))
    url = broker.url.replace("://", "://bridge:secret@")
    commands = {"commands": {"queue_type": kind}, "events": {"delivery": "both"}}
    assert await said_of_the_bus(settings(url, **commands)) == [
        "events.stream: the broker does not let us append to fs.events",
        "events.topic: the broker does not let us publish to fs.events.CHANNEL_ANSWER",
        "commands.queue: the broker does not let us take from esl.cmd.fs1",
        "commands.queue: the broker does not let us take from esl.cmd.fs2",
        "commands.reply_to: the broker does not let us answer to esl.reply.check",
        "commands.reply_to: the broker does not let us answer to pubsub:esl.reply.check",
    ]
    async with redis.asyncio.from_url(broker.url) as client:
        assert await client.keys("*") == []
    assert await said_of_the_bus(settings(broker.url, **commands)) == []


@pytest.mark.parametrize("kind", ["nats", "redis"])
async def test_the_documented_rights_are_enough_for_it(stack: AsyncExitStack, kind: Any) -> None:
    broker = await stack.enter_async_context(EmbeddedBroker(kind, config=documented(kind)))
    url = broker.url.replace("://", "://esl-bridge:bridge-secret@")
    for queue_type in ("stream", "list"):
        given = settings(url, commands={"durable": True, "queue_type": queue_type}, events={"delivery": "both"})
        assert await said_of_the_bus(given) == []
    assert "not told" not in (await connect_everything(given))[0].text
