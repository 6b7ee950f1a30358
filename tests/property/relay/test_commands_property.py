"""Random requests, timeouts, link losses, repeats and ends of the worker against a model of what really ran.

Time is made up: the loop jumps to its next timer, so that a run of minutes takes milliseconds and always goes alike.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import json
import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bridge.errors import BudgetSpent, CommandTimeout, ConnectionLost, ConnectTimeout, PoolBusy
from bridge.esl.replies import Reply
from bridge.messages.command import STATUSES, CommandReply, Executed, Status, decode_reply
from bridge.relay.call_table import CallTable
from bridge.relay.commands import CommandRelay
from bridge.relay.execution import RUNS
from bridge.relay.ledger import MemoryLedger
from bridge.relay.policy import Policy
from bridge.relay.settings import CommandHooks, CommandSettings
from bridge.switch.command_pool import Outcome
from bridge.switch.deadlines import Deadlines

NODES = ("fs1", "fs2")
LINE = "esl.cmd.fs1"


class MadeUpTime(asyncio.SelectorEventLoop):
    """An event loop that never sleeps: when nothing is ready it moves its clock to the next timer."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1_000.0
        select = self._selector.select  # type: ignore[attr-defined]

        def jump(timeout: float | None) -> Any:
            if timeout:
                self.now += timeout
            return select(0)

        self._selector.select = jump  # type: ignore[attr-defined]

    def time(self) -> float:
        return self.now


# What a node does with one command: (kind, seconds until it does, does it run). `timeout` means that the answer comes
# that long after the deadline, or never (`silence`).
FATES = st.tuples(
    st.sampled_from(["ok", "error", "refused", "timeout", "silence", "lost", "busy", "unreachable", "no_connection"]),
    st.floats(0.001, 3.0),
    st.booleans(),
)

REQUESTS = st.fixed_dictionaries(
    {
        "pause": st.sampled_from([0.0, 0.0, 0.05, 1.0, 4.0]),
        "id": st.sampled_from(["", "a", "b", "c", "d"]),
        "to": st.sampled_from(["", "fs1", "fs2", "all"]),
        "line": st.booleans(),
        "timeout_ms": st.sampled_from([1, 300, 2_000, 6_000]),
        "other_content": st.sampled_from([False] * 9 + [True]),
        "claimed": st.sampled_from([False] * 9 + [True]),
    }
)


@dataclass
class Given:
    """One delivery and what was written for it."""

    payload: bytes
    request: dict[str, Any]
    queue: str
    claimed: bool
    at: float
    log: list[tuple[float, str, CommandReply | None]] = field(default_factory=list)
    reply_to: str = ""
    entry_id: str = ""
    queued_at: float | None = None
    doubtful: bool = False
    pulled: bool = False
    told: bytes = b""
    perhaps_lost_at: float = math.inf
    headers: dict[str, str] = field(default_factory=dict)
    loop: Any = None

    def finish(
        self, address: str, payload: bytes, content_type: str, headers: Any = None, *, refusal: bool = False
    ) -> None:
        assert address == self.reply_to
        self.log.append((self.loop.time(), "final", decode_reply(payload)))

    def reject(self, reason: str) -> None:
        self.log.append((self.loop.time(), "dead", None))

    @property
    def finals(self) -> list[CommandReply]:
        return [reply for _, kind, reply in self.log if kind == "final" and reply is not None]


