"""What the fleet decides about one node, done: its link, its feed, its own queue, the calls it has.

This room decides nothing (``fleet`` does) and never reads an event.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable

import msgspec
import structlog

from bridge.bus.base import Consumer
from bridge.bus.storage import Storage
from bridge.crew.node_queue import NodeQueue
from bridge.errors import BusError
from bridge.fleet.lease import Right
from bridge.messages.fleet import Mark, NodeEntry
from bridge.messages.notice import NodeNotice
from bridge.relay.continuity import Continuity
from bridge.relay.events import NodeRelay
from bridge.relay.feed import NodeFeed
from bridge.relay.known_calls import KnownCalls
from bridge.relay.notices import NoticeBoard
from bridge.switch.command_pool import CommandPool
from bridge.switch.event_link import EventLink
from bridge.switch.node import NodeChange, NodeState

log = structlog.get_logger(__name__)

FLUSH_PAUSE = 0.01
"""Seconds between two attempts to have the last events of a node confirmed, while it is handed over."""
LINE_CHECK = 0.05
"""Seconds between two looks whether the commands in the node's line are through, while it is handed over."""


class NodeSteward:
    """One node in this worker (fulfils ``fleet.ownership.Hands``).

    ``consume`` takes the node's own queue, ``in_line`` counts the commands of it that are in hand, ``flush`` has
    everything that waits published and confirmed within a time (s).
    """

    def __init__(
        self,
        name: str,
        *,
        worker: str,
        url: str,
        tags: tuple[str, ...],
        relay: NodeRelay,
        link: EventLink,
        pool: CommandPool,
        feed: NodeFeed,
        known: KnownCalls,
        continuity: Continuity,
        notices: NoticeBoard,
        consume: Callable[[str], Awaitable[Consumer]] | None,
        in_line: Callable[[str], int],
        flush: Callable[[float], Awaitable[None]],
    ) -> None:
        self.name = name
        self.relay = relay
        self.link = link
        self.pool = pool
        self.feed = feed
        self.known = known
        self.right: Right | None = None
        self.queue = NodeQueue(name, consume, self._may_publish)
        self.storage: Storage | None = None
        self.on_change: Callable[[], None] = lambda: None
        self._worker = worker
        self._url = url
        self._tags = tags
        self._continuity = continuity
        self._notices = notices
        self._in_line = in_line
        self._flush = flush
        self._warm = False
        self._drained: bool | None = None
        self._inherited = ""
        self._base = ""
        self._tasks: set[asyncio.Task[object]] = set()
        self._handed_over = False
        self._calls_kept = -1
        self._calls_task: asyncio.Task[object] | None = None
        feed.on_link_up = self._linked
        feed.on_change = self._changed

    # --- what the fleet asks -----------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """See ``Hands``."""
        return self.link.connected and not self.feed.owning

    @property
    def linked(self) -> bool:
        """See ``Hands``."""
        return self.link.connected

    @property
    def served(self) -> bool:
        """Whether the node's own queue is taken."""
        return self.queue.served

    def retag(self, tags: tuple[str, ...]) -> None:
        """Tell other tags from now on."""
        self._tags = tags
        self.on_change()

    def warm(self) -> None:
        """See ``Hands``."""
        if not self._warm:
            self._warm = True
            self.link.start()

    async def cool(self) -> None:
        """See ``Hands``."""
        if self._warm:
            self._warm = False
            self.feed.forget()
            self._continuity.forget()
            await self.link.stop()
            if not self._warm:
                self.relay.state = NodeState.CONNECTING
                self.relay.reason = "another worker has it"

    def trim(self, identity: str) -> None:
        """See ``Hands``."""
        self.feed.ring.trim(identity)

    def take(self, right: Right, mark: Mark | None, *, overlapped: bool) -> None:
        """See ``Hands``."""
        self.warm()
        self.right = right
        for buffer in self.relay.buffers:
            buffer.gate = self._may_publish
        self._inherited = mark.identity if mark is not None else ""
        self._base = self.relay.mark
        for buffer in self.relay.buffers:
            buffer.own_up(mark.token if mark is not None else 0)
        self._handed_over = mark is not None and mark.clean
        kept = self.feed.take(right.token, mark, overlapped=overlapped)
        log.info("events are published", node=self.name, epoch=self.relay.epoch, kept=kept)
        self._calls_kept = -1
        self._spawn(self._take_calls())
        self.queue.take()

    def resume(self, right: Right) -> None:
        """See ``Hands``."""
        self.right = right
        self.feed.resume(right.token)

    def lose(self) -> None:
        """See ``Hands``."""
        self.right = None
        self._continuity.stop()
        self.feed.stop()
        for buffer in self.relay.buffers:
            buffer.discard(time.time())
        self.queue.leave()

    async def give(self, timeout: float) -> Mark:
        """See ``Hands``."""
        deadline = time.monotonic() + timeout
        self._continuity.stop()
        await self.queue.leave()
        # The next owner takes the queue when the commands of this one have their outcome: break before make.
        while self._in_line(self.name) and time.monotonic() < deadline and self.right is not None:  # noqa: ASYNC110
            await asyncio.sleep(LINE_CHECK)
        self.feed.stop()
        calls = self.known.encode()  # as of the last event that we publish
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(1.0, deadline - time.monotonic())):
                while any(buffer.events or buffer.in_flight for buffer in self.relay.buffers):
                    # A broker that is slow, or away for a moment, still confirms within our time.
                    with contextlib.suppress(BusError):
                        await self._flush(1.0)
                    await asyncio.sleep(FLUSH_PAUSE)
        clean = not any(buffer.events or buffer.in_flight for buffer in self.relay.buffers)
        if not clean:
            log.warning("node given with events in doubt: the next owner sends them again", node=self.name)
        kept = await self._keep_calls(calls)
        mark = self.mark()
        trail = self.relay.trail if clean else ()
        mark = Mark(mark.token, mark.identity, mark.at, mark.stamp, mark.worker, clean and kept, trail)
        self.feed.ring.head = self.feed.ring.head or mark.identity
        if not clean:
            for buffer in self.relay.buffers:
                buffer.discard(time.time())
        self.right = None
        return mark

    def mark(self) -> Mark:
        """See ``Hands``."""
        identity = self.relay.mark
        if not identity or identity == self._base:
            identity = self._inherited
        return Mark(self.right.token if self.right else 0, identity, time.time(), 0, self._worker)

    def entry(self) -> NodeEntry:
        """See ``Hands``; called with every beat of an owner."""
        self._tell_drained()
        changed = self.feed.owning and self.known.version != self._calls_kept
        if changed and (self._calls_task is None or self._calls_task.done()):
            self._calls_task = self._spawn(self._keep_calls())
        now = asyncio.get_running_loop().time()
        load = self.link.load
        fresh = load is not None and load.fresh(now)
        entry = NodeEntry(
            name=self.name,
            state=str(self.relay.state),
            reason=self.relay.reason[:200],
            core_uuid=self.link.core_uuid,
            epoch=self.relay.epoch,
            calls=len(self.known),
            in_flight=self.pool.in_flight,
            events=self.relay.received,
            url=self._url,
            tags=self._tags,
            mark=self.mark().identity,
            behind=self.link.unread or any(buffer.events or buffer.in_flight for buffer in self.relay.buffers),
        )
        if load is None or not fresh:
            return entry
        return msgspec.structs.replace(
            entry,
            sessions=load.sessions,
            max_sessions=load.max_sessions,
            sessions_per_sec=load.sessions_per_sec,
            sessions_per_sec_last=load.sessions_per_sec_last,
            idle_cpu=load.idle_cpu,
            load_age=now - load.received_at,
            interval=load.interval,
            lag=load.delay,
        )

    # --- what people ask ---------------------------------------------------------------------------------------------

    def drain(self, on: bool) -> None:
        """Take the node out of service, or back."""
        if on != (self._drained is not None):
            self._drained = False if on else None
            self.link.drain(on)

    async def close(self) -> None:
        """The worker ends, or the node is gone."""
        self._continuity.stop()
        await self.queue.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.link.stop()
        self.feed.forget()

    # --- inside ------------------------------------------------------------------------------------------------------

    def _may_publish(self) -> bool:
        return self.right is not None and self.right.valid

    def _linked(self) -> None:
        core = self.feed.core_uuid
        self.known.doubt()
        if self.feed.owning:
            self._continuity.check(core)
        elif core:
            self.known.drop(self.known.of_another_run(core))  # their owner tells their end
        self.on_change()

    def _changed(self, change: NodeChange) -> None:
        if change.restarted and self.feed.owning:
            self._continuity.end_all(change.core_uuid)
        self.on_change()

    async def _take_calls(self) -> None:
        """Know what the owner before knew, then see which of it still is."""
        if self.storage is not None:
            with contextlib.suppress(BusError):
                calls = await self.storage.read(f"node.{self.name}", "calls")
                if self._handed_over:
                    self._continuity.trust(calls, self.feed.begun)
                self.known.merge(calls)
        if self.feed.owning and self.link.connected:
            self._continuity.check(self.link.core_uuid)

    async def _keep_calls(self, calls: bytes | None = None) -> bool:
        """Keep the calls of now, or those given, for the next owner; whether the broker has them."""
        if self.storage is None or self.right is None or not self.right.valid:
            return False
        version = self.known.version
        try:
            await self.storage.write(f"node.{self.name}", "calls", self.known.encode() if calls is None else calls)
        except BusError:
            return False
        self._calls_kept = version
        return True

    def _tell_drained(self) -> None:
        if self._drained is False and self._continuity.checked and not self.known and self.link.connected:
            self._drained = True
            notice = NodeNotice(
                state=str(self.relay.state),
                previous=str(self.relay.state),
                reason="drained: its last call has ended",
                owner=self._worker,
                epoch=self.relay.epoch,
                core_uuid=self.link.core_uuid,
            )
            self._notices.tell(notice, node=self.name)

    def _spawn(self, work: Awaitable[object]) -> asyncio.Task[object]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
