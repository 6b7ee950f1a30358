"""Connections that come and go: absent servers, silent ones, refusals, users with few rights, TLS, sockets."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio

from bridge.bus.base import BusState, Delivery, Message, Received
from bridge.bus.embedded import EmbeddedBroker
from bridge.bus.redis import RedisBus
from bridge.errors import BusRefused, BusUnavailable

pytestmark = pytest.mark.broker

Open = Callable[..., Any]
Eventually = Callable[..., Any]
DATA = Path(__file__).parents[2] / "data"


async def test_everything_comes_back_with_the_server(
    open_redis: Open, start_valkey: Any, queue: str, eventually: Eventually
) -> None:
    server = await start_valkey()
    bus: RedisBus = await open_redis(server.url)
    states: list[BusState] = []
    bus.on_state = states.append
    heard: list[Received] = []
    await bus.subscribe(f"{queue}.events.*", heard.append)
    await bus.consume(queue, lambda delivery: delivery.finish(delivery.payload.decode(), b"done", ""))
    for _ in range(2):
        await server.kill()
        await eventually(lambda: not bus.connected)
        with pytest.raises(BusUnavailable):
            await bus.publish_many([Message(f"{queue}.events.X", b"lost")])
        await server.start()
        await eventually(lambda: bus.connected)
        before = len(heard)
        while len(heard) == before:  # the subscription has a connection of its own, which may come later
            await bus.publish_many([Message(f"{queue}.events.X", b"here")])
            await bus.flush(5)
            await asyncio.sleep(0.01)
        address = bus.new_reply_address()
        got: list[bytes] = []
        await bus.request(
            queue, address.encode(), "", lambda payload, kind, got=got: got.append(payload), reply_to=address
        )
        await eventually(lambda got=got: got == [b"done"])
    assert [state.connected for state in states if state.connected] == [True, True]
    assert all(state.reason for state in states if not state.connected)
    assert {received.payload for received in heard} == {b"here"}


async def test_connections_that_are_killed_are_told_with_the_reason(
    open_redis: Open, start_valkey: Any, eventually: Eventually
) -> None:
    """Whichever of them ends first: one line in the log, that says why."""
    server = await start_valkey()
    bus: RedisBus = await open_redis(server.url)
    async with redis.asyncio.Redis(port=server.port) as admin:
        for _ in range(4):
            await eventually(lambda: bus._ready())
            states: list[BusState] = []
            bus.on_state = states.append
            await admin.client_kill_filter(_type="normal", skipme=True)
            await eventually(lambda states=states: any(one.connected for one in states))
            assert all("connecting" not in one.reason for one in states), states


async def test_a_bus_that_starts_before_its_server(
    open_redis: Open, start_valkey: Any, queue: str, eventually: Eventually
) -> None:
    server = await start_valkey()
    await server.kill()
    bus: RedisBus = await open_redis(server.url, connect=False)
    with pytest.raises(BusUnavailable):
        await bus.connect(5)
    bus.start()
    heard: list[Received] = []
    taken: list[Delivery] = []
    await bus.subscribe(f"{queue}.*", heard.append)
    await bus.consume(queue, taken.append)
    bus.send(f"esl.reply.{queue}", b"waits", "")
    await server.start()
    await eventually(lambda: bus.connected)
    async with redis.asyncio.from_url(server.url) as client:
        assert await client.blpop([f"esl.reply.{queue}"], timeout=10)
        await client.xadd(queue, {"data": b"x"})
        await eventually(lambda: taken)
        while not heard:
            await client.publish(f"{queue}.x", b"1")
            await asyncio.sleep(0.01)


async def test_a_silent_server_is_noticed_on_every_connection(
    open_redis: Open, start_valkey: Any, queue: str, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge.bus.redis.topics._GRACE", 0.3)
    server = await start_valkey()
    bus: RedisBus = await open_redis(server.url, pulse=0.1, connect_timeout=0.5, silence=0.3)
    heard: list[Received] = []
    await bus.subscribe(f"{queue}.*", heard.append)
    reasons: list[str] = []
    bus.on_state = lambda state: reasons.append(state.reason)
    server.pause()
    await eventually(lambda: not bus.connected and not bus._topics_link.connected)
    assert any("silent" in reason for reason in reasons)
    server.resume()
    await eventually(lambda: bus.connected and bus._topics_link.connected)
    while not heard:
        await bus.publish_many([Message(f"{queue}.x", b"1")])
        await asyncio.sleep(0.01)


async def test_wrong_credentials_are_refused_and_not_hammered(
    open_redis: Open, start_valkey: Any, make_proxy: Any, eventually: Eventually
) -> None:
    server = await start_valkey("requirepass right")
    proxy = await make_proxy(server.port)
    for url in (proxy.url, proxy.url.replace("://", "://:wrong@"), proxy.url.replace("://", "://nobody:wrong@")):
        bus: RedisBus = await open_redis(url, connect=False)
        with pytest.raises(BusRefused) as refusal:
            await bus.connect(5)
        assert "wrong" not in str(refusal.value)
        assert "***" in bus.url or "@" not in bus.url
    before = proxy.accepted
    states: list[BusState] = []
    bus.on_state = states.append
    bus.start()
    await eventually(lambda: any("WRONGPASS" in state.reason for state in states))
    await asyncio.sleep(1.0)
    assert proxy.accepted - before <= 2  # one try of each of the two connections
    right: RedisBus = await open_redis(proxy.url, password="right")
    assert right.connected


async def test_a_database_that_does_not_exist_is_refused(open_redis: Open, valkey_server: EmbeddedBroker) -> None:
    bus: RedisBus = await open_redis(valkey_server.url + "/99", connect=False)
    with pytest.raises(BusRefused, match="DB index"):
        await bus.connect(5)


async def test_databases_are_chosen(
    open_redis: Open, valkey_server: EmbeddedBroker, queue: str, eventually: Eventually
) -> None:
    bus: RedisBus = await open_redis(valkey_server.url + "/3")
    bus.send(f"esl.reply.{queue}", b"x", "")
    async with redis.asyncio.from_url(valkey_server.url + "/3") as client:
        assert await client.blpop([f"esl.reply.{queue}"], timeout=10)


async def test_a_user_with_few_rights_can_do_the_work(
    open_redis: Open, valkey_server: EmbeddedBroker, client: redis.asyncio.Redis, queue: str, eventually: Eventually
) -> None:
    user = queue.replace(".", "")
    rights = (
        "+multi +exec +publish +psubscribe +punsubscribe +xadd +xlen +xgroup +xreadgroup +xack +xdel +xpending +xclaim "
        "+rpush +pexpire +blpop"
    )
    await client.execute_command(
        "ACL", "SETUSER", user, "on", ">p@ss/w:rd", f"~{queue}*", "~esl.*", f"&{queue}.e.*", *rights.split()
    )
    url = valkey_server.url.replace("redis://", f"redis://{user}:p%40ss%2Fw%3Ard@")
    bus: RedisBus = await open_redis(url)
    consumer = await bus.consume(queue, lambda delivery: delivery.finish(delivery.payload.decode(), b"done", ""))
    address = bus.new_reply_address()
    got: list[bytes] = []
    await bus.request(queue, address.encode(), "", lambda payload, kind: got.append(payload), reply_to=address)
    await eventually(lambda: got == [b"done"])
    heard: list[Received] = []
    await bus.subscribe(f"{queue}.e.*", heard.append)
    await bus.publish_many([Message(f"{queue}.e.x", b"1")])
    await eventually(lambda: heard)
    await consumer.drain(0.1)  # without the right to CLIENT UNBLOCK the read is waited for, then cut
    with pytest.raises(BusRefused, match=r"forbidden\.\*"):
        await bus.subscribe("forbidden.*", heard.append)
    with pytest.raises(BusRefused, match=r"forbidden\.queue"):
        await bus.consume("forbidden.queue", lambda delivery: None)
    await bus.close()
    await client.execute_command("ACL", "DELUSER", user)


async def test_a_right_to_listen_that_was_taken_away_is_used_again_when_it_is_back(
    open_redis: Open, valkey_server: EmbeddedBroker, client: redis.asyncio.Redis, queue: str, eventually: Eventually,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Redis breaks the connection off, and refuses on the next: nothing was heard until that one broke too."""
    monkeypatch.setattr("bridge.bus.redis.topics._REFUSED_AGAIN", 0.1)
    user = queue.replace(".", "")
    await client.execute_command("ACL", "SETUSER", user, "on", ">pw", "~*", "+@all", "allchannels")
    bus: RedisBus = await open_redis(valkey_server.url.replace("redis://", f"redis://{user}:pw@"), pulse=0.1)
    problems: list[str] = []
    bus.on_problem = problems.append
    heard: list[Received] = []
    for topic in (f"{queue}.a", f"{queue}.b.*"):
        await bus.subscribe(topic, heard.append)
    await client.execute_command("ACL", "SETUSER", user, "resetchannels")
    await eventually(lambda: len(problems) == 2)
    await client.execute_command("ACL", "SETUSER", user, "allchannels")

    async def both_are_heard() -> bool:
        await client.publish(f"{queue}.a", b"1")
        await client.publish(f"{queue}.b.c", b"2")
        return {one.payload for one in heard} == {b"1", b"2"}

    await eventually(both_are_heard)
    assert len(problems) == 2
    await client.execute_command("ACL", "DELUSER", user)


