"""What the page asks of the worker: feed, tail, console, and who may."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import aiohttp
import pytest

from bridge.errors import BridgeError, BusUnavailable, InvalidRequest
from bridge.messages.command import CommandReply
from bridge.messages.reply import Executed, Status
from bridge.ops.access import Access
from bridge.ops.console import Console
from bridge.ops.http import HttpServer, PageSources
from bridge.ops.tail import Tail

TOKEN = "0123456789abcdef"
JSON = {"Content-Type": "application/json"}
BEARER = {"Authorization": f"Bearer {TOKEN}"}


class Site:
    def __init__(self) -> None:
        self.access = Access(TOKEN)
        self.enabled = True
        self.asked: list[tuple[dict[str, Any], float]] = []
        self.failure: BridgeError | None = None
        self.rendered = 0
        self.tail = Tail()
        self.server = HttpServer(
            "127.0.0.1",
            0,
            ready=lambda: (True, ""),
            nodes=dict,
            metrics=bytes,
            page=PageSources(
                state=self.state,
                totals=lambda: {"events_published": 5, "commands": 1},
                tail=self.tail,
                console=Console(self.ask, lambda: self.enabled, lambda: self.access),
                access=lambda: self.access,
            ),
        )

    def state(self) -> dict[str, Any]:
        self.rendered += 1
        return {"worker": "w1", "hostile": "</script>\n\ndata: x"}

    async def ask(self, fields: Mapping[str, Any], timeout: float) -> CommandReply:
        self.asked.append((dict(fields), timeout))
        if self.failure is not None:
            raise self.failure
        return CommandReply(id="1", status=Status.OK, executed=Executed.YES, result="fine")

    async def post(self, body: Any, **headers: str) -> tuple[int, dict[str, Any]]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with (
            aiohttp.ClientSession() as session,
            session.post(self.server.url + "console", data=data, headers=headers) as response,
        ):
            return response.status, await response.json()


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    site = Site()
    await site.server.start()
    yield site
    await site.server.stop()


async def test_the_console_sends_what_the_token_asks(site: Site) -> None:
    status, reply = await site.post({"command": "status", "to": "fs1", "timeout": 3}, **JSON, **BEARER)
    assert (status, reply["status"], reply["result"]) == (200, "ok", "fine")
    assert site.asked == [({"command": "status", "to": "fs1"}, 3.0)]


@pytest.mark.parametrize(
    ("headers", "why"),
    [
        (JSON, "token"),
        ({**JSON, "Authorization": "Bearer wrong"}, "token"),
        ({**JSON, "Authorization": f"Basic {TOKEN}"}, "token"),
        ({**JSON, "Authorization": f"Bearer {TOKEN}x"}, "token"),
        ({**JSON, "Authorization": "Bearer \u00fc"}, "token"),
        ({**BEARER, "Content-Type": "text/plain"}, "application/json"),
        ({**BEARER, "Content-Type": "application/x-www-form-urlencoded"}, "application/json"),
        ({**JSON, **BEARER, "Origin": "http://evil.example"}, "other sites"),
        ({**JSON, **BEARER, "Sec-Fetch-Site": "cross-site"}, "other sites"),
        ({**JSON, **BEARER, "Sec-Fetch-Site": "same-site"}, "other sites"),
    ],
)
async def test_the_console_refuses_everybody_else(site: Site, headers: dict[str, str], why: str) -> None:
    status, told = await site.post({"command": "status"}, **headers)
    assert status == 403
    assert why in told["error"]
    assert site.asked == []


async def test_the_console_is_off_unless_it_is_on(site: Site) -> None:
    site.enabled = False
    assert (await site.post({"command": "status"}, **JSON, **BEARER))[0] == 404
    site.enabled, site.access = True, Access("")
    assert (await site.post({"command": "status"}, **JSON, **BEARER))[0] == 403
    assert site.asked == []


@pytest.mark.parametrize(
    "body",
    [b"no json", [], {"command": "x", "id": "1"}, {"reply_to": "x"}, {"command": "x", "timeout": 1e9},
     {"command": "x", "timeout": True}, {"command": "x", "timeout": -1},
     b'{"headers": ' + 30_000 * b"["],
)  # fmt: skip
async def test_the_console_takes_only_what_it_knows(site: Site, body: Any) -> None:
    assert (await site.post(body, **JSON, **BEARER))[0] == 400
    assert site.asked == []


async def test_what_cannot_be_sent_is_the_callers_fault(site: Site) -> None:
    site.failure = InvalidRequest("", "a text in it is not valid Unicode")
    assert (await site.post({"command": "\udcff"}, **JSON, **BEARER))[0] == 400


@pytest.mark.parametrize("path", ["feed", "tail"])
async def test_nobody_waits_for_the_end_of_a_stream_by_head(site: Site, path: str) -> None:
    async with aiohttp.ClientSession() as session, session.head(site.server.url + path) as response:
        assert response.status == 405


async def test_a_failure_of_the_bus_is_told(site: Site) -> None:
    site.failure = BusUnavailable("the bus is not connected")
    assert await site.post({"command": "x"}, **JSON, **BEARER) == (502, {"error": "the bus is not connected"})


async def test_a_huge_body_is_refused(site: Site) -> None:
    async with (
        aiohttp.ClientSession() as session,
        session.post(site.server.url + "console", data=b"x" * 100_000, headers={**JSON, **BEARER}) as response,
    ):
        assert response.status == 413


async def events(response: aiohttp.ClientResponse, count: int) -> list[Any]:
    found: list[Any] = []
    async for line in response.content:
        if line.startswith(b"data: "):
            found.append(json.loads(line[6:]))
            if len(found) == count:
                break
    return found


async def test_the_feed_tells_the_state_at_once_and_again(site: Site) -> None:
    async with aiohttp.ClientSession() as session, session.get(site.server.url + "feed") as response:
        assert response.headers["Content-Type"].startswith("text/event-stream")
        first, second = await events(response, 2)
    assert first["worker"] == second["worker"] == "w1"
    assert first["hostile"] == "</script>\n\ndata: x"
    assert "events" in second["rates"]


async def test_nothing_is_rendered_while_nobody_looks(site: Site) -> None:
    before = site.rendered
    await asyncio.sleep(1.2)  # longer than the feed's interval
    assert site.rendered == before


async def test_the_state_is_rendered_once_for_all_who_look(site: Site) -> None:
    async with aiohttp.ClientSession() as session, contextless(session, site, 5) as responses:
        for response in responses:
            await events(response, 3)
    assert site.rendered <= 6


class contextless:  # noqa: N801 - reads as a context
    """Several open feeds at once."""

    def __init__(self, session: aiohttp.ClientSession, site: Site, count: int) -> None:
        self._session, self._site, self._count = session, site, count
        self._open: list[aiohttp.ClientResponse] = []

    async def __aenter__(self) -> list[aiohttp.ClientResponse]:
        self._open = [await self._session.get(self._site.server.url + "feed") for _ in range(self._count)]
        return self._open

    async def __aexit__(self, *_: object) -> None:
        for response in self._open:
            response.close()


async def test_the_tail_asks_for_the_token_where_there_is_one(site: Site) -> None:
    url = site.server.url + "tail"
    async with aiohttp.ClientSession() as session:
        async with session.get(url) as response:
            assert response.status == 403
        async with session.get(url, headers=BEARER, params={"where": "nonsense"}) as response:
            assert response.status == 400
        async with session.get(url, headers=BEARER) as response:
            assert response.status == 200
            assert site.tail.watched
    async with asyncio.timeout(10):
        while site.tail.watched:  # noqa: ASYNC110 - seen when the next write fails or the socket closes
            await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:8090"}, 200),
        ({"Host": "[::1]:8090"}, 200),
        ({"Host": "rebound.example:8090"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Origin": "http://evil.example"}, 403),
    ],
)
async def test_without_a_token_no_foreign_page_reads_the_tail(site: Site, headers: dict[str, str], status: int) -> None:
    site.access = Access("", "127.0.0.1")
    async with (
        aiohttp.ClientSession() as session,
        session.get(site.server.url + "tail", headers=headers) as response,
    ):
        assert response.status == status


async def test_stopping_ends_the_streams() -> None:
    site = Site()
    await site.server.start()
    async with aiohttp.ClientSession() as session, session.get(site.server.url + "feed") as response:
        await events(response, 1)
        async with asyncio.timeout(5):
            await site.server.stop()
            assert await response.content.read() is not None
