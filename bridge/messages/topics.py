"""The grammar of addresses on the bus: tokens, topic templates, reply addresses, node names.

It never talks to a broker and never decides what is published.

Cut values: a token over 128 bytes keeps its first bytes (never half a ``%XX``) and ends in ``~`` and the first
16 hex digits of the SHA-256 of the value's UTF-8 form *before* escaping; an address over 512 bytes likewise,
with the SHA-256 of the whole uncut address. ``~`` occurs nowhere else.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable
from hashlib import sha256

MAX_TOKEN = 128
MAX_ADDRESS = 512
MAX_REPLY_ADDRESS = 256
MAX_REPLY_SUBJECT = 1024

DEFAULT_TOPIC = "fs.events.{event}"
NOTICE_PREFIX = "fs.bridge."
NATS_REPLY_ADDRESSES = ("_INBOX.>", "esl.reply.>")
REDIS_REPLY_ADDRESSES = ("esl.reply.*", "pubsub:esl.reply.*")

MISSING = "-"
_CUT_MARK = 17  # "~" and 16 hex digits
_CACHE_LIMIT = 4096

_PLAIN_TOKEN = re.compile(r"[A-Za-z0-9_:-]{1,128}\Z")
_KEPT = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_:-")
_ESCAPED = tuple(chr(byte) if byte in _KEPT else f"%{byte:02X}" for byte in range(256))
_TOKEN = re.compile(r"(?:[A-Za-z0-9_:-]|%[0-9A-F]{2})*\Z")
_NODE_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_HEADER_NAME = re.compile(r"[A-Za-z0-9_\-.\[\]]+\Z")
_BAD_IN_ADDRESS = re.compile(r"[\s\x00-\x1f\x7f*?>\[\]\\]")

_UNPUBLISHABLE = re.compile(r"[\x00-\x20\x7f*>\ud800-\udfff]")

_FIXED = ("event", "name", "subclass", "node", "uuid")
_PER_TOPIC = frozenset(("event", "name", "subclass", "node"))
_RESERVED_TEMPLATES = ("fs.bridge", "esl.cmd", "esl.queue", "esl.dead", "esl.reply")
_RESERVED_REPLIES = ("$", "fs.", "esl.cmd", "esl.queue", "esl.dead", "{esl.")

# The usual address in one look; what it does not know is looked at closely.
_GOOD_REPLY = re.compile(
    r"(?!\$|fs\.|esl\.cmd|esl\.queue|esl\.dead|pubsub:)(?=.{1,256}\Z)[A-Za-z0-9_:-]+(?:\.[A-Za-z0-9_:-]+)*\Z"
)

_event_tokens: dict[tuple[str, str], str] = {}


def escape_token(value: str | bytes) -> str:
    """Make one address token of any value: ``%XX`` for all but ``A-Z a-z 0-9 _ : -``, ``-`` for nothing.

    The text ``-`` itself becomes ``%2D``, so that it is not taken for a missing value.
    """
    if isinstance(value, str):
        if _PLAIN_TOKEN.match(value) and value != MISSING:
            return value
        value = value.encode("utf-8", "surrogatepass")
    if not value:
        return MISSING
    if value == b"-":
        return "%2D"
    token = "".join([_ESCAPED[byte] for byte in value])
    return token if len(token) <= MAX_TOKEN else _cut(token, MAX_TOKEN, value)


def unescape_token(token: str) -> str:
    """Give back the value of a token; ``-`` gives the empty text.

    Raises ``ValueError`` for what is not a token and for a cut one, whose value is lost.
    """
    if token == MISSING:
        return ""
    if "~" in token:
        raise ValueError(f"the token was cut, its value is lost: {token}")
    if not token or not _TOKEN.match(token):
        raise ValueError(f"not an address token: {token!r}")
    if "%" not in token:
        return token
    head, *rest = token.encode().split(b"%")
    value = head + b"".join([bytes((int(part[:2], 16),)) + part[2:] for part in rest])
    try:
        return value.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:  # it was made of bytes that are not UTF-8
        return value.decode("utf-8", "replace")


def event_token(name: str, subclass: str = "") -> str:
    """``<EVENT>``: the event's name, or ``CUSTOM:<subclass>`` for a CUSTOM event that has one."""
    key = (name, subclass)
    token = _event_tokens.get(key)
    if token is None:
        token = escape_token(f"CUSTOM:{subclass}" if name == "CUSTOM" and subclass else name)
        if len(_event_tokens) >= _CACHE_LIMIT:
            _event_tokens.clear()
        _event_tokens[key] = token
    return token


def notice_topic(kind: str) -> str:
    """``fs.bridge.<kind>``."""
    return NOTICE_PREFIX + escape_token(kind)


