"""How fast events go through the bridge, beside relays that a user would write, in one interleaved run.

A firehose process replays real recordings; the relay is a process of its own; what arrived is counted at the broker.
``--peer-python`` is an interpreter that has genesis and greenswitch, ``--node-modules`` a folder that has esl-lite and
nats; who is not installed is left out, and said so. Ratios within one run count; absolute figures are the machine's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from processes import Contestant, python, wait_for

from bridge.bus.embedded import EmbeddedBroker

HERE = Path(__file__).resolve().parent
CAPTURES = HERE.parent / "data" / "captures"
PATIENCE = 120.0

# Name: (delivery, codec, node format, bus).
BRIDGE = {
    "bridge JSON, NATS core": ("pubsub", "json", "json", "nats"),
    "bridge JSON, JetStream": ("durable", "json", "json", "nats"),
    "bridge JSON, Redis pub/sub": ("pubsub", "json", "json", "redis"),
    "bridge JSON, Redis stream": ("durable", "json", "json", "redis"),
    "bridge msgpack, NATS core": ("pubsub", "msgpack", "json", "nats"),
    "bridge plain node, JSON, NATS core": ("pubsub", "json", "plain", "nats"),
}
PEERS = {
    "genesis + nats-py": ("genesis_nats.py", "core", "nats"),
    "genesis + nats-py, JetStream awaited": ("genesis_nats.py", "jetstream", "nats"),
    "genesis + nats-py, msgpack": ("genesis_nats.py", "msgpack", "nats"),
    "greenswitch + nats-py": ("greenswitch_simple.py", "", "nats"),
    "greenswitch + nats-py, gathered": ("greenswitch_nats.py", "", "nats"),
    "greenswitch + redis-py pipelined": ("greenswitch_redis.py", "", "redis"),
    "esl-lite + nats.js": ("esl_lite_nats.cjs", "", "nats"),
}
# Publishers that read nothing: what they are told to do.
RAW = {"raw publisher, the driver's publish": "publish", "raw publisher, ready-made batches": "batches"}
RAW_GOAL = 0.5  # of their rate
# What is compared with what in CPU, and the goal.
RATIOS = [
    ("bridge JSON, NATS core", "genesis + nats-py", 20),
    ("bridge JSON, NATS core", "greenswitch + nats-py", 12),
    ("bridge JSON, NATS core", "greenswitch + nats-py, gathered", 0),
    ("bridge JSON, NATS core", "esl-lite + nats.js", 5),
    ("bridge JSON, JetStream", "genesis + nats-py, JetStream awaited", 25),
    ("bridge JSON, Redis pub/sub", "greenswitch + redis-py pipelined", 8),
    ("bridge JSON, Redis stream", "greenswitch + redis-py pipelined", 8),
    ("bridge msgpack, NATS core", "genesis + nats-py, msgpack", 12),
    ("bridge plain node, JSON, NATS core", "genesis + nats-py", 7),
]


class Broker:
    """A real broker in a thread's loop, and how many events it got."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._monitor = _free_port()
        config = f"http: 127.0.0.1:{self._monitor}\n" if kind == "nats" else ""
        self._server = EmbeddedBroker(kind, config=config)  # type: ignore[arg-type]
        asyncio.run_coroutine_threadsafe(self._server.start(), self._loop).result()
        self.port = self._server.port
        self.pid = self._server.pid

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._server.stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)

    def events(self, durable: bool) -> int:
        """What it has got so far: published to topics, or stored."""
        if self.kind == "redis":
            if durable:
                return int(self._redis("XLEN", "fs.events") or 0)
            found = re.search(r"cmdstat_publish:calls=(\d+)", str(self._redis("INFO", "commandstats")))
            return int(found[1]) if found else 0
        if durable:
            answer = self._ask("jsz?streams=1")
            accounts = answer.get("account_details") or []
            streams = [one for account in accounts for one in account.get("stream_detail") or ()]
            return sum(one["state"]["messages"] for one in streams if one["name"] == "FS_EVENTS")
        return int(self._ask("varz")["in_msgs"])

    def _ask(self, path: str) -> dict[str, Any]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self._monitor}/{path}") as answer:
            value: dict[str, Any] = json.load(answer)
            return value

    def _redis(self, *words: str) -> object:
        import redis

        with redis.Redis(port=self.port) as client:
            answer = client.execute_command(*words)
            if isinstance(answer, dict):
                return "\n".join(f"{key}:{','.join(f'{k}={v}' for k, v in one.items())}" for key, one in answer.items())
            return answer


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextmanager
def firehose() -> Iterator[tuple[Contestant, int]]:
    with Contestant(python(), str(HERE / "firehose.py"), str(CAPTURES), echo=True) as process:
        yield process, int(process.line(""))


