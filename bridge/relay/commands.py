"""The way of a request: taken from its queue, checked, remembered, routed, sent, answered.

Read it from top to bottom. This room never waits: each step is called when the one before it is through.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable
from functools import partial
from typing import Final

from bridge.bus.base import Bus, Delivery
from bridge.messages.reply import CommandReply, Executed, Status
from bridge.messages.request import fingerprint
from bridge.relay import execution
from bridge.relay.call_search import CallDirectory, CallSearch, Found
from bridge.relay.call_table import CallTable
from bridge.relay.desk import ReplyDesk
from bridge.relay.exchange import Exchange
from bridge.relay.execution import Result, refused
from bridge.relay.intake import Intake, Unreadable
from bridge.relay.ledger import Ledger, Verdict
from bridge.relay.order import Lines
from bridge.relay.policy import Policy
from bridge.relay.possession import Possession
from bridge.relay.rates import RateLimits
from bridge.relay.refusals import Refusals
from bridge.relay.routing import Nodes, Refusal, Router
from bridge.relay.sending import Sender
from bridge.relay.settings import CommandHooks, CommandSettings
from bridge.switch.deadlines import Deadlines, clock_of

log = logging.getLogger(__name__)

_NEW: Final = Verdict.NEW
_ASK_AGAIN: Final = 0.25  # s; a ledger that did not answer
_A_LOOK: Final = 1.0  # s; the least that a repeat waits for the one that runs
_RECORDED: Final = 2.0  # s; the last replies wait for their record


class CommandRelay:
    """Executes requests and answers each of them. All of it belongs to one event loop; nothing here blocks.

    ``accept`` is the handler for ``Bus.consume``, ``room`` its measure; ``calls`` is the table that the event paths
    keep, ``directory`` the look-up of calls on the bus where there is one.
    """

    def __init__(
        self,
        bus: Bus,
        nodes: Nodes,
        *,
        settings: CommandSettings,
        worker: str,
        ledger: Ledger,
        policy: Policy,
        deadlines: Deadlines,
        calls: CallTable,
        hooks: CommandHooks | None = None,
        directory: CallDirectory | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._bus = bus
        self._clock = clock = clock_of(self._loop)
        self._settings = settings
        self._limit = settings.max_in_flight
        self._ledger = ledger
        self._policy = policy
        self._deadlines = deadlines
        self._hooks = hooks = hooks or CommandHooks()
        self._intake = Intake(settings, clock=clock)
        self._router = Router(nodes, clock=clock, max_in_flight_node=settings.max_in_flight_node)
        self._search = CallSearch(
            nodes,
            calls,
            scatter_limit=settings.scatter_limit,
            timeout=settings.connect_timeout + settings.command_timeout,
            clock=clock,
            directory=directory,
        )
        self._desk = ReplyDesk(bus, worker=worker, ledger=ledger, hooks=hooks, clock=clock, closed=self._closed)
        self._possession = Possession(self._desk, clock)
        self._sender = Sender(
            nodes, self._router, self._desk, policy=policy, rates=RateLimits(settings.rates), clock=clock
        )
        self._lines = Lines(settings.max_in_flight_node, self._has_room)
        self._in_hand: dict[Exchange, None] = {}
        self._beyond: dict[Exchange, None] = {}  # of these, taken from several queues at once beyond the limit
        self._draining = False
        self._idle: asyncio.Event | None = None

    @property
    def in_flight(self) -> int:
        """Requests in hand: taken and not answered yet."""
        return len(self._in_hand)

    @property
    def in_hand(self) -> Iterable[Exchange]:
        """They themselves, the oldest first."""
        return self._in_hand

    def use(self, ledger: Ledger, refusals: Refusals | None = None) -> None:
        """Take another ledger, and records of entries where they are needed; before the first request only."""
        self._ledger = self._desk.ledger = ledger
        self._desk.refusals = refusals

    def reconfigure(self, settings: CommandSettings, policy: Policy) -> None:
        """Take other limits and another policy for what is taken from now on; what is in hand goes on as it began."""
        rates = RateLimits(settings.rates) if settings.rates != self._settings.rates else None
        self._settings, self._policy = settings, policy
        self._limit = settings.max_in_flight
        self._intake = Intake(settings, clock=self._clock)
        self._router.limit = self._lines.limit = settings.max_in_flight_node
        self._search.scatter_limit = settings.scatter_limit
        self._sender.reconfigure(policy, rates)
        if self.room():
            self._loop.call_soon(self._hooks.on_room)

    def in_line(self, node: str) -> int:
        """Requests of the node's own queue that have no outcome yet."""
        return sum([exchange.queue_node == node for exchange in self._in_hand])

    def room(self) -> int:
        """How many more requests may be taken; ``CommandHooks.on_room`` tells when this is no longer 0."""
        return 0 if self._draining else max(0, self._limit - len(self._in_hand))

    def room_in_line(self, node: str) -> int:
        """The same for the node's own queue, whose requests wait here for their turn."""
        return min(self.room(), self._lines.room(node))

    # --- taken and checked ----------------------------------------------------------------------------------------

    def accept(self, delivery: Delivery) -> None:
        """Take a request in hand; its delivery is finished or rejected, now or later. Never raises, never blocks."""
        if self._hooks.wrap is not None:
            delivery = self._hooks.wrap(delivery)
        try:
            exchange = self._intake.read(delivery)
        except Unreadable as fault:
            self._desk.turn_away(delivery, fault)
            return
        except Exception:
            log.exception("a request could not be read")
            self._desk.bury(delivery, "a fault of the bridge: the request could not be read")
            return
        if len(self._in_hand) >= self._limit + self._settings.max_waiting_repeats:
            self._desk.end(exchange, refused(execution.FLOODED))
            return
        try:
            self._check(exchange)
        except Exception:
            log.exception("a request failed inside the bridge, id %s", exchange.id)
            self._desk.end(exchange, execution.FAULT)

    def _check(self, exchange: Exchange) -> None:
        full = len(self._in_hand) - len(self._beyond) >= self._limit
        self._in_hand[exchange] = None
        if exchange.refusal is None:
            denial = self._policy.check(exchange.request, exchange.queue_node)
            if denial is not None:
                exchange.refusal = Refusal(Status.DENIED, denial.reason)
        # Denied (here and now), leaving or full: a repeat shall still hear the outcome that the ledger knows.
        if exchange.refusal is not None:
            if exchange.refusal.status is Status.INVALID:  # its content alone says so: it never ran anywhere
                self._desk.end(exchange, refused(exchange.refusal))
                return
        elif self._draining:
            exchange.refusal = execution.DRAINING
        elif full and exchange.delivery.pulled:
            # Each queue was asked for what there is room for, and several of them brought it.
            self._beyond[exchange] = None
            exchange.timer = self._deadlines.add(exchange.deadline, partial(self._expire, exchange))
            return
        elif full:
            exchange.refusal = Refusal(Status.BUSY, f"{self._limit} requests are in hand already")
        elif exchange.queue_node and not self._lines.room(exchange.queue_node):
            exchange.refusal = Refusal(Status.BUSY, "too many requests wait for their turn already")
        self._admit(exchange)

    def _admit(self, exchange: Exchange) -> None:
        if exchange.queue_node and exchange.refusal is None:
            self._stand_in_line(exchange)
        else:
            self._remember(exchange)

    def _admit_more(self) -> None:
        """Let in those that wait beyond the limit, as far as it allows."""
        while self._beyond and len(self._in_hand) - len(self._beyond) < self._limit:
            exchange = next(iter(self._beyond))
            del self._beyond[exchange]
            self._disarm(exchange)
            self._admit(exchange)

    # --- in the strict order of a node's own queue ------------------------------------------------------------------

    def _stand_in_line(self, exchange: Exchange) -> None:
        exchange.place = self._lines.enter(exchange.queue_node, partial(self._has_its_turn, exchange))
        if not exchange.turn:
            exchange.timer = self._deadlines.add(exchange.deadline, partial(self._expire, exchange))

    def _has_its_turn(self, exchange: Exchange) -> None:
        exchange.turn = True
        self._disarm(exchange)
        self._remember(exchange)

    # --- remembered: no id runs twice -------------------------------------------------------------------------------

    def _remember(self, exchange: Exchange) -> None:
        if self._possession.in_question(exchange):
            self._possession.ask(exchange, partial(self._remember, exchange))
        elif exchange.safe or not exchange.key:
            self._begin(exchange)
        else:
            self._ask_ledger(exchange)

    def _ask_ledger(self, exchange: Exchange) -> None:
        exchange.asked = True
        request = exchange.request
        self._ledger.begin(
            exchange.key,
            fingerprint(request, exchange.queue_node),
            partial(self._remembered, exchange),
            again=request.idempotent,
            claimed=exchange.delivery.claimed,
            # A claimed one waits until it is known what became of the worker that had it.
            waits=partial(self._waits, exchange) if request.id and not exchange.delivery.claimed else None,
        )

    def _waits(self, exchange: Exchange) -> None:
        """Its id runs already: it hears the outcome, or within its own budget that there is none yet."""
        if exchange.timer is None and not exchange.ended:
            patience = max(exchange.deadline, self._clock() + _A_LOOK)
            exchange.timer = self._deadlines.add(patience, partial(self._desk.end, exchange, execution.RUNS))

    def _remembered(self, exchange: Exchange, verdict: Verdict, kept: CommandReply | None) -> None:
        if exchange.timer is not None:
            self._disarm(exchange)
        exchange.marked = verdict is _NEW or verdict is Verdict.LOST
        if exchange.ended:
            self._desk.remembered_late(exchange, verdict, kept)
            return
        if verdict is _NEW:
            if kept is not None:
                exchange.doubt = Result(kept.status, kept.executed, kept.result, kept.error, kept.job)
            self._begin(exchange)
        elif verdict is Verdict.LOST:
            self._desk.end(exchange, execution.WORKER_GONE)
        elif kept is not None:
            self._desk.replay(exchange, kept)
        elif verdict is Verdict.DIFFERENT:
            self._desk.end(exchange, refused(Refusal(Status.INVALID, "id: was used for a different request")))
        elif verdict is Verdict.PASSED_ON or exchange.delivery.pulled:
            # Its entry may be given to another worker while ours is cut off, and run there: "no" could be a lie.
            if verdict is Verdict.UNREACHABLE and self._clock() >= exchange.deadline and self._bus.connected:
                # The queue is served and the ledger is not: one request must not hold up others for ever.
                self._possession.ask_queue(exchange, partial(self._desk.end, exchange, execution.UNASKED))
            elif not self._sender.stopped:
                self._loop.call_later(_ASK_AGAIN, self._remember, exchange)
        else:
            self._desk.end(exchange, refused(exchange.refusal or execution.NO_LEDGER))

    def _begin(self, exchange: Exchange) -> None:
        if exchange.delivery.claimed and self._may_have_run(exchange):
            if not (exchange.safe or exchange.request.idempotent):
                self._desk.end(exchange, execution.WORKER_GONE)
                return
            exchange.doubt = exchange.doubt or execution.WORKER_GONE  # unless it runs here
        if exchange.refusal is not None:
            self._desk.end(exchange, refused(exchange.refusal))
        else:
            self._route(exchange)

    def _may_have_run(self, exchange: Exchange) -> bool:
        """Of a claimed request: only a ledger that all workers share can say that it was not sent.

        And only as long as a marker, set when the request was queued at the earliest, would still be there.
        """
        ledger = self._ledger
        lasts = exchange.marked and self._clock() - exchange.queued_at < ledger.lasting
        return not (ledger.shared and lasts)

    # --- routed and sent --------------------------------------------------------------------------------------------

    def _route(self, exchange: Exchange) -> None:
        to, now = exchange.to, self._clock()
        if self._sender.stopped:
            self._desk.end(exchange, refused(execution.DRAINING))
        elif now >= exchange.deadline:
            self._desk.end(exchange, refused(execution.EXPIRED))
        elif now >= exchange.ours_until:
            self._possession.ask(exchange, partial(self._route, exchange))
        elif to == "all":
            self._sender.scatter(exchange)
        elif to.startswith("call:"):
            self._search.find(to[5:], partial(self._found, exchange))
            if not exchange.node and not exchange.ended:
                exchange.timer = self._deadlines.add(exchange.deadline, partial(self._expire, exchange))
        else:
            self._go(exchange, self._router.choose(to, exchange.verb))

    def _go(self, exchange: Exchange, chosen: str | Refusal) -> None:
        if isinstance(chosen, str):
            self._sender.send(exchange, chosen)
        else:
            self._desk.end(exchange, refused(chosen))

    def _found(self, exchange: Exchange, found: Found) -> None:
        if exchange.ended:
            return
        self._disarm(exchange)
        if found.node and self._clock() >= exchange.ours_until:
            self._possession.ask(exchange, partial(self._found, exchange, found))
        elif found.node:
            self._go(exchange, self._router.choose(found.node, exchange.verb))
        elif exchange.asks_for(found.uuid) and not found.silent:
            self._desk.end(exchange, Result(Status.OK, Executed.YES, "false"))
        else:
            self._desk.end(exchange, refused(found.refusal))

    # --- answered, or given up ----------------------------------------------------------------------------------------

    def _expire(self, exchange: Exchange) -> None:
        """The budget ended while it waited for room, for its turn or for a search."""
        if exchange in self._beyond:
            self._send_away(exchange, execution.EXPIRED)
        elif exchange.place and not exchange.turn:
            self._take_out_of_line(exchange, execution.EXPIRED)
        else:
            self._desk.end(exchange, refused(execution.EXPIRED))

    def _take_out_of_line(self, exchange: Exchange, refusal: Refusal) -> None:
        self._disarm(exchange)
        self._lines.withdraw(exchange.queue_node, exchange.place)
        exchange.place = 0
        self._send_away(exchange, refusal)

    def _send_away(self, exchange: Exchange, refusal: Refusal) -> None:
        self._beyond.pop(exchange, None)
        self._disarm(exchange)
        exchange.refusal = refusal  # unless the ledger knows of an outcome
        self._remember(exchange)

    def _closed(self, exchange: Exchange) -> None:
        """The final reply has left."""
        if exchange.timer is not None:
            self._disarm(exchange)
        in_hand = self._in_hand
        was_full = len(in_hand) == self._limit
        in_hand.pop(exchange, None)
        if was_full:
            self._has_room()
        if exchange.turn:
            self._lines.leave(exchange.queue_node)
        if self._beyond:
            self._loop.call_soon(self._admit_more)
        if not in_hand and self._idle is not None:
            self._idle.set()

    def _has_room(self) -> None:
        # Not within the step that made the room: its request is still on its way out.
        self._loop.call_soon(self._hooks.on_room)

    def _disarm(self, exchange: Exchange) -> None:
        if exchange.timer is not None:
            exchange.timer.cancel()
            exchange.timer = None

    async def drain(self, timeout: float) -> None:
        """Answer all that is in hand within ``timeout`` s; what arrives from now on is answered ``draining``.

        Drain the consumers first: what they still hand over then is served. What is open at the end is answered
        ``draining`` where it was not sent and ``connection_lost`` where it was.
        """
        self._draining = True
        if self._in_hand and timeout > 0:
            self._idle = asyncio.Event()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), timeout)
        self._sender.stopped = True
        for exchange in list(self._beyond):
            self._send_away(exchange, execution.DRAINING)
        for exchange in list(self._in_hand):
            if exchange.place and not exchange.turn:
                self._take_out_of_line(exchange, execution.DRAINING)
        for exchange in list(self._in_hand):
            self._sender.give_up(exchange)
        if self._in_hand and self._desk.refusals is not None:
            self._idle = asyncio.Event()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), _RECORDED)
