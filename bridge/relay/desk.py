"""Where requests end: the reply composed, kept in the ledger, sent, and what may still follow it.

This room never decides what a request's result is, and never sends a command.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Final

import msgspec

from bridge.bus.base import Bus, Delivery
from bridge.errors import MessageTooLarge
from bridge.messages.codec import JSON
from bridge.messages.reply import CommandReply, Executed, Status
from bridge.relay.answers import compose, encode_within, headers_of
from bridge.relay.exchange import Exchange
from bridge.relay.execution import EXPIRED, Result, refused
from bridge.relay.intake import Unreadable
from bridge.relay.ledger import MAY_HAVE_RUN, Ledger, Verdict
from bridge.relay.refusals import Refusals, Right
from bridge.relay.settings import CommandHooks

log = logging.getLogger(__name__)

# Looked up once: a member of an enumeration costs more than a step of the interpreter, and these are on every way.
_NO: Final = Executed.NO
_DENIED: Final = Status.DENIED
_MAY_BE_KNOWN_YET: Final = (Status.TIMEOUT, Status.CONNECTION_LOST)
_ENVELOPE: Final = 1_024  # bytes that a notice is longer than its data
_CLOCKS: Final = 5.0  # s; how far two workers' clocks may be apart


class ReplyDesk:
    """Answers exchanges; ``closed`` is called for each when its final reply has left. ``clock`` gives loop time."""

    def __init__(
        self,
        bus: Bus,
        *,
        worker: str,
        ledger: Ledger,
        hooks: CommandHooks,
        clock: Callable[[], float],
        closed: Callable[[Exchange], None],
    ) -> None:
        self._bus = bus
        self._worker = worker
        self.ledger = ledger
        self.refusals: Refusals | None = None
        """Where a reply and its entry's removal are two steps."""
        self._hooks = hooks
        self._clock = clock
        self._closed = closed

    # --- final replies ------------------------------------------------------------------------------------------

    def end(self, exchange: Exchange, result: Result, parts: list[CommandReply] | None = None) -> None:
        """Answer with a result, once; every later call for the same exchange does nothing."""
        if exchange.ended:
            return
        if exchange.doubt is not None and result.executed is _NO:
            result, parts = exchange.doubt, None  # this attempt did not run, but one before it may have
        exchange.ended = True
        exchange.unknown = result.status in _MAY_BE_KNOWN_YET
        reply = self.word(exchange, result)
        if parts is not None:
            reply.replies = parts
        if exchange.delivery.claimed:
            reply.replayed = True  # whoever had it before may have answered, and wake up yet
        reply, payload = encode_within(reply, exchange.codec, self._bus.max_payload)
        if reply.executed is _NO:
            self._refuse(exchange, reply, payload)
        elif not exchange.marked:
            self._send_final(exchange, reply, payload)
        else:
            # Kept first: after a crash between the two, a repeat must not hear anything else.
            self.ledger.keep(exchange.key, _to_keep(reply), partial(self._send_final, exchange, reply, payload))

    def replay(self, exchange: Exchange, kept: CommandReply) -> None:
        """Answer a repeat with the outcome that its id has already."""
        if exchange.ended:
            return
        exchange.ended = True
        reply, payload = self._again(exchange, kept)
        if reply.executed is _NO:
            self._refuse(exchange, reply, payload)
        else:
            self._send_final(exchange, reply, payload)

    def remembered_late(self, exchange: Exchange, verdict: Verdict, kept: CommandReply | None) -> None:
        """What the ledger says of a request that was told ``timeout`` while it waited for another of its id."""
        if verdict is Verdict.LOST or (verdict is Verdict.NEW and kept is not None):
            self.ledger.keep(exchange.key, kept or MAY_HAVE_RUN, lambda *_: None)
            return
        if verdict is Verdict.NEW:
            # The other did not run, and there is no budget left for this one to do it.
            kept = self.word(exchange, refused(EXPIRED))
            self.ledger.release(exchange.key, _to_keep(kept))
        if kept is not None and kept.executed is not Executed.UNKNOWN:
            reply, _ = self._again(exchange, kept)
            self._send(exchange, msgspec.structs.replace(reply, late=True))

    def give_way(self, exchange: Exchange, told: CommandReply | None) -> None:
        """Another worker has its entry: repeat the "no" that it ``told``; else the answer is left to it."""
        exchange.ended = True
        if exchange.marked:
            self._unmark(exchange, told)
        if told is not None:
            self._send_final(exchange, *self._again(exchange, told))
            return
        log.warning(
            "another worker has taken over the request %s, which was in hand here, or its queue was deleted",
            exchange.id,
        )
        exchange.delivery.let_go()
        self._close(exchange)

    def _unmark(self, exchange: Exchange, told: CommandReply | None) -> None:
        """Take our marker back: its command does not run here."""
        if exchange.doubt is not None:  # the marker lies over an attempt that may have run
            self.ledger.keep(exchange.key, _to_keep(self.word(exchange, exchange.doubt)), lambda *_: None)
        else:
            self.ledger.release(exchange.key, told)

    def _again(self, exchange: Exchange, told: CommandReply) -> tuple[CommandReply, bytes]:
        """A reply that was told, as a second copy."""
        reply = msgspec.structs.replace(
            told,
            id=exchange.id,
            replayed=True,
            meta=exchange.request.meta or None,
            elapsed_ms=int((self._clock() - exchange.queued_at) * 1e6) / 1e3,
            timing=None,
        )
        return encode_within(reply, exchange.codec, self._bus.max_payload)

    def _refuse(self, exchange: Exchange, reply: CommandReply, payload: bytes) -> None:
        """Send a "no"; where its entry may outlive it, that is recorded first.

        Without that record a worker that dies now leaves an entry that another would run after all.
        """
        refusals, delivery = self.refusals, exchange.delivery
        if refusals is None or not refusals.know(delivery) or self._expired_for_all(exchange, reply, refusals):
            self._refused(exchange, reply, payload, Right.MINE, None)
            return
        answer = partial(self._refused, exchange, reply, payload)
        refusals.refuse(delivery, _to_keep(reply), answer, asked=exchange.ours)

    def _refused(
        self, exchange: Exchange, reply: CommandReply, payload: bytes, right: Right, told: CommandReply | None
    ) -> None:
        if right is not Right.MINE:
            self.give_way(exchange, told)
            return
        self._send_final(exchange, reply, payload)
        if exchange.marked:
            # Late, it is perhaps not written: another worker may have the entry, and run it.
            late = self._clock() >= exchange.ours_until
            self.ledger.release(exchange.key, None if late else _to_keep(reply))

    def _expired_for_all(self, exchange: Exchange, reply: CommandReply, refusals: Refusals) -> bool:
        """Whether nobody has run it, and nobody will who gets it after us: a backlog costs no records."""
        if reply.status is not Status.EXPIRED or exchange.delivery.claimed:
            return False
        now = self._clock()
        return now - exchange.deadline > _CLOCKS and not refusals.perhaps_lost(now - exchange.taken_at)

    def word(self, exchange: Exchange, result: Result, *, node: str = "", late: bool = False) -> CommandReply:
        """The reply map that tells a result, of one node of ``to: all`` where ``node`` is given."""
        return compose(
            result,
            id=exchange.id,
            node=node or exchange.node,
            worker=self._worker,
            elapsed=self._clock() - exchange.queued_at,
            meta=None if node else exchange.request.meta or None,
            late=late,
        )

    def _send_final(
        self, exchange: Exchange, reply: CommandReply, payload: bytes, told: CommandReply | None = None
    ) -> None:
        hooks = self._hooks
        if told is not None:
            # Another worker took us for gone and answered: what we know more comes late, else this is a second copy.
            if told.executed is not reply.executed:
                reply = msgspec.structs.replace(reply, late=True)
                hooks.on_late(msgspec.to_builtins(reply))
            else:
                mine = {"id": reply.id, "meta": reply.meta, "elapsed_ms": reply.elapsed_ms, "timing": None}
                reply = msgspec.structs.replace(told, replayed=True, **mine)
            reply, payload = encode_within(reply, exchange.codec, self._bus.max_payload)
        delivery, request = exchange.delivery, exchange.request
        try:
            reply = self._finish(exchange, reply, payload)
        except Exception:  # a fault of one bus must not keep the request in hand for ever
            log.exception("the reply to %s could not be written", exchange.id)
        if reply.status is _DENIED:
            hooks.on_denied(request.op, reply.error)
        hooks.on_reply(request.op, reply.status, (reply.elapsed_ms or 0.0) / 1e3)
        if hooks.audit is not None:
            hooks.audit(request, reply, delivery.queue, exchange.address)
        self._close(exchange)

    def _finish(self, exchange: Exchange, reply: CommandReply, payload: bytes) -> CommandReply:
        """Write the final reply; returns what it says."""
        delivery, codec = exchange.delivery, exchange.codec
        address, content_type, refusal = exchange.address, codec.request_content_type, reply.executed is _NO
        try:
            delivery.finish(address, payload, content_type, headers_of(reply, delivery.headers), refusal=refusal)
        except MessageTooLarge:  # the broker takes less by now than it took when the reply was composed
            reply, payload = encode_within(reply, codec, self._bus.max_payload)
            delivery.finish(address, payload, content_type, headers_of(reply, delivery.headers), refusal=refusal)
        return reply

    def _close(self, exchange: Exchange) -> None:
        self._closed(exchange)
        exchange.answered = True
        if exchange.held is not None:
            for part, whole in exchange.held:
                self.late(exchange, part, whole)

    # --- replies that are not final -------------------------------------------------------------------------------

    def accepted(self, exchange: Exchange, job: str) -> None:
        """FreeSWITCH took the job: noted, and told when the caller asked for that."""
        exchange.job = job
        if exchange.request.accept and not exchange.ended and not exchange.told_accepted:
            exchange.told_accepted = True
            reply = self.word(exchange, Result(Status.ACCEPTED, Executed.UNKNOWN, job=job))
            self._send(exchange, reply)

    def late(self, exchange: Exchange, part: CommandReply, whole: CommandReply | None) -> None:
        """An answer came after its ``timeout`` (or a job's after its ``connection_lost``).

        ``part`` is told as a notice; ``whole`` goes to the caller, once, and becomes the kept outcome.
        """
        if not exchange.answered:
            exchange.held = [*(exchange.held or ()), (part, whole)]
            return
        if whole is None or exchange.late:
            self._notice_late(part)
            return
        exchange.late = True
        refusals, delivery = self.refusals, exchange.delivery
        if whole.executed is _NO and refusals is not None and refusals.know(delivery):
            # Its entry may be there yet: who gets it must not run what was told not to have run.
            kept = msgspec.structs.replace(_to_keep(whole), late=False)
            answer = partial(self._late_refused, exchange, part, whole)
            refusals.refuse(delivery, kept, answer, asked=exchange.ours)
        else:
            self._late_known(exchange, part, whole)

    def _late_refused(
        self, exchange: Exchange, part: CommandReply, whole: CommandReply, right: Right, told: CommandReply | None
    ) -> None:
        if right is Right.MINE:  # else another worker has the entry, and the answer is left to it
            self._late_known(exchange, part, whole)

    def _late_known(self, exchange: Exchange, part: CommandReply, whole: CommandReply) -> None:
        self._notice_late(part)
        whole, _ = self._send(exchange, whole)
        if exchange.marked:
            self.ledger.replace(exchange.key, msgspec.structs.replace(_to_keep(whole), late=False))

    def _notice_late(self, part: CommandReply) -> None:
        told, _ = encode_within(part, JSON, self._bus.max_payload - _ENVELOPE)
        self._hooks.on_late(msgspec.to_builtins(told))

    def _send(self, exchange: Exchange, reply: CommandReply) -> tuple[CommandReply, bytes]:
        reply, payload = encode_within(reply, exchange.codec, self._bus.max_payload)
        headers = headers_of(reply, exchange.delivery.headers)
        self._bus.send(exchange.address, payload, exchange.codec.request_content_type, headers)
        return reply, payload

    def bury(self, delivery: Delivery, reason: str) -> None:
        """Put a request with the dead letters."""
        self._hooks.on_dead(reason)
        delivery.reject(reason)

    # --- deliveries that are no exchange ----------------------------------------------------------------------------

    def turn_away(self, delivery: Delivery, fault: Unreadable) -> None:
        """Answer ``invalid`` where that is possible, put it with the dead letters where it belongs there."""
        self._hooks.on_reply("", Status.INVALID, 0.0)
        if not fault.address:
            self.bury(delivery, fault.reason)
            return
        result = Result(Status.INVALID, Executed.NO, None, fault.reason)
        reply = compose(result, id=fault.id, node="", worker=self._worker, elapsed=0.0, meta=fault.meta)
        if delivery.claimed:
            reply.replayed = True
        reply, payload = encode_within(reply, fault.codec, self._bus.max_payload)
        content_type = fault.codec.request_content_type
        headers = headers_of(reply, delivery.headers)
        if fault.dead:
            self._bus.send(fault.address, payload, content_type, headers)
            self.bury(delivery, fault.reason)
        else:
            delivery.finish(fault.address, payload, content_type, headers, refusal=True)


def _to_keep(reply: CommandReply) -> CommandReply:
    """What the ledger keeps: a repeat brings its own ``meta``."""
    return reply if reply.meta is None else msgspec.structs.replace(reply, meta=None)
