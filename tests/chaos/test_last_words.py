"""A worker dies, or is frozen, at the one instant that counts: it said "no", and the entry is still there."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bridge.bus.embedded import EmbeddedBroker
from bridge.client import Bridge
from bridge.messages.command import CommandReply, CommandRequest
from bridge.simulator import SimulatedSwitch
from tests.chaos.conftest import Arena, Process, until
from tests.integration.redis.conftest import _eventually, cluster, start_valkey, url_of  # noqa: F401 - fixtures

# What the worker's process runs first: it dies when the reply has left, right before it removes the entry.
DIES = {
    "nats": """
import os, signal
from bridge.bus.nats.proof import Proof
acknowledge = Proof._acknowledge
def die(self, reply):
    if b'"executed":"no"' in reply.payload:
        os.kill(os.getpid(), signal.SIGKILL)
    acknowledge(self, reply)
Proof._acknowledge = die
""",
    "cluster": """
import os, signal
from bridge.bus.redis.answers import _Completion
written = _Completion._first_written
def die(self, replies, error):
    if error is None and b'"executed":"no"' in self.commands:
        os.kill(os.getpid(), signal.SIGKILL)
    written(self, replies, error)
_Completion._first_written = die
""",
}
# The acknowledgement is on its way when the broker is killed.
LOSES = """
from bridge.bus.nats.proof import Proof
acknowledge = Proof._acknowledge
def lose(self, reply):
    if b'"executed":"no"' in reply.payload and reply.entry.count == 1:
        self._gone(reply.entry)
    else:
        acknowledge(self, reply)
Proof._acknowledge = lose
"""
# It is frozen when it has decided on "no", and has told nobody.
FREEZES = """
import os, signal
from bridge.relay.desk import ReplyDesk
end = ReplyDesk.end
def freeze(self, exchange, result, parts=None):
    if result.executed == "no":
        ReplyDesk.end = end
        os.kill(os.getpid(), signal.SIGSTOP)
    end(self, exchange, result, parts)
ReplyDesk.end = freeze
"""
# It is frozen while a request waits in its line, or before its question has left for the ledger: it is about to run it.
FREEZES_IN_LINE = """
import os, signal
from bridge.relay.commands import CommandRelay
stand = CommandRelay._stand_in_line
def freeze(self, exchange):
    stand(self, exchange)
    if exchange.id == "x":
        os.kill(os.getpid(), signal.SIGSTOP)
CommandRelay._stand_in_line = freeze
"""
FREEZES_BEFORE_THE_LEDGER = """
import os, signal
from bridge.relay.commands import CommandRelay
ask = CommandRelay._ask_ledger
def freeze(self, exchange):
    if exchange.id == "x":
        CommandRelay._ask_ledger = ask
        os.kill(os.getpid(), signal.SIGSTOP)
    ask(self, exchange)
