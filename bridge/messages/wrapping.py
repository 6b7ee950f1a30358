"""The envelope's bytes around an event's own: the pieces that do not change between two events are made once.

This room never decides what an envelope says, and never reads a clock.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

SPECVERSION: Final = "1.0"
TYPE_PREFIX: Final = "org.freeswitch."
SOURCE_PREFIX: Final = "/freeswitch/"
FLAGS: Final = ("synthetic", "truncated", "injected")

# Identities repeat some thirty times in a call's life, most of them within a moment. One table a node and route.
_KNOWN_SUBJECTS = 4096
_DIGITS = 10  # of a sequence at least
_TOO_LONG = 10**_DIGITS
_ALWAYS = 9  # attributes of every envelope, data among them
_MOST = _ALWAYS + 2 + len(FLAGS)

_json = msgspec.json.Encoder()
_pack = msgspec.msgpack.Encoder().encode
_read = msgspec.json.Decoder().decode


class Wrapping(ABC):
    """Envelopes of one (node, worker, epoch) in one codec."""

    def __init__(self) -> None:
        self._subjects: dict[str, str] = {}
        self._second = "-"
        self._time = ""  # of that second, up to its fraction

    @abstractmethod
    def lead(self, event: str) -> str:
        """What the envelope of an event token says between identity and subject, for ``wrap``."""

    @abstractmethod
    def wrap(
        self,
        lead: str,
        identity: str,
        subject: str,
        timestamp: str,
        sequence: int,
        data: bytes,
        flags: str = "",
    ) -> bytes:
        """The payload of an event: ``data`` with its envelope around.

        ``data`` comes from ``body()``, ``lead`` from ``lead()``, ``flags`` from ``flags()``, ``identity`` from
        ``safe()`` where it may be other than FreeSWITCH stamps it.
        """

    @abstractmethod
    def body(self, event: bytes | dict[str, Any]) -> bytes:
        """An event, as one JSON object in valid UTF-8 or as a map, in the codec."""

    @abstractmethod
    def safe(self, identity: str) -> str:
        """An identity as ``wrap`` can write it."""

    @abstractmethod
    def flags(self, names: Iterable[str]) -> str:
        """The attributes that are true, out of ``FLAGS``, as ``wrap`` can write them."""

    def time(self, timestamp: str) -> str:
        """RFC 3339 UTC from FreeSWITCH's microseconds since 1970; empty when it is no such number."""
        fraction = timestamp.removeprefix(self._second)
        if len(fraction) == 6 and fraction.isdigit() and fraction.isascii():
            return f"{self._time}{fraction}Z"
        return self._start_second(timestamp)

    def _start_second(self, timestamp: str) -> str:
        # One strftime a second of FreeSWITCH's clock, not one an event.
        time = format_time(timestamp)
        if time:
            self._second = timestamp[:-6]
            self._time = time[:-7]
        return time

    def _learn_subject(self, subject: str) -> str:
        if len(self._subjects) >= _KNOWN_SUBJECTS:
            self._subjects.clear()
        known = self._subjects[subject] = self._subject(subject)
        return known

    @abstractmethod
    def _subject(self, subject: str) -> str:
        """The piece that holds a subject."""


class JsonWrapping(Wrapping):
    """As JSON: the event's own bytes are passed through."""

    def __init__(self, node: str, worker: str, epoch: str) -> None:
        super().__init__()
        self._source = f'","source":{_quote(SOURCE_PREFIX + node)},"type":"{TYPE_PREFIX}'
        self._end = f',"node":{_quote(node)},"worker":{_quote(worker)},"epoch":{_quote(epoch)},"sequence":"'
        self._tail = 'Z"' + self._end
        self._second_text = ""

    def lead(self, event: str) -> str:
        """See ``Wrapping``."""
        # Only the event token is known to need no quoting (topics.event_token escapes it).
        return f'{self._source}{event}"'

    def body(self, event: bytes | dict[str, Any]) -> bytes:
        """See ``Wrapping``."""
        return event if isinstance(event, bytes) else _json.encode(event)

    def safe(self, identity: str) -> str:
        """See ``Wrapping``."""
        return identity if _is_plain(identity) else _quote(identity)[1:-1]

    def flags(self, names: Iterable[str]) -> str:
        """See ``Wrapping``."""
        return "".join([f',"{name}":true' for name in names])

    def wrap(
        self,
        lead: str,
        identity: str,
        subject: str,
        timestamp: str,
        sequence: int,
        data: bytes,
        flags: str = "",
    ) -> bytes:
        """See ``Wrapping``."""
        said = (self._subjects.get(subject) or self._learn_subject(subject)) if subject else ""
        number = str(sequence).zfill(_DIGITS)
        fraction = timestamp.removeprefix(self._second)
        if len(fraction) == 6 and fraction.isdigit() and fraction.isascii():
            text = (
                f'{{"specversion":"1.0","id":"{identity}{lead}{said}{self._second_text}{fraction}'
                f'{self._tail}{number}"{flags},"data":'
            )
        else:
            time = self._start_second(timestamp)
            timed = f',"time":"{time}"' if time else ""
            text = f'{{"specversion":"1.0","id":"{identity}{lead}{said}{timed}{self._end}{number}"{flags},"data":'
        return b"".join((text.encode(), data, b"}"))

    def _start_second(self, timestamp: str) -> str:
        time = super()._start_second(timestamp)
        self._second_text = f',"time":"{self._time}'
        return time

    def _subject(self, subject: str) -> str:
        return f',"subject":{_quote(subject)}'


