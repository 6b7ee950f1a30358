"""The kinds of value that settings are made of: URLs that hide their secrets, listen addresses, node names.

This room checks one value at a time; it never reads a file or the environment.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Any

from pydantic import AfterValidator, Field, SecretStr
from pydantic_core import PydanticCustomError

from bridge.errors import EslUrlError, InvalidCommand
from bridge.esl import commands
from bridge.esl.url import EslUrl
from bridge.redaction import redact_url

BUS_SCHEMES = (
    "nats", "tls", "redis", "rediss", "redis+cluster", "rediss+cluster", "redis+sentinel", "rediss+sentinel", "unix",
    "memory",
)  # fmt: skip

_NODE_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
# It is part of addresses on the bus, which know no empty token.
_WORKER_ID = re.compile(r"(?=.{1,128}\Z)[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*")
_SCHEME = re.compile(r"([a-z][a-z0-9+]{0,19})://", re.IGNORECASE)


class SecretUrl(SecretStr):
    """A URL whose password shows only in ``get_secret_value()``; ``str`` and ``repr`` show the rest."""

    @property
    def redacted(self) -> str:
        """The URL without its secrets, for logs and errors."""
        return redact_url(self.get_secret_value())

    @property
    def scheme(self) -> str:
        """What stands before ``://``, in lower case."""
        found = _SCHEME.match(self.get_secret_value())
        return found[1].lower() if found else ""

    def _display(self) -> str:
        return self.redacted


def fault(text: str, key: str = "") -> PydanticCustomError:
    """Make a validation error whose text is for people; ``key`` names the key inside a section."""
    # The text goes in as a value: braces in it are not to be read as a template.
    return PydanticCustomError("setting", "{text}", {"text": text, "key": key})


def _check_bus_url(url: SecretUrl) -> SecretUrl:
    text = url.get_secret_value()
    if not url.scheme:
        raise fault("must be a URL such as nats://127.0.0.1:4222 or redis://127.0.0.1:6379/0")
    if url.scheme not in BUS_SCHEMES:
        raise fault(f'unknown scheme "{url.scheme}"; known are {", ".join(BUS_SCHEMES)}')
    rest = text.partition("://")[2]
    if re.search(r"[\s\x00-\x1f\x7f]", text):
        raise fault("holds a space or control character (percent-encode it)")
    if url.scheme == "memory":
        return url
    if not rest.rpartition("@")[2].strip("/"):
        raise fault("has no path to a socket" if url.scheme == "unix" else "has no host")
    for host in re.split(r"[/?]", rest.rpartition("@")[2])[0].split(",") if url.scheme != "unix" else ():
        port = re.fullmatch(r"(?:\[[^\]]*\]|[^:\[\]]*):(.*)", host.partition("://")[2] or host)
        if port and not (port[1].isdigit() and 0 < int(port[1]) < 65536):
            raise fault("has a port that is not a number from 1 to 65535")
        _check_host(host.partition("://")[2] or host)
    return url


def _check_host(text: str) -> None:
    """Refuse what the resolver cannot even be asked for: it would fail at every attempt, for ever."""
    try:
        text.encode("idna")
    except UnicodeError:
        raise fault("has a host name with an empty part, or with one of more than 63 characters") from None


def _check_node_url(url: SecretUrl) -> SecretUrl:
    text = url.get_secret_value()
    if not text.lower().startswith(("fs://", "fs+tls://", "fs+unix://")):
        raise fault("must be fs://[username]:password@host[:port]")
    try:
        host = EslUrl.parse(text).host
    except EslUrlError as error:
        raise fault(str(error)) from None
    _check_host(host)
    return url


