"""The least rights as documented are enough, and no more than enough: on a real nats-server and a real Valkey."""

from __future__ import annotations

import asyncio
import contextlib
import re
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio

from bridge.bus.embedded import EmbeddedBroker
from bridge.client import Bridge
from bridge.config import load_settings
from bridge.errors import BridgeError, CommandError, Denied
from bridge.messages.notice import Notice
from bridge.ops.tail import Filter
from bridge.simulator import User
from tests.conftest import unavailable
from tests.integration.conftest import House, until

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "security.md"
PASSWORDS = {"esl-bridge": "bridge-secret", "service": "service-secret", "watcher": "watcher-secret"}


def documented(what: str) -> str:
    found = re.search(rf"<!-- file: {what} -->\n```[a-z]*\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert found, f"the page has no {what}"
    return found[1]


class Locked:
    """A broker that runs what the page documents."""

    def __init__(self, broker: EmbeddedBroker, house: House, stack: AsyncExitStack) -> None:
        self.broker = broker
        self.house = house
        self._stack = stack

    def url(self, user: str) -> str:
        return self.broker.url.replace("://", f"://{user}:{PASSWORDS[user]}@")

    async def client(self, user: str) -> Bridge:
        return await self._stack.enter_async_context(Bridge(self.url(user)))

    async def complaints(self) -> list[str]:
        """What the broker refused to the bridge and to the service."""
        if self.broker.kind == "nats":
            said = list(self.broker._output)
            return [line for line in said if "iolation" in line and "watcher" not in line]
        async with redis.asyncio.Redis(port=self.broker.port, username="admin", password="admin") as admin:
            log = await admin.acl_log()
        return [f"{entry['username']}: {entry['object']}" for entry in log if entry["username"] != "watcher"]


@pytest.fixture(params=["nats", "redis"])
async def locked(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Locked]:
    config = documented(request.param)
    if request.param == "redis":
        # Somebody must look into the server's log of refusals.
        config += "user admin on >admin ~* &* +@all\n"
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(EmbeddedBroker(request.param, config=config))
        yield Locked(broker, House(broker, tmp_path, stack), stack)


async def next_event(bridge: Bridge, name: str, *, patience: float = 20.0) -> dict[str, Any]:
    async with asyncio.timeout(patience):
        async with contextlib.aclosing(bridge.events(name)) as events:
            async for event in events:
                return dict(event)
    raise AssertionError("unreachable")


async def test_the_documented_rights_are_enough(locked: Locked) -> None:
    switch = await locked.house.switch(calls_per_second=20.0)
    worker = await locked.house.worker(
        switch,
        bus={"url": locked.url("esl-bridge")},
        policy={"audit": True},
        events={"delivery": "both"},
        commands={"durable": locked.broker.kind == "nats"},
    )
    service, watcher = await locked.client("service"), await locked.client("watcher")
    notices: list[Notice] = []
    await service.notices(notices.append, "audit")
    for who in (service, watcher):
        assert (await next_event(who, "CHANNEL_ANSWER"))["Event-Name"] == "CHANNEL_ANSWER"
    assert (await service.api("echo hello", timeout=10)).result == "hello"
    assert "+OK" in str((await service.bgapi("originate user/1000 &park", timeout=20)).result)
    assert (await service.request({"command": "echo n"}, timeout=10, queue="esl.cmd.fs1")).status == "ok"
    with pytest.raises(CommandError):
        await service.api("no_such_command", timeout=10)
    with pytest.raises(Denied):
        await service.api("system reboot", timeout=10)
    if locked.broker.kind == "nats":
        denied = await service.request({"command": "system reboot"}, timeout=20, queue="esl.queue")
        assert (denied.status, denied.executed) == ("denied", "no")
    await until(lambda: any(notice.data.get("command") == "echo hello" for notice in notices))
    await worker.stop()
    assert await locked.complaints() == []


async def test_a_durable_queue_is_served_without_the_rights_to_the_ledgers_bucket(tmp_path: Path) -> None:
    config = documented("nats")
    narrowed = re.sub(r'"\$[^"]*esl-bridge-ledger[^"]*",?', "", config)
    assert narrowed != config
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(EmbeddedBroker("nats", config=narrowed))
        locked = Locked(broker, House(broker, tmp_path, stack), stack)
        worker = await locked.house.worker(
            await locked.house.switch(),
            bus={"url": locked.url("esl-bridge")},
            commands={"durable": True, "ledger": "memory"},
        )
        await until(lambda: worker.queues.taken)
        service = await locked.client("service")
        denied = await service.request({"command": "system reboot"}, timeout=20, queue="esl.queue")
        assert (denied.status, denied.executed) == ("denied", "no")


async def test_the_documented_rights_are_enough_for_the_page_of_the_fleet(locked: Locked) -> None:
    switch = await locked.house.switch()
    workers = []
    for name in ("w1", "w2"):
        identity = {"id": name, "state_dir": str(locked.house.folder / name)}
        bus = {"url": locked.url("esl-bridge")}
        workers.append(await locked.house.worker(switch, worker=identity, bus=bus, http={"listen": "127.0.0.1:0"}))
    (looks,) = [it for it in workers if not it.crew.owned()]
    viewer = looks.operations.tail.open(Filter("CUSTOM"))
    assert viewer is not None
    looks.operations.lookout.look(True)
    (owner,) = [it for it in workers if it is not looks]
    await until(lambda: owner.operations.tail.watched and looks.operations.lookout.numbers)
    switch.fire("CUSTOM", {}, subclass="seen")
    lines, _ = await viewer.next(20)
    assert [line["name"] for line in lines] == ["CUSTOM:seen"]
    looks.operations.tail.close(viewer)
    looks.operations.lookout.look(False)
    assert await locked.complaints() == []


async def test_a_watcher_cannot_steer(locked: Locked) -> None:
    switch = await locked.house.switch()
    worker = await locked.house.worker(switch, bus={"url": locked.url("esl-bridge")})
    watcher = await locked.client("watcher")
    with pytest.raises((BridgeError, TimeoutError)):
        await watcher.api("echo forbidden", timeout=0.5)
    service = await locked.client("service")
    assert (await service.api("echo allowed", timeout=10)).result == "allowed"
    assert switch.executed["echo forbidden"] == 0
    assert worker.commands.in_flight == 0


async def test_a_service_cannot_forge_an_event(locked: Locked) -> None:
    service, watcher = await locked.client("service"), await locked.client("watcher")
    stream = await watcher.subscribe("*")
    if locked.broker.kind == "nats":
        import nats

        forger = await nats.connect(locked.url("service"), max_reconnect_attempts=0, error_cb=_ignore)
        await forger.publish("fs.events.CHANNEL_ANSWER", b"{}")
        await forger.flush()
        await forger.close()
    else:
        async with redis.asyncio.Redis.from_url(locked.url("service")) as forger:
            with pytest.raises(redis.exceptions.NoPermissionError):
                await forger.publish("fs.events.CHANNEL_ANSWER", b"{}")
    # Whatever was let through would have come before this.
    switch = await locked.house.switch()
    await locked.house.worker(switch, bus={"url": locked.url("esl-bridge")})
    await service.sendevent("CUSTOM", {"Event-Subclass": "test::real"}, to="fs1", timeout=10)
    async with asyncio.timeout(20):
        async for event in stream:
            assert event.attributes, "a forged event came through"
            if event.subclass == "test::real":
                break
    assert stream.undecodable == 0


async def _ignore(error: Exception) -> None:
    """The refusal is what is tried."""


async def test_the_documented_freeswitch_user_is_enough(house: House, tmp_path: Path) -> None:
    user = ET.fromstring(documented("freeswitch"))
    given = {param.attrib["name"]: param.attrib["value"] for param in user.iter("param")}
    events, api = given["esl-allowed-events"].split(), given["esl-allowed-api"].split()
    assert len(" ".join(events + api)) < 400
    name = f"{user.attrib['id']}@default"
    known = User(given["esl-password"], allowed_events=events, allowed_api=api, allowed_log=False)
    switch = await house.switch(users={name: known}, calls_per_second=20.0)
    file = tmp_path / "documented.toml"
    file.write_text(documented("freeswitch-node"))
    settings = load_settings(file, {})
    url = settings.nodes[0].url.get_secret_value().replace("10.0.0.5", f"127.0.0.1:{switch.port}")
    await house.worker(switch, node={"url": url}, events={"subscribe": settings.events.subscribe})
    client = await house.client()
    assert (await next_event(client, "CHANNEL_ANSWER"))["Event-Name"] == "CHANNEL_ANSWER"
    assert "UP" in str((await client.api("status", timeout=10)).result)
    assert "+OK" in str((await client.bgapi("originate user/1000 &park", timeout=20)).result)
    with pytest.raises(CommandError) as refused:
        await client.api("reloadxml", timeout=10)
    assert refused.value.reply is not None
    assert refused.value.reply.executed == "no"


async def test_an_exact_channel_is_subscribed_to_by_its_name(valkey_server: EmbeddedBroker) -> None:
    """A pattern of the same letters would be refused to who may have ``fs.events.*``; brackets are no wildcard."""
    from bridge.bus.base import Received
    from bridge.bus.open import open_bus

    bus = open_bus(valkey_server.url)
    await bus.connect(10)
    taken: list[Received] = []
    exact = await bus.subscribe("exact.[a]", taken.append)
    await bus.subscribe("exact.*", taken.append)
    async with redis.asyncio.Redis(port=valkey_server.port) as other:
        assert await other.pubsub_channels("exact.*") == [b"exact.[a]"]
        await other.publish("exact.[a]", b"one")
        await until(lambda: len(taken) == 2)
        await exact.close()
        await until_not(lambda: other.pubsub_channels("exact.*"))
        await other.publish("exact.[a]", b"two")
        await until(lambda: len(taken) == 3)
    assert [(one.topic, one.payload) for one in taken] == [("exact.[a]", b"one")] * 2 + [("exact.[a]", b"two")]
    await bus.close()


async def until_not(ask: Any) -> None:
    async with asyncio.timeout(20):
        while await ask():  # noqa: ASYNC110 - the server does not tell
            await asyncio.sleep(0.01)


def openssl(*arguments: str) -> None:
    try:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=60)
    except FileNotFoundError:
        unavailable("no openssl to make certificates")


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CA, and a certificate of it for the server and one for the bridge."""
    folder = tmp_path_factory.mktemp("papers")
    pair = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    made = ("-keyout", f"{folder}/ca.key", "-out", f"{folder}/ca.pem")
    openssl(
        "req",
        "-x509",
        *pair,
        "-days",
        "2",
        "-subj",
        "/CN=ca",
        "-addext",
        "keyUsage=critical,keyCertSign,cRLSign",
        *made,
    )
    names = folder / "names"
    names.write_text("subjectAltName=IP:127.0.0.1\n")
    signed = ("-CA", f"{folder}/ca.pem", "-CAkey", f"{folder}/ca.key", "-CAcreateserial", "-extfile", str(names))
    for name in ("server", "bridge"):
        asked = f"{folder}/{name}.csr"
        openssl("req", "-new", *pair, "-subj", f"/CN={name}", "-keyout", f"{folder}/{name}.key", "-out", asked)
        openssl("x509", "-req", "-in", asked, "-days", "2", *signed, "-out", f"{folder}/{name}.pem")
    return folder


async def test_both_sides_of_the_bus_show_their_certificates(papers: Path, tmp_path: Path) -> None:
    """As ``bus.tls_ca``, ``tls_cert`` and ``tls_key`` say; a client without one of that CA is turned away."""
    config = f"""tls {{
      cert_file: "{papers}/server.pem", key_file: "{papers}/server.key", ca_file: "{papers}/ca.pem", verify: true
    }}"""
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(EmbeddedBroker("nats", config=config))
        house = House(broker, tmp_path, stack)
        url = broker.url.replace("nats://", "tls://")
        files = {"tls_ca": f"{papers}/ca.pem", "tls_cert": f"{papers}/bridge.pem", "tls_key": f"{papers}/bridge.key"}
        switch = await house.switch()
        worker = await house.worker(switch, bus={"url": url, **files})
        named = worker.settings.bus.options()
        client = await stack.enter_async_context(Bridge(url, **named))
        assert (await client.api("echo secret", timeout=10)).result == "secret"
        without = {name: value for name, value in named.items() if name == "tls_ca_file"}
        with pytest.raises(BridgeError):
            async with Bridge(url, connect_timeout=5, **without):
                pass
