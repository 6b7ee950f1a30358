"""The fleet as a tool sees it, and the orders that tools give it: read from and written to the bus's storage.

This room asks no worker, except on a bus that keeps nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

from bridge.bus.base import Bus
from bridge.bus.storage import NODES, WORKERS
from bridge.errors import BusRefused, NoConsumer
from bridge.messages.fleet import (
    TOPIC,
    NodeOrder,
    Word,
    WorkerEntry,
    decode_order,
    decode_worker,
    describe_fleet,
    encode,
    read_card,
)

ROLL_CALL = 0.4
"""Seconds that answers to a roll call are waited for."""
FLUSH = 5.0


async def read_fleet(bus: Bus) -> dict[str, Any]:
    """The workers and nodes of a bus (``describe_fleet``). Raises ``BusUnavailable``."""
    try:
        workers = await bus.storage.entries(WORKERS)
        orders = await read_orders(bus)
    except BusRefused:
        return describe_fleet(await _call_roll(bus))
    return describe_fleet(map(decode_worker, workers.values()), orders)


async def read_orders(bus: Bus) -> dict[str, NodeOrder]:
    """The nodes that were added or taken out of service through the bus. Raises ``BusUnavailable``, ``BusRefused``."""
    found = await bus.storage.entries(NODES)
    return {name: decode_order(payload) for name, payload in found.items()}


async def write_order(bus: Bus, name: str, order: NodeOrder | None) -> None:
    """Write what the fleet shall do with a node (None: no more than its configuration says); picked up at once.

    The URL with its password can be read by all that may read the bus's storage. Raises ``BusUnavailable``, and
    ``BusRefused`` where the bus keeps nothing.
    """
    if order is None:
        await bus.storage.remove(NODES, name)
    else:
        await bus.storage.put(NODES, name, encode(order))
    bus.storage.tell(TOPIC, encode(Word("look", "client")))
    await bus.flush(FLUSH)


async def _call_roll(bus: Bus) -> list[WorkerEntry]:
    found: list[WorkerEntry] = []

    def take(payload: bytes, content_type: str) -> None:
        with contextlib.suppress(ValueError, TypeError, AttributeError):
            entry = read_card(json.loads(payload))
            if entry is not None:
                found.append(entry)

    if bus.roll_call:
        with contextlib.suppress(NoConsumer):
            request = await bus.request(bus.roll_call, b"", "", take)
            await asyncio.sleep(ROLL_CALL)
            await request.close()
    return found
