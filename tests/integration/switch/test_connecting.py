"""One connection: every kind of address, every way to fail, all within its time."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from bridge.errors import AccessDenied, AuthenticationFailed, ConnectTimeout, EslError, NotConnected, ProtocolError
from bridge.esl import commands, protocol
from bridge.esl.url import EslUrl
from bridge.simulator import SimulatedSwitch, User
from bridge.switch.connection import Connection
from bridge.switch.failures import failure_class

Scripted = Callable[..., Awaitable[str]]

DATA = Path(__file__).parents[2] / "data"


class Owner:
    """A ConnectionOwner that keeps what it is told."""

    def __init__(self) -> None:
        self.occurrences: list[protocol.Occurrence] = []
        self.ends: list[protocol.Closed] = []
        self.answered = asyncio.Event()

    def occurred(self, connection: Connection, occurrences: list[protocol.Occurrence]) -> None:
        self.occurrences += occurrences
        self.answered.set()

    def closed(self, connection: Connection, closed: protocol.Closed) -> None:
        self.ends.append(closed)
        self.answered.set()


async def ask(url: str, tls: ssl.SSLContext | None = None) -> str:
    """Connect, run ``api echo hello``, close."""
    owner = Owner()
    connection = await Connection.open(EslUrl.parse(url), owner, timeout=5, tls=tls)
    connection.send(commands.api("echo hello"), "token")
    await owner.answered.wait()
    connection.close()
    await connection.wait_closed()
    assert [end.reason for end in owner.ends] == ["local"]
    (reply,) = [one for one in owner.occurrences if isinstance(one, protocol.ReplyReceived)]
    assert reply.pending.token == "token"
    return reply.reply.text


async def fails(url: str, timeout: float = 5.0) -> EslError:
    with pytest.raises(EslError) as caught:
        await Connection.open(EslUrl.parse(url), Owner(), timeout=timeout)
    assert "ClueCon" not in str(caught.value)
    return caught.value


# --- addresses ---


async def test_ipv4(switch: SimulatedSwitch) -> None:
    assert await ask(switch.url) == "hello"


async def test_a_name_is_resolved(switch: SimulatedSwitch) -> None:
    assert await ask(f"fs://:ClueCon@localhost:{switch.port}") == "hello"


async def test_an_address_that_drops_packets_does_not_use_up_the_time_of_the_next(
    switch: SimulatedSwitch, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    with contextlib.ExitStack() as stack:
        # A listener whose queue is full: further SYNs are dropped.
        silent = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(2):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(silent.getsockname())

        async def resolve(host: str, port: int, **_: object) -> list[object]:
            addresses = (silent.getsockname(), ("127.0.0.1", port)) if host == "switch.example.org" else ((host, port),)
            return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", address) for address in addresses]

        monkeypatch.setattr(loop, "getaddrinfo", resolve)
        assert await ask(f"fs://:ClueCon@switch.example.org:{switch.port}") == "hello"
        # Where all are like that the time is kept, and nothing stays open.
        monkeypatch.setattr(switch, "port", silent.getsockname()[1])
        error = await fails(f"fs://:ClueCon@switch.example.org:{switch.port}", timeout=0.4)
        assert isinstance(error, ConnectTimeout)


async def test_of_several_addresses_that_fail_the_last_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    free = socket.create_server(("127.0.0.1", 0))
    port = free.getsockname()[1]
    free.close()

    async def resolve(host: str, port: int, **_: object) -> list[object]:
        unknown = [(999, socket.SOCK_STREAM, 0, "", ())] if host == "switch.example.org" else []
        return [*unknown, (socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", port))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve)
    assert failure_class(await fails(f"fs://:ClueCon@switch.example.org:{port}")) == "refused"


async def test_ipv6() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    async with SimulatedSwitch(host="::1") as switch:
        assert "[::1]" in switch.url
        assert await ask(switch.url) == "hello"


async def test_unix_socket() -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with SimulatedSwitch(path=f"{folder}/esl.sock") as switch:
            assert switch.url.startswith("fs+unix://")
            assert await ask(switch.url) == "hello"
        error = await fails(switch.url)
        assert failure_class(error) == "refused"


def server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(DATA / "tls_cert.pem", DATA / "tls_key.pem")
    return context


async def test_tls_with_its_own_authority() -> None:
    async with SimulatedSwitch(tls=server_context()) as switch:
        trusting = ssl.create_default_context(cafile=str(DATA / "tls_cert.pem"))
        assert await ask(f"fs+tls://:ClueCon@localhost:{switch.port}", trusting) == "hello"


async def test_tls_of_a_stranger_is_refused() -> None:
    async with SimulatedSwitch(tls=server_context()) as switch:
        error = await fails(f"fs+tls://:ClueCon@localhost:{switch.port}")
        assert failure_class(error) == "tls"
        assert "self-signed" in str(error)


@pytest.mark.parametrize("password", ["p@ss:w/rd#?%", "geheim ", "Zoë-€"])
async def test_passwords_with_special_characters(password: str) -> None:
    async with SimulatedSwitch(password=password) as switch:
        assert await ask(switch.url) == "hello"


async def test_userauth() -> None:
    async with SimulatedSwitch(users={"bridge@example.org": User("s:ecret")}) as switch:
        assert await ask(f"fs://bridge@example.org:s%3Aecret@127.0.0.1:{switch.port}") == "hello"
        assert switch.received[0] == "userauth ***"


async def test_several_nodes_on_one_host() -> None:
    async with SimulatedSwitch(password="one") as one, SimulatedSwitch(password="two") as two:
        assert await ask(one.url) == await ask(two.url) == "hello"


async def test_the_kernel_watches_the_peer(switch: SimulatedSwitch) -> None:
    connection = await Connection.open(EslUrl.parse(switch.url), Owner(), timeout=5)
    assert connection._transport is not None
    sock = connection._transport.get_extra_info("socket")
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 20_000
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 10
    connection.close()
    await connection.wait_closed()


# --- failures ---


async def test_nobody_listens(switch: SimulatedSwitch) -> None:
    url = switch.url
    await switch.stop()
    error = await fails(url)
    assert isinstance(error, NotConnected)
    assert failure_class(error) == "refused"


async def test_an_unknown_host() -> None:
    assert failure_class(await fails("fs://:ClueCon@no-such-host.invalid", 15)) in ("unreachable", "timeout")


async def test_a_wrong_password(switch: SimulatedSwitch) -> None:
    error = await fails(f"fs://:geheim@127.0.0.1:{switch.port}")
    assert isinstance(error, AuthenticationFailed)
    assert "geheim" not in str(error)


async def test_the_acl() -> None:
    async with SimulatedSwitch(deny=True) as switch:
        assert isinstance(await fails(switch.url), AccessDenied)


async def test_no_greeting(scripted: Scripted) -> None:
    error = await fails(await scripted(b""), 0.2)
    assert isinstance(error, ConnectTimeout)
    assert "no greeting" in str(error)


async def test_the_timeout_covers_authentication(scripted: Scripted) -> None:
    assert "auth is unanswered" in str(await fails(await scripted(b"Content-Type: auth/request\n\n"), 0.2))


async def test_another_service_answers(scripted: Scripted) -> None:
    assert isinstance(await fails(await scripted(b"SSH-2.0-OpenSSH_9.9\r\n\r\n")), ProtocolError)


async def test_commands_of_one_turn_leave_in_one_write(switch: SimulatedSwitch) -> None:
    owner = Owner()
    connection = await Connection.open(EslUrl.parse(switch.url), owner, timeout=5)
    writes: list[bytes] = []
    transport = connection._transport
    assert transport is not None
    written: list[str] = []

    class Spy:
        def __getattr__(self, name: str) -> object:
            return getattr(transport, name)

        def write(self, data: bytes) -> None:
            writes.append(data)
            transport.write(data)

    connection._transport = Spy()  # type: ignore[assignment]
    for number in range(10):
        connection.send(commands.api(f"echo {number}"), number, lambda: written.append("written"))
    assert written == []
    await owner.answered.wait()
    assert len(writes) == 1
    assert writes[0].count(b"api echo") == len(written) == 10
    connection.abort()
    await connection.wait_closed()


async def test_the_end_is_told_once_with_all_that_is_lost(switch: SimulatedSwitch) -> None:
    switch.faults.add("slow_api:60s")
    owner = Owner()
    connection = await Connection.open(EslUrl.parse(switch.url), owner, timeout=5)
    first = connection.send(commands.api("status"), "sent")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert first.sent
    connection.send(commands.api("status"), "unsent")
    connection.abort()
    connection.abort()
    (end,) = owner.ends
    assert [(lost.token, lost.sent) for lost in end.lost] == [("sent", True), ("unsent", False)]
    assert connection.closed
    with pytest.raises(NotConnected):
        connection.send(commands.api("status"), "never")
    await connection.wait_closed()
    assert len(owner.ends) == 1
