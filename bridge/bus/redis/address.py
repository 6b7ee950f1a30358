"""The URL forms of Redis: one server, a Unix socket, a Cluster, Sentinels.

This room never connects, and no text of its errors or ``repr`` holds a password.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import parse_qs, unquote

from bridge.errors import ConfigError

_FORMS = {
    "redis": ("server", False),
    "rediss": ("server", True),
    "unix": ("unix", False),
    "redis+unix": ("unix", False),
    "redis+cluster": ("cluster", False),
    "rediss+cluster": ("cluster", True),
    "redis+sentinel": ("sentinel", False),
    "rediss+sentinel": ("sentinel", True),
}
_DEFAULT_PORTS = {"server": 6379, "cluster": 6379, "sentinel": 26379}
_HOST = re.compile(r"^(?:\[(?P<ip6>[0-9A-Fa-f:.%]+)\]|(?P<name>[^\[\]:@/\s]+))(?::(?P<port>\d{1,5}))?$")


@dataclass(frozen=True, slots=True)
class Host:
    """One place to connect to: a host and port, or the path of a Unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return self.path
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """A parsed URL. ``kind`` is ``server``, ``unix``, ``cluster`` or ``sentinel``."""

    scheme: str
    kind: str
    tls: bool
    hosts: tuple[Host, ...]
    username: str = ""
    password: str = field(default="", repr=False)
    db: int = 0
    service: str = ""

    @property
    def redacted(self) -> str:
        """The URL without its password."""
        user = ""
        if self.username or self.password:
            user = f"{self.username}:***@" if self.password else f"{self.username}@"
        places = ",".join(str(host) for host in self.hosts)
        if self.kind == "unix":
            return f"{self.scheme}://{user}{places}" + (f"?db={self.db}" if self.db else "")
        tail = f"/{self.service}/{self.db}" if self.kind == "sentinel" else (f"/{self.db}" if self.db else "")
        return f"{self.scheme}://{user}{places}{tail}"

    @classmethod
    def parse(cls, text: str, *, username: str = "", password: str = "") -> RedisUrl:
        """Parse ``text``; ``username`` and ``password`` win over those in it. Raises ``ConfigError``."""
        scheme, separator, rest = text.strip().partition("://")
        scheme = scheme.lower()
        if not separator or scheme not in _FORMS:
            raise ConfigError(f"not a Redis URL; known forms are {', '.join(f'{form}://' for form in _FORMS)}")
        kind, tls = _FORMS[scheme]
        # The user's part ends at the last @ before the path: passwords may hold one themselves. A Unix socket's
        # path begins with the first slash, and may hold an @ too.
        rest, _, query = rest.partition("?")
        authority, slash, path = rest.partition("/")
        userinfo, _, places = authority.rpartition("@")
        if slash and "@" in path and kind != "unix":
            raise ConfigError(f"{scheme} URL: a slash in the user or password must be written %2F")
        user, _, secret = userinfo.partition(":")
        hosts: tuple[Host, ...]
        service, db_text = "", ""
        if kind == "unix":
            if places or not path:
                raise ConfigError(f"{scheme} URL: the path must be absolute, as in {scheme}:///run/redis.sock")
            hosts = (Host(path="/" + unquote(path)),)
        else:
            hosts = tuple(_host(place, kind, scheme) for place in places.split(","))
            steps = [unquote(step) for step in path.split("/")] if path else []
            if kind == "sentinel":
                if not steps or not steps[0]:
                    raise ConfigError(f"{scheme} URL: the service is missing, as in {scheme}://host:26379/mymaster/0")
                service = steps.pop(0)
            if len(steps) > 1 and any(steps[1:]):
                raise ConfigError(f"{scheme} URL: too many parts in the path")
            db_text = steps[0] if steps else ""
            if kind == "server" and len(hosts) > 1:
                raise ConfigError(f"{scheme} URL: several hosts need {scheme}+cluster:// or {scheme}+sentinel://")
        db = _database(db_text, query, scheme)
        if kind == "cluster" and db:
            raise ConfigError(f"{scheme} URL: a Cluster has database 0 only")
        return cls(
            scheme=scheme,
            kind=kind,
            tls=tls,
            hosts=hosts,
            username=username or unquote(user),
            password=password or unquote(secret),
            db=db,
            service=service,
        )


def _host(place: str, kind: str, scheme: str) -> Host:
    match = _HOST.match(place.strip())
    if match is None:
        raise ConfigError(f"{scheme} URL: not a host[:port]")
    port = int(match["port"]) if match["port"] else _DEFAULT_PORTS[kind]
    if not 0 < port < 65536:
        raise ConfigError(f"{scheme} URL: not a port number")
    return Host(match["ip6"] or unquote(match["name"]), port)


def _database(text: str, query: str, scheme: str) -> int:
    options = parse_qs(query, keep_blank_values=True)
    unknown = sorted(set(options) - {"db"})
    if unknown:
        raise ConfigError(f"{scheme} URL: unknown option {unknown[0]}")
    text = text or options.get("db", [""])[0]
    if text and not (text.isascii() and text.isdigit()):
        raise ConfigError(f"{scheme} URL: the database must be a number")
    return int(text or "0")
