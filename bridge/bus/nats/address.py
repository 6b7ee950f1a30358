"""``nats://`` and ``tls://`` URLs and the means to log in. Never shows a secret in a text."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bridge.errors import BusRefused, ConfigError

DEFAULT_PORT = 4222


@dataclass(frozen=True)
class NatsServer:
    """One server of the URL; ``address`` is ``nats://host:port`` without secrets."""

    address: str
    user: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)


@dataclass(frozen=True)
class NatsAddress:
    """Where the servers are and how to log in; the parts of ``nats://[user:password@|token@]h1[:port][,h2...]``."""

    servers: tuple[NatsServer, ...]
    tls: bool

    @classmethod
    def parse(cls, url: str, *, user: str = "", password: str = "", token: str = "") -> NatsAddress:
        """Raises ``ConfigError``. ``user``, ``password`` and ``token`` stand in for what the URL does not say.

        User, password and token are percent-decoded; ``@``, ``,``, ``/`` and ``:`` in them must be encoded.
        """
        scheme, found, rest = url.partition("://")
        if not found or scheme not in ("nats", "tls"):
            raise ConfigError("bus.url: NATS URLs begin with nats:// or tls://")
        servers = []
        for part in rest.split(","):
            server, user, password, token = cls._server(part.strip(), scheme, user, password, token)
            servers.append(server)
        return cls(tuple(servers), scheme == "tls")

    @staticmethod
    def _server(part: str, scheme: str, user: str, password: str, token: str) -> tuple[NatsServer, str, str, str]:
        if "://" not in part:
            part = f"{scheme}://{part}"
        try:
            parts = urlsplit(part)
            host, port = parts.hostname, parts.port or DEFAULT_PORT
        except ValueError:
            raise ConfigError("bus.url: a server's host or port cannot be read") from None
        if parts.scheme != scheme:
            raise ConfigError("bus.url: all servers must have the same scheme")
        if not host or parts.path not in ("", "/") or parts.query or parts.fragment:
            raise ConfigError("bus.url: expected host[:port], separated by commas, and nothing behind it")
        if parts.username and parts.password is None:
            user, password, token = "", "", unquote(parts.username)
        elif parts.username:
            user, password, token = unquote(parts.username), unquote(parts.password or ""), ""
        where = f"[{host}]" if ":" in host else host
        return NatsServer(f"{scheme}://{where}:{port}", user, password, token), user, password, token

    @property
    def redacted(self) -> str:
        """The URL without secrets."""
        first = self.servers[0]
        secret = "***@" if first.token else f"{first.user}:***@" if first.user else ""
        hosts = ",".join(server.address.partition("://")[2] for server in self.servers)
        return f"{'tls' if self.tls else 'nats'}://{secret}{hosts}"


@dataclass(frozen=True)
class NatsFiles:
    """Files to log in and to speak TLS with; empty where not used."""

    credentials: str = ""
    nkey: str = ""
    tls_ca: str = ""
    tls_cert: str = ""
    tls_key: str = ""

    def check(self) -> None:
        """Raise ``BusRefused`` for a file that is missing or not what it should be.

        nats-py reads a credentials file without a JWT for ever, so it must be looked at first.
        """
        if self.credentials:
            text = _read(self.credentials)
            if b"BEGIN NATS USER JWT" not in text or b"BEGIN USER NKEY SEED" not in text:
                raise BusRefused(f"{self.credentials}: not a NATS credentials file (no JWT or no seed in it)")
        if self.nkey and not _read(self.nkey).strip().startswith(b"S"):
            raise BusRefused(f"{self.nkey}: not an nkey seed file")

    def tls_context(self) -> ssl.SSLContext:
        """Raises ``BusRefused`` where a file does not fit."""
        try:
            context = ssl.create_default_context(cafile=self.tls_ca or None)
            if self.tls_cert:
                context.load_cert_chain(self.tls_cert, self.tls_key or None)
        except OSError as error:
            raise BusRefused(f"TLS files: {error}") from None
        return context


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise BusRefused(f"{path}: {error.strerror}") from None
