"""The page of any worker is that of the fleet: nodes, gaps, commands and the tail of all workers, on real brokers."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from bridge.bus.embedded import EmbeddedBroker
from bridge.simulator import SimulatedSwitch
from bridge.worker import Worker
from tests.integration.conftest import House
from tests.integration.test_fleet import FAST, crew, divided, owners

# A server without JetStream: the workers hold their nodes by roll call.
PLAIN = """
accounts { PLAIN { users = [ { user: "plain", password: "plain" } ] }, SYS {} }
system_account: SYS
no_auth_user: "plain"
"""


class Page:
    """A worker's page as a browser asks for it."""

    def __init__(self, worker: Worker, session: aiohttp.ClientSession) -> None:
        assert worker.http is not None
        self.worker = worker
        self.state: dict[str, Any] = {}
        self.lines: list[dict[str, Any]] = []
        self.skipped = 0
        self._url = worker.http.url
        self._session = session
        self._tasks: list[asyncio.Task[None]] = []

    def open(self) -> None:
        self._tasks.append(asyncio.create_task(self._follow("feed", self._take_state)))

    def listen(self, **query: str) -> None:
        self._tasks.append(asyncio.create_task(self._follow("tail", self._take_lines, query)))

    def node(self, name: str) -> dict[str, Any]:
        return next((node for node in self.state.get("nodes", ()) if node["name"] == name), {})

    def _take_state(self, told: dict[str, Any]) -> None:
        self.state = told

    def _take_lines(self, told: dict[str, Any]) -> None:
        self.lines += told["lines"]
        self.skipped += told["skipped"]

    async def _follow(self, path: str, take: Any, query: dict[str, str] | None = None) -> None:
        async with self._session.get(self._url + path, params=query or {}) as response:
            assert response.status == 200
            async for line in response.content:
                if line.startswith(b"data: "):
                    take(json.loads(line[6:]))

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._tasks.clear()


@pytest.fixture
async def visit() -> AsyncIterator[Any]:
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())

        def go(worker: Worker) -> Page:
            page = Page(worker, session)
            stack.push_async_callback(page.close)
            return page

        yield go


