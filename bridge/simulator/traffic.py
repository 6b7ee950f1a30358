"""Made-up people who call each other: so many calls a second, each with a story from CREATE to DESTROY.

It never knows who listens.
"""

from __future__ import annotations

import asyncio
import random
import uuid as uuids
from typing import TYPE_CHECKING

from bridge.simulator.channel import Application, Channel, now
from bridge.simulator.serialise import Headers

if TYPE_CHECKING:
    from bridge.simulator.server import SimulatedSwitch

PEOPLE = (
    ("1001", "Alice Johnson"),
    ("1002", "Bob Smith"),
    ("1003", "Chloé Dubois"),
    ("1004", "Jürgen Müller"),
    ("1005", "Sofía García"),
    ("1006", "Łukasz Nowak"),
    ("1007", "Aiko 田中"),
    ("1008", "Dmitri Иванов"),
    ("1009", 'Eve "Ring" O\'Hara'),
    ("1010", "Reception: desk 1"),
    ("1011", "Support 50% off"),
    ("1012", "Zoë & Söhne"),
)
_OUTSIDE = ("+14155550", "+442079460", "+4930555", "+33155500", "+81355500")
_AGENTS = ("Yealink SIP-T54W 96.86.0.75", "PolycomVVX-VVX_411-UA/6.4.3", "Linphone/5.2.4", "Zoiper rv2.10.20.4")
_FAILURES = ("USER_BUSY", "NO_ANSWER", "ORIGINATOR_CANCEL", "UNALLOCATED_NUMBER", "CALL_REJECTED")


