"""Batches of messages to topics: one write each, confirmed by Redis' replies.

This room never sends a message twice, and never awaits one message by itself.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Sequence

from bridge.bus.base import Message
from bridge.bus.redis.link import Link, Operation
from bridge.bus.redis.wire import REFUSALS, Reply, ReplyError
from bridge.errors import BusRefused, BusUnavailable, MessageTooLarge, PublishWithdrawn

MAX_PAYLOAD = 64 * 1024 * 1024
"""Our own limit in bytes; Redis' is ``proto-max-bulk-len``, 512 MiB."""

_WINDOW = 8 * 1024 * 1024  # bytes written and not confirmed, beyond which publishing waits
_MAX_HEADS = 4096
_COUNTS = {int}  # of subscribers that got a message: what PUBLISH replies


class Publisher:
    """The event path's connection, with the numbers of its batches."""

    def __init__(self, link: Link, *, window: int = _WINDOW) -> None:
        self._link = link
        self._window = window
        self._number = 0
        self.confirmed = 0
        self._unconfirmed = 0
        self._settled = asyncio.Event()
        self._broken_off = False
        self._heads: dict[str, bytes] = {}
        self.on_broken: Callable[[], None] = lambda: None

    def link_up(self) -> None:
        """The connection is there: whatever was in doubt before stays so."""
        self._broken_off = False

    def link_down(self) -> None:
        """The connection broke: tell it, and let go who waits."""
        self._unconfirmed = 0
        self._settled.set()
        self.on_broken()

    async def publish_many(self, batch: Sequence[Message], allowed: Callable[[], bool] | None = None) -> int:
        """See ``Bus.publish_many``."""
        if not self._link.connected:
            raise BusUnavailable(self._link.reason)
        commands = self._render(batch)
        size = len(commands)
        while self._unconfirmed and self._unconfirmed + size > self._window:
            await self._wait_settled(None)
        # Before the write, not behind it: who is told to stop while he waits has written nothing.
        await self._link.writable()
        if allowed is not None and not allowed():
            raise PublishWithdrawn
        self._number += 1
        number = self._number
        if not batch:
            if not self._unconfirmed:
                self.confirmed = number
            return number
        self._unconfirmed += size
        self._link.say(Operation(commands, len(batch), functools.partial(self._confirm, number, size)))
        return number

    async def flush(self, timeout: float) -> None:
        """See ``Bus.flush``."""
        deadline = asyncio.get_running_loop().time() + timeout
        if not self._link.connected:
            raise BusUnavailable(self._link.reason)
        while self._unconfirmed:
            await self._wait_settled(deadline)

    async def _wait_settled(self, deadline: float | None) -> None:
        self._settled.clear()
        try:
            async with asyncio.timeout_at(deadline):
                await self._settled.wait()
        except TimeoutError:
            raise BusUnavailable("the broker has not confirmed in time") from None
        if self._broken_off or not self._link.connected:
            raise BusUnavailable(self._link.reason or "the connection broke")

    def _confirm(self, number: int, size: int, replies: list[Reply], error: Exception | None) -> None:
        if error is not None or self._broken_off:
            return  # link_down tells it
        if set(map(type, replies)) != _COUNTS:
            # A refused PUBLISH is told loudly: the connection ends, and its reason says why.
            reply = next(reply for reply in replies if type(reply) is not int)
            self._broken_off = True
            text = str(reply) if isinstance(reply, ReplyError) else f"unexpected reply {reply!r}"
            refused = isinstance(reply, ReplyError) and reply.code in REFUSALS
            self._link.fail(BusRefused(text) if refused else BusUnavailable(text))
            return
        self.confirmed = number
        self._unconfirmed -= size
        self._settled.set()

    def _render(self, batch: Sequence[Message]) -> bytes:
        heads = self._heads
        parts: list[bytes] = []
        add = parts.append
        for message in batch:
            topic, payload = message.topic, message.payload
            head = heads.get(topic)
            if head is None:
                head = self._head(topic)
            length = len(payload)
            if length > MAX_PAYLOAD:
                raise MessageTooLarge(length, MAX_PAYLOAD)
            add(b"%b%d\r\n" % (head, length))
            add(payload)
            add(b"\r\n")
        return b"".join(parts)

    def _head(self, topic: str) -> bytes:
        if len(self._heads) >= _MAX_HEADS:
            self._heads.clear()
        name = topic.encode()
        head = b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%b\r\n$" % (len(name), name)
        self._heads[topic] = head
        return head
