from __future__ import annotations

import re

import aiohttp
import pytest

from bridge.ops.http import HttpServer
from bridge.ops.metrics import Metrics
from bridge.ops.page import PAGE, STATIC


class Site:
    def __init__(self) -> None:
        self.ready = (True, "")
        self.metrics = Metrics(process=False)
        self.server = HttpServer(
            "127.0.0.1",
            0,
            ready=lambda: self.ready,
            nodes=lambda: {"worker": "w1", "nodes": [{"name": "fs1", "state": "UP"}]},
            metrics=self.metrics.render,
        )

    async def get(self, path: str) -> tuple[int, str, str]:
        async with aiohttp.ClientSession() as session, session.get(self.server.url + path) as response:
            return response.status, response.headers["Content-Type"], await response.text()


@pytest.fixture
async def site():
    site = Site()
    await site.server.start()
    yield site
    await site.server.stop()


async def test_live_says_that_the_process_runs(site):
    assert (await site.get("live"))[0] == 200


async def test_ready_says_why_not(site):
    assert (await site.get("ready"))[0] == 200
    site.ready = (False, "the bus is not connected")
    status, _, text = await site.get("ready")
    assert status == 503
    assert "the bus is not connected" in text


async def test_metrics_are_what_prometheus_reads(site):
    site.metrics.events_received("fs1", 5)
    status, content_type, text = await site.get("metrics")
    assert status == 200
    assert content_type.startswith("text/plain; version=0.0.4")
    assert 'esl_bridge_events_received_total{node="fs1"} 5.0' in text


async def test_nodes_is_json(site):
    status, content_type, text = await site.get("nodes")
    assert (status, content_type) == (200, "application/json; charset=utf-8")
    assert '"fs1"' in text


async def test_the_page_needs_nothing_from_elsewhere(site):
    async with aiohttp.ClientSession() as session, session.get(site.server.url) as response:
        assert response.status == 200
        policy = response.headers["Content-Security-Policy"]
        page = await response.text()
    assert page == PAGE
    assert not re.findall(r'(?:src|href)="(?:https?:)?//', page)
    assert "'unsafe-inline'" not in policy
    assert not re.search(r"<script>|<style>| on\w+=|style=", page)


async def test_the_page_never_writes_markup(site):
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", PAGE + STATIC["page.js"][1].decode()
    )


async def test_nothing_else_is_there(site):
    assert (await site.get("etc/passwd"))[0] == 404
    async with aiohttp.ClientSession() as session, session.post(site.server.url + "nodes") as response:
        assert response.status == 405


async def test_a_taken_port_is_an_error_and_leaves_nothing_behind(site):
    other = HttpServer("127.0.0.1", site.server.port, ready=lambda: (True, ""), nodes=dict, metrics=bytes)
    with pytest.raises(OSError, match="address already in use"):
        await other.start()
    await other.stop()


@pytest.mark.parametrize(
    ("host", "url"),
    [("", "http://127.0.0.1:8/"), ("0.0.0.0", "http://127.0.0.1:8/"), ("::1", "http://[::1]:8/"), ("h", "http://h:8/")],
)
def test_the_url_is_one_a_browser_can_open(host, url):
    assert HttpServer(host, 8, ready=lambda: (True, ""), nodes=dict, metrics=bytes).url == url
