"""The Event Socket's commands: what each does to a connection and what it is answered, as mod_event_socket does it.

It never reads or writes a socket; API commands and calls live in other rooms.
"""

from __future__ import annotations

import uuid as uuids
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING

from bridge.simulator.connection import GOODBYE, Connection, render_api_response, render_raw_reply, render_reply
from bridge.simulator.events import SENDEVENT, SimulatedEvent, event_named
from bridge.simulator.framing import ClientCommand, whole
from bridge.simulator.serialise import Headers
from bridge.simulator.users import User, find_user

if TYPE_CHECKING:
    from bridge.simulator.server import SimulatedSwitch

Answer = bytes | Awaitable[bytes]

LOG_LEVELS = ("console", "alert", "crit", "err", "warning", "notice", "info", "debug")
_UNKNOWN = render_reply("-ERR command not found")
_DENIED = render_reply("-ERR permission denied")


def log_level(text: str) -> int | None:
    """The number of a log level given by name or number; nothing given means debug; None if it is none."""
    text = text.strip().lower()
    if not text:
        return 7
    number = whole(text)
    if number is not None:
        return min(number, 7)
    if text == "error":
        return 3
    return LOG_LEVELS.index(text) if text in LOG_LEVELS else None


class Dispatcher:
    """Finds the command by case-insensitive prefix, in mod_event_socket's order, and runs it."""

    def __init__(self, switch: SimulatedSwitch, users: Mapping[str, User]) -> None:
        self._switch = switch
        self._users = users
        self._table: list[tuple[str, Callable[[Connection, ClientCommand], Answer]]] = [
            ("filter ", self._filter),
            ("myevents ", self._myevents),
            ("divert_events", self._divert_events),
            ("sendmsg", self._sendmsg),
            ("sendevent", self._sendevent),
            ("api ", self._api),
            ("linger", self._linger),
            ("nolinger", self._linger),
            ("bgapi ", self._bgapi),
            ("log", self._log),
            ("nolog", self._nolog),
            ("event", self._event),
            ("nixevent", self._nixevent),
            ("noevents", self._noevents),
        ]

    def run(self, connection: Connection, command: ClientCommand) -> Answer:
        """The reply frame, or an awaitable of it for a command that takes its time."""
        line = command.line.lower()
        if line.startswith(("exit", "...")):
            return self._exit(connection)
        if not connection.authenticated:
            if line.startswith("auth "):
                return self._auth(connection, command.line[5:])
            if line.startswith("userauth "):
                return self._userauth(connection, command.line[9:])
            return _UNKNOWN
        for prefix, handler in self._table:
            if line.startswith(prefix):
                return handler(connection, command)
        return _UNKNOWN

    # --- in and out --------------------------------------------------------------------------------

    def _exit(self, connection: Connection) -> bytes:
        connection.write(render_reply("+OK bye"))
        connection.close()
        return b""

    def _refuse(self, connection: Connection) -> bytes:
        connection.write(render_reply("-ERR invalid"))
        connection.close(GOODBYE)
        return b""

    def _auth(self, connection: Connection, password: str) -> bytes:
        if password != self._switch.password or self._switch.faults.refuses_login(connection):
            return self._refuse(connection)
        connection.authenticated = True
        return render_reply("+OK accepted")

    def _userauth(self, connection: Connection, credentials: str) -> bytes:
        user = find_user(self._users, credentials)
        if user is None or self._switch.faults.refuses_login(connection):
            return self._refuse(connection)
        connection.authenticated = True
        connection.user = user
        return render_raw_reply(user.reply())

    # --- subscriptions -----------------------------------------------------------------------------

    def _event(self, connection: Connection, command: ClientCommand) -> bytes:
        user = connection.user

        def allowed(name: str, subclass: bool) -> bool:
            return user is None or user.may_have(name, subclass)

        was_listening = connection.subscription.listening
        text = connection.subscription.add(_words(command.line), allowed)
        self._switch.subscription_changed(connection, was_listening)
        return render_reply(text)

    def _nixevent(self, connection: Connection, command: ClientCommand) -> bytes:
        text = connection.subscription.remove(_words(command.line))
        self._switch.subscription_changed(connection, True)
        return render_reply(text)

    def _noevents(self, connection: Connection, command: ClientCommand) -> bytes:
        text = connection.subscription.clear()
        if text.startswith("+OK"):
            connection.flush_events()
            self._switch.subscription_changed(connection, True)
        return render_reply(text)

    def _filter(self, connection: Connection, command: ClientCommand) -> bytes:
        return render_reply(connection.subscription.filter(command.line[7:]))

    def _myevents(self, connection: Connection, command: ClientCommand) -> bytes:
        words = command.line.split()
        uuid = words[1] if len(words) > 1 else ""
        if connection.subscription.call is not None:
            return render_reply("-ERR aready enabled.")
        # The format word is cut off and ignored; an unknown uuid is refused only when one follows.
        if not self._switch.has_call(uuid) and len(words) > 2:
            return render_reply("-ERR invalid uuid")
        connection.subscription.follow(uuid)
        self._switch.subscription_changed(connection, False)
        return render_reply("+OK Events Enabled")

    def _divert_events(self, connection: Connection, command: ClientCommand) -> bytes:
        return render_reply("-ERR not controlling a session.")

    def _linger(self, connection: Connection, command: ClientCommand) -> bytes:
        return render_reply("-ERR not controlling a session")

    # --- log ---------------------------------------------------------------------------------------

    def _log(self, connection: Connection, command: ClientCommand) -> bytes:
        if connection.user is not None and not connection.user.allowed_log:
            return _DENIED
        text = command.line[3:].lstrip(" ")
        level = log_level(text)
        if level is None:
            return render_reply("-ERR invalid log level")
        connection.log_level = level
        return render_reply(f"+OK log level {text} [{level}]")

    def _nolog(self, connection: Connection, command: ClientCommand) -> bytes:
        if connection.log_level is None:
            return render_reply("-ERR not loging")
        connection.log_level = None
        return render_reply("+OK no longer logging")

    # --- api and bgapi -----------------------------------------------------------------------------

    def _api(self, connection: Connection, command: ClientCommand) -> Answer:
        line = command.line[4:]
        if connection.user is not None and not connection.user.may_run(line):
            return _DENIED
        delay = self._switch.faults.api_delay()
        output = self._switch.api.execute(line)
        if isinstance(output, str) and not delay:
            return render_api_response(output or "-ERR no reply\n")
        return self._slow_api(output, delay)

    async def _slow_api(self, output: str | Awaitable[str], delay: float) -> bytes:
        if delay:
            await self._switch.sleep(delay)
        text = output if isinstance(output, str) else await output
        return render_api_response(text or "-ERR no reply\n")

    def _bgapi(self, connection: Connection, command: ClientCommand) -> bytes:
        line = command.line[6:]
        if connection.user is not None and not connection.user.may_run(line):
            return _DENIED
        job = command.header("Job-UUID") or str(uuids.uuid4())
        self._switch.api.start_job(job, line, connection.subscription.call)
        return render_raw_reply(f"Reply-Text: +OK Job-UUID: {job}\nJob-UUID: {job}\n\n")

    # --- sendmsg and sendevent ---------------------------------------------------------------------

    def _sendmsg(self, connection: Connection, command: ClientCommand) -> bytes:
        _, _, uuid = command.line.partition(" ")
        uuid = uuid.strip() or connection.subscription.call or ""
        channel = self._switch.calls.get(uuid)
        if channel is None:
            return render_reply(f"-ERR invalid session id [{uuid}]")
        self._switch.calls.applications.message(channel, command)
        return render_reply("+OK")

    def _sendevent(self, connection: Connection, command: ClientCommand) -> bytes:
        _, _, word = command.line.partition(" ")
        name = event_named(word) or "CUSTOM"
        event_uuid = str(uuids.uuid4())
        headers: Headers = [("Command", command.line)]
        subclass = None
        for key, value in command.headers:
            if key.lower() == "event-subclass" and subclass is None:
                subclass = value
                headers.insert(0, ("Event-Subclass", value))
            else:
                headers.append((key, value))
        headers.append(("Event-UUID", event_uuid))
        headers.extend(self._switch.stamp.headers(name, SENDEVENT))
        self._switch.count(f"sendevent {word}".rstrip())
        call = command.header("Unique-ID")
        # An event that names a live call goes to that call's own queue and is not broadcast.
        if call is None or not self._switch.has_call(call):
            self._switch.deliver(SimulatedEvent(name, headers, command.body, subclass))
        return render_reply(f"+OK {event_uuid}")


def _words(line: str) -> list[str]:
    _, _, rest = line.partition(" ")
    return [word for word in rest.split(" ") if word]
