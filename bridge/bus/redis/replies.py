"""The caller's side: reply addresses of its own, and a few connections that wait on many of them with BLPOP.

This room never looks into a reply.
"""

from __future__ import annotations

import asyncio
import functools
import secrets
from collections.abc import Callable

from bridge.bus.redis.link import Link, Operation, ignore
from bridge.bus.redis.wire import Reply, command
from bridge.bus.redis.writers import Writers

PREFIX = "esl.reply"
ReplyHandler = Callable[[bytes, str], None]

_LANE_SIZE = 64  # open addresses of one connection before another is opened
_MAX_LANES = 16
_AHEAD = 8  # addresses waited on before they are given out: most requests then need no waking
_BLOCK = 5.0  # s
_BLOCK_PART = b"$%d\r\n%d\r\n" % (len(str(int(_BLOCK))), int(_BLOCK))


class ReplySubscription:
    """One request's replies, until it is closed."""

    def __init__(self, closing: Callable[[], None], link: Link | None = None) -> None:
        self._closing = closing
        self._link = link

    async def close(self) -> None:
        """Stop waiting; a reply that comes later expires with its key."""
        self._closing()
        if self._link is not None:
            await self._link.close()


class Lane:
    """One connection that waits on the addresses of up to some dozens of requests."""

    def __init__(self, prefix: str, link: Link, writers: Writers) -> None:
        self._prefix = prefix
        self._link = link
        self._writers = writers
        self._wake_key = f"{prefix}.wake".encode()
        self._wake_part = b"$%d\r\n%b\r\n" % (len(self._wake_key), self._wake_key)
        self._issued = 0
        self._handlers: dict[bytes, ReplyHandler] = {}
        # All keys that the next question names, encoded: those given out, and some that will be.
        self._parts: dict[bytes, bytes] = {}
        self._ahead = 0
        self._unasked: set[bytes] = set()  # those of them that the question under way does not name
        self._asking = False
        self._waking = False
        self._scheduled = False
        link.on_up = self._up
        link.on_down = self._down
        self._look_ahead()

    @property
    def link(self) -> Link:
        """The connection."""
        return self._link

    @property
    def load(self) -> int:
        """Addresses given out and not closed."""
        return len(self._parts) - (self._ahead - self._issued)

    def new_address(self) -> str:
        """A fresh address; it belongs to this lane until it is closed."""
        self._issued += 1
        self._look_ahead()
        return f"{self._prefix}.{self._issued}"

    def open(self, address: str, handler: ReplyHandler) -> None:
        """Wait on ``address`` too."""
        key = address.encode()
        self._handlers[key] = handler
        if key not in self._parts:
            self._name(key)
        self._link.start()
        if not self._asking:
            self._soon()
        elif key in self._unasked and not self._waking:
            self._waking = True
            wake = command(b"RPUSH", self._wake_key, b"1") + command(b"PEXPIRE", self._wake_key, b"60000")
            self._writers.submit(Operation(wake, 2, ignore, key=self._wake_key))

    def close(self, address: str) -> None:
        """Wait on it no longer."""
        key = address.encode()
        self._handlers.pop(key, None)
        self._parts.pop(key, None)
        self._unasked.discard(key)

    def _look_ahead(self) -> None:
        while self._ahead < self._issued + _AHEAD:
            self._ahead += 1
            self._name(f"{self._prefix}.{self._ahead}".encode())

    def _name(self, key: bytes) -> None:
        self._parts[key] = b"$%d\r\n%b\r\n" % (len(key), key)
        self._unasked.add(key)

    def _up(self) -> None:
        self._asking = False
        self._ask()

    def _down(self, error: Exception) -> None:
        self._asking = self._waking = False

    def _soon(self) -> None:
        """Ask at the end of this turn: what else opens or closes in it goes along."""
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._ask)

    def _ask(self) -> None:
        self._scheduled = False
        if self._asking or not self._link.connected or not self._handlers:
            return
        # The wake key comes last: replies go first.
        head = b"*%d\r\n$5\r\nBLPOP\r\n" % (len(self._parts) + 3)
        question = b"".join((head, *self._parts.values(), self._wake_part, _BLOCK_PART))
        self._unasked.clear()
        self._asking = True
        self._link.say(Operation(question, 1, self._answered, patience=_BLOCK))

    def _answered(self, replies: list[Reply], error: Exception | None) -> None:
        self._asking = False
        if error is not None:
            return
        answer = replies[0]
        if isinstance(answer, list) and len(answer) == 2:
            if answer[0] == self._wake_key:
                self._waking = False
            else:
                self._hand_over(answer[0], answer[1])
        elif isinstance(answer, Exception):
            self._link.fail(answer)
            return
        if self._handlers:
            self._soon()

    def _hand_over(self, key: bytes, payload: bytes) -> None:
        handler = self._handlers.get(key)
        if handler is None:
            return
        try:
            handler(payload, "")
        except Exception as error:  # one caller's fault must not cost the others their replies
            asyncio.get_running_loop().call_exception_handler(
                {"message": "a reply's handler failed", "exception": error}
            )


class ReplyLanes:
    """All reply addresses of a bus, spread over as few connections as will do."""

    def __init__(self, make_link: Callable[[bytes], Link], writers: Writers, *, tagged: bool) -> None:
        # In a Cluster all keys of one BLPOP must lie in one slot: a hash tag sees to it.
        identity = secrets.token_hex(8)
        self._prefix = f"{PREFIX}.{{{identity}}}" if tagged else f"{PREFIX}.{identity}"
        self._make_link = make_link
        self._writers = writers
        self._lanes: list[Lane] = []

    def new_address(self) -> str:
        """An address for one request."""
        lane = min(self._lanes, key=lambda lane: lane.load, default=None)
        if lane is None or (lane.load >= _LANE_SIZE and len(self._lanes) < _MAX_LANES):
            prefix = f"{self._prefix}.{len(self._lanes)}"
            lane = Lane(prefix, self._make_link(prefix.encode()), self._writers)
            self._lanes.append(lane)
        return lane.new_address()

    def open(self, address: str, handler: ReplyHandler) -> ReplySubscription:
        """Wait for replies at ``address``; one that is not of ours gets a connection of its own."""
        lane = self._lane_of(address)
        if lane is not None:
            lane.open(address, handler)
            return ReplySubscription(functools.partial(lane.close, address))
        # Its wake key must hash as it does.
        prefix = address if "{" in address else f"{{{address}}}"
        own = Lane(prefix, self._make_link(address.encode()), self._writers)
        own.open(address, handler)
        return ReplySubscription(functools.partial(own.close, address), own.link)

    async def close(self) -> None:
        """Disconnect all."""
        for lane in self._lanes:
            await lane.link.close()

    def _lane_of(self, address: str) -> Lane | None:
        if not address.startswith(self._prefix + "."):
            return None
        number = address[len(self._prefix) + 1 :].partition(".")[0]
        return self._lanes[int(number)] if number.isdigit() and int(number) < len(self._lanes) else None
