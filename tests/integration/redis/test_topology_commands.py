"""Commands and the ledger that workers share, under Sentinel, in a Cluster, through TLS, with the least rights."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis.asyncio

from bridge.bus.embedded import EmbeddedBroker
from bridge.client import Bridge
from bridge.simulator import SimulatedSwitch
from bridge.worker import Worker
from tests.integration.conftest import House
from tests.integration.redis.conftest import free_port, url_of

pytestmark = pytest.mark.broker

DATA = Path(__file__).parents[2] / "data"
SECURITY = Path(__file__).parents[3] / "docs" / "how-to" / "security.md"


@dataclass
class Place:
    """Where the workers and the callers find their Redis; ``servers`` are its processes, the first the master."""

    url: str
    caller_url: str = ""
    bus: dict[str, str] = field(default_factory=dict)
    caller: dict[str, str] = field(default_factory=dict)
    servers: list[EmbeddedBroker] = field(default_factory=list)


async def _sentinel(ask_for: Any) -> Place:
    start, sentinel = ask_for("start_valkey"), ask_for("start_sentinel")
    login = "requirepass secret\nmasterauth secret"
    master = await start(login)
    replica = await start(f"{login}\nreplicaof 127.0.0.1 {master.port}")
    port = free_port()
    await sentinel(port, master.port, "sentinel auth-pass main secret")
    async with redis.asyncio.Redis(port=port) as watched:
        await ask_for("eventually")(lambda: watched.execute_command("SENTINEL REPLICAS", "main"))
    return Place(f"redis+sentinel://:secret@127.0.0.1:{port}/main/1", servers=[master, replica])


async def _cluster(ask_for: Any) -> Place:
    return Place(url_of(ask_for("cluster")))


async def _tls(ask_for: Any) -> Place:
    server = await ask_for("start_valkey")("requirepass secret")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(DATA / "tls_cert.pem", DATA / "tls_key.pem")
    proxy = await ask_for("make_proxy")(server.port, context)
    authority = str(DATA / "tls_cert.pem")
    url = f"rediss://:secret@127.0.0.1:{proxy.port}"
    return Place(url, bus={"tls_ca": authority}, caller={"tls_ca_file": authority})


def _users() -> str:
    """The users of the page on security, as lines of a server's configuration."""
    return SECURITY.read_text().partition("<!-- file: redis -->\n```conf\n")[2].partition("```")[0]


async def _least_rights(ask_for: Any) -> Place:
    server = await ask_for("start_valkey")(_users())
    at = f"127.0.0.1:{server.port}"
    return Place(f"redis://esl-bridge:bridge-secret@{at}", f"redis://service:service-secret@{at}")


PLACES = {"sentinel": _sentinel, "cluster": _cluster, "rediss": _tls, "acl": _least_rights}
# Asked for before the test runs: an async fixture cannot be asked for from within the loop.
FIXTURES = {
    "sentinel": ("start_valkey", "start_sentinel", "eventually"),
    "cluster": ("cluster",),
    "rediss": ("start_valkey", "make_proxy"),
    "acl": ("start_valkey",),
}


@dataclass
class Scene:
    """Two workers of one node in a place, and a caller."""

    place: Place
    switch: SimulatedSwitch
    workers: list[Worker]
    client: Bridge

    async def ask(self, id: str, line: str = "", queue: str = "esl.cmd") -> Any:
        fields = {"id": id, "command": line or f"eval {id}"}
        return await self.client.request(fields, timeout=30, queue=queue)