async def test_connections_bear_the_workers_name(
    open_redis: Open, valkey_server: EmbeddedBroker, client: redis.asyncio.Redis, queue: str
) -> None:
    await open_redis(valkey_server.url, name=f"esl bridge ä {queue}")
    names = {info["name"] for info in await client.client_list()}
    assert f"esl-bridge---{queue}" in names


async def test_a_unix_socket(open_redis: Open, start_valkey: Any, tmp_path: Path, eventually: Eventually) -> None:
    path = tmp_path / "v.sock"
    absent: RedisBus = await open_redis(f"unix://{path}", connect=False)
    with pytest.raises(BusUnavailable):
        await absent.connect(5)
    await start_valkey(f'unixsocket "{path}"\nrequirepass secret')
    bus: RedisBus = await open_redis(f"unix://:secret@{path}?db=2")
    heard: list[Received] = []
    await bus.subscribe("a.>", heard.append)
    await bus.publish_many([Message("a.b.c", b"1"), Message("a.b", b"2"), Message("a", b"3")])
    await eventually(lambda: len(heard) == 2)
    assert bus.url == f"unix://:***@{path}?db=2"
    refused: RedisBus = await open_redis(f"unix://:wrong@{path}", connect=False)
    with pytest.raises(BusRefused):
        await refused.connect(5)


