"""One connection to a Redis server: opened, authenticated, named; written in batches and read in bursts.

This room never reconnects and never repeats anything.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import hiredis
from redis.asyncio.connection import (
    AbstractConnection,
    Connection,
    DefaultParser,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    MasterDownError,
    NoPermissionError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)

from bridge.bus.redis.address import Host
from bridge.errors import BusRefused, BusUnavailable, ConfigError

Reply = Any
"""What hiredis makes of a RESP2 reply: bytes, int, None, a list of these, or an exception (not raised)."""

_READ_SIZE = 256 * 1024


def command(*args: bytes) -> bytes:
    """Encode one command. (redis-py's ``pack_commands`` costs 8 us for a PUBLISH of 1.5 kB, this 1.2 us.)"""
    parts = [b"*%d\r\n" % len(args)]
    parts += [b"$%d\r\n%b\r\n" % (len(arg), arg) for arg in args]
    return b"".join(parts)


MULTI = command(b"MULTI")
EXEC = command(b"EXEC")
PING = command(b"PING")


@dataclass(frozen=True, slots=True)
class WireOptions:
    """How to open a connection: credentials, TLS, the name that ``CLIENT LIST`` shows."""

    username: str = ""
    password: str = field(default="", repr=False)
    db: int = 0
    tls: bool = False
    ca: str = ""
    cert: str = ""
    key: str = ""
    name: str = "esl-bridge"
    connect_timeout: float = 5.0


class _BurstParser(DefaultParser):  # type: ignore[valid-type,misc]
    """redis-py's own parser, that can also give everything one socket read brought.

    redis-py reads one reply a call (2.5 us); a burst costs 0.2 us a reply. This is the room's only touch of what
    redis-py keeps to itself; where it is not as expected, the public call is used.
    """

    _nothing: object = None

    def on_connect(self, connection: AbstractConnection) -> None:
        super().on_connect(connection)
        reader = getattr(self, "_reader", None)
        # What an empty reader says is its mark for "nothing complete".
        self._nothing = reader.gets() if isinstance(reader, hiredis.Reader) else None

    async def read_burst(self) -> list[Reply]:
        reader, stream = getattr(self, "_reader", None), getattr(self, "_stream", None)
        if not isinstance(reader, hiredis.Reader) or stream is None:
            return [await self.read_response()]
        gets, nothing, replies = reader.gets, self._nothing, []
        while True:
            while (reply := gets()) is not nothing:
                replies.append(reply)
            if replies:
                return replies
            data = await stream.read(_READ_SIZE)
            if not data:
                raise ConnectionResetError("the server closed the connection")
            reader.feed(data)


class Wire:
    """An open connection. ``client_id`` is the server's number for it (0 where it may not be asked)."""

    def __init__(self, connection: AbstractConnection, parser: Any, host: Host) -> None:
        self._connection = connection
        self._parser = parser
        self.host = host
        self.client_id = 0

    @property
    def is_open(self) -> bool:
        """Whether neither side has closed it, as far as is known."""
        return bool(self._connection.is_connected)

    async def send(self, parts: Sequence[bytes]) -> None:
        """Write; all of it is handed to the socket before the first suspension. Raises ``BusUnavailable``.

        Returns when the socket's buffer is below its high-water mark again.
        """
        if not self.is_open:  # or redis-py would connect again by itself
            raise BusUnavailable("the connection is closed")
        try:
            await self._connection.send_packed_command(parts, check_health=False)
        except (RedisError, OSError) as error:
            raise BusUnavailable(describe(error)) from error

    async def burst(self) -> list[Reply]:
        """At least one reply, and all others that are there. Raises ``BusUnavailable`` when the server is gone."""
        try:
            replies: list[Reply] = await self._parser.read_burst()
        except (RedisError, OSError, asyncio.IncompleteReadError) as error:
            raise BusUnavailable(describe(error)) from error
        return replies

    async def ask(self, *args: bytes) -> Reply:
        """One command and its reply, errors returned; only while nothing else is under way."""
        await self._connection.send_packed_command(command(*args), check_health=False)
        try:
            return await self._connection.read_response(disable_decoding=True)
        except ResponseError as error:
            return error

    async def close(self) -> None:
        """Disconnect; never raises."""
        with suppress(RedisError, OSError):
            await self._connection.disconnect(nowait=True)


async def open_wire(host: Host, options: WireOptions) -> Wire:
    """Connect and authenticate. Raises ``BusRefused`` or ``BusUnavailable``."""
    parser = _BurstParser(socket_read_size=_READ_SIZE)
    settings: dict[str, Any] = {
        "db": options.db,
        "username": options.username or None,
        "password": options.password or None,
        "socket_timeout": None,
        "socket_connect_timeout": options.connect_timeout,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
        "driver_info": None,
        "parser_class": lambda **_: parser,
    }
    connection: AbstractConnection
    if host.path:
        connection = UnixDomainSocketConnection(path=host.path, **settings)
    elif options.tls:
        settings["ssl_ca_certs"] = options.ca or None
        settings["ssl_certfile"] = options.cert or None
        settings["ssl_keyfile"] = options.key or None
        connection = SSLConnection(host=host.host, port=host.port, **settings)
    else:
        connection = Connection(host=host.host, port=host.port, **settings)
    wire = Wire(connection, parser, host)
    try:
        async with asyncio.timeout(options.connect_timeout):
            await connection.connect()  # type: ignore[no-untyped-call]
            # Without the right to name itself a connection works as well; redis-py would give up.
            await wire.ask(b"CLIENT", b"SETNAME", _client_name(options.name))
            number = await wire.ask(b"CLIENT", b"ID")
            wire.client_id = number if isinstance(number, int) else 0
    except BaseException as error:
        await wire.close()
        if isinstance(error, (RedisError, OSError, TimeoutError, ssl.SSLError)):
            raise _refusal(error, host) from error
        raise
    return wire


def describe(error: BaseException) -> str:
    """The error's text for people, with the code that Redis sent."""
    code = getattr(error, "status_code", None)
    text = str(error) or type(error).__name__
    return f"{code} {text}" if code and not text.startswith(str(code)) else text


def is_refusal(error: BaseException) -> bool:
    """Whether waiting will not help: credentials, rights or certificates are wrong."""
    return isinstance(error, (AuthenticationError, NoPermissionError, ssl.SSLCertVerificationError, FileNotFoundError))


def is_elsewhere(error: BaseException) -> bool:
    """Whether the server is no longer the one to write to (a failover), or not yet."""
    return isinstance(error, (ReadOnlyError, MasterDownError)) or "LOADING" in describe(error)[:8]


def _refusal(error: BaseException, host: Host) -> BusRefused | BusUnavailable:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, FileNotFoundError) and host.path:
            break  # a socket that is not there yet
        if is_refusal(cause) or (isinstance(cause, ResponseError) and "DB index" in str(cause)):
            return BusRefused(f"{host}: {describe(cause)}")
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, TimeoutError) and not str(error):
        return BusUnavailable(f"{host}: no connection in time")
    return BusUnavailable(f"{host}: {describe(error)}")


def _client_name(name: str) -> bytes:
    return "".join(c if "!" <= c <= "~" else "-" for c in name).encode() or b"esl-bridge"


def check_tls_files(options: WireOptions) -> None:
    """Raise ``ConfigError`` when a certificate or key cannot be read."""
    if not options.tls:
        return
    for what, path in (("ca", options.ca), ("cert", options.cert), ("key", options.key)):
        if path:
            try:
                with open(path, "rb"):
                    pass
            except OSError as error:
                raise ConfigError([(f"bus.{what}", f"cannot read {path}: {error.strerror}")]) from error
