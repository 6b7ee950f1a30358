"""Replays recorded events: a stream of FreeSWITCH's bytes (gzip'ed or not), or a text of events, to whoever subscribed.

It never changes a recorded frame where the subscriber wants the format it was recorded in.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from bridge.simulator.events import SimulatedEvent
from bridge.simulator.serialise import Format, Headers, Value, to_text

if TYPE_CHECKING:
    from bridge.simulator.connection import Connection
    from bridge.simulator.server import SimulatedSwitch
    from bridge.simulator.subscriptions import Subscription

_LENGTH = re.compile(rb"(?i)(?:^|\n)content-length:\s*(\d+)")
_TYPE = re.compile(rb"(?i)(?:^|\n)content-type:\s*text/event-(json|plain)")
_BLOCK_BYTES = 128 * 1024
_AHEAD = 100


class ReplayError(ValueError):
    """There is no event in what should be replayed."""


def _json_headers(raw: bytes) -> tuple[Headers, str | None]:
    pairs = json.loads(to_text(raw), object_pairs_hook=list)
    if isinstance(pairs, dict) or not all(isinstance(pair, tuple) for pair in pairs):
        raise ReplayError("not a JSON object of headers")
    for name, value in pairs:
        # A CloudEvents message of the bridge holds the event under `data`.
        if name == "data" and isinstance(value, list):
            pairs = value
    headers: Headers = []
    body = None
    for name, value in pairs:
        if name == "_body":
            body = str(value)
        else:
            headers.append((name, [str(item) for item in value] if isinstance(value, list) else str(value)))
    if body is not None and headers and headers[-1][0] == "Content-Length":
        headers.pop()
    return headers, body


def _plain_headers(raw: bytes) -> tuple[Headers, str | None]:
    head, _, body = raw.partition(b"\n\n")
    headers: Headers = []
    for line in head.split(b"\n"):
        name, colon, encoded = line.partition(b": ")
        if colon:
            text = to_text(unquote_to_bytes(encoded))
            value: Value = text[7:].split("|:") if text.startswith("ARRAY::") else text
            headers.append((to_text(name), value))
    if body and headers and headers[-1][0] == "Content-Length":
        headers.pop()
    return headers, to_text(body) if body else None


def _event(headers: Headers, body: str | None) -> SimulatedEvent:
    event = SimulatedEvent("", headers, body)
    for name, value in headers:  # the last one is that of this firing
        if name == "Event-Name" and isinstance(value, str):
            event.name = value
        elif name == "Event-Subclass" and isinstance(value, str):
            event.subclass = value
    return event


def _stream(data: bytes) -> Iterator[SimulatedEvent]:
    position = 0
    while True:
        end = data.find(b"\n\n", position)
        if end < 0:
            return
        head = data[position:end]
        length = _LENGTH.search(head)
        position = end + 2 + (int(length.group(1)) if length else 0)
        if position > len(data):
            return
        kind = _TYPE.search(head)
        if kind is None:
            continue
        format: Format = "json" if kind.group(1) == b"json" else "plain"
        raw = data[end + 2 : position]
        try:
            event = _event(*(_json_headers(raw) if format == "json" else _plain_headers(raw)))
        except ValueError:
            return  # torn: what follows is out of step
        event.seal(format, head + b"\n\n" + raw)
        yield event


def _lines(data: bytes) -> Iterator[SimulatedEvent]:
    for line in data.splitlines():
        if line.strip():
            yield _event(*_json_headers(line))


def _blocks(data: bytes) -> Iterator[SimulatedEvent]:
    for block in re.split(rb"\r?\n\s*\n", data):
        if b": " in block:
            yield _event(*_plain_headers(block.strip().replace(b"\r\n", b"\n") + b"\n\n"))


def read_events(source: Path | str | bytes) -> list[SimulatedEvent]:
    """The events of a recording.

    A byte stream as FreeSWITCH sent it, a file of one JSON event per line, or plain events separated by blank lines;
    each gzip'ed or not. Raises ReplayError where there is no event, OSError where the file cannot be read.
    """
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError) as error:
            raise ReplayError(f"cannot unpack: {error}") from error
    head = data[:65536]
    try:
        if _LENGTH.search(head) and b"text/event-" in head:
            found = _stream(data)
        elif data.lstrip()[:1] == b"{":
            found = _lines(data)
        else:
            found = _stream(data) if b"Content-Type: " in head else _blocks(data)
        events = [event for event in found if event.name]
    except ValueError as error:
        raise ReplayError(f"not a recording of events: {error}") from error
    if not events:
        raise ReplayError("there is no event in it")
    return events


class Replay:
    """Plays a recording to the listeners of a switch, from the moment the first one is there.

    ``speed`` 1 is as recorded, 2 twice as fast, 0 as fast as each listener takes it (each then gets all of it from its
    own beginning); ``rate`` events a second instead where it is given; ``loop`` again and again.
    """

    def __init__(
        self, source: Path | str | bytes, *, speed: float = 1.0, rate: float | None = None, loop: bool = False
    ) -> None:
        self.events = read_events(source)
        self.firehose = not speed and not rate
        self._rate = rate
        self._loop = loop
        self._playing: set[Connection] = set()
        self._started = False
        self._offsets = self._times(speed)
        self._packed: dict[Format, list[tuple[bytes, int]]] = {}

    @property
    def core_uuid(self) -> str:
        """The Core-UUID of the recording."""
        return self.events[0].header("Core-UUID") or ""

    @property
    def last_sequence(self) -> int:
        """The highest Event-Sequence of the recording."""
        numbers = (event.header("Event-Sequence") or "" for event in self.events)
        return max((int(number) for number in numbers if number.isdecimal()), default=0)

    def _times(self, speed: float) -> list[float]:
        if self._rate:
            return [number / self._rate for number in range(len(self.events))]
        if not speed:
            return []
        offsets = []
        first = latest = 0
        for event in self.events:
            text = event.header("Event-Date-Timestamp") or ""
            moment = int(text) if text.isdecimal() else latest
            first = first or moment
            latest = max(latest, moment)
            offsets.append((latest - first) / 1_000_000 / speed)
        return offsets

    def listener(self, switch: SimulatedSwitch, connection: Connection) -> None:
        """A connection listens: begin, if it is time to."""
        if self.firehose:
            if connection not in self._playing:
                self._playing.add(connection)
                switch.spawn(self._pour(connection))
        elif not self._started:
            self._started = True
            switch.spawn(self._play(switch))

    async def _play(self, switch: SimulatedSwitch) -> None:
        while True:
            begin = time.monotonic()
            for event, offset in zip(self.events, self._offsets, strict=True):
                delay = begin + offset - time.monotonic()
                if delay > 0:
                    await asyncio.sleep(delay)
                switch.deliver(event)
            if not self._loop:
                return
            await asyncio.sleep(0)

    async def _pour(self, connection: Connection) -> None:
        try:
            blocks = self._blocks_for(connection.subscription)
            while blocks:
                if connection.switch.faults.active:
                    await self._drip(connection)
                    if self._loop and connection.subscription.listening and not connection.closing:
                        continue
                    return
                for block, count in blocks:
                    await connection.drain()
                    if connection.closing or not connection.subscription.listening:
                        return
                    connection.write(block)
                    connection.events_sent += count
                    connection.switch.events_fired += count
                    await asyncio.sleep(0)  # let its commands in
                if not self._loop:
                    return
        finally:
            self._playing.discard(connection)

    async def _drip(self, connection: Connection) -> None:
        """One after another, so that faults can spoil single events."""
        for event in self.events:
            while connection.queued >= _AHEAD and not connection.closing:
                await connection.drain()
                await asyncio.sleep(0)
            if connection.closing or not connection.subscription.listening:
                return
            if connection.subscription.wants(event):
                connection.switch.events_fired += 1
                connection.offer(event)
        await asyncio.sleep(0)

    def _blocks_for(self, subscription: Subscription) -> list[tuple[bytes, int]]:
        format = subscription.format
        if subscription.everything and not subscription.filters and subscription.call is None:
            if format not in self._packed:
                self._packed[format] = self._pack([event.frame(format) for event in self.events])
            return self._packed[format]
        return self._pack([event.frame(format) for event in self.events if subscription.wants(event)])

    @staticmethod
    def _pack(frames: list[bytes]) -> list[tuple[bytes, int]]:
        """Whole frames gathered to blocks, so that one write carries many; with their number."""
        blocks = []
        gathered: list[bytes] = []
        size = 0
        for frame in frames:
            gathered.append(frame)
            size += len(frame)
            if size >= _BLOCK_BYTES:
                blocks.append((b"".join(gathered), len(gathered)))
                gathered, size = [], 0
        if gathered:
            blocks.append((b"".join(gathered), len(gathered)))
        return blocks
