"""What each alert looks at really moves in a worker when the thing happens that it warns of.

That the rules fire on such numbers shows promtool (tests/test_deploy.py); here the trouble itself is made.
"""

from __future__ import annotations

import asyncio
import re
import time
import types
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

import bridge.bus.clock
import bridge.bus.nats.durable
import bridge.simulator.events
from bridge.bus.embedded import EmbeddedBroker
from bridge.worker import Worker
from tests.integration.conftest import House

ALERTS = Path(__file__).resolve().parents[2] / "deploy" / "prometheus" / "alerts.yaml"
# Prometheus knows by itself whether it reached a worker; the configuration is reloaded in cli/test_lifecycle.py.
ELSEWHERE = {"EslBridgeWorkerDown", "EslBridgeConfigRefused"}
PROVOKED: set[str] = set()


def provokes(*alerts: str) -> Callable[[Any], Any]:
    PROVOKED.update(alerts)
    return lambda test: test


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(EmbeddedBroker("nats"))
        yield House(broker, tmp_path, stack)


def total(worker: Worker, name: str, **labels: str) -> float:
    """The sum of a metric's samples as /metrics shows them; a label's value is a pattern."""
    found = 0.0
    for line in worker.metrics.render().decode().splitlines():
        match = re.fullmatch(rf"esl_bridge_{name}(?:{{(.*)}})? (\S+)", line)
        if match:
            given = dict(re.findall(r'(\w+)="([^"]*)"', match[1] or ""))
            if all(re.fullmatch(pattern, given.get(label, "")) for label, pattern in labels.items()):
                found += float(match[2])
    return found


def slower_than(worker: Worker, name: str, seconds: str) -> float:
    return total(worker, f"{name}_count") - total(worker, f"{name}_bucket", le=re.escape(seconds))


@provokes("EslBridgeNodeDown")
async def test_a_freeswitch_that_is_gone(house: House) -> None:
    switch = await house.switch()
    worker = await house.worker(switch)
    assert total(worker, "node_up", node="fs1") == 1
    await switch.stop()
    await house.until(lambda: total(worker, "node_up", node="fs1") == 0)


@provokes("EslBridgeNodeFlapping", "EslBridgeGaps")
async def test_a_link_that_comes_and_goes(house: House) -> None:
    switch = await house.switch()
    worker = await house.worker(switch)
    for times in range(1, 5):
        switch.drop_connections()
        await house.until(lambda: total(worker, "reconnects_total", node="fs1") == times)  # noqa: B023
    switch.fire("CUSTOM", {}, subclass="after")
    await house.until(lambda: total(worker, "gaps_total", node="fs1", reason="link") > 0)


@provokes("EslBridgeLinkRefused")
async def test_a_wrong_password_and_a_door_that_is_shut(house: House) -> None:
    switch = await house.switch(password="another")
    worker = await house.worker(switch, ready=False, node={"url": f"fs://:wrong@127.0.0.1:{switch.port}"})
    await house.until(lambda: total(worker, "link_losses_total", reason="auth_failed") > 0)
    await worker.stop()
    refusing = await house.switch()
    refusing.faults.add("refuse/1")
    other = await house.worker(refusing, ready=False)
    await house.until(lambda: total(other, "link_losses_total", reason="access_denied") > 0)


@provokes(
    "EslBridgeBusDown", "EslBridgeBufferFilling", "EslBridgeEventsDropped", "EslBridgeGaps", "EslBridgeEventsLate"
)
async def test_a_bus_that_is_gone_for_longer_than_the_buffer_lasts(house: House) -> None:
    switch = await house.switch()
    worker = await house.worker(switch, events={"buffer_events": 1000, "buffer_disk": 0})
    assert total(worker, "bus_up") == 1
    await house.broker.kill()
    await house.until(lambda: total(worker, "bus_up") == 0)
    for _ in range(900):
        switch.fire("CUSTOM", {}, subclass="kept")
    await house.until(lambda: total(worker, "buffer_events") >= 900 and total(worker, "buffer_bytes") > 100_000)
    for _ in range(900):
        switch.fire("CUSTOM", {}, subclass="more")
    await house.until(lambda: total(worker, "events_dropped_total", reason="buffer") > 0)
    await asyncio.sleep(1.0)  # what waits becomes older than the alert allows
    await house.broker.start()
    await house.until(lambda: total(worker, "gaps_total", reason="buffer") > 0)
    await house.until(lambda: slower_than(worker, "event_lag_seconds", "1.0") > 0)
    await house.until(lambda: total(worker, "buffer_events") == 0 and total(worker, "bus_up") == 1)


