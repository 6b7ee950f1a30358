"""A command path on fakes: pools that answer when told to, deliveries that keep what they were answered."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from bridge.errors import CommandTimeout, ConnectionLost, EslError
from bridge.esl.replies import Reply
from bridge.messages.command import CommandReply, decode_reply
from bridge.relay.call_table import CallTable
from bridge.relay.commands import CommandRelay
from bridge.relay.ledger import Ledger, MemoryLedger
from bridge.relay.policy import Policy
from bridge.relay.settings import CommandHooks, CommandSettings
from bridge.switch.command_pool import Outcome
from bridge.switch.deadlines import Deadlines
from bridge.switch.node import NodeLoad


class FakeSubmission:
    """A command that waits in the test's hands."""

    def __init__(self, what: str, done: Callable[[Outcome], None], deadline: float, accepted: Any = None) -> None:
        self.what = what
        self.deadline = deadline
        self.cancelled = False
        self.written_at = 1.0
        self._done = done
        self._accepted = accepted

    def cancel(self) -> None:
        self.cancelled = True

    def accept(self, job: str = "job-1") -> None:
        self._accepted(job)

    def outcome(self, outcome: Outcome) -> None:
        assert not self.cancelled
        self._done(outcome)

    def api(self, text: str, *, late: bool = False) -> None:
        self.outcome(Outcome("reply", Reply("api", text), late=late, esl_ms=1.5))

    def command(self, text: str, *, late: bool = False) -> None:
        self.outcome(Outcome("reply", Reply("command", text), late=late, esl_ms=1.5))

    def job(self, text: str, *, late: bool = False) -> None:
        self.outcome(Outcome("reply", Reply("api", text), text, late=late, job="job-1", esl_ms=1.5))

    def timeout(self) -> None:
        self.outcome(Outcome("timeout", error=CommandTimeout("no reply in time")))

    def lost(self) -> None:
        self.outcome(Outcome("lost", error=ConnectionLost("eof")))

    def unsent(self, error: EslError) -> None:
        self.written_at = 0.0
        self.outcome(Outcome("unsent", error=error))


class FakePool:
    """Keeps what it is given; ``take`` hands over the oldest."""

    def __init__(self) -> None:
        self.given: list[FakeSubmission] = []
        self.taken = 0

    def _keep(self, submission: FakeSubmission) -> FakeSubmission:
        self.given.append(submission)
        return submission

    def submit(self, command: bytes, done: Any, *, deadline: float, on_written: Any = None) -> FakeSubmission:
        return self._keep(FakeSubmission(command.decode(), done, deadline))

    def submit_job(
        self, line: str, done: Any, *, deadline: float, on_accepted: Any = None, on_written: Any = None
    ) -> FakeSubmission:
        return self._keep(FakeSubmission(f"job {line}", done, deadline, on_accepted))

    def submit_execute_wait(
        self, uuid: str, app: str, arg: str, done: Any, *, deadline: float, on_written: Any = None
    ) -> FakeSubmission:
        return self._keep(FakeSubmission(f"wait {uuid} {app} {arg}", done, deadline))

    def take(self) -> FakeSubmission:
        self.taken += 1
        return self.given[self.taken - 1]

    @property
    def waiting(self) -> int:
        return len(self.given) - self.taken


class FakeNodes:
    """Nodes whose state, load and tags the test sets."""

    def __init__(self, names: list[str]) -> None:
        self.pools = {name: FakePool() for name in names}
        self.states = dict.fromkeys(names, "UP")
        self.loads: dict[str, NodeLoad] = {}
        self.tagged: dict[str, tuple[str, ...]] = {}

    def names(self) -> list[str]:
        return list(self.pools)

    def pool(self, name: str) -> FakePool | None:
        return self.pools.get(name)

    def state(self, name: str) -> str:
        return self.states.get(name, "")

    def load(self, name: str) -> NodeLoad | None:
        return self.loads.get(name)

    def tags(self, name: str) -> tuple[str, ...]:
        return self.tagged.get(name, ())


@dataclass
class FakeDelivery:
    """One request; what became of it stands in ``sent`` (address, payload, content type, headers) or ``rejected``."""

    payload: bytes
    reply_to: str = "_INBOX.caller.1"
    queue: str = "esl.cmd"
    entry_id: str = ""
    queued_at: float | None = None
    claimed: bool = False
    doubtful: bool = False
    pulled: bool = False
    told: bytes = b""
    perhaps_lost_at: float = math.inf
    headers: dict[str, str] = field(default_factory=dict)
    sent: list[tuple[str, bytes, str, dict[str, str]]] = field(default_factory=list)
    rejected: list[str] = field(default_factory=list)
    let: bool = False
    asked: Callable[[bool | None], None] | None = None

    def finish(
        self, address: str, payload: bytes, content_type: str, headers: Any = None, *, refusal: bool = False
    ) -> None:
        self._once()
        self.sent.append((address, payload, content_type, headers or {}))

    def reject(self, reason: str) -> None:
        self._once()
        self.rejected.append(reason)

    def still_ours(self, told: Callable[[bool | None], None]) -> None:
        self.asked = told

    def let_go(self) -> None:
        self._once()
        self.let = True

    def _once(self) -> None:
        assert not self.let
        assert not self.sent
        assert not self.rejected

    @property
    def reply(self) -> CommandReply:
        assert len(self.sent) == 1, "no final reply"
        return decode_reply(self.sent[0][1])

    @property
    def answered(self) -> bool:
        return bool(self.sent)


