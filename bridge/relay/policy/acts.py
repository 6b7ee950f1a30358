"""What a request would make FreeSWITCH do: its command or application, and every one wrapped inside.

It never decides whether that is allowed. Where several readings are possible it reports more rather than less.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator

from bridge.messages.request import CommandRequest
from bridge.relay.policy import text as texts
from bridge.relay.policy.patterns import Act, ActKind, canonical
from bridge.relay.policy.text import Unreadable

MAX_ACTS = 64
MAX_DEPTH = 16
MAX_LENGTH = 65_536
MAX_READ = 2 * MAX_LENGTH

Found = tuple[ActKind, str, str]


def acts_of(request: CommandRequest) -> list[Act]:
    """Every act of a request, the outermost first. Raises ``Unreadable``, with those that were found before."""
    reader = _Reader()
    try:
        _read(request, reader)
    except Unreadable as error:
        error.acts = reader.acts
        raise
    return reader.acts


def _read(request: CommandRequest, reader: _Reader) -> None:
    op = request.op
    if op in ("api", "bgapi"):
        reader.read("api", *_split(request.command))
    elif op == "execute":
        reader.read("app", request.app, request.arg)
        for app in texts.values(request.app):  # both travel as headers
            for argument in texts.values(request.arg):
                reader.read("app", app, argument)
    elif op == "hangup":
        reader.add("op", "hangup", f"{request.uuid} {request.cause}")
    elif op == "sendmsg":
        for command in list(_headers(request, "call-command")) or [""]:
            reader.add("op", "sendmsg", command)
        reader.read_message(request)
    else:
        reader.add("op", "sendevent", request.event)
        reader.read_message(request)


def plain_verb(line: str) -> str:
    """The command of an API line that cannot hold another one, in lower case; "" for a line that has to be read.

    Such a line is one act: its command with its arguments, whatever those are.
    """
    found = _PLAIN.fullmatch(line)
    if found is None:
        return ""
    verb = found[1].lower()
    if verb in _WRAPPERS or f"api:{verb}" in _WRAPPERS or (found[2] and "inline" in line.lower()):
        return ""
    return verb


def block_of(request: CommandRequest) -> str:
    """The text of all lines that would be written for the request, in lower case, for ``text:`` patterns."""
    if request.op in ("api", "bgapi"):
        return request.command.lower()
    lines = [request.uuid, request.app, request.arg, request.cause, request.event]
    if request.headers:
        lines += [f"{name}: {value}" for name, value in request.headers.items()]
        if _header(request, "call-command"):
            lines.append(request.body)
    return "\n".join(lines).lower()


class _Reader:
    """Collects acts, and bounds how deep and how long a request may be read."""

    def __init__(self) -> None:
        self.acts: list[Act] = []
        self._seen: set[Found] = set()
        self._depth = 0
        self._past_end = 0
        self._left = MAX_READ

    def add(self, kind: ActKind, name: str, arguments: str) -> None:
        if len(self.acts) >= MAX_ACTS:
            raise Unreadable(f"more than {MAX_ACTS} commands in one")
        found = canonical(name)
        line = canonical(f"{name} {arguments}") if arguments else found
        computed = kind == "api" and self._depth > 0 and "${" in arguments
        self.acts.append(Act(kind, found, line, computed))

    def read(self, kind: ActKind, name: str, arguments: str) -> None:
        """Add one command or application and all that its arguments hold."""
        if (kind, name, arguments) in self._seen:
            return
        self._seen.add((kind, name, arguments))
        if self._depth and "$" in name:
            raise Unreadable("a command whose name is computed by an expansion")
        self.add(kind, name, arguments)
        if not arguments:
            return
        if len(arguments) > MAX_LENGTH:
            if _HARMLESS_LONG.match(name.lower()):
                return
            raise Unreadable(f"arguments of more than {MAX_LENGTH} characters")
        if self._depth >= MAX_DEPTH:
            raise Unreadable(f"commands nested deeper than {MAX_DEPTH}")
        self._depth += 1
        known = self.acts[-1].name
        if known in _DIAL_STRINGS and not self._past_end:
            texts.check_balance(arguments)
        wrapper = _WRAPPERS.get(f"{kind}:{known}") or _WRAPPERS.get(known)
        if wrapper is not None:
            for found in wrapper(arguments):
                self.read(*found)
        if arguments.startswith("^^"):
            for other in texts.redelimited(arguments):
                self.read(kind, name, other)
        self.read_text(arguments)
        self._depth -= 1

    def read_text(self, text: str) -> None:
        """Add whatever a text holds that FreeSWITCH would run, whoever it belongs to: with its quotes, as variables
        keep them, without them, as the parts of a line lose them, and with the usual delimiters.
        """
        bare = texts.bare(text)
        others = list(texts.redelimited_within(bare)) if "^^" in bare else []
        for one in (text,) if bare is text and not others else dict.fromkeys((text, bare, *others)):
            self._charge(one)
            self._read_as_it_is(one)
        if "inline" in bare.lower():
            for one in dict.fromkeys((text, text.replace('"', ""), *others)):  # its words need their quotes
                self._charge(one)
                for name, arguments in texts.inline_apps(one):
                    self.read("app", name, arguments)

    def _charge(self, text: str) -> None:
        self._left -= len(text)
        if self._left < 0:
            raise Unreadable(f"more than {MAX_READ} characters in all that it holds")

    def _read_as_it_is(self, text: str) -> None:
        if "$" in text or "%" in text:
            for line in texts.expansions(text):
                self.read("api", *_split(line))
            hidden = texts.decoded(text)
            if hidden and hidden != text:
                for line in texts.expansions(hidden):
                    self.read("api", *_split(line))
        if "=" in text:
            self._past_end += 1  # what a variable holds is read to the end of the text, where brackets need not pair
            for kind, name, arguments in texts.hooks(text):
                self.read("api" if kind == "api" else "app", name, arguments)
            self._past_end -= 1
            for name, arguments in texts.endpoint_apps(text):
                self.read("app", name, arguments)
        if "&" in text:
            for name, arguments in texts.ampersand_apps(text):
                self.read("app", name, arguments)

    def read_message(self, request: CommandRequest) -> None:
        """The headers of ``sendmsg``, and of a ``sendevent`` that FreeSWITCH may take for one."""
        command = _header(request, "call-command").lower()
        if command:
            for name in _headers(request, "execute-app-name"):
                for argument in (*_headers(request, "execute-app-arg"), *_body(request)) or ("",):
                    self.read("app", name, argument)
            for line in _headers(request, "application"):
                self.read("app", *_split(line))
        if _header(request, "dest_proto").lower() == "api":  # a chat message that mod_dptools runs as a command
            for line in (*_headers(request, "to"), *_body(request)):
                self.read("api", *_split(line))


# Names, numbers, uuids, addresses and paths, one space apart: none of what `read_text` looks for, no quote, no bracket.
_PLAIN = re.compile(r"([A-Za-z]\w*)( [\w.:/@,+-]+)*", re.ASCII)

# Commands with long arguments that FreeSWITCH only stores or sends.
_HARMLESS_LONG = re.compile(r"(?:uuid_chat|uuid_send_\w+|uuid_display|hash|db|log|uuid_phone_event)\Z")


def _header(request: CommandRequest, wanted: str) -> str:
    return next(_headers(request, wanted), "")


def _headers(request: CommandRequest, wanted: str) -> Iterator[str]:
    """All values of a header, as FreeSWITCH reads them: an index belongs to no name, an empty one is not there."""
    for name, value in request.headers.items():
        if name.partition("[")[0].lower() == wanted:
            yield from filter(None, texts.values(value))


def _body(request: CommandRequest) -> Iterator[str]:
    """The body; FreeSWITCH takes it from a header ``_body``, too."""
    yield from filter(None, (request.body, *_headers(request, "_body")))


def _split(line: str) -> tuple[str, str]:
    name, *rest = line.split(None, 1) or [""]
    return name, rest[0] if rest else ""


def _after_uuid(arguments: str) -> Iterator[Found]:
    """``bgapi`` and ``expand``: ``[uuid:<uuid>] command arguments``."""
    if arguments.lower().startswith("uuid:"):
        arguments = _split(arguments)[1]
    if arguments:
        yield "api", *_split(arguments)


def _xml_wrap(arguments: str) -> Iterator[Found]:
    first, rest = _split(arguments)
    yield "api", *_split(rest if first.lower() == "encoded" else arguments)


def _sched_api(arguments: str) -> Iterator[Found]:
    """``[+@]time group command[&]``."""
    line = _split(_split(arguments)[1])[1].rstrip()
    if line:
        yield "api", *_split(line.removesuffix("&"))


def _json(arguments: str) -> Iterator[Found]:
    """``{"command": "fsapi", "data": {"cmd": ..., "arg": ...}}``, wherever in the document it stands.

    FreeSWITCH takes the first of several equal keys, in upper or lower case: all of them count.
    """
    try:
        waiting: list[object] = [json.loads(arguments, object_pairs_hook=tuple)]
    except (ValueError, RecursionError):
        raise Unreadable("arguments of json that are no JSON") from None
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        elif isinstance(value, tuple):
            pairs: list[tuple[str, object]] = [(name.lower(), inner) for name, inner in value]
            waiting += [inner for _, inner in pairs]
            texts_of = {
                key: dict.fromkeys(str(inner or "") for name, inner in pairs if name == key) for key in ("cmd", "arg")
            }
            for command in texts_of["cmd"]:
                for argument in texts_of["arg"] or [""]:
                    yield "api", *_split(f"{command} {argument}")


def _chat(arguments: str) -> Iterator[Found]:
    """``proto|from|to|text``: the chat protocol ``api`` runs what it is sent."""
    protocol, *fields = arguments.split("|")
    if canonical(protocol) == "api":
        for field in fields:
            if field.strip():
                yield "api", *_split(field)


def _set_variable(arguments: str) -> Iterator[Found]:
    """``uuid_setvar <uuid> <name> <value>``."""
    found = arguments.split(None, 2)
    yield from _hook(*found[1:]) if len(found) == 3 else ()


def _push(arguments: str) -> Iterator[Found]:
    """``set name,value``: a comma serves where there is no ``=``."""
    name, _, value = arguments.partition(",")
    yield from _hook(name.strip(), value)


def _hook(variable: str, value: str) -> Iterator[Found]:
    for kind, name, arguments in texts.hook(variable, value):
        yield "api" if kind == "api" else "app", name, arguments


def _cuts(arguments: str, limit: int, at_least: int = 0) -> Iterator[list[str]]:
    """The words, ``"`` being a quote and, as in FreeSWITCH itself, being none; where there are enough of them."""
    for text in dict.fromkeys((arguments, arguments.replace('"', ""))):
        found = texts.words(text, limit)
        if len(found) >= (at_least or limit):
            yield found