CommandRelay._ask_ledger = freeze
"""
CLAIM_AFTER = 1.0
# One command, and then none for a quarter of an hour: its "no" is "busy", and another worker is not at its limit.
LIMITED = "[policy.rates]\neval = 0.001\nstatus = 0.001\n"
DIES["cluster list"] = DIES["cluster"]
QUEUES = {"nats": "esl.queue", **dict.fromkeys(("cluster", "redis", "list", "cluster list"), "esl.cmd")}
DENIES = '[policy]\ndeny = ["eval"]\n'
# What one says who finds that its entry is another's: by the records, or by the one step that writes and removes.
NOTICES = {
    "nats": "has taken over the request x",
    "cluster": "has taken over the request x",
    "redis": "another worker has a request by now that was refused here",
    "list": "another worker has a request by now that was refused here",
    "cluster list": "another worker has a request by now that was refused here",
}


class Scene:
    """A worker with a limit and a flaw, its heir without, a node, and a caller who keeps all replies."""

    def __init__(self, arena: Arena, kind: str, client: Bridge) -> None:
        self.arena = arena
        self.kind = kind
        self.client = client
        self.switch: SimulatedSwitch = arena.switches[0]

    async def worker(self, id: str, ledger: str, extra: str = "", prelude: str = "") -> Process:
        commands = f'[commands]\ndurable = true\nclaim_after = {CLAIM_AFTER}\nledger = "{ledger}"\n'
        if self.kind.endswith("list"):
            commands += 'queue_type = "list"\n'
        worker = await self.arena.worker(id, extra=commands + extra, prelude=prelude)
        await until(lambda: "requests are taken" in worker.output, what=f"{id} takes requests")
        return worker

    async def ask(self, id: str, queue: str, command: str = "", **fields: Any) -> list[CommandReply]:
        """Put a request in; its replies come into the list."""
        bus = self.client.bus
        address = bus.new_reply_address(queue)
        request = CommandRequest(id=id, command=command or f"eval {id}", timeout_ms=60_000, reply_to=address, **fields)
        replies: list[CommandReply] = []
        await self.arena.ask(self.client, queue, request, replies.append)
        return replies


@pytest.fixture
def place(request: pytest.FixtureRequest) -> Any:
    """The broker; an async fixture cannot be asked for from within the loop."""
    kind = request.param
    return kind, request.getfixturevalue("cluster") if kind.startswith("cluster") else None


@pytest.fixture
async def scene(place: Any, tmp_path: Path) -> AsyncIterator[Scene]:
    kind, servers = place
    async with AsyncExitStack() as stack:
        if kind.startswith("cluster"):
            broker: Any = SimpleNamespace(url=url_of(servers))
        else:
            broker = await stack.enter_async_context(EmbeddedBroker("nats" if kind == "nats" else "redis"))
        arena = Arena(broker, tmp_path, stack)
        switch = SimulatedSwitch(heartbeat_interval=1.0)
        await switch.start()
        stack.push_async_callback(switch.stop)
        arena.switches = [switch]  # type: ignore[list-item]
        client = Bridge(broker.url, queue_type="list" if kind.endswith("list") else "stream")
        yield Scene(arena, kind, await stack.enter_async_context(client))


WAYS = [
    ("nats", "", "shared"),
    ("nats", "", "memory"),
    ("nats", ".fs1", "shared"),
    ("cluster", "", "shared"),
    ("cluster", "", "memory"),
    ("cluster", ".fs1", "shared"),
    ("cluster list", "", "shared"),
    ("cluster list", "", "memory"),
    ("cluster list", ".fs1", "shared"),
]


@pytest.mark.parametrize(("place", "node", "ledger"), WAYS, ids=[" ".join(way) for way in WAYS], indirect=["place"])
async def test_a_no_is_repeated_and_never_run_when_its_worker_dies_before_the_removal(
    scene: Scene, node: str, ledger: str
) -> None:
    queue = QUEUES[scene.kind] + node
    worker = await scene.worker("a", ledger, LIMITED, DIES[scene.kind])
    allowed = [await scene.ask("first", queue), await scene.ask("second", queue, "status")]
    await until(lambda: all(allowed), what="the first of each verb is allowed")
    asked = [await scene.ask("x", queue)]
    if ledger == "memory":  # may run twice by right, without a ledger that knows of it
        asked += [await scene.ask("y", queue, idempotent=True), await scene.ask("z", queue, "status")]
    assert await worker.process.wait() == -signal.SIGKILL
    await until(lambda: any(asked), what="a no")
    told = [replies for replies in asked if replies]
    await scene.worker("b", ledger)
    await until(lambda: all(len(replies) > 1 for replies in told), what=f"the heir's word\n{scene.arena.outputs()}")
    for replies in told:
        first, *copies = replies
        assert (first.status, first.executed, first.replayed, first.worker) == ("busy", "no", False, "a")
        for copy in copies:
            assert (copy.status, copy.executed, copy.replayed) == ("busy", "no", True), scene.arena.outputs()
            assert copy.error == first.error
    assert not scene.switch.executed["eval x"]
    again = await scene.ask("x", queue)
    await until(lambda: again, what="the same id, sent again")
    assert (again[0].status, again[0].result, again[0].replayed) == ("ok", "x", False)
    assert scene.switch.executed["eval x"] == 1


@pytest.mark.parametrize("place", ["nats", "cluster", "redis", "list", "cluster list"], indirect=True)
async def test_a_no_of_one_who_was_frozen_is_not_told_beside_the_heirs_answer(scene: Scene) -> None:
    queue = QUEUES[scene.kind]
    worker = await scene.worker("a", "shared", LIMITED, FREEZES)
    allowed = await scene.ask("first", queue, "status")
    await until(lambda: allowed, what="the first is allowed")
    replies = await scene.ask("x", queue, "status")  # no ledger knows of it
    await scene.worker("b", "shared")
    await until(lambda: replies, what=f"the heir's answer\n{scene.arena.outputs()}")
    worker.send(signal.SIGCONT)
    await until(lambda: NOTICES[scene.kind] in worker.output, what=f"it noticed\n{worker.output}")
    later = [await scene.ask(f"l{number}", queue, to="fs1") for number in range(20)]
    await until(lambda: all(later), what="the queue goes on")
    await asyncio.sleep(0.2)
    assert [(it.status, it.executed, it.worker) for it in replies] == [("ok", "yes", "b")]


@pytest.mark.parametrize("place", ["nats"], indirect=True)
async def test_a_no_outlives_a_broker_that_never_got_the_acknowledgement(scene: Scene) -> None:
    queue = QUEUES[scene.kind]
    worker = await scene.worker("a", "shared", LIMITED, LOSES)
    allowed = await scene.ask("first", queue)
    await until(lambda: allowed, what="the first is allowed")
    replies = await scene.ask("x", queue)
    await until(lambda: replies, what="a no")
    await scene.arena.broker.kill()
    await worker.end(signal.SIGKILL)
    await scene.arena.broker.start()
    await scene.worker("b", "shared")
    await until(lambda: len(replies) > 1, what=f"the heir's word\n{scene.arena.outputs()}")
    assert [(it.status, it.executed, it.replayed) for it in replies] == [("busy", "no", False), ("busy", "no", True)]
    assert not scene.switch.executed["eval x"]


THAWS = [("redis", "shared"), ("redis", "memory"), ("list", "shared"), ("cluster", "shared"), ("nats", "shared")]
THAWS += [("cluster list", "shared")]


@pytest.mark.parametrize(("place", "ledger"), THAWS, ids=[" ".join(way) for way in THAWS], indirect=["place"])
async def test_one_who_was_frozen_before_the_ledger_does_not_run_what_its_heir_refused(
    scene: Scene, ledger: str
) -> None:
    worker = await scene.worker("a", ledger, prelude=FREEZES_BEFORE_THE_LEDGER)
    await thawed(scene, worker, ledger, await scene.ask("x", QUEUES[scene.kind]))


@pytest.mark.parametrize("place", ["redis", "list", "cluster"], indirect=True)
async def test_one_who_was_frozen_does_not_run_what_waited_in_its_line(scene: Scene) -> None:
    worker = await scene.worker("a", "shared", prelude=FREEZES_IN_LINE)
    queue = QUEUES[scene.kind] + ".fs1"
    await scene.ask("slow", queue, "msleep 1000")
    await until(lambda: scene.switch.executed["msleep 1000"], what="the line is taken")
    await thawed(scene, worker, "shared", await scene.ask("x", queue))


async def thawed(scene: Scene, worker: Process, ledger: str, replies: list[CommandReply]) -> None:
    """The worker stands still, its heir refuses the request; nothing of it may run when the first is back."""
    await scene.worker("b", ledger, DENIES)
    await until(lambda: replies, what=f"the heir's word\n{scene.arena.outputs()}")
    word = ("connection_lost", "unknown") if ledger == "memory" else ("denied", "no")
    assert (replies[0].status, replies[0].executed) == word
    worker.send(signal.SIGCONT)
    if ledger == "shared" and scene.kind in ("nats", "cluster"):  # it finds the record, and repeats what it says
        await until(lambda: len(replies) > 1, what=f"it noticed\n{scene.arena.outputs()}")
        assert replies[1].replayed
    else:
        await until(lambda: "has taken over the request x" in worker.output, what=f"it noticed\n{worker.output}")
    later = [await scene.ask(f"l{number}", QUEUES[scene.kind], "status", to="fs1") for number in range(20)]
    await until(lambda: all(later), what="the queue goes on")
    assert {(it.status, it.executed, it.worker) for it in replies} == {(*word, "b")}
    assert not scene.switch.executed["eval x"]