@pytest.fixture(params=["stream", "list"])
def queue_type(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def scene(
    request: pytest.FixtureRequest, means: dict[str, Any], queue_type: str, tmp_path: Path
) -> AsyncIterator[Scene]:
    place = await PLACES[means["kind"]](means.__getitem__)
    async with AsyncExitStack() as stack:
        house = House(SimpleNamespace(url=place.url), tmp_path, stack)  # type: ignore[arg-type]
        switch = await house.switch()
        workers = [
            await house.worker(
                switch,
                worker={"id": f"w{number}", "state_dir": str(tmp_path / str(number)), "drain_timeout": 5.0},
                bus={"url": place.url, **place.bus},
                commands={"queue_type": queue_type, "ledger": "shared", "claim_after": 10.0, "safe": []},
                fleet={"lease_time": 1.0},
            )
            for number in range(2)
        ]
        client = Bridge(place.caller_url or place.url, queue_type=queue_type, **place.caller)
        yield Scene(place, switch, workers, await stack.enter_async_context(client))


@pytest.fixture(params=PLACES)
def means(request: pytest.FixtureRequest) -> dict[str, Any]:
    return {"kind": request.param} | {name: request.getfixturevalue(name) for name in FIXTURES[request.param]}


async def test_an_id_runs_once_whichever_worker_gets_it(scene: Scene) -> None:
    assert [it.describe()["ledger"] for it in scene.workers] == ["shared", "shared"]
    for id in "abcdef":  # in a Cluster their records lie on several servers
        first = [await scene.ask(id) for _ in range(4)]
        replies = [*first, *await asyncio.gather(*(scene.ask(id) for _ in range(4)))]
        assert {(it.status, it.result) for it in replies} == {("ok", id)}
        assert sum(not it.replayed for it in replies) == 1
        assert scene.switch.executed[f"eval {id}"] == 1
        assert (await scene.ask(id, "eval other")).status == "invalid"
    # What runs still is waited for.
    both = await asyncio.gather(*(scene.ask("slow", "msleep 300") for _ in range(6)))
    assert {(it.status, it.executed) for it in both} == {("ok", "yes")}, [(it.worker, it.error) for it in both]
    # The strict queue knows the same ids; there it is another request, for this node and none else.
    assert (await scene.ask("a", queue="esl.cmd.fs1")).status == "invalid"
    assert (await scene.ask("new", queue="esl.cmd.fs1")).result == "new"
    assert (await scene.ask("new", queue="esl.cmd.fs1")).replayed
    assert scene.switch.executed["msleep 300"] == scene.switch.executed["eval new"] == 1


async def test_a_repeat_after_its_worker_ended_is_answered_by_the_other(scene: Scene) -> None:
    said = await scene.ask("a")
    await next(it for it in scene.workers if it.id == said.worker).stop()
    again = await scene.ask("a")
    assert (again.result, again.replayed) == ("a", True)
    assert (await scene.ask("b")).worker != said.worker
    assert scene.switch.executed["eval a"] == 1


@pytest.mark.parametrize("means", ["sentinel"], indirect=True)
async def test_outcomes_that_reached_the_replica_outlive_the_master(scene: Scene, eventually: Any) -> None:
    master, replica = scene.place.servers
    ids = [f"i{number}" for number in range(20)]
    await asyncio.gather(*(scene.ask(id) for id in ids))
    async with (
        redis.asyncio.Redis(port=master.port, password="secret") as one,
        redis.asyncio.Redis(port=replica.port, password="secret") as two,
    ):
        wanted = (await one.info("replication"))["master_repl_offset"]
        await eventually(lambda: two.info("replication"), lambda info: info["slave_repl_offset"] >= wanted)
        await master.kill()
        await eventually(lambda: two.role(), lambda role: role[0] == b"master", timeout=30)
    await eventually(lambda: all(it.bus.connected for it in scene.workers) and scene.client.bus.connected, timeout=30)
    replies = await asyncio.gather(*(scene.ask(id) for id in ids))
    assert {it.replayed for it in replies} == {True}
    assert [it.result for it in replies] == ids
    assert {scene.switch.executed[f"eval {id}"] for id in ids} == {1}
    assert (await scene.ask("afterwards")).result == "afterwards"


async def test_the_least_rights_hold_what_a_cluster_and_sentinel_need(start_valkey: Any) -> None:
    """A worker asks a Cluster for its map, and what Sentinel names whether it is the master."""
    server = await start_valkey(_users())
    async with redis.asyncio.Redis(port=server.port, username="esl-bridge", password="bridge-secret") as user:
        assert (await user.execute_command("ROLE"))[0] == b"master"
        with pytest.raises(redis.ResponseError, match="cluster support disabled"):
            await user.execute_command("CLUSTER", "SLOTS")
