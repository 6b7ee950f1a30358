"""One connection to a Redis server: opened, authenticated, named; written in batches, read in bursts.

This room never reconnects and never repeats anything. It speaks through hiredis and not through redis-py's
connection, which costs 8 us to encode and 2.5 us to confirm a message, and retries by itself.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import hiredis

from bridge.bus.redis.address import Host
from bridge.errors import BusRefused, BusUnavailable, ConfigError

Reply = Any
"""What hiredis makes of a RESP2 reply: bytes, int, None, a list of these, or a ``ReplyError`` (not raised)."""


class ReplyError(Exception):
    """An error that the server replied; ``code`` is its first word (``WRONGTYPE``, ``NOPERM``, ``ERR``)."""

    def __init__(self, text: str) -> None:
        self.code = text.partition(" ")[0]
        super().__init__(text)


REFUSALS = frozenset({"NOAUTH", "WRONGPASS", "NOPERM", "DENIED"})
"""Waiting will not help: credentials or rights are wrong."""
ELSEWHERE = frozenset({"READONLY", "MASTERDOWN", "LOADING"})
"""The server is no longer the one to write to (a failover), or not yet."""


def command(*args: bytes) -> bytes:
    """Encode one command."""
    parts = [b"*%d\r\n" % len(args)]
    parts += [b"$%d\r\n%b\r\n" % (len(arg), arg) for arg in args]
    return b"".join(parts)


MULTI = command(b"MULTI")
EXEC = command(b"EXEC")
PING = command(b"PING")


@dataclass(frozen=True, slots=True)
class WireOptions:
    """How to open a connection: credentials, TLS (files), the name that ``CLIENT LIST`` shows."""

    username: str = ""
    password: str = field(default="", repr=False)
    db: int = 0
    tls: ssl.SSLContext | None = None
    name: str = "esl-bridge"
    connect_timeout: float = 5.0


class Wire(asyncio.Protocol):
    """An open connection. ``client_id`` is the server's number for it (0 where it may not be asked).

    ``on_replies`` gets everything that one socket read brought, ``on_lost`` the reason when the connection ends;
    ``errors`` counts the errors among the replies.
    """

    def __init__(self, host: Host) -> None:
        self.host = host
        self.client_id = 0
        self.on_replies: Callable[[list[Reply]], None] = lambda replies: None
        self.on_lost: Callable[[Exception], None] = lambda error: None
        self._transport: asyncio.WriteTransport | None = None
        self.errors = 0
        self._reader = hiredis.Reader(replyError=self._error, notEnoughData=_NOTHING)
        self._writable: asyncio.Future[None] | None = None

    # --- what asyncio calls ----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is connected."""
        self._transport = cast("asyncio.WriteTransport", transport)

    def data_received(self, data: bytes) -> None:
        """Hand over all replies that are complete."""
        reader = self._reader
        replies: list[Reply] = []
        try:
            reader.feed(data)
            gets = reader.gets
            while (reply := gets()) is not _NOTHING:
                replies.append(reply)
            if replies:
                self.on_replies(replies)
        except (BusUnavailable, BusRefused) as error:
            self.abort(error)
        except (hiredis.HiredisError, ReplyError) as error:
            self.abort(BusUnavailable(f"{self.host}: {error}"))

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection ended."""
        self._end(BusUnavailable(f"{self.host}: {exc or 'the server closed the connection'}"))

    def pause_writing(self) -> None:
        """The socket's buffer is over its high-water mark."""
        if self._writable is None:
            self._writable = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        """There is room again."""
        waiting, self._writable = self._writable, None
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    def _error(self, text: str) -> ReplyError:
        self.errors += 1
        return ReplyError(text)

    # --- what we call ----------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Whether neither side has closed it, as far as is known."""
        return self._transport is not None and not self._transport.is_closing()

    def write(self, data: bytes) -> None:
        """Write; never blocks. What a closed connection does not take is lost as on one that breaks."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    async def writable(self) -> None:
        """Return when the socket's buffer has room; raises ``BusUnavailable`` when the connection ends before."""
        while self._writable is not None:
            await asyncio.shield(self._writable)

    async def ask(self, *commands: bytes) -> list[Reply]:
        """Write commands and return their replies, errors among them; only while nothing else is under way."""
        answered: asyncio.Future[list[Reply]] = asyncio.get_running_loop().create_future()
        got: list[Reply] = []

        def collect(replies: list[Reply]) -> None:
            got.extend(replies)
            if len(got) >= len(commands) and not answered.done():
                answered.set_result(got)

        def lost(error: Exception) -> None:
            if not answered.done():
                # A server that turns us away says why before it closes.
                answered.set_exception(_judged(got[-1], self.host) if got else error)

        before = self.on_replies, self.on_lost
        self.on_replies, self.on_lost = collect, lost
        try:
            if not self.is_open:
                raise BusUnavailable(f"{self.host}: the connection is closed")
            self.write(b"".join(commands))
            return await answered
        finally:
            self.on_replies, self.on_lost = before

    def abort(self, error: Exception) -> None:
        """End the connection because of ``error``."""
        self._end(error)
        if self._transport is not None:
            self._transport.abort()

    def _end(self, error: Exception) -> None:
        waiting, self._writable = self._writable, None
        if waiting is not None and not waiting.done():
            waiting.set_exception(error)
            waiting.exception()  # seen, even where nobody waits
        on_lost, self.on_lost = self.on_lost, lambda error: None
        on_lost(error)


