"""The beats of several workers over one memory broker: who takes, warms, gives; with hands that only note it."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from bridge.bus.memory import MemoryBus
from bridge.bus.storage import NODES, WORKERS, Grant, Held
from bridge.errors import BusUnavailable, ConfigError
from bridge.fleet.fleet import Fleet
from bridge.fleet.lease import Right
from bridge.fleet.ownership import Ownership
from bridge.messages.fleet import Mark, NodeEntry, NodeOrder, WorkerEntry, encode

LEASE = 0.8


class Hands:
    """A node's link and relay, played."""

    def __init__(self, node: str, worker: str, story: list[tuple[str, str, str]]) -> None:
        self.node = node
        self.worker = worker
        self.story = story
        self.reachable = True
        self.is_warm = False
        self.right: Right | None = None
        self.taken: list[tuple[Mark | None, bool]] = []
        self.published = ""
        self.behind = False

    def _note(self, what: str) -> None:
        self.story.append((self.worker, what, self.node))

    @property
    def ready(self) -> bool:
        return self.linked and self.right is None

    @property
    def linked(self) -> bool:
        return self.is_warm and self.reachable

    def warm(self) -> None:
        if not self.is_warm:
            self.is_warm = True
            self._note("warm")

    async def cool(self) -> None:
        if self.is_warm:
            self.is_warm = False
            self._note("cool")

    def trim(self, identity: str) -> None:
        pass

    def take(self, right: Right, mark: Mark | None, *, overlapped: bool) -> None:
        self.is_warm = True
        self.right = right
        self.taken.append((mark, overlapped))
        self._note("take")

    def resume(self, right: Right) -> None:
        self.right = right
        self._note("resume")

    def lose(self) -> None:
        self.right = None
        self._note("lose")

    async def give(self, timeout: float) -> Mark:
        mark = self.mark()
        self.right = None
        self._note("give")
        return mark

    def mark(self) -> Mark:
        return Mark(self.right.token if self.right else 0, f"{self.worker}:{self.node}", 1.0, 0, self.worker)

    def entry(self) -> NodeEntry:
        return NodeEntry(self.node, "UP", behind=self.behind)


