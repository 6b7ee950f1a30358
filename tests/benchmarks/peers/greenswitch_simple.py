"""A relay as a user of greenswitch and nats-py would write it first: a coroutine an event. ESL port, bus port."""

from __future__ import annotations

import asyncio
import json
import sys
import threading

import gevent
import greenswitch
import nats


def main(esl: int, bus: int) -> None:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    client = asyncio.run_coroutine_threadsafe(nats.connect(f"nats://127.0.0.1:{bus}"), loop).result()
    freeswitch = greenswitch.InboundESL(host="127.0.0.1", port=esl, password="ClueCon")
    freeswitch.connect()

    def relay(event: object) -> None:
        headers = event.headers  # type: ignore[attr-defined]
        topic = f"fs.events.{headers['Event-Name']}"
        asyncio.run_coroutine_threadsafe(client.publish(topic, json.dumps(headers).encode()), loop)

    freeswitch.register_handle("*", relay)
    freeswitch.send("events plain ALL")
    while True:
        gevent.sleep(1)


main(int(sys.argv[1]), int(sys.argv[2]))
