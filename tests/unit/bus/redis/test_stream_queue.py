"""The stream's queue by itself: what its answers mean when they cross each other."""

from __future__ import annotations

from typing import Any

from bridge.bus.clock import BrokerClock
from bridge.bus.redis.link import Operation
from bridge.bus.redis.sharing import Sharing
from bridge.bus.redis.stream_queue import StreamQueue


class Way:
    """A connection to a server that does not answer by itself."""

    waits_for_ring = False
    connected = True

    def __init__(self) -> None:
        self.posted: list[Operation] = []

    def post(self, operation: Operation) -> None:
        self.posted.append(operation)

    submit = post


def found(*idents: bytes) -> list[Any]:
    return [[b"q", [[ident, [b"data", ident]] for ident in idents]]]


async def test_what_was_finished_while_our_own_list_was_read_is_not_handed_over_again() -> None:
    """It was claimed and answered within moments; the server had read the list in between."""
    way: Any = Way()
    taken: list[Any] = []
    queue = StreamQueue(
        "q", taken.append, None, link=way, answers=way, worker="w1", claim_after=30.0, sharing=Sharing(),
        clock=BrokerClock(),
    )  # fmt: skip
    queue.prepare()
    queue._hand_over(b"1-0", [b"data", b"x"], claimed=True, count=2)
    taken[0].removed()
    assert queue.take(found(b"1-0", b"2-0"))
    assert [one.ident for one in taken] == [b"1-0", b"2-0"]
    assert queue.take(found(b"1-0"))
    assert queue.take(None)
    assert len(taken) == 2
    assert queue.gone is None
    taken[1].removed()
    assert not queue.in_hand
    assert queue.take(found(b"3-0"))
    assert [one.claimed for one in taken] == [True, True, False]
