"""The records on Redis: one key an id, every step on it one Lua script, all that a turn asks in one write.

This room never reads a clock; expiry is the server's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from hashlib import blake2b, sha1

from bridge.bus.records import Record, Swapped
from bridge.bus.redis.link import Operation, ignore
from bridge.bus.redis.publish import MAX_PAYLOAD
from bridge.bus.redis.wire import Reply, ReplyError, command
from bridge.bus.redis.writers import Writers
from bridge.errors import BusError, BusRefused, BusUnavailable, MessageTooLarge

# An empty new value takes the key away; nil says that it was done, else what is there is told.
_SWAP = b"""local old = redis.call('GET', KEYS[1])
if old and old ~= ARGV[2] then return old end
if ARGV[1] == '' then redis.call('DEL', KEYS[1]) else redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[3]) end
return false"""
_AGAIN = 0.1
"""When a sign of life that was not written is tried again, in seconds."""
_DIGEST = sha1(_SWAP, usedforsecurity=False).hexdigest().encode()


class RedisRecords:
    """See ``Records``. Keys ``<prefix>.<hash of the id>`` and ``<prefix>.alive.<instance>``; no two in one command."""

    def __init__(self, writers: Writers, *, prefix: str = "esl.ledger") -> None:
        self._writers = writers
        self._prefix = prefix.encode() + b"."
        self._claim_after = b"30000"
        self._beating: asyncio.TimerHandle | None = None
        self._left = False
        self._known = False  # whether the servers have the script
        length = len(self._prefix) + 32
        self._head = b"*7\r\n$7\r\nEVALSHA\r\n$40\r\n%b\r\n$1\r\n1\r\n$%d\r\n%b" % (_DIGEST, length, self._prefix)

    async def open(self, lasting: float, claim_after: float) -> None:
        """See ``Records``: Redis needs no preparation."""
        self._claim_after = b"%d" % round(claim_after * 1000)
        if not self._writers.connected:
            raise BusUnavailable("the broker is away")

    async def probe(self) -> None:
        """See ``Records``."""

    def swap(self, key: str, value: bytes, expected: Record | None, ttl: float, answer: Swapped) -> None:
        """See ``Records``."""
        if len(value) > MAX_PAYLOAD:
            raise MessageTooLarge(len(value), MAX_PAYLOAD)
        old = b"" if expected is None else expected.value
        self._run(key, value, old, max(1, round(ttl * 1000)), answer)

    def free(self, key: str, expected: Record, answer: Swapped) -> None:
        """See ``Records``."""
        self._run(key, b"", expected.value, 1, answer)

    def _run(self, key: str, value: bytes, old: bytes, ttl: int, answer: Swapped) -> None:
        name = blake2b(key.encode(), digest_size=16).hexdigest().encode()
        milliseconds = b"%d" % ttl
        whole = self._prefix + name

        def done(replies: list[Reply], error: Exception | None) -> None:
            if error is not None:
                answer(False, None, error if isinstance(error, BusError) else BusUnavailable(str(error)))
                return
            reply = replies[0]
            if isinstance(reply, ReplyError):
                if reply.code == "NOSCRIPT":  # another server, or one that was restarted: it did not run
                    self._known = False
                    self._run(key, value, old, ttl, answer)
                else:
                    answer(False, None, BusRefused(f"the ledger: {reply}"))
                return
            self._known = True
            if reply is None:
                answer(True, Record(value), None)
            else:
                answer(False, Record(reply), None)

        if self._known:
            asking = self._head + b"%b\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (
                *(name, len(value), value, len(old), old, len(milliseconds), milliseconds),
            )
        else:
            asking = command(b"EVAL", _SWAP, b"1", whole, value, old, milliseconds)
        self._writers.submit(Operation(asking, 1, done, key=whole))

    def beat(self, instance: str) -> None:
        """See ``Records``."""
        key = self._alive(instance)
        self._keep_still()

        def done(replies: list[Reply], error: Exception | None) -> None:
            if error is not None and self._beating is None and not self._left:
                # A Cluster's server that we have no connection to yet: others would take us for gone.
                self._beating = asyncio.get_running_loop().call_later(_AGAIN, self.beat, instance)

        self._writers.submit(Operation(command(b"SET", key, b"1", b"PX", self._claim_after), 1, done, key=key))

    def leave(self, instance: str) -> None:
        """See ``Records``."""
        key = self._alive(instance)
        self._left = True
        self._keep_still()
        self._writers.submit(Operation(command(b"DEL", key), 1, ignore, key=key))

    def _keep_still(self) -> None:
        if self._beating is not None:
            self._beating.cancel()
            self._beating = None

    def living(self, instance: str, answer: Callable[[bool], None]) -> None:
        """See ``Records``."""
        key = self._alive(instance)

        def done(replies: list[Reply], error: Exception | None) -> None:
            answer(error is not None or replies[0] != 0)

        self._writers.submit(Operation(command(b"EXISTS", key), 1, done, key=key))

    def _alive(self, instance: str) -> bytes:
        return b"%balive.%b" % (self._prefix, instance.encode())
