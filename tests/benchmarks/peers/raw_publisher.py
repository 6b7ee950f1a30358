"""A ceiling: the same payloads, ready before it begins, through nats-py. Arguments: bus port, captures, count, how.

``publish``: the driver's own call for each, flushed at the end. ``batches``: ready-made bytes of the protocol, 200
events a write, which is what a copy in memory costs.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import nats
import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from firehose import Recording

BATCH = 200
WINDOW = 4 * 1024 * 1024


async def main(port: int, captures: str, count: int, how: str) -> None:
    client = await nats.connect(f"nats://127.0.0.1:{port}")
    payloads = [frame.partition(b"\n\n")[2] for frame in Recording(Path(captures), "json").frames]
    wire = [b"PUB fs.events.X %d\r\n%b\r\n" % (len(payload), payload) for payload in payloads]
    batches = [(b"".join(part), len(part)) for at in range(0, len(wire), BATCH) if (part := wire[at : at + BATCH])]
    print("ready", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    if how == "publish":
        for number in range(count):
            await client.publish("fs.events.X", payloads[number % len(payloads)])
        count = 0
    written = total = 0
    while total < count:
        for batch, size in batches:
            client._transport.write(batch)
            written += len(batch)
            total += size
            if written > WINDOW:
                await client.flush()
                written = 0
            if total >= count:
                break
    await client.flush()
    await asyncio.sleep(3600)


uvloop.run(main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]))
