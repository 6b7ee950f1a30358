"""A worker under traffic, commands and link cuts for minutes: its memory over time, and whether it stays flat.

Not a test: run it with ``make soak-memory ARGS="--minutes 20"``. Every command has a new id and most have a new text, so
whatever is kept of each must leave again: ``dedup_window`` is short, and passes many times. Memory that grows while tables
fill stops growing, so the last third of the run is compared with the one before it. It ends with 1 when memory grew
between the two, or when nothing was answered.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from bridge.bus.embedded import EmbeddedBroker
from bridge.client import Bridge
from bridge.errors import BridgeError, CommandFailed
from bridge.messages.notice import Notice

CUTS = ("reset@3000/5000", "close@5000/7000", "torn_notice@8000/11000", "garbage@9000/13000", "drop@500/900")


def memory_of(pid: int) -> float:
    """Resident memory of a process in MiB, without that of files, which the kernel gives and takes as it likes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    return 0.0


def thirds(points: list[float]) -> list[float]:
    """The medians of a run's three parts."""
    size = len(points) // 3
    return [statistics.median(part) for part in (points[:size], points[size : 2 * size], points[2 * size :])]


class Soak:
    """The processes and the load of one run."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.answers: Counter[str] = Counter()
        self.events = 0
        self.cuts = 0

    async def start(self, *command: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "bridge", *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
        )

    async def run(self) -> int:
        async with contextlib.AsyncExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            broker = await stack.enter_async_context(EmbeddedBroker(self.arguments.bus))
            faults = [word for cut in CUTS for word in ("--fault", cut)]
            rate = str(self.arguments.rate)
            switch = await self.start("simulate", "--port", "0", "--heartbeat", "2", "--rate", rate, *faults)
            stack.push_async_callback(end, switch)
            assert switch.stdout is not None
            url = ""
            while "fs://" not in url:
                line = await switch.stdout.readline()
                if not line:
                    raise SystemExit("the simulated FreeSWITCH did not start")
                url = line.decode()
            config = folder / "bridge.toml"
            config.write_text(
                f'[worker]\nstate_dir = "{folder}"\n[bus]\nurl = "{broker.url}"\n[http]\nlisten = "127.0.0.1:0"\n'
                f"[commands]\ndedup_window = {self.arguments.window}\n"
                f'[[node]]\nname = "fs1"\nurl = {url.split("=")[1].strip()}\n'
                f'[[node]]\nname = "absent"\nurl = "fs://:x@127.0.0.1:1"\n'
            )
            worker = await self.start("run", "-c", str(config))
            stack.push_async_callback(end, worker)
            client = await stack.enter_async_context(Bridge(broker.url))
            jobs = [asyncio.create_task(self.command(client, number)) for number in range(self.arguments.callers)]
            await client.notices(self.noted, "node")
            jobs += [asyncio.create_task(self.listen(client)), asyncio.create_task(read_away(worker, switch))]
            try:
                return await self.watch(worker.pid)
            finally:
                for job in jobs:
                    job.cancel()
                await asyncio.gather(*jobs, return_exceptions=True)

    async def watch(self, pid: int) -> int:
        begun = time.monotonic()
        length = self.arguments.minutes * 60
        points: list[float] = []
        while (passed := time.monotonic() - begun) < length:
            points.append(memory_of(pid))
            answers = ", ".join(f"{count} {status}" for status, count in self.answers.most_common())
            print(f"{passed:6.0f} s  {points[-1]:7.1f} MiB  {self.events:9d} events  {answers}", flush=True)
            await asyncio.sleep(min(10.0, length / 30))
        first, second, third = thirds(points)
        grows = (third - second) / (self.arguments.minutes / 3)
        print(
            f"medians of the thirds: {first:.1f}, {second:.1f}, {third:.1f} MiB; from the second to the last "
            f"{grows:+.3f} MiB/min; ids answered: {self.answers.total()}, link cuts: {self.cuts}"
        )
        return 1 if grows > self.arguments.limit or not self.answers["ok"] or not self.events else 0

    async def command(self, client: Bridge, number: int) -> None:
        """One caller, for ever: api, jobs, a call with an application that is waited for, faults."""
        rng = random.Random(number)
        while True:
            try:
                match rng.randrange(20):
                    case 0:
                        reply = await client.api("originate user/1000 &park", to="fs1", timeout=5)
                        uuid = str(reply.result).removeprefix("+OK ").strip()
                        await client.execute(uuid, "set", "a=b", wait=True, timeout=5)
                        await client.hangup(uuid, timeout=5)
                    case 1:
                        await client.bgapi(f"echo {'x' * 5000}", to="fs1", timeout=5)
                    case 2:
                        await client.api("no_such_command", to="fs1", timeout=5)
                    case 3:
                        await client.api("status", to="absent", timeout=5)
                    case 4:
                        await client.api("msleep 300", to="fs1", timeout=0.1)
                    case _:
                        await client.api(f"echo {rng.random()}", to="fs1", timeout=5)
                self.answers["ok"] += 1
            except CommandFailed as error:
                self.answers[error.status] += 1
            except BridgeError as error:
                self.answers[type(error).__name__] += 1
            await asyncio.sleep(self.arguments.pause)

    def noted(self, notice: Notice) -> None:
        self.cuts += (notice.node, notice.data["state"]) == ("fs1", "DOWN")

    async def listen(self, client: Bridge) -> None:
        async for _ in client.events("*"):
            self.events += 1


async def read_away(*processes: asyncio.subprocess.Process) -> None:
    """Nobody reads what they print: no pipe may fill."""

    async def read(process: asyncio.subprocess.Process) -> None:
        while process.stdout is not None and await process.stdout.read(65536):
            pass

    await asyncio.gather(*(read(process) for process in processes))


async def end(process: asyncio.subprocess.Process) -> None:
    """SIGTERM, and patience."""
    if process.returncode is None:
        process.terminate()
    await process.wait()


def main() -> int:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--bus", choices=("nats", "redis"), default="nats")
    parser.add_argument("--rate", type=float, default=10.0, help="made-up calls per second")
    parser.add_argument("--callers", type=int, default=8, help="who send commands, each one after another")
    parser.add_argument("--pause", type=float, default=0.05, help="s between two commands of a caller")
    parser.add_argument("--window", type=float, default=30.0, help="dedup_window in s")
    parser.add_argument("--limit", type=float, default=0.1, help="growth in MiB a minute that is too much")
    return asyncio.run(Soak(parser.parse_args()).run())


if __name__ == "__main__":
    sys.exit(main())
