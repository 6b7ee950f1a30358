"""Many callers in one process, each with one request under way. Arguments: bus URL, queue type.

It speaks to the broker in bare bytes and blocking sockets, one write for all that a read set free: callers that cost more
than the server that they call would measure themselves. Reads "<callers> <commands> [<line>]" from stdin, prints one line
of JSON for each. Without a line each command is another ``md5``, and its answer has to be that number's.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import sys
import time
from collections.abc import Callable
from urllib.parse import urlsplit

LIFE = f"{time.time_ns():x}"
PATIENCE = 30.0  # s without any reply


class Silence(Exception):
    """Nothing came in time."""


class Wire:
    """A socket, and what was read and not taken yet."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.socket = socket.create_connection((parts.hostname, parts.port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.settimeout(PATIENCE)
        self.rest = b""

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def more(self) -> None:
        """Read once."""
        try:
            data = self.socket.recv(1 << 18)
        except TimeoutError:
            raise Silence from None
        if not data:
            raise SystemExit("the broker closed the connection")
        self.rest += data


class OverNats:
    """Requests with a reply subject; replies as MSG or HMSG."""

    HEAD = re.compile(rb"H?MSG \S+ \d+ (?:(\d+) )?(\d+)\r\n")

    def __init__(self, url: str) -> None:
        self.wire = Wire(url)
        self.inbox = f"_INBOX.bench{LIFE}".encode()
        self.wire.send(
            b'CONNECT {"verbose":false,"headers":true,"no_responders":true}\r\nSUB %s 1\r\nPING\r\n' % self.inbox
        )

    def ask(self, requests: list[bytes]) -> None:
        self.wire.send(b"".join(b"PUB esl.cmd %s %d\r\n%s\r\n" % (self.inbox, len(body), body) for body in requests))

    def replies(self) -> list[bytes]:
        """At least one, once it is there; an empty one says that nobody serves."""
        wire, found = self.wire, []
        while not found:
            wire.more()
            at = 0
            while True:
                head = self.HEAD.match(wire.rest, at)
                if head is not None:
                    end = head.end() + int(head[2])
                    if len(wire.rest) < end + 2:
                        break
                    found.append(wire.rest[head.end() + int(head[1] or 0) : end])
                    at = end + 2
                    continue
                end = wire.rest.find(b"\r\n", at)
                if end < 0 or wire.rest.startswith((b"MSG", b"HMSG"), at):
                    break
                if wire.rest.startswith(b"PING", at):
                    wire.send(b"PONG\r\n")
                elif wire.rest.startswith(b"-ERR", at):
                    raise SystemExit(wire.rest[at:end].decode())
                at = end + 2
            wire.rest = wire.rest[at:]
        return found

    def reply_to(self) -> str:
        return ""


class OverRedis:
    """Requests in a list or a stream; all replies in one list of this process."""

    def __init__(self, url: str, queue_type: str) -> None:
        self.queue_type = queue_type
        self.writing, self.reading = Wire(url), Wire(url)
        self.writing.socket.settimeout(0.0)
        self.key = f"esl.reply.bench{LIFE}"
        self.question = _command("BLPOP", self.key, "0") + _command("LPOP", self.key, "4096")

    def reply_to(self) -> str:
        return self.key

    def ask(self, requests: list[bytes]) -> None:
        if self.queue_type == "list":
            data = _command("LPUSH", "esl.cmd", *requests)
        else:
            data = b"".join(_command("XADD", "esl.cmd", "*", "data", body) for body in requests)
        self.writing.socket.setblocking(True)
        self.writing.send(data)
        self.writing.socket.setblocking(False)
        try:
            told = self.writing.socket.recv(1 << 18)  # what it says to requests before; only refusals matter
            if b"-" in told[:1] or b"\r\n-" in told:
                raise SystemExit(told.decode())
        except BlockingIOError:
            pass

    def replies(self) -> list[bytes]:
        """At least one, once it is there."""
        self.reading.send(self.question)
        key, *found = self._array()
        assert key.decode() == self.key
        return found + self._array()

    def _array(self) -> list[bytes]:
        count = self._number(b"*")
        return [self._bulk() for _ in range(count)] if count > 0 else []

    def _number(self, kind: bytes) -> int:
        wire = self.reading
        while (end := wire.rest.find(b"\r\n")) < 0:
            wire.more()
        line, wire.rest = wire.rest[:end], wire.rest[end + 2 :]
        if line[:1] != kind and line != b"_":
            raise SystemExit(line.decode())
        return int(line[1:] or -1)

    def _bulk(self) -> bytes:
        size, wire = self._number(b"$"), self.reading
        while len(wire.rest) < size + 2:
            wire.more()
        body, wire.rest = wire.rest[:size], wire.rest[size + 2 :]
        return body


def _command(*words: str | bytes) -> bytes:
    raw = [word if isinstance(word, bytes) else word.encode() for word in words]
    return b"*%d\r\n" % len(raw) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in raw)


def measure(bus: OverNats | OverRedis, callers: int, commands: int, line: str, number: Callable[[], int]) -> dict:
    """``commands`` requests, at most ``callers`` of them under way."""
    under_way: dict[str, tuple[float, str]] = {}
    times: list[float] = []
    wrong: list[str] = []
    left = commands
    reply_to = bus.reply_to()

    def requests(count: int) -> list[bytes]:
        made = []
        for _ in range(count):
            one = number()
            id = f"{LIFE}-{one}"
            request = {"id": id, "command": line or f"md5 {one}"} | ({"reply_to": reply_to} if reply_to else {})
            under_way[id] = (time.perf_counter(), "+OK" if line else hashlib.md5(b"%d" % one).hexdigest())
            made.append(json.dumps(request).encode())
        return made

    began = time.perf_counter()
    bus.ask(requests(min(callers, left)))
    left -= min(callers, left)
    while under_way:
        try:
            replies = bus.replies()
        except Silence:
            wrong += [f"no reply to {id}" for id in under_way]
            break
        free = 0
        for payload in replies:
            if not payload:
                raise SystemExit("nobody serves esl.cmd")
            reply = json.loads(payload)
            asked = under_way.pop(reply["id"], None)
            if asked is None or asked[1] not in (reply.get("result") or ""):
                wrong.append(str(reply)[:300])
            if asked is not None:
                times.append(time.perf_counter() - asked[0])
                free += 1
        bus_free = min(free, left)
        if bus_free:
            left -= bus_free
            bus.ask(requests(bus_free))
    seconds = time.perf_counter() - began
    times.sort()
    return {
        "seconds": seconds,
        "p50": times[len(times) // 2] if times else PATIENCE,
        "p99": times[int(len(times) * 0.99)] if times else PATIENCE,
        "wrong": len(wrong),
        "example": wrong[:1],
    }


def served(bus: OverNats | OverRedis) -> None:
    """Wait until somebody answers."""
    while True:
        bus.ask([json.dumps({"id": f"{LIFE}-0", "command": "status", "reply_to": bus.reply_to() or None}).encode()])
        if any(bus.replies()):
            return
        time.sleep(0.05)


def main(url: str, queue_type: str) -> None:
    bus = OverNats(url) if url.startswith("nats") else OverRedis(url, queue_type)
    served(bus)
    print("ready", flush=True)
    last = 0

    def number() -> int:
        nonlocal last
        last += 1
        return last

    for order in sys.stdin:
        callers, commands, *rest = order.strip().split(" ", 2)
        print("done " + json.dumps(measure(bus, int(callers), int(commands), "".join(rest), number)), flush=True)


main(*sys.argv[1:])