@pytest.fixture(params=["nats", "redis", "nats without JetStream"])
async def house(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[House]:
    kind, _, plain = request.param.partition(" ")
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(EmbeddedBroker(kind, config=PLAIN if plain else ""))
        yield House(broker, tmp_path, stack)


async def pair(house: House, count: int = 2, **sections: Any) -> tuple[list[SimulatedSwitch], list[Worker]]:
    """Two workers that have divided the nodes; by roll call one has them all."""
    switches = [await house.switch() for _ in range(count)]
    workers = await crew(house, *switches, fleet=FAST, http={"listen": "127.0.0.1:0"}, **sections)
    if workers[0].crew.warning:
        await house.until(lambda: all(len(it) == 1 for it in owners(workers).values()))
    else:
        await divided(house, workers, count // 2)
    return switches, workers


def other_of(workers: list[Worker], node: str) -> Worker:
    """The worker that does not own the node."""
    return next(it for it in workers if node not in it.crew.owned())


async def test_any_page_shows_every_node_with_its_gaps(house: House, visit: Any) -> None:
    switches, workers = await pair(house)
    for node, switch in zip(("fs1", "fs2"), switches, strict=True):
        page = visit(other_of(workers, node))
        page.open()
        await house.until(lambda: page.node(node).get("sessions") is not None)  # noqa: B023
        assert page.node(node)["state"] == "UP"
        assert page.node(node)["owner"] == owners(workers)[node][0]
        assert not page.node(node).get("gaps")
        # A link that breaks between two events is a gap of its owner, and told on every page.
        switch.fire("CUSTOM", {}, subclass="before")
        switch.drop_connections()
        await house.until(lambda: page.node(node).get("state") == "UP")  # noqa: B023
        switch.fire("CUSTOM", {}, subclass="after")
        await house.until(lambda: page.node(node).get("gaps"))  # noqa: B023
        assert page.node(node)["last_gap"]["reason"] == "link"
        assert page.state["silent"] == []
        await page.close()


async def test_any_page_tails_every_node_once(house: House, visit: Any) -> None:
    switches, workers = await pair(house, count=4)
    for worker in workers:
        page = visit(worker)
        page.listen(names="CUSTOM:tail::*")
        await house.until(lambda: all(it.operations.tail.watched for it in workers if it.crew.owned()))
        for number, switch in enumerate(switches, 1):
            switch.fire("CUSTOM", {"status": str(number)}, subclass="tail::mark")
            switch.fire("CUSTOM", {}, subclass="other")
        await house.until(lambda: len(page.lines) >= 4)  # noqa: B023
        # Whatever came twice is there when a further event has come.
        for switch in switches:
            switch.fire("CUSTOM", {}, subclass="tail::last")
        await house.until(lambda: sum("last" in line["name"] for line in page.lines) == 4)  # noqa: B023
        marks = [line for line in page.lines if line["name"] == "CUSTOM:tail::mark"]
        assert sorted((line["node"], line["headers"]["status"]) for line in marks) == [
            ("fs1", "1"), ("fs2", "2"), ("fs3", "3"), ("fs4", "4"),
        ]  # fmt: skip
        await page.close()
        await house.until(lambda: not any(it.operations.tail.watched for it in workers))


async def test_a_standby_shows_nothing_twice(house: House, visit: Any) -> None:
    switch = await house.switch()
    workers = await crew(house, switch, fleet={**FAST, "standby": 1}, http={"listen": "127.0.0.1:0"})
    if workers[0].crew.warning:
        pytest.skip("by roll call there are no standbys")
    await house.until(lambda: any(it.crew.stewards["fs1"].ready for it in workers))
    page = visit(other_of(workers, "fs1"))
    page.listen(names="CUSTOM")
    await house.until(lambda: all(it.operations.tail.watched for it in workers))
    for number in range(5):
        switch.fire("CUSTOM", {"status": str(number)}, subclass="one")
    switch.fire("CUSTOM", {}, subclass="last")
    await house.until(lambda: any("last" in line["name"] for line in page.lines))
    assert [line["headers"].get("status") for line in page.lines] == ["0", "1", "2", "3", "4", None]


async def test_any_page_shows_the_commands_of_all_workers(house: House, visit: Any) -> None:
    _, workers = await pair(house)
    page = visit(workers[0])
    page.open()
    client = await house.client()
    sent = 0
    async with asyncio.timeout(30):
        while not all(it.metrics.totals["commands_failed"] for it in workers):  # the broker chooses the worker
            await client.request({"command": "no_such_command"}, timeout=10)
            sent += 1
    await house.until(lambda: page.state["journal"]["outcomes"].get("error") == sent)
    assert page.state["totals"]["commands"] == sent
    assert len(page.state["journal"]["failed"]) == min(sent, 50)


async def test_a_worker_that_goes_is_no_longer_counted(house: House, visit: Any) -> None:
    _, workers = await pair(house)
    page = visit(workers[0])
    page.open()
    await house.until(lambda: len(page.state.get("fleet", {}).get("workers", ())) == 2)
    await workers[1].stop()
    await house.until(lambda: len(page.state["fleet"]["workers"]) == 1)
    await house.until(lambda: {node["owner"] for node in page.state["nodes"]} == {"w1"})
    assert page.state["silent"] == []


async def test_the_picture_shows_the_events_of_the_fleet(house: House, visit: Any) -> None:
    switches, workers = await pair(house)
    if workers[0].crew.warning:
        pytest.skip("by roll call no worker tells its rates")
    page = visit(workers[0])
    page.open()
    stop = asyncio.Event()

    async def speak(switch: SimulatedSwitch) -> None:
        while not stop.is_set():
            for _ in range(20):
                switch.fire("CUSTOM", {}, subclass="load")
            await asyncio.sleep(0.1)

    talk = asyncio.create_task(speak(switches[int(workers[1].crew.owned()[0][2:]) - 1]))
    try:
        # Nothing but the other worker's node says anything.
        await house.until(lambda: max(page.state.get("rates", {}).get("events", [0]), default=0) > 50)
        node = workers[1].crew.owned()[0]
        await house.until(lambda: (page.node(node).get("rate") or 0) > 50)
    finally:
        stop.set()
        await talk
