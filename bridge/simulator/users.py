"""ESL users and their allow-lists, as a FreeSWITCH directory gives them.

It never reads a password from anywhere but its caller.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

# API commands that run another one: FreeSWITCH checks the inner command as well.
_WRAPPERS = frozenset({"bgapi", "sched_api", "eval", "expand", "xml_wrap"})


@dataclass(frozen=True)
class User:
    """One user of ``userauth``. None in an allow-list means everything."""

    password: str = field(repr=False)
    allowed_events: Sequence[str] | None = None
    allowed_api: Sequence[str] | None = None
    allowed_log: bool = True

    def reply(self) -> str:
        """The reply block after ``Content-Type: command/reply``; it is cut at 510 bytes, blank line and all."""
        events = "all" if self.allowed_events is None else ",".join(self.allowed_events)
        api = "all" if self.allowed_api is None else ",".join(self.allowed_api)
        log = "true" if self.allowed_log else "false"
        return f"Reply-Text: +OK accepted\nAllowed-Events: {events}\nAllowed-API: {api}\nAllowed-LOG: {log}\n\n"

    def may_have(self, name: str, subclass: bool) -> bool:
        """Whether the user may subscribe to this event or subclass."""
        if self.allowed_events is None:
            return True
        if subclass:
            return name in self.allowed_events
        return any(name == allowed.upper() for allowed in self.allowed_events)

    def may_run(self, line: str) -> bool:
        """Whether the user may run this API command line; wrapped commands are looked at too."""
        if self.allowed_api is None:
            return True
        allowed = {name.lower() for name in self.allowed_api}
        while True:
            verb, _, line = line.strip().partition(" ")
            if verb.lower() not in allowed:
                return False
            if verb.lower() not in _WRAPPERS or verb.lower() in ("eval", "expand") or not line:
                return True


def find_user(users: Mapping[str, User], credentials: str) -> User | None:
    """The user of ``user@domain:password``, None when there is none or the password is wrong."""
    name, colon, password = credentials.partition(":")
    if not colon:
        return None
    user = users.get(name) or users.get(name.partition("@")[0])
    return user if user is not None and user.password == password else None
