"""What the first words of an API command say: which verb it is, whether it is slow, safe, or about one call.

This room never judges whether a command is allowed; that is ``policy``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

# They keep FreeSWITCH's connection thread busy for long: dialling, loading, waiting for the network.
# A word `*` stands for any one word.
DEFAULT_BACKGROUND = (
    "originate",
    "conference * dial",
    "sofia profile",
    "sofia recover",
    "fsctl recover",
    "reloadxml",
    "reloadacl",
    "load",
    "unload",
    "reload",
    "msleep",
    "uuid_media",
    "uuid_media_3p",
    "curl",
    "http_get",
    "http_tryget",
    "http_put",
    "http_prefetch",
    "enum",
    "enum_auto",
    "sofia_dig",
    "stun",
    "lua",
    "python",
    "python3",
    "perl",
    "js",
    "jsapi",
    "managed",
    "java",
)

# They change nothing: running one twice is the same as running it once.
DEFAULT_SAFE = (
    "status",
    "show",
    "version",
    "uptime",
    "hostname",
    "switchname",
    "help",
    "echo",
    "uuid_exists",
    "uuid_dump",
    "uuid_getvar",
    "uuid_buglist",
    "global_getvar",
    "create_uuid",
    "module_exists",
    "list_users",
    "sofia status",
    "sofia xmlstatus",
    "sofia_contact",
    "sofia_count_reg",
    "sofia_username_of",
    "sofia_gateway_data",
    "conference list",
    "conference xml_list",
    "conference json_list",
    "conference * list",
    "conference * xml_list",
    "conference * json_list",
    "conference * count",
    "callcenter_config * list",
    "fifo list",
    "fifo count",
    "hash select",
    "db select",
    "limit_usage",
    "acl",
    "user_exists",
    "user_data",
    "domain_exists",
    "domain_data",
    "in_group",
    "xml_locate",
    "regex",
    "strftime",
    "strftime_tz",
    "strepoch",
    "strmicroepoch",
    "md5",
    "url_encode",
    "url_decode",
    "toupper",
    "tolower",
    "is_lan_addr",
    "host_lookup",
    "interface_ip",
    "msleep",
)

_NAMES_KEPT: Final = 1_024  # of verbs that callers make up

# They run another command inside themselves, in FreeSWITCH's own thread.
_WRAPPERS: Final = frozenset({"expand", "xml_wrap"})


class LineFacts(msgspec.Struct, frozen=True, gc=False):
    """What the command path wants to know of an API command line."""

    verb: str
    """In lower case: FreeSWITCH ignores case."""
    call: str
    """The uuid that a ``uuid_*`` command is about, "" for any other."""
    background: bool
    """It is slow, itself or the command inside its wrappers: it runs as a job."""
    safe: bool
    """Running it twice is the same as running it once."""


class Verbs:
    """Reads API command lines by the lists of ``[commands]``."""

    def __init__(self, *, background: Iterable[str] = DEFAULT_BACKGROUND, safe: Iterable[str] = DEFAULT_SAFE) -> None:
        self._background = _VerbList(background)
        self._safe = _VerbList(safe)
        self._by_name: dict[str, tuple[bool, bool]] = {}

    def read(self, line: str) -> LineFacts:
        """The facts of a line; those of a blank one are all empty."""
        words = line.split(None, 2)
        verb = words[0].lower() if words else ""
        call = words[1] if verb.startswith("uuid_") and len(words) > 1 else ""
        known = self._by_name.get(verb)
        if known is not None:
            return LineFacts(verb, call, *known)
        if verb and verb not in _WRAPPERS and self._background.by_name_alone(verb) and self._safe.by_name_alone(verb):
            if len(self._by_name) >= _NAMES_KEPT:
                self._by_name.clear()
            self._by_name[verb] = self._background.holds(verb), self._safe.holds(verb)
        inner = _unwrapped(line) if verb in _WRAPPERS else line
        return LineFacts(verb, call, self._background.holds(inner), self._safe.holds(line))


def _unwrapped(line: str) -> str:
    words = line.split(None, 1)
    while len(words) > 1 and (words[0].lower() in _WRAPPERS or words[0].lower().startswith("uuid:")):
        words = words[1].split(None, 1)  # `expand uuid:<uuid> command` too
    return " ".join(words)


class _VerbList:
    """Commands by their first words, such as ``show`` or ``conference * dial``."""

    def __init__(self, entries: Iterable[str]) -> None:
        self._tails: dict[str, list[list[str]]] = {}
        for entry in entries:
            verb, *tail = entry.lower().split() or [""]
            self._tails.setdefault(verb, []).append(tail)

    def by_name_alone(self, verb: str) -> bool:
        """Whether the words behind this verb (in lower case) make no difference."""
        return not any(self._tails.get(verb, ()))

    def holds(self, line: str) -> bool:
        words = line.lower().split(None, 8)
        tails = self._tails.get(words[0]) if words else None
        if tails is None:
            return False
        rest = words[1:]
        return any(
            len(tail) <= len(rest) and all(want in ("*", word) for want, word in zip(tail, rest, strict=False))
            for tail in tails
        )
