"""Between a node's event link and its relay: published while this worker owns the node, kept while it stands by.

This room never decides which of the two it is, and never talks to the bus.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Protocol

import structlog

from bridge.esl.event import Event
from bridge.esl.protocol import LogRecord
from bridge.relay.buffer import Loss
from bridge.relay.events import NodeRelay
from bridge.relay.known_calls import KnownCalls
from bridge.relay.ring import EventRing, Overflow
from bridge.switch.node import LinkGap, NodeChange

BEHIND = 10.0
"""Seconds for which events that the owner before has published may still come on a link that is slower than its."""
_BEGINNINGS = ("CHANNEL_CREATE", "CHANNEL_UUID")  # a call is there, or has another name

# What somebody else wants of an event that passes, kept or published (the call table, a waiting execute).
Watchers = Mapping[str, Callable[[Event], None]]

log = structlog.get_logger(__name__)


class LastMark(Protocol):
    """Where the one who published before stopped (``messages.fleet.Mark``)."""

    @property
    def identity(self) -> str:
        """The last event that the broker confirmed."""

    @property
    def at(self) -> float:
        """When that was written down (Unix time, s)."""

    @property
    def trail(self) -> tuple[str, ...]:
        """Some before it, the latest first."""


def together(*all_watchers: Watchers) -> Watchers:
    """Several watchers as one: who watches the same event is called in the order given."""
    found: dict[str, Callable[[Event], None]] = {}
    for watchers in all_watchers:
        for name, watcher in watchers.items():
            found[name] = _both(found[name], watcher) if name in found else watcher
    return found


def _both(one: Callable[[Event], None], other: Callable[[Event], None]) -> Callable[[Event], None]:
    def watch(event: Event) -> None:
        one(event)
        other(event)

    return watch


class NodeFeed:
    """The handler of a node's event link (``switch.event_link.LinkHandler``).

    ``known`` and ``watchers`` see every event, published or kept. ``on_link_up`` is called after a new link was taken
    note of, ``on_change`` with every change of the node.
    """

    def __init__(self, relay: NodeRelay, ring: EventRing, known: KnownCalls, watchers: Watchers) -> None:
        self.relay = relay
        self.known = known
        self.ring = ring
        self.owning = False
        self.linked_at = 0.0
        """When the link came up (Unix time, s); 0.0 while there is none."""
        self.core_uuid = ""
        self.begun: set[str] = set()
        """Calls that began in what was kept when the node was taken."""
        self.on_link_up: Callable[[], None] = lambda: None
        self.on_change: Callable[[NodeChange], None] = lambda change: None
        self._watchers = together(watchers, known.watchers())
        self._ever_linked = False
        self._change: NodeChange | None = None
        self._missed: LastMark | None = None
        self._doubtful = False
        self._published: set[str] = set()
        self._published_until = 0.0

    # --- what the link tells -----------------------------------------------------------------------------------------

    def link_up(self, core_uuid: str, started_at: float) -> None:
        """A new link stands."""
        again = self._ever_linked
        self._ever_linked = True
        self.linked_at = started_at
        self.core_uuid = core_uuid
        self._published.clear()
        if self.owning and again:
            self.relay.linked_again()
        if self.owning:
            self.relay.link_up(core_uuid, started_at)
            self._tell_missed()
        self.on_link_up()

    def events(self, events: list[Event]) -> None:
        """Publish or keep what one socket read brought."""
        watchers = self._watchers
        for event in events:
            name = (event._envelope or event.envelope).name
            if name in watchers:
                watchers[name](event)
        if self.owning:
            if self._published:
                events = self._not_published(events)
            if events:
                self.relay.events(events)
        else:
            self.ring.append(events)

    def _not_published(self, events: list[Event]) -> list[Event]:
        """Our link is behind that of the owner before: what it has published comes here yet."""
        if time.time() > self._published_until:
            self._published.clear()
        return [event for event in events if event.identity not in self._published]

    def hidden(self, identity: str, after: str) -> None:
        """Another worker's link has an event here that ours leaves out: its mark may name it."""
        if not self.owning:
            self.ring.hide(identity, after)

    def node_changed(self, change: NodeChange) -> None:
        """Another state: told to the world by the owner only."""
        self._change = change
        if change.core_uuid:
            self.core_uuid = change.core_uuid
        if self.owning:
            self.relay.node_changed(change)
        else:
            self.relay.state = change.state
            self.relay.reason = change.reason
            log.debug("node, standing by", node=change.node, state=str(change.state), reason=change.reason)
            self.relay.on_change(change)
        self.on_change(change)

    def gap(self, gap: LinkGap) -> None:
        """Events were missed on the wire."""
        if self.owning:
            self.relay.gap(gap)
        else:
            self.ring.hole(gap)

    def link_lost(self, reason: str, error: Exception) -> None:
        """Count it."""
        self.linked_at = 0.0
        self.relay.link_lost(reason, error)

    def skipped(self, size: int) -> None:
        """An event too large to be kept: told as lost, by a standby if it takes over from before it."""
        if self.owning:
            self.relay.skipped(size)
        else:
            now = time.time()
            self.ring.hole(Overflow(1, now, now))

    def log_lines(self, records: list[LogRecord]) -> None:
        """FreeSWITCH's log is relayed by the owner only."""
        if self.owning:
            self.relay.log_lines(records)

    # --- what the fleet decides --------------------------------------------------------------------------------------

    def take(self, token: int, mark: LastMark | None, *, overlapped: bool) -> int:
        """Publish what is kept from behind ``mark`` on, then everything that comes; how many events were kept.

        Where the mark is not found and the one before did not publish beside us, a ``gap`` tells it.
        """
        relay, ring = self.relay, self.ring
        self.owning = True
        relay.token = token
        relay.link_up(self.core_uuid, self.linked_at or time.time())
        if self._change is not None:
            relay.node_changed(self._change)
        missed = False
        if mark is not None and mark.at:
            found = bool(mark.identity) and ring.trim(mark.identity)
            if not found and mark.trail:
                # Our own link was cut right there, or is behind: what it brought last before that is looked for.
                found = any(ring.trim(identity) for identity in mark.trail)
                self._published, self._published_until = {mark.identity, *mark.trail}, time.time() + BEHIND
            # A ring that was trimmed holds all behind its head: a mark that is not in it is older than what the owner
            # told last.
            if not found and (ring.overflowed or not (overlapped or ring.head)):
                missed = True
                self._missed = mark
                self._doubtful = len(ring) > 0
                if self.linked_at:
                    self._tell_missed()
        count = 0
        self.begun.clear()
        for kept in ring.take():
            if isinstance(kept, LinkGap):
                relay.gap(kept)
            elif isinstance(kept, Overflow):
                if not missed:  # else it is part of what was told already
                    relay.dropped(kept.count, kept.start, kept.end)
            else:
                count += len(kept)
                self.begun.update([event.unique_id for event in kept if event.name in _BEGINNINGS])
                relay.events(kept)
        return count

    def resume(self, token: int) -> None:
        """The ownership was interrupted and nobody published meanwhile: a new epoch, nothing else."""
        self.relay.token = token
        self.relay.link_up(self.core_uuid, self.linked_at or time.time())

    def stop(self) -> None:
        """Publish no more; keep what comes."""
        self.owning = False
        self._published.clear()
        self.ring.clear()

    def forget(self) -> None:
        """The link is taken down: nothing is kept."""
        self.ring.clear()
        self.linked_at = 0.0
        self._ever_linked = False
        self._change = None

    def _tell_missed(self) -> None:
        mark, self._missed = self._missed, None
        if mark is None:
            return
        log.warning("events were missed at a take-over", node=self.relay.node, since=mark.at, after=mark.identity)
        loss = Loss(
            self.relay.epoch,
            "failover",
            start=min(mark.at, self.linked_at),
            end=self.linked_at,
            before=mark.identity,
            count=None,
            uncertain=self._doubtful,
        )
        # Told once, however many ways the events go.
        self.relay.buffers[0].lose(loss)
