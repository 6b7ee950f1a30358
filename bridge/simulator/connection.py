"""One accepted ESL connection: reads commands, writes replies, keeps the event queue of a listener.

It never knows what a command means; it models what FreeSWITCH's one thread per connection does with time.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Awaitable
from typing import TYPE_CHECKING, cast

from bridge.simulator.events import SimulatedEvent
from bridge.simulator.framing import ClientCommand, CommandReader
from bridge.simulator.serialise import to_bytes
from bridge.simulator.subscriptions import Subscription

if TYPE_CHECKING:
    from bridge.simulator.server import SimulatedSwitch
    from bridge.simulator.users import User

GOODBYE = "Disconnected, goodbye.\nSee you at ClueCon! http://www.cluecon.com/\n"
SHUTTING_DOWN = "The system is being shut down.\n"
LOST_EVENTS = "killed listener because of lost events\n"
LOST_LOG_LINES = "killed listener because of lost log lines\n"
LOST_IN_A_ROW = 500
_FLUSH_BYTES = 256 * 1024


def render_notice(text: str) -> bytes:
    """A text/disconnect-notice frame."""
    raw = to_bytes(text)
    return b"Content-Type: text/disconnect-notice\nContent-Length: %d\n\n%b" % (len(raw), raw)


def render_reply(text: str) -> bytes:
    """A command/reply frame; FreeSWITCH's reply text ends after 511 bytes."""
    return b"Content-Type: command/reply\nReply-Text: %b\n\n" % to_bytes(text)[:511]


def render_raw_reply(block: str) -> bytes:
    """A command/reply whose own header lines FreeSWITCH cuts at 510 bytes, the blank line included."""
    return b"Content-Type: command/reply\n%b" % to_bytes(block)[:510]


def render_api_response(text: str) -> bytes:
    """An api/response frame."""
    raw = to_bytes(text)
    return b"Content-Type: api/response\nContent-Length: %d\n\n%b" % (len(raw), raw)


