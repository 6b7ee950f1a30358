"""Several workers on one shared ledger, killed, cut off and answered late, against a model of what really ran.

The queue is durable: what a worker has in hand when it falls silent is delivered again, to another, as claimed. A reply
and the removal of its entry are one step, or two between which the worker may die.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bridge.bus.memory_records import MemoryRecords, RecordShelf
from bridge.bus.records import Record, Swapped
from bridge.errors import BusUnavailable
from bridge.messages.command import STATUSES, CommandReply, Executed, Status, decode_reply
from bridge.relay.call_table import CallTable
from bridge.relay.commands import CommandRelay
from bridge.relay.execution import RUNS
from bridge.relay.policy import Policy
from bridge.relay.refusals import Refusals
from bridge.relay.settings import CommandHooks, CommandSettings
from bridge.relay.shared_ledger import SharedLedger
from bridge.switch.deadlines import Deadlines
from tests.property.relay.test_commands_property import FATES, NODES, Pool, Switch, run

CLAIM_AFTER = 3.0
WORKERS = 3


def steps(*faults: str) -> st.SearchStrategy[list[dict[str, Any]]]:
    """Requests, and now and then one of the faults."""
    step = st.fixed_dictionaries(
        {
            "pause": st.sampled_from([0.0, 0.0, 0.05, 1.0, 4.0]),
            "what": st.sampled_from(["request"] * 8 + list(faults)),
            "worker": st.integers(0, WORKERS - 1),
            "id": st.sampled_from(["", "", "", "a", "b"]),
            "to": st.sampled_from(["fs1", "fs2", "any"]),
            "timeout_ms": st.sampled_from([300, 2_000, 30_000]),
            "lasts": st.sampled_from([0.5, 2.0, 8.0]),
        }
    )
    return st.lists(step, min_size=1, max_size=25)


class Fated(MemoryRecords):
    """A worker's way to the shelf: answers take their time, or are lost; of a dead worker nothing arrives."""

    def __init__(self, worker: Worker, shelf: RecordShelf, chance: random.Random) -> None:
        super().__init__(worker, shelf)
        self.worker = worker
        self.chance = chance

    def _answer_later(self, answer: Swapped) -> Swapped:
        loop, worker = asyncio.get_running_loop(), self.worker
        lost = worker.connected and self.chance.random() < 0.05

        def told(written: bool, found: Record | None, error: Any) -> None:
            if not worker.dead:
                answer(*((False, None, BusUnavailable("it broke")) if lost else (written, found, error)))

        return lambda *said: loop.call_later(self.chance.choice([0.0, 0.001, 0.2]), told, *said) and None

    def swap(self, key: str, value: bytes, expected: Record | None, ttl: float, answer: Swapped) -> None:
        if not self.worker.dead:
            super().swap(key, value, expected, ttl, self._answer_later(answer))

    def free(self, key: str, expected: Record, answer: Swapped) -> None:
        if not self.worker.dead:
            super().free(key, expected, self._answer_later(answer))

    def beat(self, instance: str) -> None:
        if not self.worker.dead:
            super().beat(instance)