class Traffic:
    """Begins calls at a rate; every tenth one also brings a registration."""

    def __init__(self, switch: SimulatedSwitch, calls_per_second: float, call_duration: float) -> None:
        self._switch = switch
        self._rate = calls_per_second
        self._duration = call_duration
        self._random: random.Random = switch.random
        self._timer: asyncio.TimerHandle | None = None
        self.begun = 0

    def start(self) -> None:
        """Begin; nothing happens at rate 0."""
        if self._rate > 0 and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._random.random() / self._rate, self._next)

    def stop(self) -> None:
        """Begin no further call."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _next(self) -> None:
        delay = self._random.expovariate(self._rate)
        self._timer = asyncio.get_running_loop().call_later(delay, self._next)
        if len(self._switch.calls) + 2 <= self._switch.max_sessions:
            self._switch.spawn(self.call())
        if self.begun % 10 == 1:
            self.register()

    def _uuid(self) -> str:
        return str(uuids.UUID(int=self._random.getrandbits(128), version=4))

    def register(self) -> None:
        """A telephone registers."""
        number, _ = self._random.choice(PEOPLE)
        address = f"192.0.2.{self._random.randrange(20, 250)}"
        port = str(self._random.randrange(1024, 65535))
        domain = self._switch.hostname
        self._switch.fire(
            "CUSTOM",
            [
                ("profile-name", "internal"),
                ("from-user", number),
                ("from-host", domain),
                ("presence-hosts", domain),
                ("contact", f'"{number}" <sip:{number}@{address}:{port};transport=udp;fs_nat=yes>'),
                ("call-id", self._uuid()),
                ("rpid", "unknown"),
                ("status", "Registered(UDP-NAT)"),
                ("expires", "600"),
                ("to-user", number),
                ("to-host", domain),
                ("network-ip", address),
                ("network-port", port),
                ("username", number),
                ("realm", domain),
                ("user-agent", self._random.choice(_AGENTS)),
            ],
            subclass="sofia::register",
        )

    def _variables(self, leg: str, number: str, domain: str, address: str) -> Headers:
        call_id = self._uuid()
        return [
            ("sip_from_user", number),
            ("sip_from_uri", f"{number}@{domain}"),
            ("sip_from_host", domain),
            ("sofia_profile_name", "internal"),
            ("sip_call_id", call_id),
            ("sip_user_agent", self._random.choice(_AGENTS)),
            ("sip_network_ip", address),
            ("user_context", "default"),
            ("accountcode", number),
            ("presence_id", f"{number}@{domain}"),
            ("rtp_use_codec_string", "OPUS,G722,PCMU,PCMA"),
            ("leg", leg),
        ]

    async def call(self) -> None:
        """One call between two people, from its first event to its last."""
        self.begun += 1
        switch, calls, chance = self._switch, self._switch.calls, self._random
        domain = switch.hostname
        (caller_number, caller_name), (number, name) = chance.sample(PEOPLE, 2)
        if chance.random() < 0.3:
            caller_number = f"{chance.choice(_OUTSIDE)}{chance.randrange(1000, 9999)}"
            caller_name = caller_number
        address = f"198.51.100.{chance.randrange(1, 254)}"
        duration = max(0.05, chance.gammavariate(4.0, self._duration / 4.0))
        ringing = min(3.0, duration * chance.uniform(0.1, 0.3))
        failure = chance.choice(_FAILURES) if chance.random() < 0.15 else ""
        digits = "".join(chance.choices("0123456789#*", k=3)) if chance.random() < 0.3 else ""
        holds = chance.random() < 0.08

        a = calls.create(
            uuid=self._uuid(),
            direction="inbound",
            name=f"sofia/internal/{caller_number}@{domain}",
            caller=(caller_name, caller_number),
            destination=number,
            network_addr=address,
            variables=dict(self._variables("a", caller_number, domain, address)),
        )
        calls.route(a)
        self._step(a, "set", "hangup_after_bridge=true")
        dial = Application("bridge", f"user/{number}@{domain}", self._uuid())
        calls.applications.endure(a, dial)
        b = calls.create(
            uuid=self._uuid(),
            direction="outbound",
            name=f"sofia/internal/{number}@192.0.2.20:5060",
            caller=(caller_name, caller_number),
            callee=(name, number),
            destination=number,
            call_uuid=a.uuid,
            variables=dict(self._variables("b", number, domain, "192.0.2.20")) | {"originator": a.uuid},
        )
        calls.route(b)
        await asyncio.sleep(ringing / 4)
        if not self._alive(a, b):
            return
        calls.ring(b)
        calls.ring(a)
        await asyncio.sleep(ringing)
        if not self._alive(a, b):
            return
        if failure:
            calls.hang_up(b, failure)
            calls.hang_up(a, failure)
            return
        calls.answer(b)
        calls.answer(a)
        b.routed = True
        calls.state(b, "CS_EXCHANGE_MEDIA")
        calls.bridge(a, b)
        await self._talk(a, b, duration, digits, holds)
        if self._alive(a, b):
            calls.hang_up(chance.choice((a, b)))

    async def _talk(self, a: Channel, b: Channel, duration: float, digits: str, holds: bool) -> None:
        calls = self._switch.calls
        if digits:
            await asyncio.sleep(duration * 0.3)
            if self._alive(a, b):
                calls.dtmf(a, digits)
        if holds:
            await asyncio.sleep(duration * 0.2)
            if self._alive(a, b):
                calls.hold(a, True)
            await asyncio.sleep(duration * 0.2)
            if self._alive(a, b):
                calls.hold(a, False)
        until = a.answered + int(duration * 1_000_000)
        await asyncio.sleep(max(0.0, (until - now()) / 1_000_000))

    def _step(self, channel: Channel, application: str, argument: str) -> None:
        """An application of the dialplan that is over at once."""
        self._switch.calls.applications.step(channel, Application(application, argument, self._uuid()))

    def _alive(self, *legs: Channel) -> bool:
        """Whether all legs still live; the survivors of a broken story are hung up."""
        calls = self._switch.calls
        if all(leg.uuid in calls.channels for leg in legs):
            return True
        for leg in legs:
            calls.hang_up(leg, "ORIGINATOR_CANCEL")
        return False
