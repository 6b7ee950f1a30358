"""What the demo puts up on this machine: a simulated FreeSWITCH, a real broker, one worker, and a client.

This room shows nothing; what it started it ends, in the opposite order, whatever happens.
"""

from __future__ import annotations

import socket
import tempfile
from contextlib import AsyncExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

if TYPE_CHECKING:
    from bridge.bus.embedded import EmbeddedBroker
    from bridge.client import Bridge, EventStream
    from bridge.simulator import SimulatedSwitch

Kind = Literal["nats", "redis"]

NODE = "demo"
HEARTBEAT = 5.0
CALL_DURATION = 6.0
DRAIN_TIMEOUT = 5.0


class Stage:
    """The whole chain in this process (the broker is a child of it). ``page`` is the web page's address."""

    def __init__(self, kind: Kind, *, rate: float, http_port: int, seed: int | None = None) -> None:
        self.kind = kind
        self.page = f"http://127.0.0.1:{free_port(http_port)}/"
        self._rate = rate
        self._seed = seed
        self._stack = AsyncExitStack()
        self.broker: EmbeddedBroker
        self.switch: SimulatedSwitch
        self.client: Bridge
        self.events: EventStream

    async def __aenter__(self) -> Self:
        try:
            await self._build()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def _build(self) -> None:
        from bridge.bus.embedded import EmbeddedBroker
        from bridge.client import Bridge
        from bridge.config import Settings
        from bridge.simulator import SimulatedSwitch
        from bridge.worker import Worker

        stack = self._stack
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="esl-bridge-demo-"))
        self.broker = await stack.enter_async_context(EmbeddedBroker(self.kind))
        self.switch = SimulatedSwitch(
            calls_per_second=self._rate,
            call_duration=CALL_DURATION,
            heartbeat_interval=HEARTBEAT,
            hostname=NODE,
            seed=self._seed,
        )
        await self.switch.start()
        stack.push_async_callback(self.switch.stop)
        # Listening begins before the worker does, so that the first event is seen.
        self.client = await stack.enter_async_context(Bridge(self.broker.url))
        self.events = await self.client.subscribe("*", limit=10_000)
        settings = Settings.model_validate(
            {
                "worker": {"id": "demo-worker", "state_dir": folder, "drain_timeout": DRAIN_TIMEOUT},
                "bus": {"url": self.broker.url},
                "node": [{"name": NODE, "url": self.switch.url, "tags": ["demo"]}],
                "http": {"listen": self.page.removeprefix("http://").rstrip("/")},
            }
        )
        worker = Worker(settings)
        await worker.start()
        stack.push_async_callback(worker.stop)


def free_port(wanted: int) -> int:
    """Return ``wanted`` when it can be listened on, else a port that can."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            found: int = probe.getsockname()[1]
            return found
    return wanted
