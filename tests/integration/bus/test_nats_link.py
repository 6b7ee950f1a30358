"""NATS: connecting, being refused, losing the connection in every way, and never sending anything twice."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import nats
import nkeys
import pytest

from bridge.bus.base import BusState, Message, StreamSpec
from bridge.bus.embedded import EmbeddedBroker, _free_port
from bridge.bus.nats import NatsFiles, keeper, link
from bridge.bus.nats.direct import DirectWire
from bridge.bus.nats.plain import PlainWire
from bridge.errors import BusRefused, BusUnavailable, PublishFailed, PublishWithdrawn
from tests.appending import append_all

TWO_USERS = """
authorization { users = [
  { user: worker, password: "s3cret" }
  { user: reader, password: "s3cret", permissions: {
      publish: { allow: ["allowed.>", "$JS.API.>", "_INBOX.>"] }, subscribe: { allow: ["allowed.>", "_INBOX.>"] } } }
] }
"""

OPENSSL = (
    "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 "
    "-subj /CN=localhost -addext subjectAltName=IP:127.0.0.1,DNS:localhost"
)


def with_user(url: str, user_info: str) -> str:
    return url.replace("nats://", f"nats://{user_info}@")


async def test_nats_py_is_built_as_we_know_it(nats_server: EmbeddedBroker, open_nats: Any) -> None:
    """Fails when a new nats-py makes the fast way fall back to the public one: then look at ``direct.py`` again."""
    bus = await open_nats(nats_server.url)
    assert isinstance(bus._keeper.link.wire, DirectWire)


async def test_the_public_way_keeps_the_promises_too(
    nats_server: EmbeddedBroker, open_nats: Any, eventually: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DirectWire, "fits", staticmethod(lambda _client: False))
    bus = await open_nats(nats_server.url)
    assert isinstance(bus._keeper.link.wire, PlainWire)
    got: list[Any] = []
    await bus.subscribe("plain.*", got.append)
    batch = [Message("plain.a", b"%d" % number, f"id{number}", "", "text/plain") for number in range(200)]
    assert await bus.publish_many(batch) == 1
    await bus.flush(10)
    assert bus.confirmed == 1
    assert [received.payload for received in got] == [message.payload for message in batch]
    assert got[0].headers["Nats-Msg-Id"] == "id0"
    consumer = await bus.consume("plainqueue", lambda it: it.finish(it.reply_to, it.payload * 2, "text/plain"))
    replies: list[tuple[bytes, str]] = []
    await bus.request("plainqueue", b"ab", "text/plain", lambda *reply: replies.append(reply))
    await eventually(lambda: replies == [(b"abab", "text/plain")])
    await consumer.drain(5)


async def test_a_wrong_password_is_a_refusal(start_nats: Any, open_nats: Any) -> None:
    server = await start_nats(TWO_USERS)
    for user_info in ("worker:wr0ng", "nobody:s3cret", "wr0ng"):
        with pytest.raises(BusRefused) as caught:
            await open_nats(with_user(server.url, user_info))
        assert "Authorization Violation" in str(caught.value)
        assert "wr0ng" not in str(caught.value)


async def test_a_refused_bus_goes_on_trying_slowly(
    start_nats: Any, open_nats: Any, eventually: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def slept(delay: float, *_: object) -> None:
        if delay >= 1:
            pauses.append(delay)
        await sleep(min(delay, 0.05))

    monkeypatch.setattr(keeper.asyncio, "sleep", slept)
    server = await start_nats(TWO_USERS)
    bus = await open_nats(with_user(server.url, "worker:s3cret2"), connect=False)
    states: list[BusState] = []
    bus.on_state = states.append
    bus.start()
    await eventually(lambda: len(pauses) >= 2)
    assert min(pauses) >= keeper.BACKOFF_REFUSED / 2
    assert "Authorization Violation" in states[0].reason
    assert "s3cret" not in states[0].reason
    await server.kill()
    server._config = TWO_USERS.replace("s3cret", "s3cret2")
    await server.start()
    await eventually(lambda: bus.connected)


@pytest.mark.parametrize(
    ("config", "user_info", "options"),
    [
        (TWO_USERS, "worker:s3cret", {}),
        (TWO_USERS, "", {"user": "worker", "password": "s3cret"}),
        ('authorization { token: "t0k en" }', "t0k%20en", {}),
        ('authorization { token: "t0k en" }', "", {"token": "t0k en"}),
        ('authorization { user: u, password: "p@:/," }', "u:p%40%3A%2F%2C", {}),
    ],
)
async def test_ways_to_log_in(start_nats: Any, open_nats: Any, config: str, user_info: str, options: Any) -> None:
    server = await start_nats(config)
    url = with_user(server.url, user_info) if user_info else server.url
    bus = await open_nats(url, **options)
    assert bus.connected


async def test_nkey(start_nats: Any, open_nats: Any, tmp_path: Path) -> None:
    pair = nkeys.from_seed(nkeys.encode_seed(bytes(range(32)), nkeys.PREFIX_BYTE_USER))
    seed = tmp_path / "worker.nk"
    seed.write_bytes(pair.seed + b"\n")
    server = await start_nats(f"authorization {{ users = [ {{ nkey: {pair.public_key.decode()} }} ] }}")
    assert (await open_nats(server.url, files=NatsFiles(nkey=str(seed)))).connected
    with pytest.raises(BusRefused):
        await open_nats(server.url)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    key, cert = folder / "key.pem", folder / "cert.pem"
    try:
        subprocess.run(
            [*OPENSSL.split(), "-keyout", str(key), "-out", str(cert)],
            check=True,
            capture_output=True,
        )
    except FileNotFoundError:
        pytest.skip("no openssl to make a certificate")
    return cert, key


async def test_tls(start_nats: Any, open_nats: Any, eventually: Any, certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    config = f'tls {{ cert_file: "{cert}", key_file: "{key}" }}\nauthorization {{ user: u, password: p }}'
    server = await start_nats(config)
    url = with_user(server.url, "u:p").replace("nats://", "tls://")
    bus = await open_nats(url, files=NatsFiles(tls_ca=str(cert)))
    got: list[Any] = []
    await bus.subscribe("a", got.append)
    await bus.publish_many([Message("a", b"x" * 200_000)])
    await eventually(lambda: got)
    assert bus.url.startswith("tls://u:***@")
    with pytest.raises(BusRefused, match="certificate"):
        await open_nats(url)


async def test_tls_never_falls_back_to_plain(start_nats: Any, open_nats: Any) -> None:
    """A server, or somebody between, that does not speak TLS gets no password and no traffic."""
    server = await start_nats("authorization { user: u, password: p }")
    with pytest.raises(BusRefused, match="does not speak TLS"):
        await open_nats(with_user(server.url, "u:p").replace("nats://", "tls://"))
    open_server = await start_nats()
    with pytest.raises(BusRefused, match="does not speak TLS"):
        await open_nats(open_server.url.replace("nats://", "tls://"))


async def test_several_servers(start_nats: Any, open_nats: Any, eventually: Any) -> None:
    one, two = await start_nats(), await start_nats()
    bus = await open_nats(f"{one.url},{two.url.removeprefix('nats://')},127.0.0.1:1")
    broken: list[int] = []
    bus.on_broken = lambda: broken.append(1)
    here = one if bus._keeper.link.server.address == one.url else two
    there = two if here is one else one
    await here.stop()
    await eventually(lambda: bus.connected and bus._keeper.link.server.address == there.url)
    assert broken == [1]


async def test_servers_of_the_cluster_are_learnt(start_nats: Any, open_nats: Any, eventually: Any) -> None:
    port = _free_port()
    one = await start_nats(f"jetstream: false\ncluster {{ name: c, listen: 127.0.0.1:{port} }}")
    routes = f"listen: 127.0.0.1:-1, routes: [ nats://127.0.0.1:{port} ]"
    two = await start_nats(f"jetstream: false\ncluster {{ name: c, {routes} }}")
    bus = await open_nats(two.url)
    await eventually(lambda: one.url in [server.address for server in bus._keeper.link.discovered()])
    await two.stop()
    await eventually(lambda: bus.connected and bus._keeper.link.server.address == one.url)


async def test_a_server_in_lame_duck_mode_is_left_with_nothing_in_doubt(
    start_nats: Any, open_nats: Any, eventually: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says that it ends before it closes connections: whoever waits for that loses what is on its way."""
    monkeypatch.setattr(keeper, "LEAVE_WITHIN", 0.1)
    port = _free_port()
    one = await start_nats(f"jetstream: false\ncluster {{ name: c, listen: 127.0.0.1:{port} }}")
    routes = f"listen: 127.0.0.1:-1, routes: [ nats://127.0.0.1:{port} ]"
    two = await start_nats(f"jetstream: false\ncluster {{ name: c, {routes} }}")
    listener = await open_nats(one.url)
    heard: list[int] = []
    await listener.subscribe("numbers", lambda received: heard.append(int(received.payload)))
    bus = await open_nats(two.url)
    await eventually(lambda: one.url in [server.address for server in bus._keeper.link.discovered()])
    doubts: list[int] = []
    published: list[int] = []
    bus.on_broken = lambda: doubts.append(published[-1] - bus.confirmed)
    os.kill(two.pid, signal.SIGUSR2)
    number = 0
    while number < 10_000 and (not doubts or number % 1_000):
        try:
            published.append(await bus.publish_many([Message("numbers", b"%d" % number)]))
            number += 1
        except BusUnavailable:
            pass
        await asyncio.sleep(0)
    await eventually(lambda: doubts)
    await eventually(lambda: bus.connected and bus._keeper.link.server.address == one.url)
    await bus.publish_many([Message("numbers", b"%d" % number)])
    await eventually(lambda: heard and heard[-1] == number)
    assert doubts == [0]
    assert heard == list(range(number + 1))
    assert two.pid, "it was left, it did not close"


