"""The API commands that are not about one call: what `status`, `show`, `msleep` and their kin answer, text for text.

It never knows who asked.
"""

from __future__ import annotations

import hashlib
import re
import time
import uuid as uuids
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from bridge.simulator.api_calls import CallApi
from bridge.simulator.events import SimulatedEvent
from bridge.simulator.framing import whole
from bridge.simulator.heart import up_time
from bridge.simulator.serialise import Headers
from bridge.simulator.show import Show

if TYPE_CHECKING:
    from bridge.simulator.server import SimulatedSwitch

Output = str | Awaitable[str]
Handler = Callable[[str], Output]

_VARIABLE = re.compile(r"\$\$?\{([^{}()\s]*)(?:[( ]([^{}]*?)\)?)?\}")


class Api:
    """The table of API commands of one switch; ``commands`` may be added to."""

    def __init__(self, switch: SimulatedSwitch) -> None:
        self._switch = switch
        self.variables: dict[str, str] = {
            "hostname": switch.hostname,
            "switchname": switch.switchname,
            "domain": switch.hostname,
            "core_uuid": switch.core_uuid,
            "local_ip_v4": "192.0.2.10",
            "default_password": "1234",
        }
        self.commands: dict[str, Handler] = {
            "bgapi": self._bgapi,
            "create_uuid": lambda _: str(uuids.uuid4()),
            "domain_exists": lambda argument: "true" if argument == self.variables["domain"] else "false",
            "echo": lambda argument: argument,
            "eval": self._expand,
            "expand": self._expand_command,
            "fsctl": self._fsctl,
            "global_getvar": self._global_getvar,
            "global_setvar": self._global_setvar,
            "hostname": lambda _: switch.hostname,
            "load": lambda _: "+OK\n",
            "md5": self._md5,
            "module_exists": lambda argument: "true" if argument.startswith("mod_") else "false",
            "msleep": self._msleep,
            "reloadxml": lambda _: "+OK [Success]\n",
            "sofia": self._sofia,
            "status": lambda _: self._status(),
            "strftime": self._strftime,
            "strepoch": lambda _: str(int(time.time())),
            "switchname": lambda _: switch.switchname,
            "uptime": self._uptime,
            "version": self._version,
        }
        self.commands |= CallApi(switch).commands
        self.commands["show"] = Show(switch).run

    def run(self, verb: str, argument: str) -> Output:
        """The output of a command; an unknown one is told as FreeSWITCH tells it."""
        handler = self.commands.get(verb.lower())
        if handler is None:
            return f"-ERR {verb} Command not found!\n"
        try:
            return handler(argument)
        except (ValueError, RecursionError):  # whatever a client can bring about: what a failing API is answered
            return f"-ERR {verb} Command not found!\n"

    # --- running -----------------------------------------------------------------------------------

    def execute(self, line: str) -> Output:
        """Run a command line and fire the API event: stamped when it begins, fired when it ends, as the real one."""
        self._switch.count(line)
        verb, space, argument = line.partition(" ")
        headers: Headers = [("API-Command", verb)]
        if space:
            headers.append(("API-Command-Argument", argument))
        event = self._switch.stamp.event("API", headers)
        output = self.run(verb, argument)
        if isinstance(output, str):
            self._switch.deliver(event)
            return output
        return self._finish(output, event)

    async def _finish(self, output: Awaitable[str], event: SimulatedEvent) -> str:
        text = await output
        self._switch.deliver(event)
        return text

    def start_job(self, job: str, line: str, owner: str | None) -> None:
        """Run a command line in the background; a BACKGROUND_JOB event tells its output."""
        self._switch.spawn(self._job(job, line, owner))

    async def _job(self, job: str, line: str, owner: str | None) -> None:
        delay = self._switch.faults.api_delay()
        if delay:
            await self._switch.sleep(delay)
        output = self.execute(line)
        text = output if isinstance(output, str) else await output
        verb, space, argument = line.partition(" ")
        headers: Headers = [("Job-UUID", job)]
        if owner:
            headers.append(("Job-Owner-UUID", owner))
        headers.append(("Job-Command", verb))
        if space:
            headers.append(("Job-Command-Arg", argument))
        self._switch.fire("BACKGROUND_JOB", headers, text)

    # --- one by one --------------------------------------------------------------------------------

    def _status(self) -> str:
        switch, calls = self._switch, self._switch.calls
        return (
            f"UP {up_time(switch.uptime)}\n"
            f"FreeSWITCH (Version {switch.version}  64bit) is ready\n"
            f"{calls.total} session(s) since startup\n"
            f"{len(calls)} session(s) - peak {calls.peak}, last 5min {calls.peak} \n"
            f"{calls.per_second} session(s) per Sec out of max {switch.sessions_per_second}, "
            f"peak {calls.peak_per_second}, last 5min {calls.peak_per_second} \n"
            f"{switch.max_sessions} session(s) max\n"
            f"min idle cpu 0.00/{switch.idle_cpu:.2f}\n"
            "Current Stack Size/Max 240K/8192K\n"
        )

    def _version(self, argument: str) -> str:
        version = self._switch.version
        if argument.strip() == "short":
            return version.partition("-")[0] + "\n"
        return f"FreeSWITCH Version {version}~64bit ( 64bit)\n"

    def _uptime(self, argument: str) -> str:
        factor = {"ms": 1000, "us": 1_000_000}.get(argument.strip(), 1)
        return f"{int(self._switch.uptime * factor)}\n"

    async def _msleep(self, argument: str) -> str:
        await self._switch.sleep((whole(argument) or 0) / 1000)
        return "+OK"

    def _bgapi(self, argument: str) -> str:
        job = str(uuids.uuid4())
        if argument.startswith("uuid:"):
            given, _, argument = argument[5:].partition(" ")
            job = given or job
        self.start_job(job, argument, None)
        return f"+OK Job-UUID: {job}\n"

    def _strftime(self, argument: str) -> str:
        try:
            return time.strftime(argument.strip() or "%Y-%m-%d %T")
        except ValueError:
            return argument

    def _md5(self, argument: str) -> str:
        return hashlib.md5(argument.encode("utf-8", "surrogateescape"), usedforsecurity=False).hexdigest()

    def _global_getvar(self, argument: str) -> str:
        name = argument.strip()
        if name:
            return self.variables.get(name, "")
        return "".join(f"{key}={value}\n" for key, value in self.variables.items())

    def _global_setvar(self, argument: str) -> str:
        name, equals, value = argument.strip().partition("=")
        if not equals:
            self.variables.pop(name, None)
        else:
            self.variables[name] = value
        return "+OK"

    def _expand(self, argument: str) -> str:
        """Replace ${variable} and ${command argument} inside a text."""

        def replace(match: re.Match[str]) -> str:
            name, inner = match.group(1), match.group(2)
            if inner is None:
                return self.variables.get(name, "")
            output = self.run(name, inner)
            return output if isinstance(output, str) else ""

        return _VARIABLE.sub(replace, argument)

    def _expand_command(self, argument: str) -> Output:
        line = self._expand(argument)
        verb, _, rest = line.partition(" ")
        if not verb or verb.lower() not in self.commands:
            return "INVALID COMMAND!\n-ERR Cannot execute command\n"
        return self.run(verb, rest)

    def _fsctl(self, argument: str) -> str:
        words = argument.split()
        number = whole(words[1]) if len(words) > 1 else None
        match words[:1]:
            case ["heartbeat"] if number:
                self._switch.heart.interval = float(number)
                return "+OK\n"
            case ["max_sessions"]:
                self._switch.max_sessions = self._switch.max_sessions if number is None else number
                return f"+OK max sessions: {self._switch.max_sessions}\n"
            case ["sps"]:
                self._switch.sessions_per_second = number or self._switch.sessions_per_second
                return f"+OK sessions per second: {self._switch.sessions_per_second}\n"
            case ["hupall"]:
                self._switch.calls.hang_up_all(words[1] if len(words) > 1 else "MANAGER_REQUEST")
                return "+OK\n"
            case ["shutdown"]:
                self._switch.restart_later(0.0 if "restart" in words else 3600.0)
                return "+OK\n"
            case ["send_sighup" | "flush_db_handles" | "pause" | "resume" | "sync_clock" | "reclaim_mem"]:
                return "+OK\n"
        return "-USAGE: [heartbeat [<seconds>]|hupall|max_sessions [num]|sps [num]|shutdown [restart]|sync_clock]\n"

    def _sofia(self, argument: str) -> str:
        line = "=" * 81
        calls = len(self._switch.calls)
        domain = self._switch.hostname
        match argument.split():
            case ["status"]:
                return (
                    "                     Name\t   Type\t                                      Data\tState\n"
                    f"{line}\n"
                    f"                 internal\tprofile\t          sip:mod_sofia@192.0.2.10:5060\tRUNNING ({calls})\n"
                    f"{domain:>25}\t  alias\t                               internal\tALIASED\n"
                    f"{line}\n1 profile 1 alias\n"
                )
            case ["xmlstatus"]:
                return (
                    '<?xml version="1.0" encoding="ISO-8859-1"?>\n<profiles>\n<profile>\n<name>internal</name>\n'
                    "<type>profile</type>\n<data>sip:mod_sofia@192.0.2.10:5060</data>\n"
                    f"<state>RUNNING ({calls})</state>\n</profile>\n</profiles>\n"
                )
            case ["profile", _, "rescan" | "restart" | "start" | "stop", *_]:
                return "+OK scan complete\n"
        return "-USAGE: sofia <status|xmlstatus|profile>\n"
