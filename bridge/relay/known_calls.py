"""The calls that a node has, as its events told: enough of each to tell of its end when FreeSWITCH cannot any more.

This room never asks FreeSWITCH, and publishes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping

import msgspec

from bridge.esl.event import Event
from bridge.esl.pick import HeaderPick
from bridge.relay.chunks import MADE_UP
from bridge.relay.lately import Lately

LIMIT = 20_000
"""Calls of one node that are kept; the oldest are forgotten first."""
ENDED_FOR = 120.0
"""Seconds that an end is remembered: longer than an event, a list of channels or another worker's table is old."""
_KEPT = HeaderPick(
    "FreeSWITCH-Hostname", "FreeSWITCH-Switchname", "Channel-Name", "Call-Direction", "Channel-Call-UUID",
    "Caller-Direction", "Caller-Caller-ID-Name", "Caller-Caller-ID-Number", "Caller-Destination-Number",
    "Caller-Context", "Caller-Channel-Created-Time",
)  # fmt: skip
# What `show channels` calls the same things.
_COLUMNS = {
    "name": "Channel-Name", "direction": "Call-Direction", "call_uuid": "Channel-Call-UUID",
    "cid_name": "Caller-Caller-ID-Name", "cid_num": "Caller-Caller-ID-Number", "dest": "Caller-Destination-Number",
    "context": "Caller-Context", "hostname": "FreeSWITCH-Hostname",
}  # fmt: skip
OLD_UUID = HeaderPick("Old-Unique-ID")
_ALIVE = ("CHANNEL_ANSWER", "CHANNEL_PROGRESS", "CHANNEL_BRIDGE", "CHANNEL_PARK")

_encode_json = msgspec.json.Encoder().encode


class KnownCall(msgspec.Struct, array_like=True, frozen=True):
    """A call: the run of FreeSWITCH it belongs to, and the headers that its end will bear."""

    core_uuid: str
    headers: dict[str, str]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(dict[str, KnownCall]).decode


class KnownCalls:
    """The calls of one node by uuid. ``version`` grows with every change; ``clock`` tells seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.calls: dict[str, KnownCall] = {}
        self.version = 0
        self.doubtful: set[str] = set()
        """Calls that may have ended unseen: what began on the link of now will end on it, too."""
        self._ended = Lately[None](ENDED_FOR, LIMIT, clock)

    def __len__(self) -> int:
        return len(self.calls)

    def __contains__(self, uuid: str) -> bool:
        return uuid in self.calls

    def watchers(self) -> Mapping[str, Callable[[Event], None]]:
        """What the node's event path calls, by event name, to keep this table."""
        found: dict[str, Callable[[Event], None]] = dict.fromkeys(_ALIVE, self._lives)
        found["CHANNEL_CREATE"] = self._begins
        # A call that is hung up has told its end, whatever comes after it.
        found |= {"CHANNEL_HANGUP_COMPLETE": self._ends, "CHANNEL_DESTROY": self._ends, "CHANNEL_UUID": self._renamed}
        return found

    def doubt(self) -> None:
        """A new link stands: every call of before may have ended between the two."""
        self.doubtful = set(self.calls)

    def take_over(self, rows: Iterable[Mapping[str, object]], core_uuid: str) -> None:
        """Take over what ``show channels`` listed."""
        for row in rows:
            uuid = row.get("uuid")
            if isinstance(uuid, str) and uuid and uuid not in self._ended:
                headers = {to: value for of, to in _COLUMNS.items() if isinstance(value := row.get(of), str) and value}
                self._keep(uuid, KnownCall(core_uuid, headers))

    def encode(self) -> bytes:
        """All of it for another worker."""
        return _encode(self.calls)

    def merge(self, payload: bytes) -> None:
        """Take over what another worker knew, except what ended here since."""
        try:
            found = _decode(payload) if payload else {}
        except msgspec.MsgspecError:
            return
        for uuid, call in found.items():
            if uuid not in self.calls and uuid not in self._ended:
                self._keep(uuid, call)
                self.doubtful.add(uuid)

    def settled(self, payload: bytes, begun: Collection[str]) -> list[str]:
        """Forget the calls that may have ended unseen and are neither in what another worker knew nor ``begun`` since.

        Returns them. Nothing happens where the other's calls cannot be read.
        """
        try:
            found = _decode(payload)
        except msgspec.MsgspecError:
            return []
        over = [uuid for uuid in self.doubtful if uuid not in found and uuid not in begun]
        self.drop(over)
        return over

    def of_another_run(self, core_uuid: str) -> list[str]:
        """The calls that a restart of FreeSWITCH has ended."""
        return [uuid for uuid, call in self.calls.items() if call.core_uuid and call.core_uuid != core_uuid]

    def drop(self, uuids: Iterable[str]) -> None:
        """Forget calls whose end is told elsewhere."""
        for uuid in uuids:
            if self.calls.pop(uuid, None) is not None:
                self.version += 1
            self.doubtful.discard(uuid)

    def clear(self) -> None:
        """Forget everything: from now on nothing is heard of the node."""
        self.calls.clear()
        self.doubtful.clear()
        self._ended.clear()
        self.version += 1

    def end(self, uuid: str, cause: str, *, now: float | None = None) -> Event | None:
        """Make the end of a call whose own never came, and forget it; None where it is not known.

        Its identity is ``<Core-UUID>:end:<uuid>``: the same from whoever makes it.
        """
        call = self.calls.get(uuid)
        if call is None:
            return None
        self._forget(uuid)
        stamp = str(int((time.time() if now is None else now) * 1_000_000))
        headers = {
            "Event-Name": "CHANNEL_HANGUP_COMPLETE",
            "Core-UUID": call.core_uuid,
            **call.headers,
            "Event-Date-Timestamp": stamp,
            "Event-Sequence": f"{MADE_UP}{uuid}",
            "Channel-State": "CS_REPORTING",
            "Channel-Call-State": "HANGUP",
            "Unique-ID": uuid,
            "Hangup-Cause": cause,
        }
        return Event.parse(_encode_json(headers))

    def _begins(self, event: Event) -> None:
        if not event.injected:
            self._ended.pop(event.unique_id)  # a uuid that callers choose (origination_uuid) may come again
            self._lives(event)

    def _lives(self, event: Event) -> None:
        uuid = event.unique_id
        if not uuid or uuid in self.calls or uuid in self._ended or event.injected:
            return
        headers = {name: value for name, value in zip(_KEPT.names, _KEPT.of(event), strict=True) if value is not None}
        self._keep(uuid, KnownCall(event.envelope.core_uuid, headers))

    def _ends(self, event: Event) -> None:
        if not event.injected:
            self._forget(event.unique_id)

    def _renamed(self, event: Event) -> None:
        (old,) = OLD_UUID.of(event)
        if old is not None and old in self.calls and not event.injected:
            call = self.calls[old]
            self._forget(old)
            self._keep(event.unique_id, call)

    def _keep(self, uuid: str, call: KnownCall) -> None:
        self.calls[uuid] = call
        self.version += 1
        if len(self.calls) > LIMIT:
            oldest = next(iter(self.calls))
            del self.calls[oldest]
            self.doubtful.discard(oldest)

    def _forget(self, uuid: str) -> None:
        if self.calls.pop(uuid, None) is not None:
            self.version += 1
        self.doubtful.discard(uuid)
        self._ended.put(uuid, None)
