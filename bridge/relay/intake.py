"""A delivery becomes an exchange: request read, reply address and id settled, budget begun.

This room never asks the policy, the ledger or the nodes, and never answers.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import msgspec

from bridge.bus.base import Delivery
from bridge.errors import InvalidRequest
from bridge.messages.codec import JSON, Codec, codec_of
from bridge.messages.command import CommandRequest, parse_request
from bridge.messages.reply import Status
from bridge.messages.topics import ReplyAddresses, reply_subject_allowed
from bridge.relay.exchange import Exchange
from bridge.relay.execution import Manner, Work, manner_of, render
from bridge.relay.routing import Refusal
from bridge.relay.settings import CommandSettings
from bridge.relay.verbs import LineFacts, Verbs

_DIRECT: Final = Manner.DIRECT
_CACHE_LIMIT: Final = 1_024  # some 2 KB each, here and in the policy: lines that name a call never come again
_CACHED_LENGTH: Final = 256


class Unreadable(Exception):
    """A delivery that no exchange can be made of.

    With an ``address`` it can still be answered ``invalid``; a ``dead`` one goes to the dead letters besides.
    """

    def __init__(
        self,
        reason: str,
        *,
        address: str = "",
        id: str = "",
        codec: Codec = JSON,
        meta: dict[str, object] | None = None,
        dead: bool,
    ) -> None:
        self.reason = reason
        self.address = address
        self.id = id
        self.codec = codec
        self.meta = meta
        self.dead = dead
        super().__init__(reason)


class _Plan(msgspec.Struct, frozen=True, gc=False):
    """How a request is to be carried out, as far as its command alone says; ``budget`` in seconds is the default."""

    facts: LineFacts
    budget: float
    work: Work | None
    refusal: Refusal | None


class Intake:
    """Reads deliveries. ``clock`` gives loop time, ``wall`` Unix time (s)."""

    def __init__(
        self, settings: CommandSettings, *, clock: Callable[[], float], wall: Callable[[], float] = time.time
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._wall = wall
        self._addresses = ReplyAddresses(settings.reply_to, glob=settings.reply_to_glob)
        self._verbs = Verbs(background=settings.background, safe=settings.safe)
        self._direct_timeout = settings.connect_timeout + settings.command_timeout
        self._prefixes = tuple(queue + "." for queue in settings.queues)
        self._plans: dict[tuple[str, str], _Plan] = {}
        self._queue_nodes: dict[str, str] = dict.fromkeys(settings.queues, "")

    def read(self, delivery: Delivery) -> Exchange:
        """The exchange of a delivery; a wrong request that can be answered bears its refusal. Raises ``Unreadable``."""
        payload = delivery.payload
        broker = delivery.reply_to
        if broker and not reply_subject_allowed(broker):
            raise Unreadable(f"reply subject {broker[:80]!r} is not permitted", dead=True)
        try:
            request, codec = parse_request(payload)
        except InvalidRequest as error:
            raise self._unread(delivery, broker, error) from None
        id = request.id or delivery.entry_id
        address = self._address(broker, request, id, codec)
        now, unix = self._clock(), self._wall()
        queued = delivery.queued_at
        age = 0.0 if queued is None or queued > unix else unix - queued
        key = request.id or (f"{delivery.queue}/{id}" if id else "")
        node = self._node_of_queue(delivery.queue)
        plan = self._plan(request)
        facts = plan.facts
        exchange = Exchange(
            delivery=delivery,
            request=request,
            codec=codec,
            address=address,
            id=id,
            key=key,
            queue_node=node,
            queued_at=now - age,
            deadline=self._deadline(request, plan.budget, now, unix, age),
            taken_at=now,
            ours_until=delivery.perhaps_lost_at,
            to=node or request.to or _default_target(request, facts),
            verb=facts.verb,
            safe=facts.safe,
            work=plan.work,
            refusal=plan.refusal,
        )
        if node and request.to and request.to != node:
            exchange.refusal = Refusal(Status.INVALID, f"to: on this queue it can only be {node}, or absent")
        if len(payload) > self._settings.max_request:
            text = f"the request of {len(payload)} bytes is over the limit of {self._settings.max_request} bytes"
            exchange.refusal = Refusal(Status.TOO_LARGE, text)
        return exchange

    def _plan(self, request: CommandRequest) -> _Plan:
        """What to write for the request; that of short commands is remembered, most of them come again and again."""
        command = request.command
        if not command:
            return self._make_plan(request, _NO_LINE)
        key = (request.op, command)
        plan = self._plans.get(key)
        if plan is None:
            plan = self._make_plan(request, self._verbs.read(command))
            if len(command) <= _CACHED_LENGTH:
                if len(self._plans) >= _CACHE_LIMIT:
                    self._plans.clear()
                self._plans[key] = plan
        return plan

    def _make_plan(self, request: CommandRequest, facts: LineFacts) -> _Plan:
        manner = manner_of(request, background=facts.background)
        budget = self._direct_timeout if manner is _DIRECT else self._settings.job_timeout
        try:
            return _Plan(facts, budget, render(request, manner), None)
        except InvalidRequest as error:
            return _Plan(facts, budget, None, Refusal(Status.INVALID, str(error)))

    def _deadline(self, request: CommandRequest, budget: float, now: float, unix: float, age: float) -> float:
        maximum = self._settings.max_timeout
        if request.timeout_ms is None and request.deadline_ms is None and budget <= maximum:
            return now - age + budget
        return now + (request.deadline(unix - age, budget, maximum) - unix)

    def _address(self, broker: str, request: CommandRequest, id: str, codec: Codec) -> str:
        wanted = request.reply_to
        if wanted and not self._addresses.allows(wanted):
            text = f"reply_to: {wanted[:80]!r} is not permitted"
            raise Unreadable(text, address=broker, id=id, codec=codec, meta=request.meta or None, dead=True)
        if broker or wanted:
            return broker or wanted
        if self._settings.reply_prefix and id:
            return self._settings.reply_prefix + id
        raise Unreadable("no reply address", dead=True)

    def _unread(self, delivery: Delivery, broker: str, error: InvalidRequest) -> Unreadable:
        wanted = error.reply_to or ""
        if wanted and not self._addresses.allows(wanted):
            wanted = ""
        id = error.id or delivery.entry_id
        address = broker or wanted
        if not address and id and self._settings.reply_prefix and error.field != "reply_to":
            address = self._settings.reply_prefix + id
        try:
            codec = codec_of(delivery.payload)
        except Exception:
            codec = JSON
        # What cannot even be decoded (no field is at fault) is a dead letter, answered or not; so is what must not be
        # answered where it asks for.
        dead = not address or error.field in ("", "reply_to")
        return Unreadable(str(error), address=address, id=id, codec=codec, meta=error.meta, dead=dead)

    def _node_of_queue(self, queue: str) -> str:
        node = self._queue_nodes.get(queue)
        if node is None:
            node = next((queue[len(prefix) :] for prefix in self._prefixes if queue.startswith(prefix)), "")
            self._queue_nodes[queue] = node
        return node


_NO_LINE: Final = LineFacts("", "", background=False, safe=False)


def _default_target(request: CommandRequest, facts: LineFacts) -> str:
    uuid = facts.call or request.uuid
    return f"call:{uuid}" if uuid else "any"
