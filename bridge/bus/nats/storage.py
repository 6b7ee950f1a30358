"""The storage on NATS: JetStream KV buckets, every step on a lease a write by revision.

This room never counts on a message when a lease expires: nobody is told. Server 2.9 or later.
"""

from __future__ import annotations

import asyncio
import re
import time
from functools import partial

import msgspec

from bridge.bus.nats.buckets import TIMEOUT, Bucket, Conflict, deleted
from bridge.bus.nats.keeper import LinkKeeper
from bridge.bus.nats.listener import Listener
from bridge.bus.nats.questions import Questions
from bridge.bus.nats.reading import Incoming
from bridge.bus.storage import NODES, NOTE_TTL, WORKERS, Grant, Held

RESYNC = 30.0
"""Seconds after which a table is read anew although nothing seemed to be missed."""
_PLAIN = re.compile(r"[A-Za-z0-9_-]+")


class _Lease(msgspec.Struct):
    """What a bucket holds of a lease."""

    holder: str
    token: int = 0


class _Own:
    """A lease that we hold: the revisions that the next writes must find."""

    __slots__ = ("holder", "mark", "revision", "token")

    def __init__(self, holder: str, token: int, revision: int, mark: int) -> None:
        self.holder = holder
        self.token = token
        self.revision = revision
        self.mark = mark


class NatsStorage:
    """See ``Storage``. Buckets ``<prefix>-leases``, ``-kept``, ``-workers``, ``-nodes``."""

    def __init__(
        self,
        keeper: LinkKeeper,
        inbox_prefix: str,
        *,
        prefix: str = "esl-bridge",
        replicas: int = 1,
    ) -> None:
        self._keeper = keeper
        self._questions = Questions(keeper, inbox_prefix)
        make = partial(Bucket, self._questions, replicas=replicas)
        self._leases = make(f"{prefix}-leases", ttl=5.0)
        self._kept = make(f"{prefix}-kept", ttl=NOTE_TTL)
        self._own: dict[str, _Own] = {}
        self._tables = {
            table: _Table(make(f"{prefix}-{table}", ttl=0.0), keeper, lasting=table == NODES)
            for table in (WORKERS, NODES)
        }

    def lost(self, reason: str) -> None:
        """The link broke: what is asked on it gets no answer, and what is known of the tables may be old."""
        self._questions.lost(reason)
        for table in self._tables.values():
            table.synced_at = None
        for bucket in (self._leases, self._kept, *(table.bucket for table in self._tables.values())):
            bucket.ready = False

    async def open(self, lease_time: float) -> float:
        """See ``Storage``: the lease bucket's TTL is the fleet's lease time."""
        self._leases.ttl = max(self._leases.ttl if self._leases.ready else 0.0, lease_time)
        await self._leases.make()
        await self._kept.make()
        return self._leases.ttl

    async def acquire(self, name: str, holder: str, ttl: float) -> Grant | Held:
        """See ``Storage``."""
        await self._leases.make()
        await self._kept.make()
        key = _key(name)
        value = msgspec.msgpack.encode(_Lease(holder))
        try:
            revision = await self._leases.create(key, value)
        except Conflict:
            found = await self._leases.get(key)
            if found is None:  # it expired between the two: the caller's next try has it
                return Held("", 0.05)
            lease = msgspec.msgpack.decode(found.value, type=_Lease)
            if lease.holder != holder:
                age = min(max(0.0, time.time() - found.at), self._leases.ttl)
                # By clocks that may differ; it is there yet, whatever they say.
                return Held(lease.holder, max(self._leases.ttl - age, 0.05))
            try:
                # Ours: the answer to an earlier try was lost.
                revision = await self._leases.put(key, value, revision=found.revision)
            except Conflict:
                return Held("", 0.05)
        # A bucket that was deleted and made again counts its revisions anew: its birth (us) is ahead of all that the
        # one before can have given, as no server takes a million writes a second.
        token = round(self._leases.born * 1e6) + revision
        note = await self._kept.get(_key(name, "note"))
        self._own[name] = _Own(holder, token, revision, note.revision if note is not None else 0)
        return Grant(token, note.value if note is not None else b"")

    async def renew(self, name: str, token: int, ttl: float, note: bytes | None = None) -> bool:
        """See ``Storage``."""
        own = self._own.get(name)
        if own is None or own.token != token:
            return False
        await self._leases.make()  # somebody may have deleted the bucket
        await self._kept.make()
        key = _key(name)
        value = msgspec.msgpack.encode(_Lease(own.holder, token))
        try:
            own.revision = await self._leases.put(key, value, revision=own.revision)
        except Conflict:
            if not await self._still_ours(key, own):
                self._own.pop(name, None)
                return False
        if note is not None:
            await self._note(name, own, note)
        return True

    async def _still_ours(self, key: str, own: _Own) -> bool:
        """After a conflict: perhaps the answer to our own last write was lost."""
        found = await self._leases.get(key)
        if found is None:
            return False
        lease = msgspec.msgpack.decode(found.value, type=_Lease)
        if lease.holder != own.holder or lease.token not in (0, own.token):
            return False
        own.revision = found.revision
        try:
            own.revision = await self._leases.put(key, found.value, revision=own.revision)
        except Conflict:
            return False
        return True

    async def _note(self, name: str, own: _Own, note: bytes) -> None:
        """Keep the note unless a later holder already wrote its own."""
        key = _key(name, "note")
        for _attempt in range(2):
            try:
                own.mark = await self._kept.put(key, note, revision=own.mark)
                return
            except Conflict:
                found = await self._kept.get(key)
                lease = await self._leases.get(_key(name))
                if lease is None or msgspec.msgpack.decode(lease.value, type=_Lease).holder != own.holder:
                    return
                own.mark = found.revision if found is not None else 0

    async def release(self, name: str, token: int, note: bytes | None = None) -> bool:
        """See ``Storage``."""
        own = self._own.get(name)
        if own is None or own.token != token:
            return False
        if not await self.renew(name, token, 0.0, note):
            return False
        del self._own[name]
        try:
            await self._leases.put(_key(name), b"", revision=own.revision, delete=True)
        except Conflict:
            return False
        return True

    async def put(self, table: str, key: str, value: bytes, ttl: float = 0.0) -> None:
        """See ``Storage``."""
        found = self._tables[table]
        found.bucket.ttl = max(ttl, found.bucket.ttl)
        await found.bucket.make()
        await found.bucket.put(key if _PLAIN.fullmatch(key) else "=" + key.encode().hex(), value)

    async def remove(self, table: str, key: str) -> None:
        """See ``Storage``."""
        bucket = self._tables[table].bucket
        if await bucket.make(create=False):
            await bucket.put(key if _PLAIN.fullmatch(key) else "=" + key.encode().hex(), b"", delete=True)

    async def entries(self, table: str) -> dict[str, bytes]:
        """See ``Storage``."""
        found = await self._tables[table].entries()
        return {bytes.fromhex(key[1:]).decode() if key[:1] == "=" else key: value for key, value in found.items()}

    async def write(self, name: str, what: str, value: bytes) -> None:
        """See ``Storage``."""
        await self._kept.make()
        await self._kept.put(_key(name, what), value)

    async def read(self, name: str, what: str) -> bytes:
        """See ``Storage``."""
        await self._kept.make()
        found = await self._kept.get(_key(name, what))
        return found.value if found is not None else b""

    def tell(self, topic: str, payload: bytes) -> None:
        """See ``Storage``."""
        self._questions.tell(topic, payload)


