"""Any cutting of the stream gives the same messages as the driver's own parser would."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.bus.nats.reading import FastParser, Incoming

subjects = st.sampled_from(["a", "fs.events.X", "_INBOX.x.1"])
payloads = st.one_of(
    st.binary(max_size=30), st.sampled_from([b"", b"\r\n", b"MSG a 1 1\r\nx\r\n", b"PONG\r\n", b"x" * 5000])
)


@st.composite
def frames(draw: st.DrawFn) -> tuple[bytes, Any]:
    kind = draw(st.sampled_from(["msg", "hmsg", "pong", "ping", "info", "ok", "unknown"]))
    subject, payload, reply = draw(subjects), draw(payloads), draw(st.sampled_from(["", "_INBOX.r"]))
    words = f"{subject} 7 {reply} " if reply else f"{subject} 7 "
    if kind == "msg":
        return f"MSG {words}{len(payload)}\r\n".encode() + payload + b"\r\n", (subject, reply, payload, None)
    if kind == "hmsg":
        block = b"NATS/1.0\r\nContent-Type: t\r\n\r\n"
        head = f"HMSG {words}{len(block)} {len(block) + len(payload)}\r\n".encode()
        return head + block + payload + b"\r\n", (subject, reply, payload, {"Content-Type": "t"})
    if kind == "unknown":
        return b"MSG z 99 1\r\nx\r\n", None
    plain = {"pong": b"PONG\r\n", "ping": b"PING\r\n", "info": b'INFO {"a":1}\r\n', "ok": b"+OK\r\n"}
    return plain[kind], kind if kind in ("pong", "ping", "info") else None


class FakeClient:
    """What the parser calls of its client."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.parser: Any = None

    async def _process_pong(self) -> None:
        self.seen.append("pong")

    async def _process_ping(self) -> None:
        self.seen.append("ping")

    async def _process_info(self, _info: object) -> None:
        self.seen.append("info")

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, payload: bytes, header: bytes) -> None:
        from bridge.bus.nats.reading import parse_headers

        if sid == 7:
            headers = parse_headers(header) if header else None
            self.seen.append((subject.decode(), reply.decode(), payload, headers))


@given(st.lists(frames(), max_size=12), st.lists(st.integers(1, 60), max_size=30))
@settings(max_examples=150, deadline=None)
def test_any_cutting(items: list[tuple[bytes, Any]], cuts: list[int]) -> None:
    stream = b"".join(item[0] for item in items)

    async def feed() -> list[Any]:
        client = FakeClient()
        parser = FastParser(client)

        def arrived(message: Incoming) -> None:
            client.seen.append((message.subject, message.reply, message.data, message.headers))

        parser.handlers[b"7"] = arrived
        position = 0
        for cut in cuts:
            if position < len(stream):
                await parser.parse(stream[position : position + cut])
                position += cut
        if position < len(stream):
            await parser.parse(stream[position:])
        assert not parser.buf
        return client.seen

    assert asyncio.run(feed()) == [item[1] for item in items if item[1] is not None]


async def test_a_failing_handler_does_not_end_the_reader() -> None:
    client = FakeClient()
    parser = FastParser(client)
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: reported.append(context))

    def fail(_message: Incoming) -> None:
        raise ZeroDivisionError

    parser.handlers[b"7"] = fail
    await parser.parse(b"MSG a 7 1\r\nx\r\nPONG\r\n")
    assert client.seen == ["pong"]
    assert isinstance(reported[0]["exception"], ZeroDivisionError)


async def test_a_large_message_in_pieces_is_not_copied_over_and_over() -> None:
    client = FakeClient()
    parser = FastParser(client)
    payload = b"x" * (1 << 20)
    stream = b"MSG a 7 %d\r\n" % len(payload) + payload + b"\r\nPONG\r\n"
    for start in range(0, len(stream), 1000):
        await parser.parse(stream[start : start + 1000])
    assert client.seen == [("a", "", payload, None), "pong"]
