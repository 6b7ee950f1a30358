"""The storage on Redis: a lease is a key with an expiry, every step on it one Lua script on one slot.

This room never reads a clock of its own; times are the server's.
"""

from __future__ import annotations

import asyncio

from bridge.bus.redis.link import Operation, ignore
from bridge.bus.redis.wire import REFUSALS, Reply, ReplyError, command
from bridge.bus.redis.writers import Writers
from bridge.bus.storage import NOTE_TTL, Grant, Held
from bridge.errors import BusRefused, BusUnavailable

TIMEOUT = 3.0
"""Seconds after which a silent server counts as away."""

# The token follows the server's clock, so that it grows even after the server lost its memory.
_ACQUIRE = b"""
local held = redis.call('GET', KEYS[1])
if held then
  local token, holder = string.match(held, '^(%d+) (.*)$')
  if holder ~= ARGV[1] then return {0, holder, redis.call('PTTL', KEYS[1])} end
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  return {1, token, redis.call('GET', KEYS[3]) or ''}
end
local time = redis.call('TIME')
local last = tonumber(redis.call('GET', KEYS[2]) or '0')
local token = string.format('%.0f', math.max(last + 1, time[1] * 1000 + math.floor(time[2] / 1000)))
redis.call('SET', KEYS[2], token)
redis.call('SET', KEYS[1], token .. ' ' .. ARGV[1], 'PX', ARGV[2])
return {1, token, redis.call('GET', KEYS[3]) or ''}
"""
_RENEW = b"""
local held = redis.call('GET', KEYS[1])
if not held or string.match(held, '^%d+') ~= ARGV[1] then return 0 end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
if ARGV[3] == '1' then redis.call('SET', KEYS[2], ARGV[4], 'PX', ARGV[5]) end
return 1
"""
_RELEASE = b"""
local held = redis.call('GET', KEYS[1])
if not held or string.match(held, '^%d+') ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
if ARGV[3] == '1' then redis.call('SET', KEYS[2], ARGV[4], 'PX', ARGV[5]) end
return 1
"""
_PUT = b"""
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
local ttl = tonumber(ARGV[3])
if ttl > 0 then
  local time = redis.call('TIME')
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  redis.call('ZADD', KEYS[2], string.format('%.0f', now + ttl), ARGV[1])
else
  redis.call('ZREM', KEYS[2], ARGV[1])
end
return 1
"""
_ENTRIES = b"""
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
local gone = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now)
for _, key in ipairs(gone) do
  redis.call('HDEL', KEYS[1], key)
  redis.call('ZREM', KEYS[2], key)
end
return redis.call('HGETALL', KEYS[1])
"""


def _ms(seconds: float) -> bytes:
    return b"%d" % max(1, round(seconds * 1000))


class RedisStorage:
    """See ``Storage``. Keys: ``{esl.<lease>}.lease``, ``.token``, ``.mark``; tables ``{esl.fleet}.<table>``.

    ``prefix`` stands in for ``esl`` (tests). An asynchronous failover (Sentinel, Cluster) can forget the newest
    writes: two workers may then hold one lease until the next renewal fails; the epoch tells them apart.
    """

    def __init__(self, writers: Writers, prefix: str = "esl") -> None:
        self._writers = writers
        self._prefix = prefix.encode()

    async def open(self, lease_time: float) -> float:
        """See ``Storage``: Redis needs no preparation, only a connection."""
        await self._writers.wanted(TIMEOUT)
        return lease_time

    async def acquire(self, name: str, holder: str, ttl: float) -> Grant | Held:
        """See ``Storage``."""
        keys = (self._key(name, "lease"), self._key(name, "token"), self._key(name, "note"))
        given, who, what = await self._run(_ACQUIRE, keys, holder.encode(), _ms(ttl))
        if given:
            return Grant(int(who), what)
        return Held(who.decode("utf-8", "replace"), max(0, what) / 1000)

    async def renew(self, name: str, token: int, ttl: float, note: bytes | None = None) -> bool:
        """See ``Storage``."""
        keys = (self._key(name, "lease"), self._key(name, "note"))
        return bool(await self._run(_RENEW, keys, b"%d" % token, _ms(ttl), *self._note(note)))

    async def release(self, name: str, token: int, note: bytes | None = None) -> bool:
        """See ``Storage``."""
        keys = (self._key(name, "lease"), self._key(name, "note"))
        return bool(await self._run(_RELEASE, keys, b"%d" % token, b"0", *self._note(note)))

    async def put(self, table: str, key: str, value: bytes, ttl: float = 0.0) -> None:
        """See ``Storage``."""
        await self._run(_PUT, self._table(table), key.encode(), value, _ms(ttl) if ttl else b"0")

    async def remove(self, table: str, key: str) -> None:
        """See ``Storage``."""
        data, index = self._table(table)
        await self._ask(data, command(b"HDEL", data, key.encode()), command(b"ZREM", index, key.encode()))

    async def entries(self, table: str) -> dict[str, bytes]:
        """See ``Storage``."""
        found = await self._run(_ENTRIES, self._table(table))
        return {key.decode("utf-8", "replace"): value for key, value in zip(found[::2], found[1::2], strict=True)}

    async def write(self, name: str, what: str, value: bytes) -> None:
        """See ``Storage``."""
        key = self._key(name, what)
        await self._ask(key, command(b"SET", key, value, b"PX", _ms(NOTE_TTL)))

    async def read(self, name: str, what: str) -> bytes:
        """See ``Storage``."""
        key = self._key(name, what)
        (value,) = await self._ask(key, command(b"GET", key))
        return value or b""

    def tell(self, topic: str, payload: bytes) -> None:
        """See ``Storage``."""
        channel = topic.encode()
        self._writers.submit(Operation(command(b"PUBLISH", channel, payload), 1, ignore, key=channel))

    def _key(self, name: str, what: str) -> bytes:
        # The note of a node's lease is the mark of its events.
        return b"{%b.%b}.%b" % (self._prefix, name.encode(), b"mark" if what == "note" else what.encode())

    def _table(self, table: str) -> tuple[bytes, bytes]:
        data = b"{%b.fleet}.%b" % (self._prefix, table.encode())
        return data, data + b".expiry"

    def _note(self, note: bytes | None) -> tuple[bytes, bytes, bytes]:
        return (b"0", b"", b"") if note is None else (b"1", note, _ms(NOTE_TTL))

    async def _run(self, script: bytes, keys: tuple[bytes, ...], *args: bytes) -> Reply:
        (reply,) = await self._ask(keys[0], command(b"EVAL", script, b"%d" % len(keys), *keys, *args))
        return reply

    async def _ask(self, key: bytes, *commands: bytes) -> list[Reply]:
        """Write commands of one slot and return their replies. Raises ``BusUnavailable``, ``BusRefused``."""
        if not self._writers.connected:
            await self._writers.wanted(TIMEOUT)
        try:
            async with asyncio.timeout(TIMEOUT):
                replies = await self._writers.ask(key, b"".join(commands), len(commands))
        except TimeoutError:
            raise BusUnavailable(f"no answer within {TIMEOUT:g} s") from None
        for reply in replies:
            if isinstance(reply, ReplyError):
                # A server that is full, or in the middle of a failover, will be another one soon.
                refused = reply.code in REFUSALS or "unknown command" in str(reply)
                raise (BusRefused if refused else BusUnavailable)(f"the fleet's storage: {reply}")
        return replies
