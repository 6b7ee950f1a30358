"""Which bus a URL means; drivers are imported only when they are asked for. Never connects."""

from __future__ import annotations

from typing import Any

from bridge.bus.base import Bus, ServiceCard
from bridge.errors import ConfigError

NATS_SCHEMES = ("nats", "tls")
REDIS_SCHEMES = ("redis", "rediss", "redis+cluster", "rediss+cluster", "redis+sentinel", "rediss+sentinel", "unix")
SCHEMES = (*NATS_SCHEMES, *REDIS_SCHEMES, "memory")


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
    **redis_options: Any,
) -> Bus:
    """A bus for this URL, not connected yet. Raises ``ConfigError``; its text holds no secret.

    ``name`` is how the broker lists this client. ``token``, ``credentials_file``, ``nkey_file`` and ``service`` are
    NATS' own and ignored by the others; ``redis_options`` go to ``RedisBus`` as they are.
    """
    scheme, found, _ = url.partition("://")
    if not found or scheme not in SCHEMES:
        raise ConfigError(f"bus.url: expected one of {', '.join(f'{it}://' for it in SCHEMES)}")
    if scheme in NATS_SCHEMES:
        from bridge.bus.nats import NatsBus, NatsFiles

        files = NatsFiles(credentials_file, nkey_file, tls_ca_file, tls_cert_file, tls_key_file)
        return NatsBus(url, name=name, user=user, password=password, token=token, files=files, service=service)
    if scheme == "memory":
        from bridge.bus.memory import MemoryBus

        return MemoryBus(url)
    from bridge.bus.redis import RedisBus

    given = {
        "name": name,
        "user": user,
        "password": password,
        "tls_ca_file": tls_ca_file,
        "tls_cert_file": tls_cert_file,
        "tls_key_file": tls_key_file,
    }
    return RedisBus(url, **{key: value for key, value in given.items() if value}, **redis_options)
