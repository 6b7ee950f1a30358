"""One node's ownership in this worker: none, standby, acquiring, owner, releasing.

It does what was decided (``fleet``) and never decides; while it owns, its lease says at every instant whether it may
still publish. This room never touches an event.
"""

from __future__ import annotations

import contextlib
import time
from enum import StrEnum
from typing import Protocol

import structlog

from bridge.bus.storage import Grant, Storage
from bridge.errors import BusError
from bridge.fleet.lease import Lease, Right
from bridge.messages.fleet import Mark, NodeEntry, decode_mark, encode

log = structlog.get_logger(__name__)

MARK_INTERVAL = 2.0
"""Seconds after which a mark is written down although it did not change."""
RETRY = 0.25
"""Seconds until a step that the broker did not answer is tried again."""


class Role(StrEnum):
    """What this worker is to a node."""

    NONE = "none"
    STANDBY = "standby"
    ACQUIRING = "acquiring"
    OWNER = "owner"
    RELEASING = "releasing"


class Hands(Protocol):
    """What does the work on a node: its link, its relay, its queue."""

    @property
    def ready(self) -> bool:
        """Linked, and keeping every event since: it could take over without a hole."""

    @property
    def linked(self) -> bool:
        """Whether FreeSWITCH's events come in."""

    def warm(self) -> None:
        """Have a link, and keep its events without publishing; nothing happens where it is so."""

    async def cool(self) -> None:
        """Have no link."""

    def trim(self, identity: str) -> None:
        """The owner has published so far: nothing before is needed any more."""

    def take(self, right: Right, mark: Mark | None, *, overlapped: bool) -> None:
        """Publish from behind the mark on; ``overlapped``: the one before still published when we were ready."""

    def resume(self, right: Right) -> None:
        """The lease had run out and is ours again, and nobody published in between: go on."""

    def lose(self) -> None:
        """Somebody else publishes: stop, and forget what waits."""

    async def give(self, timeout: float) -> Mark:
        """Stop after a last event that the broker confirmed; the mark of it."""

    def mark(self) -> Mark:
        """How far the events are published."""

    def entry(self) -> NodeEntry:
        """The node as the others shall see it."""


