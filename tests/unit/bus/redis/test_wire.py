"""One connection: greeting, bursts, backpressure, its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hiredis
import pytest

from bridge.bus.redis.address import Host
from bridge.bus.redis.wire import ReplyError, Wire, WireOptions, command, open_wire, tls_context
from bridge.errors import BusRefused, BusUnavailable, ConfigError


def test_commands_are_what_hiredis_packs() -> None:
    for args in ((b"PING",), (b"XADD", b"k", b"*", b"data", b"\r\n\x00" * 5000), (b"SET", b"", b"")):
        assert command(*args) == hiredis.pack_command(args)


@pytest.mark.parametrize("size", [1, 2, 7, 10_000])
def test_replies_come_whole_in_any_chunking(size: int) -> None:
    wire = Wire(Host("h", 1))
    got: list[Any] = []
    wire.on_replies = got.extend
    data = b"+OK\r\n:12\r\n$-1\r\n$5\r\na\r\nbc\r\n*2\r\n:0\r\n*1\r\n$0\r\n\r\n-NOPERM no\r\n*-1\r\n"
    for start in range(0, len(data), size):
        wire.data_received(data[start : start + size])
    assert got[:5] == [b"OK", 12, None, b"a\r\nbc", [0, [b""]]]
    assert isinstance(got[5], ReplyError)
    assert got[5].code == "NOPERM"
    assert got[6:] == [None]


def test_garbage_ends_the_connection() -> None:
    wire = Wire(Host("h", 1))
    lost: list[Exception] = []
    wire.on_lost = lost.append
    wire.data_received(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    assert len(lost) == 1
    assert isinstance(lost[0], BusUnavailable)


async def test_the_greeting_is_one_write_and_gives_the_connection_its_name(server: Any) -> None:
    said: list[list[bytes]] = []
    server.greet = lambda command: (said.append(command), b":9\r\n" if command[1:] == [b"ID"] else b"+OK\r\n")[1]
    wire = await open_wire(server.host, WireOptions(username="u", password="pw", db=3, name="a b\x00ä"))
    assert said == [
        [b"AUTH", b"u", b"pw"], [b"SELECT", b"3"], [b"CLIENT", b"SETNAME", b"a-b--"], [b"CLIENT", b"ID"], [b"PING"],
    ]  # fmt: skip
    assert wire.client_id == 9
    assert wire.is_open
    wire.abort(BusUnavailable("done"))


@pytest.mark.parametrize(
    ("answers", "error"),
    [
        ({b"AUTH": b"-WRONGPASS invalid\r\n"}, BusRefused),
        ({b"AUTH": b"-ERR AUTH <password> called without any password configured\r\n"}, BusRefused),
        ({b"AUTH": b"-LOADING dataset\r\n"}, BusUnavailable),
        ({b"SELECT": b"-ERR DB index is out of range\r\n"}, BusRefused),
        ({b"PING": b"-NOAUTH Authentication required.\r\n"}, BusRefused),
        ({b"PING": b"-LOADING dataset\r\n"}, BusUnavailable),
        ({b"PING": b"-MASTERDOWN\r\n"}, BusUnavailable),
        ({b"AUTH": b""}, BusUnavailable),
    ],
)
async def test_refusals_are_told_from_bad_moments(server: Any, answers: dict[bytes, bytes], error: type) -> None:
    server.greet = lambda command: answers.get(command[0], b"+OK\r\n")
    with pytest.raises(error) as raised:
        await open_wire(server.host, WireOptions(password="hidden", db=1))
    assert "hidden" not in str(raised.value)


async def test_a_server_that_turns_us_away_says_why(server: Any) -> None:
    def deny(command: list[bytes]) -> bytes | None:
        server.say(b"-DENIED Redis is running in protected mode\r\n")
        return b""

    server.greet = deny
    with pytest.raises(BusRefused, match="protected mode"):
        await open_wire(server.host, WireOptions())


async def test_a_user_who_may_neither_ping_nor_name_himself_gets_in(server: Any) -> None:
    server.greet = lambda command: b"-NOPERM no\r\n"
    wire = await open_wire(server.host, WireOptions())
    assert wire.client_id == 0
    wire.abort(BusUnavailable("done"))


async def test_a_server_that_says_nothing_is_given_up(server: Any) -> None:
    server.greet = lambda command: None
    with pytest.raises(BusUnavailable, match=r"0\.05 s"):
        await open_wire(server.host, WireOptions(connect_timeout=0.05))


async def test_nobody_listens() -> None:
    with pytest.raises(BusUnavailable):
        await open_wire(Host("127.0.0.1", 1), WireOptions())
    with pytest.raises(BusUnavailable):
        await open_wire(Host(path="/nowhere/v.sock"), WireOptions())


async def test_a_full_socket_makes_the_writer_wait(server: Any, eventually: Callable[..., Any]) -> None:
    wire = await open_wire(server.host, WireOptions())
    wire.pause_writing()
    waiting = asyncio.create_task(wire.writable())
    await asyncio.sleep(0)
    assert not waiting.done()
    wire.resume_writing()
    await waiting
    wire.pause_writing()
    waiting = asyncio.create_task(wire.writable())
    await asyncio.sleep(0)
    server.cut()
    with pytest.raises(BusUnavailable):
        await waiting
    assert not wire.is_open


def test_certificates_that_cannot_be_used(tmp_path: Path) -> None:
    bad = tmp_path / "bad.pem"
    bad.write_text("nonsense")
    for options, key in (
        ({"ca": str(tmp_path / "absent.pem")}, "bus.tls_ca_file"),
        ({"ca": str(bad)}, "bus.tls_ca_file"),
        ({"cert": str(bad)}, "bus.tls_cert_file"),
    ):
        with pytest.raises(ConfigError) as fault:
            tls_context(**options)
        assert fault.value.problems[0][0] == key
