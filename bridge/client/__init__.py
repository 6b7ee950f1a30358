"""What a microservice imports: subscribe to events, send commands, get typed errors.

This room talks to the bus only; it never opens a connection to FreeSWITCH.

::

    async with Bridge("nats://127.0.0.1:4222") as bus:
        reply = await bus.api("status", to="fs1", timeout=2)
        async for event in bus.events("CHANNEL_*"):
            print(event.name, event["Caller-Destination-Number"])
"""

from __future__ import annotations

import asyncio
import fnmatch
import math
import uuid as uuids
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from types import TracebackType
from typing import Any, Self

from bridge.bus.base import Bus, Received, Subscription
from bridge.bus.open import open_bus
from bridge.client.fleet import read_fleet
from bridge.errors import (
    BridgeError,
    Busy,
    CommandError,
    CommandFailed,
    Denied,
    Draining,
    Expired,
    InvalidMessage,
    InvalidRequest,
    LinkLost,
    NoConsumer,
    NoRoute,
    OutcomeUnknown,
    Timeout,
    TooLarge,
    Unavailable,
)
from bridge.errors import Invalid as InvalidReply
from bridge.messages.codec import codec_named
from bridge.messages.command import CommandReply, CommandRequest, decode_reply, encode_request
from bridge.messages.event import EventMessage, decode_event
from bridge.messages.notice import Notice, decode_notice

# A reply is on its way for a while after the worker's own deadline: the client waits a little longer, in seconds.
GRACE = 1.0

_ERRORS: dict[str, type[CommandFailed]] = {
    error.status: error
    for error in (
        CommandError, Denied, InvalidReply, Busy, Draining, Expired, Unavailable, NoRoute, TooLarge, Timeout, LinkLost,
    )
}  # fmt: skip


