"""A FreeSWITCH that only shouts: answers every command and, when told to, sends recorded events as fast as they are read.

Run as a process: ``firehose.py CAPTURE_FOLDER``. It prints its port, then ``subscribed`` with every subscription.
On stdin: ``go COUNT [RATE]`` sends COUNT events on the newest subscription, RATE per second (0: no limit), and prints
``sent``. Every round of the recording gets a Core-UUID of its own, so that no two events have one identity; with a
RATE each event is stamped with the time of its sending.
"""

from __future__ import annotations

import gzip
import json
import re
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

_STAMP = re.compile(rb'("Event-Date-Timestamp":"|Event-Date-Timestamp: )(\d{16})')
_CORE = re.compile(rb'Core-UUID(?:":"|: )([0-9a-f-]{36})')


class Recording:
    """The frames of one capture, as FreeSWITCH sent them."""

    def __init__(self, folder: Path, format: str) -> None:
        data = gzip.decompress((folder / f"{format}_all.rx.bin.gz").read_bytes())
        index = json.loads(gzip.decompress((folder / f"{format}_all.json.gz").read_bytes()))
        kind = f"text/event-{format}"
        self.frames = [data[at : at + head + body] for at, head, body, type in index["frames"] if type == kind]
        found = _CORE.search(self.frames[0])
        assert found is not None
        self._core = found[1]

    def rounds(self, count: int) -> Iterator[bytes]:
        """Yield the recording again and again, each time as another FreeSWITCH's, until ``count`` events are out."""
        whole = b"".join(self.frames)
        while count > 0:
            core = str(uuid.uuid4()).encode()
            text = whole if count >= len(self.frames) else b"".join(self.frames[:count])
            yield text.replace(self._core, core)
            count -= len(self.frames)

    def stamped(self, count: int) -> Iterator[tuple[bytes, bytes]]:
        """Yield single frames, cut where the time of sending belongs."""
        while count > 0:
            core = str(uuid.uuid4()).encode()
            for frame in self.frames[:count]:
                found = _STAMP.search(frame)
                assert found is not None
                yield frame[: found.start(2)].replace(self._core, core), frame[found.end(2) :].replace(self._core, core)
            count -= len(self.frames)


class Firehose:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._server = socket.create_server(("127.0.0.1", 0))
        self._newest: tuple[socket.socket, str] | None = None
        self._recordings: dict[str, Recording] = {}
        print(self._server.getsockname()[1], flush=True)

    def run(self) -> None:
        threading.Thread(target=self._accept, daemon=True).start()
        for line in sys.stdin:
            words = line.split()
            if words and words[0] == "go":
                try:
                    self._send(int(words[1]), float(words[2]) if len(words) > 2 else 0.0)
                except OSError as error:
                    print(f"broken {error}", flush=True)

    def _accept(self) -> None:
        while True:
            connection, _ = self._server.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        connection.sendall(b"Content-Type: auth/request\n\n")
        buffer = b""
        while True:
            try:
                data = connection.recv(65536)
            except OSError:
                return
            if not data:
                return
            buffer += data
            while b"\n\n" in buffer:
                command, _, buffer = buffer.partition(b"\n\n")
                line = command.strip().decode()
                if line.startswith("api show"):
                    connection.sendall(b"Content-Type: api/response\nContent-Length: 15\n\n" + b'{"row_count":0}')
                    continue
                if line.startswith("api"):
                    core = str(uuid.uuid4()).encode()
                    connection.sendall(b"Content-Type: api/response\nContent-Length: %d\n\n%b" % (len(core), core))
                    continue
                connection.sendall(b"Content-Type: command/reply\nReply-Text: +OK accepted\n\n")
                if line.startswith("event"):
                    format = "json" if "json" in line else "plain"
                    self._newest = connection, format
                    print(f"subscribed {format}", flush=True)

    def _send(self, count: int, rate: float) -> None:
        assert self._newest is not None
        connection, format = self._newest
        recording = self._recordings.setdefault(format, Recording(self._folder, format))
        if not rate:
            for block in recording.rounds(count):
                connection.sendall(block)
        else:
            start = time.monotonic()
            sent = 0
            waiting: list[tuple[bytes, bytes]] = []
            for frame in recording.stamped(count):
                waiting.append(frame)
                sent += 1
                due = start + sent / rate
                now = time.monotonic()
                if due > now + 0.0005:
                    stamp = b"%d" % (time.time_ns() // 1000)
                    connection.sendall(b"".join([head + stamp + tail for head, tail in waiting]))
                    waiting.clear()
                    time.sleep(max(0.0, due - time.monotonic()))
            stamp = b"%d" % (time.time_ns() // 1000)
            connection.sendall(b"".join([head + stamp + tail for head, tail in waiting]))
        print("sent", flush=True)


if __name__ == "__main__":
    Firehose(Path(sys.argv[1])).run()
