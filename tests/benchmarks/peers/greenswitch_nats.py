"""The same by a user who has measured: events are gathered, one wake-up for many. ESL port, bus port."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections import deque

import gevent
import greenswitch
import nats


def main(esl: int, bus: int) -> None:
    loop = asyncio.new_event_loop()
    waiting: deque[tuple[str, bytes]] = deque()
    wake = asyncio.Event()

    async def publish() -> None:
        client = await nats.connect(f"nats://127.0.0.1:{bus}")
        while True:
            await wake.wait()
            wake.clear()
            while waiting:
                topic, payload = waiting.popleft()
                await client.publish(topic, payload)

    threading.Thread(target=lambda: loop.run_until_complete(publish()), daemon=True).start()
    freeswitch = greenswitch.InboundESL(host="127.0.0.1", port=esl, password="ClueCon")
    freeswitch.connect()

    def relay(event: object) -> None:
        headers = event.headers  # type: ignore[attr-defined]
        waiting.append((f"fs.events.{headers['Event-Name']}", json.dumps(headers).encode()))
        if len(waiting) == 1:
            loop.call_soon_threadsafe(wake.set)

    freeswitch.register_handle("*", relay)
    freeswitch.send("events plain ALL")
    while True:
        gevent.sleep(1)


main(int(sys.argv[1]), int(sys.argv[2]))
