"""On uvloop, which workers run on, a write to a connection that has just closed raises: nothing may be lost by it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from bridge.bus.base import Message, StreamSpec
from bridge.bus.embedded import EmbeddedBroker
from bridge.bus.nats import NatsBus
from tests.integration.bus.conftest import eventually

uvloop = pytest.importorskip("uvloop")

SPEC = StreamSpec("FS_EVENTS", "fs.events", ("fs.events.>",))


def on_uvloop(play: Callable[[EmbeddedBroker], Awaitable[None]]) -> None:
    async def whole() -> None:
        async with asyncio.timeout(30):
            broker = EmbeddedBroker("nats")
            await broker.start()
            try:
                await play(broker)
            finally:
                await broker.stop()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(whole())


def message(number: int) -> Message:
    return Message("fs.events.TEST", b"%d" % number, f"core:{number}", "", "application/json")


def test_a_pipeline_into_jetstream_breaks_off_in_peace() -> None:
    async def play(broker: EmbeddedBroker) -> None:
        bus = NatsBus(broker.url)
        await bus.connect(10)
        await bus.ensure_stream(SPEC)
        pipeline = bus.appender(SPEC, lambda: None)
        await pipeline.append([message(1)])
        await eventually(lambda: pipeline.confirmed == 1)
        link = bus._keeper.current()
        transport = link._client._transport._io_writer.transport
        transport.abort()
        while "closed=True" not in repr(transport):  # noqa: ASYNC110 - turn by turn, to be there before the driver is
            await asyncio.sleep(0)
        assert link.alive  # the driver has not told yet: what is done now meets a closed transport
        await pipeline.append([message(2)])
        pipeline.close()
        assert pipeline.confirmed == 1
        await bus.close()

    on_uvloop(play)