class PackedWrapping(Wrapping):
    """As msgpack: one map, whose last value is the event's own map.

    Text is put together, which costs a third of what bytes do; its characters are the bytes (Latin-1).
    """

    def __init__(self, node: str, worker: str, epoch: str) -> None:
        super().__init__()
        version = _packed("specversion") + _packed(SPECVERSION) + _packed("id")
        self._starts = [f"{chr(0x80 | count)}{version}" for count in range(_MOST + 1)]
        self._source = _packed("source") + _packed(SOURCE_PREFIX + node) + _packed("type")
        origin = {"node": node, "worker": worker, "epoch": epoch}
        self._origin = "".join([_packed(text) for pair in origin.items() for text in pair])
        self._origin += _packed("sequence")

    def lead(self, event: str) -> str:
        """See ``Wrapping``."""
        return self._source + _packed(TYPE_PREFIX + event)

    def body(self, event: bytes | dict[str, Any]) -> bytes:
        """See ``Wrapping``."""
        return _pack(_read(event) if isinstance(event, bytes) else event)

    def safe(self, identity: str) -> str:
        """See ``Wrapping``."""
        return identity

    def flags(self, names: Iterable[str]) -> str:
        """See ``Wrapping``."""
        return "".join([f"{_packed(name)}{_TRUE}" for name in names])

    def wrap(
        self,
        lead: str,
        identity: str,
        subject: str,
        timestamp: str,
        sequence: int,
        data: bytes,
        flags: str = "",
    ) -> bytes:
        """See ``Wrapping``."""
        count, said, timed = _ALWAYS, "", ""
        if subject:
            said = self._subjects.get(subject) or self._learn_subject(subject)
            count += 1
        time = self.time(timestamp)
        if time:
            timed = f"{_TIME}{time}"
            count += 1
        if flags:
            count += flags.count(_TRUE)
        size = len(identity)
        known = f"\xd9{chr(size)}{identity}" if 32 <= size < 256 and identity.isascii() else _packed(identity)
        number = str(sequence).zfill(_DIGITS)
        counted = f"{_NUMBER}{number}" if sequence < _TOO_LONG else _packed(number)
        text = f"{self._starts[count]}{known}{lead}{said}{timed}{self._origin}{counted}{flags}{_DATA}"
        return text.encode("latin-1") + data

    def _subject(self, subject: str) -> str:
        return _packed("subject") + _packed(subject)


def _quote(text: str) -> str:
    """The text as a JSON string, quotes and all."""
    return _json.encode(text).decode()


def _is_plain(identity: str) -> bool:
    """Whether an identity is what FreeSWITCH stamps: hex digits, dashes and one colon, which need no quoting."""
    return identity.replace("-", "").replace(":", "").isalnum() and identity.isascii()


def format_time(timestamp: str) -> str:
    """RFC 3339 UTC with microseconds from FreeSWITCH's microseconds since 1970; empty when it is no such number."""
    if not (timestamp.isascii() and timestamp.isdigit() and 7 <= len(timestamp) <= 17):
        return ""
    second = datetime.fromtimestamp(int(timestamp[:-6]), UTC)
    return f"{second:%Y-%m-%dT%H:%M:%S}.{timestamp[-6:]}Z"


def _packed(value: Any) -> str:
    return _pack(value).decode("latin-1")


def _head(length: int) -> str:
    """What stands in front of a text of so many bytes, fewer than 32."""
    return chr(0xA0 | length)


_TIME = _packed("time") + _head(len("2026-11-22T19:32:47.373164Z"))
_NUMBER = _head(_DIGITS)
_DATA = _packed("data")
_TRUE = _packed(True)
