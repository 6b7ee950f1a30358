"""A supervised connection: it connects, watches, breaks off, and connects again, for ever.

This room never repeats a command: what was in doubt when the connection broke is told to who wrote it.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress

from bridge.bus.redis.wire import PING, Reply, ReplyError, Wire
from bridge.errors import BusRefused, BusUnavailable

Done = Callable[[list[Reply], Exception | None], None]


class Operation:
    """Commands written together, and what to do with their replies.

    ``done`` gets all replies; or those that came and the error that broke the connection, and then ``written``
    says whether the rest is in doubt. ``patience`` (seconds) is how long the server may take by right (a blocking
    read), beyond the silence that the link allows. An operation that ``waits`` stays with its writer while the broker
    is away.
    """

    __slots__ = ("commands", "count", "done", "got", "key", "moves", "patience", "prepare", "since", "waits", "written")

    def __init__(
        self,
        commands: bytes,
        count: int,
        done: Done,
        *,
        key: bytes = b"",
        patience: float = 0.0,
        waits: bool = False,
    ) -> None:
        self.commands = commands
        self.count = count
        self.done = done
        self.key = key
        self.patience = patience
        self.waits = waits
        self.got: list[Reply] = []
        self.written = False
        self.since = 0.0
        self.moves = 0
        self.prepare: Callable[[], None] | None = None  # called before it is written, to fill in what was gathered


def ignore(replies: list[Reply], error: Exception | None) -> None:
    """A ``done`` for replies that nobody needs."""


class Backoff:
    """Growing waits with jitter, in seconds."""

    def __init__(self, first: float = 0.05, cap: float = 5.0, *, refused: float = 30.0) -> None:
        self._first = first
        self._cap = cap
        self._refused = refused
        self._tries = 0

    def next(self, *, refused: bool = False) -> float:
        """How long to wait now; after a refusal, long."""
        top = self._refused if refused else min(self._cap, self._first * 2.0 ** min(self._tries, 20))
        self._tries += 1
        return random.uniform(top / 2, top)

    def reset(self) -> None:
        """Begin anew after a connection that held."""
        self._tries = 0


class Link:
    """One connection, kept up. Every method belongs to the loop; none but ``writable`` and ``close`` suspends."""

    def __init__(
        self,
        opening: Callable[[], Awaitable[Wire]],
        *,
        pulse: float = 5.0,
        patience: float = 10.0,
        pushes: bool = False,
    ) -> None:
        # With ``pushes`` (pub/sub) replies are not counted, and who listens proves the connection alive.
        self._pushes = pushes
        self._opening = opening
        self.pulse = pulse
        self._patience = patience
        self._backoff = Backoff()
        self._task: asyncio.Task[None] | None = None
        self._wire: Wire | None = None
        self._failed: asyncio.Future[Exception] | None = None
        self._awaiting: deque[Operation] = deque()
        self._out: list[Operation] = []
        self._heard = 0.0
        self._watched = 0.0
        self._errors = False
        self._timer: asyncio.TimerHandle | None = None
        self.reason = "not connected yet"
        self.on_up: Callable[[], None] = lambda: None
        self.on_down: Callable[[Exception], None] = lambda error: None
        self.on_absent: Callable[[Exception], None] = lambda error: None
        self.on_burst: Callable[[list[Reply]], None] = self.take
        self.waits_for_ring = False
        """Nobody tells what changed: questions wait at the server. (See ``Share``.)"""
        self.on_ring: Callable[[], None] = lambda: None
        self.on_reply_error: Callable[[Operation, ReplyError], bool] = lambda operation, error: False

    @property
    def connected(self) -> bool:
        """Whether there is a connection."""
        return self._wire is not None

    @property
    def client_id(self) -> int:
        """The server's number for the connection; 0 where there is none."""
        return self._wire.client_id if self._wire is not None else 0

    @property
    def outstanding(self) -> int:
        """Operations posted or written whose replies have not all come."""
        return len(self._awaiting) + len(self._out)

    def start(self) -> None:
        """Connect in the background and stay connected."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="redis link")

    async def close(self) -> None:
        """Disconnect; what is in doubt is told."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    def post(self, operation: Operation) -> bool:
        """Write at the end of the loop's next turn; False when there is no connection.

        Not of this one: what other sockets have ready by then goes along, for one look at them and no waiting.
        """
        if self._wire is None:
            return False
        if not self._out:
            loop = asyncio.get_running_loop()
            loop.call_soon(loop.call_soon, self._flush)
        self._out.append(operation)
        return True

    def say(self, operation: Operation) -> bool:
        """Write at once, behind what was posted before; False when there is no connection."""
        wire = self._wire
        if wire is None or self._out:
            return self.post(operation)
        self._book(operation, asyncio.get_running_loop().time())
        wire.write(operation.commands)
        return True

    async def writable(self) -> None:
        """Return when the socket has room. Raises ``BusUnavailable`` when there is no connection, or it ends."""
        wire = self._wire
        if wire is not None and wire.is_open:
            await wire.writable()
        if wire is None or wire is not self._wire or not wire.is_open:
            raise BusUnavailable(self.reason or "the connection is closed")

    def fail(self, error: Exception) -> None:
        """Break the connection off because of ``error``; it will be opened again."""
        if self._failed is not None and not self._failed.done():
            self._wire = None
            self._failed.set_result(error)

    # --- the connection's life -----------------------------------------------------------------------

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                wire = await self._opening()
            except Exception as error:  # whatever it is: we go on trying
                self.reason = str(error)
                self.on_absent(error)
                await asyncio.sleep(self._backoff.next(refused=isinstance(error, BusRefused)))
                continue
            opened = loop.time()
            end = await self._serve(wire)
            if loop.time() - opened > self.pulse:
                self._backoff.reset()
            self.on_down(end)
            await asyncio.sleep(self._backoff.next(refused=isinstance(end, BusRefused)))

    async def _serve(self, wire: Wire) -> Exception:
        if not wire.is_open:
            return BusUnavailable("the server closed the connection")
        loop = asyncio.get_running_loop()
        self._failed = failed = loop.create_future()
        self._wire = wire
        self._heard = self._watched = loop.time()
        self.reason = ""
        wire.on_replies = self._burst
        wire.on_lost = self.fail
        if not self._pushes:
            self._timer = loop.call_later(self.pulse, self._watch)
        error: Exception = BusUnavailable("closed")
        try:
            self.on_up()
            error = await failed
        finally:
            self._wire = None
            self._failed = None
            if self._timer is not None:
                self._timer.cancel()
            self.reason = str(error)
            wire.abort(error)
            self._tell(error)
        return error

    def _watch(self) -> None:
        """Prove the connection alive: a PING when it is idle, an end when the server has been silent too long."""
        if self._wire is None:
            return
        loop = asyncio.get_running_loop()
        now = loop.time()
        if now - self._watched > 3 * self.pulse:
            pass  # it was we who stood still: what the server said meanwhile is not read yet
        elif self._awaiting:
            oldest = self._awaiting[0]
            patience = self._patience + oldest.patience
            if now - max(self._heard, oldest.since) > patience:
                self.fail(BusUnavailable(f"the server was silent for {patience:g} s"))
                return
        elif not self._out and now - self._heard >= self.pulse * 0.9:
            self.post(Operation(PING, 1, ignore))
        self._watched = now
        self._timer = loop.call_later(self.pulse, self._watch)

    def _burst(self, replies: list[Reply]) -> None:
        self._heard = asyncio.get_running_loop().time()
        self.on_burst(replies)

    def _flush(self) -> None:
        """Write what this turn of the loop gathered."""
        operations, self._out = self._out, []
        wire = self._wire
        if wire is None:
            self._out = operations  # told when the connection is taken down
            return
        now = asyncio.get_running_loop().time()
        for operation in operations:
            if operation.prepare is not None:
                operation.prepare()
            self._book(operation, now)
        if len(operations) == 1:
            wire.write(operations[0].commands)
        elif operations:
            wire.write(b"".join([operation.commands for operation in operations]))

    def _book(self, operation: Operation, now: float) -> None:
        operation.written = True
        operation.since = now
        if operation.count:
            self._awaiting.append(operation)

    def take(self, burst: list[Reply]) -> None:
        """Give each reply to the oldest operation that waits for one."""
        at, length = 0, len(burst)
        awaiting = self._awaiting
        wire = self._wire
        # Replies are searched for errors only where the server has sent one.
        self._errors = self._errors or wire is None or wire.errors > 0
        while at < length:
            if not awaiting:
                reply = burst[at]
                raise reply if isinstance(reply, Exception) else BusUnavailable("a reply that nothing waits for")
            operation = awaiting[0]
            need = operation.count - len(operation.got)
            part = burst if need == length and not at else burst[at : at + need]
            at += len(part)
            if operation.got:
                operation.got += part
            else:
                operation.got = part
            if len(part) < need:
                return
            awaiting.popleft()
            if self._errors:
                self._settle(operation)
            else:
                operation.done(operation.got, None)
        if not awaiting and wire is not None:
            self._errors = False
            wire.errors = 0

    def _settle(self, operation: Operation) -> None:
        for reply in operation.got:
            if isinstance(reply, ReplyError) and self.on_reply_error(operation, reply):
                return
        operation.done(operation.got, None)

    def _tell(self, error: Exception) -> None:
        """Tell every operation that the connection is gone: in the order in which they were written."""
        operations = [*self._awaiting, *self._out]
        self._awaiting.clear()
        self._out.clear()
        for operation in operations:
            operation.done(operation.got, error)
