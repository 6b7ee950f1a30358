"""JetStream: its streams, made when they are absent, and the check that none swallows a queue. Never consumes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

import msgspec

from bridge.bus.base import StreamSpec
from bridge.bus.nats.inbox import ask
from bridge.bus.nats.keeper import LinkKeeper
from bridge.bus.nats.link import NatsLink
from bridge.bus.nats.pipeline import ACK_WINDOW, NatsAppender
from bridge.bus.nats.rights import matches_any
from bridge.bus.nats.room import NO_LIMIT, Room, largest_of, room_of
from bridge.errors import BusRefused, BusUnavailable

log = logging.getLogger(__name__)

API = "$JS.API."
API_TIMEOUT = 2.0
CREATE_TIMEOUT = 10.0
SMALLEST_STREAM = 64 << 20
"""JetStream reserves ``max_bytes`` when a stream is made; where the server has less, less is asked for."""

MOST_CAREFUL = 64 * ACK_WINDOW
"""Most messages that go one by one after a refusal."""

_NOT_FOUND, _NAME_IN_USE, _NO_ROOM = 10059, 10058, (10023, 10047)


async def check_not_captured(link: NatsLink, queue: str) -> None:
    """Raise ``BusRefused``, naming the stream, when a stream captures the queue's subject.

    Its PubAck would reach every caller as the first reply. Where there is no JetStream, or we may not ask, it is fine.
    """
    answer = await ask(link, API + "STREAM.NAMES", msgspec.json.encode({"subject": queue}), API_TIMEOUT)
    names = _decode(answer).get("streams")
    if names:
        raise BusRefused(
            f"the JetStream stream {names[0]} captures {queue}: callers would get its PubAck for a reply; "
            f"take {queue} out of its subjects"
        )


class JetStream:
    """See ``DurableTopics``."""

    append_publishes = True

    def __init__(self, keeper: LinkKeeper, inbox_prefix: str) -> None:
        self._keeper = keeper
        self._prefix = inbox_prefix
        self._rooms: dict[str, Room | None] = {}
        self._largest: dict[str, int] = {}
        self._careful: dict[str, int] = {}
        self._not_told: NatsLink | None = None  # where the account's limits are not for us to know
        self._warned: set[tuple[str, str]] = set()
        self._appenders: WeakSet[NatsAppender] = WeakSet()

    async def ensure_stream(self, stream: StreamSpec) -> None:
        """See ``DurableTopics``."""
        link = self._keeper.current()
        info = await self._info(link, stream)
        error = info.get("error")
        if error is None:
            if (info.get("config") or {}).get("no_ack"):
                raise BusRefused(f"stream {stream.name} has no_ack set: it never says what it has stored")
            self._warn(stream, info)
            self._largest[stream.name] = largest_of(info)
            self._rooms[stream.name] = await self._room(link, info)
            return
        if error.get("err_code") != _NOT_FOUND:
            raise BusRefused(f"stream {stream.name}: {error.get('description')}")
        max_bytes = stream.max_bytes
        while True:
            error = await self._create(link, stream, max_bytes)
            if error is None or error.get("err_code") == _NAME_IN_USE:
                self._rooms[stream.name] = await self._room(link, await self._info(link, stream))
                return
            if error.get("err_code") not in _NO_ROOM or max_bytes // 2 < SMALLEST_STREAM:
                raise BusRefused(f"stream {stream.name} cannot be created: {error.get('description')}")
            max_bytes //= 2

    def _warn(self, stream: StreamSpec, info: dict[str, Any]) -> None:
        """Say once what an operator's stream does not keep."""
        config, name = info.get("config") or {}, stream.name
        # The server acknowledges what it forgets at once.
        if config.get("retention") == "interest" and not (info.get("state") or {}).get("consumer_count"):
            self._warn_once(name, "stream %s keeps only what its consumers want, and has none: events are lost in it")
        # Where somebody listens to the topic the server does not even say that no stream has it.
        subjects = tuple(config.get("subjects") or ())
        if not all(matches_any(subjects, topic) for topic in stream.topics):
            text = f"stream %s captures {', '.join(subjects) or 'nothing'}, not all of {', '.join(stream.topics)}"
            self._warn_once(name, f"{text}: an event of another topic waits, and all behind it")

    def _warn_once(self, name: str, text: str) -> None:
        if (name, text) not in self._warned:
            self._warned.add((name, text))
            log.warning(text, name)

    async def _create(self, link: NatsLink, stream: StreamSpec, max_bytes: int) -> dict[str, Any] | None:
        config = {
            "name": stream.name,
            "subjects": stream.topics,
            "retention": "limits",
            "discard": "old",
            "storage": "file",
            "num_replicas": stream.replicas,
            "max_consumers": -1,
            "max_msgs": stream.max_messages or -1,
            "max_bytes": max_bytes or -1,
            "max_age": round(stream.max_age * 1e9),
            "duplicate_window": round(stream.duplicate_window * 1e9),
        }
        answer = await ask(link, f"{API}STREAM.CREATE.{stream.name}", msgspec.json.encode(config), CREATE_TIMEOUT)
        if answer is None:
            raise BusUnavailable(f"no answer from JetStream to the creation of stream {stream.name}")
        error: dict[str, Any] | None = _decode(answer).get("error")
        return error

    def appender(self, stream: StreamSpec, changed: Callable[[], None]) -> NatsAppender:
        """See ``DurableTopics``."""

        name = stream.name

        async def ask_room() -> Room | None:
            link = self._keeper.current()
            return await self._room(link, await self._info(link, stream))

        async def ask_largest() -> int:
            return largest_of(await self._info(self._keeper.current(), stream))

        def refused(overtaking: int) -> None:
            # Where order was lost, and is again when we make haste, we wait longer with that.
            known = self._careful.get(name, ACK_WINDOW)
            self._careful[name] = min(2 * known, MOST_CAREFUL) if overtaking else known

        one = NatsAppender(
            self._keeper,
            self._prefix,
            changed,
            self._rooms.get(name),
            ask_room,
            careful=self._careful.get(name, 0),
            on_refusal=refused,
            largest=self._largest.get(name, NO_LIMIT),
            ask_largest=ask_largest,
        )
        self._appenders.add(one)
        return one

    def break_off(self, reason: str) -> None:
        """The connection broke: what is written and not acknowledged is in doubt."""
        for one in list(self._appenders):
            one.fail(reason)

    async def _room(self, link: NatsLink, info: dict[str, Any]) -> Room | None:
        account: dict[str, Any] = {}
        if self._not_told is not link:
            answer = await ask(link, API + "INFO", b"", API_TIMEOUT)
            account = _decode(answer)
            if answer is None:
                self._not_told = link
        return room_of(info, account)

    async def _info(self, link: NatsLink, stream: StreamSpec) -> dict[str, Any]:
        answer = await ask(link, f"{API}STREAM.INFO.{stream.name}", b"", API_TIMEOUT)
        if answer is None:
            raise BusRefused("no answer from JetStream: it is not enabled, or we may not use it")
        return _decode(answer)


def _decode(answer: bytes | None) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(answer or b"{}")
    except msgspec.DecodeError:
        return {}
    return value if isinstance(value, dict) else {}
