"""One ESL connection: socket, authentication, gathered writes, and what was read handed to its owner.

This room never reconnects, never waits for its owner, and knows neither subscriptions nor deadlines of commands.
"""

from __future__ import annotations

import asyncio
import fcntl
import ssl
import termios
from collections.abc import Callable
from dataclasses import replace
from typing import Final, Protocol, cast
from weakref import WeakKeyDictionary

from bridge.errors import ConnectionLost, ConnectTimeout, EslError
from bridge.esl import commands
from bridge.esl import protocol as esl
from bridge.esl.pending import PendingReply
from bridge.esl.url import EslUrl
from bridge.switch.dialing import dial

EVENT_BUFFER: Final = 512 * 1024
"""Bytes read at once from an event connection."""

COMMAND_BUFFER: Final = 64 * 1024
"""The same for a command connection, which reads replies and few events."""

MAX_SKIPPED: Final = 128 * 1024 * 1024
"""Bytes of an output or an event above which the peer is not believed; up to them what is too large to be kept is
read and dropped, so that it costs no other command and no other event."""

_buffers: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[int, memoryview]] = WeakKeyDictionary()
_GOODBYE_PATIENCE = 2.0  # s between FreeSWITCH's disconnect notice and our closing, if it does not


class ConnectionOwner(Protocol):
    """Who uses a connection. Called on the loop, must not block; what it raises is reported and goes no further."""

    def occurred(self, connection: Connection, occurrences: list[esl.Occurrence]) -> None:
        """What one read brought, in wire order; never the authentication, never the end."""

    def closed(self, connection: Connection, closed: esl.Closed) -> None:
        """The end, told once; ``closed.lost`` are the commands that will never be answered."""


class _Nobody:
    """Who owns a connection that has ended."""

    def occurred(self, connection: Connection, occurrences: list[esl.Occurrence]) -> None:
        """Nothing occurs any more."""

    def closed(self, connection: Connection, closed: esl.Closed) -> None:
        """It is closed already."""


_NOBODY: Final = _Nobody()


def _no_pause(size: int) -> float:
    return 0.0


def _shared_buffer(loop: asyncio.AbstractEventLoop, size: int) -> memoryview:
    """The read buffer of all connections of a loop: it is filled and emptied within one callback of the loop."""
    buffers = _buffers.setdefault(loop, {})
    if size not in buffers:
        buffers[size] = memoryview(bytearray(size))
    return buffers[size]


