"""What channels execute: applications told from CHANNEL_EXECUTE to CHANNEL_EXECUTE_COMPLETE, one after another.

It never plays or records anything; it takes the time that such a thing would take.
"""

from __future__ import annotations

import uuid as uuids
from typing import TYPE_CHECKING

from bridge.simulator.channel import Application, Channel
from bridge.simulator.framing import ClientCommand, whole
from bridge.simulator.serialise import Headers

if TYPE_CHECKING:
    from bridge.simulator.calls import Calls
    from bridge.simulator.server import SimulatedSwitch

_APPLICATION_SECONDS = {"playback": 0.2, "say": 0.2, "play_and_get_digits": 0.2, "record": 0.2}
_ENDLESS = frozenset({"park", "echo", "bridge", "conference", "fifo", "delay_echo"})
_KNOWN = _ENDLESS | frozenset(
    """answer pre_answer ring_ready set export unset log info event hash db break hangup sleep transfer send_dtmf
    start_dtmf stop_dtmf playback say record record_session stop_record_session play_and_get_digits read phrase
    set_name set_user verbose_events curl lua socket respond redirect sched_hangup bind_meta_app
    execute_extension""".split()  # noqa: SIM905
)


class Applications:
    """Runs the applications of all channels of one switch."""

    def __init__(self, switch: SimulatedSwitch, calls: Calls) -> None:
        self._switch = switch
        self._calls = calls

    def message(self, channel: Channel, command: ClientCommand) -> None:
        """What a ``sendmsg`` asks of a channel."""
        verb = (command.header("call-command") or "").lower()
        what = f"sendmsg {channel.uuid} {verb}"
        if verb == "hangup":
            cause = command.header("hangup-cause") or "NORMAL_CLEARING"
            self._switch.count(f"{what} {cause}")
            self._calls.hang_up(channel, cause)
        elif verb == "execute":
            name = command.header("execute-app-name") or ""
            argument = command.header("execute-app-arg") or command.body or ""
            self._switch.count(f"{what} {name} {argument}".rstrip())
            application = Application(
                name=name,
                argument=argument,
                uuid=command.header("Event-UUID") or str(uuids.uuid4()),
                loops=whole(command.header("loops") or "") or 1,
            )
            self.execute(channel, application)
        else:
            self._switch.count(what.rstrip())

    def begin(self, channel: Channel, application: Application) -> None:
        """Tell CHANNEL_EXECUTE."""
        channel.application = application.name
        channel.application_data = application.argument
        channel.running.append(application)
        if application.argument:
            channel.set("current_application_data", application.argument)
        channel.set("current_application", application.name)
        self._calls.tell("CHANNEL_EXECUTE", channel, after=self._application(application))

    def complete(self, channel: Channel, application: Application, response: str = "_none_") -> None:
        """Tell CHANNEL_EXECUTE_COMPLETE."""
        channel.running.remove(application)
        self._calls.tell("CHANNEL_EXECUTE_COMPLETE", channel, after=self._application(application, response))

    @staticmethod
    def _application(application: Application, response: str | None = None) -> Headers:
        headers: Headers = [("Application", application.name)]
        if application.argument:
            headers.append(("Application-Data", application.argument))
        if response is not None:
            headers.append(("Application-Response", response))
        headers.append(("Application-UUID", application.uuid))
        return headers

    def endure(self, channel: Channel, application: Application) -> None:
        """Begin an application that ends with its channel; others may run inside it meanwhile."""
        self.begin(channel, application)
        if application.name == "park":
            self._calls.tell("CHANNEL_PARK", channel)

    def step(self, channel: Channel, application: Application) -> None:
        """An application of the dialplan that is over at once."""
        if application.name == "set":
            name, _, value = application.argument.partition("=")
            channel.set(name, value)
        self.begin(channel, application)
        self.complete(channel, application)

    def execute(self, channel: Channel, application: Application) -> None:
        """Queue an application; a channel executes one after another."""
        channel.waiting.append(application)
        if len(channel.waiting) == 1:
            self._switch.spawn(self._run(channel))

    def abandon(self, channel: Channel) -> None:
        """The channel has been hung up: what it was executing is over."""
        for application in reversed(list(channel.running)):
            if application.name == "park":
                self._calls.tell("CHANNEL_UNPARK", channel)
            self.complete(channel, application)

    async def _run(self, channel: Channel) -> None:
        while channel.waiting and channel.uuid in self._calls.channels:
            application = channel.waiting[0]
            for _ in range(max(1, application.loops)):
                if channel.uuid not in self._calls.channels:
                    return
                if application.name not in _KNOWN:
                    self._calls.hang_up(channel, "DESTINATION_OUT_OF_ORDER")
                    return
                if application.name in _ENDLESS:
                    self.endure(channel, application)
                    break
                self.begin(channel, application)
                response = await self._perform(channel, application)
                if channel.uuid not in self._calls.channels:
                    return
                self.complete(channel, application, response)
            channel.waiting.popleft()
            if application.last and application.name not in _ENDLESS:
                self._calls.hang_up(channel)

    async def _perform(self, channel: Channel, application: Application) -> str:
        """What an application does to its channel; its Application-Response."""
        argument = application.argument
        match application.name:
            case "answer":
                self._calls.answer(channel)
            case "set" | "export":
                name, _, value = argument.partition("=")
                channel.set(name.strip(), value)
            case "unset":
                channel.unset(argument.strip())
            case "hangup":
                self._calls.hang_up(channel, argument or "NORMAL_CLEARING")
            case "sleep":
                await self._switch.sleep((whole(argument) or 0) / 1000)
            case "playback":
                await self._play(channel, argument)
                return "FILE PLAYED"
            case name if name in _APPLICATION_SECONDS:
                await self._switch.sleep(_APPLICATION_SECONDS[name])
        return "_none_"

    async def _play(self, channel: Channel, path: str) -> None:
        file: Headers = [
            ("Playback-File-Type", path.partition("://")[0] if "://" in path else "local_stream"),
            ("Playback-File-Path", path),
        ]
        self._calls.tell("PLAYBACK_START", channel, after=file)
        await self._switch.sleep(_APPLICATION_SECONDS["playback"])
        if channel.uuid in self._calls.channels:
            self._calls.tell("PLAYBACK_STOP", channel, after=[*file, ("Playback-Status", "done")])
