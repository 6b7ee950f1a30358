"""Commands while workers are killed, the broker restarts and links are cut: no lie, no second run, all answered."""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.chaos.soak_commands import STREETS, Ring
from tests.chaos.traffic import Traffic, close

FAULTS = ("cut", "switch", "kill", "broker", "switch", "cut", "freeze broker", "restart")


@pytest.mark.parametrize("street", STREETS)
async def test_no_reply_lies_whatever_breaks(street: str, tmp_path: Path) -> None:
    chance = random.Random(4)
    async with AsyncExitStack() as stack:
        ring = Ring(street, tmp_path, stack, chance)
        await ring.open(workers=2)
        await ring.taking()
        traffic = Traffic(
            await ring.clients(3),
            ring.switches,
            queue=ring.queue,
            durable=ring.durable,
            pops=ring.pops,
            chance=random.Random(4),
        )
        traffic.killed = ring.killed
        stop = asyncio.Event()
        asking = asyncio.create_task(traffic.run(30.0, stop))
        for kind in FAULTS:
            asked = len(traffic.orders)
            await ring.fault(kind)
            async with asyncio.timeout(60):
                while len(traffic.orders) < asked + 20:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
        stop.set()
        await asking
        await traffic.answered(40.0)
        lies = traffic.judge()
        await close(traffic)
        assert not lies, "\n".join([*lies, traffic.summary(), ring.arena.outputs()])
        assert (
            sum(reply.status == "ok" for order in traffic.orders for it in order.copies for reply in it.replies) > 100
        )
