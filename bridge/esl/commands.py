"""Commands to bytes, ready to be written in one piece.

This room never lets an argument end a line: CR, LF and NUL are refused, since FreeSWITCH would run what follows as
further commands. It never %-encodes: FreeSWITCH does not decode what it is sent.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final, Literal

from bridge.errors import InvalidCommand

# Longer ones overrun FreeSWITCH's 512-byte reply, whose blank line is then missing.
_JOB_UUID: Final = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_FORBIDDEN: Final = re.compile("[\r\n\0\ud800-\udfff]")
_FORBIDDEN_IN_BODY: Final = re.compile("[\0\ud800-\udfff]")
_NAMES: Final = {"\r": "a carriage return", "\n": "a line feed", "\0": "a NUL"}


def auth(password: str) -> bytes:
    """Authenticate with the password of event_socket.conf. A space at its end is part of it."""
    return _command(f"auth {_required('password', password)}")


def userauth(user: str, password: str) -> bytes:
    """Authenticate as a directory user, ``user@domain``."""
    if ":" in _word("user", user):
        raise InvalidCommand("user", "holds a colon")
    return _command(f"userauth {user}:{_required('password', password)}")


def api(line: str) -> bytes:
    """Run an API command; its connection does nothing else until it is done."""
    return f"api {_required('command', line)}\n\n".encode()


def bgapi(line: str, job_uuid: str) -> bytes:
    """Run an API command in the background under a Job-UUID of our own."""
    if not _JOB_UUID.fullmatch(job_uuid):
        raise InvalidCommand("job_uuid", "not 1 to 64 of A-Z a-z 0-9 . _ : -")
    return _command(f"bgapi {_required('command', line)}", [("Job-UUID", job_uuid)])


def event(format: Literal["json", "plain", "xml"], names: Iterable[str], subclasses: Iterable[str] = ()) -> bytes:
    """Subscribe. CUSTOM goes last: FreeSWITCH takes every word behind it for a subclass."""
    if format not in ("json", "plain", "xml"):
        raise InvalidCommand("format", "not json, plain or xml")
    return _command(" ".join(["event", format, *_subscription(names, subclasses)]))


def nixevent(names: Iterable[str], subclasses: Iterable[str] = ()) -> bytes:
    """Unsubscribe. After it a subscription to ALL no longer grows with CUSTOM subclasses registered later."""
    return _command(" ".join(["nixevent", *_subscription(names, subclasses)]))


def noevents() -> bytes:
    """Unsubscribe from all events and drop those that are queued."""
    return _command("noevents")


def filter_add(header: str, value: str) -> bytes:
    """Let pass what has this value. Several filters are alternatives; only negative ones let nothing pass."""
    if _header_name("header", header).lower() in ("add", "delete"):
        raise InvalidCommand("header", "add and delete are words of the filter command")
    return _command(f"filter {header} {_required('value', value)}")


def filter_delete(header: str, value: str | None = None) -> bytes:
    """Remove a filter, or all of a header; ``filter_delete("all")`` removes every one."""
    words = ["filter delete", _header_name("header", header)]
    if value is not None:
        words.append(_required("value", value))
    return _command(" ".join(words))


def sendmsg(uuid: str | None, headers: Mapping[str, str], body: str | None = None) -> bytes:
    """Send a message to a call; ``uuid`` None means the call of an outbound socket."""
    line = "sendmsg" if uuid is None else f"sendmsg {_word('uuid', uuid)}"
    return _command(line, _headers(headers, body), body)


def execute(
    uuid: str | None,
    app: str,
    arg: str = "",
    event_uuid: str | None = None,
    *,
    loops: int | None = None,
    event_lock: bool = False,
) -> bytes:
    """Queue a dialplan application on a call.

    ``event_uuid`` comes back as Application-UUID of its CHANNEL_EXECUTE and CHANNEL_EXECUTE_COMPLETE. An argument of
    several lines travels as the message's body.
    """
    headers = [("call-command", "execute"), ("execute-app-name", _word("app", app))]
    body = None
    if "\n" in arg:
        if "\r" in arg:
            raise InvalidCommand("arg", "holds a carriage return")
        headers.append(("content-type", "text/plain"))
        body = _checked("arg", arg, _FORBIDDEN_IN_BODY)
    elif arg:
        headers.append(("execute-app-arg", _checked("arg", arg)))
    if event_uuid is not None:
        headers.append(("Event-UUID", _word("event_uuid", event_uuid)))
    if loops is not None:
        headers.append(("loops", str(int(loops))))
    if event_lock:
        headers.append(("event-lock", "true"))
    line = "sendmsg" if uuid is None else f"sendmsg {_word('uuid', uuid)}"
    return _command(line, headers, body)


def hangup(uuid: str | None, cause: str = "NORMAL_CLEARING") -> bytes:
    """Hang a call up."""
    line = "sendmsg" if uuid is None else f"sendmsg {_word('uuid', uuid)}"
    return _command(line, [("call-command", "hangup"), ("hangup-cause", _word("cause", cause))])


def sendevent(name: str, headers: Mapping[str, str], body: str | None = None) -> bytes:
    """Fire an event. With the Unique-ID of a live call it goes to that call's queue and to nobody else."""
    return _command(f"sendevent {_word('event', name)}", _headers(headers, body), body)