class Worker:
    """One worker: a command path of its own on the shared shelf and the shared nodes."""

    max_payload = 1 << 20

    def __init__(self, number: int, switch: Switch, shelf: RecordShelf, chance: random.Random, apart: bool) -> None:
        self.dead = False
        self.dies_with_its_reply = False
        self.on_death: Callable[[], None] = lambda: None
        self.apart = apart
        self.chance = chance
        self.cut_until = 0.0
        self.switch = switch
        self.loop = asyncio.get_running_loop()
        self.held: list[Callable[[], None]] = []
        self.ledger = SharedLedger(
            Fated(self, shelf, chance), instance=f"w{number}", window=300.0, claim_after=CLAIM_AFTER
        )
        self.relay = CommandRelay(
            self,  # type: ignore[arg-type]
            self,
            settings=CommandSettings(),
            worker=f"w{number}",
            ledger=self.ledger,
            policy=Policy(),
            deadlines=Deadlines(),
            calls=CallTable(clock=self.loop.time),
            hooks=CommandHooks(),
        )
        self.refusals = Refusals(
            Fated(self, shelf, chance), instance=f"w{number}", lasting=300.0, claim_after=CLAIM_AFTER
        )
        if apart:
            self.relay.use(self.ledger, self.refusals)

    def die(self) -> None:
        if not self.dead:
            self.dead = True
            self.on_death()

    @property
    def connected(self) -> bool:
        return self.loop.time() >= self.cut_until

    def cut(self, seconds: float) -> None:
        self.cut_until = max(self.cut_until, self.loop.time() + seconds)
        self.loop.call_at(self.cut_until, self._back)

    def _back(self) -> None:
        if self.connected:
            held, self.held = self.held, []
            for leave in held:
                leave()

    def write(self, leave: Callable[[], None]) -> None:
        """What a bus does with a reply: it waits while the broker is away, and dies with its worker."""
        if not self.dead:
            if self.connected:
                leave()
            else:
                self.held.append(lambda: None if self.dead else leave())

    def send(
        self, address: str, payload: bytes, content_type: str, headers: Any = None, *, refusal: bool = False
    ) -> None:
        reply = decode_reply(payload)
        self.write(lambda: ENTRIES[address].told.append(reply))

    # Nodes

    def names(self) -> tuple[str, ...]:
        return NODES

    def pool(self, name: str) -> Any:
        return MortalPool(self, name) if name in NODES else None

    def state(self, name: str) -> str:
        return "UP" if name in NODES else ""

    def load(self, name: str) -> None:
        return None

    def tags(self, name: str) -> tuple[str, ...]:
        return ()


class MortalPool(Pool):
    """A dead worker writes nothing and hears nothing; what it wrote before runs."""

    def __init__(self, worker: Worker, node: str) -> None:
        super().__init__(worker.switch, node)
        self.worker = worker

    def submit(self, command: bytes, done: Any, *, deadline: float, on_written: Any = None) -> Any:
        if self.worker.dead:
            return Nothing()
        worker = self.worker
        return super().submit(command, lambda outcome: None if worker.dead else done(outcome), deadline=deadline)


class Nothing:
    written_at = 0.0

    def cancel(self) -> None:
        return


class Entry:
    """One entry of the durable queue, until a reply to it was written."""

    def __init__(self, number: int, body: dict[str, Any]) -> None:
        self.address = f"_INBOX.{number}"
        self.body = body
        self.told: list[CommandReply] = []
        self.gone = False
        self.holder: Worker | None = None
        self.handed: list[Handed] = []
        ENTRIES[self.address] = self


ENTRIES: dict[str, Entry] = {}


class Handed:
    """A delivery of an entry to one worker."""

    queue = "esl.cmd"
    headers: Mapping[str, str] = MappingProxyType({})
    queued_at = None
    pulled = True
    told = b""

    def __init__(self, entry: Entry, worker: Worker, *, claimed: bool) -> None:
        self.entry, self.worker = entry, worker
        # A broker may have forgotten that it delivered it before.
        self.doubtful = claimed and worker.apart and worker.chance.random() < 0.2
        self.claimed = claimed and not self.doubtful
        self.payload = json.dumps(entry.body).encode()
        self.entry_id = entry.address
        self.reply_to = entry.address
        self.over = False
        self.in_hand = True
        self.perhaps_lost_at = asyncio.get_running_loop().time() + CLAIM_AFTER / 3

    def finish(
        self, address: str, payload: bytes, content_type: str, headers: Any = None, *, refusal: bool = False
    ) -> None:
        assert not self.over, "two final replies of one delivery"
        self.over = True
        reply = decode_reply(payload)

        def leave() -> None:
            self.entry.told.append(reply)
            if not self.worker.apart:
                self.entry.gone = True
            else:
                loop = asyncio.get_running_loop()
                loop.call_later(self.worker.chance.choice([0.0, 0.001, 0.2]), self.worker.write, remove)
            if self.worker.dies_with_its_reply:
                asyncio.get_running_loop().call_later(self.worker.chance.choice([0.0, 0.1]), self.worker.die)

        def remove() -> None:
            self.entry.gone = True

        self.worker.write(leave)

    def still_ours(self, told: Callable[[bool | None], None]) -> None:
        def look() -> None:
            self.perhaps_lost_at = asyncio.get_running_loop().time() + CLAIM_AFTER / 3
            told(self.entry.holder is self.worker and not self.entry.gone)

        if self.worker.connected:
            self.worker.write(look)
        else:
            told(None)

    def let_go(self) -> None:
        assert not self.over
        self.over, self.in_hand = True, False

    def reject(self, reason: str) -> None:
        raise AssertionError(reason)


