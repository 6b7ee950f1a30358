"""Secrets taken out of texts: passwords in URLs, values of telling keys, and secrets known by value.

This room never decides what is logged, only what of it may be read. It imports nothing of the bridge.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

HIDDEN = "***"

_AUTHORITY = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.\-]{0,30}://)(?P<user>[^\s/?#\"'<>]*)@")
_LOOSE_SCHEME = re.compile(r"\b(?:fs|fs\+tls|fs\+unix)://")
_UNSPACED = re.compile(r"[^\s\"'<>]+")
_LIST = re.compile(r",(?=[A-Za-z][A-Za-z0-9+.\-]*://)")
_QUERY = re.compile(r"(?P<key>[?&](?:password|passwd|pass|pwd|token|secret|auth)=)[^&\s\"']*", re.IGNORECASE)
_ESL_AUTH = re.compile(r"(?P<verb>\b(?:userauth|auth)[ \t]+)(?P<rest>[^\s\"']+)(?=\s*(?:\\n|\n|$))")
# Channel variables in a command line: {sip_auth_password=secret,...}; FreeSWITCH's names end in password, not begin.
# What stands before is no part of it: a search for the beginning of each name takes minutes in a text of many dots.
_VARIABLE = re.compile(
    r"(?P<name>(?:passw(?:or)?d|passphrase|secret|token|api_?key|credentials?|[-_]pin)\s*=\s*)(?P<value>'[^']*'|\"[^\"]*\"|[^\s,;\]}>&\"']+)",
    re.IGNORECASE,
)
# The same with words: "uuid_setvar <uuid> sip_auth_password x", "hash insert/realm/password/x" is not one.
_SETVAR = re.compile(
    r"(?P<verb>\b(?:uuid_setvar\s+\S+|global_setvar|set_user_password|db_user)\s+[\w.-]*"
    r"(?:pass(?:word|wd|phrase)?|pwd|secret|token|credentials?|api_?key|[-_]pin)\s+)(?P<value>\S.*)",
    re.IGNORECASE,
)
_TELLING = re.compile(
    r"pass(?:word|wd|phrase)?$|^pwd$|secret|token$|credential|authorization|nkey|seed$", re.IGNORECASE
)


def redact_url(text: str) -> str:
    """Return a URL (or a comma-separated list of them) without passwords, tokens and secret query values."""
    found = re.match(r"[A-Za-z][A-Za-z0-9+.\-]*://", text)
    if found and "@" in text:
        scheme, rest = text[: found.end()], text[found.end() :]
        parts = _LIST.split(text)
        if len(parts) > 1:
            text = ",".join(redact_url(part) for part in parts)
        else:
            # The last @ ends the user part: a password may hold an @, a host may not.
            user, _, host = rest.rpartition("@")
            text = f"{scheme}{_visible_user(user)}@{host}"
    return _QUERY.sub(lambda match: match["key"] + HIDDEN, text)


def _visible_user(user: str) -> str:
    name, colon, _ = user.partition(":")
    # A lone word before the @ is a user for FreeSWITCH and a token for NATS: hidden, to be safe.
    return f"{name}:{HIDDEN}" if colon else HIDDEN


def _hide_authority(match: re.Match[str]) -> str:
    return f"{match['scheme']}{_visible_user(match['user'])}@"


def _hide_loose_authority(match: re.Match[str]) -> str:
    """A password may hold slashes: the last @ ends it."""
    text = match[0]
    scheme, end = _LOOSE_SCHEME.search(text), text.rfind("@")
    if scheme is None or end < scheme.end():
        return text
    return text[: scheme.end()] + _visible_user(text[scheme.end() : end]) + text[end:]


def redact_text(text: str, known: Iterable[str] = ()) -> str:
    """Return free text (a log line, a traceback) without URL passwords, ESL logins and the ``known`` secrets."""
    for secret in known:
        if secret in text:
            text = text.replace(secret, HIDDEN)
    if "://" in text:
        text = _UNSPACED.sub(_hide_loose_authority, text)
        text = _AUTHORITY.sub(_hide_authority, text)
        text = _QUERY.sub(lambda match: match["key"] + HIDDEN, text)
    if "=" in text:
        text = _VARIABLE.sub(lambda match: match["name"] + HIDDEN, text)
    if "auth" in text:
        text = _ESL_AUTH.sub(lambda match: match["verb"] + HIDDEN, text)
    return text


def redact_command(text: str) -> str:
    """Return a command line without the secrets that it sets as words of their own."""
    return _SETVAR.sub(lambda match: match["verb"] + HIDDEN, text)


def is_telling(key: str) -> bool:
    """Say whether a key of this name holds a secret (``password``, ``api_token``; not ``password_file``)."""
    return _TELLING.search(key) is not None


class Redactor:
    """Takes secrets out of log values, however deep; ``secrets`` are those known by value."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        # Very short secrets would blank out half of every text; the longest go first, they may hold others.
        self._known = sorted({secret for secret in secrets if len(secret) >= 4}, key=len, reverse=True)

    def text(self, text: str) -> str:
        """Return ``text`` without secrets."""
        return redact_text(text, self._known)

    def command(self, text: str) -> str:
        """Return a command line without secrets, those in its variables included."""
        return redact_command(self.text(text))

    def value(self, key: str, value: object) -> object:
        """Return the value to show under ``key``."""
        if isinstance(value, str):
            return HIDDEN if value and is_telling(key) else self.text(value)
        if value is None or isinstance(value, bool | int | float):
            return HIDDEN if value is not None and not isinstance(value, bool) and is_telling(key) else value
        if isinstance(value, Mapping):
            return {self._key(name): self.value(str(name), item) for name, item in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [self.value(key, item) for item in value]
        if isinstance(value, bytes):
            return self.value(key, value.decode("utf-8", "backslashreplace"))
        return self.text(str(value))

    def _key(self, name: object) -> object:
        return self.text(name) if isinstance(name, str) else name