class Ownership:
    """See the module. ``on_change`` is called when the others should look."""

    def __init__(self, node: str, pin: str, hands: Hands, storage: Storage, instance: str, ttl: float) -> None:
        self.node = node
        self.pin = pin
        self.hands = hands
        self.role = Role.NONE
        self.lease = Lease(storage, f"node.{node}", instance, ttl)
        self.retry_at = 0.0
        """When taking the lease may be tried again (monotonic)."""
        self.overlapped = False
        self.ready_beat: tuple[str, int] | None = None
        """Instance and beat of the owner when we first were ready beside it."""
        self.warmed_at = float("-inf")
        """When linking began (monotonic)."""
        self.ready_since = 0.0
        self.unlinked_since = 0.0
        self._gone = False  # the node is no longer ours to care for
        self._giving_back = False  # from before the lease is released until it is taken again
        self._mark = Mark()
        self._mark_at = 0.0
        self._before = 0  # the token of the mark that we found when we took the node

    @property
    def owns(self) -> bool:
        """Whether the lease is (or, the broker being away, was) ours."""
        return self.role in (Role.OWNER, Role.RELEASING)

    @property
    def ready(self) -> bool:
        """Whether it could be taken without a hole: our link stood while another worker owned it.

        One that came up only after that has not what was said in between; whoever has it comes first.
        """
        return self.hands.ready and self.ready_beat is not None

    @property
    def busy(self) -> bool:
        """A step is under way."""
        return self.role in (Role.ACQUIRING, Role.RELEASING)

    async def acquire(self) -> bool:
        """Try to take the lease; whether the others should look."""
        self.role = Role.ACQUIRING
        try:
            answer = await self.lease.acquire()
        except BusError as error:
            log.debug("lease not taken", node=self.node, reason=str(error))
            self.retry_at = time.monotonic() + RETRY
            self.role = Role.STANDBY
            return False
        if not isinstance(answer, Grant):
            # Nobody tells of an expiry, but it is known when it comes.
            self.retry_at = time.monotonic() + max(answer.remaining, 0.01) + 0.01
            self.role = Role.STANDBY
            return False
        if self._gone:
            await self._hand_back()
            self.role = Role.NONE
            return False
        self._giving_back = False
        mark = decode_mark(answer.note)
        log.info("node taken", node=self.node, fencing=answer.token, after=mark.worker if mark else "")
        self.role = Role.OWNER
        self._mark, self._mark_at = Mark(), 0.0
        self._before = mark.token if mark is not None else 0
        self.hands.take(self.lease, mark, overlapped=self.overlapped)
        self._forget_owner()
        return True

    async def renew(self) -> bool:
        """Extend the lease, and write the mark where it is news; whether the others should look."""
        token = self.lease.token
        try:
            if token and await self.lease.renew(self._note()):
                return False
            if self._giving_back:  # it has no lease for that reason
                return False
            answer = await self.lease.acquire()
        except BusError as error:
            log.debug("lease not renewed", node=self.node, reason=str(error))
            return False
        if not self.owns or self._giving_back:
            if isinstance(answer, Grant):
                await self._hand_back()
            return False
        if not isinstance(answer, Grant):
            log.warning("node lost: another worker holds it", node=self.node, holder=answer.holder)
            self._lose()
            return True
        mark = decode_mark(answer.note)
        if mark is None or mark.token in (token, self._mark.token, self._before):
            log.info("lease had run out, nobody took it", node=self.node, fencing=answer.token)
            # It stays the one written down until we write another: the lease may run out again before.
            self._before = mark.token if mark is not None else 0
            self.hands.resume(self.lease)
            return False
        log.warning("node was with another worker meanwhile", node=self.node, worker=mark.worker)
        self._before = mark.token
        self.hands.lose()
        self.hands.take(self.lease, mark, overlapped=False)
        return True

    async def release(self, timeout: float) -> None:
        """Hand over: publish to a last event, write its mark, give the lease back."""
        self.role = Role.RELEASING
        mark = await self.hands.give(timeout)
        if self.role is not Role.RELEASING:  # lost meanwhile
            return
        self._giving_back = True
        try:
            await self.lease.release(encode(mark))
        except BusError as error:
            log.warning("lease not given back, it expires", node=self.node, reason=str(error))
        log.info("node given", node=self.node)
        self.role = Role.STANDBY
        self._forget_owner()

    def dismiss(self) -> None:
        """The node is no longer ours to care for: a lease that is on its way to us goes back."""
        self._gone = True

    async def _hand_back(self) -> None:
        """Release a lease that came when nobody wanted it any more; the mark of before stays."""
        with contextlib.suppress(BusError):
            await self.lease.release()

    def _lose(self) -> None:
        self.role = Role.STANDBY
        self._forget_owner()
        self.hands.lose()

    def _note(self) -> bytes | None:
        mark = self.hands.mark()
        now = time.monotonic()
        if mark.identity == self._mark.identity and now - self._mark_at < MARK_INTERVAL:
            return None
        self._mark, self._mark_at = mark, now
        return encode(mark)

    # --- beside an owner --------------------------------------------------------------------------------------------

    def watch(self, instance: str, entry: NodeEntry, beat: int) -> bool:
        """Another worker owns the node: see whether we overlap, and forget what it has published.

        Whether the others should look: we are ready from now on.
        """
        if not self.hands.ready:
            self.overlapped, self.ready_beat = False, None
            return False
        news = self.ready_beat is None
        if self.ready_beat is None:
            self.ready_beat = (instance, beat)
        elif self.ready_beat != (instance, beat) and not entry.behind:
            # It wrote this after we were ready, and had published all before: what it publishes from now on is in our
            # ring too. One that reads far behind its socket may yet publish what is older than our ring.
            self.overlapped = True
        if entry.mark:
            self.hands.trim(entry.mark)
        return news

    def _forget_owner(self) -> None:
        self.overlapped = False
        self.ready_beat = None