async def test_faults_of_callbacks_do_not_end_the_trying(start_nats: Any, open_nats: Any, eventually: Any) -> None:
    reported: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: reported.append(context["message"]))
    server = await start_nats()
    bus = await open_nats(server.url)

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    bus.on_state = bus.on_broken = fail
    await server.kill()
    await eventually(lambda: not bus.connected)
    await server.start()
    await eventually(lambda: bus.connected)
    assert {"on_broken failed", "on_state failed"} <= set(reported)


# --- what the server may do to a connection ----------------------------------------------------------


@pytest.mark.parametrize("poison", [b"PUB " + b"x" * 5000 + b" 0\r\n\r\n", b"NONSENSE\r\n", b"PUB a 99999999\r\n"])
async def test_an_err_that_ends_nats_py_for_good_is_only_a_reconnect(
    nats_server: EmbeddedBroker, open_nats: Any, eventually: Any, poison: bytes
) -> None:
    """A subject over 4 KB, a protocol error, a payload over the limit: nats-py closes whatever its settings."""
    bus = await open_nats(nats_server.url)
    states: list[BusState] = []
    broken: list[int] = []
    got: list[bytes] = []
    bus.on_state = states.append
    bus.on_broken = lambda: broken.append(bus.confirmed)
    await bus.subscribe("after.poison", lambda received: got.append(received.payload))
    bus._keeper.link.wire._client._transport.write(poison)
    await eventually(lambda: [state.connected for state in states] == [False, True])
    assert states[0].reason
    assert broken == [0]
    await bus.publish_many([Message("after.poison", b"x")])
    await eventually(lambda: got == [b"x"])


