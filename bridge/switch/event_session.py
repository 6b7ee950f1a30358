"""One connection of an event link: its set-up, and what it reads sorted into events, log lines and replies.

This room never reconnects and never judges silence; it knows one connection, the link knows them all.
"""

from __future__ import annotations

import asyncio
from typing import Final, Protocol, cast

from bridge.errors import CommandTimeout, EslError
from bridge.esl import protocol as esl
from bridge.esl.event import Event
from bridge.esl.replies import Reply
from bridge.switch.carrier import core_uuid_of
from bridge.switch.connection import Connection
from bridge.switch.failures import failure_class
from bridge.switch.own_commands import OwnCommands
from bridge.switch.subscription import Purpose, SetupStep, Subscription

PROBE: Final = b"ping\n\n"
"""No command of FreeSWITCH: its ``-ERR command not found`` is a cheap sign of life."""

_ONLY_EVENTS: Final = {Event}
_CORE_UUID_PATIENCE = 2.0  # s to wait for an event that tells the Core-UUID where the user may not ask for it
_MOST_HELD = 20_000  # events kept back until the link is up


class SessionUser(Protocol):
    """Who uses a session: the link. Called on the loop, in the order of the wire."""

    def synced(self, core_uuid: str) -> None:
        """Subscribed, filters set; "" where the Core-UUID could not be learned. Events follow."""

    def received(self, events: list[Event]) -> None:
        """Events of one read."""

    def skipped(self, size: int) -> None:
        """An event of so many bytes is too large to be kept."""

    def logged(self, records: list[esl.LogRecord]) -> None:
        """Log lines of one read."""

    def probed(self) -> None:
        """The reply to ``probe`` came."""

    def ended(self, reason: str, error: EslError) -> None:
        """The connection ended, told once."""


class EventSession:
    """An event connection from its authentication to its end; a ``ConnectionOwner``."""

    def __init__(
        self,
        user: SessionUser,
        subscription: Subscription,
        *,
        command_timeout: float,
        own_commands: OwnCommands | None,
    ) -> None:
        self.connection: Connection | None = None
        self.over: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Resolves to the reason when the connection ended."""
        self.probing = False
        """HEARTBEAT is denied to this user: liveness is a matter of ``probe``."""
        self._user = user
        self._subscription = subscription
        self._command_timeout = command_timeout
        self._own = own_commands
        self._missing = len(subscription.steps)
        self._core_uuid = ""
        self._synced = False
        self._held: list[Event] = []
        self._reason = ""
        self._timer: asyncio.TimerHandle | None = None
        self._probes = 0

    def begin(self, connection: Connection) -> None:
        """Send the set-up commands; ``synced`` follows, or the end."""
        self.connection = connection
        if not connection.ready:
            return
        if self._own is not None:
            self._own.clear()
        for step in self._subscription.steps:
            if self._own is not None:
                self._own.add_command(step.command)
            connection.send(step.command, step)
        self._timer = asyncio.get_running_loop().call_later(self._command_timeout, self._too_slow)

    def probe(self) -> None:
        """Ask for a sign of life, unless one is being waited for."""
        if self.connection is not None and self.connection.ready and not self._probes:
            self._probes += 1
            self.connection.send(PROBE, None)

    def end(self, reason: str, error: EslError) -> None:
        """End the connection for a reason of our own."""
        self._reason = reason
        if self.connection is not None:
            self.connection.abort(error)

    # --- told by the connection ------------------------------------------------------------------------------

    def occurred(self, connection: Connection, occurrences: list[esl.Occurrence]) -> None:
        """Sort what was read; nearly always it is all events."""
        if self._synced and set(map(type, occurrences)) == _ONLY_EVENTS:
            self._user.received(cast("list[Event]", occurrences))
            return
        events: list[Event] = []
        records: list[esl.LogRecord] = []
        for one in occurrences:
            if type(one) is Event:
                events.append(one)
            elif type(one) is esl.EventSkipped:
                self._hand_over(events)
                events = []
                self._user.skipped(one.size)
            elif type(one) is esl.LogReceived:
                records.append(one.record)
            elif type(one) is esl.ReplyReceived:
                token = one.pending.token
                if isinstance(token, SetupStep):
                    self._answered(token, one.reply)
                else:
                    self._probes = 0
                    self._user.probed()
        self._hand_over(events)
        if records:
            self._user.logged(records)

    def _hand_over(self, events: list[Event]) -> None:
        if not events:
            return
        if self._synced:
            self._user.received(events)
        else:
            self._hold(events)

    def closed(self, connection: Connection, closed: esl.Closed) -> None:
        """The end."""
        if self._timer is not None:
            self._timer.cancel()
        self._held.clear()
        reason = self._reason or str(closed.reason)
        self._user.ended(reason, closed.error)
        if not self.over.done():
            self.over.set_result(reason)

    # --- set-up ----------------------------------------------------------------------------------------------------

    def _answered(self, step: SetupStep, reply: Reply) -> None:
        if reply.denied and self._own is not None:
            self._own.withdraw_command(step.command)
        fault = step.fault(reply)
        if fault is not None:
            self.end(failure_class(fault), fault)
            return
        self._missing -= 1
        if step.purpose is Purpose.CORE_UUID:
            self._core_uuid = core_uuid_of(reply)
        elif step.purpose is Purpose.HEARTBEAT:
            self.probing = not reply.ok
        if not self._missing:
            if self._timer is not None:
                self._timer.cancel()
            if self._core_uuid or (self._held and self._learn(self._held)):
                self._sync()
            else:
                self._timer = asyncio.get_running_loop().call_later(_CORE_UUID_PATIENCE, self._sync)

    def _learn(self, events: list[Event]) -> bool:
        self._core_uuid = next((e.envelope.core_uuid for e in events if e.envelope.core_uuid), "")
        return bool(self._core_uuid)

    def _hold(self, events: list[Event]) -> None:
        self._held += events
        if (not self._missing and self._learn(events)) or len(self._held) > _MOST_HELD:
            self._sync()

    def _sync(self) -> None:
        if self._synced:
            return
        self._synced = True
        if self._timer is not None:
            self._timer.cancel()
        held, self._held = self._held, []
        self._user.synced(self._core_uuid)
        if held:
            self._user.received(held)

    def _too_slow(self) -> None:
        where = self.connection.url.redacted if self.connection is not None else ""
        self.end("timeout", CommandTimeout(f"{where}: subscriptions unanswered after {self._command_timeout:g} s"))
