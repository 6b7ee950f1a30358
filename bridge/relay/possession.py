"""Whether an entry is still this worker's: asked before its command goes anywhere, where another may have it by now.

A worker that stood still does not know what its heir told meanwhile. Its marker in the ledger is set before it asks:
an heir that comes after the answer finds the marker, one that came before is what the answer tells. This room never
answers a request; who has lost one gives way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Final

from bridge.messages.command import decode_reply
from bridge.messages.reply import CommandReply
from bridge.relay.desk import ReplyDesk
from bridge.relay.exchange import Exchange
from bridge.relay.refusals import Right

_ASK_AGAIN: Final = 0.25  # s; while the broker does not answer


class Possession:
    """Asks the entry's record where it has one, else its queue. ``clock`` gives loop time."""

    def __init__(self, desk: ReplyDesk, clock: Callable[[], float]) -> None:
        self._desk = desk
        self._clock = clock

    def in_question(self, exchange: Exchange) -> bool:
        """Whether its record has to be asked before the ledger: others had the entry before, or may have it by now."""
        refusals, delivery = self._desk.refusals, exchange.delivery
        if delivery.told:
            return True
        if refusals is None or exchange.ours or not refusals.know(delivery):
            return False
        return refusals.inherited(delivery) or refusals.perhaps_lost(self._clock() - exchange.taken_at)

    def ask(self, exchange: Exchange, go_on: Callable[[], None]) -> None:
        """Call ``go_on`` when the entry is ours for sure, until ``exchange.ours_until``; else give way."""
        refusals, delivery = self._desk.refusals, exchange.delivery
        if delivery.told:
            self._desk.give_way(exchange, decode_reply(delivery.told))
        elif refusals is not None and refusals.know(delivery):
            until = self._clock() + refusals.sure_for
            refusals.claim(delivery, partial(self._recorded, exchange, go_on, until), asked=exchange.ours)
        else:
            self.ask_queue(exchange, go_on)

    def ask_queue(self, exchange: Exchange, go_on: Callable[[], None]) -> None:
        """The same of its queue alone, which tells less; there is no need of records then."""
        exchange.delivery.still_ours(partial(self._told, exchange, go_on))

    def _recorded(
        self, exchange: Exchange, go_on: Callable[[], None], until: float, right: Right, told: CommandReply | None
    ) -> None:
        if exchange.ended:
            return
        if right is Right.MINE:
            exchange.ours = True
            exchange.ours_until = until
            go_on()
        else:
            self._desk.give_way(exchange, told)

    def _told(self, exchange: Exchange, go_on: Callable[[], None], ours: bool | None) -> None:
        if exchange.ended:
            return
        if ours is None:
            asyncio.get_running_loop().call_later(_ASK_AGAIN, self._once_more, exchange, go_on)
        elif ours:
            exchange.ours_until = exchange.delivery.perhaps_lost_at
            go_on()
        else:
            self._desk.give_way(exchange, None)

    def _once_more(self, exchange: Exchange, go_on: Callable[[], None]) -> None:
        if not exchange.ended:
            self.ask(exchange, go_on)