async def test_we_do_not_write_what_would_poison(nats_server: EmbeddedBroker, open_nats: Any) -> None:
    bus = await open_nats(nats_server.url)
    broken: list[int] = []
    bus.on_broken = lambda: broken.append(1)
    for subject in ("x" * 5000, "a b", "", "a\r\nPUB b 0\r\n"):
        with pytest.raises(ValueError, match="not a NATS subject"):
            await bus.publish_many([Message(subject, b"")])
        with pytest.raises(ValueError, match="not a NATS subject"):
            bus.send(subject, b"", "")
    await bus.flush(5)
    assert not broken


async def test_permissions(start_nats: Any, open_nats: Any, eventually: Any) -> None:
    server = await start_nats(TWO_USERS)
    bus = await open_nats(with_user(server.url, "reader:s3cret"))
    states: list[BusState] = []
    denied: list[tuple[str, int]] = []
    bus.on_state = states.append
    bus.on_denied = lambda topic: denied.append((topic, bus.confirmed))
    with pytest.raises(BusRefused, match=r"denied\.topic"):
        await bus.subscribe("denied.topic", lambda _received: None)
    with pytest.raises(BusRefused, match=r"denied\.queue"):
        await bus.consume("denied.queue", lambda _delivery: None)
    await bus.consume("allowed.queue", lambda _delivery: None)  # although $SRV is denied
    for _ in range(3):
        await bus.publish_many([Message("denied.topic", b"x"), Message("allowed.topic", b"x")])
    await bus.flush(5)
    assert bus.connected
    assert [state.connected for state in states] == [True]
    assert "denied.topic" in states[0].reason
    assert [topic for topic, _ in denied] == ["denied.topic"] * 3, "each message is told"
    assert all(confirmed <= index for index, (_, confirmed) in enumerate(denied)), "before its batch is confirmed"