def check_node_name(name: str) -> str:
    """Return the name. Raises ``ValueError`` for what cannot name a node (``any`` and ``all`` are words of ``to``)."""
    if not _NODE_NAME.match(name):
        raise ValueError(f"a node name is 1 to 64 of A-Z a-z 0-9 _ -, not {name!r}")
    if name in ("any", "all"):
        raise ValueError(f"a node cannot be called {name!r}: requests use the word for something else")
    return name


def _cut(text: str, limit: int, whole: bytes) -> str:
    kept = text[: limit - _CUT_MARK]
    half = kept.rfind("%", len(kept) - 2)
    if half >= 0:
        kept = kept[:half]
    return f"{kept}~{sha256(whole).hexdigest()[:16]}"


class TopicTemplate:
    """An address with placeholders, compiled once.

    ``{event}``, ``{name}``, ``{subclass}``, ``{node}``, ``{uuid}`` or the name of any header. Raises
    ``ValueError`` naming the fault.

    ``placeholders``   their names, in order of appearance
    ``needs_headers``  True when the event's headers must be looked into
    ``per_topic``      True when ``sequence`` counts per topic (only event, name, subclass, node occur)
    ``literal_prefix`` the whole tokens before the first placeholder with their dots, ``fs.events.``
    ``pattern``        what a subscriber of all its topics subscribes to, ``fs.events.*``
    """

    __slots__ = ("_cache", "_tokens", "literal_prefix", "needs_headers", "pattern", "per_topic", "placeholders", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self._tokens = _compile(text)
        self.placeholders = tuple(
            dict.fromkeys(part for token in self._tokens for kind, part in token if kind != "literal")
        )
        self.needs_headers = any(kind == "header" for token in self._tokens for kind, _ in token)
        self.per_topic = _PER_TOPIC.issuperset(self.placeholders)
        prefix = ""
        for token in self._tokens:
            if token[0][0] != "literal" or len(token) > 1:
                break
            prefix += token[0][1] + "."
        self.literal_prefix = prefix if self.placeholders else prefix[:-1]
        self.pattern = ".".join(
            token[0][1] if len(token) == 1 and token[0][0] == "literal" else "*" for token in self._tokens
        )
        self._cache: dict[tuple[str, str, str], str] = {}

    def __repr__(self) -> str:
        return f"TopicTemplate({self.text!r})"

    def render(
        self,
        *,
        name: str,
        subclass: str = "",
        node: str = "",
        uuid: str = "",
        header: Callable[[str], str | None] | None = None,
    ) -> str:
        """The address of one event; ``header`` is asked for the value of every header placeholder."""
        if not self.per_topic:
            return self._build(name, subclass, node, uuid, header)
        key = (name, subclass, node)
        address = self._cache.get(key)
        if address is None:
            address = self._build(name, subclass, node, uuid, header)
            if len(self._cache) >= _CACHE_LIMIT:
                self._cache.clear()
            self._cache[key] = address
        return address

    def _build(self, name: str, subclass: str, node: str, uuid: str, header: Callable[[str], str | None] | None) -> str:
        fixed = {"name": name, "subclass": subclass, "node": node, "uuid": uuid}
        tokens = []
        for parts in self._tokens:
            token = ""
            for kind, part in parts:
                if kind == "literal":
                    token += part
                elif part == "event":
                    token += event_token(name, subclass)
                elif kind == "fixed":
                    token += escape_token(fixed[part])
                else:
                    token += escape_token((header(part) if header is not None else None) or "")
            tokens.append(token if len(token) <= MAX_TOKEN else _cut(token, MAX_TOKEN, token.encode()))
        address = ".".join(tokens)
        return address if len(address) <= MAX_ADDRESS else _cut(address, MAX_ADDRESS, address.encode())


def _compile(text: str) -> tuple[tuple[tuple[str, str], ...], ...]:
    """Tokens, each a row of ``(kind, text)`` with kind literal, fixed or header."""
    if not text:
        raise ValueError("a topic template must not be empty")
    # Dots inside braces belong to a header's name, so the placeholders are taken out before the tokens are cut.
    tokens: list[list[tuple[str, str]]] = [[]]
    position = 0
    for match in [*_PLACEHOLDER.finditer(text), None]:
        literal = text[position : match.start() if match else len(text)]
        first, *more = literal.split(".")
        _add_literal(tokens[-1], first, text)
        for part in more:
            tokens.append([])
            _add_literal(tokens[-1], part, text)
        if match:
            tokens[-1].append(_placeholder(match[1], text))
            position = match.end()
    if any(not token for token in tokens):
        raise ValueError(f"topic template {text!r} has an empty token (two dots, or a dot at an end)")
    if any(kind != "literal" for kind, _ in tokens[0]):
        raise ValueError(f"topic template {text!r} must start with a literal token, such as 'fs.'")
    if sum(len(part) + 1 for token in tokens for kind, part in token if kind == "literal") > MAX_ADDRESS // 2:
        raise ValueError(f"topic template {text!r} is too long: at most {MAX_ADDRESS // 2} bytes of literals")
    for reserved in _RESERVED_TEMPLATES:
        if text == reserved or text.startswith(reserved + "."):
            raise ValueError(f"topic template {text!r} lies under {reserved!r}, which the bridge keeps for itself")
    return tuple(tuple(token) for token in tokens)


def _add_literal(token: list[tuple[str, str]], text: str, template: str) -> None:
    for char in text:
        if char in "{}":
            raise ValueError(f"topic template {template!r} has an unbalanced {char!r}")
        if char in "*>":
            raise ValueError(f"topic template {template!r} holds the wildcard {char!r}")
        if char.isspace():
            raise ValueError(f"topic template {template!r} holds a space")
        if char not in "_:-" and not (char.isascii() and char.isalnum()):
            raise ValueError(f"topic template {template!r} holds {char!r}; literals are A-Z a-z 0-9 _ : - and dots")
    if text:
        token.append(("literal", text))


def _placeholder(name: str, template: str) -> tuple[str, str]:
    if name in _FIXED:
        return "fixed", name
    if not name:
        raise ValueError(f"topic template {template!r} has an empty placeholder")
    if name.lower() in _FIXED:
        raise ValueError(f"topic template {template!r}: write {{{name.lower()}}} for {{{name}}}")
    if not _HEADER_NAME.match(name):
        raise ValueError(f"topic template {template!r}: {{{name}}} is neither a known placeholder nor a header's name")
    return "header", name


def reply_address_fault(address: str) -> str:
    """Why a text cannot be a reply address whatever the settings say; empty when it can."""
    if _GOOD_REPLY.match(address):
        return ""
    if not address:
        return "must not be empty"
    if len(address.encode("utf-8", "surrogatepass")) > MAX_REPLY_ADDRESS:
        return f"longer than {MAX_REPLY_ADDRESS} bytes"
    if _BAD_IN_ADDRESS.search(address) or not address.isprintable():
        return "holds a wildcard, a space or a control character"
    channel = address.removeprefix("pubsub:")
    if not channel or channel.startswith(".") or channel.endswith(".") or ".." in channel:
        return "has an empty token"
    if channel.startswith(_RESERVED_REPLIES):
        return "lies where the bridge or the broker keeps its own"
    return ""


class ReplyAddresses:
    """The allow-list for ``reply_to``.

    Patterns are NATS subjects (``*`` one token, ``>`` at the end for the rest) or, with ``glob``, Redis globs.
    Broker-owned and bridge-owned addresses (``$...``, ``fs.``, ``esl.cmd``, ``esl.queue``, ``esl.dead``) are
    never allowed, whatever the patterns say.
    """

    __slots__ = ("_match", "patterns")

    def __init__(self, patterns: Iterable[str], *, glob: bool = False) -> None:
        self.patterns = tuple(patterns)
        sources = [fnmatch.translate(text) if glob else _subject_regex(text) for text in self.patterns]
        self._match = re.compile("|".join(f"(?:{source})" for source in sources) or r"(?!)", re.DOTALL).match

    def allows(self, address: str) -> bool:
        """True when replies may be written to ``address``."""
        return self._match(address) is not None and not reply_address_fault(address)


def _subject_regex(pattern: str) -> str:
    if not pattern or any(not token for token in pattern.split(".")):
        raise ValueError(f"reply address pattern {pattern!r} has an empty token")
    if ">" in pattern[:-1]:
        raise ValueError(f"reply address pattern {pattern!r}: '>' stands at the end only")
    tokens = [r"[^.]+" if token == "*" else r".+" if token == ">" else re.escape(token) for token in pattern.split(".")]
    return r"\.".join(tokens) + r"\Z"


def reply_subject_allowed(subject: str) -> bool:
    """True when a NATS message's own reply subject may be answered: nothing of the broker's or the bridge's.

    The server lets pass what nobody can publish to: a wildcard, a control byte, a subject without end.
    """
    if _GOOD_REPLY.match(subject):
        return True
    return (
        bool(subject)
        and not subject.startswith(("$", "fs.", "esl.cmd", "esl.queue"))
        and not _UNPUBLISHABLE.search(subject)
        and len(subject.encode("utf-8", "surrogatepass")) <= MAX_REPLY_SUBJECT
    )
