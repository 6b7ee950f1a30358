"""The recordings as another FreeSWITCH might have sent them: other orders, sizes and frames in between. Nothing faults.

What is changed keeps the protocol's rules, so that every event and every reply must come out as from the recording.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from typing import Any

import pytest

from bridge.esl.event import Event
from bridge.esl.plain import parse_connect
from bridge.esl.protocol import (
    AuthRequested,
    CloseReason,
    LogReceived,
    Notice,
    Protocol,
    ReplyReceived,
    UnknownFrame,
)

PLAYED = ["json_all", "plain_all", "xml_short", "commands", "auth_userauth_ok", "cmd_bodies"]
LIMIT = 400_000
UUID = "1b671a64-40d5-491e-99b0-da01ff1f3341"


def log_line(chance: random.Random) -> bytes:
    text = chance.choice(
        [b"x\n", b"a: b\n\nContent-Type: auth/request\n\n", "Zoë\n".encode(), b"\xe9\xff\n", b"y" * 20_000]
    )
    lines = [
        b"Content-Length: %d" % len(text), b"Log-Level: 7", b"Text-Channel: 3", b"Log-File: switch_core.c",
        b"Log-Func: f", b"Log-Line: 12", chance.choice([b"User-Data: ", b"User-Data: " + UUID.encode()]),
    ]  # fmt: skip
    chance.shuffle(lines)
    return b"\n".join([b"Content-Type: log/data", *lines]) + b"\n\n" + text


def linger(chance: random.Random) -> bytes:
    seconds = chance.choice([b"-1", b"0", b"10"])
    return (
        b"Content-Type: text/disconnect-notice\nControlled-Session-UUID: %b\nContent-Disposition: linger\n"
        b"Channel-Name: sofia/internal/1000@10.0.0.1\nLinger-Time: %b\nContent-Length: 0\n\n" % (UUID.encode(), seconds)
    )


def unknown(chance: random.Random) -> bytes:
    if chance.random() < 0.5:
        return b"Content-Type: text/x-of-a-later-version\nX-What: ever\n\n"
    body = chance.choice([b"", b"\n\n", b"<event>\n  <headers/>\n</event>\n", b"Content-Type: auth/request\n\n" * 3])
    return b"Content-Length: %d\nContent-Type: text/event-xml\n\n%b" % (len(body), body)


def other_head(head: bytes, chance: random.Random) -> bytes:
    """The same headers in another order and spelling, and one that nobody knows."""
    lines = head.removesuffix(b"\n\n").split(b"\n")
    if chance.random() < 0.5:
        chance.shuffle(lines)
    if chance.random() < 0.3:
        lines.insert(chance.randint(0, len(lines)), b"X-Of-A-Later-Version: a:b c")
    if chance.random() < 0.3:
        at = chance.randrange(len(lines))
        name, colon, value = lines[at].partition(b":")
        lines[at] = chance.choice([name.upper(), name.lower()]) + colon + chance.choice([value, value.lstrip()])
    end = b"\n\r\n" if chance.random() < 0.2 else b"\n\n"
    return b"\n".join(lines) + end


def other_json(body: bytes, chance: random.Random) -> bytes:
    """Other sizes, orders and values; the identity stays."""
    event = json.loads(body.decode("utf-8", "replace"))
    match chance.randrange(6):
        case 0:
            event["variable_big"] = chance.choice(['\\"\u2028\u0085\x0b', "z" * chance.randint(1, 200_000), "é" * 5000])
        case 1:
            event["variable_list"] = ["a", "b|:c", "ARRAY::"]
        case 2:
            items = list(event.items())
            chance.shuffle(items)
            event = dict(items)
        case 3:
            return json.dumps(event, indent=2).encode()
        case 4:
            event |= {f"variable_{number}": str(number) for number in range(300)}
        case _:
            # FreeSWITCH repeats keys; the last one wins.
            name = json.dumps(event["Event-Name"])
            return (
                b'{"Event-Name":"COMMAND","Event-Sequence":"0",'
                + json.dumps(event).encode()[1:-1]
                + (f',"Event-Name":{name}}}'.encode())
            )
    return json.dumps(event, ensure_ascii=chance.random() < 0.5, separators=(",", ":")).encode()


def other_plain(body: bytes, chance: random.Random) -> bytes:
    block, blank, rest = body.partition(b"\n\n")
    lines = block.split(b"\n")
    match chance.randrange(4):
        case 0:
            chance.shuffle(lines)
        case 1:
            lines.insert(1, b"variable_big: " + b"%C3%A9" * chance.randint(1, 20_000))
        case 2:
            lines.insert(0, b"variable_odd: %zz%4%E9%0ABad%3A b%0D%2520")
        case _:
            lines.insert(len(lines), b"variable_list: ARRAY%3A%3Aa%7C%3Ab")
    return b"\n".join(lines) + blank + rest


def mutate(recorded: Any, chance: random.Random) -> tuple[list[bytes], Counter[str]]:
    """The frames up to ``LIMIT`` bytes, changed; and how many frames were put in between."""
    put_in: Counter[str] = Counter()
    frames = []
    authenticated = False
    for offset, head, size, kind in recorded.frames:
        if offset > LIMIT or kind == "text/disconnect-notice":
            break
        start, body = recorded.rx[offset : offset + head], recorded.rx[offset + head : offset + head + size]
        if kind in ("text/event-json", "text/event-plain") and body and chance.random() < 0.3:
            body = other_json(body, chance) if kind.endswith("json") else other_plain(body, chance)
            start = b"Content-Length: %d\nContent-Type: %b\n\n" % (len(body), kind.encode())
        if chance.random() < 0.3:
            start = other_head(start, chance)
        frames.append(start + body)
        if authenticated and chance.random() < 0.1:
            made = chance.choice([log_line, linger, unknown])
            put_in[made.__name__] += 1
            frames.append(made(chance))
        authenticated = authenticated or kind == "command/reply"
    return frames, put_in


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("name", PLAYED)
def test_nothing_faults(capture: Any, name: str, seed: int) -> None:
    recorded = capture(name)
    chance = random.Random(f"{name} {seed}")
    frames, put_in = mutate(recorded, chance)
    kinds = Counter(kind for offset, _, _, kind in recorded.frames if offset <= LIMIT)
    protocol = Protocol()
    occurrences: list[Any] = protocol.receive_data(frames[0])
    replies = kinds["command/reply"] + kinds["api/response"]
    for number in range(replies):
        protocol.send(b"auth x\n\n" if number == 0 else b"api x\n\n", number)
    protocol.data_to_send()
    rx = b"".join(frames[1:])
    position = 0
    while position < len(rx):
        size = chance.choice([1, 100, 4096, 70_000, 1_000_000])
        occurrences += protocol.receive_data(rx[position : position + size])
        position += size
    told = Counter(type(one).__name__ for one in occurrences)
    assert told == Counter(
        {
            AuthRequested.__name__: 1,
            ReplyReceived.__name__: replies,
            Event.__name__: kinds["text/event-json"] + kinds["text/event-plain"],
            UnknownFrame.__name__: kinds["text/event-xml"] + put_in["unknown"],
            LogReceived.__name__: kinds["log/data"] + put_in["log_line"],
            Notice.__name__: put_in["linger"],
        }
    )
    answered = [one.pending.token for one in occurrences if isinstance(one, ReplyReceived)]
    assert answered == list(range(replies))
    original = [
        Event.parse(recorded.rx[offset + head : offset + head + size], kind.removeprefix("text/event-"))
        for offset, head, size, kind in recorded.frames
        if offset <= LIMIT and kind in ("text/event-json", "text/event-plain")
    ]
    for event, was in zip((one for one in occurrences if isinstance(one, Event)), original, strict=True):
        assert (event.identity, event.name, event.unique_id) == (was.identity, was.name, was.unique_id)
        assert json.loads(event.json)["Event-Name"] == was.name
        assert event.body == was.body
    (closed,) = protocol.receive_eof()
    assert closed.reason is CloseReason.EOF
    assert not closed.lost


@pytest.mark.parametrize("size", [1000, 200_000, 1_900_000])
def test_a_connect_block_of_any_size(capture: Any, size: int) -> None:
    recorded = capture("out_async_full")
    offset, head, _, _ = recorded.frames[0]
    lines = recorded.rx[offset : offset + head - 2].split(b"\n")
    lines.insert(5, b"variable_big: " + b"%20" * (size // 3))
    channel = parse_connect(b"\n".join(lines))
    assert channel["variable_big"] == " " * (size // 3)
    assert channel["Reply-Text"] == "+OK\n"
