"""One connection for many queues: the server tells which of them was written to, and nothing blocks on it.

What is read is remembered by the server (client-side caching, Redis 6): it says once that a key changed, whoever
changed it by whatever command. This room never reads an entry.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

import hiredis

from bridge.bus.redis.link import Link, Operation
from bridge.bus.redis.wire import ELSEWHERE, Reply, ReplyError, command
from bridge.errors import BusUnavailable

# What is told comes between the replies, as RESP3's pushes do.
_GREETING = command(b"HELLO", b"3") + command(b"CLIENT", b"TRACKING", b"ON")


class Watch:
    """The shared connection and the queues on it. ``on_refused`` gets why a server does not do this."""

    def __init__(self, link: Link, on_refused: Callable[[str], None]) -> None:
        self.link = link
        self.ready = False
        """Whether the server tells us what changed."""
        self.refused = False
        self._on_refused = on_refused
        self._members: dict[bytes, Share] = {}
        self._closing: asyncio.Task[None] | None = None
        link.on_up = self._up
        link.on_down = self._down
        link.on_burst = self._burst

    def join(self, share: Share) -> None:
        """One queue more."""
        self._members[share.key] = share
        if self.refused:
            share.stand_alone()
            return
        self.link.start()
        if self.ready:
            asyncio.get_running_loop().call_soon(self._welcome, share)

    def leave(self, share: Share) -> None:
        """One queue less; the others notice nothing."""
        if self._members.get(share.key) is share:
            del self._members[share.key]

    async def close(self) -> None:
        """Disconnect."""
        if self._closing is not None:
            await self._closing
        await self.link.close()

    def _up(self) -> None:
        self.link.post(Operation(_GREETING, 2, self._greeted))

    def _greeted(self, replies: list[Reply], error: Exception | None) -> None:
        if error is not None:
            return
        fault = next((reply for reply in replies if isinstance(reply, ReplyError)), None)
        if fault is None:
            self.ready = True
            for share in list(self._members.values()):
                self._welcome(share)
        elif fault.code in ELSEWHERE:
            self.link.fail(BusUnavailable(str(fault)))
        else:
            self.refused = True
            self._on_refused(str(fault))
            self._closing = asyncio.create_task(self.link.close())
            for share in list(self._members.values()):
                share.stand_alone()

    def _welcome(self, share: Share) -> None:
        if self.ready and self._members.get(share.key) is share:
            share.welcome()

    def _down(self, error: Exception) -> None:
        self.ready = False
        for share in list(self._members.values()):
            share.down(error)

    def _burst(self, burst: list[Reply]) -> None:
        told = [it for it in burst if it.__class__ is hiredis.PushNotification]
        self.link.take([it for it in burst if it.__class__ is not hiredis.PushNotification] if told else burst)
        for notification in told:
            if notification[0] == b"invalidate":
                self._ring(notification[1])

    def _ring(self, keys: Iterable[bytes] | None) -> None:
        # None: everything was flushed.
        for key in list(self._members) if keys is None else keys:
            share = self._members.get(key)
            if share is not None:
                share.on_ring()


class Share:
    """One queue's part of the shared connection, or a connection of its own (``alone``) where there is none to share.

    To a consumer it is what a ``Link`` is, except that ``on_ring`` tells that the key was written to.
    """

    def __init__(self, watch: Watch, key: bytes, own: Callable[[], Link]) -> None:
        self.key = key
        self.alone: Link | None = None
        self.on_up: Callable[[], None] = lambda: None
        self.on_down: Callable[[Exception], None] = lambda error: None
        self.on_ring: Callable[[], None] = lambda: None
        self._watch = watch
        self._own = own
        self._welcomed = False

    @property
    def waits_for_ring(self) -> bool:
        """Whether questions may not block, because others have the same connection."""
        return self.alone is None

    @property
    def connected(self) -> bool:
        """Whether questions can be asked."""
        return self._welcomed if self.alone is None else self.alone.connected

    @property
    def client_id(self) -> int:
        """See ``Link.client_id``."""
        return self._link.client_id

    @property
    def _link(self) -> Link:
        return self.alone or self._watch.link

    def start(self) -> None:
        """Take part."""
        self._watch.join(self)

    def welcome(self) -> None:
        """The shared connection is there."""
        self._welcomed = True
        self.on_up()

    def down(self, error: Exception) -> None:
        """The shared connection is gone."""
        self._welcomed = False
        self.on_down(error)

    def stand_alone(self) -> None:
        """There is nothing to share."""
        if self.alone is None:
            self.alone = self._own()
            self.alone.on_up = lambda: self.on_up()
            self.alone.on_down = lambda error: self.on_down(error)
            self.alone.start()

    async def close(self) -> None:
        """Take part no longer."""
        self._watch.leave(self)
        self._welcomed = False
        if self.alone is not None:
            await self.alone.close()

    def post(self, operation: Operation) -> bool:
        """See ``Link.post``."""
        return self._link.post(operation)

    def say(self, operation: Operation) -> bool:
        """See ``Link.say``."""
        return self._link.say(operation)

    def fail(self, error: Exception) -> None:
        """See ``Link.fail``: for all that share it."""
        self._link.fail(error)
