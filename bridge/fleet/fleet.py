"""The beat of the fleet: say that we live, see who else does, decide which nodes to take, warm, give.

Every worker decides for itself by the same rules; only a lease makes an owner. This room never touches an event, and
waits for words and for known expiries, not for chance.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import structlog

from bridge.bus.storage import NODES, Storage
from bridge.errors import BusError, BusRefused, ConfigError, InvalidMessage
from bridge.fleet.membership import Membership
from bridge.fleet.name import WorkerName
from bridge.fleet.ownership import Hands, Ownership, Role
from bridge.fleet.placement import Candidate, Placement, place
from bridge.messages.fleet import NodeEntry, NodeOrder, WorkerEntry, decode_order

log = structlog.get_logger(__name__)

OVERLAP = 0.5
"""Seconds that a successor must have been ready before the owner lets go: what is still on the wire arrives."""
UNLINKED = 3.0
"""Seconds without a link after which an owner gives the node to a worker that has one."""
PACE = 100
"""Most nodes that a worker links to at the same time: those who start together get their share before one has all."""
LINKING = 5.0
"""Seconds after which a node that cannot be reached is no longer waited for."""
COMEBACK = 7.0
"""Seconds after which everybody who lost the broker has found it again: drivers pause for up to 5 between two tries."""
HURRY = 0.1
"""Least seconds between two beats, however many words come in."""


class Fleet:
    """This worker's part in the fleet. ``start`` is Unix time; ``lease_time`` s; ``standby`` warm workers a node.

    ``describe`` gives what an entry says of this worker beside its nodes. ``on_word`` tells the others to look,
    ``on_lost`` gets the entry of a worker that fell silent, ``on_orders`` the nodes that the bus knows.
    """

    def __init__(
        self,
        storage: Storage,
        *,
        id: str,
        instance: str,
        lease_time: float,
        standby: int,
        drain_timeout: float,
        describe: Callable[[], Mapping[str, Any]],
    ) -> None:
        self.on_word: Callable[[], None] = lambda: None
        self.on_lost: Callable[[WorkerEntry], None] = lambda entry: None
        self.on_orders: Callable[[Mapping[str, NodeOrder]], None] = lambda orders: None
        self.lease_time = lease_time
        self.joined = asyncio.Event()
        """The first look is done: what the fleet knows is known here."""
        self.leaving = False
        self.placement = Placement({}, {})
        self.ownerships: dict[str, Ownership] = {}
        self._storage = storage
        self._id = id
        self._instance = instance
        self._standby = standby
        self._drain_timeout = drain_timeout
        self._describe = describe
        self._started = time.time()
        self._beat = 0
        self._membership = Membership(storage, id, lease_time)
        self._name = WorkerName(storage, id, instance, lease_time)
        self._hurry = asyncio.Event()
        self._renewed_at = 0.0
        self._away_since: float | None = None
        self._back_at, self._beaten_at = float("-inf"), float("inf")
        self._room = PACE
        self._tasks: set[asyncio.Task[None]] = set()
        self._placed: object = None
        self._orders: dict[str, bytes] = {}

    # --- for the worker ----------------------------------------------------------------------------------------------

    @property
    def members(self) -> Mapping[str, WorkerEntry]:
        """The living workers by id, as last seen."""
        return self._membership.members

    @property
    def interval(self) -> float:
        """Seconds from one beat to the next: a mark at least once a second, four beats a lease."""
        return min(1.0, self.lease_time / 4)

    def add(self, node: str, pin: str, hands: Hands) -> None:
        """A node to own, to stand by for, or to leave to others."""
        self.ownerships[node] = Ownership(node, pin, hands, self._storage, self._instance, self.lease_time)
        self._placed = None
        self._hurry.set()

    async def remove(self, node: str) -> None:
        """The node is no longer ours to care for."""
        ownership = self.ownerships.pop(node, None)
        if ownership is not None:
            self._placed = None
            ownership.dismiss()
            if ownership.role is Role.OWNER:
                await ownership.release(1.0)
            await ownership.hands.cool()

    def look(self) -> None:
        """Somebody said that something changed."""
        self._hurry.set()

    def changed(self) -> None:
        """Something of ours changed that the others should see soon."""
        self._hurry.set()
        self.on_word()

    async def open(self) -> None:
        """Join. Raises ``BusRefused`` where the bus keeps nothing, ``ConfigError`` where our name is another's."""
        while True:
            try:
                self.lease_time = await self._storage.open(self.lease_time)
                break
            except BusRefused:
                raise
            except BusError as error:
                log.warning("the fleet's storage does not answer", reason=str(error))
                await asyncio.sleep(1.0)
        for ownership in self.ownerships.values():
            ownership.lease.ttl = self.lease_time
        self._membership = Membership(self._storage, self._id, self.lease_time)
        self._name.lease.ttl = self.lease_time
        await self._name.take()

    async def run(self) -> None:
        """Beat until cancelled. Raises ``ConfigError`` when another worker took our name."""
        with contextlib.suppress(BusError):  # the beats below try again
            await self._announce_and_look()
        # Those who start together see each other before they divide the nodes.
        await asyncio.sleep(min(0.5, self.lease_time / 10))
        while True:
            try:
                await self._do_beat()
            except ConfigError:
                raise
            except BusError as error:
                if self._away_since is None:
                    self._away_since = time.monotonic()
                    log.warning("the fleet's storage is away", reason=str(error))
            except Exception:  # a fault of ours must not end the ownership of every node
                log.exception("a beat failed; going on")
            await self._wait()

    async def leave(self, timeout: float, *, missed: bool = False) -> None:
        """Hand every node over, for at most ``timeout`` s, and be gone.

        ``missed``: others were there before the bus went away; it is back, and they will be in a moment.
        """
        self.leaving = True
        now = time.monotonic()
        deadline = now + timeout
        patience = min(deadline, now + max(self.lease_time, COMEBACK)) if missed else now
        self.changed()
        while self._owned() and (now < patience or (now < deadline and self.others())):
            await asyncio.sleep(0.02)
            now = time.monotonic()
        for task in list(self._tasks):
            with contextlib.suppress(TimeoutError, asyncio.CancelledError):
                await asyncio.wait_for(asyncio.shield(task), max(0.1, deadline - time.monotonic()))
        rest = [one.release(1.0) for one in self.ownerships.values() if one.role is Role.OWNER]
        await asyncio.gather(*rest, return_exceptions=True)

    async def close(self) -> None:
        """Take the entry and the name away (``run`` has ended)."""
        if self._name.lease.token:  # else the entry under our name is another's
            with contextlib.suppress(BusError):
                await self._membership.leave()
        await self._name.give_back()
        self.on_word()

    # --- one beat ----------------------------------------------------------------------------------------------------

    async def _do_beat(self) -> None:
        now = time.monotonic()
        due = now - self._renewed_at >= self.interval * 0.9
        if due:
            self._renewed_at = now
            if await self._renew_and_announce():
                self.changed()
            await self._look()
        else:
            await self._announce_and_look()
        done = time.monotonic()
        if self._away_since is not None:
            log.info("the fleet's storage is back", seconds=round(now - self._away_since, 1))
            self._away_since, self._back_at = None, now
        elif done - self._beaten_at > self.lease_time:  # away for less than it takes to notice, and leases ran out
            self._back_at = done
        self._beaten_at = done
        self._place()
        self._decide(time.monotonic())
        self.joined.set()

    async def _renew_and_announce(self) -> bool:
        """All in one write: where answers are late, none waits for another's, and nobody thinks us dead for it."""
        owned = [one for one in self.ownerships.values() if one.owns]
        told = await asyncio.gather(
            self._announce(), self._name.keep(), *(one.renew() for one in owned), return_exceptions=True
        )
        faults = [it for it in told if isinstance(it, BaseException)]
        if faults:
            raise next((it for it in faults if isinstance(it, ConfigError)), faults[0])
        return any(told)

    async def _announce(self) -> None:
        self._beat += 1
        await self._membership.announce(self._entry())

    async def _announce_and_look(self) -> None:
        await self._announce()
        await self._look()

    async def _look(self) -> None:
        before, expiry, now = dict(self.members), dict(self._membership.expiry), time.monotonic()
        await self._membership.look()
        await self._read_orders()
        for id, entry in before.items():
            # An entry that is gone long before its time was taken away by its worker.
            left = entry.draining or now < expiry.get(id, now) - 2 * self.interval
            if id not in self.members and not left and id != self._id:
                log.warning("worker lost", worker=id, nodes=len(entry.owned))
                # All see it; one tells it.
                if self._id == min(self.members, default=self._id):
                    self.on_lost(entry)

    def _entry(self) -> WorkerEntry:
        owned = tuple(one.hands.entry() for one in self.ownerships.values() if one.owns)
        ready = (
            () if self.leaving else tuple(one.node for one in self.ownerships.values() if not one.owns and one.ready)
        )
        return WorkerEntry(
            id=self._id,
            instance=self._instance,
            started=self._started,
            beat=self._beat,
            draining=self.leaving,
            knows=tuple(self.ownerships),
            ready=ready,
            owned=owned,
            **self._describe(),
        )

    async def _read_orders(self) -> None:
        found = await self._storage.entries(NODES)
        if found == self._orders:
            return
        self._orders = found
        orders: dict[str, NodeOrder] = {}
        for name, payload in found.items():
            try:
                orders[name] = decode_order(payload)
            except InvalidMessage as error:
                log.warning("node on the bus cannot be read", node=name, reason=str(error))
        self.on_orders(orders)

    def _place(self) -> None:
        able = [entry for entry in self.members.values() if not entry.draining]
        nodes = {one.node: one.pin for one in self.ownerships.values()}
        state = (sorted((it.id, it.weight, it.tags, it.knows) for it in able), nodes)
        if state != self._placed:
            self._placed = state
            candidates = [Candidate(it.id, it.weight, it.tags, frozenset(it.knows)) for it in able]
            self.placement = place(nodes, candidates, standby=self._standby)

    def _decide(self, now: float) -> None:
        owners: dict[str, tuple[WorkerEntry, NodeEntry]] = {}
        ready: dict[str, list[str]] = {}
        for entry in self.members.values():
            if entry.id == self._id:
                continue
            owners.update((node.name, (entry, node)) for node in entry.owned)
            if not entry.draining:
                for name in entry.ready:
                    ready.setdefault(name, []).append(entry.id)
        ownerships = list(self.ownerships.values())
        linking = sum(now - one.warmed_at < LINKING and not one.hands.linked for one in ownerships)
        self._room = PACE - linking
        for one in ownerships:
            if not one.busy:
                if one.role is Role.OWNER:
                    self._keep_or_give(one, ready.get(one.node, ()), now)
                else:
                    self._take_or_leave(one, owners.get(one.node), ready.get(one.node, ()), now)
        if self._room <= 0:
            self._hurry_at(now + self.interval / 4)

    def _keep_or_give(self, one: Ownership, ready: Iterable[str], now: float) -> None:
        owner = self.placement.owner(one.node)
        heirs = [id for id in (owner, *self.placement.standbys.get(one.node, ())) if id in ready]
        one.unlinked_since = 0.0 if one.hands.linked else one.unlinked_since or now
        blind = bool(one.unlinked_since) and now - one.unlinked_since > UNLINKED
        wanted = owner != self._id and owner in ready
        if not wanted and not (blind and heirs) and not (self.leaving and heirs):
            one.ready_since = 0.0
            return
        one.ready_since = one.ready_since or now
        if now - one.ready_since >= OVERLAP:
            one.ready_since = 0.0
            self._spawn(self._release(one))
        else:
            asyncio.get_running_loop().call_later(OVERLAP, self._hurry.set)

    def _take_or_leave(
        self, one: Ownership, owner: tuple[WorkerEntry, NodeEntry] | None, ready: Iterable[str], now: float
    ) -> None:
        mine = self.placement.owner(one.node) == self._id
        standby = self._id in self.placement.standbys.get(one.node, ())
        if (mine or standby) and not self.leaving:
            if one.role is Role.NONE:
                if self._room <= 0:
                    return
                self._room -= 1
                one.warmed_at = now
            one.role = Role.STANDBY
            one.hands.warm()
        elif (owner is not None or self.leaving or not one.hands.ready) and one.role is not Role.NONE:
            one.role = Role.NONE
            self._spawn(one.hands.cool())
        if owner is not None:
            # When its lease ends was learnt from an attempt of ours; it may give it back long before.
            one.retry_at = 0.0
            if one.watch(owner[0].instance, owner[1], owner[0].beat):
                self.changed()
            return
        if self.leaving or now < one.retry_at or not self._may_take(one, now):
            return
        assigned, heirs = self.placement.owner(one.node), self.placement.standbys.get(one.node, ())
        warm = {*ready, self._id} if one.ready else set(ready)
        ranked = [id for id in (assigned, *heirs, *sorted(warm)) if id in warm] or [assigned]
        if ranked[0] == self._id:
            one.role = Role.ACQUIRING
            self._spawn(self._acquire(one))

    def _may_take(self, one: Ownership, now: float) -> bool:
        """After an outage of the storage the owner of before comes first: it has what nobody else kept."""
        until = self._back_at + max(self.lease_time, COMEBACK)
        if until <= now:
            return True
        one.retry_at = until
        return False

    async def _acquire(self, one: Ownership) -> None:
        if await one.acquire():
            self.changed()
        else:
            self._hurry_at(one.retry_at)

    async def _release(self, one: Ownership) -> None:
        await one.release(self._drain_timeout)
        self.changed()

    # --- waiting -----------------------------------------------------------------------------------------------------

    def _owned(self) -> list[Ownership]:
        return [one for one in self.ownerships.values() if one.owns]

    def others(self) -> bool:
        """Whether somebody else is there who could take a node, as far as known."""
        return any(id != self._id and not entry.draining for id, entry in self.members.items())

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a step of the fleet failed", error=repr(task.exception()))

    def _hurry_at(self, when: float) -> None:
        delay = max(0.0, when - time.monotonic())
        asyncio.get_running_loop().call_later(delay, self._hurry.set)

    async def _wait(self) -> None:
        """Until the next beat is due, a word came, or somebody's time is over."""
        now = time.monotonic()
        due = self._renewed_at + self.interval
        wake = min(due, max(now + HURRY, self._membership.next_expiry() + 0.02))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.01, wake - now)):
                await self._hurry.wait()
                await asyncio.sleep(HURRY)
        self._hurry.clear()
