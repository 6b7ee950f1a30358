"""The made-up calls of a switch: every channel that lives, what happens to it, and the events that tell of it.

It never decides on its own to begin a call: traffic and the API do.
"""

from __future__ import annotations

import time
import uuid as uuids
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING

from bridge.simulator.applications import Applications
from bridge.simulator.channel import CALL_STATES, Channel, now
from bridge.simulator.serialise import Headers, Value

if TYPE_CHECKING:
    from bridge.simulator.server import SimulatedSwitch


class Calls:
    """The channels of one switch, by uuid, and their statistics."""

    def __init__(self, switch: SimulatedSwitch) -> None:
        self._switch = switch
        self.applications = Applications(switch, self)
        self.channels: dict[str, Channel] = {}
        self.total = 0
        self.peak = 0
        self.peak_per_second = 0
        self._born: deque[float] = deque()

    def __len__(self) -> int:
        return len(self.channels)

    def clear(self) -> None:
        """Forget all calls, silently (FreeSWITCH has ended)."""
        self.channels.clear()
        self._born.clear()
        self.total = self.peak = self.peak_per_second = 0

    def get(self, uuid: str) -> Channel | None:
        """The live channel with this uuid."""
        return self.channels.get(uuid)

    @property
    def per_second(self) -> int:
        """Channels born in the last second."""
        edge = time.monotonic() - 1.0
        while self._born and self._born[0] < edge:
            self._born.popleft()
        return len(self._born)

    # --- telling -----------------------------------------------------------------------------------

    def tell(self, name: str, channel: Channel, before: Headers | None = None, after: Headers | None = None) -> None:
        """Fire an event of a channel."""
        self._switch.fire(name, channel.headers(name, before, after))

    def state(self, channel: Channel, state: str) -> None:
        """Change the channel's state."""
        channel.state = state
        self.tell("CHANNEL_STATE", channel)

    def call_state(self, channel: Channel, state: str) -> None:
        """Change the channel's call state; nothing happens when it has it already."""
        if channel.call_state == state:
            return
        original, channel.call_state = channel.call_state, state
        self.tell(
            "CHANNEL_CALLSTATE",
            channel,
            [("Original-Channel-Call-State", original), ("Channel-Call-State-Number", str(CALL_STATES[state]))],
        )

    # --- a channel's life --------------------------------------------------------------------------

    def create(
        self,
        *,
        direction: str,
        name: str,
        caller: tuple[str, str],
        destination: str,
        uuid: str | None = None,
        callee: tuple[str, str] = ("", ""),
        variables: Mapping[str, Value] | None = None,
        call_uuid: str = "",
        context: str = "default",
        source: str = "mod_sofia",
        network_addr: str = "",
    ) -> Channel:
        """A new channel, told as CHANNEL_OUTGOING where we dial, CHANNEL_STATE, CHANNEL_CREATE."""
        self.total += 1
        self._born.append(time.monotonic())
        channel = Channel(
            uuid=uuid or str(uuids.uuid4()),
            name=name,
            direction=direction,
            caller_name=caller[0],
            caller_number=caller[1],
            callee_name=callee[0],
            callee_number=callee[1],
            destination=destination,
            session_id=self.total,
            variables=dict(variables or {}),
            call_uuid=call_uuid,
            context=context,
            source=source,
            network_addr=network_addr,
        )
        self.channels[channel.uuid] = channel
        self.peak = max(self.peak, len(self.channels))
        self.peak_per_second = max(self.peak_per_second, self.per_second)
        text = f"New Channel {name} [{channel.uuid}]"
        self._switch.log(5, text, "switch_channel.c", "switch_channel_set_name", 1143, channel.uuid)
        if direction == "outbound":
            self.tell("CHANNEL_OUTGOING", channel)
        self.state(channel, "CS_INIT")
        self.tell("CHANNEL_CREATE", channel)
        if direction == "outbound":
            self.tell("CHANNEL_ORIGINATE", channel)
        return channel

    def route(self, channel: Channel) -> None:
        """Send the channel into the dialplan."""
        self.state(channel, "CS_ROUTING")
        if channel.direction == "inbound":
            self.call_state(channel, "RINGING")
            channel.routed = True
        self.state(channel, "CS_EXECUTE" if channel.direction == "inbound" else "CS_CONSUME_MEDIA")

    def ring(self, channel: Channel) -> None:
        """The far end rings."""
        channel.progress = now()
        channel.touch()
        self.tell("CHANNEL_PROGRESS", channel)
        self.call_state(channel, "RINGING")

    def answer(self, channel: Channel) -> None:
        """Answer; nothing happens when it is answered."""
        if channel.answered or channel.hung_up:
            return
        channel.answered = now()
        channel.answer_state = "answered"
        channel.set("endpoint_disposition", "ANSWER")
        channel.touch()
        self.tell("CHANNEL_ANSWER", channel)
        self.call_state(channel, "ACTIVE")

    def bridge(self, one: Channel, two: Channel) -> None:
        """Bridge two channels."""
        one.other, two.other = two, one
        one.originator, two.originator = True, False
        one.bridged = two.bridged = now()
        one.touch()
        two.touch()
        for channel, other in ((one, two), (two, one)):
            channel.set("bridge_channel", other.name)
            channel.set("bridge_uuid", other.uuid)
            channel.set("signal_bond", other.uuid)
        self.tell("CHANNEL_BRIDGE", one, [("Bridge-A-Unique-ID", one.uuid), ("Bridge-B-Unique-ID", two.uuid)])

    def unbridge(self, one: Channel) -> None:
        """Take a bridge apart; nothing happens where there is none."""
        two = one.other
        if two is None:
            return
        self.tell("CHANNEL_UNBRIDGE", one, [("Bridge-A-Unique-ID", one.uuid), ("Bridge-B-Unique-ID", two.uuid)])
        for channel in (one, two):
            channel.set("last_bridge_to", channel.other.uuid if channel.other else "")
            channel.unset("bridge_uuid")
            channel.other = None

    def dtmf(self, channel: Channel, digits: str, duration: int = 800) -> None:
        """DTMF digits came; ``duration`` in samples."""
        for digit in digits:
            if digit in "0123456789*#ABCDabcd":
                self.tell(
                    "DTMF",
                    channel,
                    after=[("DTMF-Digit", digit), ("DTMF-Duration", str(duration)), ("DTMF-Source", "RTP")],
                )

    def hold(self, channel: Channel, on: bool) -> None:
        """Hold or resume."""
        self.call_state(channel, "HELD" if on else "ACTIVE")
        self.tell("CHANNEL_HOLD" if on else "CHANNEL_UNHOLD", channel)

    def hang_up(self, channel: Channel, cause: str = "NORMAL_CLEARING") -> None:
        """End a channel, and the one it is bridged with, with all the events of an end."""
        if channel.uuid not in self.channels:
            return
        other = channel.other
        self.unbridge(channel)
        legs = [channel] if other is None else [channel, other]
        for leg in legs:
            leg.cause = cause
            leg.answer_state = "hangup"
            leg.hung_up = now()
            leg.touch()
            del self.channels[leg.uuid]
            self.tell("CHANNEL_HANGUP", leg)
            text = f"Hangup {leg.name} [{leg.state}] [{cause}]"
            self._switch.log(5, text, "switch_channel.c", "switch_channel_perform_hangup", 3460, leg.uuid)
        for leg in legs:
            self._finish(leg)

    def _finish(self, leg: Channel) -> None:
        self.applications.abandon(leg)
        self.state(leg, "CS_HANGUP")
        self.call_state(leg, "HANGUP")
        leg.report()
        self.state(leg, "CS_REPORTING")
        self.tell("CHANNEL_HANGUP_COMPLETE", leg, [("Hangup-Cause", leg.cause)])
        self.tell("CHANNEL_DESTROY", leg)
        self.state(leg, "CS_DESTROY")

    async def hang_up_after(self, channel: Channel, seconds: float) -> None:
        """End a channel after so long (s)."""
        await self._switch.sleep(seconds)
        self.hang_up(channel)

    def hang_up_all(self, cause: str) -> int:
        """End every call; the number of channels that ended."""
        count = len(self.channels)
        for channel in list(self.channels.values()):
            self.hang_up(channel, cause)
        return count
