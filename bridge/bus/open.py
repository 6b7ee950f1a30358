"""Which bus a URL means; drivers are imported only when they are asked for. Never connects."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from bridge.bus.base import Bus, ServiceCard
from bridge.errors import ConfigError

NATS_SCHEMES = ("nats", "tls")
REDIS_SCHEMES = ("redis", "rediss", "redis+cluster", "rediss+cluster", "redis+sentinel", "rediss+sentinel", "unix")
SCHEMES = (*NATS_SCHEMES, *REDIS_SCHEMES, "memory")


@contextmanager
def _without_web_sockets() -> Iterator[None]:
    """Keep nats-py from loading aiohttp, a third of a second, for a transport that no URL of ours can ask for."""
    if "aiohttp" in sys.modules or "nats" in sys.modules:
        yield
        return
    sys.modules["aiohttp"] = None  # type: ignore[assignment] # "not to be had", to whoever imports it
    try:
        yield
    finally:
        del sys.modules["aiohttp"]


def open_bus(
    url: str,
    *,
    name: str = "",
    user: str = "",
    password: str = "",
    token: str = "",
    credentials_file: str = "",
    nkey_file: str = "",
    tls_ca_file: str = "",
    tls_cert_file: str = "",
    tls_key_file: str = "",
    service: ServiceCard | None = None,
    queue_type: Literal["stream", "list"] = "stream",
    worker: str = "",
    claim_after: float = 30.0,
    dead_letters: str = "esl.dead",
) -> Bus:
    """A bus for this URL, not connected yet. Raises ``ConfigError``; its text holds no secret.

    ``name`` is how the broker lists this client. ``token``, ``credentials_file``, ``nkey_file`` and ``service`` mean
    something to NATS only; ``queue_type`` and ``worker`` to Redis only (see ``RedisBus``). After ``claim_after`` s of
    silence entries of durable queues go to another worker.
    """
    scheme, found, _ = url.partition("://")
    if not found or scheme not in SCHEMES:
        raise ConfigError(f"bus.url: expected one of {', '.join(f'{it}://' for it in SCHEMES)}")
    if scheme in NATS_SCHEMES:
        with _without_web_sockets():
            from bridge.bus.nats import NatsBus, NatsFiles

        return NatsBus(
            url,
            name=name,
            user=user,
            password=password,
            token=token,
            files=NatsFiles(credentials_file, nkey_file, tls_ca_file, tls_cert_file, tls_key_file),
            service=service,
            dead_letters=dead_letters,
            claim_after=claim_after,
        )
    if scheme == "memory":
        from bridge.bus.memory import MemoryBus

        return MemoryBus(url)
    from bridge.bus.redis import RedisBus

    return RedisBus(
        url,
        name=name,
        queue_type=queue_type,
        worker=worker,
        user=user,
        password=password,
        tls_ca_file=tls_ca_file,
        tls_cert_file=tls_cert_file,
        tls_key_file=tls_key_file,
        claim_after=claim_after,
        dead=dead_letters,
    )
