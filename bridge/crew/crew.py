"""This worker's place in the fleet of its bus: joins it, hears the others, hands its nodes over when it leaves.

On a bus that keeps nothing it holds nodes by roll call. This room decides nothing about a node (``fleet`` does).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
import structlog

from bridge.bus.base import Bus, Consumer, Received, Subscription
from bridge.crew.roll_call import RollCall
from bridge.crew.steward import NodeSteward
from bridge.errors import BridgeError, BusError, BusRefused, ConfigError, InvalidMessage
from bridge.fleet.calls import CallLookup
from bridge.fleet.directory import Directory
from bridge.fleet.fleet import Fleet
from bridge.messages.fleet import PAGE_WORDS, TOPIC, NodeOrder, Word, WorkerEntry, decode_word, describe_fleet, encode
from bridge.messages.notice import WorkerNotice
from bridge.relay.call_table import CallTable
from bridge.relay.continuity import Continuity
from bridge.relay.feed import NodeFeed
from bridge.relay.notices import NoticeBoard
from bridge.switch.command_pool import CommandPool
from bridge.switch.event_link import EventLink

log = structlog.get_logger(__name__)

BEST_EFFORT = "this bus keeps nothing: nodes are held by roll call, failover is best effort"
ALONE_AFTER = 1.0
"""Seconds without a bus after which a worker that has just started links to every node, to keep what they say."""
BUS_CHECK = 0.05
"""Seconds between two looks whether the bus is back, for a worker that ends."""
WORD_PAUSE = 0.05
"""Seconds within which several changes are one word to the others."""


class CrewSettings(msgspec.Struct, frozen=True):
    """``[fleet]`` as plain values; times in s."""

    lease_time: float = 5.0
    standby: int = 0
    weight: float = 1.0
    tags: tuple[str, ...] = ()
    drain_timeout: float = 20.0


class Means(msgspec.Struct, frozen=True):
    """What stewards work with: the call table, the queue of one node, how many of its commands are in hand, a flush."""

    calls: CallTable
    consume: Callable[[str], Awaitable[Consumer]] | None
    in_line: Callable[[str], int]
    flush: Callable[[float], Awaitable[None]]


class Crew:
    """Everything of the fleet in one worker. ``fail`` is called with what ends the worker for good.

    ``describe`` says of this worker what its entry shows (version, requests in hand).
    """

    def __init__(
        self,
        bus: Bus,
        *,
        id: str,
        instance: str,
        settings: CrewSettings,
        notices: NoticeBoard,
        means: Means,
        describe: Callable[[], Mapping[str, Any]],
        fail: Callable[[BridgeError], None],
    ) -> None:
        self.stewards: dict[str, NodeSteward] = {}
        self.orders: Mapping[str, NodeOrder] = {}
        self.on_orders: Callable[[Mapping[str, NodeOrder]], None] = lambda orders: None
        self.warning = ""
        """Why failover is best effort; empty where it is sure."""
        self.on_page_word: Callable[[Word], None] = lambda word: None
        """Called with the words that pages say to each other (``ops.lookout``)."""
        self._bus = bus
        self._id = id
        self._instance = instance
        self._settings = settings
        self._notices = notices
        self._hands = means
        self._fail = fail
        self._pins: dict[str, str] = {}
        self._describe = describe
        self._fleet = Fleet(
            bus.storage,
            id=id,
            instance=instance,
            lease_time=settings.lease_time,
            standby=settings.standby,
            drain_timeout=settings.drain_timeout,
            describe=lambda: {"weight": settings.weight, "tags": settings.tags, **describe()},
        )
        self._fleet.on_word = self._tell_soon
        self._fleet.on_lost = self._tell_lost
        self._fleet.on_orders = self._take_orders
        self._roll_call: RollCall | None = None
        self.directory = Directory(self._members, asyncio.get_running_loop().time)
        self.calls = CallLookup(instance, say=self._say, others=self._other_instances, node_of=means.calls.node_of)
        self._subscriptions: list[Subscription] = []
        self._task: asyncio.Task[None] | None = None
        self._telling: asyncio.TimerHandle | None = None

    # --- life --------------------------------------------------------------------------------------------------------

    def employ(self, name: str, url: str, tags: tuple[str, ...], pin: str, feed: NodeFeed, link: EventLink,
               pool: CommandPool) -> None:  # fmt: skip
        """Care for a node by these means."""
        relay, hands = feed.relay, self._hands
        continuity = Continuity(name, pool, feed.known, hands.calls, self._notices, relay.events)
        steward = NodeSteward(
            name, worker=self._id, url=url, tags=tags, relay=relay, link=link, pool=pool, feed=feed, known=feed.known,
            continuity=continuity, notices=self._notices, consume=hands.consume, in_line=hands.in_line,
            flush=hands.flush,
        )  # fmt: skip
        self._add(steward, pin)

    def _add(self, steward: NodeSteward, pin: str) -> None:
        self.stewards[steward.name] = steward
        self._pins[steward.name] = pin
        steward.on_change = self._tell_soon
        order = self.orders.get(steward.name)
        if order is not None:
            steward.drain(order.drain)
        if self._roll_call is not None:
            self._roll_call.pins[steward.name] = pin
        else:
            steward.storage = self._bus.storage
            self._fleet.add(steward.name, pin, steward)

    def retag(self, name: str, tags: tuple[str, ...]) -> None:
        """A node has other tags."""
        self.stewards[name].retag(tags)

    async def remove(self, name: str) -> None:
        """Care for a node no longer."""
        steward = self.stewards.pop(name)
        self._pins.pop(name, None)
        await self._fleet.remove(name)
        if self._roll_call is not None:
            self._roll_call.pins.pop(name, None)
        await steward.close()

    def start(self) -> None:
        """Join once the bus is there, in the background."""
        self._task = asyncio.create_task(self._live(), name="fleet")

    async def leave(self, timeout: float) -> None:
        """Hand the nodes over, within ``timeout`` s, and be gone."""
        deadline = time.monotonic() + timeout
        shared = self._roll_call is None and self._fleet.joined.is_set()
        missed = shared and not self._bus.connected and self._fleet.others()
        # Nobody can take a node while the bus is away. Who let go of it now would leave it to nobody.
        while missed and not self._bus.connected and time.monotonic() < deadline:  # noqa: ASYNC110 - the bus's state
            await asyncio.sleep(BUS_CHECK)
        if shared and self._bus.connected:
            await self._fleet.leave(max(0.0, deadline - time.monotonic()), missed=missed)
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._telling is not None:
            self._telling.cancel()
        rest = [one.give(1.0) for one in self.stewards.values() if one.feed.owning]
        await asyncio.gather(*rest, return_exceptions=True)
        await asyncio.gather(*(one.close() for one in self.stewards.values()))
        if self._roll_call is None and self._bus.connected:
            await self._fleet.close()
            self._say(TOPIC, encode(Word("look", self._instance)))
        for subscription in self._subscriptions:
            with contextlib.suppress(BusError):
                await subscription.close()

    @property
    def joined(self) -> bool:
        """Whether this worker has seen the others once."""
        return self._fleet.joined.is_set()

    @property
    def settled(self) -> bool:
        """Whether every node has an owner, and those that are ours are served, their own queues too."""
        if not self.joined:
            return False
        for name, steward in self.stewards.items():
            if steward.feed.owning:
                if not steward.served:
                    return False
            elif self._roll_call is None and not self.directory.owner(name):
                return False
        return True

    def owned(self) -> list[str]:
        """The nodes whose events this worker publishes."""
        return [name for name, steward in self.stewards.items() if steward.feed.owning]

    def owner(self, name: str) -> str:
        """Who owns the node, "" for nobody that is known."""
        steward = self.stewards.get(name)
        if steward is not None and steward.feed.owning:
            return self._id
        if self._roll_call is not None:
            return self._roll_call.owner(name)
        return self.directory.owner(name)

    def role(self, name: str) -> str:
        """What this worker is to the node."""
        if self._roll_call is not None:
            return "owner" if self.owner(name) == self._id else "standby"
        ownership = self._fleet.ownerships.get(name)
        return str(ownership.role) if ownership is not None else "none"

    def describe(self) -> dict[str, Any]:
        """The fleet for ``/nodes``."""
        told = describe_fleet(self._members().values(), self.orders)
        found: dict[str, Any] = {"workers": told["workers"], "nodes": told["nodes"]}
        found["storage"] = self._roll_call is None
        found["lease_time"] = self._fleet.lease_time
        if self.warning:
            found["warning"] = self.warning
        return found

    # --- inside ------------------------------------------------------------------------------------------------------

    def _members(self) -> Mapping[str, WorkerEntry]:
        return self._roll_call.members if self._roll_call is not None else self._fleet.members

    def others(self) -> list[WorkerEntry]:
        """The other living workers."""
        return [it for it in self._members().values() if it.instance != self._instance]

    def _other_instances(self) -> frozenset[str]:
        return frozenset(it.instance for it in self.others())

    async def _live(self) -> None:
        try:
            await self._listen()
            try:
                await self._fleet.open()
            except BusRefused as error:
                if not self._bus.roll_call:
                    raise
                await self._hold_by_roll_call(str(error))
                return
            await self._fleet.run()
        except ConfigError as error:
            log.error("this worker cannot be in the fleet", reason=str(error))
            self._fail(error)
        except BusRefused as error:
            log.error("the fleet's storage refuses us", reason=str(error))
            self._fail(error)

    async def _listen(self) -> None:
        started = time.monotonic()
        while not self._bus.connected:
            if time.monotonic() - started > ALONE_AFTER:
                # Nobody can be asked: what the nodes say is kept until the bus is there.
                for steward in self.stewards.values():
                    steward.warm()
            await asyncio.sleep(0.02)
        while True:
            try:
                for topic in (TOPIC, f"{TOPIC}.{self._instance}")[len(self._subscriptions) :]:
                    self._subscriptions.append(await self._bus.subscribe(topic, self._heard))
                return
            except BusRefused as error:
                log.warning("words between workers cannot be heard", reason=str(error))
                return
            except BusError:
                await asyncio.sleep(1.0)

    async def _hold_by_roll_call(self, reason: str) -> None:
        self.warning = BEST_EFFORT
        log.warning(BEST_EFFORT, reason=reason)
        self._roll_call = RollCall(self._bus, self._id, self.stewards, self._pins)
        await self._roll_call.run(self._fleet.joined)

    def _heard(self, received: Received) -> None:
        try:
            word = decode_word(received.payload)
        except InvalidMessage:
            return
        if word.kind == "look":
            if word.sender != self._instance:
                self._fleet.look()
        elif word.kind in PAGE_WORDS:
            self.on_page_word(word)
        else:
            self.calls.heard(word)

    def _say(self, topic: str, payload: bytes) -> None:
        self._bus.storage.tell(topic, payload)

    def _tell_soon(self) -> None:
        """Let the others look, and look ourselves: once for all that changes within a moment."""
        if self._telling is None:
            self._telling = asyncio.get_running_loop().call_later(WORD_PAUSE, self._tell_now)

    def _tell_now(self) -> None:
        self._telling = None
        self._bus.storage.tell(TOPIC, encode(Word("look", self._instance)))
        self._fleet.look()

    def _tell_lost(self, entry: WorkerEntry) -> None:
        self._notices.tell(WorkerNotice(state="lost", worker=entry.id, nodes=[one.name for one in entry.owned]))

    def _take_orders(self, orders: Mapping[str, NodeOrder]) -> None:
        self.orders = orders
        self.on_orders(orders)
        for name, steward in self.stewards.items():
            order = orders.get(name)
            steward.drain(order is not None and order.drain)