class Connection(asyncio.Protocol):
    """A listener of the fake mod_event_socket."""

    def __init__(self, switch: SimulatedSwitch) -> None:
        self.switch = switch
        self.subscription = Subscription(switch.known_subclasses)
        self.user: User | None = None
        self.authenticated = False
        self.log_level: int | None = None
        self.commands: deque[str] = deque(maxlen=1000)  # the first lines, passwords hidden
        self.commands_received = 0
        self.events_sent = 0
        self.lost_in_a_row = 0
        self.closing = False
        self.transport: asyncio.Transport | None = None
        self._reader = CommandReader()
        self._events: deque[SimulatedEvent] = deque()
        self._logs: deque[bytes] = deque()
        self._out: list[bytes] = []
        self._busy = False
        self._stuck = False
        self._stalled = 0
        self._flushing = False
        self._auth_timer: asyncio.TimerHandle | None = None
        self._drained: asyncio.Future[None] | None = None

    # --- what asyncio tells ----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet, or turn away."""
        self.transport = cast(asyncio.Transport, transport)
        self.switch.connection_opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget everything."""
        self.closing = True
        self._drop()
        self._wake()
        if self._auth_timer is not None:
            self._auth_timer.cancel()
        self.switch.connection_closed(self)

    def eof_received(self) -> bool:
        """The client is done writing: FreeSWITCH closes."""
        return False

    def data_received(self, data: bytes) -> None:
        """Commands, or parts of them."""
        if not self.closing:
            self._reader.feed(data)
            self._work()

    def pause_writing(self) -> None:
        """The socket is full."""
        self._stuck = True

    def resume_writing(self) -> None:
        """The socket takes more."""
        self._stuck = False
        self._wake()
        self._schedule()

    # --- greeting and end ------------------------------------------------------------------------------

    def greet(self, auth_timeout: float) -> None:
        """Ask for authentication; say goodbye when no command comes in time (s)."""
        self.write(b"Content-Type: auth/request\n\n")
        self._auth_timer = asyncio.get_running_loop().call_later(auth_timeout, self.close)

    def reject(self) -> None:
        """What a client gets that the ACL does not let in."""
        self.write(b"Content-Type: text/rude-rejection\nContent-Length: 24\n\nAccess Denied, go away.\n")
        self.close()

    def close(self, notice: str | None = GOODBYE) -> None:
        """Send the disconnect notice (none if None) and close; bytes already written still go out."""
        if self.closing:
            return
        self.closing = True
        self._drop()
        if self.transport is not None:
            if notice is not None:
                self._out.append(render_notice(notice))
            if self._out:
                self.transport.write(b"".join(self._out))
                self._out.clear()
            self.transport.close()

    def abort(self, *, reset: bool = False) -> None:
        """Cut at once, nothing more is written; with ``reset`` the client sees a TCP reset instead of an end."""
        self.closing = True
        self._drop()
        if self.transport is not None:
            peer = self.transport.get_extra_info("socket")
            if reset and peer is not None and peer.family in (socket.AF_INET, socket.AF_INET6) and peer.fileno() >= 0:
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()

    def _drop(self) -> None:
        self._events.clear()
        self._logs.clear()
        self._reader.clear()

    # --- commands --------------------------------------------------------------------------------------

    def _work(self) -> None:
        """Run the commands that are complete, one after another; a slow one makes the rest wait."""
        while not self._busy and not self.closing:
            command = self._reader.take()
            if command is None:
                break
            self._begin(command)
        if self._reader.broken and not self._busy:
            self.close()
        if self._out:
            self._write_out()
        if self._events or self._logs:
            self._schedule()

    def _begin(self, command: ClientCommand) -> None:
        if self._auth_timer is not None:
            self._auth_timer.cancel()
            self._auth_timer = None
        self.commands_received += 1
        answer = self.switch.take_command(self, command)
        if isinstance(answer, bytes):
            self._out.append(answer)
        else:
            self._busy = True
            self.switch.spawn(self._finish(answer))

    async def _finish(self, answer: Awaitable[bytes]) -> None:
        try:
            reply = await answer
        finally:
            self._busy = False
        if not self.closing:
            self._out.append(reply)
            self._work()

    # --- output ----------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Write bytes now, behind what waits."""
        self._out.append(data)
        self._write_out()

    def _write_out(self) -> None:
        if self._stalled:
            return
        data = b"".join(self._out)
        self._out.clear()
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(data)

    def stall(self, seconds: float) -> None:
        """Write nothing for so long (s); what comes meanwhile waits."""
        self._stalled += 1
        asyncio.get_running_loop().call_later(seconds, self._unstall)

    def _unstall(self) -> None:
        self._stalled -= 1
        if not self._stalled and not self.closing:
            if self._out:
                self._write_out()
            self._wake()
            self._schedule()

    @property
    def queued(self) -> int:
        """Events that wait for the reader."""
        return len(self._events)

    def offer(self, event: SimulatedEvent) -> None:
        """Queue an event; a full queue loses it, and after 501 lost in a row the listener is killed."""
        if self.closing:
            return
        if len(self._events) >= self.switch.max_queue:
            self.lost_in_a_row += 1
            if self.lost_in_a_row > LOST_IN_A_ROW:
                self.kill()
            return
        self.lost_in_a_row = 0
        self._events.append(event)
        if not self._flushing:
            self._schedule()

    def offer_log(self, line: bytes) -> None:
        """Queue a log line."""
        if self.closing:
            return
        if len(self._logs) >= self.switch.max_queue:
            self.kill(LOST_LOG_LINES)
            return
        self._logs.append(line)
        self._schedule()

    def kill(self, notice: str = LOST_EVENTS) -> None:
        """kill_listener: the notice goes straight into the socket, the queue is thrown away."""
        self._stalled = 0
        self.close(notice)

    def flush_events(self) -> None:
        """Throw the queued events away (``noevents``)."""
        self._events.clear()

    async def drain(self) -> None:
        """Wait until the reader takes more, or the connection ends."""
        while (self._stuck or self._stalled) and not self.closing:
            if self._drained is None:
                self._drained = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._drained)

    def _wake(self) -> None:
        if self._drained is not None:
            self._drained.set_result(None)
            self._drained = None

    def _halted(self) -> bool:
        return self.closing or self._stalled > 0

    def _schedule(self) -> None:
        if not self._flushing and not self.closing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        """Write what is queued: one log line, then all events, as the listener's loop does."""
        self._flushing = False
        if self._busy or self._reader.partial or self._halted():
            return
        format = self.subscription.format
        faults = self.switch.faults
        out = self._out
        size = 0
        while not self._stuck and (self._events or self._logs):
            if self._logs:
                out.append(self._logs.popleft())
            while self._events and size < _FLUSH_BYTES:
                event = self._events.popleft()
                frame = event.frame(format)
                self.events_sent += 1
                out.append(frame)
                size += len(frame)
                if faults.active:
                    faults.event_written(self, event, out)
                    if self._halted():
                        return
            if size >= _FLUSH_BYTES:
                self._write_out()
                size = 0
        if out:
            self._write_out()
