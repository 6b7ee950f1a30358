"""Reads events from NATS and says how old they were. Arguments: port, events; prints ``ready``, then one JSON line."""

from __future__ import annotations

import json
import re
import socket
import sys
import time

_STAMP = re.compile(rb'"Event-Date-Timestamp":"(\d{16})"')


def main(port: int, count: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.recv(4096)
        connection.sendall(b'CONNECT {"headers":true}\r\nSUB fs.events.> 1\r\nPING\r\n')
        while b"PONG" not in connection.recv(4096):
            pass
        print("ready", flush=True)
        ages: list[int] = []
        rest = b""
        connection.settimeout(5.0)
        try:
            while len(ages) < count:
                data = connection.recv(1 << 20)
                now = time.time_ns() // 1000
                if b"PING\r\n" in data:
                    connection.sendall(b"PONG\r\n")
                text = rest + data
                end = 0
                for found in _STAMP.finditer(text):
                    ages.append(now - int(found[1]))
                    end = found.end()
                rest = text[max(end, len(text) - 64) :]
        except TimeoutError:
            pass
        ages.sort()
        at = lambda share: ages[min(len(ages) - 1, int(len(ages) * share))] / 1000  # noqa: E731
        print(
            json.dumps(
                {"events": len(ages), "median": at(0.5), "p90": at(0.9), "p99": at(0.99), "max": ages[-1] / 1000}
            ),
            flush=True,
        )


main(int(sys.argv[1]), int(sys.argv[2]))