@contextmanager
def worker(
    esl: int, bus: str, *, delivery: str = "pubsub", codec: str = "json", format: str = "json", events: str = ""
) -> Iterator[Contestant]:
    """A real worker, everything on: envelope, numbers, metrics, buffer, spill, page."""
    with tempfile.TemporaryDirectory() as folder:
        config, page = Path(folder) / "bridge.toml", _free_port()
        config.write_text(
            f'[worker]\nstate_dir = "{folder}/state"\n[bus]\nurl = "{bus}"\ncodec = "{codec}"\n'
            f'[http]\nlisten = "127.0.0.1:{page}"\n[log]\nlevel = "warning"\n'
            f'[fleet]\nlease_time = 120\n[events]\ndelivery = "{delivery}"\n{events}\n'
            f'[[node]]\nname = "fs1"\nurl = "fs://:ClueCon@127.0.0.1:{esl}"\nformat = "{format}"\n'
        )
        with Contestant(python(), "-m", "bridge", "run", "-c", str(config), echo=True) as process:
            if not wait_for(lambda: _owns(page), PATIENCE):
                raise RuntimeError("the worker does not own its node")
            yield process


def _owns(page: int) -> bool:
    """Whether the worker publishes the events of its node by now."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{page}/nodes") as answer:
            return all(node.get("role") == "owner" for node in json.load(answer)["nodes"])
    except OSError:
        return False


def run_once(
    name: str, contestant: Callable[[int, int], Any], kind: str, count: int, *, durable: bool = False
) -> dict[str, float]:
    """One contestant against a fresh broker; returns CPU us an event, events/s, peak bytes."""
    broker = Broker(kind)
    try:
        with firehose() as (hose, esl), contestant(esl, broker.port) as process:
            hose.line("subscribed")
            time.sleep(1.0)
            before, cpu, start = broker.events(durable), process.cpu, time.monotonic()
            hose.tell(f"go {count}")
            # Asking costs the broker some ms each time, on the CPUs that everybody shares.
            arrived = wait_for(lambda: broker.events(durable) >= before + count, PATIENCE, 0.05)
            took = time.monotonic() - start
            used = process.cpu - cpu
            if not arrived:
                raise RuntimeError(f"{name}: {broker.events(durable) - before} of {count} events arrived")
            return {"cpu_us": used / count * 1e6, "rate": count / took, "peak": process.peak}
    finally:
        broker.stop()


def bridge_run(name: str, count: int) -> dict[str, float]:
    delivery, codec, format, kind = BRIDGE[name]

    def start(esl: int, bus: int) -> Any:
        return worker(esl, f"{kind}://127.0.0.1:{bus}", delivery=delivery, codec=codec, format=format)

    return run_once(name, start, kind, count, durable=delivery == "durable")


def peer_run(name: str, count: int, options: argparse.Namespace) -> dict[str, float]:
    script, argument, kind = PEERS[name]
    path = str(HERE / "peers" / script)

    def start(esl: int, bus: int) -> Any:
        words = [str(esl), str(bus), *([argument] if argument else [])]
        if script.endswith(".cjs"):
            env = {"NODE_PATH": options.node_modules} if options.node_modules else {}
            return Contestant("node", path, *words, env=env, echo=options.verbose)
        return Contestant(options.peer_python, path, *words, echo=options.verbose)

    return run_once(name, start, kind, count, durable=argument == "jetstream")


def framing_run(count: int) -> dict[str, float]:
    with (
        firehose() as (hose, esl),
        Contestant(python(), str(HERE / "peers" / "framing_reader.py"), str(esl), str(count), echo=True) as process,
    ):
        hose.line("subscribed")
        time.sleep(0.5)
        cpu, start = process.cpu, time.monotonic()
        hose.tell(f"go {count}")
        process.line("done", PATIENCE)
        took = time.monotonic() - start
        return {"cpu_us": (process.cpu - cpu) / count * 1e6, "rate": count / took, "peak": process.peak}


def raw_run(count: int, how: str) -> dict[str, float]:
    broker = Broker("nats")
    command = [python(), str(HERE / "peers" / "raw_publisher.py"), str(broker.port), str(CAPTURES), str(count), how]
    try:
        with Contestant(*command, echo=True) as process:
            process.line("ready")
            before, cpu, start = broker.events(False), process.cpu, time.monotonic()
            process.tell("go")
            wait_for(lambda: broker.events(False) >= before + count, PATIENCE)
            took = time.monotonic() - start
            return {"cpu_us": (process.cpu - cpu) / count * 1e6, "rate": count / took, "peak": process.peak}
    finally:
        broker.stop()


def latency_run(rate: int, seconds: int) -> dict[str, float]:
    """From the write to the ESL socket to the arrival at a subscriber, in ms, at a steady rate."""
    broker = Broker("nats")
    try:
        with firehose() as (hose, esl), worker(esl, f"nats://127.0.0.1:{broker.port}") as process:
            hose.line("subscribed")
            time.sleep(1.0)
            with Contestant(python(), str(HERE / "subscriber.py"), str(broker.port), str(rate * seconds)) as reader:
                reader.line("ready")
                cpu = process.cpu
                hose.tell(f"go {rate * seconds} {rate}")
                found = json.loads(reader.line("{", seconds + PATIENCE))
                return {**found, "cpu_us": (process.cpu - cpu) / (rate * seconds) * 1e6}
    finally:
        broker.stop()


def burst_run(count: int, bytes_per_second: int) -> dict[str, float]:
    """Peak memory of a worker after a burst into a bus that takes only so many bytes a second."""
    broker = Broker("nats")
    proxy = _SlowProxy(broker.port, bytes_per_second)
    try:
        limits = f"buffer_disk = {1 << 34}\nbuffer_age = 3600"
        with firehose() as (hose, esl), worker(esl, f"nats://127.0.0.1:{proxy.port}", events=limits) as process:
            hose.line("subscribed")
            time.sleep(1.0)
            idle, start = process.peak, time.monotonic()
            hose.tell(f"go {count}")
            hose.line("sent", 600)
            took = time.monotonic() - start
            time.sleep(1.0)
            return {"peak": process.peak, "idle": idle, "rate": count / took, "arrived": broker.events(False)}
    finally:
        proxy.stop()
        broker.stop()


class _SlowProxy:
    """Lets bytes to the broker through at a bounded rate; what comes back passes freely."""

    def __init__(self, port: int, rate: int) -> None:
        self._rate = rate
        self._target = port
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        self._over = False
        threading.Thread(target=self._accept, daemon=True).start()

    def stop(self) -> None:
        self._over = True
        self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            target = socket.create_connection(("127.0.0.1", self._target))
            threading.Thread(target=self._pump, args=(client, target, self._rate), daemon=True).start()
            threading.Thread(target=self._pump, args=(target, client, 0), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, rate: int) -> None:
        try:
            while not self._over and (data := source.recv(65536)):
                sink.sendall(data)
                if rate:
                    time.sleep(len(data) / rate)
        except OSError:
            return


def available(options: argparse.Namespace) -> tuple[list[str], list[str]]:
    """The peers that can run here, and why the others cannot."""
    there, absent = [], []
    for name, (script, _, _) in PEERS.items():
        if script.endswith(".cjs"):
            env = {"NODE_PATH": options.node_modules} if options.node_modules else {}
            probe = ["node", "-e", 'require("esl-lite"); require("nats")']
            if shutil.which("node") is None:
                absent.append(f"{name}: no Node")
                continue
        else:
            env = {}
            probe = [options.peer_python, "-c", f"import {script.partition('_')[0]}, nats, redis"]
        import os

        ok = subprocess.run(probe, env={**os.environ, **env}, capture_output=True, check=False).returncode == 0
        there.append(name) if ok else absent.append(f"{name}: not installed")
    return there, absent


def machine() -> str:
    model = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                  if line.startswith("model name")), platform.machine())  # fmt: skip
    import os

    return (
        f"{model}, {os.cpu_count()} CPUs, {platform.system()} {platform.release()}, Python {platform.python_version()}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--count", type=int, default=200_000, help="events for the bridge; peers get a tenth")
    parser.add_argument("--only", default="", help="run contestants whose name holds this")
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--node-modules", default="")
    parser.add_argument("--no-burst", action="store_true", help="leave out the memory and latency measures")
    parser.add_argument("--burst", type=int, default=1_000_000)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    peers, absent = available(options)
    names = [name for name in (*BRIDGE, *peers, "framing only", *RAW) if options.only in name]
    results: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(options.rounds):
        for name in names:
            try:
                if name in BRIDGE:
                    row = bridge_run(name, options.count)
                elif name in PEERS:
                    row = peer_run(name, options.count // 10, options)
                elif name == "framing only":
                    row = framing_run(options.count)
                else:
                    row = raw_run(options.count, RAW[name])
            except RuntimeError as error:
                print(f"failed: {error}", file=sys.stderr)
                continue
            results[name].append(row)
            if not options.json:
                print(f"  {name:40} {row['cpu_us']:8.1f} us {row['rate']:10,.0f}/s", file=sys.stderr, flush=True)
    summary = {name: _summed(rows) for name, rows in results.items() if rows}
    ratios = []
    for ours, theirs, goal in RATIOS:
        pairs = list(zip(results.get(ours, []), results.get(theirs, []), strict=False))
        if pairs:
            ratio = statistics.median(b["cpu_us"] / a["cpu_us"] for a, b in pairs)
            ratios.append({"bridge": ours, "peer": theirs, "ratio": ratio, "goal": goal})
    extra: dict[str, Any] = {}
    if not options.no_burst:
        extra["latency"] = latency_run(15_000, 10)
        extra["burst"] = burst_run(options.burst, 2_000_000)
    versions = {name: version(name) for name in ("nats-py", "redis", "hiredis", "msgspec", "uvloop")}
    report = {
        "machine": machine(),
        "versions": versions,
        "results": summary,
        "ratios": ratios,
        "shares": {
            name: summary["bridge JSON, NATS core"]["rate"] / summary[name]["rate"]
            for name in RAW
            if name in summary and "bridge JSON, NATS core" in summary
        },
        "absent": absent,
        **extra,
    }
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        _print(report)
    return 0


def _summed(rows: list[dict[str, float]]) -> dict[str, float]:
    cpu = statistics.median(row["cpu_us"] for row in rows)
    rate = statistics.median(row["rate"] for row in rows)
    return {"cpu_us": cpu, "per_cpu_second": 1e6 / cpu, "rate": rate, "peak": max(row["peak"] for row in rows)}


def _print(report: dict[str, Any]) -> None:
    print(report["machine"])
    print(", ".join(f"{name} {text}" for name, text in report["versions"].items()))
    print(f"\n{'':40} {'CPU us/event':>12} {'events/CPU s':>13} {'events/s':>10} {'peak MiB':>9}")
    for name, row in report["results"].items():
        print(
            f"{name:40} {row['cpu_us']:12.1f} {row['per_cpu_second']:13,.0f} {row['rate']:10,.0f} {row['peak'] / 2**20:9.1f}"
        )
    print()
    for row in report["ratios"]:
        goal = f" (goal {row['goal']})" if row["goal"] else ""
        print(f"{row['bridge']:36} {row['ratio']:6.1f} times {row['peer']}{goal}")
    for name, share in report["shares"].items():
        print(f"bridge JSON, NATS core: {share:.2f} of the rate of: {name} (goal {RAW_GOAL})")
    for text in report["absent"]:
        print(f"left out: {text}")
    if "latency" in report:
        row = report["latency"]
        print(
            f"\nlatency at 15,000 events/s: median {row['median']:.2f} ms, p99 {row['p99']:.2f} ms, max {row['max']:.1f} ms"
        )
        row = report["burst"]
        print(f"a million events into a slow bus: peak {row['peak'] / 2**20:.0f} MiB (idle {row['idle'] / 2**20:.0f}), "
              f"read at {row['rate']:,.0f} events/s")  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