def split_listen(text: str) -> tuple[str, int]:
    """Return host and port of ``host:port``, ``[v6]:port`` or ``:port`` (all addresses, host empty); port 0 is any.

    Raises ``ValueError``.
    """
    found = re.fullmatch(r"(?:\[(?P<v6>[0-9A-Fa-f:.%]+)\]|(?P<host>[^:\s\[\]/]*)):(?P<port>[0-9]{1,5})", text)
    if not found or int(found["port"]) > 65535:
        raise ValueError(f'must be host:port, [IPv6]:port or :port, got "{text}"')
    return found["v6"] or found["host"], int(found["port"])


def is_loopback(host: str) -> bool:
    """Say whether a host name or address stays on this machine; the empty host means all addresses."""
    if host.lower() in ("localhost", "localhost.localdomain", "ip6-localhost"):
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


def _check_listen(text: str) -> str:
    if text:
        try:
            host, _ = split_listen(text)
        except ValueError as error:
            raise fault(str(error)) from None
        _check_host(host)
    return text


def _check_node_name(text: str) -> str:
    if not _NODE_NAME.fullmatch(text):
        raise fault(f'must be 1 to 64 of A-Z a-z 0-9 _ -, got "{text[:80]}"')
    return text


def _check_worker_id(text: str) -> str:
    if not _WORKER_ID.fullmatch(text):
        raise fault(f'must be 1 to 128 of A-Z a-z 0-9 _ - and single dots between them, got "{text[:80]}"')
    return text


def _check_filter(text: str) -> str:
    found = re.fullmatch(r"([^\s:\0]+):?[ \t]+(\S[^\r\n\0]*)", text.strip(" "))
    if not found:
        raise fault('must be "Header value" or "Header /regex/", as for FreeSWITCH\'s filter command')
    try:
        commands.filter_add(found[1], found[2])
    except InvalidCommand as error:
        raise fault(str(error)) from None
    return f"{found[1]} {found[2]}"


def _check_token(text: str) -> str:
    if not text or re.search(r"[\s*>\x00-\x1f\x7f]", text) or not all(text.split(".")):
        raise fault("must be an address without spaces, wildcards or empty parts between dots")
    return text


def _check_event_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z_]+|CUSTOM(?::| )\S+|[^\s]+::[^\s]+", text):
        raise fault('must be an event name ("CHANNEL_ANSWER"), "ALL", or "CUSTOM:subclass"')
    try:
        commands.event("json", text.split())
    except InvalidCommand as error:
        raise fault(str(error)) from None
    return text


def _check_topic(text: str) -> str:
    if not text or re.search(r"[\s*>\x00-\x1f\x7f]", text):
        raise fault('must be a template such as "fs.events.{event}", without spaces or wildcards')
    literal = text.partition("{")[0]
    if not literal or literal.startswith("."):
        raise fault('must start with a literal such as "fs.events."')
    if re.sub(r"\{[^{}]+\}", "", text).count("{") or re.sub(r"\{[^{}]+\}", "", text).count("}"):
        raise fault("has a brace without its partner, or an empty placeholder")
    return text


NodeUrl = Annotated[SecretUrl, AfterValidator(_check_node_url)]
BusUrl = Annotated[SecretUrl, AfterValidator(_check_bus_url)]
ListenAddress = Annotated[str, AfterValidator(_check_listen)]
WorkerId = Annotated[str, AfterValidator(_check_worker_id)]
NodeName = Annotated[str, AfterValidator(_check_node_name)]
EslFilter = Annotated[str, AfterValidator(_check_filter)]
QueueName = Annotated[str, AfterValidator(_check_token)]
EventName = Annotated[str, AfterValidator(_check_event_name)]
TopicText = Annotated[str, AfterValidator(_check_topic)]


def setting(default: Any, description: str, *, unit: str = "", **limits: Any) -> Any:
    """Declare one setting: its default, what it means (for the reference), its unit and its limits."""
    return Field(default, description=description, json_schema_extra={"unit": unit}, **limits)


def required(description: str) -> Any:
    """Declare a setting that has no default."""
    return Field(..., description=description, json_schema_extra={"unit": ""})
