"""The simulated FreeSWITCH: listens, lets clients in, fires events to who wants them, beats its heart.

It never parses a byte of ESL itself, and it is no telephone: its calls are made up.
"""

from __future__ import annotations

import asyncio
import random
import ssl
import time
import uuid as uuids
from collections import Counter, deque
from collections.abc import Coroutine, Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bridge.simulator.api import Api
from bridge.simulator.calls import Calls
from bridge.simulator.connection import GOODBYE, SHUTTING_DOWN, Connection
from bridge.simulator.dispatch import Answer, Dispatcher
from bridge.simulator.events import Origin, SimulatedEvent, Stamp, pairs
from bridge.simulator.faults import Faults
from bridge.simulator.framing import ClientCommand
from bridge.simulator.heart import Heart
from bridge.simulator.logs import render_log
from bridge.simulator.replay import Replay
from bridge.simulator.serialise import Value
from bridge.simulator.traffic import Traffic
from bridge.simulator.users import User

VERSION = "1.11.2-release"
_WORK = frozenset({"api", "bgapi", "sendmsg", "sendevent"})  # what faults of commands wait for


class SimulatedSwitch:
    """A fake FreeSWITCH on a port. All times in seconds; port 0 takes a free one, ``port`` then tells which.

    ``calls_per_second`` made-up calls begin and last about ``call_duration``; ``seed`` makes them the same ones each
    time. ``executed`` counts every api and bgapi command line, sendmsg and sendevent that was really run.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        password: str = "ClueCon",
        users: Mapping[str, User] | None = None,
        calls_per_second: float = 0.0,
        call_duration: float = 3.0,
        heartbeat_interval: float = 20.0,
        core_uuid: str | None = None,
        hostname: str = "simulated",
        switchname: str | None = None,
        max_sessions: int = 10_000,
        sessions_per_second: int = 5000,
        idle_cpu: float = 97.5,
        max_queue: int = 100_000,
        auth_timeout: float = 25.0,
        deny: bool = False,
        answer_delay: float = 0.02,
        seed: int | None = None,
        version: str = VERSION,
        replay: Path | str | bytes | None = None,
        replay_speed: float = 1.0,
        replay_rate: float | None = None,
        replay_loop: bool = False,
        tls: ssl.SSLContext | None = None,
        path: str | None = None,
    ) -> None:
        self.host = host
        self.port = port
        self.password = password
        """What ``auth`` must say; may be changed while it runs."""
        self.call_duration = call_duration
        self.hostname = hostname
        self.switchname = switchname or hostname
        self.max_sessions = max_sessions
        self.sessions_per_second = sessions_per_second
        self.idle_cpu = idle_cpu
        self.max_queue = max_queue
        self.auth_timeout = auth_timeout
        self.deny = deny
        self.answer_delay = answer_delay
        self.version = version
        self.random = random.Random(seed)
        self.executed: Counter[str] = Counter()
        self.received: deque[str] = deque(maxlen=10_000)
        self.connections: set[Connection] = set()
        self.connections_made = 0
        self.commands_received = 0
        self.events_fired = 0
        self._replay: Replay | None = None
        if replay is not None:
            self._replay = Replay(replay, speed=replay_speed, rate=replay_rate, loop=replay_loop)
        self.stamp = self._new_stamp(core_uuid or (self._replay.core_uuid if self._replay else None))
        if self._replay is not None:
            self.stamp.sequence = self._replay.last_sequence  # what we add is behind the recording
        self.faults = Faults(self.restart_later, self.shut_down)
        self.calls = Calls(self)
        self.api = Api(self)
        self.heart = Heart(self, heartbeat_interval)
        self.traffic = Traffic(self, calls_per_second, call_duration)
        self._dispatcher = Dispatcher(self, users or {})
        self._tls = tls
        self._path = path
        self._listeners: list[Connection] = []
        self._subclasses: set[str] = set()
        self._server: asyncio.Server | None = None
        self._gone: asyncio.Future[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._started = time.monotonic()

    def _new_stamp(self, core_uuid: str | None) -> Stamp:
        identity = core_uuid or str(uuids.uuid4())
        return Stamp(identity, self.hostname, self.switchname, "192.0.2.10", "2001:db8::10")

    # --- life ----------------------------------------------------------------------------------------

    @property
    def core_uuid(self) -> str:
        """The identity of this run of FreeSWITCH."""
        return self.stamp.core_uuid

    @property
    def url(self) -> str:
        """The fs:// address, password included."""
        password = quote(self.password, safe="")
        if self._path is not None:
            return f"fs+unix://:{password}@{self._path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'fs+tls' if self._tls else 'fs'}://:{password}@{host}:{self.port}"

    @property
    def listening(self) -> bool:
        """Whether the port is open."""
        return self._server is not None

    @property
    def uptime(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    async def start(self) -> None:
        """Listen. Raises OSError where the port is taken."""
        self._started = time.monotonic()
        await self._listen()
        self.heart.start()
        self.traffic.start()

    async def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        if self._path is not None:
            self._server = await loop.create_unix_server(lambda: Connection(self), self._path, ssl=self._tls)
        else:
            self._server = await loop.create_server(
                lambda: Connection(self), self.host, self.port, ssl=self._tls, backlog=1024, reuse_address=True
            )
            self.port = self._server.sockets[0].getsockname()[1]

    def _unlisten(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def stop(self) -> None:
        """End everything at once; may be called twice."""
        self._unlisten()
        self.heart.stop()
        self.traffic.stop()
        for connection in list(self.connections):
            connection.abort()
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self.connections:
            self._gone = asyncio.get_running_loop().create_future()
            await self._gone

    async def __aenter__(self) -> SimulatedSwitch:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run something that takes its time; it ends with the switch at the latest."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def sleep(self, seconds: float) -> None:
        """Take so long."""
        await asyncio.sleep(seconds)

    # --- misfortunes, by hand ------------------------------------------------------------------------

    def shut_down(self) -> None:
        """Tell every client that the system is being shut down, and close its connection; listening goes on."""
        for connection in list(self.connections):
            connection.close(SHUTTING_DOWN)

    def drop_connections(self) -> None:
        """Reset every connection, without a notice."""
        for connection in list(self.connections):
            connection.abort(reset=True)

    def kill_listeners(self) -> None:
        """Kill every connection for lost events."""
        for connection in list(self.connections):
            connection.kill()

    def say_goodbye(self) -> None:
        """Close every connection the polite way."""
        for connection in list(self.connections):
            connection.close(GOODBYE)

    def restart_later(self, downtime: float) -> None:
        """Restart without waiting for it."""
        self.spawn(self.restart(downtime=downtime))

    async def restart(self, *, downtime: float = 0.0, core_uuid: str | None = None, notice: bool = True) -> None:
        """FreeSWITCH ends (with its shutdown notice, or killed) and starts anew: a new Core-UUID, no calls."""
        self._unlisten()
        for connection in list(self.connections):
            if notice:
                connection.close(SHUTTING_DOWN)
            else:
                connection.abort(reset=True)
        self._subclasses.clear()
        self.calls.clear()
        if downtime:
            await asyncio.sleep(downtime)
        self.stamp = self._new_stamp(core_uuid)
        self.api.variables["core_uuid"] = self.stamp.core_uuid
        self._started = time.monotonic()
        await self._listen()

    # --- connections ---------------------------------------------------------------------------------

    def connection_opened(self, connection: Connection) -> None:
        """A client is there."""
        self.connections.add(connection)
        self.connections_made += 1
        if self.deny or self.faults.refuses():
            connection.reject()
        elif not self.faults.silences():
            connection.greet(self.auth_timeout)

    def connection_closed(self, connection: Connection) -> None:
        """A client is gone."""
        self.connections.discard(connection)
        if connection in self._listeners:
            self._listeners.remove(connection)
        if self._gone is not None and not self.connections and not self._gone.done():
            self._gone.set_result(None)

    def subscription_changed(self, connection: Connection, was_listening: bool) -> None:
        """A connection's event list is another one."""
        listening = connection.subscription.listening
        if listening and connection not in self._listeners:
            self._listeners.append(connection)
            if self._replay is not None:
                self._replay.listener(self, connection)
        elif not listening and connection in self._listeners:
            self._listeners.remove(connection)

    def known_subclasses(self) -> set[str]:
        """The subclasses that exist so far; `event ALL` takes these."""
        return self._subclasses

    def take_command(self, connection: Connection, command: ClientCommand) -> Answer:
        """Run one command of a connection."""
        self.commands_received += 1
        verb = command.line.partition(" ")[0]
        shown = f"{verb} ***" if verb.lower() in ("auth", "userauth") else command.line
        self.received.append(shown)
        connection.commands.append(shown)
        if self.faults.active and connection.authenticated and verb.lower() in _WORK:
            runs, answered, late = self.faults.command_taken()
            answer = self._dispatcher.run(connection, command) if runs else b""
            if not answered:
                return self._cut(connection, answer)
            return self._delayed(answer, late) if late else answer
        return self._dispatcher.run(connection, command)

    async def _cut(self, connection: Connection, answer: Answer) -> bytes:
        if not isinstance(answer, bytes):
            await answer
        connection.abort()
        return b""

    async def _delayed(self, answer: Answer, late: float) -> bytes:
        reply = answer if isinstance(answer, bytes) else await answer
        await asyncio.sleep(late)
        return reply

    def count(self, what: str) -> None:
        """Something was really run."""
        self.executed[what] += 1

    # --- events --------------------------------------------------------------------------------------

    def fire(
        self,
        name: str,
        headers: Mapping[str, Value] | Iterable[tuple[str, Value]] = (),
        body: str | None = None,
        subclass: str | None = None,
        origin: Origin | None = None,
    ) -> SimulatedEvent:
        """Fire an event, stamped, to all that want it."""
        if subclass:
            self._subclasses.add(subclass)
        event = self.stamp.event(name, pairs(headers), body, subclass, origin)
        self.deliver(event)
        return event

    def deliver(self, event: SimulatedEvent) -> None:
        """Give an event to every connection that wants it."""
        self.events_fired += 1
        for connection in self._listeners:
            if connection.subscription.wants(event):
                connection.offer(event)

    def log(self, level: int, text: str, file: str, function: str, line: int, uuid: str = "") -> None:
        """Log a line; only connections that asked for its level get it."""
        frame = b""
        for connection in self.connections:
            if connection.log_level is not None and level <= connection.log_level:
                frame = frame or render_log(level, text, file, function, line, uuid, idle=self.idle_cpu)
                connection.offer_log(frame)

    def has_call(self, uuid: str) -> bool:
        """Whether this channel lives."""
        return uuid in self.calls.channels
