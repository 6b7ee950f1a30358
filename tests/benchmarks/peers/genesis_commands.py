"""Commands as a user of genesis and nats-py would serve them. Arguments: ESL port, bus port."""

from __future__ import annotations

import asyncio
import json
import logging
import sys

import nats
from genesis import Inbound


async def main(esl: int, bus: int) -> None:
    logging.disable(logging.CRITICAL)
    client = await nats.connect(f"nats://127.0.0.1:{bus}")
    async with Inbound("127.0.0.1", esl, "ClueCon") as freeswitch:

        async def serve(message: nats.aio.msg.Msg) -> None:
            request = json.loads(message.data)
            answer = await freeswitch.send(f"api {request['command']}")
            await message.respond(json.dumps({"id": request["id"], "result": answer.body}).encode())

        await client.subscribe("esl.cmd", queue="workers", cb=serve)
        print("ready", flush=True)
        await asyncio.Event().wait()


asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
