"""Faults of the broker at random, under load, and every event counted: ``python -m tests.chaos.soak_broker``.

One worker, one node with some thousand events a second. The broker is cut off, held up, frozen, killed (where something
is kept), and the disk refuses what is spilled. In the end a stream holds every event, in order; what is missing on the
topics adds up with what was told, and nothing came twice. Prints what it did and the seed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import secrets
import tempfile
import time
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from bridge.bus.base import Received
from bridge.bus.embedded import EmbeddedBroker
from bridge.relay.parcel_file import ParcelFile
from bridge.simulator import SimulatedSwitch
from tests.integration.conftest import House
from tests.integration.test_event_delivery import FLEET, buffers, stored, stream_of
from tests.integration.test_event_losses import Road

PATIENCE = 120.0


class Speaker:
    """A node that counts aloud."""

    def __init__(self, switch: SimulatedSwitch, rate: int) -> None:
        self.count = 0
        self._switch = switch
        self._rate = rate
        self._task = asyncio.create_task(self._speak())

    async def _speak(self) -> None:
        begun = time.monotonic()
        while True:
            while self.count < (time.monotonic() - begun) * self._rate:
                headers = {"number": str(self.count), "filling": "x" * 300}
                self._switch.fire("CUSTOM", headers, subclass="soak")
                self.count += 1
            await asyncio.sleep(0.005)

    async def hush(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


class FullDisk:
    """A disk that takes nothing while ``full``."""

    def __init__(self) -> None:
        self.full = False
        self._write = ParcelFile.write

    def __enter__(self) -> FullDisk:
        def write(file: ParcelFile, pieces: Any) -> Any:
            if self.full:
                raise OSError(28, "No space left on device")
            return self._write(file, pieces)

        ParcelFile.write = write  # type: ignore[assignment, method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        ParcelFile.write = self._write  # type: ignore[method-assign]


async def fault(house: House, road: Road, disk: FullDisk, chance: random.Random, *, kept: bool) -> str:
    """Do one thing to the broker, or to the disk while the broker is away."""
    kind = chance.choice(("cut", "cuts", "hold", "freeze", "freeze", "disk") + (("kill", "kill") if kept else ()))
    long = chance.choice((0.05, 0.3, 1.0, 3.0)) * chance.uniform(0.5, 1.5)
    if kind == "kill":
        await house.broker.kill()
        await asyncio.sleep(long)
        await house.broker.start()
    elif kind == "freeze" or kind == "disk":
        disk.full = kind == "disk"
        house.broker.pause()
        await asyncio.sleep(long)
        house.broker.resume()
        await asyncio.sleep(chance.choice((0.0, 0.5)))
        disk.full = False
    else:
        for _ in range(chance.randrange(2, 6) if kind == "cuts" else 1):
            if kind == "hold":
                road.hold()
                await asyncio.sleep(long)
            road.cut()
            await asyncio.sleep(long if kind == "cut" else 0.05)
            road.mend()
            await asyncio.sleep(0.1 if kind == "cuts" else 0)
    return f"{kind} {long:.2f} s"


def told(gaps: list[dict[str, Any]], *reasons: str) -> int:
    """What these gaps say is missing."""
    return sum(one["data"]["count"] for one in gaps if one["data"]["reason"] in reasons)


async def soak(minutes: float, bus: str, delivery: str, seed: str, rate: int) -> None:
    """See the module."""
    if (bus, delivery) == ("nats", "both"):
        delivery = "durable"  # the same there: who listens to the topics gets what goes into the stream, repeats too
    chance = random.Random(seed)
    print(f"{minutes:g} minutes on {bus}, {delivery}, seed {seed}", flush=True)  # noqa: T201
    events: list[int] = []
    gaps: list[dict[str, Any]] = []

    def hear(received: Received) -> None:
        message = json.loads(received.payload)
        if received.topic == "fs.bridge.gap":
            gaps.append(message)
        elif "number" in message["data"]:
            events.append(int(message["data"]["number"]))

    async with AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="esl-bridge-soak-"))
        disk = stack.enter_context(FullDisk())
        broker = await stack.enter_async_context(EmbeddedBroker("redis" if bus == "redis" else "nats"))
        house = House(broker, Path(folder), stack)
        road = Road(broker.port)
        await road.open()
        stack.push_async_callback(road.close)
        listener = await house.client()
        await listener.bus.subscribe("fs.events.*", hear)
        await listener.bus.subscribe("fs.bridge.gap", hear)
        switch = await house.switch(heartbeat_interval=20.0)
        worker = await house.worker(
            switch,
            bus={"url": f"{bus}://127.0.0.1:{road.port}"},
            events={"delivery": delivery, "buffer_bytes": 2 << 20, "buffer_disk": 256 << 20},
            fleet=FLEET,
        )
        totals = worker.metrics.totals
        speaker = Speaker(switch, rate)
        end = time.monotonic() + minutes * 60
        while time.monotonic() < end:
            await asyncio.sleep(chance.uniform(0.1, 1.0))
            done = await fault(house, road, disk, chance, kept=delivery == "durable")
            await house.until(lambda: worker.bus.connected, PATIENCE)
            waits = sum(one.events + one.in_flight for one in buffers(worker))
            print(f"{done}: {speaker.count} events, {waits} wait, {dict(totals)}", flush=True)  # noqa: T201
        await speaker.hush()
        await house.until(lambda: totals["events_received"] >= speaker.count, PATIENCE)
        await house.until(lambda: not any(one.events or one.in_flight for one in buffers(worker)), PATIENCE)
        switch.fire("CUSTOM", {}, subclass="the end")  # what is missing at the end is told with it
        await house.until(
            lambda: not any(one.losses or one._open or one._trailing for one in buffers(worker)), PATIENCE
        )
        await worker.bus.flush(10)
        await asyncio.sleep(0.5)
        count = speaker.count
        if delivery != "pubsub":
            found = [
                int(one["data"]["number"]) for one in await stored(broker, stream_of(house)) if "number" in one["data"]
            ]
            first = list(dict.fromkeys(found))
            missing = count - len(first)
            print(f"{count} events, {missing} missing in the stream, {len(found) - len(first)} twice")  # noqa: T201
            assert first == sorted(first), "out of order"
            if delivery == "durable":
                # Events of the switch's own (heartbeats) bear no number, and may have been dropped too.
                assert 0 <= totals["events_dropped"] - missing <= totals["events_received"] - count
            else:
                assert missing <= told(gaps, "buffer")
        if delivery != "durable":
            twice = [number for number, times in Counter(events).items() if times > 1]
            assert not twice, f"{len(twice)} came twice"
            assert events == sorted(events), "out of order"
            missing = count - len(events)
            exact, at_most = told(gaps, "buffer"), told(gaps, "bus")
            print(f"{count} events, {missing} missing on the topics; told: {exact} exactly, {at_most} at most")  # noqa: T201
            assert missing <= exact + at_most
            assert delivery == "both" or exact <= missing


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--bus", choices=("nats", "redis"), default="nats")
    parser.add_argument("--delivery", choices=("pubsub", "durable", "both"), default="durable")
    parser.add_argument("--seed", default=secrets.token_hex(4))
    parser.add_argument("--rate", type=int, default=2000, help="events per second")
    arguments = parser.parse_args()
    asyncio.run(soak(arguments.minutes, arguments.bus, arguments.delivery, arguments.seed, arguments.rate))


if __name__ == "__main__":
    main()
