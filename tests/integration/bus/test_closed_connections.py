"""On uvloop a write to a connection that has just closed raises, before the driver tells: nothing may be lost by it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from bridge.bus.base import Message, StreamSpec
from bridge.bus.embedded import EmbeddedBroker
from bridge.bus.redis.address import Host
from bridge.bus.redis.wire import PING, WireOptions, open_wire
from tests.integration.bus.conftest import eventually

pytest.importorskip("uvloop", reason="asyncio's own loop drops such a write")

SPEC = StreamSpec("CLOSED", "closed.events", ("closed.events.>",))


async def torn(transport: Any) -> None:
    """Cut it, and be back in the turn of the loop in which nobody but the loop knows."""
    transport.abort()
    while "closed=True" not in repr(transport):  # noqa: ASYNC110 - turn by turn
        await asyncio.sleep(0)


def message(number: int) -> Message:
    return Message("closed.events.TEST", b"%d" % number, f"core:{number}", "", "application/json")


async def test_a_pipeline_into_jetstream_breaks_off_in_peace(nats_server: EmbeddedBroker, open_nats: Any) -> None:
    bus = await open_nats(nats_server.url)
    await bus.ensure_stream(SPEC)
    pipeline = bus.appender(SPEC, lambda: None)
    await pipeline.append([message(1)])
    await eventually(lambda: pipeline.confirmed == 1)
    link = bus._keeper.current()
    await torn(link._client._transport._io_writer.transport)
    assert link.alive
    await pipeline.append([message(2)])
    pipeline.close()
    assert pipeline.confirmed == 1


async def test_what_redis_is_told_then_is_lost_as_on_a_connection_that_breaks(valkey_server: EmbeddedBroker) -> None:
    wire = await open_wire(Host("127.0.0.1", valkey_server.port), WireOptions())
    told: list[Exception] = []
    wire.on_lost = told.append
    transport: Any = wire._transport
    await torn(transport)
    wire.write(PING)
    await eventually(lambda: told)