class Attempt:
    """A command in the model's pool."""

    def __init__(self, switch: Switch, node: str, text: str, done: Callable[[Outcome], None], deadline: float) -> None:
        self.switch, self.node, self.text, self.done, self.deadline = switch, node, text, done, deadline
        self.written_at = 0.0
        self.over = False
        loop = switch.loop
        kind, after, runs = switch.fates.pop(0) if switch.fates else ("ok", 0.01, True)
        call = loop.call_later
        until = max(0.0, deadline - loop.time())
        if until <= 0:
            call(0, self.tell, Outcome("unsent", error=BudgetSpent("late")))
        elif kind in ("busy", "unreachable"):
            error = PoolBusy("full") if kind == "busy" else ConnectTimeout("5 s")
            call(min(after, until), self.tell, Outcome("unsent", error=error))
        elif kind == "no_connection":
            call(until, self.tell, Outcome("unsent", error=BudgetSpent("no connection")))
        else:
            self.written_at = loop.time()
            ran = kind in ("ok", "error") or (runs and kind != "refused")
            if ran:
                # It runs at some time, perhaps after its caller has heard of a timeout or of a lost connection.
                call(after if kind != "lost" else 0, self.run)
            if kind == "lost":
                call(min(after, until), self.tell, Outcome("lost", error=ConnectionLost("eof")))
            elif kind == "silence" or (kind == "timeout" and not ran):
                call(until, self.tell, Outcome("timeout", error=CommandTimeout("late")))
            else:
                answers = {
                    "ok": Reply("api", f"+OK {switch.number()}"),
                    "error": Reply("api", "-ERR no"),
                    "refused": Reply("command", "-ERR permission denied"),
                    "timeout": Reply("api", f"+OK {switch.number()}"),
                }
                wait = after + until if kind == "timeout" else after
                if wait >= until:
                    call(until, self.tell, Outcome("timeout", error=CommandTimeout("late")))
                    call(wait, self.tell_late, answers[kind])
                else:
                    call(wait, self.tell, Outcome("reply", answers[kind], esl_ms=1.0))

    def run(self) -> None:
        self.switch.ran[self.text] += 1
        self.switch.runs.append((self.switch.loop.time(), self.node, self.text))

    def tell(self, outcome: Outcome) -> None:
        if not self.over:
            self.over = True
            self.done(outcome)

    def tell_late(self, reply: Reply) -> None:
        if not self.cancelled:
            self.done(Outcome("reply", reply, late=True, esl_ms=1.0))

    cancelled = False

    def cancel(self) -> None:
        self.over = self.cancelled = True


class Switch:
    """All nodes: pools whose commands meet the fates that hypothesis chose; counts what really ran."""

    def __init__(self, fates: list[tuple[str, float, bool]]) -> None:
        self.loop = asyncio.get_running_loop()
        self.fates = fates
        self.ran: Counter[str] = Counter()
        self.runs: list[tuple[float, str, str]] = []
        self._number = 0

    def number(self) -> int:
        self._number += 1
        return self._number

    def names(self) -> tuple[str, ...]:
        return NODES

    def pool(self, name: str) -> Pool | None:
        return Pool(self, name) if name in NODES else None

    def state(self, name: str) -> str:
        return "UP" if name in NODES else ""

    def load(self, name: str) -> None:
        return None

    def tags(self, name: str) -> tuple[str, ...]:
        return ()


class Pool:
    def __init__(self, switch: Switch, node: str) -> None:
        self.switch, self.node = switch, node

    def submit(self, command: bytes, done: Any, *, deadline: float, on_written: Any = None) -> Attempt:
        return Attempt(self.switch, self.node, command.decode().strip(), done, deadline)


class SharedLedger:
    """A ledger on a broker, as far as one worker can see: every answer takes its time, or the broker is away."""

    shared = True
    lasting = 300.0

    def __init__(self, loop: asyncio.AbstractEventLoop, chance: random.Random) -> None:
        self.inner = MemoryLedger(300, clock=loop.time)
        self.loop = loop
        self.chance = chance
        self._running = self.inner._running

    def _later(self, step: Callable[[], None]) -> None:
        self.loop.call_later(self.chance.choice([0.0, 0.001, 0.5]), step)

    def begin(self, key: str, content: bytes, answer: Any, **how: Any) -> None:
        self._later(functools.partial(self.inner.begin, key, content, answer, **how))

    def keep(self, key: str, reply: CommandReply, stored: Any) -> None:
        self._later(functools.partial(self.inner.keep, key, reply, stored))

    def release(self, key: str, reply: CommandReply) -> None:
        self.inner.release(key, reply)

    def replace(self, key: str, reply: CommandReply) -> None:
        self._later(functools.partial(self.inner.replace, key, reply))


class Bus:
    max_payload = 1 << 20

    def __init__(self) -> None:
        self.by_address: dict[str, Given] = {}

    def send(
        self, address: str, payload: bytes, content_type: str, headers: Any = None, *, refusal: bool = False
    ) -> None:
        one = self.by_address[address]
        reply = decode_reply(payload)
        one.log.append((one.loop.time(), "late" if reply.late else "accepted", reply))