class FakeBus:
    """Keeps what is sent beside final replies."""

    def __init__(self) -> None:
        self.connected = True
        self.max_payload = 1 << 20
        self.sent: list[tuple[str, CommandReply]] = []

    def send(
        self, address: str, payload: bytes, content_type: str, headers: Any = None, *, refusal: bool = False
    ) -> None:
        assert len(payload) <= self.max_payload
        self.sent.append((address, decode_reply(payload)))


class SlowLedger:
    """A shared ledger that answers when the test says so (``go``), as one on a broker would."""

    shared = True
    lasting = 300.0

    def __init__(self, window: float = 300.0) -> None:
        self.inner = MemoryLedger(window)
        self.steps: list[Callable[[], None]] = []
        self.override: Any = None

    def begin(self, key: str, content: bytes, answer: Any, **how: Any) -> None:
        if self.override is not None:
            self.steps.append(lambda: answer(self.override, None))
        else:
            self.steps.append(lambda: self.inner.begin(key, content, answer, **how))

    def keep(self, key: str, reply: CommandReply, stored: Any) -> None:
        self.steps.append(lambda: self.inner.keep(key, reply, stored))

    def release(self, key: str, reply: CommandReply | None) -> None:
        self.inner.release(key, reply)

    def replace(self, key: str, reply: CommandReply) -> None:
        self.inner.replace(key, reply)

    def go(self) -> None:
        steps, self.steps = self.steps, []
        for step in steps:
            step()


class CommandWorld:
    """A ``CommandRelay`` and everything around it."""

    def __init__(
        self,
        nodes: list[str],
        *,
        ledger: Ledger | None = None,
        policy: Policy | None = None,
        directory: Any = None,
        **settings: Any,
    ) -> None:
        self.nodes = FakeNodes(nodes)
        self.bus = FakeBus()
        self.calls = CallTable()
        self.ledger = ledger if ledger is not None else MemoryLedger(300)
        self.metrics: list[tuple[str, str]] = []
        self.late: list[dict[str, Any]] = []
        self.denied: list[tuple[str, str]] = []
        self.dead: list[str] = []
        self.audited: list[tuple[Any, CommandReply, str, str]] = []
        self.resumed = 0
        self.deadlines = Deadlines()
        self.relay = CommandRelay(
            self.bus,
            self.nodes,
            settings=CommandSettings(**settings),
            worker="w1",
            ledger=self.ledger,
            policy=policy or Policy(),
            deadlines=self.deadlines,
            calls=self.calls,
            directory=directory,
            hooks=CommandHooks(
                on_reply=lambda op, status, seconds: self.metrics.append((op, status)),
                on_late=self.late.append,
                on_denied=lambda op, reason: self.denied.append((op, reason)),
                on_dead=self.dead.append,
                on_room=self._room,
                audit=lambda request, reply, queue, address: self.audited.append((request, reply, queue, address)),
            ),
        )

    def _room(self) -> None:
        self.resumed += 1

    def put(self, payload: bytes | None = None, *, delivery: dict[str, Any] | None = None, **request: Any) -> Any:
        """Hand a request over; returns its delivery."""
        given = FakeDelivery(payload if payload is not None else json.dumps(request).encode(), **(delivery or {}))
        self.relay.accept(given)
        return given

    def pool(self, node: str = "fs1") -> FakePool:
        return self.nodes.pools[node]


@pytest.fixture
def make_world(request: pytest.FixtureRequest) -> Any:
    """Make command paths; each must have nothing in hand at the end of the test."""
    made: list[CommandWorld] = []

    def make(nodes: list[str] | None = None, *, leaves_in_hand: bool = False, **settings: Any) -> CommandWorld:
        world = CommandWorld(nodes or ["fs1"], **settings)
        if not leaves_in_hand:
            made.append(world)
        return world

    yield make
    for world in made:
        assert world.relay.in_flight == 0, "requests are still in hand"
        for name in world.nodes.names():
            assert world.relay._router.in_hand(name) == 0


@pytest.fixture
def slow_ledger() -> SlowLedger:
    return SlowLedger()


@pytest.fixture
async def world(make_world: Any) -> CommandWorld:
    """One node, fs1, in memory."""
    return make_world()


@pytest.fixture
def until() -> Any:
    """Wait for a condition: ``await until(lambda: delivery.answered)``."""

    async def wait(condition: Callable[[], Any], timeout: float = 5.0) -> None:
        async with asyncio.timeout(timeout):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.002)

    return wait