class Connection(asyncio.BufferedProtocol):
    """One authenticated connection to FreeSWITCH, made by ``open``."""

    def __init__(
        self,
        url: EslUrl,
        owner: ConnectionOwner,
        *,
        buffer_size: int,
        protocol: esl.Protocol,
        pause: Callable[[int], float],
    ) -> None:
        self.url = url
        self.writable = True
        """False while the peer does not read what we wrote."""
        self._owner = owner
        self._protocol = protocol
        self._pause = pause
        self._loop = asyncio.get_running_loop()
        self._buffer = _shared_buffer(self._loop, buffer_size)
        # Of TLS no read brings more than 256 KiB, whatever waits.
        self._much = buffer_size // 4
        self.read_at = self._loop.time()
        """When anything was last read (loop time, s)."""
        self._transport: asyncio.Transport | None = None
        self._authenticated: asyncio.Future[None] = self._loop.create_future()
        self._greeted = False
        self._ready = False
        self._closed: esl.Closed | None = None
        self._flush_due = False
        self._on_flushed: list[Callable[[], None]] = []
        self._goodbye: asyncio.TimerHandle | None = None
        self._gone: asyncio.Future[None] = self._loop.create_future()

    @classmethod
    async def open(
        cls,
        url: EslUrl,
        owner: ConnectionOwner,
        *,
        timeout: float,
        tls: ssl.SSLContext | None = None,
        buffer_size: int = EVENT_BUFFER,
        max_pending: int | None = None,
        pause: Callable[[int], float] = _no_pause,
    ) -> Connection:
        """Connect and authenticate within ``timeout`` s.

        ``pause`` says for how many s a read of much (over a quarter of the buffer; its bytes) shall be the last.
        Raises NotConnected, ConnectTimeout, AccessDenied, AuthenticationFailed, ConnectionLost or ProtocolError.
        """
        protocol = (
            esl.Protocol(max_skipped=MAX_SKIPPED)
            if max_pending is None
            else esl.Protocol(max_skipped=MAX_SKIPPED, max_pending=max_pending)
        )
        self = cls(url, owner, buffer_size=buffer_size, protocol=protocol, pause=pause)
        try:
            async with asyncio.timeout(timeout):
                await dial(url, lambda: self, tls)
                await self._authenticated
        except TimeoutError:
            why = self._why_late(timeout)  # before the end: then nobody knows any more what was waited for
            self.abort()
            del self
            raise ConnectTimeout(why) from None
        except BaseException:
            self.abort()
            # What is raised holds this frame and is held by the connection: together they would wait for the collector.
            del self
            raise
        return self

    # --- use -------------------------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether it has ended; nothing can be sent any more."""
        return self._closed is not None

    @property
    def ready(self) -> bool:
        """Whether it is authenticated and neither side ends it."""
        return self._ready and self._protocol.state is esl.State.READY

    @property
    def unread(self) -> bool:
        """Whether bytes wait in the socket; True too where it cannot be asked."""
        sock = self._transport.get_extra_info("socket") if self._transport is not None else None
        if sock is None or sock.fileno() < 0:
            return False
        try:
            return any(fcntl.ioctl(sock.fileno(), termios.FIONREAD, bytes(4)))
        except OSError:
            return True

    def send(self, command: bytes, token: object, on_written: Callable[[], None] | None = None) -> PendingReply:
        """Queue a rendered command; all that is queued until the end of the loop's next turn leaves in one write.

        Its reply comes to the owner as ``ReplyReceived`` with the PendingReply returned here.
        ``on_written`` is called when it was handed to the socket.
        """
        pending = self._protocol.send(command, token)
        if on_written is not None:
            self._on_flushed.append(on_written)
        if not self._flush_due:
            self._flush_due = True
            # What other sockets have ready by then goes along, for one look at them and no waiting.
            self._loop.call_soon(self._loop.call_soon, self._flush)
        return pending

    def abandon(self, pending: PendingReply) -> None:
        """Nobody waits for this reply any more; its slot stays until the late reply came."""
        self._protocol.abandon(pending)

    def abort(self, error: EslError | None = None) -> None:
        """End it now; the owner is told of the lost commands before this returns (nothing when it ended before)."""
        if self._closed is None:
            self._finish(self._protocol.close(error=error))
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        """End it politely: what is written leaves first. The owner is told before this returns."""
        self._flush()
        if self._closed is None:
            self._finish(self._protocol.close())
        if self._transport is not None:
            self._transport.close()

    async def wait_closed(self) -> None:
        """Return when the socket is closed."""
        if self._transport is not None:
            await asyncio.shield(self._gone)

    # --- asyncio's side ----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport; a connection that was given up meanwhile is ended."""
        self._transport = cast("asyncio.Transport", transport)
        if self._closed is not None:
            self._transport.abort()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Lend the loop's buffer; what is kept of it is copied before ``buffer_updated`` returns."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Parse what was read and hand it over."""
        self.read_at = self._loop.time()
        if nbytes > self._much and self._transport is not None:
            # uvloop would read on, up to 32 times, before anybody else has a turn: the bus, the disk, the timers.
            self._transport.pause_reading()
            if self._closed is None:
                self._handle(self._protocol.receive_data(self._buffer[:nbytes]))
            pause = self._pause(nbytes)
            if pause > 0:
                self._loop.call_later(pause, self._read_on)
            else:
                self._loop.call_soon(self._read_on)
        elif self._closed is None:
            self._handle(self._protocol.receive_data(self._buffer[:nbytes]))

    def _read_on(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def eof_received(self) -> bool:
        """FreeSWITCH closed: so do we."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the owner, unless it knows."""
        if self._goodbye is not None:
            self._goodbye.cancel()
        if not self._gone.done():
            self._gone.set_result(None)
        if self._closed is None:
            self._finish(self._protocol.receive_eof(), exc)

    def pause_writing(self) -> None:
        """The peer does not read; the owner should choose another connection."""
        self.writable = False

    def resume_writing(self) -> None:
        """The peer reads again."""
        if self.ready:
            self.writable = True
            self._tell([])

    # --- inside ------------------------------------------------------------------------------------------------

    def _flush(self) -> None:
        self._flush_due = False
        data = self._protocol.data_to_send()
        if data and self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)
        if self._on_flushed:
            told, self._on_flushed = self._on_flushed, []
            for callback in told:
                try:
                    callback()
                except Exception as error:
                    self._report("on_written failed", error)

    def _handle(self, occurrences: list[esl.Occurrence]) -> None:
        if not occurrences:
            return
        last = occurrences[-1]
        closed: esl.Closed | None = None
        if type(last) is esl.Closed:
            closed = last
            self.writable = False  # before the owner hears of what came first, and would send more
            del occurrences[-1]
        if not self._ready:
            occurrences = self._authenticate(occurrences)
            if closed is None and not self._ready and self._protocol.state is esl.State.CLOSING:
                closed = cast("esl.Closed", self._protocol.receive_eof()[-1])  # a goodbye before we were let in
        if occurrences:
            if self._protocol.state is esl.State.CLOSING and self._goodbye is None:
                # FreeSWITCH said goodbye: events may still come, commands can not be sent any more.
                self.writable = False
                self._goodbye = self._loop.call_later(_GOODBYE_PATIENCE, self._stop_waiting)
            self._tell(occurrences)
        if closed is not None and self._closed is None:
            self._finish([closed])
            if self._transport is not None:
                self._transport.abort()

    def _authenticate(self, occurrences: list[esl.Occurrence]) -> list[esl.Occurrence]:
        """Answer the greeting; returns what came behind the answer to our password."""
        for index, one in enumerate(occurrences):
            if type(one) is esl.AuthRequested:
                self._greeted = True
                if self._protocol.state is not esl.State.AUTHENTICATING:
                    continue  # a goodbye came behind the greeting
                url = self.url
                secret = commands.userauth(url.username, url.password) if url.username else commands.auth(url.password)
                self._protocol.send(secret, None)
                self._flush()
            elif type(one) is esl.ReplyReceived and one.reply.status == "ok":
                self._ready = True
                if not self._authenticated.done():
                    self._authenticated.set_result(None)
                return occurrences[index + 1 :]
        return []

    def _tell(self, occurrences: list[esl.Occurrence]) -> None:
        try:
            self._owner.occurred(self, occurrences)
        except Exception as error:
            self._report("the owner of a connection failed", error)

    def _finish(self, ending: list[esl.Occurrence], broken: Exception | None = None) -> None:
        closed = ending[-1] if ending else None
        if type(closed) is not esl.Closed:
            return
        if broken is not None and closed.reason is esl.CloseReason.EOF:
            closed = replace(closed, error=ConnectionLost(f"{self.url.redacted}: {broken}"))
        self._closed = closed
        self.writable = False
        self._on_flushed.clear()
        was_ready, self._ready = self._ready, False
        if not self._authenticated.done():
            self._authenticated.set_exception(closed.error)
            self._authenticated.exception()  # marked as seen: open() may have given up already
        if was_ready:
            try:
                self._owner.closed(self, closed)
            except Exception as error:
                self._report("the owner of a connection failed", error)
        self._owner = _NOBODY  # who has a connection holds it, too

    def _stop_waiting(self) -> None:
        if self._closed is None:
            self._finish(self._protocol.receive_eof())
            if self._transport is not None:
                self._transport.abort()

    def _why_late(self, timeout: float) -> str:
        where = f"{self.url.redacted}: no authenticated connection within {timeout:g} s"
        if self._transport is None:
            return f"{where} (not even connected)"
        if not self._greeted:
            return f"{where} (connected, but no greeting: is this an Event Socket?)"
        if self._protocol.hint:
            return f"{where}: {self._protocol.hint}"
        if self.url.username:
            return (
                f"{where} (userauth is unanswered: the user's allow-list may be too long, FreeSWITCH cuts that reply "
                "at 511 bytes)"
            )
        return f"{where} (auth is unanswered)"

    def _report(self, what: str, error: Exception) -> None:
        self._loop.call_exception_handler({"message": f"{self.url.redacted}: {what}", "exception": error})
