"""How much a command costs on its way through the bridge, beside programs that a user would write, interleaved.

Callers, broker, simulated FreeSWITCH and the server of commands are processes of their own; CPU time is the server's.
``--peer-python`` is an interpreter that has genesis, greenswitch, nats-py and redis; without it the bridge runs alone.
Ratios within one run count; absolute figures are the machine's. A second measure asks for an ``api`` that takes 5 ms, which
one connection of FreeSWITCH's runs 200 times a second at most: the pool is what more there is.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from processes import Contestant, python

from bridge.bus.embedded import EmbeddedBroker

HERE = Path(__file__).resolve().parent
# Name: (bus, queue type, ledger), or a peer's program.
BRIDGE = {
    "bridge, NATS, ledger in memory": ("nats", "stream", "memory"),
    "bridge, NATS, ledger shared": ("nats", "stream", "shared"),
    "bridge, Redis list, ledger in memory": ("redis", "list", "memory"),
    "bridge, Redis list, ledger shared": ("redis", "list", "shared"),
    "bridge, Redis stream, ledger in memory": ("redis", "stream", "memory"),
    "bridge, Redis stream, ledger shared": ("redis", "stream", "shared"),
}
PEERS = {
    "genesis + nats-py": ("nats", "stream", "genesis_commands.py"),
    "greenswitch + redis-py": ("redis", "list", "greenswitch_commands.py"),
}
GOALS = {"memory": 3.0, "shared": 1.5}
P99_CALLERS, P99_GOAL = 128, 8.0  # ms
SLOW_MS = 5
SLOW_CALLERS = 128
ONE_CONNECTION = 1000 / SLOW_MS
MAX_CONNECTIONS = 4  # of the bridge's pool, its default


@dataclass
class Figures:
    rates: list[float] = field(default_factory=list)
    p50: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    wrong: int = 0

    def note(self, commands: int, told: dict[str, Any], cpu: float, what: str) -> None:
        """One round of ``commands``."""
        self.rates.append(commands / told["seconds"])
        self.p50.append(told["p50"] * 1e3)
        self.p99.append(told["p99"] * 1e3)
        self.cpu.append(cpu / commands * 1e6)
        self.wrong += told["wrong"]
        if told["wrong"]:
            print(what, told["example"], file=sys.stderr)

    @property
    def cpu_us(self) -> float:
        return statistics.median(self.cpu)

    @property
    def medians(self) -> dict[str, float]:
        """Over the rounds."""
        median = statistics.median
        return {
            "cpu_us": round(median(self.cpu), 1),
            "per_s": round(median(self.rates), 1),
            "p50_ms": round(median(self.p50), 3),
            "p99_ms": round(median(self.p99), 3),
            "wrong": self.wrong,
        }


class Arena:
    """One contestant with its broker and its callers, ready to run."""

    def __init__(self, stack: ExitStack, name: str, esl: int, folder: Path, peer: str, loop: Any) -> None:
        kind, queue_type, what = BRIDGE.get(name) or PEERS[name]
        broker = EmbeddedBroker(kind)  # type: ignore[arg-type]
        loop.run_until_complete(broker.start())
        stack.callback(lambda: loop.run_until_complete(broker.stop()))
        if name in PEERS:
            program = str(HERE / "peers" / what)
            self.server = stack.enter_context(Contestant(peer, program, str(esl), str(broker.port)))
            self.server.line("ready")
        else:
            file = folder / f"{len(list(folder.iterdir()))}.toml"
            file.write_text(
                f'[worker]\nstate_dir = "{folder}"\n[bus]\nurl = "{broker.url}"\n[http]\nlisten = ""\n'
                f'[commands]\nqueue_type = "{queue_type}"\nledger = "{what}"\nsafe = ["status"]\nmax_in_flight = 4096\n'
                f"max_in_flight_node = 4096\nbackground = []\n"
                f'[events]\nsubscribe = ["CHANNEL_HANGUP_COMPLETE"]\n'
                f'[[node]]\nname = "fs1"\nurl = "fs://:ClueCon@127.0.0.1:{esl}"\n'
                f"max_connections = {MAX_CONNECTIONS}\n"
            )
            self.server = stack.enter_context(Contestant(python(), "-m", "bridge", "run", "-c", str(file)))
        self.callers = stack.enter_context(
            Contestant(python(), str(HERE / "caller.py"), broker.url, queue_type, echo=True)
        )
        self.callers.line("ready")

    def run(self, callers: int, commands: int, line: str = "") -> tuple[dict[str, Any], float]:
        """One round; its figures and the server's CPU seconds."""
        before = self.server.cpu
        self.callers.tell(f"{callers} {commands} {line}".strip())
        told = json.loads(self.callers.line("done", 120)[5:])
        return told, self.server.cpu - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer-python", default="", help="interpreter with the peers")
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 16, 128, 1024])
    parser.add_argument("--commands", type=int, default=6_000, help="commands a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slow", type=int, default=1_200, help=f"commands of {SLOW_MS} ms a round, 0 for none")
    parser.add_argument("--json", action="store_true", help="figures as JSON instead of tables")
    parser.add_argument("--only", default="", help="names that hold this text")
    arguments = parser.parse_args()
    loop = asyncio.new_event_loop()
    names = [name for name in (*BRIDGE, *(PEERS if arguments.peer_python else ())) if arguments.only in name]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="esl-bridge-bench-")))
        switch = stack.enter_context(
            Contestant(python(), "-m", "bridge", "simulate", "--port", "0", "--rate", "0", "--heartbeat", "1")
        )
        esl = int(switch.line("a simulated").split(" (")[0].rpartition(":")[2])
        arenas = {name: Arena(stack, name, esl, folder, arguments.peer_python, loop) for name in names}
        for arena in arenas.values():
            for _ in range(3):
                arena.run(8, 600)
        figures = {(name, callers): Figures() for name in names for callers in arguments.callers}
        slow = {name: Figures() for name in names}
        for _ in range(arguments.rounds):
            for callers in arguments.callers:
                commands = arguments.commands if callers > 1 else arguments.commands // 4
                for name, arena in arenas.items():
                    figures[name, callers].note(commands, *arena.run(callers, commands), f"{name}, {callers} callers")
            for name, arena in arenas.items() if arguments.slow else ():
                told = arena.run(SLOW_CALLERS, arguments.slow, f"msleep {SLOW_MS}")
                slow[name].note(arguments.slow, *told, f"{name}, an api of {SLOW_MS} ms")
    if not arguments.slow:
        slow = {}
    if arguments.json:
        print(json.dumps(as_values(figures, slow), indent=2))
    else:
        report(figures, arguments.callers)
        report_slow(slow)


