"""Commands of every kind from many callers, each reply kept, and a judge who compares them with what really ran.

This room breaks nothing itself; whoever uses it kills, cuts and restarts meanwhile.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from bridge.bus.base import Subscription
from bridge.client import Bridge
from bridge.errors import BridgeError
from bridge.messages.codec import JSON, MSGPACK
from bridge.messages.command import CommandReply, CommandRequest, encode_request
from bridge.messages.reply import decode_reply
from bridge.simulator import SimulatedSwitch
from bridge.simulator.events import SimulatedEvent

BUDGET = 8_000  # ms
KINDS = {
    "api": 30, "bgapi": 12, "execute": 8, "wait": 6, "hangup": 5, "sendmsg": 6, "sendevent": 8, "all": 4,
    "expired": 8, "denied": 3, "ordered": 10,
}  # fmt: skip
"""What is asked for, and how often."""
MARK = "Soak-Id"


class CountingSwitch(SimulatedSwitch):
    """A node that also counts the events sent into it, by their mark."""

    def deliver(self, event: SimulatedEvent) -> None:
        mark = event.header(MARK)
        if mark is not None and event.name == "CUSTOM":
            self.count(mark)
        super().deliver(event)

    def make_call(self) -> str:
        """A call that stays."""
        channel = self.calls.create(
            direction="inbound", name="sofia/internal/soak", caller=("soak", "100"), destination="200"
        )
        self.calls.route(channel)
        self.calls.answer(channel)
        return channel.uuid


@dataclass
class Copy:
    """One time that a request was sent."""

    sent_at: float
    returned_at: float = 0.0
    queued: bool = False
    """The broker has it; False is in doubt."""
    replies: list[CommandReply] = field(default_factory=list)
    listening: Subscription | None = None

    @property
    def answered(self) -> bool:
        """A late reply is an answer too, where somebody else told another request of the id ``connection_lost``."""
        return any(reply.final for reply in self.replies)

    @property
    def finals(self) -> list[CommandReply]:
        return [reply for reply in self.replies if reply.final and not reply.late]


@dataclass
class Order:
    """One id: what is asked under it, and every time that it was sent."""

    id: str
    fields: dict[str, Any]
    text: str
    """Under this the switches count that it ran."""
    queue: str
    copies: list[Copy] = field(default_factory=list)


class Traffic:
    """New requests, sent through ``clients`` to ``queue``; ``durable`` ones must all be answered.

    With ``pops`` a reply is taken from the broker for good before the caller has it (Redis' BLPOP): what a broker that
    is killed had just handed out is lost, and the caller has to ask again.
    """

    def __init__(
        self,
        clients: list[Bridge],
        switches: dict[str, CountingSwitch],
        *,
        queue: str,
        durable: bool,
        pops: bool = False,
        chance: random.Random,
    ) -> None:
        self.orders: list[Order] = []
        self.killed: list[float] = []
        """When the broker was killed: what was being put into the queue then is in doubt."""
        self._clients = clients
        self._switches = switches
        self._queue = queue
        self._durable = durable
        self._pops = pops
        self._chance = chance
        self._calls = [(name, switch.make_call()) for name, switch in switches.items() for _ in range(4)]
        self._tasks: set[asyncio.Task[None]] = set()

    # --- asking -----------------------------------------------------------------------------------------------------

    async def run(self, per_second: float, stop: asyncio.Event, most: int = 1_000_000) -> None:
        """Ask until ``stop``, or until ``most`` ids were asked."""
        due = time.monotonic()
        while not stop.is_set() and len(self.orders) < most:
            order = self._invent(len(self.orders))
            self.orders.append(order)
            self._spawn(order)
            due = max(due + 1 / per_second, time.monotonic() - 1.0)
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    def _spawn(self, order: Order) -> None:
        task = asyncio.create_task(self._ask(order))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _invent(self, number: int) -> Order:
        chance, id = self._chance, f"s{number}"
        node, uuid = chance.choice(self._calls)
        kind = chance.choices(list(KINDS), list(KINDS.values()))[0]
        fields: dict[str, Any] = {"op": "api", "command": f"eval {id}", "timeout_ms": BUDGET}
        text, queue = f"eval {id}", self._queue
        to = chance.choice(("", "", "any", "fs1", "fs2", "tag:soak"))
        if kind == "bgapi":
            fields |= {"op": "bgapi", "accept": chance.random() < 0.5}
        elif kind in ("execute", "wait"):
            fields = {"op": "execute", "uuid": uuid, "app": "set", "arg": f"k={id}", "timeout_ms": BUDGET}
            fields["wait"] = kind == "wait"
            text, to = f"sendmsg {uuid} execute set k={id}", ""
        elif kind == "hangup":
            uuid = self._switches[node].make_call()
            fields = {"op": "hangup", "uuid": uuid, "timeout_ms": BUDGET}
            text, to = f"sendmsg {uuid} hangup NORMAL_CLEARING", ""
        elif kind == "sendmsg":
            headers = {"call-command": "execute", "execute-app-name": "set", "execute-app-arg": f"m={id}"}
            fields = {"op": "sendmsg", "uuid": uuid, "headers": headers, "timeout_ms": BUDGET}
            text, to = f"sendmsg {uuid} execute set m={id}", ""
        elif kind == "sendevent":
            headers = {"Event-Subclass": "soak::it", MARK: id}
            fields = {"op": "sendevent", "event": "CUSTOM", "headers": headers, "timeout_ms": BUDGET}
            text = id
        elif kind == "all":
            to = "all"
        elif kind == "expired":
            fields["timeout_ms"] = chance.choice((1, 5, 20, 60))
        elif kind == "denied":
            fields["command"] = text = f"system {id}"
        elif kind == "ordered":
            to, queue = "", f"{self._queue}.{node}"
        if to:
            fields["to"] = to
        if kind in ("api", "bgapi") and chance.random() < 0.15:
            fields["idempotent"] = True
        return Order(id, fields, text, queue)

    async def _ask(self, order: Order) -> None:
        """Send it until the broker has it, and now and then once or twice more: at once, or when it was answered."""
        await self._send(order)
        while not order.copies[-1].queued and self._durable and len(order.copies) < 20:
            await asyncio.sleep(0.5)
            await self._send(order)
        while self._chance.random() < 0.2 and len(order.copies) < 24:
            await asyncio.sleep(self._chance.choice((0.0, 0.05, 0.5, 3.0)))
            await self._send(order)

    async def _send(self, order: Order) -> None:
        client = self._chance.choice(self._clients)
        codec = MSGPACK if self._chance.random() < 0.2 else JSON
        address = client.bus.new_reply_address(order.queue)
        values = {**order.fields, "id": order.id} | ({"reply_to": address} if address else {})
        copy = Copy(time.monotonic())
        order.copies.append(copy)

        def take(payload: bytes, content_type: str) -> None:
            copy.replies.append(decode_reply(payload))

        try:
            copy.listening = await client.bus.request(
                order.queue,
                encode_request(CommandRequest(**values), codec),
                codec.request_content_type,
                take,
                reply_to=address,
            )
            copy.queued = True
        except BridgeError:
            pass  # in doubt, or nobody there
        copy.returned_at = time.monotonic()

    # --- judging ----------------------------------------------------------------------------------------------------

    async def answered(self, patience: float) -> None:
        """Return when every request that must be answered is, or after ``patience`` s."""
        await asyncio.gather(*self._tasks)
        for order in self.orders:
            for copy in order.copies:
                if any(copy.sent_at - 0.1 <= at <= copy.returned_at + 0.1 for at in self.killed):
                    copy.queued = False
        await self._until_answered(patience)
        if self._pops:
            await self._ask_again()
            await self._until_answered(patience)
        await asyncio.sleep(1.0)  # second copies, late ones

    async def _until_answered(self, patience: float) -> None:
        end = time.monotonic() + patience
        while self._unanswered() and time.monotonic() < end:  # noqa: ASYNC110 - replies come from anywhere
            await asyncio.sleep(0.1)

    async def _ask_again(self) -> None:
        """As a caller does whose reply may have died with the broker."""
        for order in self._unanswered():
            for copy in [copy for copy in order.copies if copy.queued and not copy.answered]:
                if any(copy.sent_at - 0.1 <= at <= copy.sent_at + BUDGET / 1000 + 1 for at in self.killed):
                    copy.queued = False
                    await self._send(order)

    def _unanswered(self) -> list[Order]:
        if not self._durable:
            horizon = time.monotonic() - BUDGET / 1000 - 2
            return [it for it in self.orders if it.copies and it.copies[-1].sent_at > horizon and not all(
                copy.answered or not copy.queued for copy in it.copies)]  # fmt: skip
        return [it for it in self.orders if any(copy.queued and not copy.answered for copy in it.copies)]

    def ran(self, order: Order) -> dict[str, int]:
        """How often each node ran it."""
        return {name: switch.executed[order.text] for name, switch in self._switches.items()}

    def judge(self) -> list[str]:
        """Every lie, as a line."""
        lies: list[str] = []
        for order in self.orders:
            lies += [f"{order.id} {lie}: {self._story(order)}" for lie in self._lies(order)]
        if self._durable:
            lies += [f"{order.id} has no final reply: {self._story(order)}" for order in self._unanswered()]
        return lies

    def summary(self) -> str:
        """What became of it all."""
        replies = [reply for order in self.orders for copy in order.copies for reply in copy.replies]
        count = Counter(f"{it.status} ({it.executed})" for it in replies)
        copies = [copy for order in self.orders for copy in order.copies]
        return (
            f"{len(self.orders)} ids, {len(copies)} requests ({sum(not it.queued for it in copies)} in doubt), "
            f"{len(replies)} replies ({sum(bool(it.replayed) for it in replies)} replayed, "
            f"{sum(bool(it.late) for it in replies)} late): "
            + ", ".join(f"{status} {number}" for status, number in count.most_common())
        )

    def _lies(self, order: Order) -> list[str]:
        lies = []
        runs = self.ran(order)
        total = sum(runs.values())
        most = max(runs.values()) if order.fields.get("to") == "all" else total
        if most > 1 and not order.fields.get("idempotent"):
            lies.append(f"ran {total} times")
        finals = [reply for copy in order.copies for reply in copy.finals]
        told = {str(reply.executed) for reply in finals}
        late = {str(reply.executed) for copy in order.copies for reply in copy.replies if reply.late}
        if "yes" in told | late and not total:
            lies.append("'yes', and it never ran")
        # An id that was not executed may be sent again; where every request was answered "no" it never ran.
        if told == {"no"} and all(copy.answered for copy in order.copies) and total:
            lies.append("'no', and it ran")
        if len({reply.result for reply in finals if reply.executed == "yes" and reply.status == "ok"}) > 1:
            lies.append("two results")
        for copy in order.copies:
            lies += self._lies_of_copy(order, copy)
        return lies

    def _lies_of_copy(self, order: Order, copy: Copy) -> list[str]:
        lies = []
        finals = copy.finals
        if sum(not reply.replayed for reply in finals) > 1:
            lies.append("two first replies to one request")
        told = {str(reply.executed) for reply in finals}
        late = {str(reply.executed) for reply in copy.replies if reply.late}
        # A late answer replaces a kept "unknown": a second copy behind it tells what the late one told.
        if len(order.copies) == 1 and len(told) > 1 and not (late and told == {"unknown", *late}):
            lies.append("two outcomes")
        if max(Counter(reply.worker for reply in copy.replies if reply.status == "accepted").values(), default=0) > 1:
            lies.append("accepted twice by one worker")
        if sum(bool(reply.late) for reply in copy.replies) > 1:
            lies.append("late twice")
        if any(reply.id != order.id for reply in copy.replies):
            lies.append("a reply of another request")
        eval_ok = [r for r in finals if r.status == "ok" and order.text == f"eval {order.id}" and not r.replies]
        if any(reply.result != order.id for reply in eval_ok):
            lies.append("another's result")
        return lies

    def _story(self, order: Order) -> str:
        copies = [[_shown(reply) for reply in copy.replies] + ["in doubt"] * (not copy.queued) for copy in order.copies]
        sent = [round(copy.sent_at, 2) for copy in order.copies]
        return f"{order.fields} on {order.queue}, ran {self.ran(order)}, sent at {sent}: {copies}"


def _shown(reply: CommandReply) -> str:
    marks = f"{' replayed' if reply.replayed else ''}{' late' if reply.late else ''}"
    return f"{reply.status} {reply.executed}{marks} by {reply.worker}: {reply.error}"


async def close(traffic: Traffic) -> None:
    """End the listening."""
    for order in traffic.orders:
        for copy in order.copies:
            if copy.listening is not None:
                await copy.listening.close()
