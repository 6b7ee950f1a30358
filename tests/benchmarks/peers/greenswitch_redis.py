"""A relay as a user of greenswitch and redis-py would write it, pipelined. Arguments: ESL port, bus port."""

from __future__ import annotations

import gevent.monkey

gevent.monkey.patch_all()

import json  # noqa: E402
import sys  # noqa: E402

import gevent  # noqa: E402
import greenswitch  # noqa: E402
import redis  # noqa: E402

BATCH = 100


def main(esl: int, bus: int) -> None:
    client = redis.Redis(port=bus)
    waiting: list[tuple[str, str]] = []
    freeswitch = greenswitch.InboundESL(host="127.0.0.1", port=esl, password="ClueCon")
    freeswitch.connect()

    def flush() -> None:
        # Others run while the socket is waited for: what they add belongs to the next pipeline.
        batch = waiting[:]
        waiting.clear()
        pipeline = client.pipeline(transaction=False)
        for topic, payload in batch:
            pipeline.publish(topic, payload)
        pipeline.execute()

    def relay(event: object) -> None:
        headers = event.headers  # type: ignore[attr-defined]
        waiting.append((f"fs.events.{headers['Event-Name']}", json.dumps(headers)))
        if len(waiting) >= BATCH:
            flush()

    freeswitch.register_handle("*", relay)
    freeswitch.send("events plain ALL")
    while True:
        gevent.sleep(0.2)
        if waiting:
            flush()


main(int(sys.argv[1]), int(sys.argv[2]))
