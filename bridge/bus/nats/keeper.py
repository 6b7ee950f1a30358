"""Keeps one link up for ever: servers in turn, back-off with jitter, listeners attached again. Never publishes."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
from collections.abc import Callable

from bridge.bus.base import BusState
from bridge.bus.nats.address import NatsAddress, NatsFiles, NatsServer
from bridge.bus.nats.link import NatsLink
from bridge.bus.nats.listener import Listener
from bridge.errors import BusError, BusRefused, BusUnavailable

CONNECT_TIMEOUT = 5.0
"""Seconds for one attempt at one server in the background."""
BACKOFF_FIRST, BACKOFF_MOST = 0.1, 5.0
"""Seconds between rounds over the servers: doubled each time, times a random factor of 0.5 to 1."""
MAX_DISCOVERED = 8
LEAVE_WITHIN, LEAVE_TIMEOUT = 3.0, 2.0
"""Seconds within which a server that ends is left (it waits 10 s by default), and that its last word is waited for."""
BACKOFF_REFUSED = 30.0
"""Seconds after the server refused us: it will not change its mind at once, and may lock us out."""

# The server says it of each message, in front of the PONG behind them; nats-py makes it lower case.
_DENIED = re.compile(r'permissions violation for publish to "(.+)"')
# A server whose configuration changed ends subscriptions that it had granted, and names their numbers.
_TAKEN_AWAY = re.compile(r'permissions violation for subscription to "([^"]+)".* \(sid "')
_TELL_AFTER = 0.1  # s; a changed configuration takes several away, one by one


class LinkKeeper:
    """The link while there is one, and the listeners that each new link gets."""

    def __init__(self, address: NatsAddress, files: NatsFiles, name: str, rng: random.Random | None = None) -> None:
        self.link: NatsLink | None = None
        self.state = BusState(False, "not connected yet")
        self.on_state: Callable[[BusState], None] = lambda _state: None
        self.on_up: Callable[[NatsLink], None] = lambda _link: None
        self.on_lost: Callable[[], None] = lambda: None
        self.on_confirmed: Callable[[int], None] = lambda _number: None
        self.on_denied: Callable[[str], None] = lambda _subject: None
        self._address = address
        self._files = files
        self._name = name
        self._rng = rng or random.Random()
        self._listeners: list[Listener] = []
        self._servers = list(address.servers)
        self._rng.shuffle(self._servers)
        self._discovered: list[NatsServer] = []
        self._task: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._last_error: BusError | None = None
        self._told: set[str] = set()
        self._leaving: asyncio.Task[None] | None = None
        self._telling: asyncio.TimerHandle | None = None

    # --- the caller's side -----------------------------------------------------------------------

    async def connect(self, timeout: float) -> None:
        """Connect once and then stay connected. Raises ``BusUnavailable`` or ``BusRefused``."""
        try:
            async with asyncio.timeout(timeout):
                if self._task is None:
                    await self._round(timeout)
                    self.start()
                while self.link is None:
                    self._changed.clear()
                    await self._changed.wait()
                    if isinstance(self._last_error, BusRefused) and self.link is None:
                        raise self._last_error
        except TimeoutError:
            raise self._last_error or BusUnavailable(f"{self._address.redacted}: no answer in time") from None

    def start(self) -> None:
        """Connect in the background and stay connected."""
        if self._task is None:
            self._task = asyncio.create_task(self._keep(), name="nats-link")

    async def wanted(self, timeout: float) -> None:
        """Have a link, from the first call on. Raises ``BusUnavailable`` when there is none within ``timeout`` s."""
        if self.link is None:
            self.start()
            try:
                await self.connect(timeout)
            except BusRefused as error:  # the link that was there before it is the one to tell this
                raise BusUnavailable(str(error)) from None

    async def stop(self) -> None:
        """Disconnect and stay so."""
        if self._leaving is not None:
            self._leaving.cancel()
            await asyncio.wait([self._leaving])
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        link, self.link = self.link, None
        if link is not None:
            await link.close()
        if self.state.connected:
            self._tell(BusState(False, "closed"))

    def current(self) -> NatsLink:
        """The link. Raises ``BusUnavailable`` when there is none."""
        if self.link is None:
            raise BusUnavailable(f"not connected to NATS ({self.state.reason})")
        return self.link

    async def add(self, listener: Listener) -> None:
        """Attach now, or as soon as there is a link; returns when the server knows it.

        Raises ``BusRefused`` when there is a link and the server denies it, ``ValueError`` for a bad subject.
        """
        self._listeners.append(listener)
        link = self.link
        if link is None:
            return
        try:
            await listener.attach(link)
            await link.confirm()
            listener.check()
        except BusUnavailable:
            return  # the next link gets it
        except BaseException:
            self.remove(listener)
            raise

    async def add_quietly(self, listener: Listener) -> None:
        """Attach without waiting for the server, and without minding a refusal."""
        listener.optional = True
        self._listeners.append(listener)
        if self.link is not None:
            with contextlib.suppress(BusError):
                await listener.attach(self.link)

    def remove(self, listener: Listener) -> None:
        """Attach it no more; what is attached stays the caller's."""
        with contextlib.suppress(ValueError):
            self._listeners.remove(listener)

    async def max_payload(self) -> int:
        """The server's ``max_payload`` of now: a reload changes it, and only new connections are told.

        Raises ``BusUnavailable`` and ``BusRefused``.
        """
        link = NatsLink(self.current().server)
        await link.open(self._name, self._files, self._address.tls, CONNECT_TIMEOUT)
        try:
            return link.wire.limit
        finally:
            await link.close()

    # --- keeping ---------------------------------------------------------------------------------

    async def _keep(self) -> None:
        delay = BACKOFF_FIRST
        while True:
            if self.link is not None:
                await self._stay(self.link)
                # All clients of a restarted server come back at once otherwise.
                delay = self._rng.uniform(0.01, BACKOFF_FIRST)
                await asyncio.sleep(delay)
            try:
                await self._round(CONNECT_TIMEOUT)
            except BusError as error:
                self._tell(BusState(False, str(error)))
                pause = BACKOFF_REFUSED if isinstance(error, BusRefused) else delay
                await asyncio.sleep(pause * self._rng.uniform(0.5, 1.0))
                delay = min(delay * 2, BACKOFF_MOST)
            except Exception as error:  # a fault of ours or of the driver must not end the trying
                _report(error, "connecting to NATS failed unexpectedly")
                self._tell(BusState(False, f"unexpected: {type(error).__name__}"))
                await asyncio.sleep(BACKOFF_MOST)

    async def _stay(self, link: NatsLink) -> None:
        """Return when the link is lost; meanwhile refused listeners are tried again now and then."""
        while link.alive:
            self._changed.clear()
            refused = any(listener.refusal for listener in self._listeners)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(BACKOFF_REFUSED if refused else None):
                    await self._changed.wait()
                    continue
            await self._retry_refused(link)

    async def _round(self, timeout: float) -> None:
        """Try each server once; raises the error of a refusal, else of the last one."""
        failure: BusError | None = None
        for server in list(self._servers):
            try:
                await self._establish(server, timeout)
            except BusError as error:
                # Next time another server is first.
                self._servers.append(self._servers.pop(0))
                if not isinstance(failure, BusRefused):
                    failure = error
                self._last_error = failure
            else:
                return
        for server in self._discovered:
            # What a cluster told of may not be reachable from here, so its errors say nothing.
            with contextlib.suppress(BusError):
                await self._establish(server, timeout)
                return
        assert failure is not None
        self._changed.set()
        raise failure

    async def _establish(self, server: NatsServer, timeout: float) -> None:
        link = NatsLink(server)
        await link.open(self._name, self._files, self._address.tls, timeout)
        link.on_confirmed = self.on_confirmed
        link.on_violation = self._violated
        try:
            await self._attach_all(link)
        except BaseException:
            await link.close()
            raise
        link.on_lost = self._lost
        link.on_lame_duck = lambda: self._leave_soon(link)
        if not link.alive:
            raise BusUnavailable(f"{server.address}: the connection broke at once")
        self.link = link
        self._last_error = None
        self._told.clear()
        self._tell_refusals()
        self._changed.set()
        self.on_up(link)

    async def _attach_all(self, link: NatsLink) -> None:
        """Attach every listener, also those that are added meanwhile; a refused one does not hold up the others."""
        while waiting := [listener for listener in self._listeners if listener.link is not link]:
            for listener in waiting:
                with contextlib.suppress(BusRefused, ValueError):
                    await listener.attach(link)
            await link.confirm()
            for listener in waiting:
                with contextlib.suppress(BusRefused):
                    listener.check()

    async def _retry_refused(self, link: NatsLink) -> None:
        for listener in [listener for listener in self._listeners if listener.refusal]:
            link.violations.clear()
            with contextlib.suppress(BusError, ValueError):
                await listener.attach(link)
                await link.confirm()
                listener.check()
        if link.alive:
            self._tell_refusals()

    def _leave_soon(self, link: NatsLink) -> None:
        """The server will close all connections (lame duck mode): go to another one before, where there is one.

        Not all at once: every client of that server hears it now.
        """
        if self._leaving is None and (len(self._servers) > 1 or link.discovered()):
            self._leaving = asyncio.create_task(self._leave(link), name="nats lame duck")

    async def _leave(self, link: NatsLink) -> None:
        """Write nothing more, have all confirmed that was written, then go: nothing of it is in doubt."""
        reason = f"{link.server.address} is in lame duck mode"
        try:
            await asyncio.sleep(self._rng.uniform(0.0, LEAVE_WITHIN))
            if self.link is not link:
                return
            self._learn_servers(link)
            self.link = None
            self._tell(BusState(False, reason))
            for listener in self._listeners:
                if listener.queue and listener.handle is not None:
                    link.wire.unsubscribe(listener.handle)  # what is on its way to us still arrives
            with contextlib.suppress(BusError, TimeoutError):
                async with asyncio.timeout(LEAVE_TIMEOUT):
                    await link.confirm()
        finally:
            self._leaving = None
            if self.link is not link:
                link.lose(reason)  # also when we are stopped meanwhile

    def _learn_servers(self, link: NatsLink) -> None:
        if not self._address.tls:  # certificates are for the names in the URL
            known = {server.address for server in self._servers}
            self._discovered = [it for it in link.discovered() if it.address not in known][:MAX_DISCOVERED]

    def _lost(self, reason: str) -> None:
        if self.link is not None:
            self._learn_servers(self.link)
        self.link = None
        self._changed.set()
        for listener in self._listeners:
            listener.handle = None
        try:
            self.on_lost()
        except Exception as error:
            _report(error, "on_broken failed")
        self._tell(BusState(False, reason))

    def _violated(self, text: str) -> None:
        """A denied publish is told once a link, and counted; a denied subscription is told by its listener.

        One that was taken away is tried again until it is given back, as those that were denied are.
        """
        if found := _DENIED.search(text):
            self.on_denied(found[1])
        elif found := _TAKEN_AWAY.search(text):
            self._taken_away(found[1], text)
        if self.link is not None and "subscription" not in text and text not in self._told and len(self._told) < 100:
            self._told.add(text)
            self._tell(BusState(True, text))

    def _tell_refusals(self) -> None:
        reasons = [listener.refusal for listener in self._listeners if listener.refusal]
        self._tell(BusState(True, "; ".join(reasons)))

    def _taken_away(self, subject: str, text: str) -> None:
        for listener in self._listeners:
            if listener.handle is not None and listener.subject.lower() == subject:
                listener.refuse(text)
                listener.optional = False
        if self._telling is None:
            self._telling = asyncio.get_running_loop().call_later(_TELL_AFTER, self._told_what_is_gone)

    def _told_what_is_gone(self) -> None:
        self._telling = None
        if self.link is not None:
            self._changed.set()
            self._tell_refusals()

    def _tell(self, state: BusState) -> None:
        if state != self.state:
            self.state = state
            try:
                self.on_state(state)
            except Exception as error:
                _report(error, "on_state failed")


def _report(error: Exception, text: str) -> None:
    asyncio.get_running_loop().call_exception_handler({"message": text, "exception": error})
