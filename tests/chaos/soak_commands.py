"""Commands under faults for minutes, every reply judged: ``make soak-commands ARGS="--minutes 10 --street nats"``.

Three workers share two nodes; workers are killed and restarted, the broker is killed and frozen, links are cut, the
nodes lose, delay and swallow replies. Prints what it did, what it found, and the seed.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import secrets
import signal
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path

from bridge.bus.embedded import EmbeddedBroker
from bridge.client import Bridge
from tests.chaos.conftest import Arena, Process
from tests.chaos.traffic import CountingSwitch, Traffic, close
from tests.integration.redis.conftest import Proxy

STREETS = {
    "nats": ("nats", "esl.cmd", "stream"),
    "nats durable": ("nats", "esl.queue", "stream"),
    "redis stream": ("redis", "esl.cmd", "stream"),
    "redis list": ("redis", "esl.cmd", "list"),
}
WORKERS = ("a", "b", "c")
FAULTS = {"kill": 4, "restart": 2, "broker": 2, "freeze broker": 1, "cut": 4, "switch": 4, "freeze": 1, "two": 2}
CLAIM_AFTER = 3.0


class Ring:
    """Everything that may break: the broker, the workers, the links, the nodes."""

    def __init__(self, street: str, folder: Path, stack: AsyncExitStack, chance: random.Random) -> None:
        kind, self.queue, self.queue_type = STREETS[street]
        self.durable = street != "nats"
        self.pops = kind == "redis"
        # With the default, everysec, a Redis that is killed may lose what it has confirmed a moment before.
        config = "appendfsync always" if kind == "redis" else ""
        self.broker = EmbeddedBroker(kind, config=config)  # type: ignore[arg-type]
        self.arena = Arena(self.broker, folder, stack)
        self.switches: dict[str, CountingSwitch] = {}
        self.links: dict[str, Proxy] = {}
        self.workers: dict[str, Process] = {}
        self.killed: list[float] = []
        self._stack = stack
        self._chance = chance

    async def open(self, workers: int = len(WORKERS)) -> None:
        await self._stack.enter_async_context(self.broker)
        for name in ("fs1", "fs2"):
            switch = self.switches[name] = CountingSwitch(heartbeat_interval=1.0)
            await switch.start()
            self._stack.push_async_callback(switch.stop)
            link = self.links[name] = Proxy(switch.port)
            await link.start()
            self._stack.push_async_callback(link.stop)
        self.arena.switches = list(self.switches.values())  # type: ignore[assignment]
        for id in WORKERS[:workers]:
            await self.start(id)

    async def start(self, id: str) -> None:
        urls = {name: f"fs://:ClueCon@127.0.0.1:{link.port}" for name, link in self.links.items()}
        extra = (
            f'[commands]\ndurable = true\nclaim_after = {CLAIM_AFTER}\nledger = "shared"\n'
            f'queue_type = "{self.queue_type}"\n[esl]\nesl_cmd_timeout = 1500\nesl_connect_timeout = 1500\n'
        )
        self.workers[id] = await self.arena.worker(id, urls=urls, extra=extra, node='tags = ["soak"]\n')

    async def clients(self, count: int) -> list[Bridge]:
        return [
            await self._stack.enter_async_context(Bridge(self.broker.url, queue_type=self.queue_type))
            for _ in range(count)
        ]

    async def taking(self) -> None:
        """Wait until every worker takes requests."""
        async with asyncio.timeout(60):
            while not all("requests are taken" in it.output for it in self.workers.values()):  # noqa: ASYNC110
                await asyncio.sleep(0.1)

    async def fault(self, kind: str = "", id: str = "") -> str:
        """Do one thing, and undo it."""
        chance = self._chance
        kind = kind or chance.choices(list(FAULTS), list(FAULTS.values()))[0]
        id = id or chance.choice(list(self.workers))
        if kind == "two":
            return await self._two_at_once()
        if kind == "kill":
            await self.workers[id].end(signal.SIGKILL)
            await asyncio.sleep(chance.uniform(0, 2 * CLAIM_AFTER))
            await self.start(id)
        elif kind == "restart":
            await self.workers[id].end(signal.SIGTERM)
            await self.start(id)
        elif kind == "freeze":
            self.workers[id].send(signal.SIGSTOP)
            await asyncio.sleep(chance.uniform(0.2, 2 * CLAIM_AFTER))
            self.workers[id].send(signal.SIGCONT)
        elif kind == "broker":
            self.killed.append(time.monotonic())
            await self.broker.kill()
            await asyncio.sleep(chance.uniform(0, 3.0))
            await self.broker.start()
        elif kind == "freeze broker":
            self.broker.pause()
            await asyncio.sleep(chance.uniform(0.2, 4.0))
            self.broker.resume()
        elif kind == "cut":
            name = chance.choice(list(self.links))
            for _ in range(chance.randint(1, 4)):
                self.links[name].cut()
                await asyncio.sleep(chance.uniform(0, 0.3))
            return f"cut {name}"
        else:
            name = chance.choice(list(self.switches))
            what = chance.choice(("drop", "deaf", "late:600ms", "late:2s", "slow_api:1s"))
            for _ in range(chance.randint(1, 5)):
                self.switches[name].faults.add(what)
            return f"{what} at {name}"
        return kind if "broker" in kind else f"{kind} {id}"

    async def _two_at_once(self) -> str:
        """A worker that stands still while its heir dies, is frozen too, or loses the broker."""
        one, other = self._chance.sample(list(self.workers), 2)
        kind = self._chance.choice(("freeze", "kill", "restart", "broker", "freeze broker"))
        return " with ".join(await asyncio.gather(self.fault("freeze", one), self.fault(kind, other)))


async def soak(street: str, minutes: float, seed: str, rate: float, commands: int) -> int:
    chance = random.Random(seed)
    print(f"{street}, {minutes:g} minutes or {commands} ids, seed {seed}", flush=True)  # noqa: T201
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="esl-bridge-commands-"))
        ring = Ring(street, Path(folder), stack, chance)
        await ring.open()
        await ring.taking()
        traffic = Traffic(
            await ring.clients(6),
            ring.switches,
            queue=ring.queue,
            durable=ring.durable,
            pops=ring.pops,
            chance=random.Random(seed),
        )
        traffic.killed = ring.killed
        stop = asyncio.Event()
        asking = asyncio.create_task(traffic.run(rate, stop, commands))
        started = time.monotonic()
        while time.monotonic() < started + minutes * 60 and not asking.done():
            await asyncio.sleep(chance.uniform(0.5, 3.0))
            done = await ring.fault()
            print(f"{time.monotonic():.2f} {done}, {len(traffic.orders)} ids", flush=True)  # noqa: T201
        stop.set()
        await asking
        await traffic.answered(60.0)
        lies = traffic.judge()
        await close(traffic)
        print(traffic.summary())  # noqa: T201
        print("\n".join(lies) or "no lie")  # noqa: T201
        if lies:
            kept = Path(tempfile.mkdtemp(prefix="esl-bridge-commands-lies-"))
            for process in ring.arena.processes:
                (kept / process.log.name).write_text(process.output)
            print(f"the workers' logs: {kept}")  # noqa: T201
        return len(lies)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--street", choices=STREETS, default="nats durable")
    parser.add_argument("--seed", default=secrets.token_hex(4))
    parser.add_argument("--rate", type=float, default=60.0, help="new ids a second")
    parser.add_argument("--commands", type=int, default=1_000_000, help="end after so many ids")
    arguments = parser.parse_args()
    sys.exit(
        bool(asyncio.run(soak(arguments.street, arguments.minutes, arguments.seed, arguments.rate, arguments.commands)))
    )


if __name__ == "__main__":
    main()
