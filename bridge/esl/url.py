"""The address of an Event Socket: ``fs://[username]:password@host[:port]``, as the OpenSIPS module writes it.

This room never shows a password: not in an error, not in a ``repr``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final, Literal
from urllib.parse import unquote

from bridge.errors import EslUrlError

Scheme = Literal["fs", "fs+tls", "fs+unix"]

DEFAULT_PORT: Final = 8021
_SCHEMES: Final[dict[str, Scheme]] = {"fs": "fs", "fs+tls": "fs+tls", "fs+unix": "fs+unix"}
_HOST: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9_.])?")
_IPV6: Final = re.compile(r"[0-9A-Fa-f:.]+(%[A-Za-z0-9._-]+)?")
_FORM: Final = "fs://[username]:password@host[:port]"


@dataclass(frozen=True, slots=True)
class EslUrl:
    """Where a FreeSWITCH listens and how to get in.

    ``username`` None means ``auth``, else ``userauth`` (``user@domain``). ``path`` is the socket of ``fs+unix``,
    whose ``host`` is empty and ``port`` 0.
    """

    scheme: Scheme
    host: str
    port: int = DEFAULT_PORT
    username: str | None = None
    password: str = field(default="", repr=False)
    path: str = ""

    @classmethod
    def parse(cls, text: str) -> EslUrl:
        """Read a URL. Raises ``EslUrlError``, whose text holds neither the password nor the URL."""
        name, separator, rest = text.strip().partition("://")
        scheme = _SCHEMES.get(name.lower())
        if not separator or scheme is None:
            raise EslUrlError(f"not of the form {_FORM} (also fs+tls://, fs+unix://)")
        userinfo, at, address = rest.rpartition("@")
        if not at:
            raise EslUrlError(f"no password: the form is {_FORM}")
        username, password = _userinfo(userinfo)
        if scheme == "fs+unix":
            path = _decoded(address, "the socket's path")
            if not path.startswith("/"):
                raise EslUrlError("fs+unix:// needs the absolute path of a socket behind the @")
            return cls(scheme, "", 0, username, password, path)
        host, port = _address(address)
        return cls(scheme, host, port, username, password)

    @property
    def redacted(self) -> str:
        """The URL for people and logs, with ``***`` for the password."""
        if self.scheme == "fs+unix":
            where = self.path
        else:
            where = f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
        return f"{self.scheme}://{self.username or ''}:***@{where}"

    def __str__(self) -> str:
        return self.redacted


def _userinfo(userinfo: str) -> tuple[str | None, str]:
    username, colon, password = userinfo.partition(":")
    if not colon:
        raise EslUrlError(f"no colon before the password: the form is {_FORM}")
    username, password = _decoded(username, "the username"), _decoded(password, "the password")
    if not password.strip():
        raise EslUrlError("the password is empty, or nothing but spaces")
    # userauth ends the name at its first colon, and the command's word at its first space.
    if ":" in username or any(map(str.isspace, username)):
        raise EslUrlError("the username holds a colon or a space")
    return username or None, password


def _decoded(text: str, what: str) -> str:
    """Decode %XX. Says which part is wrong, never what it holds."""
    try:
        decoded = unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise EslUrlError(f"{what} is not UTF-8 after percent-decoding") from None
    if any(c in "\r\n\0" or "\ud800" <= c <= "\udfff" for c in decoded):
        raise EslUrlError(f"{what} holds a line end, a NUL or half a surrogate pair")
    return decoded


def _address(address: str) -> tuple[str, int]:
    address = address.removesuffix("/")
    if address.startswith("["):
        host, bracket, rest = address[1:].partition("]")
        host = host.replace("%25", "%")
        if not bracket or ":" not in host or not _IPV6.fullmatch(host):
            raise EslUrlError("not an IPv6 address in the brackets")
        if rest and not rest.startswith(":"):
            raise EslUrlError("after the brackets only :port may follow")
        port = rest[1:] if rest else None
    else:
        host, colon, text = address.partition(":")
        port = text if colon else None
        if not _HOST.fullmatch(host):
            raise EslUrlError("the host is missing or not a name or address (an IPv6 address stands in brackets)")
    if port is None:
        return host, DEFAULT_PORT
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 65536):
        raise EslUrlError("the port is not a number from 1 to 65535")
    return host, int(port)
