"""Many callers in one process, each with one request under way. Arguments: bus URL, queue type.

Reads "<callers> <commands> [<line>]" from stdin, prints one line of JSON for each. Without a line each command is another
``md5``, whose answer is looked at.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

from bridge.bus.open import open_bus
from bridge.errors import NoConsumer


async def main(url: str, queue_type: str) -> None:
    bus = open_bus(url, queue_type=queue_type)  # type: ignore[arg-type]
    await bus.connect(10)
    loop = asyncio.get_running_loop()
    life = f"{time.time_ns():x}"
    number = 0

    async def call(left: list[int], times: list[float], wrong: list[str], line: str = "") -> None:
        nonlocal number
        while left[0] > 0:
            left[0] -= 1
            number += 1
            id = f"{life}-{number}"
            address = bus.new_reply_address()
            request = {"id": id, "command": line or f"md5 {number}"} | ({"reply_to": address} if address else {})
            answer: asyncio.Future[bytes] = loop.create_future()
            began = time.perf_counter()
            replies = await bus.request(
                "esl.cmd",
                json.dumps(request).encode(),
                "application/json",
                lambda payload, _type, answer=answer: None if answer.done() else answer.set_result(payload),
                reply_to=address,
            )
            try:
                reply = json.loads(await asyncio.wait_for(answer, 30))
                result = reply.get("result") or ""
                if reply["id"] != id or not (result.startswith("+OK") if line else len(result) >= 32):
                    wrong.append(str(reply)[:300])
            except TimeoutError:
                wrong.append(f"no reply to {id}")
            times.append(time.perf_counter() - began)
            await replies.close()

    while True:
        try:
            await call([1], [], [])
            break
        except NoConsumer:
            await asyncio.sleep(0.05)
    print("ready", flush=True)
    while True:
        order = await loop.run_in_executor(None, sys.stdin.readline)
        if not order:
            return
        callers, commands, *rest = order.strip().split(" ", 2)
        times: list[float] = []
        wrong: list[str] = []
        left = [int(commands)]
        began = time.perf_counter()
        await asyncio.gather(*(call(left, times, wrong, "".join(rest)) for _ in range(int(callers))))
        seconds = time.perf_counter() - began
        times.sort()
        told = {
            "seconds": seconds,
            "p50": times[len(times) // 2],
            "p99": times[int(len(times) * 0.99)],
            "wrong": len(wrong),
            "example": wrong[:1],
        }
        print("done " + json.dumps(told), flush=True)


asyncio.run(main(*sys.argv[1:]))