async def scenario(steps: list[dict[str, Any]], fates: Any, seed: int, apart: bool) -> tuple[list[Entry], Switch]:
    ENTRIES.clear()
    loop = asyncio.get_running_loop()
    chance = random.Random(seed)
    switch = Switch(list(fates))
    shelf = RecordShelf(loop.time)
    workers = [Worker(number, switch, shelf, chance, apart) for number in range(WORKERS)]
    for worker in workers:
        await worker.ledger.open()
        worker.on_death = partial(loop.call_later, CLAIM_AFTER, lambda worker=worker: claim_those_of(worker))
    entries: list[Entry] = []

    def hand(entry: Entry, *, claimed: bool, but: Worker | None = None) -> None:
        able = [worker for worker in workers if not worker.dead and worker.connected and worker is not but]
        if able:
            holder = entry.holder = chance.choice(able)
            if not any(one.worker is holder and one.in_hand for one in entry.handed):  # else it has it all the time
                entry.handed.append(Handed(entry, holder, claimed=claimed))
                holder.relay.accept(entry.handed[-1])
            loop.call_later(CLAIM_AFTER, claim_what_was_let_go, entry, holder)
        else:
            loop.call_later(1.0, lambda: hand(entry, claimed=claimed))

    def claim_what_was_let_go(entry: Entry, holder: Worker) -> None:
        has_it = any(one.worker is holder and one.in_hand for one in entry.handed)
        if entry.holder is holder and not entry.gone and not has_it:
            hand(entry, claimed=True)

    def claim_those_of(worker: Worker) -> None:
        """The broker has not heard of this worker for ``CLAIM_AFTER``."""
        if worker.dead or not worker.connected:
            for entry in entries:
                if entry.holder is worker and not entry.gone:
                    hand(entry, claimed=True, but=worker)

    for number, step in enumerate(steps):
        await asyncio.sleep(step["pause"])
        worker = workers[step["worker"]]
        if step["what"] == "kill":
            if sum(not one.dead and not one.dies_with_its_reply for one in workers) > 1:
                worker.die()
        elif step["what"] == "last word":
            if sum(not one.dead and not one.dies_with_its_reply for one in workers) > 1:
                worker.dies_with_its_reply = True
        elif step["what"] == "cut":
            worker.cut(step["lasts"])
            if step["lasts"] > CLAIM_AFTER:
                loop.call_later(CLAIM_AFTER, claim_those_of, worker)
        else:
            name = step["id"] or f"free{number}"
            to = {"a": "fs1", "b": "fs2"}.get(step["id"], step["to"])  # one id, one content
            body = {"id": name, "command": f"do {name}", "to": to, "timeout_ms": step["timeout_ms"]}
            entry = Entry(number, body)
            entries.append(entry)
            hand(entry, claimed=False)
    await asyncio.sleep(900)
    for worker in workers:
        if not worker.dead:
            assert worker.relay.in_flight == 0
            assert len(worker.ledger) == 0
        worker.dead = True
        worker.ledger.close()
    return entries, switch


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=steps("kill", "cut"), fates=st.lists(FATES, max_size=40), seed=st.integers(0, 1_000))
def test_whatever_dies_an_id_runs_once_and_nobody_lies(steps: list[dict[str, Any]], fates: Any, seed: int) -> None:
    judge(*run(scenario(steps, fates, seed, apart=False)))


