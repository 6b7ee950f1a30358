"""The worker's HTTP side: /live, /ready, /metrics, /nodes and the web page.

This room shows what it is given by callables; only the console changes anything, and it has a room of its own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from bridge.ops.access import Access
from bridge.ops.console import Console
from bridge.ops.feed import Feed, as_json
from bridge.ops.metrics import CONTENT_TYPE
from bridge.ops.page import CONTENT_SECURITY_POLICY, PAGE, STATIC
from bridge.ops.tail import Tail

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

# A console request is the largest thing that anybody sends us, in bytes.
MAX_BODY = 65_536


@dataclass(frozen=True)
class PageSources:
    """What the page shows beyond ``/nodes``: ``state`` for the feed, the counters in ``totals``, the ``tail``.

    ``others`` gives the events and commands of the other workers a second; ``look`` is told whether anybody looks.
    """

    state: Callable[[], Mapping[str, Any]] = dict
    totals: Callable[[], Mapping[str, int]] = dict
    others: Callable[[], tuple[float, float]] = lambda: (0.0, 0.0)
    look: Callable[[bool], None] = lambda on: None
    tail: Tail = field(default_factory=Tail)
    console: Console | None = None
    access: Callable[[], Access] = Access


class HttpServer:
    """Serves health, metrics and the page on ``host:port`` (port 0: any free one; host "": all addresses).

    ``ready`` returns whether the worker can serve, and why not; ``nodes`` the map that ``/nodes`` shows (see the
    reference); ``metrics`` the Prometheus text.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        ready: Callable[[], tuple[bool, str]],
        nodes: Callable[[], Mapping[str, Any]],
        metrics: Callable[[], bytes],
        page: PageSources | None = None,
    ) -> None:
        self._host = host
        self._port = port
        self._ready = ready
        self._nodes = nodes
        self._metrics = metrics
        self._page = page or PageSources(state=nodes)
        self._feed: Feed | None = None
        self._runner: web.AppRunner | None = None

    @property
    def port(self) -> int:
        """The port that is listened on."""
        addresses = self._runner.addresses if self._runner else []
        return int(addresses[0][1]) if addresses else self._port

    @property
    def url(self) -> str:
        """Where a browser on this machine finds the page."""
        host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self._host, self._host)
        return f"http://{f'[{host}]' if ':' in host and not host.startswith('[') else host}:{self.port}/"

    async def start(self) -> None:
        """Listen; raises ``OSError`` when the address cannot be had."""
        page = self._page
        feed = Feed(page.state, page.totals, page.others, page.look, page.tail, page.access)
        app = web.Application(middlewares=[_with_headers], client_max_size=MAX_BODY)
        app.add_routes(
            [
                web.get("/", self._show_page),
                web.get("/live", self._show_live),
                web.get("/ready", self._show_ready),
                web.get("/metrics", self._show_metrics),
                web.get("/nodes", self._show_nodes),
                web.get("/static/{name}", self._show_static),
                # A HEAD would be answered with a stream without end.
                web.get("/feed", feed.show_state, allow_head=False),
                web.get("/tail", feed.show_tail, allow_head=False),
            ]
        )
        if page.console is not None:
            app.add_routes([web.post("/console", page.console.take)])
        runner = web.AppRunner(
            # Whoever goes away is noticed at once, not at the next write to him.
            app,
            access_log=None,
            handle_signals=False,
            shutdown_timeout=1.0,
            handler_cancellation=True,
        )
        await runner.setup()
        try:
            await web.TCPSite(runner, self._host or None, self._port).start()
        except BaseException:
            await runner.cleanup()
            raise
        feed.start()
        self._runner, self._feed = runner, feed

    async def stop(self) -> None:
        """Stop listening; open requests get a second."""
        runner, self._runner = self._runner, None
        if self._feed is not None:
            await self._feed.close()
        if runner is not None:
            await runner.cleanup()

    async def _show_page(self, request: web.Request) -> web.Response:
        return web.Response(
            text=PAGE, content_type="text/html", headers={"Content-Security-Policy": CONTENT_SECURITY_POLICY}
        )

    async def _show_static(self, request: web.Request) -> web.Response:
        found = STATIC.get(request.match_info["name"])
        if found is None:
            raise web.HTTPNotFound
        return web.Response(body=found[1], content_type=found[0], charset="utf-8")

    async def _show_live(self, request: web.Request) -> web.Response:
        return web.Response(text="live\n")

    async def _show_ready(self, request: web.Request) -> web.Response:
        ready, reason = self._ready()
        text = "ready\n" if ready else f"not ready: {reason}\n"
        return web.Response(text=text, status=200 if ready else 503)

    async def _show_metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=self._metrics(), headers={"Content-Type": CONTENT_TYPE})

    async def _show_nodes(self, request: web.Request) -> web.Response:
        return web.Response(body=as_json(self._nodes()) + b"\n", content_type="application/json", charset="utf-8")


@web.middleware
async def _with_headers(request: web.Request, handler: Handler) -> web.StreamResponse:
    response = await handler(request)
    if not response.prepared:
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Cache-Control"] = "no-store"
        response.headers["Referrer-Policy"] = "no-referrer"
    return response
