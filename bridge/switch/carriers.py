"""The command connections of one node: opened when needed, parked when they hang, closed when idle.

This room never holds a command and never decides an outcome; it opens at most one connection at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ssl
from typing import TYPE_CHECKING, Final

from bridge.errors import ConnectionLost, EslError, NotConnected
from bridge.esl.ending import CloseReason
from bridge.switch.backoff import Backoff
from bridge.switch.carrier import Carrier, Setting
from bridge.switch.connection import COMMAND_BUFFER, Connection
from bridge.switch.failures import failure_class
from bridge.switch.submission import Need

if TYPE_CHECKING:
    from bridge.switch.command_pool import CommandPool

HUNG_AFTER: Final = 0.1
"""A connection whose next reply is due for longer (s) gets no further command while it is."""

_NOTHING = Need.NOTHING
_SLOW_AFTER = 0.03  # s; a second connection is opened then. FreeSWITCH looks at an idle connection every 20 ms.
_YOUNG = 1.0  # s; after a connection that died younger the next attempt waits
_PATIENCE = 2  # so many connections in a row that ended without an answer end the hope of those who wait


class Carriers:
    """All command connections of a pool. Times in s."""

    def __init__(
        self,
        pool: CommandPool,
        *,
        connect_timeout: float,
        idle_timeout: float,
        max_connections: int,
        max_pipelined: int,
        backoff: Backoff,
        tls: ssl.SSLContext | None,
    ) -> None:
        self.ready: list[Carrier] = []
        """Those that take commands."""
        self.parked: list[Carrier] = []
        """Those that owe only replies nobody waits for; they do not count against the limit."""
        self.connecting: asyncio.Task[None] | None = None
        self.retry_at = 0.0
        """No attempt before this instant (loop time)."""
        self.last_error: EslError | None = None
        """Why there is no hope for a connection; None while there is some."""
        self.reached = False
        """Whether the last attempt to connect succeeded; False before the first."""
        self.unwanted: EslError | None = None
        """Set when the pool is closed."""
        self._pool = pool
        self.connect_timeout = connect_timeout
        self.idle_timeout = idle_timeout
        self.max_connections = max_connections
        self.max_pipelined = max_pipelined
        self._backoff = backoff
        self._tls = tls
        self._in_vain = 0
        self._wanted: set[Need] = set()
        self._retry: asyncio.TimerHandle | None = None
        self._knocked = False

    def __len__(self) -> int:
        return len(self.ready) + len(self.parked)

    # --- choosing ------------------------------------------------------------------------------------------------

    def choose(self, need: Need, now: float) -> Carrier | None:
        """The least loaded connection that can answer soon; None when there is none."""
        best = None
        least = self.max_pipelined
        plain = need is _NOTHING
        for carrier in self.ready:
            due = carrier.unanswered
            if due < least and not (due and now - carrier.progress_at > HUNG_AFTER) and (plain or carrier.serves(need)):
                connection = carrier.connection
                if connection is not None and connection.writable:
                    if not due:
                        return carrier
                    best, least = carrier, due
        return best

    def relieve(self, carrier: Carrier, now: float) -> None:
        """A command was given to this one: open another for the next, if it is getting busy."""
        due = carrier.unanswered
        if (
            due > 1
            and len(self.ready) < self.max_connections
            and (due * 4 > self.max_pipelined or now - carrier.progress_at > _SLOW_AFTER)
        ):
            self.grow(now)

    def provide(self, need: Need, now: float) -> None:
        """Commands with this need wait: set a connection up for it, or open one."""
        if need is not Need.NOTHING:
            self._wanted.add(need)
            able = [carrier for carrier in self.ready if carrier.alive and not carrier.stalled(now, HUNG_AFTER)]
            for carrier in able:
                if carrier.settings[need] is Setting.NONE:
                    carrier.prepare(need)
                    return
            if any(carrier.settings[need] is Setting.ASKED for carrier in able):
                return
        self.grow(now)

    def refusal(self, need: Need, now: float) -> EslError | None:
        """Why no connection can be hoped for now; None when there is hope."""
        if self.unwanted is not None:
            return self.unwanted
        if not self.ready and self.connecting is None and now < self.retry_at:
            return self.last_error
        if need is not Need.NOTHING:
            for carrier in self.ready:
                if carrier.settings[need] is Setting.DENIED:
                    return carrier.denial
        return None

    def forgive(self) -> None:
        """Forget the back-off: the node is known to be reachable."""
        self.retry_at = 0.0
        self.answered()
        if self._retry is not None:
            self._retry.cancel()
            self._wake()

    def answered(self) -> None:
        """A connection answered its first command: the node works."""
        self.last_error = None
        self._in_vain = 0

    def not_wanted(self, need: Need) -> None:
        """FreeSWITCH refuses it: new connections do not ask for it until somebody wants it again."""
        self._wanted.discard(need)

    # --- opening ---------------------------------------------------------------------------------------------------

    def grow(self, now: float) -> None:
        """Open one more connection, unless one is being opened, enough are open, or the back-off says no."""
        if self.unwanted is not None or self.connecting is not None:
            return
        if now < self.retry_at:
            self._wake_later()
            return
        room = self.max_connections
        for carrier in self.ready:
            if carrier.shuts_down:
                return  # FreeSWITCH is about to go: when this connection ends, so does all hope
            room -= carrier.alive  # it says goodbye before it closes
        if room > 0 or self._park(now):
            name = f"esl-command-{self._pool.node}"
            self.connecting = asyncio.get_running_loop().create_task(self._connect(), name=name)

    def knock(self) -> None:
        """Try to connect once, as soon as the back-off allows, although no command waits."""
        if not self.ready:
            self._knocked = True
            self.grow(self._pool.time())

    async def _connect(self) -> None:
        pool = self._pool
        carrier = Carrier(pool)
        self._knocked = False
        try:
            connection = await Connection.open(
                pool.url, carrier, timeout=self.connect_timeout, tls=self._tls, buffer_size=COMMAND_BUFFER
            )
            if not connection.ready:
                connection.abort()
                raise ConnectionLost(f"{pool.url.redacted}: closed as soon as it was open")
        except EslError as error:
            self.connecting = None
            self._failed(error)
            return
        except Exception as error:
            self.connecting = None
            pool.report("connecting failed", error)
            self._failed(NotConnected(f"{pool.url.redacted}: {error}"))
            return
        self.connecting = None
        now = pool.time()
        carrier.open(connection, now)
        self.ready.append(carrier)
        self.last_error = None
        self.reached = True
        for need in self._wanted:
            carrier.prepare(need)
        carrier.idle_check = pool.deadlines.add(now + self.idle_timeout, functools.partial(self._check_idle, carrier))
        self.place_orphans()
        pool.advance(now)
        pool.on_reached()

    def _failed(self, error: EslError) -> None:
        self.reached = False
        now = self._pool.time()
        failure = failure_class(error)
        self.retry_at = now + self._backoff.delay(failure)
        self._was_in_vain(error, sure=failure != CloseReason.EOF)
        if not self.ready and self.last_error is not None:
            self._pool.fail_waiting(self.last_error)
        self.place_orphans()
        self._pool.advance(now)
        self._pool.on_reached()

    def _was_in_vain(self, error: EslError, *, sure: bool) -> None:
        # One connection that was cut says little of the node, so another decides; where nobody listens, none is needed.
        self._in_vain += 1
        if sure or self._in_vain >= _PATIENCE:
            self.last_error = error

    # --- ending ----------------------------------------------------------------------------------------------------

    def _park(self, now: float) -> bool:
        """Connections that only owe replies nobody waits for make room; their late replies are still heard.

        Returns whether there is room for another one.
        """
        hung = [c for c in self.ready if not c.waited_for and c.stalled(now, HUNG_AFTER)]
        for carrier in hung:
            self.ready.remove(carrier)
            self.parked.append(carrier)
        while len(self.parked) > self.max_connections:
            oldest = self.parked.pop(0)
            if oldest.connection is not None:
                oldest.connection.abort()
        return bool(hung) and sum(carrier.alive for carrier in self.ready) < self.max_connections

    def unpark(self, carrier: Carrier) -> None:
        """A parked connection answered everything: it may serve again, where there is room."""
        if len(self.ready) < self.max_connections:
            self.parked.remove(carrier)
            self.ready.append(carrier)

    def _check_idle(self, carrier: Carrier) -> None:
        connection = carrier.connection
        if connection is None or connection.closed:
            return
        pool = self._pool
        now = pool.time()
        idle_at = carrier.used_at + self.idle_timeout
        if now >= idle_at and not carrier.unanswered and not pool.jobs.owed_to(carrier.origins):
            connection.close()
        else:
            again = max(idle_at, now + self.idle_timeout / 4)
            carrier.idle_check = pool.deadlines.add(again, functools.partial(self._check_idle, carrier))

    def lost(self, carrier: Carrier, error: EslError, reason: CloseReason) -> None:
        """A connection ended; jobs that FreeSWITCH took on it wait for another one."""
        for carriers in (self.ready, self.parked):
            if carrier in carriers:
                carriers.remove(carrier)
        if carrier.idle_check is not None:
            carrier.idle_check.cancel()  # it would keep the connection until then
        now = self._pool.time()
        if reason is not CloseReason.LOCAL:
            if now - carrier.born_at >= _YOUNG:
                self._backoff.reset()
            else:
                # No storm of connections; but only those that never answered mean that there is no hope.
                self.retry_at = max(self.retry_at, now + self._backoff.delay(reason))
                if not carrier.fruitful:
                    self._was_in_vain(error, sure=reason is CloseReason.SHUTDOWN)
        if self.unwanted is None:
            self._pool.jobs.orphan(carrier.origins)
            self.place_orphans()

    async def close(self, reason: EslError) -> None:
        """End all; each connection has a second to close its socket."""
        self.unwanted = reason
        self.reached = False
        if self._retry is not None:
            self._retry.cancel()
        if self.connecting is not None:
            self.connecting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self.connecting
            self.connecting = None
        connections = [c.connection for c in (*self.ready, *self.parked) if c.connection is not None]
        for connection in connections:
            connection.close()
        for connection in connections:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await connection.wait_closed()

    # --- jobs of lost connections --------------------------------------------------------------------------------

    def place_orphans(self) -> None:
        """Have the results of lost connections' jobs sent to a living one."""
        pool = self._pool
        if not pool.jobs.orphans or self.unwanted is not None:
            return
        now = pool.time()
        for need in (Need.JOBS, Need.EXECUTES):
            for origin in pool.jobs.waiting_orphans(need):
                adopter = next((c for c in self.ready if c.serves(need) and c.alive), None)
                if adopter is None:
                    self.provide(need, now)
                    break
                adopter.adopt(origin)
                pool.jobs.adopted(origin)
        if pool.jobs.orphans and not self.ready and self.connecting is None:
            self._wake_later()  # nobody submits, perhaps

    def _wake_later(self) -> None:
        if self._retry is None:
            when = max(self.retry_at, self._pool.time() + _SLOW_AFTER)
            self._retry = asyncio.get_running_loop().call_at(when, self._wake)

    def _wake(self) -> None:
        self._retry = None
        self.place_orphans()
        self._pool.advance(self._pool.time())
        if self._knocked and not self.ready:
            self.grow(self._pool.time())

    def release_adopted(self) -> None:
        """Drop the filters of lost connections whose jobs are all over."""
        for carrier in self.ready:
            if carrier.adopted:
                for origin in [o for o in carrier.adopted if not self._pool.jobs.owed_to((o,))]:
                    carrier.release(origin)