def _broadcast(*positions: int) -> Callable[[str], Iterator[Found]]:
    """``uuid_broadcast <uuid> <path>`` and its kin: the path may be ``app::argument``."""

    def read(arguments: str) -> Iterator[Found]:
        for position in positions:
            for found in _cuts(arguments, position + 1):
                app = texts.broadcast_app(found[position].strip("'\""))
                if app is not None:
                    yield "app", *app

    return read


def _app_at(position: int) -> Callable[[str], Iterator[Found]]:
    """The word at this position is an application, what follows its argument."""

    def read(arguments: str) -> Iterator[Found]:
        for found in _cuts(arguments, position + 2, position + 1):
            yield "app", found[position], found[position + 1] if len(found) > position + 1 else ""

    return read


_DIGIT_ACTION = re.compile(r"(?<![A-Za-z])(exec|api):(?:[a-z]+:)?([^\s,:]+),?", re.IGNORECASE)
_BEHIND_FLAGS = re.compile(r"\]:([^\s,:]+),?")


def _digit_action(arguments: str) -> Iterator[Found]:
    """``realm,digits,exec:app,argument`` or ``...,api:command,argument``; flags may stand between, ``exec[i]:app``."""
    text = texts.bare(arguments)
    for match in _DIGIT_ACTION.finditer(text):
        yield ("api" if match[1].lower() == "api" else "app"), match[2], text[match.end() :]
    if "exec[" in text.lower():
        for match in _BEHIND_FLAGS.finditer(text):  # brackets within brackets: what ends them is not worth counting
            yield "app", match[1], text[match.end() :]


# Commands and applications whose arguments hold further ones in a way of their own. What `read_text` finds anywhere
# (`${...}`, `&app`, inline dialplans, variables that hold commands) needs no entry.
_WRAPPERS: dict[str, Callable[[str], Iterator[Found]]] = {
    "bgapi": _after_uuid,
    "expand": _after_uuid,
    "xml_wrap": _xml_wrap,
    "sched_api": _sched_api,
    "json": _json,
    "chat": _chat,
    "uuid_setvar": _set_variable,
    "app:set": _push,
    "app:export": _push,
    "bridge_export": _push,
    "push": _push,
    "unshift": _push,
    "uuid_broadcast": _broadcast(1),
    "sched_broadcast": _broadcast(1, 2),  # the application has no uuid
    "bind_meta_app": _broadcast(3),
    "limit_execute": _app_at(4),
    "limit_hash_execute": _app_at(3),
    "app:tone_detect": _app_at(4),
    "api:tone_detect": _app_at(5),
    "bind_digit_action": _digit_action,
}

# Dial strings hold variables and applications: where a part ends must be certain.
_DIAL_STRINGS = frozenset({"originate", "bridge", "att_xfer"})