async def scenario(
    requests: list[dict[str, Any]], fates: list[tuple[str, float, bool]], *, shared: bool, limit: int, drain: float
) -> tuple[list[Given], Switch]:
    loop = asyncio.get_running_loop()
    switch, bus, deadlines = Switch(list(fates)), Bus(), Deadlines()
    ledger: Any = SharedLedger(loop, random.Random(len(requests))) if shared else MemoryLedger(300, clock=loop.time)
    relay = CommandRelay(
        bus,  # type: ignore[arg-type]
        switch,
        settings=CommandSettings(max_in_flight=limit, max_in_flight_node=limit),
        worker="w",
        ledger=ledger,
        policy=Policy(),
        deadlines=deadlines,
        calls=CallTable(clock=loop.time),
        hooks=CommandHooks(),
    )
    given: list[Given] = []
    for number, request in enumerate(requests):
        await asyncio.sleep(request["pause"])
        id, line = request["id"], request["line"] and request["to"] in ("", "fs1")
        # What an id stands for is fixed, but for the few requests that use it for something else. d is idempotent.
        name = f"other{number}" if request["other_content"] else (id or f"free{number}")
        body = {"command": f"do {name}", "to": request["to"], "timeout_ms": request["timeout_ms"]}
        if id:
            body["id"] = id
        if id == "d":
            body["idempotent"] = True
        one = Given(
            json.dumps(body).encode(), body, LINE if line else "esl.cmd", request["claimed"], loop.time(), loop=loop
        )
        one.reply_to = f"_INBOX.{number}"
        bus.by_address[one.reply_to] = one
        given.append(one)
        relay.accept(one)
    if drain >= 0:
        await asyncio.sleep(drain / 4)
        await relay.drain(drain)
    await asyncio.sleep(600)  # longer than anything can take
    assert relay.in_flight == 0
    assert [relay._router.in_hand(node) for node in NODES] == [0, 0]
    assert len(deadlines) == 0
    assert not ledger._running
    assert relay._search._asking == {}
    return given, switch


def run(coroutine: Any) -> Any:
    loop = MadeUpTime()
    try:
        return loop.run_until_complete(coroutine)
    finally:
        loop.close()


def check_replies(given: list[Given], *, gave_up: bool) -> None:
    """Each delivery by itself: exactly one end, honest by the table, in time."""
    for one in given:
        ends = [kind for _, kind, _ in one.log if kind in ("final", "dead")]
        assert len(ends) == 1, one
        assert [kind for _, kind, _ in one.log].count("late") <= 1
        (reply,) = one.finals
        assert reply.executed in STATUSES[reply.status].executed or one.request["to"] == "all"
        assert reply.id == one.request.get("id", "")
        assert (reply.error == "") == (reply.status is Status.OK)
        (ended_at,) = [at for at, kind, _ in one.log if kind == "final"]
        deadline = one.at + one.request["timeout_ms"] / 1000
        # A repeat waits for the one that runs, and at least a second; a slow ledger adds its own time (at most 0.5 s
        # for each of its steps).
        if not reply.replayed:
            look = 1.0 if reply.error == RUNS.error else 0.0
            assert ended_at <= deadline + 1.01 + look + (1.0 if gave_up else 0.0)


def check_honesty(given: list[Given], switch: Switch) -> None:
    """What was said against what ran."""
    for one in given:
        (reply,) = one.finals
        text = f"api {one.request['command']}"
        ran = switch.ran[text]
        if reply.status is Status.INVALID:
            continue
        for part in reply.replies or [reply]:
            if part.executed is Executed.YES:
                assert any(what == text and node == part.node for _, node, what in switch.runs)
        if reply.executed is Executed.NO and not one.request.get("id"):
            assert ran == 0


