from __future__ import annotations

from typing import Any

import pytest

from bridge.bus.base import Message
from bridge.bus.nats.room import Room, room_of


def stream(**config: Any) -> dict[str, Any]:
    return {
        "config": {"discard": "old", "storage": "file", "num_replicas": 1, "max_msgs": -1, "max_bytes": -1, **config},
        "state": {"messages": 40, "bytes": 4_000},
    }


def account(used: int, limit: int, **more: Any) -> dict[str, Any]:
    return {"storage": used, "memory": 7, "limits": {"max_storage": limit, "max_memory": 1_007}, **more}


@pytest.mark.parametrize(
    ("info", "of_account", "room"),
    [
        (stream(max_bytes=5_000), {}, None),  # old messages make place
        (stream(max_bytes=5_000), account(9, -1), None),
        (stream(discard="new"), account(9, -1), None),
        (stream(discard="new", max_msgs=100), {}, Room(30, float("inf"))),
        (stream(discard="new", max_bytes=5_000), {}, Room(float("inf"), 500)),
        (stream(), account(200, 1_000), Room(float("inf"), 400)),
        (stream(max_bytes=5_000), account(200, 1_000), Room(float("inf"), 400)),
        (stream(discard="new", max_bytes=5_000), account(200, 10_000), Room(float("inf"), 500)),
        (stream(discard="new", max_msgs=100, max_bytes=5_000), account(900, 1_000), Room(30, 50)),
        (stream(storage="memory"), account(200, -1), Room(float("inf"), 500)),
        (stream(), account(1_200, 1_000), Room(float("inf"), -100)),  # the limit was lowered
        (stream(num_replicas=3), account(200, 1_100), Room(float("inf"), 150)),  # a limit for all copies
        (stream(discard="new", discard_new_per_subject=True, max_msgs_per_subject=9), {}, Room(0, 0)),
        ({}, {}, None),
    ],
)
def test_what_a_stream_still_takes(info: dict[str, Any], of_account: dict[str, Any], room: Room | None) -> None:
    assert room_of(info, of_account) == room


def test_an_account_of_several_tiers() -> None:
    """As the server counts: what is used is all copies, the limit of a tier is meant for one."""
    tiers = {
        "R1": {"storage": 100, "limits": {"max_storage": 1_000}},
        "R3": {"storage": 900, "limits": {"max_storage": 1_000}},
    }
    told = {"storage": 1_000, "limits": {"max_storage": 0}, "tiers": tiers}
    assert room_of(stream(), told) == Room(float("inf"), 450)
    assert room_of(stream(num_replicas=3), told) == Room(float("inf"), 350)
    assert room_of(stream(num_replicas=5), told) is None  # there is no such tier: the server will say so


def test_what_is_taken_is_counted_with_all_that_is_stored_of_it() -> None:
    batch = [Message("a.topic", b"x" * 100, "id")] * 5
    room = Room(float("inf"), 600)
    assert room.take(batch, 0, 5) == 3
    assert room.size < 200
    assert room.take(batch, 3, 5) == 0
