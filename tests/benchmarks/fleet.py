"""How the fleet scales: many simulated nodes, many workers as processes, one broker, all on this machine.

    python tests/benchmarks/fleet.py --nodes 1000 --workers 16 --bus redis

Prints the time to a balanced start, to the fail-over of a killed worker, what moves when a worker comes or goes against
the ideal, and the broker's work in the steady state. It never asserts: the figures go into docs/how-to/scaling.md.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bridge.bus.embedded import EmbeddedBroker
from bridge.bus.storage import WORKERS
from bridge.client import Bridge
from bridge.errors import BusError
from bridge.messages.fleet import WorkerEntry, decode_worker
from bridge.simulator import SimulatedSwitch

PATIENCE = 600.0


class Bench:
    """One run."""

    def __init__(self, arguments: argparse.Namespace, folder: Path, broker: EmbeddedBroker, client: Bridge) -> None:
        self.arguments = arguments
        self.folder = folder
        self.broker = broker
        self.client = client
        self.switches: list[SimulatedSwitch] = []
        self.processes: dict[str, asyncio.subprocess.Process] = {}
        # An installed program is compiled once, not by each worker.
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("ESL_BRIDGE_", "PYTHON"))}
        self.environment["PYTHONPYCACHEPREFIX"] = str(folder / "compiled")

    async def open_nodes(self) -> None:
        for _ in range(self.arguments.nodes):
            switch = SimulatedSwitch(heartbeat_interval=20.0)
            await switch.start()
            self.switches.append(switch)

    async def compile(self) -> None:
        once = await asyncio.create_subprocess_exec(
            sys.executable, "-c", "import bridge.cli.run, bridge.worker, bridge.bus.nats, bridge.bus.redis",
            env=self.environment,
        )  # fmt: skip
        await once.wait()

    async def start(self, id: str) -> None:
        nodes = "\n".join(f'[[node]]\nname = "fs{n}"\nurl = "{it.url}"' for n, it in enumerate(self.switches))
        config = self.folder / f"{id}.toml"
        config.write_text(
            f'[worker]\nid = "{id}"\nstate_dir = "{self.folder / id}"\n[bus]\nurl = "{self.broker.url}"\n'
            f"[fleet]\nstandby = {self.arguments.standby}\nlease_time = {self.arguments.lease}\n"
            f'[http]\nlisten = ""\n[log]\nlevel = "warning"\n{nodes}\n'
        )
        with (self.folder / f"{id}.log").open("wb") as log:
            self.processes[id] = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "bridge", "run", "-c", str(config),
                env=self.environment,
                stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    async def fleet(self) -> dict[str, WorkerEntry]:
        try:
            return {id: decode_worker(it) for id, it in (await self.client.bus.storage.entries(WORKERS)).items()}
        except BusError:
            return {}

    async def owners(self) -> dict[str, str]:
        return {node.name: it.id for it in (await self.fleet()).values() for node in it.owned}

    async def until(self, condition: Callable[[dict[str, str], dict[str, WorkerEntry]], bool]) -> float:
        """Seconds until the fleet is so."""
        started = time.monotonic()
        while True:
            fleet = await self.fleet()
            owners = {node.name: it.id for it in fleet.values() for node in it.owned}
            if condition(owners, fleet):
                return time.monotonic() - started
            if time.monotonic() - started > PATIENCE:
                raise TimeoutError(f"{len(owners)} nodes owned by {len(fleet)} workers")
            await asyncio.sleep(0.1)

    def balanced(self, ids: set[str]) -> Callable[[dict[str, str], dict[str, WorkerEntry]], bool]:
        most = self.arguments.nodes / len(ids) * 1.11 + 1

        def check(owners: dict[str, str], fleet: dict[str, WorkerEntry]) -> bool:
            up = sum(node.state == "UP" for it in fleet.values() for node in it.owned)
            return (
                len(owners) == up == self.arguments.nodes
                and set(fleet) == ids
                and all(len(it.owned) <= most for it in fleet.values())
            )

        return check

    async def operations(self) -> float:
        """What the broker was asked so far: commands (Redis), messages kept (JetStream)."""
        if self.broker.kind == "redis":
            import redis.asyncio

            async with redis.asyncio.from_url(self.broker.url) as server:
                return float((await server.info("stats"))["total_commands_processed"])
        import nats

        connection = await nats.connect(self.broker.url)
        try:
            streams = await connection.jetstream().streams_info()
            return float(sum(one.state.last_seq for one in streams))
        finally:
            await connection.close()

    async def connections(self) -> int | None:
        """How many the broker has but for ours; None where it does not tell."""
        if self.broker.kind != "redis":
            return None
        import redis.asyncio

        async with redis.asyncio.from_url(self.broker.url) as server:
            return sum(str(it["name"]).startswith("esl-bridge") for it in await server.client_list())

    async def run(self) -> None:
        count = self.arguments.workers
        ids = [f"w{number}" for number in range(count)]
        say(f"{self.arguments.nodes} nodes, {count} workers, {self.broker.kind}, lease {self.arguments.lease:g} s")
        await self.compile()
        started = time.monotonic()
        for id in ids:
            await self.start(id)
        await self.until(self.balanced(set(ids)))
        say(f"balanced start: {time.monotonic() - started:.1f} s (interpreters' start included)")
        cpu = [_cpu(it.pid) for it in self.processes.values()]
        before, at = await self.operations(), time.monotonic()
        await asyncio.sleep(10)
        seconds = time.monotonic() - at
        say(f"storage in the steady state: {(await self.operations() - before) / seconds:.0f} operations/s")
        used = sum(_cpu(it.pid) - then for it, then in zip(self.processes.values(), cpu, strict=True)) / seconds
        say(f"CPU of all workers in the steady state: {used * 100:.0f} % of one core")
        memory = [_memory(it.pid) for it in self.processes.values()]
        say(f"memory of a worker: {sum(memory) / len(memory):.0f} MiB, the largest {max(memory):.0f}")
        if (connections := await self.connections()) is not None:
            say(f"connections to the broker: {connections} ({connections / count:.1f} a worker)")

        owners = await self.owners()
        victim = ids[-1]
        orphans = {name for name, id in owners.items() if id == victim}
        self.processes.pop(victim).send_signal(signal.SIGKILL)
        rest = set(ids) - {victim}

        def adopted(now: dict[str, str], fleet: dict[str, WorkerEntry]) -> bool:
            return all(now.get(name) in rest for name in orphans)

        say(f"fail-over of {len(orphans)} nodes: {await self.until(adopted):.1f} s")
        await self.until(self.balanced(rest))
        self._moves("a worker is lost", owners, await self.owners(), len(orphans))

        owners = await self.owners()
        started = time.monotonic()
        await self.start(victim)
        await self.until(self.balanced(set(ids)))
        say(f"balanced after a worker came: {time.monotonic() - started:.1f} s")
        self._moves("a worker comes", owners, await self.owners(), self.arguments.nodes / count)

    def _moves(self, what: str, before: dict[str, str], after: dict[str, str], ideal: float) -> None:
        moved = sum(before.get(name) != id for name, id in after.items())
        say(f"moves when {what}: {moved}, ideal {ideal:.0f} ({moved / max(ideal, 1):.2f} times)")

    async def close(self) -> None:
        for process in self.processes.values():
            process.kill()
        await asyncio.gather(*(process.wait() for process in self.processes.values()))
        for switch in self.switches:
            await switch.stop()


def say(text: str) -> None:
    print(text, flush=True)


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _memory(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


async def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--standby", type=int, default=0, choices=(0, 1))
    parser.add_argument("--lease", type=float, default=5.0)
    parser.add_argument("--bus", choices=("nats", "redis"), default="redis")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="esl-bridge-bench-") as folder:
        async with EmbeddedBroker(arguments.bus) as broker, Bridge(broker.url) as client:
            bench: Any = Bench(arguments, Path(folder), broker, client)
            try:
                await bench.open_nodes()
                await bench.run()
            except TimeoutError:
                for log in sorted(Path(folder).glob("*.log")):  # noqa: ASYNC240
                    say(f"--- {log.name}\n{log.read_text()[-1000:]}")
                raise
            finally:
                await bench.close()


if __name__ == "__main__":
    asyncio.run(main())
