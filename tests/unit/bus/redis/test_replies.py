"""Reply addresses and the connections that wait on them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from bridge.bus.redis import replies as room
from bridge.bus.redis.link import Link, Operation
from bridge.bus.redis.replies import ReplyLanes
from bridge.bus.redis.servers import key_slot
from bridge.bus.redis.wire import WireOptions, open_wire

Eventually = Callable[..., Any]


class FakeWriters:
    def __init__(self) -> None:
        self.submitted: list[Operation] = []

    def submit(self, operation: Operation) -> None:
        self.submitted.append(operation)


@pytest.fixture
def writers() -> FakeWriters:
    return FakeWriters()


@pytest.fixture
async def lanes(server: Any, writers: Any) -> AsyncIterator[ReplyLanes]:
    server.script = lambda command: None
    found = ReplyLanes(lambda key: Link(lambda: open_wire(server.host, WireOptions())), writers, tagged=False)
    yield found
    await found.close()


def popped(key: bytes, payload: bytes) -> bytes:
    return b"*2\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(key), key, len(payload), payload)


async def test_one_question_names_all_open_addresses_and_some_more(
    lanes: ReplyLanes, server: Any, writers: FakeWriters, eventually: Eventually
) -> None:
    got: list[tuple[str, bytes]] = []
    first, second = lanes.new_address(), lanes.new_address()
    lanes.open(first, lambda payload, kind: got.append((first, payload)))
    lanes.open(second, lambda payload, kind: got.append((second, payload)))
    await eventually(lambda: server.commands)
    verb, *keys, block = server.commands[0]
    assert (verb, block) == (b"BLPOP", b"5")
    assert keys[:2] == [first.encode(), second.encode()]
    assert keys[-1].endswith(b".wake")
    third = lanes.new_address()
    assert third.encode() in keys  # waited on before it was given out: nobody need be woken
    lanes.open(third, lambda payload, kind: got.append((third, payload)))
    assert not writers.submitted
    server.say(popped(second.encode(), b"accepted"))
    await eventually(lambda: len(server.commands) == 2)
    server.say(popped(second.encode(), b"final"))
    await eventually(lambda: got == [(second, b"accepted"), (second, b"final")])


async def test_the_question_is_woken_for_what_it_does_not_name(
    lanes: ReplyLanes, server: Any, writers: FakeWriters, eventually: Eventually
) -> None:
    lanes.open(lanes.new_address(), lambda payload, kind: None)
    await eventually(lambda: server.commands)
    addresses = [lanes.new_address() for _ in range(room._AHEAD + 3)]
    for address in addresses:
        lanes.open(address, lambda payload, kind: None)
    assert len(writers.submitted) == 1  # one call is enough for all of them
    wake = server.commands[0][-2]
    assert writers.submitted[0].key == wake
    server.say(popped(wake, b"1"))
    await eventually(lambda: len(server.commands) == 2)
    assert {address.encode() for address in addresses} <= set(server.commands[1])


async def test_a_closed_address_is_named_no_more(lanes: ReplyLanes, server: Any, eventually: Eventually) -> None:
    address, other = lanes.new_address(), lanes.new_address()
    subscription = lanes.open(address, lambda payload, kind: pytest.fail("it was closed"))
    lanes.open(other, lambda payload, kind: None)
    await eventually(lambda: server.commands)
    await subscription.close()
    server.say(popped(address.encode(), b"too late"))
    await eventually(lambda: len(server.commands) == 2)
    assert address.encode() not in server.commands[1]
    assert other.encode() in server.commands[1]


async def test_a_lane_takes_so_many_and_there_are_so_many_lanes(lanes: ReplyLanes) -> None:
    addresses = [lanes.new_address() for _ in range(room._LANE_SIZE * room._MAX_LANES + 100)]
    assert len(set(addresses)) == len(addresses)
    assert len(lanes._lanes) == room._MAX_LANES
    for address in addresses:
        await lanes.open(address, lambda payload, kind: None).close()
    lanes.new_address()
    assert len(lanes._lanes) == room._MAX_LANES
    assert sum(lane.load for lane in lanes._lanes) == 1


def test_in_a_cluster_all_addresses_lie_in_one_slot(writers: Any) -> None:
    lanes = ReplyLanes(lambda key: Link(lambda: pytest.fail("no connection")), writers, tagged=True)
    addresses = [lanes.new_address() for _ in range(room._LANE_SIZE + 5)]
    assert len({key_slot(address.encode()) for address in addresses}) == 1


async def test_a_failing_handler_does_not_cost_the_others_their_replies(
    lanes: ReplyLanes, server: Any, eventually: Eventually
) -> None:
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))

    def fail(payload: bytes, kind: str) -> None:
        raise ValueError("a fault of ours")

    got: list[bytes] = []
    bad, good = lanes.new_address(), lanes.new_address()
    lanes.open(bad, fail)
    lanes.open(good, lambda payload, kind: got.append(payload))
    await eventually(lambda: server.commands)
    server.say(popped(bad.encode(), b"1"))
    await eventually(lambda: len(server.commands) == 2)
    server.say(popped(good.encode(), b"2"))
    await eventually(lambda: got == [b"2"] and told)