async def test_a_refused_listener_does_not_hold_up_the_others(start_nats: Any, open_nats: Any, eventually: Any) -> None:
    server = await start_nats(TWO_USERS)
    bus = await open_nats(with_user(server.url, "reader:s3cret"), connect=False)
    states: list[BusState] = []
    got: list[Any] = []
    bus.on_state = states.append
    await bus.subscribe("denied.topic", got.append)
    await bus.subscribe("allowed.topic", got.append)
    bus.start()
    await eventually(lambda: bus.connected)
    assert "denied.topic" in states[-1].reason
    await bus.publish_many([Message("allowed.topic", b"x")])
    await eventually(lambda: got)


async def test_what_a_reload_takes_away_is_told_and_taken_up_again_when_it_is_given_back(
    start_nats: Any, open_nats: Any, eventually: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "BACKOFF_REFUSED", 0.1)
    denied = TWO_USERS.replace('subscribe: { allow: ["allowed.>", ', "subscribe: { allow: [")
    server = await start_nats(TWO_USERS)
    bus = await open_nats(with_user(server.url, "reader:s3cret"))
    states: list[BusState] = []
    bus.on_state = states.append
    await bus.consume("allowed.queue", lambda delivery: delivery.finish(delivery.reply_to, b"done", ""))
    other = await nats.connect(with_user(server.url, "worker:s3cret"))

    async def answers() -> bool:
        with contextlib.suppress(nats.errors.NoRespondersError):
            return (await other.request("allowed.queue", b"x", timeout=5)).data == b"done"
        return False

    assert await answers()
    for _ in range(2):
        server.reload(denied)
        await eventually(lambda: "allowed.queue" in bus.state.reason)
        assert not await answers()
        server.reload(TWO_USERS)
        await eventually(lambda: bus.state == BusState(True, ""))
        assert await answers()
    assert all(state.connected for state in states), "the link to the server held"
    await other.close()


# --- doubt ---------------------------------------------------------------------------------------------


async def test_a_frozen_server_is_noticed_and_nothing_is_sent_twice(
    start_nats: Any, open_nats: Any, freeze: Any, eventually: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "PING_INTERVAL", 0.3)
    server, watched = await start_nats(), []
    publisher = await open_nats(server.url, window=64 << 20)
    broken: list[int] = []
    publisher.on_broken = lambda: broken.append(publisher.confirmed)
    # The listener minds no silence, so it hears whatever reaches the server, and when.
    monkeypatch.setattr(link, "PING_INTERVAL", 60.0)
    listener = await open_nats(server.url)
    monkeypatch.setattr(link, "PING_INTERVAL", 0.3)
    await listener.subscribe("doubt", lambda received: watched.append(int(received.payload)))
    await publisher.publish_many([Message("doubt", b"0")])
    await publisher.flush(5)
    await freeze(server)
    for value in range(1, 100):
        await publisher.publish_many([Message("doubt", b"%d" % value)])
    # More than the kernel takes, so that some of it is still in our own buffers when the link is given up.
    large = [Message("other", b"x" * 900_000) for _ in range(8)]
    await publisher.publish_many(large)
    await publisher.publish_many([Message("doubt", b"100")])
    await eventually(lambda: broken)
    assert broken == [1]
    assert not publisher.connected
    server.resume()
    await eventually(lambda: publisher.connected)
    await publisher.publish_many([Message("doubt", b"101")])
    await eventually(lambda: 101 in watched)
    await asyncio.sleep(0.2)
    assert watched == sorted(set(watched))
    assert 100 not in watched, "what was still in our buffers must not leave once it is counted as in doubt"