async def test_tls_with_a_checked_certificate(
    open_redis: Open, valkey_server: EmbeddedBroker, make_proxy: Any, queue: str, eventually: Eventually
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(DATA / "tls_cert.pem", DATA / "tls_key.pem")
    proxy = await make_proxy(valkey_server.port, context)
    url = proxy.url.replace("redis://", "rediss://")
    bus: RedisBus = await open_redis(url, tls_ca_file=str(DATA / "tls_cert.pem"))
    heard: list[Received] = []
    await bus.subscribe(f"{queue}.*", heard.append)
    await bus.publish_many([Message(f"{queue}.x", b"x" * 300_000)])
    await eventually(lambda: heard and len(heard[0].payload) == 300_000)
    stranger: RedisBus = await open_redis(url, connect=False)
    with pytest.raises(BusRefused, match="certificate"):
        await stranger.connect(5)


async def test_closing_leaves_nothing_behind(
    valkey_server: EmbeddedBroker, client: redis.asyncio.Redis, queue: str, eventually: Eventually
) -> None:
    bus = RedisBus(valkey_server.url, name=queue)
    await bus.connect(10)
    await bus.subscribe(f"{queue}.*", lambda received: None)
    await bus.consume(queue, lambda delivery: None)
    await bus.request(queue, b"x", "", lambda payload, kind: None, reply_to=bus.new_reply_address())
    await bus.publish_many([Message(f"{queue}.x", b"1")])
    bus.send(f"esl.reply.{queue}", b"gathered", "")
    await bus.close()
    assert await client.lrange(f"esl.reply.{queue}", 0, -1) == [b"gathered"]
    await eventually(client.client_list, lambda infos: queue not in {info["name"] for info in infos})
    assert len(asyncio.all_tasks()) == 1
    with pytest.raises(BusUnavailable):
        await bus.publish_many([Message(f"{queue}.x", b"1")])


async def test_a_server_that_refuses_for_long_is_told_of_once_in_a_while(
    open_redis: Open, start_valkey: Any, queue: str, eventually: Eventually
) -> None:
    """A replica that nobody promotes: every queue hears the same no, at every attempt."""
    server = await start_valkey()
    bus: RedisBus = await open_redis(server.url)
    problems: list[str] = []
    bus.on_problem = problems.append
    taken: list[Delivery] = []
    await bus.consume(queue, taken.append)
    async with redis.asyncio.Redis(port=server.port) as client:
        await client.replicaof("127.0.0.1", "1")

        async def refused() -> int:
            return int((await client.info("errorstats")).get("errorstat_READONLY", {"count": 0})["count"])

        await eventually(refused, lambda count: count >= 6)
        await eventually(lambda: problems)
        assert len(problems) == len(set(problems)), problems
        await client.replicaof("NO", "ONE")
        await client.xadd(queue, {"data": b"x"})
    await eventually(lambda: taken)
