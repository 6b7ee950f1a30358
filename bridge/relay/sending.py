"""An exchange on its node, or on all of them: sent, tried again where that is harmless, given up.

This room never chooses the first node and never answers; it hands results to the desk.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from bridge.errors import EslError
from bridge.messages.reply import CommandReply, Executed, Status
from bridge.relay.answers import combine
from bridge.relay.desk import ReplyDesk
from bridge.relay.exchange import Exchange
from bridge.relay.execution import DRAINING, Manner, Result, failed_to_start, refused, result_of, start
from bridge.relay.policy import Policy
from bridge.relay.rates import RateLimits
from bridge.relay.routing import Nodes, Refusal, Router
from bridge.relay.scatter import Scatter
from bridge.switch.command_pool import Outcome

# Looked up once: a member of an enumeration costs more than a step of the interpreter, and these are on every way.
_OK: Final = Status.OK
_JOB: Final = Manner.JOB
_ATTEMPTS: Final = 3  # of an idempotent request, all within its one budget
_ELSEWHERE: Final = frozenset({Status.UNAVAILABLE, Status.BUSY, Status.DENIED})  # another node may well take it
_LEFT_UNSENT: Final = refused(DRAINING)
_LEFT_SENT: Final = Result(
    Status.CONNECTION_LOST, Executed.UNKNOWN, None, "the worker shut down before the answer came"
)


class Sender:
    """Sends exchanges to nodes. ``clock`` gives loop time (s)."""

    def __init__(
        self,
        nodes: Nodes,
        router: Router,
        desk: ReplyDesk,
        *,
        policy: Policy,
        rates: RateLimits,
        clock: Callable[[], float],
    ) -> None:
        self.stopped = False
        """Nothing is tried again any more."""
        self._nodes = nodes
        self._router = router
        self._desk = desk
        self._policy = policy
        self._rates = rates
        self._clock = clock

    def reconfigure(self, policy: Policy, rates: RateLimits | None) -> None:
        """Ask another policy from now on, and take other rates where they are given."""
        self._policy = policy
        if rates is not None:
            self._rates = rates

    def send(self, exchange: Exchange, node: str) -> None:
        """Hand the work to the node's pool."""
        pool, work = self._nodes.pool(node), exchange.work
        exchange.node = node
        if pool is None or work is None:
            self._desk.end(exchange, refused(Refusal(Status.UNAVAILABLE, f"unknown node {node!r}")))
            return
        refusal = self._gate(exchange, node)
        if refusal is not None:
            if not self._tried_again(exchange, node, refused(refusal)):
                self._desk.end(exchange, refused(refusal))
            return
        exchange.attempts += 1
        self._router.took(node, exchange.verb)
        accepted = partial(self._desk.accepted, exchange) if work.manner is _JOB else None
        try:
            exchange.submission = start(
                work, pool, partial(self._ended, exchange, node), deadline=exchange.deadline, on_accepted=accepted
            )
        except Exception as error:
            self._router.gave_back(node, exchange.verb, failed=True)
            if not isinstance(error, EslError):
                raise
            self._desk.end(exchange, failed_to_start(error))

    def scatter(self, exchange: Exchange) -> None:
        """Hand the work to every node's pool."""
        assert exchange.work is not None
        names = list(self._nodes.names())
        if not names:
            self._desk.end(exchange, refused(Refusal(Status.UNAVAILABLE, "there is no node")))
            return
        exchange.scatter = Scatter(
            exchange.work,
            exchange.verb,
            deadline=exchange.deadline,
            nodes=self._nodes,
            router=self._router,
            word=lambda node, result, late: self._desk.word(exchange, result, node=node, late=late),
            gate=partial(self._gate, exchange),
            done=lambda parts: self._desk.end(exchange, combine(parts), parts),
            late=partial(self._came_late_of_many, exchange),
        )
        exchange.scatter.start(names)

    def give_up(self, exchange: Exchange) -> None:
        """Answer now, whatever runs: ``connection_lost`` where it was sent, ``draining`` where it was not.

        What waits for the ledger is left to it: on a durable queue another worker takes it up.
        """
        if exchange.ended:
            return
        if exchange.scatter is not None:
            exchange.scatter.give_up(_LEFT_SENT, _LEFT_UNSENT)
        elif exchange.submission is not None:
            sent = exchange.submission.written_at > 0
            self._withdraw(exchange)
            self._desk.end(exchange, _LEFT_SENT if sent else _LEFT_UNSENT)
        elif exchange.asked and not exchange.marked:
            return  # its id may have an outcome: only the ledger's answer can end it
        else:
            self._desk.end(exchange, _LEFT_UNSENT)

    def _gate(self, exchange: Exchange, node: str) -> Refusal | None:
        """What depends on the node: patterns of the policy that name one, and rate limits."""
        if self._policy.needs_node:
            denial = self._policy.check(exchange.request, node)
            if denial is not None:
                return Refusal(Status.DENIED, denial.reason)
        if self._rates:
            wait = self._rates.take(self._policy.verbs(exchange.request), node, self._clock())
            if wait:
                return Refusal(Status.BUSY, f"node {node} is at its rate limit for this, free again in {wait:.3f} s")
        return None

    def _ended(self, exchange: Exchange, node: str, outcome: Outcome) -> None:
        result = result_of(outcome)
        if outcome.late:
            self._came_late(exchange, node, result)
            return
        self._router.gave_back(node, exchange.verb, failed=result.status is not _OK)
        exchange.submission = None
        if not exchange.ended and not self._tried_again(exchange, node, result):
            self._desk.end(exchange, result)

    def _tried_again(self, exchange: Exchange, node: str, result: Result) -> bool:
        """Another node for what was not sent, another attempt for what may run twice; all in the same budget."""
        if result.status is _OK or self.stopped or self._clock() >= exchange.deadline:
            return False
        many = exchange.to == "any" or exchange.to.startswith("tag:")
        if many and result.status in _ELSEWHERE:
            exchange.tried += (node,)
            chosen = self._router.choose(exchange.to, exchange.verb, exchange.tried)
        elif exchange.request.idempotent and result.executed is Executed.UNKNOWN and exchange.attempts < _ATTEMPTS:
            exchange.doubt = result
            chosen = self._router.choose(exchange.to if many else node, exchange.verb)
        else:
            return False
        if not isinstance(chosen, str):
            return False
        self.send(exchange, chosen)
        return True

    def _came_late(self, exchange: Exchange, node: str, result: Result) -> None:
        if not exchange.ended:  # the next attempt of an idempotent request runs; there is an answer now
            self._withdraw(exchange)
            exchange.node = node
            self._desk.end(exchange, result)
        elif exchange.unknown and not exchange.late:
            exchange.node = node
            reply = self._desk.word(exchange, result, late=True)
            # One attempt that was refused says nothing of the others that an idempotent request may have had.
            settles = result.executed is not Executed.NO or not exchange.request.idempotent
            self._desk.late(exchange, reply, reply if settles else None)

    def _came_late_of_many(self, exchange: Exchange, part: CommandReply, parts: list[CommandReply] | None) -> None:
        whole = None
        if parts is not None and exchange.ended:
            whole = self._desk.word(exchange, combine(parts), late=True)
            whole.replies = parts
        self._desk.late(exchange, part, whole)

    def _withdraw(self, exchange: Exchange) -> None:
        submission, exchange.submission = exchange.submission, None
        if submission is not None:
            submission.cancel()
            self._router.gave_back(exchange.node, exchange.verb, failed=True)