def check_ids(given: list[Given], switch: Switch) -> None:
    """All deliveries of one id and content together: one execution a node, one outcome."""
    twice = {f"api {one.request['command']}" for one in given if one.request.get("idempotent")}
    for text, count in switch.ran.items():
        if text not in twice:
            per_node = Counter(node for _, node, what in switch.runs if what == text)
            assert set(per_node.values()) <= {1}, (text, count)
    groups: dict[tuple[str, str, str], list[tuple[float, str, CommandReply]]] = {}
    for one in given:
        if one.request.get("id"):
            key = (one.request["id"], one.request["command"], one.queue + one.request["to"])
            for at, kind, reply in one.log:
                # A repeat whose budget ended while it waited knows of no outcome yet; its late reply does.
                waited = reply is not None and reply.error == RUNS.error
                if reply is not None and reply.status is not Status.INVALID and not waited:
                    groups.setdefault(key, []).append((at, kind, reply))
    for (id, _, _), said in groups.items():
        known: CommandReply | None = None
        late_at = -1.0
        for at, _, reply in sorted(said, key=lambda entry: entry[0]):
            if known is None or (known.executed is Executed.UNKNOWN and (reply.late or id == "d")):
                if known is not None and id == "d":
                    assert reply.executed is not Executed.NO or reply.late
                if reply.late and reply.executed is Executed.NO:
                    known = None  # it was refused: the id is free
                elif reply.executed is not Executed.NO:
                    known = reply
            elif known.executed is Executed.UNKNOWN and reply.executed is Executed.YES:
                known = reply  # a repeat that heard the late answer
            else:
                if reply.executed is Executed.UNKNOWN and at <= late_at + 1.0:
                    continue  # it had asked the broker before the late answer was kept there
                if id == "d":  # every run has an outcome of its own
                    assert reply.executed is not Executed.NO or reply.late
                else:
                    assert (reply.status, reply.executed, reply.result) == (known.status, known.executed, known.result)
            late_at = at if reply.late else late_at


def check_order(given: list[Given], switch: Switch) -> None:
    """On the node's own queue the next command is written when the one before has its final reply."""
    in_line = [one for one in given if one.queue == LINE and not one.request.get("id")]
    started = {text: at for at, _, text in switch.runs}
    for before, after in itertools.pairwise(in_line):
        (reply,) = before.finals
        text, next_text = (f"api {one.request['command']}" for one in (before, after))
        if text in started and next_text in started and reply.executed is Executed.YES:
            assert started[text] <= started[next_text]


def _asked(id: str, to: str, timeout_ms: int) -> dict[str, Any]:
    rest = {"pause": 0.0, "line": False, "other_content": False, "claimed": False}
    return {"id": id, "to": to, "timeout_ms": timeout_ms, **rest}


@pytest.mark.parametrize("shared", [False, True])
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    requests=st.lists(REQUESTS, min_size=1, max_size=25),
    fates=st.lists(FATES, max_size=40),
    limit=st.sampled_from([1, 3, 100]),
    drain=st.sampled_from([-1.0, -1.0, 0.0, 2.0]),
)
@example(  # the last one is asked for a second behind its budget, once the ledger has said that its id runs
    requests=[_asked("", "", 1), _asked("", "", 1), _asked("a", "fs1", 2_000)]
    + 4 * [_asked("a", "", 1)]
    + [_asked("a", "fs1", 1)],
    fates=[("ok", 1.0, False), ("ok", 1.0, False), ("ok", 2.0, False)],
    limit=3,
    drain=-1.0,
)
def test_one_outcome_at_most_one_execution_and_no_lie(
    shared: bool,
    requests: list[dict[str, Any]],
    fates: list[tuple[str, float, bool]],
    limit: int,
    drain: float,
) -> None:
    # Without a ledger that all workers share a claimed request is answered connection_lost; with one, this model
    # never had it before, so it runs.
    answered, switch = run(scenario(requests, fates, shared=shared, limit=limit, drain=drain))
    check_replies(answered, gave_up=drain >= 0)
    check_honesty(answered, switch)
    check_ids(answered, switch)
    check_order(answered, switch)


def test_the_model_can_fail() -> None:
    """A relay that forgets ids would be caught."""
    import unittest.mock

    requests = [
        {
            "pause": 1.0,
            "id": "a",
            "to": "fs1",
            "line": False,
            "timeout_ms": 6_000,
            "other_content": False,
            "claimed": False,
        }
    ] * 2
    with unittest.mock.patch.object(
        MemoryLedger, "begin", lambda self, key, content, answer, **_: _forget(self, key, answer)
    ):
        answered, switch = run(scenario(requests, [], shared=False, limit=3, drain=-1))
    with pytest.raises(AssertionError):
        check_ids(answered, switch)


def _forget(ledger: MemoryLedger, key: str, answer: Any) -> None:
    from bridge.relay.ledger import Verdict, _Running

    ledger._running[key] = _Running(b"")
    answer(Verdict.NEW, None)