async def test_publishing_waits_while_too_much_is_unconfirmed(start_nats: Any, open_nats: Any, freeze: Any) -> None:
    server = await start_nats()
    bus = await open_nats(server.url, window=100_000)
    await freeze(server)
    batch = [Message("a", b"x" * 1000) for _ in range(60)]
    await bus.publish_many(batch)
    await bus.publish_many(batch)
    waiting = asyncio.create_task(bus.publish_many(batch))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    server.resume()
    assert await asyncio.wait_for(waiting, 5) == 3
    await bus.flush(5)
    assert bus.confirmed == 3


async def test_who_lost_the_right_while_waiting_writes_nothing(start_nats: Any, open_nats: Any, freeze: Any) -> None:
    server = await start_nats()
    bus, listener = await open_nats(server.url, window=100_000), await open_nats(server.url)
    heard: list[bytes] = []
    await listener.subscribe("a", lambda received: heard.append(received.payload[:1]))
    await listener.flush(5)
    await freeze(server)
    for _ in range(2):
        await bus.publish_many([Message("a", b"x" * 1000) for _ in range(60)])
    right = True
    waiting = asyncio.create_task(bus.publish_many([Message("a", b"late")], lambda: right))
    await asyncio.sleep(0)
    right = False
    server.resume()
    with pytest.raises(PublishWithdrawn):
        await asyncio.wait_for(waiting, 5)
    assert await bus.publish_many([Message("a", b"end")], lambda: True) == 3, "a number that was not used"
    async with asyncio.timeout(5):
        while heard[-1:] != [b"e"]:  # noqa: ASYNC110 - what arrives is the condition
            await asyncio.sleep(0.01)
    assert b"l" not in heard


async def test_an_append_stops_between_its_windows_when_the_right_ends(start_nats: Any, open_nats: Any) -> None:
    server = await start_nats()
    bus = await open_nats(server.url)
    stream = StreamSpec("S", "s", ("a",))
    await bus.ensure_stream(stream)
    with pytest.raises(PublishWithdrawn):
        await append_all(bus, stream, [Message("a", b"x")], lambda: False)
    answers = iter([True])
    with pytest.raises(PublishFailed) as failed:
        await append_all(
            bus, stream, [Message("a", b"x", id=str(n)) for n in range(5000)], lambda: next(answers, False)
        )
    assert failed.value.confirmed + failed.value.uncertain == 1024


async def test_waiting_ends_with_the_connection(start_nats: Any, open_nats: Any, freeze: Any) -> None:
    server = await start_nats()
    bus = await open_nats(server.url, window=10)
    await freeze(server)
    await bus.publish_many([Message("a", b"x" * 1000)])
    publishing = asyncio.create_task(bus.publish_many([Message("a", b"x")]))
    flushing = asyncio.create_task(bus.flush(30))
    await asyncio.sleep(0.05)
    await server.kill()
    for task in (publishing, flushing):
        with pytest.raises(BusUnavailable):
            await asyncio.wait_for(task, 5)


async def test_a_caller_who_gives_up_does_not_disturb_the_others(nats_server: EmbeddedBroker, open_nats: Any) -> None:
    """Confirmations of one loop turn share a PING."""
    bus = await open_nats(nats_server.url)
    flushes = [asyncio.create_task(bus.flush(5)) for _ in range(3)]
    await asyncio.sleep(0)
    flushes[0].cancel()
    await asyncio.gather(*flushes[1:])


async def test_a_flush_that_times_out_leaves_the_connection_alone(start_nats: Any, open_nats: Any, freeze: Any) -> None:
    server = await start_nats()
    bus = await open_nats(server.url)
    await freeze(server)
    with pytest.raises(BusUnavailable):
        await bus.flush(0.05)
    server.resume()
    await bus.flush(5)
    assert bus.connected


async def test_connect_waits_for_a_bus_that_was_started(start_nats: Any, open_nats: Any) -> None:
    server = await start_nats()
    await server.kill()
    bus = await open_nats(server.url, connect=False)
    bus.start()
    connecting = asyncio.create_task(bus.connect(20))
    await asyncio.sleep(0.05)
    await server.start()
    await connecting
    assert bus.connected