def log(level: str | int = "debug") -> bytes:
    """Have FreeSWITCH's log lines sent, from this level (a name or 0 to 7) up."""
    return _command(f"log {_word('level', str(level))}")


def nolog() -> bytes:
    """Have no more log lines sent."""
    return _command("nolog")


def exit_() -> bytes:
    """Say goodbye; FreeSWITCH answers and closes."""
    return _command("exit")


def linger(seconds: int | None = None) -> bytes:
    """Keep an outbound socket open after the hangup, for this long or until it is closed."""
    return _command("linger" if seconds is None else f"linger {int(seconds)}")


def nolinger() -> bytes:
    """Take ``linger`` back."""
    return _command("nolinger")


def myevents(uuid: str | None = None, format: Literal["json", "plain", "xml"] | None = None) -> bytes:
    """Have the events of one call sent.

    On an inbound socket (``uuid`` given) FreeSWITCH ignores a format here: send ``event json`` first.
    """
    words = ["myevents"]
    if uuid is not None:
        words.append(_word("uuid", uuid))
    if format is not None:
        words.append(_word("format", format))
    return _command(" ".join(words))


def divert_events(on: bool) -> bytes:
    """Send the call's input events (DTMF and others) to this socket only, or to the bus again."""
    return _command(f"divert_events {'on' if on else 'off'}")


def connect() -> bytes:
    """Ask for the channel's data on an outbound socket; the first thing to send there."""
    return _command("connect")


def resume() -> bytes:
    """Let the dialplan go on when this outbound socket closes."""
    return _command("resume")


def _command(line: str, headers: Iterable[tuple[str, str]] = (), body: str | None = None) -> bytes:
    """Render a command whose parts are checked. The length is in bytes and computed last."""
    lines = [line, *[f"{name}: {value}" for name, value in headers]]
    if body is None:
        return ("\n".join(lines) + "\n\n").encode()
    payload = body.encode()
    return ("\n".join(lines) + f"\nContent-Length: {len(payload)}\n\n").encode() + payload


def _checked(field: str, text: str, forbidden: re.Pattern[str] = _FORBIDDEN) -> str:
    found = forbidden.search(text)
    if found:
        raise InvalidCommand(field, f"holds {_NAMES.get(found[0], 'half a surrogate pair')}")
    return text


def _required(field: str, text: str) -> str:
    if not _checked(field, text).strip():
        raise InvalidCommand(field, "is empty")
    return text


def _word(field: str, text: str) -> str:
    if len(_required(field, text).split(None, 1)) != 1 or text != text.strip():
        raise InvalidCommand(field, "holds a space")
    return text


def _header_name(field: str, name: str) -> str:
    if ":" in _word(field, name):
        raise InvalidCommand(field, "holds a colon")
    return name


def _headers(headers: Mapping[str, str], body: str | None) -> list[tuple[str, str]]:
    """Check a caller's headers: the length is ours to compute."""
    if body is not None:
        _checked("body", body, _FORBIDDEN_IN_BODY)
    pairs: list[tuple[str, str]] = []
    for name, value in headers.items():
        field = f"headers.{name if _FORBIDDEN.search(name) is None else '?'}"
        plain, index, _ = _header_name(field, name).lower().partition("[")
        if plain == "content-length":
            raise InvalidCommand(field, "is computed from the body")
        if plain == "command" and index:
            raise InvalidCommand(field, "would take the place of the command")
        pairs.append((name, _checked(field, value)))
    return pairs


def _subscription(names: Iterable[str], subclasses: Iterable[str]) -> list[str]:
    wanted = [_word("names", name) for name in names]
    custom = [_word("subclasses", subclass) for subclass in subclasses]
    words = [name for name in wanted if name.upper() != "CUSTOM"]
    if custom or len(words) < len(wanted):
        words += ["CUSTOM", *custom]
    if not words:
        raise InvalidCommand("names", "no event is named")
    return words