def as_values(figures: dict[tuple[str, int], Figures], slow: dict[str, Figures]) -> dict[str, Any]:
    """Medians over the rounds, and what became of the goals, for programs."""
    best = {
        size: min((one.cpu_us for (name, at), one in figures.items() if name in PEERS and at == size), default=None)
        for _name, size in figures
    }
    rows = []
    for (name, size), one in figures.items():
        row: dict[str, Any] = {"name": name, "callers": size, **one.medians}
        peer = best[size]
        if name in BRIDGE and peer is not None:
            row["times_best_peer"] = round(peer / one.cpu_us, 3)
            row["goal_times"] = GOALS[BRIDGE[name][2]]
        if name in BRIDGE and size == P99_CALLERS:
            row["goal_p99_ms"] = P99_GOAL
        rows.append(row)
    bounds = {"one_connection_per_s": ONE_CONNECTION, "pool_per_s": ONE_CONNECTION * MAX_CONNECTIONS}
    slow_rows = [{"name": name, "callers": SLOW_CALLERS, **one.medians} for name, one in slow.items()]
    return {"commands": rows, "slow": {"api_ms": SLOW_MS, **bounds, "rows": slow_rows}}


def report(figures: dict[tuple[str, int], Figures], sizes: list[int]) -> None:
    """A table a number of callers; medians over the rounds."""
    median = statistics.median
    for callers in sizes:
        print(f"\n| {callers} callers | CPU us/command | commands/s | p50 ms | p99 ms | wrong |")
        print("|---|---:|---:|---:|---:|---:|")
        here = {name: one for (name, size), one in figures.items() if size == callers}
        for name, one in here.items():
            print(
                f"| {name} | {median(one.cpu):.1f} | {median(one.rates):.0f} | {median(one.p50):.2f} "
                f"| {median(one.p99):.2f} | {one.wrong} |"
            )
        peers = [median(here[name].cpu) for name in PEERS if name in here]
        for name in BRIDGE:
            if peers and name in here:
                ratio = min(peers) / median(here[name].cpu)
                goal = GOALS[BRIDGE[name][2]]
                same = [median(here[peer].cpu) for peer in PEERS if peer in here and PEERS[peer][0] == BRIDGE[name][0]]
                own = f", {min(same) / median(here[name].cpu):.2f} times the one on the same bus" if same else ""
                verdict = "met" if ratio >= goal else "missed"
                print(f"{name}: {ratio:.2f} times the best peer (goal {goal:g}: {verdict}){own}")
        for name in BRIDGE if callers == P99_CALLERS else ():
            if name in here:
                p99 = median(here[name].p99)
                print(f"{name}: p99 {p99:.2f} ms (goal {P99_GOAL:g}: {'met' if p99 <= P99_GOAL else 'missed'})")


def report_slow(slow: dict[str, Figures]) -> None:
    """Commands that take their time, against what one connection, and all of the pool, could do at most."""
    if not slow:
        return
    pool = ONE_CONNECTION * MAX_CONNECTIONS
    print(
        f"\n| {SLOW_CALLERS} callers, an api of {SLOW_MS} ms | commands/s | of one connection | of the pool | p99 ms | wrong |"
    )
    print("|---|---:|---:|---:|---:|---:|")
    for name, one in slow.items():
        rate = statistics.median(one.rates)
        of_pool = f"{rate / pool:.2f}" if name in BRIDGE else "-"
        print(
            f"| {name} | {rate:.0f} | {rate / ONE_CONNECTION:.2f} | {of_pool} "
            f"| {statistics.median(one.p99):.1f} | {one.wrong} |"
        )
    print(f"One connection runs {ONE_CONNECTION:g}/s at most, a pool of {MAX_CONNECTIONS} {pool:g}/s.")
    for name, one in slow.items():
        rate = statistics.median(one.rates)
        if name in BRIDGE:
            print(f"{name}: {'not bound' if rate > ONE_CONNECTION else 'BOUND'} by one connection")


if __name__ == "__main__":
    main()
