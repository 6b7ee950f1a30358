"""What operators see and use of a worker: the page's state, its journal and tail, the console, redacted texts.

This room only gathers what others know; the one thing that it can start is a request, through the bus like any other.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

import bridge
from bridge.bus.base import Bus, Delivery
from bridge.client import Bridge
from bridge.config import HttpSettings, Settings
from bridge.errors import BusUnavailable, ConfigError
from bridge.messages.command import CommandReply, CommandRequest
from bridge.messages.fleet import WorkerEntry
from bridge.messages.notice import AuditNotice
from bridge.ops.access import Access
from bridge.ops.glance import SHOWN_IN_HAND, Pace, node_numbers, put_together
from bridge.ops.journal import TEXT_LIMIT, Journal, command_text
from bridge.ops.logging import use_standard_logging
from bridge.ops.lookout import Lookout
from bridge.ops.metrics import Metrics
from bridge.ops.tail import Tail
from bridge.redaction import Redactor
from bridge.relay.exchange import Exchange

if TYPE_CHECKING:
    from bridge.ops.http import HttpServer
    from bridge.ops.tracing import OtlpTracing


class Operations:
    """One worker's. ``describe`` gives the map of ``/nodes``, ``in_hand`` the requests in hand, oldest first.

    ``others`` are the other living workers, ``instance`` names us among them.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        instance: str,
        bus: Bus,
        metrics: Metrics,
        describe: Callable[[], dict[str, Any]],
        ready: Callable[[], tuple[bool, str]],
        in_hand: Callable[[], Iterable[Exchange]],
        others: Callable[[], Collection[WorkerEntry]],
    ) -> None:
        use_standard_logging()
        self.tail = Tail()
        self.journal = Journal(Redactor(settings.secrets()))
        self._settings = settings
        self._bus = bus
        self._metrics = metrics
        self._describe = describe
        self._ready = ready
        self._in_hand = in_hand
        self._others = others
        self._pace = Pace(time.monotonic)
        self._node_pace = Pace(time.monotonic)
        self.lookout = Lookout(
            instance,
            self.tail,
            say=bus.storage.tell,
            others=lambda: {it.instance for it in others()},
            numbers=self.numbers,
        )
        self._traces: OtlpTracing | None = None
        self._client = Bridge.over(bus, codec=settings.bus.codec, queue=settings.commands.queue)

    def tracing(self, worker: str) -> Callable[[Delivery], Delivery] | None:
        """What wraps deliveries in spans; None where no traces are asked for. Raises ``ConfigError``."""
        if self._settings.trace.exporter == "none":
            return None
        try:
            from bridge.ops.tracing import OtlpTracing
        except ImportError:
            raise ConfigError([("trace.exporter", "needs pip install 'esl-bridge[otel]'")]) from None
        self._traces = OtlpTracing(worker)
        return self._traces.wrap

    async def close(self) -> None:
        """Show nothing more, and send the last spans."""
        await self.lookout.close()
        if self._traces is not None:
            await asyncio.to_thread(self._traces.close)

    def follow(self, settings: Settings) -> None:
        """Go on with other settings: token, console and the secrets to hide change at once."""
        self._settings = settings
        self.journal.redactor = Redactor(settings.secrets())

    @property
    def _http(self) -> HttpSettings:
        return self._settings.http

    def make_http(self) -> HttpServer | None:
        """The HTTP side; None where it is off."""
        listen = self._http.listen
        if not listen:
            return None
        host, _, port = listen.rpartition(":")
        host = host.strip("[]")

        # aiohttp is a third of a second; a worker without HTTP does without.
        from bridge.ops.console import Console
        from bridge.ops.http import HttpServer, PageSources

        def access() -> Access:
            return Access(self._http.token.get_secret_value(), host)

        return HttpServer(
            host,
            int(port),
            ready=self._ready,
            nodes=self._describe,
            metrics=self._metrics.render,
            page=PageSources(
                state=self.state,
                totals=lambda: self._metrics.totals,
                others=self._other_rates,
                look=self.lookout.look,
                tail=self.tail,
                console=Console(self._ask, lambda: self._http.console, access),
                access=access,
            ),
        )

    def entry(self) -> dict[str, Any]:
        """What this worker's entry in the fleet says of it: its version, and what passes in a second."""
        totals = self._metrics.totals
        pace = self._pace.measure({"event_rate": totals["events_published"], "command_rate": totals["commands"]})
        return {"version": bridge.__version__, **pace}

    def numbers(self) -> dict[str, Any]:
        """What pages show of this worker: its nodes, and of commands what a person wants to know."""
        return self._numbers(self._describe(), every_node=False)

    def state(self) -> dict[str, Any]:
        """What our page shows: the fleet's numbers, and of this worker what belongs to a person looking at it."""
        ready, reason = self._ready()
        described = self._describe()
        fleet = described["fleet"]
        own = self._numbers(described, every_node=True)
        silent = self.lookout.silent
        return {
            **described,
            **put_together(own, self.lookout.numbers.values(), fleet["nodes"]),
            "silent": [it["worker"] for it in fleet["workers"] if it["instance"] in silent],
            "ready": ready,
            "not_ready": reason,
            "console": self._http.console,
            "tail_token": bool(self._http.token.get_secret_value()),
        }

    def _numbers(self, described: dict[str, Any], *, every_node: bool) -> dict[str, Any]:
        """``every_node``: those too that another worker owns."""
        now = time.monotonic()
        nodes: list[dict[str, Any]] = described["nodes"]
        pace = self._node_pace.measure({node["name"]: node["events"] for node in nodes})
        shown = [node | {"rate": pace.get(node["name"])} for node in nodes if node["owner"] == described["worker"]]
        if every_node:
            known = {node["name"] for node in described["fleet"]["nodes"]}
            shown += [node for node in nodes if node["name"] not in known]
        hand = []
        for exchange in self._in_hand():
            hand.append(
                {
                    "command": self.journal.redactor.command(command_text(exchange.request)),
                    "node": exchange.node or exchange.to,
                    "ms": round((now - exchange.queued_at) * 1e3, 1),
                }
            )
            if len(hand) >= SHOWN_IN_HAND:
                break
        return {
            "nodes": node_numbers(shown),
            "gaps": self._metrics.gaps,
            "totals": described["totals"],
            "buffer": described["buffer"],
            "in_flight": described["in_flight"],
            "journal": self.journal.describe(),
            "in_hand": hand,
        }

    def audit(self, request: CommandRequest, reply: CommandReply, queue: str) -> AuditNotice:
        """The notice of a request and its outcome, without secrets."""
        redactor = self.journal.redactor
        words = request.command or f"{request.app or request.event} {request.arg or request.cause}".strip()
        return AuditNotice(
            id=reply.id or request.id,
            op=request.op,
            command=redactor.command(words),
            uuid=request.uuid,
            to=request.to,
            queue=queue,
            reply_to=request.reply_to,
            status=reply.status,
            executed=reply.executed,
            error=redactor.command(reply.error or ""),
            elapsed_ms=reply.elapsed_ms,
        )

    def _other_rates(self) -> tuple[float, float]:
        others = self._others()
        return sum(it.event_rate for it in others), sum(it.command_rate for it in others)

    async def _ask(self, fields: Mapping[str, Any], timeout: float) -> CommandReply:
        if not self._bus.connected:
            raise BusUnavailable("the bus is not connected")
        return await self._client.request(msgspec.convert(fields, dict[str, Any]), timeout=timeout)


__all__ = ["TEXT_LIMIT", "Operations"]
