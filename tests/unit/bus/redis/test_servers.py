"""Where keys live."""

from __future__ import annotations

from typing import Any

import pytest
from redis.crc import key_slot as reference

from bridge.bus.redis.address import Host, RedisUrl
from bridge.bus.redis.servers import ClusterServers, key_slot, servers_for
from bridge.bus.redis.wire import WireOptions
from bridge.errors import BusRefused, BusUnavailable


@pytest.mark.parametrize(
    "key", [b"", b"esl.cmd", b"{esl.cmd}.processing.w", b"a{}b", b"a{b", b"a{b}{c}", b"{}{a}", b"}{"]
)
def test_slots_are_those_of_redis(key: bytes) -> None:
    assert key_slot(key) == reference(key)


def test_derived_keys_live_with_their_queue() -> None:
    assert key_slot(b"{esl.cmd}.processing.w1") == key_slot(b"esl.cmd") == key_slot(b"{esl.cmd}.workers")


def cluster(server: Any, *seeds: Host) -> ClusterServers:
    places = ",".join(str(seed) for seed in (*seeds, server.host))
    found = servers_for(RedisUrl.parse(f"redis+cluster://{places}"), WireOptions(connect_timeout=1))
    assert isinstance(found, ClusterServers)
    return found


async def test_a_cluster_is_learned_from_whoever_answers(server: Any) -> None:
    here = b"$9\r\n127.0.0.1\r\n:%d\r\n" % server.host.port
    server.script = lambda command: (
        b"*3\r\n*3\r\n:0\r\n:99\r\n*2\r\n" + here + b"*3\r\n:100\r\n:200\r\n*2\r\n$0\r\n\r\n:%d\r\n" % server.host.port
        + b"*3\r\n:201\r\n:16383\r\n*2\r\n$5\r\nother\r\n:7\r\n"
    )  # fmt: skip
    servers = cluster(server, Host("127.0.0.1", 1))
    assert servers.place(b"x") is None
    await servers.refresh()
    assert server.commands == [[b"CLUSTER", b"SLOTS"]]
    assert set(servers.hosts) == {server.host, Host("other", 7)}  # an empty name means: where you asked
    assert servers.place(b"esl.cmd") == Host("other", 7)


async def test_a_cluster_that_does_not_answer(server: Any) -> None:
    server.script = lambda command: b"-ERR This instance has cluster support disabled\r\n"
    with pytest.raises(BusUnavailable, match="cluster support disabled"):
        await cluster(server).refresh()
    server.greet = lambda command: b"-NOAUTH Authentication required.\r\n"
    with pytest.raises(BusRefused):
        await cluster(server).refresh()


async def test_sentinels_are_asked_in_turn(server: Any) -> None:
    replies = {
        b"SENTINEL": b"*2\r\n$9\r\n127.0.0.1\r\n$%d\r\n%d\r\n" % (len(str(server.host.port)), server.host.port),
        b"ROLE": b"*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n",
    }
    server.script = lambda command: replies[command[0]]
    url = RedisUrl.parse(f"redis+sentinel://127.0.0.1:1,{server.host}/main/0")
    servers = servers_for(url, WireOptions(connect_timeout=1))
    wire = await servers.open()
    wire.abort(BusUnavailable("done"))
    assert server.commands == [[b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", b"main"], [b"ROLE"]]
    # One that has just been demoted is not written to.
    replies[b"ROLE"] = b"*5\r\n$5\r\nslave\r\n$1\r\nh\r\n:1\r\n$4\r\nsync\r\n:0\r\n"
    with pytest.raises(BusUnavailable, match="no longer the master"):
        await servers.open()
    replies[b"SENTINEL"] = b"*-1\r\n"
    with pytest.raises(BusUnavailable, match="knows no such service"):
        await servers.open()
