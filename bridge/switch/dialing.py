"""Opening the socket of an ESL URL: TCP (IPv4, IPv6), TLS or a Unix socket, kept alive by the kernel.

This room speaks no ESL and reads no byte.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import socket
import ssl
from asyncio.staggered import staggered_race
from collections.abc import Callable
from typing import Any, Final

from bridge.errors import NotConnected
from bridge.esl.url import EslUrl

KEEPALIVE_IDLE: Final = 10
KEEPALIVE_INTERVAL: Final = 5
KEEPALIVE_PROBES: Final = 3
USER_TIMEOUT_MS: Final = 20_000
"""Written bytes that stay unacknowledged for so long (ms) end the connection."""

HEAD_START: Final = 0.25
"""How long an address of a host is tried alone (s); then the next is tried beside it."""

_OPTIONS: Final[tuple[tuple[int, str, int], ...]] = (
    (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
    (socket.IPPROTO_TCP, "TCP_KEEPIDLE", KEEPALIVE_IDLE),
    (socket.IPPROTO_TCP, "TCP_KEEPINTVL", KEEPALIVE_INTERVAL),
    (socket.IPPROTO_TCP, "TCP_KEEPCNT", KEEPALIVE_PROBES),
    (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT", USER_TIMEOUT_MS),
    (socket.IPPROTO_TCP, "TCP_NODELAY", 1),
)


@functools.cache
def default_tls() -> ssl.SSLContext:
    """The context of ``fs+tls://`` when none is given: the system's authorities, host name checked."""
    return ssl.create_default_context()


def keep_alive(sock: socket.socket) -> None:
    """Let the kernel notice a vanished peer: FreeSWITCH itself sets nothing on inbound sockets."""
    for level, name, value in _OPTIONS:
        option = getattr(socket, name, None)
        if option is not None:
            with contextlib.suppress(OSError):
                sock.setsockopt(level, option, value)


async def dial(url: EslUrl, factory: Callable[[], asyncio.BaseProtocol], tls: ssl.SSLContext | None = None) -> None:
    """Connect and hand the transport to a protocol of ``factory``; raises NotConnected from the socket's error.

    Of a host with several addresses the first that accepts is taken: an address that only drops packets shall not use
    up the time of the others. The caller bounds the time.
    """
    loop = asyncio.get_running_loop()
    where = url.redacted
    try:
        if url.scheme == "fs+unix":
            await loop.create_unix_connection(factory, url.path)
            return
        sock = await _connect_tcp(loop, url)
        secure: dict[str, Any] = {}
        if url.scheme == "fs+tls":
            secure = {"ssl": tls if tls is not None else default_tls(), "server_hostname": url.host}
        try:
            await loop.create_connection(factory, sock=sock, **secure)
        except BaseException:
            sock.close()
            raise
    except ssl.SSLCertVerificationError as error:
        raise NotConnected(f"{where}: TLS: {error.verify_message}") from error
    except OSError as error:
        # asyncio's own text, "Connect call failed (...)", says less than the kernel's.
        said = os.strerror(error.errno) if error.errno is not None and error.errno > 0 else error.strerror
        # Without its traceback: that holds the frames that hold the error, for the collector to find.
        raise NotConnected(f"{where}: {said or error}") from error.with_traceback(None)


async def _connect_tcp(loop: asyncio.AbstractEventLoop, url: EslUrl) -> socket.socket:
    try:
        # A numeric address needs no resolver, and so no thread.
        found = socket.getaddrinfo(url.host, url.port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        found = await loop.getaddrinfo(url.host, url.port, type=socket.SOCK_STREAM)
    connected: list[socket.socket] = []
    if len(found) == 1:
        return await _connect(loop, found[0], connected)
    taken: socket.socket | None = None
    try:
        attempts = [functools.partial(_connect, loop, one, connected) for one in found]
        taken, _, failures = await staggered_race(attempts, HEAD_START)
    finally:
        for sock in connected:
            if sock is not taken:
                sock.close()
    if taken is None:
        raise next((one for one in reversed(failures) if one is not None), OSError(f"{url.host}: no address"))
    return taken


async def _connect(
    loop: asyncio.AbstractEventLoop, found: tuple[Any, ...], connected: list[socket.socket]
) -> socket.socket:
    family, kind, number, _, address = found
    sock = socket.socket(family, kind, number)  # raises where this machine does not have the family
    try:
        sock.setblocking(False)
        keep_alive(sock)
        await loop.sock_connect(sock, address)
    except BaseException:
        sock.close()
        raise
    connected.append(sock)
    return sock
