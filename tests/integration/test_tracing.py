"""Spans of commands, from the caller's header through a real bus to a collector."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import nats
import pytest
from aiohttp import web

pytest.importorskip("opentelemetry.sdk")

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from bridge.bus.embedded import EmbeddedBroker
from bridge.operations import Operations
from bridge.ops.tracing import tracing

from .conftest import House

pytestmark = pytest.mark.broker

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(Operations, "tracing", lambda self, worker: tracing(provider))
    return exporter


async def test_a_trace_goes_through(house: House, exporter: InMemorySpanExporter) -> None:
    switch = await house.switch()
    await house.worker(switch)
    if house.broker.kind == "nats":
        client = await nats.connect(house.broker.url)
        payload = json.dumps({"id": "t1", "command": "status"}).encode()
        answer = await client.request("esl.cmd", payload, timeout=10, headers={"traceparent": PARENT})
        assert answer.headers is not None
        told = answer.headers["traceparent"]
        await client.close()
    else:
        bridge = await house.client()
        reply = await bridge.request({"command": "status", "meta": {"traceparent": PARENT}}, timeout=10)
        assert reply.meta == {"traceparent": PARENT}
        told = ""
    spans = {span.name: span for span in exporter.get_finished_spans()}
    span = spans["api status"]
    assert span.context is not None
    assert f"{span.context.trace_id:032x}" == TRACE
    assert not told or told == f"00-{TRACE}-{span.context.span_id:016x}-01"
    assert "FreeSWITCH" in spans


@pytest.fixture
async def collector() -> AsyncIterator[tuple[str, list[bytes]]]:
    got: list[bytes] = []

    async def take(request: web.Request) -> web.Response:
        got.append(await request.read())
        return web.Response()

    app = web.Application()
    app.add_routes([web.post("/v1/traces", take)])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}", got
    await runner.cleanup()


async def test_spans_are_sent_by_otlp(
    tmp_path_factory: pytest.TempPathFactory,
    collector: tuple[str, list[bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    from contextlib import AsyncExitStack

    url, got = collector
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(EmbeddedBroker("nats"))
        house = House(broker, tmp_path_factory.mktemp("otlp"), stack)
        worker = await house.worker(await house.switch(), trace={"exporter": "otlp"})
        client = await house.client()
        assert (await client.request({"command": "status"}, timeout=10)).status == "ok"
        await worker.stop()
        async with asyncio.timeout(20):
            while not got:  # noqa: ASYNC110 - sent by a thread of the exporter's
                await asyncio.sleep(0.02)
    assert b"api status" in got[0]
    assert b"esl-bridge" in got[0]
