"""A relay as a user of genesis and nats-py would write it. Arguments: ESL port, bus port, core | jetstream | msgpack."""

from __future__ import annotations

import asyncio
import json
import logging
import sys

import nats
from genesis import Inbound


async def main(esl: int, bus: int, kind: str) -> None:
    logging.disable(logging.CRITICAL)
    client = await nats.connect(f"nats://127.0.0.1:{bus}")
    jetstream = client.jetstream()
    if kind == "jetstream":
        await jetstream.add_stream(name="FS_EVENTS", subjects=["fs.events.>"])
    if kind == "msgpack":
        import msgpack

        encode = msgpack.packb
    else:

        def encode(event: object) -> bytes:
            return json.dumps(event).encode()

    async def relay(event: dict[str, str]) -> None:
        topic = f"fs.events.{event['Event-Name']}"
        if kind == "jetstream":
            identity = f"{event['Core-UUID']}:{event['Event-Sequence']}"
            await jetstream.publish(topic, encode(dict(event)), headers={"Nats-Msg-Id": identity})
        else:
            await client.publish(topic, encode(dict(event)))

    async with Inbound("127.0.0.1", esl, "ClueCon") as freeswitch:
        freeswitch.on("*", relay)
        await freeswitch.send("events plain ALL")
        await asyncio.Event().wait()


asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))
