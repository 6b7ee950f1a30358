"""The log of a worker while its world comes and goes: one line for each change, none for an event, no secret."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from bridge.config import Settings
from bridge.ops.logging import configure_logging
from bridge.simulator import SimulatedSwitch
from bridge.worker import Worker

from .conftest import House, until

pytestmark = pytest.mark.broker

SECRET = "s3cret-of-the-test"


class Log(io.StringIO):
    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.getvalue().splitlines()]

    def of(self, event: str, **fields: Any) -> list[dict[str, Any]]:
        return [
            line
            for line in self.lines
            if line["event"] == event and all(line.get(name) == value for name, value in fields.items())
        ]


@pytest.fixture
def log() -> Iterator[Log]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    log = Log()
    configure_logging(stream=log, secrets=[SECRET])
    yield log
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


async def test_a_line_for_each_change_and_none_for_an_event(house: House, log: Log) -> None:
    switch = await house.switch(calls_per_second=50, call_duration=0.1)
    worker = await house.worker(switch)
    node = worker.nodes.get("fs1")
    assert node is not None
    before = len(log.lines)
    seen = node.relay.received
    await until(lambda: node.relay.received > seen + 500)
    assert len(log.lines) == before

    await switch.stop()
    await until(lambda: log.of("node", node="fs1", state="DOWN"))
    lost = worker.metrics.registry.get_sample_value(
        "esl_bridge_link_losses_total", {"node": "fs1", "reason": "refused"}
    )
    await until(
        lambda: (
            (
                worker.metrics.registry.get_sample_value(
                    "esl_bridge_link_losses_total", {"node": "fs1", "reason": "refused"}
                )
                or 0
            )
            > (lost or 0) + 1
        )
    )
    down = [line for line in log.lines[before:] if line.get("node") == "fs1" and line["level"] == "warning"]
    # It went down, and then could not be reached: two reasons, two lines, however many attempts.
    assert 1 <= len(down) <= 2
    await switch.start()
    await until(lambda: node.link.connected)
    assert len(log.of("node", node="fs1", state="UP")) == 2


@pytest.mark.parametrize(
    "url",
    [f"nats://user:{SECRET}@127.0.0.1:1", f"redis://user:{SECRET}@127.0.0.1:1/0", f"nats://{SECRET}@127.0.0.1:1"],
)
async def test_an_absent_bus_is_told_without_its_secret(url: str, log: Log, tmp_path: Any) -> None:
    async with SimulatedSwitch(password=SECRET) as switch:
        settings = Settings.model_validate(
            {
                "worker": {"state_dir": str(tmp_path), "drain_timeout": 1.0},
                "bus": {"url": url},
                "http": {"listen": ""},
                "node": [{"name": "fs1", "url": switch.url}, {"name": "fs2", "url": f"fs://:{SECRET}@127.0.0.1:1"}],
            }
        )
        worker = Worker(settings)
        await worker.start()
        await until(lambda: log.of("bus not connected"))
        await asyncio.sleep(1.5)  # several attempts
        await worker.stop()
    assert SECRET not in log.getvalue()
    assert len(log.of("bus not connected")) <= 2