def _step(what: str = "request", worker: int = 0, pause: float = 0.0, id: str = "", timeout_ms: int = 300) -> Any:
    return {
        "what": what, "worker": worker, "pause": pause, "id": id, "to": "fs1", "timeout_ms": timeout_ms, "lasts": 0.5,
    }  # fmt: skip


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@example(  # a repeat is told that its id runs, and its worker dies; the one that ran is told "no", and so is the repeat
    steps=[
        _step(timeout_ms=30_000),
        _step("cut"),
        _step("last word", 2),
        _step(pause=1.0, id="b", timeout_ms=2_000),
        _step(id="b"),
        _step(pause=0.05),
        _step(),
        _step(pause=4.0),
        _step(),
    ],
    fates=[("ok", 2.0, False), ("busy", 2.0, False), ("ok", 1.0, False)],
    seed=144,
)
@example(  # its "no" comes late, right before its worker dies with the entry still there: the heir repeats it
    steps=[
        _step(timeout_ms=30_000),
        _step(),
        _step("cut"),
        _step("cut", 1, pause=1.0),
        _step(),
        _step(timeout_ms=2_000),
        _step("cut", pause=1.0),
        _step(pause=1.0),
        _step("cut", 1, pause=0.05),
        _step(),
        _step("last word"),
        _step("kill", pause=0.05),
    ],
    fates=[("timeout", 1.0, False), ("ok", 1.0, False), ("ok", 3.0, False), ("refused", 2.0625, False)],
    seed=0,
)
@given(
    steps=steps("kill", "cut", "cut", "last word", "last word"),
    fates=st.lists(FATES, max_size=40),
    seed=st.integers(0, 1_000),
)
def test_whoever_dies_between_a_reply_and_its_entry_told_no_lie(
    steps: list[dict[str, Any]], fates: Any, seed: int
) -> None:
    entries, switch = run(scenario(steps, fates, seed, apart=True))
    judge(entries, switch)
    times = Counter(entry.body["id"] for entry in entries)
    for entry in entries:
        finals = [reply for reply in entry.told if not reply.late]
        # A repeat whose budget ended while it waited knew of no outcome yet, and no record is left of that.
        firsts = [reply for reply in finals if not reply.replayed and reply.error != RUNS.error]
        assert len(firsts) <= 1, (entry.body, finals)
        if times[entry.body["id"]] == 1:  # whoever says "no" has asked; behind a timeout it may have come late
            sure = {reply.executed is Executed.NO for reply in finals if reply.status is not Status.TIMEOUT}
            assert len(sure) <= 1, (entry.body, finals)


def judge(entries: list[Entry], switch: Switch) -> None:
    """No id ran twice, every entry was answered, and no reply tells what was not."""
    assert set(switch.ran.values()) <= {1}, switch.ran
    times = Counter(entry.body["id"] for entry in entries)
    outcomes: dict[str, set[tuple[str, str]]] = {}
    for entry in entries:
        finals = [reply for reply in entry.told if not reply.late]
        assert finals, entry.body
        ran = switch.ran[f"api {entry.body['command']}"]
        for reply in entry.told:
            assert reply.id == entry.body["id"]
            assert reply.executed in STATUSES[reply.status].executed
            if reply.executed is Executed.YES:
                assert ran == 1, entry.body
            elif reply.executed is Executed.NO and times[reply.id] == 1:
                assert ran == 0, entry.body
        if times[entry.body["id"]] == 1:
            outcomes.setdefault(entry.body["id"], set()).update((one.status, one.executed) for one in finals)
    for id, told in outcomes.items():
        # A repeat may know more than was told at first, never something else.
        # Two workers may word it differently why it did not run.
        known = {outcome if outcome[1] == "yes" else "no" for outcome in told if outcome[1] != "unknown"}
        assert len(known) <= 1, (id, told)