_NOTHING: Any = object()


async def open_wire(host: Host, options: WireOptions) -> Wire:
    """Connect and authenticate. Raises ``BusRefused`` or ``BusUnavailable``."""
    loop = asyncio.get_running_loop()
    wire = Wire(host)
    try:
        async with asyncio.timeout(options.connect_timeout):
            if host.path:
                await loop.create_unix_connection(lambda: wire, host.path)
            else:
                await loop.create_connection(lambda: wire, host.host, host.port, ssl=options.tls)
            await _greet(wire, options)
    except BaseException as error:
        wire.abort(BusUnavailable("closed"))
        if isinstance(error, TimeoutError) and not str(error):
            raise BusUnavailable(f"{host}: no connection in {options.connect_timeout:g} s") from error
        if isinstance(error, ssl.SSLCertVerificationError):
            raise BusRefused(f"{host}: {error.verify_message}") from error
        if isinstance(error, OSError):
            raise BusUnavailable(f"{host}: {error.strerror or error}") from error
        raise
    return wire


async def _greet(wire: Wire, options: WireOptions) -> None:
    """Authenticate, choose the database, give the connection its name: one write."""
    needed: list[bytes] = []
    if options.password or options.username:
        user = [options.username.encode()] if options.username else []
        needed.append(command(b"AUTH", *user, options.password.encode()))
    if options.db:
        needed.append(command(b"SELECT", b"%d" % options.db))
    # Where its own name or number is forbidden, a connection works as well.
    name = "".join(c if "!" <= c <= "~" else "-" for c in options.name).encode()
    wanted = [command(b"CLIENT", b"SETNAME", name), command(b"CLIENT", b"ID"), PING]
    replies = await wire.ask(*needed, *wanted)
    for reply in replies[: len(needed)]:
        if isinstance(reply, ReplyError):
            raise _judged(reply, wire.host, refusal=reply.code not in ELSEWHERE)
    number, pong = replies[-2:]
    if isinstance(pong, ReplyError) and pong.code != "NOPERM":
        raise _judged(pong, wire.host)
    wire.client_id = number if isinstance(number, int) else 0


def _judged(reply: Reply, host: Host, *, refusal: bool = False) -> BusRefused | BusUnavailable:
    if isinstance(reply, ReplyError) and (refusal or reply.code in REFUSALS):
        return BusRefused(f"{host}: {reply}")
    return BusUnavailable(f"{host}: {reply}")


def tls_context(*, ca: str = "", cert: str = "", key: str = "") -> ssl.SSLContext:
    """A context that verifies the server against ``ca`` (a file; the system's own where empty).

    Raises ``ConfigError`` when a file cannot be read or used.
    """
    try:
        context = ssl.create_default_context(cafile=ca or None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError([("bus.tls_ca_file", f"cannot use {ca}: {error.strerror or error}")]) from error
    if cert:
        try:
            context.load_cert_chain(cert, key or None)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError([("bus.tls_cert_file", f"cannot use {cert}: {error.strerror or error}")]) from error
    return context
