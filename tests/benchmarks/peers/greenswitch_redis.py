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
    pipeline = redis.Redis(port=bus).pipeline(transaction=False)
    freeswitch = greenswitch.InboundESL(host="127.0.0.1", port=esl, password="ClueCon")
    freeswitch.connect()

    def relay(event: object) -> None:
        headers = event.headers  # type: ignore[attr-defined]
        pipeline.publish(f"fs.events.{headers['Event-Name']}", json.dumps(headers))
        if len(pipeline) >= BATCH:
            pipeline.execute()

    freeswitch.register_handle("*", relay)
    freeswitch.send("EVENTS PLAIN ALL".lower())
    while True:
        gevent.sleep(0.2)
        if len(pipeline):
            pipeline.execute()


main(int(sys.argv[1]), int(sys.argv[2]))