class _Table:
    """A bucket of which a copy is kept: writes are ordinary messages, so an ordinary subscription sees them."""

    def __init__(self, bucket: Bucket, keeper: LinkKeeper, *, lasting: bool) -> None:
        self.bucket = bucket
        self.synced_at: float | None = None
        self._keeper = keeper
        self._lasting = lasting
        self._listener = Listener(bucket.prefix + ">", "", self._written)
        self._added = False
        self._copy: dict[str, tuple[bytes, float]] = {}
        self._changed: set[str] = set()

    async def entries(self) -> dict[str, bytes]:
        await self._keeper.wanted(TIMEOUT)
        now = time.monotonic()
        if not self._added:
            self._added = True
            await self._keeper.add(self._listener)
        if self.synced_at is None or now - self.synced_at > RESYNC:
            await self._sync()
        ttl = 0.0 if self._lasting else self.bucket.ttl
        if ttl:
            now = time.monotonic()
            self._copy = {key: kept for key, kept in self._copy.items() if now - kept[1] < ttl}
        return {key: value for key, (value, _at) in self._copy.items()}

    async def _sync(self) -> None:
        """Read the whole bucket; what is written meanwhile comes by the subscription and is newer."""
        if not await self.bucket.make(create=False):
            return
        self._changed.clear()
        keys = await self.bucket.keys()
        found = await asyncio.gather(*map(self.bucket.get, keys))
        now, unix = time.monotonic(), time.time()
        ttl = self.bucket.ttl
        copy: dict[str, tuple[bytes, float]] = {}
        for key, kept in zip(keys, found, strict=True):
            if kept is not None and key not in self._changed:
                # Another machine's clock: it lives, so it is younger than its TTL.
                age = min(max(0.0, unix - kept.at), 0.9 * ttl) if ttl else 0.0
                copy[key] = (kept.value, now - age)
        copy.update({key: self._copy[key] for key in self._changed if key in self._copy})
        self._copy = copy
        self.synced_at = now

    def _written(self, message: Incoming) -> None:
        key = message.subject[len(self.bucket.prefix) :]
        self._changed.add(key)
        if deleted(message):
            self._copy.pop(key, None)
        else:
            self._copy[key] = (message.data, time.monotonic())


def _key(name: str, what: str = "") -> str:
    """KV refuses ``:``, ``%`` and more, and callers choose the names: hex of their bytes."""
    text = name.encode().hex()
    return f"{what}.{text}" if what else text
