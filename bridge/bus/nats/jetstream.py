"""JetStream: durable topics with windowed acks, and the check that no stream swallows a queue. Never consumes.

The acks of all messages come to one inbox of our own; nats-py's ``publish_async`` costs 36 us a message, this 2 more
than a plain publish.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from bridge.bus.base import Message, StreamSpec
from bridge.bus.nats.inbox import ask, is_no_responders
from bridge.bus.nats.keeper import LinkKeeper, Listener
from bridge.bus.nats.link import NatsLink
from bridge.bus.nats.reading import Incoming
from bridge.bus.nats.render import check_batch
from bridge.errors import BusRefused, BusUnavailable, PublishFailed, PublishWithdrawn

API = "$JS.API."
API_TIMEOUT = 2.0
ACK_TIMEOUT = 5.0
"""Seconds without any ack after which the window has failed."""
ACK_WINDOW = 1024
"""Messages written and not acknowledged."""
SMALLEST_STREAM = 64 << 20
"""JetStream reserves ``max_bytes`` when a stream is made; where the server has less, less is asked for."""

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
        self._acks = f"{inbox_prefix}.{secrets.token_hex(11)}."
        self._ack_listener = Listener(self._acks + "*", "", self._acknowledged)
        self._listening = False
        self._windows: list[_Window] = []
        self._next_ack = 0

    async def ensure_stream(self, stream: StreamSpec) -> None:
        """See ``DurableTopics``."""
        link = self._keeper.current()
        answer = await ask(link, f"{API}STREAM.INFO.{stream.name}", b"", API_TIMEOUT)
        if answer is None:
            raise BusRefused("no answer from JetStream: it is not enabled, or we may not use it")
        error = _decode(answer).get("error")
        if error is None:
            return
        if error.get("err_code") != _NOT_FOUND:
            raise BusRefused(f"stream {stream.name}: {error.get('description')}")
        max_bytes = stream.max_bytes
        while True:
            error = await self._create(link, stream, max_bytes)
            if error is None or error.get("err_code") == _NAME_IN_USE:
                return
            if error.get("err_code") not in _NO_ROOM or max_bytes // 2 < SMALLEST_STREAM:
                raise BusRefused(f"stream {stream.name} cannot be created: {error.get('description')}")
            max_bytes //= 2

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
        answer = await ask(link, f"{API}STREAM.CREATE.{stream.name}", msgspec.json.encode(config), 2 * ACK_TIMEOUT)
        if answer is None:
            raise BusUnavailable(f"no answer from JetStream to the creation of stream {stream.name}")
        error: dict[str, Any] | None = _decode(answer).get("error")
        return error

    async def append_many(
        self, stream: StreamSpec, batch: Sequence[Message], allowed: Callable[[], bool] | None = None
    ) -> None:
        """See ``DurableTopics``."""
        link = self._keeper.current()
        check_batch(batch, link.wire.limit)
        if not self._listening:
            self._listening = True
            await self._keeper.add(self._ack_listener)
            link = self._keeper.current()
        window = _Window(self._next_ack, len(batch))
        self._next_ack += len(batch)
        self._windows.append(window)
        try:
            await self._append(link, batch, window, allowed)
        finally:
            self._windows.remove(window)

    async def _append(
        self, link: NatsLink, batch: Sequence[Message], window: _Window, allowed: Callable[[], bool] | None
    ) -> None:
        written, total = 0, len(batch)
        lost = asyncio.ensure_future(link.wait_lost())
        try:
            while window.confirmed < total:
                if not link.alive:
                    window.failure = "the connection broke"
                if window.failure:
                    break
                end = min(total, window.confirmed + ACK_WINDOW)
                if end > written:
                    # Between two parts of a batch there may be seconds: the right to publish may have ended.
                    if allowed is not None and not allowed():
                        if not written:
                            raise PublishWithdrawn
                        window.failure = "the right to publish ended"
                        break
                    link.wire.add_batch(batch[written:end], self._acks, window.first + written)
                    link.write()
                    written = end
                progress = asyncio.ensure_future(window.progress.wait())
                await asyncio.wait((progress, lost), timeout=ACK_TIMEOUT, return_when=asyncio.FIRST_COMPLETED)
                if not progress.done():
                    progress.cancel()
                    window.failure = "the connection broke" if lost.done() else f"no ack within {ACK_TIMEOUT:g} s"
                window.progress.clear()
        finally:
            lost.cancel()
        if window.confirmed < total:
            if not written:
                raise BusUnavailable(window.failure)
            raise PublishFailed(
                f"stream publish broke off: {window.failure}",
                confirmed=window.confirmed,
                uncertain=written - window.confirmed,
            )

    def _acknowledged(self, message: Incoming) -> None:
        number = int(message.subject[len(self._acks) :], 16)
        for window in self._windows:
            if window.first <= number < window.first + window.total:
                data = message.data
                if data.startswith(b'{"stream"') and b'"error"' not in data:
                    window.acknowledge(number)
                elif is_no_responders(message):
                    window.fail("no stream captures this topic")
                else:
                    error = _decode(data).get("error") or {}
                    if error:
                        window.fail(str(error.get("description")))
                    else:
                        window.acknowledge(number)
                return


class _Window:
    """Which messages of a batch are acknowledged; ``confirmed`` is the length of the unbroken front."""

    def __init__(self, first: int, total: int) -> None:
        self.first = first
        self.total = total
        self.confirmed = 0
        self.failure = ""
        self.progress = asyncio.Event()
        self._ahead: set[int] = set()

    def acknowledge(self, number: int) -> None:
        index = number - self.first
        if index != self.confirmed:
            self._ahead.add(index)
            return
        index += 1
        while index in self._ahead:
            self._ahead.remove(index)
            index += 1
        self.confirmed = index
        # The writer is woken when there is something to do for it: half a window, or the end.
        if index == self.total or index % (ACK_WINDOW // 2) == 0:
            self.progress.set()

    def fail(self, reason: str) -> None:
        self.failure = self.failure or reason
        self.progress.set()


def _decode(answer: bytes | None) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(answer or b"{}")
    except msgspec.DecodeError:
        return {}
    return value if isinstance(value, dict) else {}