class EventStream(AsyncIterator[EventMessage]):
    """Events as they come, for ``async for``; ends when it is closed.

    At most ``limit`` events wait for a slow reader; older ones are then dropped and counted in ``lost``. Messages
    that are no events are counted in ``undecodable``.
    """

    def __init__(self, pattern: str, where: Mapping[str, str], limit: int) -> None:
        self.lost = 0
        self.undecodable = 0
        self._pattern = pattern
        self._where = dict(where)
        self._waiting: deque[EventMessage] = deque()
        self._limit = limit
        self._wake = asyncio.Event()
        self._closed = False
        self._subscription: Subscription | None = None
        self._on_close: Callable[[EventStream], None] = lambda stream: None

    def feed(self, message: Received) -> None:
        """Take one message from the bus."""
        try:
            event = decode_event(message.payload, topic=message.topic, headers=message.headers)
        except InvalidMessage:
            self.undecodable += 1
            return
        if not self._matches(event):
            return
        if len(self._waiting) >= self._limit:
            self._waiting.popleft()
            self.lost += 1
        self._waiting.append(event)
        self._wake.set()

    def _matches(self, event: EventMessage) -> bool:
        name = f"{event.name}:{event.subclass}" if event.subclass else event.name
        if not (fnmatch.fnmatchcase(name, self._pattern) or fnmatch.fnmatchcase(event.name, self._pattern)):
            return False
        for header, glob in self._where.items():
            value = event.get(header)
            values = value if isinstance(value, list) else [value]
            if not any(isinstance(text, str) and fnmatch.fnmatchcase(text, glob) for text in values):
                return False
        return True

    async def __anext__(self) -> EventMessage:
        while not self._waiting:
            if self._closed:
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()
        return self._waiting.popleft()

    async def close(self) -> None:
        """End the stream; what already waits can still be read."""
        self._closed = True
        self._wake.set()
        self._on_close(self)
        if self._subscription is not None:
            await self._subscription.close()

    async def open(self, bus: Bus, topic: str) -> Self:
        """Begin to listen on ``topic`` (a pattern of the bus)."""
        self._subscription = await bus.subscribe(topic, self.feed)
        return self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class Bridge:
    """A connection to the bus, for services that follow and steer FreeSWITCH.

    ``url`` as in ``bridge.toml`` (``nats://``, ``redis://``, ...); ``codec`` is what requests are written in;
    further keywords go to the bus (credentials, TLS).
    """

    def __init__(
        self,
        url: str,
        *,
        codec: str = "json",
        queue: str = "esl.cmd",
        topics: str = "fs.events.",
        connect_timeout: float = 5.0,
        **options: Any,
    ) -> None:
        self._set_up(open_bus(url, **options), codec, queue, topics)
        self._connect_timeout = connect_timeout

    @classmethod
    def over(cls, bus: Bus, *, codec: str = "json", queue: str = "esl.cmd", topics: str = "fs.events.") -> Self:
        """A client on a bus that somebody else connects and closes."""
        client = cls.__new__(cls)
        client._set_up(bus, codec, queue, topics)
        return client

    def _set_up(self, bus: Bus, codec: str, queue: str, topics: str) -> None:
        self.bus = bus
        self._codec = codec_named(codec)
        self._queue = queue
        self._topics = topics
        self._streams: set[EventStream] = set()

    async def __aenter__(self) -> Self:
        await self.bus.connect(self._connect_timeout)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End all streams and disconnect."""
        for stream in list(self._streams):  # each takes itself out
            await stream.close()
        await self.bus.close()

    # --- events -----------------------------------------------------------------------------------

    async def events(
        self, pattern: str = "*", *, where: Mapping[str, str] | None = None, topic: str | None = None
    ) -> AsyncIterator[EventMessage]:
        """Events whose name matches a glob (``CHANNEL_*``, ``CUSTOM:sofia::*``), as they come.

        ``where`` maps header names to globs that must all match; ``topic`` listens elsewhere than on the
        default route (a pattern of the bus, ``fs.calls.*.*``).
        """
        stream = await self.subscribe(pattern, where=where, topic=topic)
        try:
            async for event in stream:
                yield event
        finally:
            await stream.close()

    async def subscribe(
        self,
        pattern: str = "*",
        *,
        where: Mapping[str, str] | None = None,
        topic: str | None = None,
        limit: int = 100_000,
    ) -> EventStream:
        """Like ``events``, but the subscription already stands when this returns."""
        stream = EventStream(pattern, where or {}, limit)
        await stream.open(self.bus, topic or self._topic_of(pattern))
        stream._on_close = self._streams.discard
        self._streams.add(stream)
        return stream

    def _topic_of(self, pattern: str) -> str:
        # NATS knows no wildcard inside a token, so only a whole name can be left to the broker.
        exact = pattern.replace("_", "").isalnum() and pattern != "CUSTOM"
        return self._topics + (pattern if exact else "*")

    async def notices(self, handler: Callable[[Notice], None], kind: str = "*") -> Subscription:
        """Hand the bridge's own notices (``node``, ``gap``, ``worker``, ...) to ``handler``."""

        def decode(message: Received) -> None:
            handler(decode_notice(message.payload))

        return await self.bus.subscribe(f"fs.bridge.{kind}", decode)

    # --- the fleet --------------------------------------------------------------------------------

    async def fleet(self) -> dict[str, Any]:
        """The workers and nodes of this bus: ``{"workers": [...], "nodes": [...]}``, as ``/nodes`` shows them.

        On a bus that keeps nothing (plain nats-server) workers are asked by roll call and nodes have no state.
        """
        return await read_fleet(self.bus)

    async def nodes(self) -> list[dict[str, Any]]:
        """The nodes of the fleet: name, state, owner, standby, sessions, calls, lag, ..."""
        found: list[dict[str, Any]] = (await self.fleet())["nodes"]
        return found

    # --- commands ---------------------------------------------------------------------------------

    async def api(self, command: str, *, to: str | None = None, timeout: float = 10.0, **fields: Any) -> CommandReply:
        """Run an API command and return its reply (``reply.result`` is FreeSWITCH's text).

        ``timeout`` in seconds is the whole budget. Raises ``CommandError`` for ``-ERR``, ``NotExecuted`` and its
        kin when it did not run, ``OutcomeUnknown`` when nobody can say.
        """
        return await self.call({"op": "api", "command": command, "to": to, **fields}, timeout=timeout)

    async def bgapi(
        self,
        command: str,
        *,
        to: str | None = None,
        timeout: float = 120.0,
        on_accepted: Callable[[CommandReply], None] | None = None,
        **fields: Any,
    ) -> CommandReply:
        """Run an API command as a background job and return the job's output.

        ``on_accepted`` is called with an early reply when FreeSWITCH took the job.
        """
        request = {"op": "bgapi", "command": command, "to": to, "accept": on_accepted is not None or None, **fields}
        return await self.call(request, timeout=timeout, on_accepted=on_accepted)

    async def execute(
        self, uuid: str, app: str, arg: str = "", *, wait: bool = False, timeout: float = 10.0, **fields: Any
    ) -> CommandReply:
        """Run a dialplan application on a call; with ``wait`` the reply comes when it completed."""
        request = {"op": "execute", "uuid": uuid, "app": app, "arg": arg or None, "wait": wait or None, **fields}
        return await self.call(request, timeout=timeout)

    async def hangup(
        self, uuid: str, cause: str | None = None, *, timeout: float = 10.0, **fields: Any
    ) -> CommandReply:
        """Hang a call up."""
        return await self.call({"op": "hangup", "uuid": uuid, "cause": cause, **fields}, timeout=timeout)

    async def sendmsg(
        self,
        uuid: str,
        headers: Mapping[str, str],
        body: str | None = None,
        *,
        timeout: float = 10.0,
        **fields: Any,
    ) -> CommandReply:
        """Send a message with these headers to a call."""
        request = {"op": "sendmsg", "uuid": uuid, "headers": dict(headers), "body": body, **fields}
        return await self.call(request, timeout=timeout)

    async def sendevent(
        self,
        event: str,
        headers: Mapping[str, str],
        body: str | None = None,
        *,
        to: str | None = None,
        timeout: float = 10.0,
        **fields: Any,
    ) -> CommandReply:
        """Fire an event inside FreeSWITCH."""
        request = {"op": "sendevent", "event": event, "headers": dict(headers), "body": body, "to": to, **fields}
        return await self.call(request, timeout=timeout)

    async def call(
        self,
        fields: Mapping[str, Any],
        *,
        timeout: float,
        on_accepted: Callable[[CommandReply], None] | None = None,
        queue: str | None = None,
    ) -> CommandReply:
        """Send a request as it stands in the contract and return its ``ok`` reply, else raise."""
        reply = await self.request(fields, timeout=timeout, on_accepted=on_accepted, queue=queue)
        if reply.status != "ok":
            raise failure_of(reply)
        return reply

    async def request(
        self,
        fields: Mapping[str, Any],
        *,
        timeout: float,
        on_accepted: Callable[[CommandReply], None] | None = None,
        queue: str | None = None,
    ) -> CommandReply:
        """Like ``call``, but every final reply is returned, whatever its status.

        ``queue`` is another queue than ``esl.cmd`` (``esl.cmd.<node>`` for strict order). Raises ``Timeout`` when
        no reply came at all, ``Unavailable`` when no worker listens, ``BusUnavailable`` without a broker.
        """
        if not math.isfinite(timeout):
            raise InvalidRequest("timeout_ms", "must be a finite time")
        values = {name: value for name, value in fields.items() if value is not None}
        values.setdefault("id", uuids.uuid4().hex)
        values.setdefault("timeout_ms", max(1, round(timeout * 1000)))
        reply_to = values.get("reply_to") or self.bus.new_reply_address(queue or self._queue)
        if reply_to:
            values["reply_to"] = reply_to
        try:
            payload = encode_request(CommandRequest(**values), self._codec)
        except UnicodeError:
            raise InvalidRequest("", "a text in it is not valid Unicode") from None
        except TypeError as error:
            raise InvalidRequest("", str(error)) from None
        answer: asyncio.Future[CommandReply] = asyncio.get_running_loop().create_future()

        def take(payload: bytes, content_type: str) -> None:
            try:
                reply = decode_reply(payload)
            except BridgeError as error:
                if not answer.done():
                    answer.set_exception(error)
                return
            if reply.status == "accepted":
                if on_accepted is not None:
                    on_accepted(reply)
            elif not answer.done():
                answer.set_result(reply)

        until = asyncio.get_running_loop().time() + timeout + GRACE
        try:
            subscription = await self.bus.request(
                queue or self._queue,
                payload,
                self._codec.request_content_type,
                take,
                reply_to=reply_to,
            )
        except NoConsumer as error:
            raise Unavailable(f"no worker takes {queue or self._queue}: {error}") from None
        try:
            async with asyncio.timeout_at(until):
                return await answer
        except TimeoutError:
            raise Timeout(f"no reply to {values['id']} within {timeout:g} s") from None
        except NoConsumer as error:
            raise Unavailable(f"no worker takes {queue or self._queue}: {error}") from None
        finally:
            await subscription.close()


def failure_of(reply: CommandReply) -> CommandFailed:
    """The typed error of a reply whose status is not ``ok``."""
    status = str(reply.status)
    text = reply.error or status
    kind = _ERRORS.get(status)
    if kind is None:
        kind = OutcomeUnknown if reply.executed == "unknown" else CommandError
    return kind(text, reply)
