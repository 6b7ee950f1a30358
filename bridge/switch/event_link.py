"""The supervised event connection to one node: subscribed, watched, made anew when it is lost.

This room never waits for its handler; each loss is told at once with its class, and as a gap when the link is UP again.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, Protocol

from bridge.errors import ConnectionLost, EslError, NotConnected
from bridge.esl.event import Event
from bridge.esl.pick import HeaderPick
from bridge.esl.protocol import LogRecord
from bridge.esl.url import EslUrl
from bridge.switch.backoff import LINK_SPANS, Backoff
from bridge.switch.connection import EVENT_BUFFER, Connection
from bridge.switch.event_session import EventSession
from bridge.switch.failures import failure_class
from bridge.switch.heartbeat import HeartbeatWatch, Verdict
from bridge.switch.node import LinkGap, NodeChange, NodeLoad, NodeState
from bridge.switch.own_commands import OwnCommands
from bridge.switch.subscription import Subscription

_STABLE_AFTER = 10.0  # s UP after which a loss is a new story for the back-off...
_STABLE_AT_LEAST = 1.0  # ...or already when it was UP for longer than it was waited for, and for this long (s)
_API_LINE = HeaderPick("API-Command", "API-Command-Argument")
_LOOKED_AT = frozenset(("HEARTBEAT", "API"))  # events that the link itself has a use for
_GAP_PATIENCE = 1.0  # s to wait for the event that ends a gap
_OVERSLEPT = 0.2  # s; a check that comes so late finds sockets that were not read: it looks again


class LinkHandler(Protocol):
    """Who gets the events of a link. Called synchronously on the loop, must not block.

    What a method raises is reported to the loop's exception handler and does not touch the link.
    """

    def link_up(self, core_uuid: str, started_at: float) -> None:
        """A new epoch begins, before its first event; ``started_at`` is Unix time (s)."""

    def events(self, events: list[Event]) -> None:
        """What one read of the socket brought, in wire order."""

    def hidden(self, identity: str, after: str) -> None:
        """An event came behind ``after`` that is not handed over here; on the links of other workers it is."""

    def node_changed(self, change: NodeChange) -> None:
        """Another state, or another reason of it."""

    def gap(self, gap: LinkGap) -> None:
        """Events were missed: told after a lost link is UP again, before its first events."""

    def skipped(self, size: int) -> None:
        """An event of so many bytes came that is too large to be kept; nothing more is known of it."""

    def log_lines(self, records: list[LogRecord]) -> None:
        """Log lines, where ``log_level`` is set."""

    def link_lost(self, reason: str, error: Exception) -> None:
        """A link, or an attempt, failed; ``reason`` is its class (``failure_class``, a CloseReason, ``heartbeat``)."""


class EventLink:
    """One node's events, for ever: ``start``, then ``stop``. All times in s.

    ``heartbeat_interval`` 0 learns it. ``own_commands`` suppresses the ``API`` events of the commands in it.
    ``filters`` are ``"Header value"`` texts; see ``Subscription``. ``pause`` is asked after every read of much, with
    its bytes: how long the next one may wait.
    """

    def __init__(
        self,
        node: str,
        url: EslUrl,
        handler: LinkHandler,
        *,
        format: Literal["json", "plain"] = "json",
        subscribe: Sequence[str] = ("ALL",),
        filters: Iterable[str | tuple[str, str]] = (),
        log_level: str | None = None,
        heartbeat_interval: float = 0.0,
        connect_timeout: float = 5.0,
        command_timeout: float = 5.0,
        own_commands: OwnCommands | None = None,
        backoff: Backoff | None = None,
        rng: random.Random | None = None,
        tls: ssl.SSLContext | None = None,
        pause: Callable[[int], float] = lambda size: 0.0,
    ) -> None:
        self.node = node
        self.url = url
        self.state = NodeState.CONNECTING
        self.core_uuid = ""
        self.load: NodeLoad | None = None
        self.reconnects = 0
        """How often the link was made anew after a loss."""
        self.last_event_at = 0.0
        """When an event was last read (Unix time, s); 0.0 never."""
        self._handler = handler
        self._subscription = Subscription(subscribe, filters, format, log_level)
        self._watch = HeartbeatWatch(heartbeat_interval)
        self._connect_timeout = connect_timeout
        self._command_timeout = command_timeout
        self._own = own_commands
        self._backoff = backoff if backoff is not None else Backoff(LINK_SPANS, rng)
        self._tls = tls
        self._pause = pause
        self._reason = ""
        self._waited = 0.0  # the last back-off, s
        self._announce = True
        self._draining = False
        self._session: EventSession | None = None
        self._task: asyncio.Task[None] | None = None
        self._check: asyncio.TimerHandle | None = None
        self._check_due = 0.0
        self._up_at: float | None = None
        self._ever_up = False
        self._unverified = False
        self._last: Event | None = None
        self._gap: tuple[float, str] | None = None
        self._gap_end = 0.0
        self._gap_timer: asyncio.TimerHandle | None = None

    # --- for the owner -------------------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """Whether the link is subscribed: UP, SUSPECT or DRAINING."""
        return self._up_at is not None

    @property
    def unread(self) -> bool:
        """Whether FreeSWITCH sent more than was read so far."""
        session = self._session
        return session is not None and session.connection is not None and session.connection.unread

    @property
    def heartbeat_interval(self) -> float:
        """The expected distance of two HEARTBEATs: set, learned, or assumed."""
        return self._watch.interval

    def start(self) -> None:
        """Connect, and stay connected, in the background."""
        if self._task is None:
            if self._ever_up:  # it was stopped: what happened before is another story
                self.state, self._reason, self._announce = NodeState.CONNECTING, "", True
                self.load, self._gap, self._last = None, None, None
            self._task = asyncio.get_running_loop().create_task(self._run(), name=f"esl-events-{self.node}")

    async def stop(self) -> None:
        """End the link; nothing is told any more."""
        task, self._task = self._task, None
        session, self._session = self._session, None
        self._stop_timers()
        self._up_at = None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        if session is not None and session.connection is not None:
            session.connection.close()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await session.connection.wait_closed()

    def reconfigure(self, *, heartbeat_interval: float, connect_timeout: float, command_timeout: float) -> None:
        """Take other times (s): the interval at once, the others from the next link on."""
        self._watch.expect(heartbeat_interval)
        self._connect_timeout = connect_timeout
        self._command_timeout = command_timeout

    def drain(self, on: bool) -> None:
        """Take the node out of service, or back: it is DRAINING where it would be UP."""
        self._draining = on
        if self.state in (NodeState.UP, NodeState.DRAINING):
            self._enter(NodeState.UP, "taken out of service" if on else "back in service")

    # --- supervision -----------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            if self._announce:
                # Only the first attempt after a change: the others of an absent node would be noise.
                self._announce = False
                self._enter(NodeState.CONNECTING, "connecting")
            reason = await self._attempt()
            self._waited = self._backoff.delay(reason)
            await asyncio.sleep(self._waited)

    async def _attempt(self) -> str:
        """Connect and stay until the end; the class of the failure."""
        session = EventSession(self, self._subscription, command_timeout=self._command_timeout, own_commands=self._own)
        try:
            connection = await Connection.open(
                self.url,
                session,
                timeout=self._connect_timeout,
                tls=self._tls,
                buffer_size=EVENT_BUFFER,
                pause=self._pause,
            )
        except EslError as error:
            return self._failed(failure_class(error), error)
        except Exception as error:
            self._report("connecting failed", error)
            return self._failed("unreachable", NotConnected(f"{self.url.redacted}: {error}"))
        self._session = session
        if connection.ready:
            self._enter(NodeState.SYNCING, "authenticated")
            session.begin(connection)
        return await session.over

    def _failed(self, reason: str, error: EslError) -> str:
        self._call(self._handler.link_lost, reason, error)
        if self.state is not NodeState.DOWN or self._reason != reason:
            self._enter(NodeState.DOWN, reason, str(error))
        return reason

    # --- told by the session ---------------------------------------------------------------------------------------

    def synced(self, core_uuid: str) -> None:
        """Subscribed: UP."""
        now = asyncio.get_running_loop().time()
        restarted = bool(core_uuid and self.core_uuid and core_uuid != self.core_uuid)
        self.core_uuid = core_uuid or self.core_uuid
        if self._ever_up:
            self.reconnects += 1
        self._ever_up = True
        self._up_at = now
        self._unverified = True
        self._watch.start(now)
        started_at = time.time()
        if self._gap is not None:
            self._gap_end = started_at
            self._gap_timer = asyncio.get_running_loop().call_later(_GAP_PATIENCE, self._tell_gap, "")
        self._call(self._handler.link_up, core_uuid, started_at)
        self._enter(NodeState.UP, "restarted" if restarted else "subscribed", restarted=restarted)
        self._plan_check(now)

    def received(self, events: list[Event]) -> None:
        """Hand a read's events over, without those that are only for us."""
        self.last_event_at = time.time()
        if self._unverified:
            self._verify(events[0])
        names = [(event._envelope or event.envelope).name for event in events]
        wanted = events if _LOOKED_AT.isdisjoint(names) else self._pick(events, names)
        if wanted:
            if self._gap is not None:
                self._tell_gap(wanted[0].identity)
            self._last = wanted[-1]
            self._call(self._handler.events, wanted)

    def _pick(self, events: list[Event], names: list[str]) -> list[Event]:
        """Those that are not only for us; what was left out is told with the event before it."""
        wanted: list[Event] = []
        start = 0
        for at in [at for at, name in enumerate(names) if name in _LOOKED_AT]:
            wanted += events[start:at]
            event = events[at]
            if names[at] == "HEARTBEAT":
                ours = not self._beat(event)
            elif ours := bool(self._own and self._own.take(*[word or "" for word in _API_LINE.of(event)])):
                before = wanted[-1] if wanted else self._last
                self._call(self._handler.hidden, event.identity, before.identity if before is not None else "")
            start = at + ours
        return wanted + events[start:]

    def skipped(self, size: int) -> None:
        """Tell of an event that is too large to be kept."""
        self._call(self._handler.skipped, size)

    def logged(self, records: list[LogRecord]) -> None:
        """Hand log lines over."""
        self._call(self._handler.log_lines, records)

    def probed(self) -> None:
        """A sign of life from a node whose HEARTBEATs are denied."""
        self._watch.beat(asyncio.get_running_loop().time())
        self._recover()

    def ended(self, reason: str, error: EslError) -> None:
        """The connection is gone; ``_run`` goes on with the back-off."""
        self._stop_timers()
        up_at, self._up_at = self._up_at, None
        session, self._session = self._session, None
        if self._task is None:
            return  # stopped
        if up_at is not None:
            now = asyncio.get_running_loop().time()
            if now - up_at >= min(_STABLE_AFTER, max(_STABLE_AT_LEAST, self._waited)):
                self._backoff.reset()
            self._announce = True
            if self._gap is None:
                read_at = session.connection.read_at if session is not None and session.connection is not None else now
                self._gap = (time.time() - (now - read_at), self._last.identity if self._last is not None else "")
        self._failed(reason, error)

    def _verify(self, event: Event) -> None:
        """Take the Core-UUID of a link's first event: FreeSWITCH may not have told it, or told another."""
        self._unverified = False
        told = event.envelope.core_uuid
        if told and told != self.core_uuid:
            previous, self.core_uuid = self.core_uuid, told
            if previous:
                self._enter(self.state, "restarted", restarted=True)

    # --- liveness --------------------------------------------------------------------------------------------------

    def _beat(self, event: Event) -> bool:
        """Take a HEARTBEAT; whether the operator wants it, too."""
        if not event.injected:
            now = asyncio.get_running_loop().time()
            self._watch.beat(now, event.timestamp_us)
            self.load = NodeLoad.of_heartbeat(
                event, received_at=now, unix_time=time.time(), interval=self._watch.interval
            )
            self._recover()
            self._plan_check(now)
        return self._subscription.wants_heartbeat

    def _recover(self) -> None:
        if self.state is NodeState.SUSPECT:
            self._enter(NodeState.UP, "heartbeat")

    def _plan_check(self, now: float) -> None:
        if self._check is not None:
            self._check.cancel()
        when = self._watch.next_check(now)
        if self._session is not None and self._session.probing:
            when = min(when, now + self._watch.interval)
        self._check_due = max(when, now + 0.01)
        self._check = asyncio.get_running_loop().call_at(self._check_due, self._look)

    def _look(self) -> None:
        """Judge the silence."""
        session = self._session
        if session is None or session.connection is None or self._up_at is None:
            return
        now = asyncio.get_running_loop().time()
        watch = self._watch
        watch.last_byte = session.connection.read_at
        verdict = watch.verdict(now)
        if verdict is Verdict.DEAD:
            if now - self._check_due > _OVERSLEPT:
                # We slept, not FreeSWITCH: what it sent meanwhile is still in the socket.
                self._check_due = now + _OVERSLEPT
                self._check = asyncio.get_running_loop().call_at(self._check_due, self._look)
                return
            if not session.probing:  # it was we who set the pace of the answers
                watch.died()
            silence = now - watch.last_byte
            session.end("heartbeat", ConnectionLost(f"{self.url.redacted}: not a byte for {silence:.1f} s"))
            return
        if verdict is Verdict.LATE and self.state in (NodeState.UP, NodeState.DRAINING):
            self._enter(NodeState.SUSPECT, f"heartbeat late (expected every {watch.interval:g} s)")
        if session.probing:
            session.probe()
        self._plan_check(now)

    # --- telling ---------------------------------------------------------------------------------------------------

    def _enter(self, state: NodeState, reason: str, text: str = "", *, restarted: bool = False) -> None:
        if state is NodeState.UP and self._draining:
            state = NodeState.DRAINING
        previous, self.state, self._reason = self.state, state, reason
        told = f"{reason}: {text}" if text else reason
        change = NodeChange(self.node, state, previous, told, self.core_uuid, restarted, time.time())
        self._call(self._handler.node_changed, change)

    def _tell_gap(self, after: str) -> None:
        if self._gap_timer is not None:
            self._gap_timer.cancel()
        gap, self._gap = self._gap, None
        if gap is not None:
            self._call(self._handler.gap, LinkGap(self.node, gap[0], self._gap_end, gap[1], after))

    def _stop_timers(self) -> None:
        for timer in (self._check, self._gap_timer):
            if timer is not None:
                timer.cancel()

    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        try:
            function(*arguments)
        except Exception as error:
            self._report("the handler of an event link failed", error)

    def _report(self, what: str, error: Exception) -> None:
        asyncio.get_running_loop().call_exception_handler({"message": f"{self.node}: {what}", "exception": error})