@provokes("EslBridgeEventsLate", "EslBridgeHeartbeatLate")
async def test_a_freeswitch_whose_events_come_late(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    real = bridge.simulator.events.time
    slow = types.SimpleNamespace(**{name: getattr(real, name) for name in dir(real) if not name.startswith("_")})
    slow.time_ns = lambda: real.time_ns() - 10_000_000_000
    monkeypatch.setattr(bridge.simulator.events, "time", slow)
    switch = await house.switch()
    worker = await house.worker(switch)
    await house.until(lambda: total(worker, "heartbeat_lag_seconds", node="fs1") > 5)
    await house.until(lambda: slower_than(worker, "event_lag_seconds", "1.0") > 0)


@provokes("EslBridgeClockApart")
async def test_a_clock_that_is_not_the_brokers(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    other = types.SimpleNamespace(time=lambda: time.time() + 3.0)
    for room in (bridge.bus.nats.durable, bridge.bus.clock):
        monkeypatch.setattr(room, "time", other)
    worker = await house.worker(await house.switch(), commands={"durable": True})
    await house.until(lambda: 2.5 < total(worker, "clock_ahead_seconds") < 3.5)


@provokes("EslBridgeOutcomesUnknown", "EslBridgeLateReplies", "EslBridgeCommandsSlow")
async def test_commands_that_freeswitch_answers_too_late_or_never(house: House) -> None:
    switch = await house.switch()
    worker = await house.worker(switch, commands={"background": []})
    client = await house.client()
    reply = await client.request({"command": "msleep 1200"}, timeout=0.2)
    assert reply.status == "timeout"
    await house.until(lambda: total(worker, "commands_total", status="timeout") == 1)
    await house.until(lambda: total(worker, "late_replies_total") == 1)
    assert (await client.request({"command": "msleep 1100"}, timeout=10)).status == "ok"
    assert slower_than(worker, "command_seconds", "1.0") == 1
    asking = asyncio.create_task(client.request({"command": "msleep 9000"}, timeout=20))
    await house.until(lambda: switch.executed["msleep 9000"])
    switch.drop_connections()
    assert (await asking).status == "connection_lost"
    assert total(worker, "commands_total", status="connection_lost") == 1


@provokes("EslBridgeCommandsNotExecuted", "EslBridgeCommandsDenied")
async def test_commands_that_are_not_executed(house: House) -> None:
    switch = await house.switch()
    worker = await house.worker(switch)
    client = await house.client()
    for command, to, status in (
        ("status", "nowhere", "unavailable"),
        ("status", "tag:none", "no_route"),
        ("system ls", "any", "denied"),
    ):
        assert (await client.request({"command": command, "to": to}, timeout=10)).status == status
        assert total(worker, "commands_total", status=status) == 1
    assert total(worker, "commands_denied_total") == 1


@provokes("EslBridgeDeadLetters")
async def test_a_request_that_nobody_can_read(house: House) -> None:
    worker = await house.worker(await house.switch())
    client = await house.client()
    client.bus.send("esl.cmd", b"\xc1 no request", "application/json")
    await house.until(lambda: total(worker, "dead_letters_total") == 1)


def test_every_alert_is_provoked() -> None:
    groups = yaml.safe_load(ALERTS.read_text("utf-8"))["groups"]
    assert {rule["alert"] for group in groups for rule in group["rules"]} == PROVOKED | ELSEWHERE
