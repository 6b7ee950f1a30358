"""Listening to topics: one connection in pub/sub mode for all patterns, proven alive by PINGs.

This room never publishes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from bridge.bus.base import Received
from bridge.bus.patterns import Matcher, pattern_matcher
from bridge.bus.redis.link import Link, Operation, ignore
from bridge.bus.redis.wire import Reply, ReplyError, command
from bridge.errors import BusRefused, BusUnavailable

_GRACE = 10.0  # s; how long a pub/sub connection may owe the answer to a PING
_REFUSED_AGAIN = 30.0  # s; until a pattern that was refused is asked for again


class TopicSubscription:
    """One pattern and its handler, until it is closed."""

    def __init__(self, topics: Topics, pattern: str, handler: Callable[[Received], None]) -> None:
        self._topics = topics
        # Without a wildcard it is a channel's name, and stays as it is.
        self.glob = (glob_of(pattern) if "*" in pattern or ">" in pattern else pattern).encode()
        self.handler = handler
        # A glob's * passes over dots, a pattern's does not.
        self.matches: Matcher | None = pattern_matcher(pattern) if "*" in pattern else None

    async def close(self) -> None:
        """Stop listening; the handler is not called again."""
        self._topics.remove(self)


class Topics:
    """All subscriptions of a bus."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._by_glob: dict[bytes, list[TopicSubscription]] = {}
        self._names: dict[bytes, str] = {}
        self._confirmed: dict[bytes, asyncio.Future[ReplyError | None]] = {}
        # What was said and is not answered: answers come in its order, between the messages.
        self._said: deque[tuple[bytes, bytes]] = deque()
        self._refused: set[bytes] = set()
        self._refused_at = 0.0
        self._owed_since: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.on_problem: Callable[[str], None] = lambda text: None
        link.on_up = self._up
        link.on_down = self._down
        link.on_absent = self._down
        link.on_burst = self._take

    async def add(self, pattern: str, handler: Callable[[Received], None]) -> TopicSubscription:
        """Listen; returns when the server has confirmed, or at once while it is away. Raises ``BusRefused``."""
        subscription = TopicSubscription(self, pattern, handler)
        glob = subscription.glob
        listeners = self._by_glob.get(glob)
        if listeners is not None:
            listeners.append(subscription)
        else:
            self._by_glob[glob] = [subscription]
            self._confirmed[glob] = asyncio.get_running_loop().create_future()
            self._say(_verb(glob), glob)
        self._link.start()
        waiting = self._confirmed.get(glob)
        if waiting is not None:
            await asyncio.wait([waiting], timeout=_GRACE)
            if waiting.done() and (refusal := waiting.result()) is not None:
                self.remove(subscription)
                raise BusRefused(f"{pattern} cannot be listened to: {refusal}")
        return subscription

    def remove(self, subscription: TopicSubscription) -> None:
        """Forget it; the last one of its pattern ends the server's work for it."""
        listeners = self._by_glob.get(subscription.glob, [])
        if subscription not in listeners:
            return
        listeners.remove(subscription)
        if not listeners:
            del self._by_glob[subscription.glob]
            self._confirmed.pop(subscription.glob, None)
            self._refused.discard(subscription.glob)
            self._say(b"PUNSUBSCRIBE" if b"*" in subscription.glob else b"UNSUBSCRIBE", subscription.glob)

    @property
    def connected(self) -> bool:
        """Whether what is wanted is being listened to."""
        return not self._by_glob or (self._link.connected and not self._confirmed)

    def _say(self, verb: bytes, glob: bytes = b"") -> None:
        # Replies of this mode come as pushes, so the link counts none.
        if self._link.post(Operation(command(verb, glob) if glob else command(verb), 0, ignore)):
            self._said.append((verb, glob))

    def _up(self) -> None:
        loop = asyncio.get_running_loop()
        for glob in self._by_glob:
            if glob not in self._confirmed:
                self._confirmed[glob] = loop.create_future()
        self._said.clear()
        self._refused.clear()
        for glob in self._by_glob:
            self._say(_verb(glob), glob)
        self._owed_since = None
        self._prove()

    def _down(self, error: Exception) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for waiting in self._confirmed.values():
            if not waiting.done():
                waiting.set_result(None)
        self._confirmed.clear()

    def _prove(self) -> None:
        """A PING every so often; the connection ends when its answer is owed too long."""
        if not self._link.connected:
            return
        loop = asyncio.get_running_loop()
        if self._refused and loop.time() - self._refused_at >= _REFUSED_AGAIN:
            # Somebody may have given the right back, and the server does not say so.
            again, self._refused = self._refused, set()
            for glob in again:
                self._say(_verb(glob), glob)
        if self._owed_since is None:
            self._owed_since = loop.time()
            self._say(b"PING")
        elif loop.time() - self._owed_since > _GRACE:
            self._link.fail(BusUnavailable("the subscriptions' connection is silent"))
            return
        self._timer = loop.call_later(self._link.pulse, self._prove)

    def _take(self, burst: list[Reply]) -> None:
        for push in burst:
            if isinstance(push, list) and len(push) == 4 and push[0] == b"pmessage":
                self._deliver(push[1], push[2], push[3])
            elif isinstance(push, list) and len(push) == 3 and push[0] == b"message":
                self._deliver(push[1], push[1], push[2])
            elif self._said:
                self._answered(*self._said.popleft(), push)
            else:
                raise push if isinstance(push, Exception) else BusUnavailable("an answer to nothing")

    def _answered(self, verb: bytes, glob: bytes, answer: Reply) -> None:
        refusal = answer if isinstance(answer, ReplyError) else None
        if verb == b"PING":
            self._owed_since = None  # a refusal is a sign of life too
        elif verb in (b"SUBSCRIBE", b"PSUBSCRIBE"):
            waiting = self._confirmed.pop(glob, None)
            if waiting is not None and not waiting.done():
                waiting.set_result(refusal)
            if refusal is not None:
                if glob in self._by_glob:
                    self._refused.add(glob)
                    self._refused_at = asyncio.get_running_loop().time()
                self.on_problem(f"{glob.decode('utf-8', 'replace')} cannot be listened to: {refusal}")

    def _deliver(self, glob: bytes, channel: bytes, payload: bytes) -> None:
        topic = self._names.get(channel)
        if topic is None:
            if len(self._names) >= 4096:
                self._names.clear()
            topic = self._names[channel] = channel.decode("utf-8", "replace")
        for subscription in tuple(self._by_glob.get(glob, ())):
            if subscription.matches is not None and not subscription.matches(topic):
                continue
            try:
                subscription.handler(Received(topic, payload))
            except Exception as error:  # a handler's fault must not end the others' subscriptions
                asyncio.get_running_loop().call_exception_handler(
                    {"message": "a subscription's handler failed", "exception": error}
                )


def _verb(glob: bytes) -> bytes:
    # An ACL grants a pattern to who asks for that very pattern only, a channel to who may have any that fits it.
    return b"PSUBSCRIBE" if b"*" in glob else b"SUBSCRIBE"


def glob_of(pattern: str) -> str:
    """The pattern as Redis' glob, which may mean more: what it says is matched again here."""
    literal = pattern.replace("\\", "\\\\").replace("[", "\\[").replace("]", "\\]").replace("?", "\\?")
    if literal.endswith(".>"):
        literal = literal[:-1] + "*"
    elif literal == ">":
        literal = "*"
    return literal
