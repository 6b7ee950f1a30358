"""A supervised connection: order, doubt, silence, back-off."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from bridge.bus.redis.link import Backoff, Link, Operation
from bridge.bus.redis.wire import Reply, WireOptions, command, open_wire
from bridge.errors import BusRefused, BusUnavailable

Eventually = Callable[..., Any]


class Told:
    """What the operations of a test were told, in order."""

    def __init__(self) -> None:
        self.all: list[tuple[str, list[Reply], Exception | None]] = []

    def operation(self, name: str, count: int = 1, **options: Any) -> Operation:
        commands = command(b"ECHO", name.encode()) * count
        return Operation(
            commands, count, lambda replies, error: self.all.append((name, list(replies), error)), **options
        )


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
async def link(server: Any) -> AsyncIterator[Link]:
    server.script = lambda command: b"+%b\r\n" % command[-1]
    found = Link(lambda: open_wire(server.host, WireOptions()), pulse=0.02, patience=0.05)
    found._backoff = Backoff(0.001, 0.01, refused=0.01)
    found.start()
    yield found
    await found.close()


async def test_replies_go_to_their_operations_in_order(link: Link, told: Told, eventually: Eventually) -> None:
    await eventually(lambda: link.connected)
    for name, count in (("a", 1), ("b", 3), ("c", 2)):
        assert link.post(told.operation(name, count))
    await link.writable()
    assert link.say(told.operation("last"))
    await eventually(lambda: len(told.all) == 4)
    assert [(name, replies) for name, replies, _ in told.all] == [
        ("a", [b"a"]),
        ("b", [b"b"] * 3),
        ("c", [b"c"] * 2),
        ("last", [b"last"]),
    ]


async def test_what_was_in_doubt_is_told_with_the_replies_that_came(
    link: Link, server: Any, told: Told, eventually: Eventually
) -> None:
    await eventually(lambda: link.connected)
    answers = iter([b"+1\r\n", b"+2\r\n"])
    server.script = lambda command: next(answers, None)
    downs: list[Exception] = []
    link.on_down = downs.append
    link.post(told.operation("part", 3))
    link.post(told.operation("none"))
    await eventually(lambda: len(server.commands) == 4)
    server.cut()
    await eventually(lambda: len(told.all) == 2)
    assert [(name, replies) for name, replies, _ in told.all] == [("part", [b"1", b"2"]), ("none", [])]
    assert all(isinstance(error, BusUnavailable) for _, _, error in told.all)
    assert len(downs) == 1
    server.script = lambda command: b"+%b\r\n" % command[-1]
    await eventually(lambda: link.connected)
    link.post(told.operation("again"))
    await eventually(lambda: told.all[-1][:2] == ("again", [b"again"]))


async def test_nothing_is_posted_without_a_connection(server: Any, told: Told) -> None:
    link = Link(lambda: open_wire(server.host, WireOptions()))
    operation = told.operation("x")
    assert not link.post(operation)
    with pytest.raises(BusUnavailable):
        await link.writable()
    assert not link.say(operation)
    assert not operation.written


async def test_a_silent_server_is_left(link: Link, server: Any, told: Told, eventually: Eventually) -> None:
    await eventually(lambda: link.connected)
    server.script = lambda command: None
    reasons: list[str] = []
    link.on_down = lambda error: reasons.append(str(error))
    link.post(told.operation("x"))
    await eventually(lambda: reasons)
    assert "silent" in reasons[0]
    assert told.all[0][0] == "x"


async def test_an_idle_connection_is_pinged_and_left_when_it_is_dead(
    link: Link, server: Any, eventually: Eventually
) -> None:
    await eventually(lambda: link.connected)
    pings: list[bytes] = []
    server.greet = lambda command: pings.append(command[0])
    await eventually(lambda: server.connections == 2)
    assert pings[0] == b"PING"


async def test_a_blocking_read_may_take_its_time(link: Link, server: Any, told: Told, eventually: Eventually) -> None:
    await eventually(lambda: link.connected)
    server.script = lambda command: None
    link.post(told.operation("blocking", patience=0.5))
    before = server.connections
    await eventually(lambda: told.all or server.connections != before, timeout=10)
    assert told.all, "the connection was given up before the read's own patience ended"
    assert "0.55" in str(told.all[0][2])


async def test_a_reply_to_nothing_ends_the_connection(link: Link, server: Any, eventually: Eventually) -> None:
    await eventually(lambda: link.connected)
    reasons: list[str] = []
    link.on_down = lambda error: reasons.append(str(error))
    server.say(b"-ERR max number of clients reached\r\n")
    await eventually(lambda: reasons)
    assert "max number of clients" in reasons[0]


async def test_closing_tells_what_was_in_doubt(link: Link, server: Any, told: Told, eventually: Eventually) -> None:
    await eventually(lambda: link.connected)
    server.script = lambda command: None
    link.post(told.operation("x"))
    await eventually(lambda: server.commands)
    await link.close()
    assert told.all[0][0] == "x"
    assert isinstance(told.all[0][2], BusUnavailable)
    assert not link.connected


async def test_an_absent_server_is_tried_for_ever_whatever_the_fault(server: Any, eventually: Eventually) -> None:
    faults: list[Exception] = [BusUnavailable("away"), OSError("odd"), ValueError("odder"), BusRefused("no")]
    seen: list[Exception] = []

    async def opening() -> Any:
        if faults:
            raise faults.pop(0)
        return await open_wire(server.host, WireOptions())

    link = Link(opening)
    link._backoff = Backoff(0.001, 0.01, refused=0.01)
    link.on_absent = seen.append
    link.start()
    await eventually(lambda: link.connected)
    assert [str(error) for error in seen] == ["away", "odd", "odder", "no"]
    await link.close()


def test_backoff_grows_with_jitter_up_to_its_cap() -> None:
    backoff = Backoff(0.1, 5.0, refused=30.0)
    waits = [backoff.next() for _ in range(12)]
    for tries, wait in enumerate(waits):
        top = min(5.0, 0.1 * 2**tries)
        assert top / 2 <= wait <= top
    assert 15 <= backoff.next(refused=True) <= 30
    backoff.reset()
    assert backoff.next() <= 0.1
    assert len({Backoff(1.0).next() for _ in range(8)}) > 1