class Yard:
    """Workers of one broker."""

    def __init__(self) -> None:
        self.url = f"memory://{secrets.token_hex(4)}"
        self.fleets: dict[str, Fleet] = {}
        self.buses: dict[str, MemoryBus] = {}
        self.hands: dict[str, dict[str, Hands]] = {}
        self.story: list[tuple[str, str, str]] = []
        self.lost: list[WorkerEntry] = []
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._runs = 0

    async def join(self, id: str, nodes: int = 4, *, pin: str = "", **options: Any) -> Fleet:
        bus = self.buses[id] = MemoryBus(self.url)
        bus.start()
        self._runs += 1
        settings = {"standby": 0, "lease_time": LEASE, **options}
        fleet = Fleet(bus.storage, id=id, instance=f"{id}.{self._runs}", drain_timeout=5.0, describe=dict, **settings)
        fleet.on_word = lambda: [one.look() for one in self.fleets.values()] and None
        fleet.on_lost = self.lost.append
        await fleet.open()
        self.fleets[id] = fleet
        self.hands[id] = {}
        for number in range(1, nodes + 1):
            hands = self.hands[id][f"fs{number}"] = Hands(f"fs{number}", id, self.story)
            fleet.add(f"fs{number}", pin, hands)
        self._tasks[id] = asyncio.create_task(fleet.run())
        return fleet

    async def die(self, id: str) -> None:
        """The process is gone; nothing is told."""
        self._tasks[id].cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._tasks[id]
        for task in self.fleets.pop(id)._tasks:
            task.cancel()

    def owners(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for id in self.fleets:
            for node, hands in self.hands[id].items():
                if hands.right is not None and hands.right.valid:
                    found.setdefault(node, []).append(id)
        return found

    def divided(self, nodes: int = 4) -> bool:
        owners = self.owners()
        each = [sum(id in ids for ids in owners.values()) for id in self.fleets]
        return len(owners) == nodes and all(len(ids) == 1 for ids in owners.values()) and max(each) - min(each) <= 1

    async def pair(self) -> tuple[str, str]:
        """Two workers and one node: its owner, and the other."""
        await self.join("a", 1)
        await self.join("b", 1)
        await self.until(lambda: self.divided(1))
        (owner,) = self.owners()["fs1"]
        (other,) = {"a", "b"} - {owner}
        return owner, other

    async def until(self, condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                assert all(len(ids) == 1 for ids in self.owners().values()), "two owners at once"
                await asyncio.sleep(0.005)

    async def close(self) -> None:
        for id in list(self.fleets):
            await self.die(id)


@pytest.fixture
async def yard() -> AsyncIterator[Yard]:
    found = Yard()
    yield found
    await found.close()


async def test_one_worker_takes_everything(yard: Yard) -> None:
    await yard.join("a")
    await yard.until(lambda: yard.divided())
    assert all(hands.taken == [(None, False)] for hands in yard.hands["a"].values())


async def test_a_second_worker_is_warm_before_it_takes_and_gets_the_mark(yard: Yard) -> None:
    await yard.join("a")
    await yard.until(lambda: yard.divided())
    await yard.join("b")
    await yard.until(lambda: yard.divided())
    moved = [node for node, ids in yard.owners().items() if ids == ["b"]]
    assert len(moved) == 2
    for node in moved:
        told = [(worker, what) for worker, what, name in yard.story if name == node]
        assert told[:4] == [("a", "warm"), ("a", "take"), ("b", "warm"), ("a", "give")]
        assert told[4] == ("b", "take")
        ((mark, overlapped),) = yard.hands["b"][node].taken
        assert mark is not None
        assert (mark.identity, overlapped) == (f"a:{node}", True)
    await yard.until(lambda: all(not yard.hands["a"][node].is_warm for node in moved))


async def test_a_node_stays_with_its_owner_while_the_other_cannot_reach_it(yard: Yard) -> None:
    await yard.join("a")
    await yard.until(lambda: yard.divided())
    await yard.join("b")
    for hands in yard.hands["b"].values():
        hands.reachable = False
    await yard.until(lambda: sum(hands.is_warm for hands in yard.hands["b"].values()) == 2)
    await asyncio.sleep(LEASE)
    assert {id for ids in yard.owners().values() for id in ids} == {"a"}
    for hands in yard.hands["b"].values():
        hands.reachable = True
    await yard.until(lambda: yard.divided())


async def test_the_nodes_of_a_dead_worker_are_taken_when_its_lease_is_over(yard: Yard) -> None:
    await yard.join("a")
    await yard.join("b")
    await yard.until(lambda: yard.divided())
    await yard.die("a")
    await yard.until(lambda: yard.divided())
    assert [entry.id for entry in yard.lost] == ["a"]


async def test_a_standby_takes_over_with_an_overlap(yard: Yard) -> None:
    await yard.join("a", standby=1)
    await yard.join("b", standby=1)
    await yard.until(lambda: yard.divided() and all(h.linked for one in yard.hands.values() for h in one.values()))
    mine = [node for node, ids in yard.owners().items() if ids == ["a"]]
    await asyncio.sleep(LEASE)
    await yard.die("a")
    await yard.until(lambda: yard.divided())
    for node in mine:
        ((mark, overlapped),) = yard.hands["b"][node].taken
        assert mark is not None
        assert (mark.worker, overlapped) == ("a", True)


async def test_a_worker_that_is_back_before_its_lease_is_over_leaves_its_node_to_the_standby(yard: Yard) -> None:
    first = await yard.join("a", 1, standby=1, pin="a")
    await yard.until(lambda: yard.owners() == {"fs1": ["a"]})
    second = await yard.join("b", 1, standby=1, pin="a")
    await yard.until(lambda: second.ownerships["fs1"].overlapped)
    await yard.die("a")
    yard.story.clear()
    # It waits for its name, which is free at about the same time as the node: here, before. What was said meanwhile the
    # standby has alone.
    await first._name.give_back()
    await yard.join("a", 1, standby=1, pin="a")
    await yard.until(lambda: yard.owners() == {"fs1": ["a"]})
    taken = [(worker, what) for worker, what, _ in yard.story if what in ("take", "give")]
    assert taken == [("b", "take"), ("b", "give"), ("a", "take")]
    [(mark, overlapped)] = yard.hands["b"]["fs1"].taken
    assert mark is not None
    assert (mark.worker, overlapped) == ("a", True)


async def test_beside_an_owner_that_is_behind_there_is_no_overlap(yard: Yard) -> None:
    await yard.join("a", standby=1)
    await yard.until(lambda: yard.divided())
    for hands in yard.hands["a"].values():
        hands.behind = True
    await yard.join("b", standby=1)
    await yard.until(lambda: yard.divided() and all(h.linked for one in yard.hands.values() for h in one.values()))
    mine = [node for node, ids in yard.owners().items() if ids == ["a"]]
    await asyncio.sleep(LEASE)
    await yard.die("a")
    await yard.until(lambda: yard.divided())
    # What "a" had read and not published is older than the ring of "b": a mark that is not there means a hole.
    assert [yard.hands["b"][node].taken[-1][1] for node in mine] == [False] * len(mine)


async def test_a_leaving_worker_hands_over_first(yard: Yard) -> None:
    first = await yard.join("a")
    await yard.join("b")
    await yard.until(lambda: yard.divided())
    await first.leave(5.0)
    assert all(hands.right is None for hands in yard.hands["a"].values())
    await yard.die("a")
    await first.close()
    await yard.until(lambda: yard.divided())
    assert all(hands.taken[-1][1] for hands in yard.hands["b"].values() if hands.taken[-1][0] is not None)
    assert not yard.lost


async def test_a_standby_that_once_came_too_late_takes_what_is_given_at_once(yard: Yard) -> None:
    lease = 60.0
    first = await yard.join("a", 1, standby=1, lease_time=lease, pin="a")
    await yard.until(lambda: yard.owners() == {"fs1": ["a"]})
    second = await yard.join("b", 1, standby=1, lease_time=lease, pin="a")
    await yard.until(lambda: yard.hands["b"]["fs1"].ready and second.ownerships["fs1"].overlapped)
    # Before it had heard who owns the node it tried for itself, and was told when the lease would be over.
    one = second.ownerships["fs1"]
    assert not await one.acquire()
    assert one.retry_at > asyncio.get_running_loop().time() + lease / 2
    second.look()
    await yard.until(lambda: one.retry_at == 0.0)
    await first.leave(5.0)
    await yard.until(lambda: yard.owners() == {"fs1": ["b"]})


async def test_who_takes_its_entry_away_is_not_lost(yard: Yard) -> None:
    """Several that end together have no time to say that they are leaving."""
    for id in ("a", "b", "c"):
        await yard.join(id, 3)
    await yard.until(lambda: all(set(one.members) == {"a", "b", "c"} for one in yard.fleets.values()))
    await yard.fleets["b"]._membership.leave()
    yard._tasks["b"].cancel()
    await yard.until(lambda: all("b" not in yard.fleets[id].members for id in ("a", "c")))
    assert not yard.lost


async def test_the_last_worker_leaves_at_once(yard: Yard) -> None:
    only = await yard.join("a")
    await yard.until(lambda: yard.divided())
    async with asyncio.timeout(2):
        await only.leave(30.0)
    assert not yard.owners()


async def test_a_lease_that_ran_out_in_an_outage_goes_on_where_nobody_took_it(yard: Yard) -> None:
    await yard.join("a", 1)
    await yard.join("b", 1)
    await yard.until(lambda: yard.divided(1))
    (owner,) = yard.owners()["fs1"]
    yard.buses["a"].broker.stop()
    await yard.until(lambda: not yard.owners())
    await asyncio.sleep(LEASE)
    yard.buses["a"].broker.start()
    await yard.until(lambda: yard.owners() == {"fs1": [owner]})
    await asyncio.sleep(LEASE * 1.5)
    assert yard.owners() == {"fs1": [owner]}
    assert (owner, "resume", "fs1") in yard.story


async def test_a_worker_whose_renewals_are_answered_late_is_not_thought_dead(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    await yard.join("a", 1)
    await yard.join("b", 1)
    await yard.until(lambda: set(yard.fleets["b"].members) == {"a", "b"})

    async def late(*_: Any) -> bool:
        await asyncio.sleep(LEASE * 0.6)
        raise BusUnavailable("no answer in time")

    monkeypatch.setattr(yard.buses["a"].storage, "renew", late)
    beat = yard.fleets["b"].members["a"].beat
    await yard.until(lambda: yard.lost or yard.fleets["b"].members["a"].beat > beat + 4)
    assert not yard.lost


async def test_an_owner_that_finds_the_broker_late_is_waited_for(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its driver paused between two tries for longer than a lease time: nobody else has what it kept."""
    monkeypatch.setattr("bridge.fleet.fleet.COMEBACK", LEASE * 6)
    owner, other = await yard.pair()
    late = yard.fleets[owner]
    yard.buses["a"].broker.stop()
    await yard.until(lambda: yard.fleets[other]._away_since is not None)
    yard._tasks[owner].cancel()
    await yard.until(lambda: not yard.owners())
    yard.buses["a"].broker.start()
    await yard.until(lambda: yard.fleets[other]._away_since is None)
    await asyncio.sleep(LEASE * 2)
    assert not yard.owners()
    yard._tasks[owner] = asyncio.create_task(late.run())
    await yard.until(lambda: yard.owners() == {"fs1": [owner]})
    assert (owner, "resume", "fs1") in yard.story
    assert (other, "take", "fs1") not in yard.story[yard.story.index((owner, "take", "fs1")) :]


async def test_an_outage_that_is_over_before_it_is_noticed_leaves_the_owner_its_nodes_too(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker answers after more than a lease time: leases ran out, and nobody was told that it was away."""
    monkeypatch.setattr("bridge.fleet.fleet.COMEBACK", LEASE * 6)
    owner, other = await yard.pair()
    storage, late = yard.buses[other].storage, yard.fleets[owner]
    answered, renew = asyncio.Event(), storage.renew

    async def slow(*told: Any) -> Any:
        await asyncio.sleep(LEASE * 2)
        monkeypatch.setattr(storage, "renew", renew)
        answered.set()
        return await renew(*told)

    monkeypatch.setattr(storage, "renew", slow)
    yard._tasks[owner].cancel()
    await answered.wait()
    assert not yard.owners()
    await asyncio.sleep(LEASE * 2)
    assert not yard.owners()
    yard._tasks[owner] = asyncio.create_task(late.run())
    await yard.until(lambda: yard.owners() == {"fs1": [owner]})
    assert (other, "take", "fs1") not in yard.story[yard.story.index((owner, "take", "fs1")) :]


async def test_an_owner_that_had_written_no_mark_yet_goes_on_after_an_outage(yard: Yard) -> None:
    """The mark that it finds is the one that it began behind: nobody published in between."""
    await yard.join("a", 0)
    storage = yard.buses["a"].storage
    before = await storage.acquire("node.fs9", "gone", LEASE)
    assert isinstance(before, Grant)
    assert await storage.release("node.fs9", before.token, encode(Mark(before.token, "x:1", 1.0, 0, "gone")))
    hands = Hands("fs9", "a", yard.story)
    mine = Ownership("fs9", "", hands, storage, "a.1", LEASE)
    assert await mine.acquire()
    await yard.until(lambda: not mine.lease.valid)
    await asyncio.sleep(LEASE)
    assert not await mine.renew()
    assert [what for _, what, node in yard.story if node == "fs9"] == ["take", "resume"]


async def test_an_owner_whose_lease_runs_out_again_and_again_does_not_take_itself_for_another() -> None:
    bus = MemoryBus(f"memory://{secrets.token_hex(4)}")
    bus.start()
    await bus.storage.open(LEASE)
    story: list[tuple[str, str, str]] = []
    hands = Hands("fs1", "a", story)
    one = Ownership("fs1", "", hands, bus.storage, "a.1", LEASE)
    assert await one.acquire()
    await one.renew()  # its mark is written down
    for _ in range(3):
        await bus.storage.release("node.fs1", one.lease.token)  # it ran out; so the renewal's own mark is not kept
        one._mark_at = 0.0
        await one.renew()
    assert [what for _, what, _ in story] == ["take", "resume", "resume", "resume"]


async def test_who_slept_too_long_loses_its_nodes(yard: Yard) -> None:
    await yard.join("a", 1, pin="a")
    await yard.until(lambda: yard.divided(1))
    fleet = yard.fleets["a"]
    await yard.join("b", 1, pin="a")
    await yard.die("a")  # it is not dead: it sleeps
    await yard.until(lambda: yard.owners() == {"fs1": ["b"]})
    ownership = fleet.ownerships["fs1"]
    assert not ownership.lease.valid
    assert await ownership.renew()
    assert not ownership.owns
    assert yard.story[-1] == ("a", "lose", "fs1")


async def test_an_owner_that_hears_nothing_gives_to_a_standby_that_does(yard: Yard) -> None:
    await yard.join("a", 1, standby=1)
    await yard.join("b", 1, standby=1)
    await yard.until(lambda: yard.divided(1) and all(one["fs1"].linked for one in yard.hands.values()))
    (owner,) = yard.owners()["fs1"]
    yard.hands[owner]["fs1"].reachable = False
    other = next(id for id in ("a", "b") if id != owner)
    await yard.until(lambda: yard.owners() == {"fs1": [other]})


async def test_orders_of_the_bus_are_heard(yard: Yard) -> None:
    fleet = await yard.join("a", 1)
    heard: list[Any] = []
    fleet.on_orders = heard.append
    await yard.buses["a"].storage.put(NODES, "fs9", encode(NodeOrder("fs9", "fs://:x@h")))
    await yard.buses["a"].storage.put(NODES, "bad", b"\xff")
    fleet.look()
    await yard.until(lambda: heard)
    assert list(heard[-1]) == ["fs9"]


async def test_a_name_is_one_workers_only(yard: Yard) -> None:
    await yard.join("a", 1)
    await yard.until(lambda: yard.divided(1))
    with pytest.raises(ConfigError, match="another living worker"):
        await yard.join("a", 1)


async def test_a_refused_worker_leaves_the_entry_of_the_living_one_alone(yard: Yard) -> None:
    await yard.join("a", 1)
    await yard.until(lambda: yard.divided(1))
    storage = yard.buses["a"].storage
    second = Fleet(storage, id="a", instance="a.second", drain_timeout=5.0, describe=dict, standby=0, lease_time=LEASE)
    with pytest.raises(ConfigError, match="another living worker"):
        await second.open()
    removed: list[str] = []
    remove = storage.remove

    async def noted(kind: str, name: str) -> None:
        removed.append(name)
        await remove(kind, name)

    storage.remove = noted  # type: ignore[method-assign]
    await second.close()
    assert removed == []
    assert "a" in await storage.entries(WORKERS)


async def test_a_node_that_is_removed_while_its_lease_is_on_its_way_is_not_taken(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = await yard.join("a", 0)
    await fleet.joined.wait()
    storage = yard.buses["a"].storage
    asked, go = asyncio.Event(), asyncio.Event()
    acquire = storage.acquire

    async def late(name: str, holder: str, ttl: float) -> Grant | Held:
        answer = await acquire(name, holder, ttl)
        if name == "node.fs1":
            asked.set()
            await go.wait()
        return answer

    monkeypatch.setattr(storage, "acquire", late)
    hands = yard.hands["a"]["fs1"] = Hands("fs1", "a", yard.story)
    fleet.add("fs1", "", hands)
    await asked.wait()
    await fleet.remove("fs1")
    monkeypatch.setattr(storage, "acquire", acquire)
    go.set()
    await yard.until(lambda: not fleet._tasks)
    assert not hands.is_warm
    assert hands.taken == []
    assert isinstance(await acquire("node.fs1", "somebody", LEASE), Grant)


async def test_a_beat_does_not_take_a_lease_again_that_is_being_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    bus = MemoryBus(f"memory://{secrets.token_hex(4)}")
    bus.start()
    storage = bus.storage
    await storage.open(LEASE)
    story: list[tuple[str, str, str]] = []
    one = Ownership("fs1", "", Hands("fs1", "a", story), storage, "a.1", LEASE)
    assert await one.acquire()
    released, go = asyncio.Event(), asyncio.Event()
    release = storage.release

    async def late(name: str, token: int, note: bytes | None) -> bool:
        done = await release(name, token, note)
        released.set()
        await go.wait()
        return done

    monkeypatch.setattr(storage, "release", late)
    giving = asyncio.create_task(one.release(1.0))
    await released.wait()
    await one.renew()
    go.set()
    await giving
    assert [what for _, what, _ in story] == ["take", "give"]
    assert isinstance(await storage.acquire("node.fs1", "b.1", LEASE), Grant)
