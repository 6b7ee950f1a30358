"""Which server to connect to: one address, the master that Sentinels name, or a Cluster node by key.

This room opens connections and hands them on; it never watches them.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
from binascii import crc_hqx
from collections.abc import Iterable
from typing import Protocol

from bridge.bus.redis.address import Host, RedisUrl
from bridge.bus.redis.wire import Reply, ReplyError, Wire, WireOptions, command, open_wire
from bridge.errors import BridgeError, BusRefused, BusUnavailable

_DONE = BusUnavailable("asked and answered")


def key_slot(key: bytes) -> int:
    """The slot of a key, by its hash tag where it has one."""
    start = key.find(b"{")
    if start >= 0:
        end = key.find(b"}", start + 1)
        if end > start + 1:
            key = key[start + 1 : end]
    return crc_hqx(key, 0) % 16384


class Servers(Protocol):
    """Finds the server for a key and connects to it."""

    @property
    def many(self) -> bool:
        """Whether keys live on several servers."""

    def place(self, key: bytes) -> Host | None:
        """The server that holds ``key``, as far as known without asking; None: not known (yet)."""

    @property
    def hosts(self) -> Iterable[Host]:
        """Where keys live, as far as known."""

    async def open(self, key: bytes = b"", host: Host | None = None) -> Wire:
        """Connect to ``host``, or to the server that holds ``key`` (any when empty).

        Raises ``BusUnavailable`` or ``BusRefused``.
        """

    async def refresh(self) -> None:
        """Learn anew where keys live. Raises ``BusUnavailable`` or ``BusRefused``."""


class OneServer:
    """A server at a fixed address."""

    many = False

    def __init__(self, url: RedisUrl, options: WireOptions) -> None:
        self._host = url.hosts[0]
        self._options = options

    def place(self, key: bytes) -> Host | None:
        """See ``Servers.place``."""
        return self._host

    @property
    def hosts(self) -> Iterable[Host]:
        """See ``Servers.hosts``."""
        return (self._host,)

    async def open(self, key: bytes = b"", host: Host | None = None) -> Wire:
        """See ``Servers.open``."""
        return await open_wire(self._host, self._options)

    async def refresh(self) -> None:
        """See ``Servers.refresh``: there is nothing to learn."""


class SentinelServers:
    """The master of a service, as the Sentinels say at each connect."""

    many = False

    def __init__(self, url: RedisUrl, options: WireOptions) -> None:
        self._sentinels = list(url.hosts)
        self._service = url.service.encode()
        self._options = options
        self._master = url.hosts[0]

    def place(self, key: bytes) -> Host | None:
        """See ``Servers.place``."""
        return self._master

    @property
    def hosts(self) -> Iterable[Host]:
        """See ``Servers.hosts``."""
        return (self._master,)

    async def open(self, key: bytes = b"", host: Host | None = None) -> Wire:
        """See ``Servers.open``."""
        await self.refresh()
        wire = await open_wire(self._master, self._options)
        try:
            (role,) = await wire.ask(command(b"ROLE"))
            # A Sentinel may still name a master that has just been demoted.
            if isinstance(role, list) and role and role[0] != b"master":
                raise BusUnavailable(f"{self._master} is no longer the master")
        except BaseException:
            wire.abort(_DONE)
            raise
        return wire

    async def refresh(self) -> None:
        """See ``Servers.refresh``."""
        reasons: list[str] = []
        for sentinel in list(self._sentinels):
            try:
                answer = await self._ask(sentinel)
            except BridgeError as error:
                reasons.append(str(error))
                continue
            if isinstance(answer, list) and len(answer) == 2:
                self._master = Host(answer[0].decode(), int(answer[1]))
                self._sentinels.remove(sentinel)
                self._sentinels.insert(0, sentinel)
                return
            text = str(answer) if isinstance(answer, ReplyError) else "knows no such service"
            reasons.append(f"{sentinel}: {text}")
        raise BusUnavailable(f"no Sentinel names a master for {self._service.decode()}: " + "; ".join(reasons))

    async def _ask(self, sentinel: Host) -> Reply:
        # Sentinels usually want no password; one that does gets the same credentials.
        bare = dataclasses.replace(self._options, username="", password="", db=0)
        for options in (bare, dataclasses.replace(self._options, db=0)):
            try:
                wire = await open_wire(sentinel, options)
            except BusRefused:
                if options is bare and self._options.password:
                    continue
                raise
            try:
                (answer,) = await wire.ask(command(b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", self._service))
            finally:
                wire.abort(_DONE)
            break
        return answer


class ClusterServers:
    """A Cluster: slots on masters, learned from any node that answers."""

    many = True

    def __init__(self, url: RedisUrl, options: WireOptions) -> None:
        self._seeds = list(url.hosts)
        self._options = options
        self._slots: list[tuple[int, int, Host]] = []
        self._refreshing: asyncio.Task[None] | None = None

    def place(self, key: bytes) -> Host | None:
        """See ``Servers.place``."""
        slot = key_slot(key)
        for first, last, host in self._slots:
            if first <= slot <= last:
                return host
        return None

    @property
    def hosts(self) -> Iterable[Host]:
        """See ``Servers.hosts``."""
        return {host for _, _, host in self._slots}

    async def open(self, key: bytes = b"", host: Host | None = None) -> Wire:
        """See ``Servers.open``."""
        if host is None:
            await self.refresh()
            host = self.place(key) if key else random.choice(self._slots)[2]
        if host is None:
            raise BusUnavailable("no node of the Cluster serves the key's slot")
        return await open_wire(host, self._options)

    async def refresh(self) -> None:
        """See ``Servers.refresh``."""
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.create_task(self._learn())
            self._refreshing.add_done_callback(lambda task: task.cancelled() or task.exception())
        await asyncio.shield(self._refreshing)

    async def _learn(self) -> None:
        known = {host for _, _, host in self._slots}
        refused: BusRefused | None = None
        reasons: list[str] = []
        for host in [*random.sample(sorted(known, key=str), len(known)), *self._seeds]:
            try:
                wire = await open_wire(host, self._options)
            except BusRefused as error:
                refused = error
                continue
            except BusUnavailable as error:
                reasons.append(str(error))
                continue
            try:
                (answer,) = await wire.ask(command(b"CLUSTER", b"SLOTS"))
            finally:
                wire.abort(_DONE)
            if isinstance(answer, list) and answer:
                self._slots = [_slot_range(entry, host) for entry in answer]
                return
            reasons.append(f"{host}: {answer if isinstance(answer, ReplyError) else 'serves no slots'}")
        raise refused or BusUnavailable("no node of the Cluster answers: " + "; ".join(reasons))


def _slot_range(entry: list[Reply], asked: Host) -> tuple[int, int, Host]:
    first, last, master = entry[0], entry[1], entry[2]
    name = (master[0] or b"").decode()
    # An empty name or "?" means: where you asked.
    return first, last, Host(name if name not in ("", "?") else asked.host, master[1])


def servers_for(url: RedisUrl, options: WireOptions) -> Servers:
    """The kind of servers that the URL means."""
    if url.kind == "cluster":
        return ClusterServers(url, options)
    if url.kind == "sentinel":
        return SentinelServers(url, options)
    return OneServer(url, options)
