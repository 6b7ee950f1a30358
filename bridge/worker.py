"""The composition root: one worker, made of a bus, its nodes, the two paths and the operator's view.

The only room that names concrete classes. It decides nothing itself: it wires, starts and stops.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

import msgspec
import structlog

import bridge
from bridge.bus.base import Bus, BusState, ServiceCard
from bridge.bus.open import open_bus
from bridge.config import NodeSettings, Settings
from bridge.crew.crew import Crew, CrewSettings, Means
from bridge.errors import BridgeError, BusError
from bridge.fleet.identity import Identity, take_identity
from bridge.messages.command import CommandReply, CommandRequest
from bridge.messages.notice import LateNotice, WorkerNotice
from bridge.nodes import Node, NodeMaker, NodeOrders, Nodes
from bridge.operations import Operations
from bridge.ops.metrics import Metrics
from bridge.queues import Queues
from bridge.reach import Reach
from bridge.relay.call_table import CallTable
from bridge.relay.commands import CommandRelay
from bridge.relay.ledger import MemoryLedger
from bridge.relay.notices import NoticeBoard
from bridge.relay.publisher import Publisher
from bridge.relay.reservoir import Reservoir
from bridge.relay.settings import CommandHooks
from bridge.reload import Outcome, reload
from bridge.switch.deadlines import Deadlines
from bridge.switch.node import NodeChange, NodeState
from bridge.wiring import command_policy, command_settings, event_settings, open_reservoir

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
        self.identity: Identity = take_identity(
            settings.worker.id, settings.worker.state_dir, durable=settings.events.durable
        )
        self.id = self.identity.id
        self.metrics = Metrics()
        self.bus = self._open_bus()
        self.nodes = Nodes()
        self.reach = Reach(self.nodes, self.id)
        self.notices = NoticeBoard(worker=self.id, instance=self.identity.instance, codec=settings.bus.codec)
        self.routes = event_settings(settings)
        self.publisher = Publisher(self.bus, self.notices, self.metrics, open_reservoir(settings.events, self.identity))
        self.calls = CallTable()
        self.deadlines = Deadlines()
        self.ledger = MemoryLedger(settings.commands.dedup_window)
        self.crew = self._make_crew()
        self.nodes.directory = self.crew.directory
        self.operations = Operations(
            settings,
            instance=self.identity.instance,
            bus=self.bus,
            metrics=self.metrics,
            describe=self.describe,
            ready=lambda: self.ready,
            in_hand=lambda: self.commands.in_hand,
            others=self.crew.others,
        )
        self.crew.on_page_word = self.operations.lookout.heard
        self.commands = self._make_commands()
        self.maker = NodeMaker(
            settings,
            bus=self.bus,
            publisher=self.publisher,
            notices=self.notices,
            meter=self.metrics,
            routes=self.routes,
            worker=self.id,
            calls=self.calls,
            deadlines=self.deadlines,
            folder=self.identity.state_dir,
            on_change=self._node_changed,
            tail=self.operations.tail,
        )
        for node in settings.nodes:
            self.add_node(node)
        self.publisher.adopt(self.routes)
        self.http = self.operations.make_http()
        self.queues = Queues(
            self.bus,
            self.commands,
            settings.commands,
            self.reach,
            scheme=settings.bus.url.scheme,
            instance=self.identity.instance,
            ledger=self.ledger,
        )
        self.reach.on_able = self.queues.resume
        self._tasks: list[asyncio.Task[None]] = []
        self._connected = asyncio.Event()
        self._bus_state: BusState | None = None
        self._reloading = turn = asyncio.Lock()
        self.orders = NodeOrders(
            self.nodes, self.add_node, self.remove_node, lambda: {it.name for it in self.settings.nodes}, turn
        )
        self._retiring: list[asyncio.Task[None]] = []
        self._stopping = False
        self._was_ready = False
        self._was_settled = False

    # --- life ---------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Connect to the bus and to every node, in the background; raises ``ConfigError`` and ``OSError`` (HTTP)."""
        if self.http is not None:
            await self.http.start()
        self.bus.on_state = self._bus_changed
        self.publisher.start()
        self.bus.start()
        self.crew.on_orders = self.orders.take
        self.crew.start()
        self._tasks = [
            asyncio.create_task(self.orders.follow(), name="orders"),
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
        owned = self.crew.owned()
        self.notices.tell(WorkerNotice(state="draining", nodes=owned))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        grace = min(QUEUE_GRACE, self.settings.worker.drain_timeout)
        await self.queues.drain(grace)
        # The nodes' own queues are left with their nodes; what they still bring is served, not sent away.
        await self.crew.leave(max(0.0, deadline - loop.time()))
        await self.commands.drain(max(0.0, deadline - loop.time()))
        self.queues.close()
        self.notices.tell(WorkerNotice(state="left", nodes=owned))
        left = await self.publisher.stop(max(LAST_FLUSH, deadline - loop.time()))
        for task in self._retiring:
            task.cancel()
        await asyncio.gather(*self._retiring, return_exceptions=True)
        await asyncio.gather(*(node.pool.close("the worker ends") for node in self.nodes))
        with contextlib.suppress(BusError):
            await self.bus.close()
        if self.http is not None:
            await self.http.stop()
        await self.operations.close()
        self.deadlines.close()
        self.identity.release()
        log.info("worker ended", worker=self.id, events_given_up=left)

    @property
    def reservoir(self) -> Reservoir:
        """What the buffers have in common."""
        return self.publisher.reservoir

    def retag_node(self, node: Node) -> None:
        """The node has other tags."""
        self.crew.retag(node.name, node.tags)

    async def reload(self, settings: Settings) -> Outcome:
        """Take a changed configuration over, and say in the log what changed. Raises ``ConfigError``, unchanged."""
        async with self._reloading:
            outcome = await reload(self, settings)
        log.info("configuration reloaded", changes=[str(one) for one in outcome.changed])
        if outcome.fixed:
            log.warning("these changes take a restart", changes=[str(one) for one in outcome.fixed])
        return outcome

    @property
    def ready(self) -> tuple[bool, str]:
        """Whether this worker can serve, and why not.

        Nodes count once: a worker that never reached any is not ready; one that lost some, or all, stays so, because
        another worker would not reach them either. One that was given none waits for those of the bus, and is ready.
        """
        if self._stopping:
            return False, "draining"
        if not self.bus.connected:
            return False, "the bus is not connected"
        if not self.queues.taken:
            return False, "requests are not taken yet"
        self._was_settled = self._was_settled or self.crew.settled
        if not self._was_settled:
            return False, "the nodes are not divided among the workers yet"
        self._was_ready = self._was_ready or bool(self.nodes.serving()) or not len(self.nodes)
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
            "ledger": "shared" if self.queues.ledger.shared else "per worker",
            "in_flight": self.commands.in_flight,
            "buffer": {"events": self.publisher.events, "bytes": self.publisher.size},
            "totals": self.metrics.totals,
            "nodes": [
                node.describe(now, self.crew.owner(node.name))
                | {"role": self.crew.role(node.name), "state": self.nodes.state(node.name)}
                for node in self.nodes
            ],
            "fleet": self.crew.describe(),
        }

    # --- wiring -------------------------------------------------------------------------------------

    def _open_bus(self) -> Bus:
        settings = self.settings
        options = settings.bus.options()
        options["claim_after"] = settings.commands.claim_after
        if settings.bus.url.scheme not in ("nats", "tls", "memory"):
            options |= {"queue_type": settings.commands.queue_type, "worker": self.id}
        card = ServiceCard(
            version=bridge.__version__,
            description="FreeSWITCH commands through the bus",
            metadata={
                "worker": self.id,
                "instance": self.identity.instance,
                "started": f"{time.time():.3f}",
                "tags": ",".join(settings.fleet.tags),
                "nodes": ",".join(node.name for node in settings.nodes),
            },
            endpoint_metadata={"ops": "api,bgapi,execute,hangup,sendmsg,sendevent", "codecs": "json,msgpack"},
        )
        url = settings.bus.url.get_secret_value()
        return open_bus(url, name=f"esl-bridge {self.id}", service=card, **options)

    def _make_commands(self) -> CommandRelay:
        return CommandRelay(
            self.bus,
            self.nodes,
            settings=command_settings(self.settings),
            worker=self.id,
            ledger=self.ledger,
            policy=command_policy(self.settings),
            deadlines=self.deadlines,
            calls=self.calls,
            directory=self.crew.calls,
            hooks=CommandHooks(
                on_reply=self.metrics.command_done,
                on_late=self._reply_came_late,
                on_denied=self._denied,
                on_dead=self.metrics.dead_letter,
                on_room=self._resume,
                audit=self._audit,
                wrap=self.operations.tracing(self.id),
            ),
        )

    def _make_crew(self) -> Crew:
        fleet = self.settings.fleet

        async def flush(timeout: float) -> None:
            self.publisher.wake()
            await asyncio.sleep(0)
            await self.bus.flush(timeout)
            self.publisher.wake()
            await asyncio.sleep(0.005)  # what is confirmed is booked

        return Crew(
            self.bus,
            id=self.id,
            instance=self.identity.instance,
            settings=CrewSettings(
                fleet.lease_time, fleet.standby, fleet.weight, tuple(fleet.tags), self.settings.worker.drain_timeout
            ),
            notices=self.notices,
            means=Means(self.calls, lambda it: self.queues.take_node(it), lambda it: self.commands.in_line(it), flush),
            describe=lambda: self.operations.entry() | {"in_flight": self.commands.in_flight},
            fail=lambda error: None if self.failed.done() else self.failed.set_result(error),
        )

    def add_node(self, settings: NodeSettings) -> None:
        """Begin with a node."""
        node = self.maker.make(settings)
        self.nodes.add(node)
        self.reach.watch(node)
        self.crew.employ(node.name, node.url.redacted, node.tags, settings.pin, node.feed, node.link, node.pool)

    async def remove_node(self, name: str) -> None:
        """Be done with a node: handed over, its events published; its commands in flight end in the background."""
        node = self.nodes.remove(name)
        await self.crew.remove(name)
        if node is not None:
            await node.publish_rest(self.settings.worker.drain_timeout)
            node.relay.close()
            self._retiring = [one for one in self._retiring if not one.done()]
            self._retiring.append(asyncio.create_task(node.retire(self.settings.worker.drain_timeout)))
        self.calls.forget_node(name)
        self.metrics.forget_node(name)

    # --- what happens -------------------------------------------------------------------------------

    async def _take_requests(self) -> None:
        """Consume the queues (a node's own: crew/steward.py) as soon as the bus is there; a refusal ends the worker."""
        await self._connected.wait()
        try:
            await self.queues.take(self.settings.esl.esl_connect_timeout / 1000)
        except BusError as error:
            log.error("requests cannot be taken", reason=str(error))
            if not self.failed.done():
                self.failed.set_result(error)

    async def _read_gauges(self) -> None:
        self.metrics.watch_in_flight(lambda: self.commands.in_flight)
        self.metrics.watch_clock(lambda: self.bus.clock.ahead)
        self.metrics.watch_buffer(lambda: self.publisher.events, lambda: self.publisher.size)
        while True:
            await asyncio.sleep(GAUGE_INTERVAL)
            now = asyncio.get_running_loop().time()
            for node in self.nodes:
                if (load := node.link.load) is not None and load.fresh(now):
                    self.metrics.node_sessions(node.name, load.sessions, load.delay)
                else:
                    self.metrics.forget_sessions(node.name)

    def _bus_changed(self, state: BusState) -> None:
        self.metrics.bus_up(state.connected)
        known, self._bus_state = self._bus_state, state
        if state == known and not state.connected:
            return  # another attempt failed as the one before
        if state.connected:
            if known is None or not known.connected:
                log.info("bus connected", bus=self.bus.url)
            if state.reason:
                log.warning("the bus refuses something", bus=self.bus.url, reason=state.reason)
            elif known is not None and known.connected and known.reason:
                log.info("the bus refuses nothing any more", bus=self.bus.url)
            self._connected.set()
            self.publisher.wake()
        elif not self._stopping:
            log.warning("bus not connected", bus=self.bus.url, reason=state.reason)

    def _node_changed(self, change: NodeChange) -> None:
        if change.restarted:
            self.calls.forget_node(change.node)
        if change.state is NodeState.UP and (pool := self.nodes.pool(change.node)) is not None:
            # The pool's own back-off may still run, long after a refused password; the link knows better.
            pool.node_up(change.core_uuid)

    def _resume(self) -> None:
        self.queues.resume()
        for steward in self.crew.stewards.values():
            steward.queue.resume()

    def _reply_came_late(self, reply: dict[str, Any]) -> None:
        self.metrics.late_reply()
        self.notices.tell(msgspec.convert(reply, LateNotice), node=str(reply.get("node", "")))

    def _denied(self, op: str, reason: str) -> None:
        self.metrics.denied(op)
        log.warning("command denied", op=op, reason=reason)

    def _audit(self, request: CommandRequest, reply: CommandReply, queue: str, address: str) -> None:
        self.operations.journal.note(request, reply)
        if self.settings.policy.audit:
            self.notices.tell(self.operations.audit(request, reply, queue, address), node=reply.node)
