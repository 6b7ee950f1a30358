"""Writing to keys: each operation goes to the server that holds its key, and waits while that is away.

This room repeats only what certainly did not run (a redirect, a refused transaction); what is in doubt it tells.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable

from bridge.bus.redis.address import Host
from bridge.bus.redis.link import Link, Operation
from bridge.bus.redis.servers import Servers
from bridge.bus.redis.wire import ELSEWHERE, PING, REFUSALS, Reply, ReplyError
from bridge.errors import BridgeError, BusRefused, BusUnavailable

_MAX_WAITING = 100_000
_MAX_MOVES = 100
_REDIRECTS = frozenset({"MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN"})
_RETRY_AFTER = 0.2  # s; slots that move, a Cluster that elects


class Writers:
    """The writing connections: one, or one for each server of a Cluster that is written to."""

    def __init__(self, servers: Servers, *, pulse: float, patience: float) -> None:
        self._servers = servers
        self._pulse = pulse
        self._patience = patience
        self._links: dict[Host | None, Link] = {}
        self._only: Link | None = None  # where there is one server
        self._waiting: list[Operation] = []
        self._retry: asyncio.TimerHandle | None = None
        self._mapping: asyncio.Task[None] | None = None
        self._started = False
        self._changed = asyncio.Event()
        self.closed = False
        self.reason = ""
        """Why a connection was lost or not to be had, the last time."""
        self.on_change: Callable[[], None] = lambda: None
        self.on_absent: Callable[[Exception], None] = lambda error: None

    def start(self) -> None:
        """Connect in the background."""
        if self._started:
            return
        self._started = True
        if self._servers.many:
            self._learn()
        else:
            self._only = self._link(None)

    async def wanted(self, timeout: float) -> None:
        """Be connected, from the first call on. Raises ``BusUnavailable`` when that takes longer than ``timeout`` s."""
        self.start()
        try:
            async with asyncio.timeout(timeout):
                while not self.connected:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise BusUnavailable("the broker is away") from None

    @property
    def connected(self) -> bool:
        """Whether something can be written. (One master of a Cluster may be away while the others are not.)"""
        return any(link.connected for link in self._links.values())

    @property
    def ready(self) -> bool:
        """Whether every connection that is wanted is there."""
        return bool(self._links) and all(link.connected for link in self._links.values())

    @property
    def outstanding(self) -> int:
        """Operations that are not finished."""
        return len(self._waiting) + sum(link.outstanding for link in self._links.values())

    def together(self, one: bytes, other: bytes) -> bool:
        """Whether two keys can be written in one transaction."""
        return not self._servers.many

    def submit(self, operation: Operation) -> None:
        """Write it at the end of this turn; or later, when it may wait; or tell at once that it cannot be."""
        if self._only is not None:
            if self._only.post(operation):
                return
        else:
            host = self._servers.place(operation.key)
            if host is not None and self._servers.many and self._link(host).post(operation):
                return
        if operation.waits and not self.closed and len(self._waiting) < _MAX_WAITING:
            self._waiting.append(operation)
            if self._servers.many:
                self._later()
        else:
            operation.done([], BusUnavailable("the broker is away"))

    async def ask(self, key: bytes, commands: bytes, count: int) -> list[Reply]:
        """Write commands of one slot and return their replies, errors among them. Raises ``BusUnavailable``."""
        answered: asyncio.Future[list[Reply]] = asyncio.get_running_loop().create_future()

        def done(replies: list[Reply], error: Exception | None) -> None:
            if answered.done():
                return  # nobody waits any more
            if error is not None:
                answered.set_exception(BusUnavailable(str(error)))
            else:
                answered.set_result(replies)

        self.submit(Operation(commands, count, done, key=key))
        return await answered

    async def settle(self, timeout: float) -> None:
        """Wait until nothing is outstanding, at most ``timeout`` seconds."""
        try:
            async with asyncio.timeout(timeout):
                # Replies come in order: behind a PING's, what was written before it is settled.
                while self.outstanding and self.connected:
                    await asyncio.gather(*(self._ping(link) for link in self._links.values()))
        except TimeoutError:
            return

    async def _ping(self, link: Link) -> None:
        answered = asyncio.Event()
        if link.post(Operation(PING, 1, lambda replies, error: answered.set())):
            await answered.wait()

    async def close(self) -> None:
        """Disconnect; what waits is told that it was not written."""
        self.closed = True
        if self._retry is not None:
            self._retry.cancel()
        if self._mapping is not None:
            self._mapping.cancel()
        for link in list(self._links.values()):
            await link.close()
        waiting, self._waiting = self._waiting, []
        for operation in waiting:
            operation.done([], BusUnavailable("closed"))

    # --- connections ---------------------------------------------------------------------------------

    def _link(self, host: Host | None) -> Link:
        link = self._links.get(host)
        if link is None:
            opening = functools.partial(self._servers.open, b"", host)
            link = Link(opening, pulse=self._pulse, patience=self._patience)
            link.on_up = self._up
            link.on_down = functools.partial(self._down, host)
            link.on_absent = functools.partial(self._absent, host)
            link.on_reply_error = functools.partial(self._reply_error, link)
            self._links[host] = link
            link.start()
        return link

    def _up(self) -> None:
        self._changed.set()
        self.on_change()
        self._again()

    def _down(self, host: Host | None, error: Exception) -> None:
        self.reason = str(error)
        self.on_change()
        self._forget(host)

    def _absent(self, host: Host | None, error: Exception) -> None:
        self.reason = str(error)
        self.on_absent(error)
        self._forget(host)

    def _forget(self, host: Host | None) -> None:
        """A Cluster's node that went may be replaced: ask where its keys are now."""
        if self._servers.many and not self.closed:
            self._learn()

    def _learn(self) -> None:
        if self._mapping is None or self._mapping.done():
            self._mapping = asyncio.create_task(self._map())

    async def _map(self) -> None:
        while True:
            try:
                await self._servers.refresh()
            except BridgeError as error:
                self.on_absent(error)
                await asyncio.sleep(2.0 if isinstance(error, BusRefused) else _RETRY_AFTER)
                continue
            break
        # A node that serves nothing any more is let go; what was in doubt there is told.
        hosts = set(self._servers.hosts)
        for host in [host for host in self._links if host is not None and host not in hosts]:
            await self._links.pop(host).close()
        self.on_change()
        for host in hosts:
            self._link(host)
        self._again()

    # --- again ---------------------------------------------------------------------------------------

    def _later(self) -> None:
        if self._retry is None and not self.closed:
            self._retry = asyncio.get_running_loop().call_later(_RETRY_AFTER, self._again)

    def _again(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        waiting, self._waiting = self._waiting, []
        for operation in waiting:
            self.submit(operation)

    def _reply_error(self, link: Link, operation: Operation, error: ReplyError) -> bool:
        """Whether the operation certainly did not run and will be written again."""
        if error.code in _REDIRECTS:
            # An ASK is waited out: the slot is on its way, and then the answer is MOVED.
            if error.code == "MOVED":
                self._learn()
        elif error.code in ELSEWHERE:
            link.fail(BusUnavailable(str(error)))
        else:
            if error.code in REFUSALS and error.code != "NOPERM":
                link.fail(BusRefused(str(error)))  # the password changed under us
            return False
        operation.moves += 1
        if operation.moves > _MAX_MOVES or self.closed:
            return False
        operation.got = []
        operation.written = False
        self._waiting.append(operation)
        self._later()
        return True
