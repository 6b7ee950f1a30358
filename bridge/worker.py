"""The composition root: one worker, made of a bus, its nodes, the two paths and the operator's view.

The only room that names concrete classes. It decides nothing itself: it wires, starts and stops.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import msgspec
import structlog

import bridge
from bridge.bus.base import Bus, BusState, Consumer, ServiceCard
from bridge.bus.open import open_bus
from bridge.config import NodeSettings, Settings
from bridge.errors import BridgeError, BusError, BusUnavailable
from bridge.fleet.identity import Identity, take_identity
from bridge.messages.command import CommandReply, CommandRequest
from bridge.messages.notice import AuditNotice, LateNotice, WorkerNotice
from bridge.messages.topics import NATS_REPLY_ADDRESSES, REDIS_REPLY_ADDRESSES
from bridge.nodes import Node, Nodes
from bridge.ops.http import HttpServer
from bridge.ops.metrics import Metrics
from bridge.relay.buffer import BufferLimits
from bridge.relay.call_table import CallTable
from bridge.relay.commands import CommandRelay
from bridge.relay.events import NodeRelay
from bridge.relay.ledger import MemoryLedger
from bridge.relay.notices import NoticeBoard
from bridge.relay.policy import DEFAULT_DENY, Policy
from bridge.relay.publisher import Publisher
from bridge.relay.routes import RouteSettings
from bridge.relay.settings import CommandHooks, CommandSettings
from bridge.relay.verbs import DEFAULT_BACKGROUND, DEFAULT_SAFE
from bridge.switch.command_pool import CommandPool
from bridge.switch.deadlines import Deadlines
from bridge.switch.event_link import EventLink
from bridge.switch.node import NodeChange, NodeState
from bridge.switch.own_commands import OwnCommands

log = structlog.get_logger(__name__)

# How long the broker is listened to after a queue was left, for what was already on its way, in seconds.
QUEUE_GRACE = 2.0
# How long the last events may take to leave when the drain time is spent already, in seconds.
LAST_FLUSH = 1.0
# How often gauges that nobody pushes are read, in seconds.
GAUGE_INTERVAL = 1.0


class Worker:
    """One worker. ``start`` returns at once, whatever is absent; ``stop`` drains.

    ``failed`` is done with the error when the worker finds that it can never serve (a refused credential at
    the bus is not that; a JetStream stream on the command queue is).
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.failed: asyncio.Future[BridgeError] = asyncio.get_running_loop().create_future()
        self.identity: Identity = take_identity(settings.worker.id, settings.worker.state_dir)
        self.id = self.identity.id
        self.metrics = Metrics()
        self.bus = self._open_bus()
        self.nodes = Nodes()
        self.notices = NoticeBoard(worker=self.id, instance=self.identity.instance, codec=settings.bus.codec)
        self.publisher = Publisher(self.bus, self.notices, self.metrics)
        self.calls = CallTable()
        self.deadlines = Deadlines()
        self.ledger = MemoryLedger(settings.commands.dedup_window)
        self.commands = self._make_commands()
        for node in settings.nodes:
            self.nodes.add(self._make_node(node))
        self.http = self._make_http()
        self._consumers: list[Consumer] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._connected = asyncio.Event()
        self._stopping = False
        self._was_ready = False

    # --- life ---------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Connect to the bus and to every node, in the background; raises ``ConfigError`` and ``OSError`` (HTTP)."""
        if self.http is not None:
            await self.http.start()
        self.bus.on_state = self._bus_changed
        self.publisher.start()
        self.bus.start()
        for node in self.nodes:
            node.link.start()
        self._tasks = [
            asyncio.create_task(self._take_requests(), name="requests"),
            asyncio.create_task(self._read_gauges(), name="gauges"),
        ]
        self.notices.tell(WorkerNotice(state="joined", nodes=list(self.nodes.names())))
        log.info(
            "worker started",
            worker=self.id,
            version=bridge.__version__,
            bus=self.bus.url,
            nodes=list(self.nodes.names()),
            page=self.http.url if self.http else None,
        )

    async def stop(self) -> None:
        """Drain: take no more requests, answer what is in hand, flush events, disconnect; within the drain time."""
        if self._stopping:
            return
        self._stopping = True
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.settings.worker.drain_timeout
        log.info("worker draining", worker=self.id, in_hand=self.commands.in_flight)
        self.notices.tell(WorkerNotice(state="draining", nodes=list(self.nodes.names())))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        grace = min(QUEUE_GRACE, self.settings.worker.drain_timeout)
        await asyncio.gather(*(consumer.drain(grace) for consumer in self._consumers), return_exceptions=True)
        await self.commands.drain(max(0.0, deadline - loop.time()))
        await asyncio.gather(*(node.link.stop() for node in self.nodes))
        self.notices.tell(WorkerNotice(state="left", nodes=list(self.nodes.names())))
        left = await self.publisher.stop(max(LAST_FLUSH, deadline - loop.time()))
        await asyncio.gather(*(node.pool.close("the worker ends") for node in self.nodes))
        with contextlib.suppress(BusError):
            await self.bus.close()
        if self.http is not None:
            await self.http.stop()
        self.deadlines.close()
        self.identity.release()
        log.info("worker ended", worker=self.id, events_given_up=left)

    @property
    def ready(self) -> tuple[bool, str]:
        """Whether this worker can serve, and why not.

        Nodes count once: a worker that never reached any is not ready; one that lost some, or all, stays so, because
        another worker would not reach them either.
        """
        if self._stopping:
            return False, "draining"
        if not self.bus.connected:
            return False, "the bus is not connected"
        if not self._consumers:
            return False, "requests are not taken yet"
        self._was_ready = self._was_ready or bool(self.nodes.serving())
        if not self._was_ready:
            return False, "no node has been reached yet"
        return True, ""

    def describe(self) -> dict[str, Any]:
        """What ``/nodes`` shows."""
        now = asyncio.get_running_loop().time()
        return {
            "worker": self.id,
            "version": bridge.__version__,
            "bus": {"url": self.bus.url, "connected": self.bus.connected},
            "ledger": "shared" if self.ledger.shared else "per worker",
            "in_flight": self.commands.in_flight,
            "buffer": {"events": self.publisher.events, "bytes": self.publisher.size},
            "totals": self.metrics.totals,
            "nodes": [node.describe(now, self.id) for node in self.nodes],
        }

    # --- wiring -------------------------------------------------------------------------------------

    def _open_bus(self) -> Bus:
        settings = self.settings
        options = settings.bus.options()
        if settings.bus.url.scheme not in ("nats", "tls", "memory"):
            options |= {
                "queue_type": settings.commands.queue_type,
                "worker": self.id,
                "claim_after": settings.commands.claim_after,
            }
        card = ServiceCard(
            version=bridge.__version__,
            description="FreeSWITCH commands through the bus",
            metadata={"worker": self.id, "nodes": ",".join(node.name for node in settings.nodes)},
            endpoint_metadata={"ops": "api,bgapi,execute,hangup,sendmsg,sendevent", "codecs": "json,msgpack"},
        )
        url = settings.bus.url.get_secret_value()
        return open_bus(url, name=f"esl-bridge {self.id}", service=card, **options)

    def _make_commands(self) -> CommandRelay:
        commands, esl, policy = self.settings.commands, self.settings.esl, self.settings.policy
        redis = self.settings.bus.url.scheme not in ("nats", "tls", "memory")
        addresses = commands.reply_to or (REDIS_REPLY_ADDRESSES if redis else NATS_REPLY_ADDRESSES)
        return CommandRelay(
            self.bus,
            self.nodes,
            settings=CommandSettings(
                queues=(commands.queue,),
                reply_to=tuple(addresses),
                reply_to_glob=redis,
                reply_prefix="esl.reply." if redis else "",
                max_in_flight=commands.max_in_flight,
                max_in_flight_node=commands.max_in_flight_node,
                max_timeout=commands.max_timeout,
                job_timeout=commands.job_timeout,
                connect_timeout=esl.esl_connect_timeout / 1000,
                command_timeout=esl.esl_cmd_timeout / 1000,
                scatter_limit=commands.scatter_limit,
                background=tuple(commands.background) if commands.background is not None else DEFAULT_BACKGROUND,
                safe=tuple(commands.safe) if commands.safe is not None else DEFAULT_SAFE,
                rates=policy.rates,
            ),
            worker=self.id,
            ledger=self.ledger,
            policy=Policy(policy.allow, DEFAULT_DENY if policy.deny is None else policy.deny),
            deadlines=self.deadlines,
            calls=self.calls,
            hooks=CommandHooks(
                on_reply=self.metrics.command_done,
                on_late=self._reply_came_late,
                on_denied=self._denied,
                on_room=self._resume,
                audit=self._audit if policy.audit else None,
            ),
        )

    def _make_node(self, node: NodeSettings) -> Node:
        settings = self.settings
        own = OwnCommands() if node.suppress_own_api else None
        tls = node.tls_context()
        url = node.esl_url
        connect_timeout = settings.esl.esl_connect_timeout / 1000
        command_timeout = settings.esl.esl_cmd_timeout / 1000
        events = settings.events
        relay = NodeRelay(
            node.name,
            bus=self.bus,
            publisher=self.publisher,
            notices=self.notices,
            meter=self.metrics,
            route=RouteSettings(
                topic=events.topic,
                codec=events.codec or settings.bus.codec,
                envelope=events.envelope,
                unique_keys=events.unique_keys,
            ),
            limits=BufferLimits(events=events.buffer_events, size=events.buffer_bytes, age=events.buffer_age),
            worker=self.id,
            watchers=self.calls.watchers(node.name),
        )
        relay.on_change = self._node_changed
        pool = CommandPool(
            node.name,
            url,
            connect_timeout=connect_timeout,
            command_timeout=command_timeout,
            deadlines=self.deadlines,
            polling_interval=settings.esl.esl_cmd_polling_itv / 1_000_000,
            max_connections=node.max_connections,
            max_pipelined=node.max_pipelined,
            max_waiting=settings.commands.max_in_flight,
            idle_timeout=node.idle_timeout,
            own_commands=own,
            tls=tls,
        )
        link = EventLink(
            node.name,
            url,
            relay,
            format=node.format,
            subscribe=node.subscribe if node.subscribe is not None else events.subscribe,
            filters=node.filters,
            log_level=node.log_level,
            heartbeat_interval=settings.esl.event_heartbeat_interval,
            connect_timeout=connect_timeout,
            command_timeout=command_timeout,
            own_commands=own,
            tls=tls,
        )
        return Node(node.name, url, tuple(node.tags), relay, link, pool)

    def _make_http(self) -> HttpServer | None:
        listen = self.settings.http.listen
        if not listen:
            return None
        host, _, port = listen.rpartition(":")
        return HttpServer(
            host.strip("[]"),
            int(port),
            ready=lambda: self.ready,
            nodes=self.describe,
            metrics=self.metrics.render,
        )

    # --- what happens -------------------------------------------------------------------------------

    async def _take_requests(self) -> None:
        """Consume the queues as soon as the bus is there; what the broker refuses for good ends the worker."""
        queue = self.settings.commands.queue
        names = [queue, *(f"{queue}.{name}" for name in self.nodes.names())]
        await self._connected.wait()
        while True:
            try:
                for name in names[len(self._consumers) :]:
                    consumer = await self.bus.consume(name, self.commands.accept, room=self.commands.room)
                    self._consumers.append(consumer)
                log.info("requests are taken", queues=names)
                return
            except BusUnavailable:
                await asyncio.sleep(GAUGE_INTERVAL)
            except BusError as error:
                log.error("requests cannot be taken", reason=str(error))
                if not self.failed.done():
                    self.failed.set_result(error)
                return

    async def _read_gauges(self) -> None:
        self.metrics.watch_in_flight(lambda: self.commands.in_flight)
        self.metrics.watch_buffer(lambda: self.publisher.events, lambda: self.publisher.size)
        while True:
            await asyncio.sleep(GAUGE_INTERVAL)
            now = asyncio.get_running_loop().time()
            for node in self.nodes:
                load = node.link.load
                if load is not None and load.fresh(now):
                    self.metrics.node_sessions(node.name, load.sessions, load.delay)

    def _bus_changed(self, state: BusState) -> None:
        self.metrics.bus_up(state.connected)
        if state.connected:
            log.info("bus connected", bus=self.bus.url)
            self._connected.set()
            self.publisher.wake()
        elif not self._stopping:
            log.warning("bus not connected", bus=self.bus.url, reason=state.reason)

    def _node_changed(self, change: NodeChange) -> None:
        if change.restarted:
            self.calls.forget_node(change.node)
        if change.state is NodeState.UP:
            pool = self.nodes.pool(change.node)
            if pool is not None:
                # The pool's own back-off may still run, long after a refused password; the link knows better.
                pool.node_up(change.core_uuid)

    def _resume(self) -> None:
        for consumer in self._consumers:
            consumer.resume()

    def _reply_came_late(self, reply: dict[str, Any]) -> None:
        self.metrics.late_reply()
        self.notices.tell(msgspec.convert(reply, LateNotice), node=str(reply.get("node", "")))

    def _denied(self, op: str, reason: str) -> None:
        log.warning("command denied", op=op, reason=reason)

    def _audit(self, request: CommandRequest, reply: CommandReply) -> None:
        self.notices.tell(
            AuditNotice(
                id=reply.id or request.id,
                op=request.op,
                command=request.command or request.app or request.event,
                uuid=request.uuid,
                to=request.to,
                reply_to=request.reply_to,
                status=reply.status,
                executed=reply.executed,
                error=reply.error,
                elapsed_ms=reply.elapsed_ms,
            ),
            node=reply.node,
        )
