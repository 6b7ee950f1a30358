"""One connection to one NATS server: opened, confirmed by PING and PONG, watched, lost once. Never reconnects."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import nats.errors
from nats.aio.client import Client

from bridge.bus.base import Message
from bridge.bus.nats.address import NatsFiles, NatsServer
from bridge.bus.nats.direct import cut, speaks_tls
from bridge.bus.nats.wire import Wire, wire_for
from bridge.errors import BusError, BusRefused, BusUnavailable

CONFIRM_DELAY = 0.01
"""Seconds after which written bytes are confirmed when few follow."""
CONFIRM_BYTES = 128 * 1024
"""Written bytes after which a confirmation is asked for at once."""
PING_INTERVAL = 10.0
"""Seconds between signs of life; a link without one for twice as long is lost."""

_REFUSALS = ("authoriz", "authent", "credential", "nkey", "jwt", "permission", "secure connection", "account")


def refused(text: str) -> bool:
    """Whether an error text of server or driver is about our rights and not about the moment."""
    text = text.lower()
    return any(word in text for word in _REFUSALS) and "maximum" not in text


class NatsLink:
    """One connection. ``on_lost`` is called once, unless it was closed by ``close``."""

    def __init__(self, server: NatsServer) -> None:
        self.server = server
        self.wire: Wire
        self.on_lost: Callable[[str], None] = lambda _reason: None
        self.on_confirmed: Callable[[int], None] = lambda _number: None
        self.on_violation: Callable[[str], None] = lambda _text: None
        self.on_lame_duck: Callable[[], None] = lambda: None
        self.alive = False
        self.violations: list[str] = []
        self._client = Client()
        self._closing: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._faults: list[Exception] = []
        self._written = 0
        self._pinged = 0
        self._acknowledged = 0
        self._number = 0
        self._pings: deque[float] = deque()
        self._ponged = 0.0
        self._next: asyncio.Future[None] | None = None
        self._waiting: set[asyncio.Future[None]] = set()
        self._room: set[asyncio.Future[None]] = set()
        self._confirm_timer: asyncio.TimerHandle | None = None
        self._life_timer: asyncio.TimerHandle | None = None

    # --- opening ---------------------------------------------------------------------------------

    async def open(self, name: str, files: NatsFiles, tls: bool, timeout: float) -> None:
        """Connect within ``timeout`` seconds. Raises ``BusUnavailable`` or ``BusRefused``."""
        files.check()
        try:
            async with asyncio.timeout(timeout):
                await self._client.connect(**self._options(name, files, tls, timeout))
            if not self._client.is_connected:
                raise BusUnavailable("no PONG from the server")
            self.wire = wire_for(self._client)
            if tls and not speaks_tls(self._client):
                raise BusRefused("the server does not speak TLS")
        except BaseException as error:
            self._faults.append(error) if isinstance(error, Exception) else None
            await self._discard()
            if not isinstance(error, Exception):
                raise
            raise self._verdict() from None
        self.alive = True
        self.wire.watch(self._lose)
        self._life_timer = self._loop.call_later(PING_INTERVAL, self._check_life)

    @property
    def servers(self) -> int | None:
        """How many servers there are, as far as this one tells: 1 where it stands alone."""
        told = self._client._server_info
        if not told.get("cluster"):
            return 1
        return len(told.get("connect_urls") or ()) or None

    def _options(self, name: str, files: NatsFiles, tls: bool, timeout: float) -> dict[str, Any]:
        options: dict[str, Any] = {
            "servers": [self.server.address],
            "name": name or None,
            # A broken client is thrown away with all that it had pending: nothing of it is ever sent later.
            "allow_reconnect": False,
            "max_reconnect_attempts": 1,
            "reconnect_time_wait": 0,
            "connect_timeout": timeout,
            "error_cb": self._on_error,
            "closed_cb": self._on_closed,
            "lame_duck_mode_cb": self._on_lame_duck,
        }
        if tls or files.tls_ca or files.tls_cert:
            options["tls"] = files.tls_context()
        if files.credentials:
            options["user_credentials"] = files.credentials
        elif files.nkey:
            options["nkeys_seed"] = files.nkey
        elif self.server.token:
            options["token"] = (lambda: self._secret(self.server.token)) if tls else self.server.token
        elif self.server.user:
            options["user"] = self.server.user
            options["password"] = (lambda: self._secret(self.server.password)) if tls else self.server.password
        return options

    def _secret(self, text: str) -> str:
        """Asked for by the driver when it logs in: nothing secret leaves unencrypted where TLS was asked for."""
        if not speaks_tls(self._client):
            raise nats.errors.Error("credentials withheld: the server does not speak TLS")
        return text

    def _verdict(self) -> BusError:
        """What the collected faults mean, in words without secrets."""
        faults = [fault for fault in self._faults if not isinstance(fault, nats.errors.NoServersError)]
        for fault in faults:
            text = str(fault).removeprefix("nats: ").strip("'") or type(fault).__name__
            if isinstance(fault, BusRefused | ssl.SSLCertVerificationError) or refused(text):
                return BusRefused(f"{self.server.address}: {text}")
            if type(fault).__module__.startswith("nkeys"):
                return BusRefused(f"{self.server.address}: nkey cannot be used ({text})")
        if not faults or isinstance(faults[-1], TimeoutError):
            return BusUnavailable(f"{self.server.address}: no answer in time")
        return BusUnavailable(f"{self.server.address}: {str(faults[-1]) or type(faults[-1]).__name__}")

    # --- the driver's callbacks --------------------------------------------------------------------

    async def _on_error(self, error: Exception) -> None:
        text = str(error)
        if "permissions violation" in text:
            self.violations.append(text.removeprefix("nats: "))
            del self.violations[:-100]
            self.on_violation(self.violations[-1])
        elif isinstance(error, nats.errors.UnexpectedEOF):
            self._lose("the server closed the connection")
        else:
            self._faults.append(error)
            del self._faults[:-10]

    async def _on_closed(self) -> None:
        self._lose(str(self._client.last_error or "the connection was closed").removeprefix("nats: "))

    async def _on_lame_duck(self) -> None:
        if self.alive:
            self.on_lame_duck()

    # --- writing and confirming ----------------------------------------------------------------------

    @property
    def unconfirmed(self) -> int:
        """Bytes written and not confirmed yet."""
        return self._written - self._acknowledged

    @property
    def position(self) -> int:
        """Bytes written so far."""
        return self._written

    def arrived(self, position: int) -> bool:
        """Whether the server has certainly read all that was written up to there."""
        return self._acknowledged >= position

    def write_batch(self, batch: Sequence[Message], number: int) -> None:
        """Write a batch, and what was gathered before it, in one write; it bears ``number``."""
        self.wire.add_batch(batch)
        self._number = number
        self.write()

    def write(self) -> None:
        """Write what was gathered; its confirmation is asked for now or soon."""
        self._written += self.wire.gathered
        if self._next is not None or self._written - self._pinged >= CONFIRM_BYTES:
            self._ping()
            return
        self.wire.write(None)
        if self._confirm_timer is None and self._written > self._pinged:
            self._confirm_timer = self._loop.call_later(CONFIRM_DELAY, self._confirm_now)

    async def confirm(self) -> None:
        """Return when everything added or written so far has reached the server.

        Raises ``BusUnavailable`` when the link is lost. Callers of one loop turn share one PING.
        """
        if not self.alive:
            raise BusUnavailable("the connection broke")
        if self._next is None:
            self._next = self._loop.create_future()
            self._waiting.add(self._next)
            self._loop.call_soon(self._confirm_waiting)
        await asyncio.shield(self._next)

    def discovered(self) -> list[NatsServer]:
        """Further servers of the cluster that this one told of; the same login holds there."""
        found = [uri.netloc for uri in self._client.discovered_servers]
        return [replace(self.server, address=f"nats://{where}") for where in found]

    async def room(self) -> None:
        """Wait until a confirmation came. Raises ``BusUnavailable`` when the link is lost."""
        if not self.alive:
            raise BusUnavailable("the connection broke")
        future: asyncio.Future[None] = self._loop.create_future()
        self._room.add(future)
        try:
            await future
        finally:
            self._room.discard(future)

    def _confirm_waiting(self) -> None:
        if self._next is not None and self.alive:
            self.write()

    def _confirm_now(self) -> None:
        self._confirm_timer = None
        if self.alive and self._written > self._pinged:
            self._ping()

    def _ping(self) -> None:
        if self._confirm_timer is not None:
            self._confirm_timer.cancel()
            self._confirm_timer = None
        written, number, waiter = self._written, self._number, self._next
        self._next = None
        self._pinged = written
        self._pings.append(self._loop.time())

        def pong() -> None:
            if not self.alive:
                return
            self._pings.popleft()
            self._ponged = self._loop.time()
            self._acknowledged = written
            if number:
                self.on_confirmed(number)
            if waiter is not None:
                self._waiting.discard(waiter)
                if not waiter.done():
                    waiter.set_result(None)
            for future in self._room:
                if not future.done():
                    future.set_result(None)

        self.wire.write(pong)

    def _check_life(self) -> None:
        # What answers late, behind megabytes that trickle, is alive all the same.
        if self._pings and self._loop.time() - max(self._pings[0], self._ponged) > 1.9 * PING_INTERVAL:
            self._lose(f"no sign of life for {2 * PING_INTERVAL:.0f} s")
            return
        if not self._pings:
            self._ping()
        self._life_timer = self._loop.call_later(PING_INTERVAL, self._check_life)

    # --- the end -------------------------------------------------------------------------------------

    def lose(self, reason: str) -> None:
        """Give it up; ``on_lost`` is called as for one that broke."""
        self._lose(reason)

    def _lose(self, reason: str) -> None:
        if not self.alive:
            return
        self._end(reason)
        # Nothing that is now counted as in doubt may still leave.
        self._closing = asyncio.ensure_future(self._discard())
        self.on_lost(reason)

    def _end(self, reason: str) -> None:
        self.alive = False
        for timer in (self._confirm_timer, self._life_timer):
            if timer is not None:
                timer.cancel()
        for future in (*self._waiting, *self._room):
            if not future.done():
                future.set_exception(BusUnavailable(reason))
                future.exception()  # whoever waits gets it; nobody has to
        self._waiting.clear()

    async def _discard(self) -> None:
        if hasattr(self, "wire"):
            self.wire.abort()
        cut(self._client)
        with contextlib.suppress(Exception):
            # Tidying up only; after a failed TLS handshake the driver would wait for ever.
            async with asyncio.timeout(0.5):
                await self._client.close()

    async def close(self) -> None:
        """Disconnect; what was written before is on its way, what is only gathered is not."""
        if self.alive:
            self._end("closed")
            with contextlib.suppress(Exception):
                async with asyncio.timeout(2):
                    await self._client.close()
            self.wire.abort()
            cut(self._client)
        elif self._closing is not None:
            await self._closing
