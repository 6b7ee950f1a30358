"""Two workers' pages look at each other: over a bus of one line, with words that are really encoded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

import bridge.ops.lookout as lookout_room
from bridge.messages.fleet import TOPIC, Watch, Word, decode_word, encode
from bridge.ops.lookout import Lookout
from bridge.ops.tail import LINES_PER_SECOND, Filter, Tail, Viewer

from .test_tail import event


class Street:
    """Workers that hear each other."""

    def __init__(self) -> None:
        self.workers: dict[str, Lookout] = {}
        self.tails: dict[str, Tail] = {}
        self.said: list[tuple[str, Word]] = []
        self.living: set[str] = set()

    def move_in(self, name: str) -> Tail:
        def say(topic: str, payload: bytes) -> None:
            word = decode_word(payload)
            self.said.append((topic, word))
            for other, lookout in list(self.workers.items()):
                if other != name and topic in (TOPIC, f"{TOPIC}.{other}"):
                    lookout.heard(word)

        tail = self.tails[name] = Tail()
        self.living.add(name)
        self.workers[name] = Lookout(
            name, tail, say=say, others=lambda: self.living - {name}, numbers=lambda: {"of": name}
        )
        return tail


@pytest.fixture
async def street() -> Any:
    street = Street()
    street.move_in("a.1")
    street.move_in("b.1")
    yield street
    for lookout in street.workers.values():
        await lookout.close()


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def looks(tail: Tail, *conditions: Any) -> Viewer:
    viewer = tail.open(Filter(*conditions))
    assert viewer is not None
    return viewer


async def test_a_viewer_sees_what_another_worker_publishes(street: Street) -> None:
    tail, other = street.tails["a.1"], street.tails["b.1"]
    viewer = looks(tail, "CHANNEL_*", "fs2", ["Answer-State=early"])
    await until(lambda: other.watched)
    other.take("fs2", [event(Answer_State="early"), event(Answer_State="ringing"), event("HEARTBEAT")])
    other.take("fs3", [event(Answer_State="early")])
    (line,), skipped = await viewer.next(10)
    assert (line["node"], line["name"], line["headers"]["Answer-State"], skipped) == (
        "fs2",
        "CHANNEL_CREATE",
        "early",
        0,
    )
    tail.close(viewer)
    await until(lambda: not other.watched)


async def test_nothing_is_said_while_nobody_looks(street: Street) -> None:
    street.tails["a.1"].take("fs1", [event()])
    await asyncio.sleep(0)
    assert street.said == []


async def test_a_firehose_is_sampled_where_it_is(street: Street) -> None:
    viewer = looks(street.tails["a.1"])
    other = street.tails["b.1"]
    await until(lambda: other.watched)
    shown = skipped = 0
    for _ in range(20):
        other.take("fs2", [event() for _ in range(100)])
    while shown + skipped < 2000:
        lines, left_out = await viewer.next(10)
        shown, skipped = shown + len(lines), skipped + left_out
    assert shown + skipped == 2000
    assert shown <= 2 * LINES_PER_SECOND
    assert sum(topic != TOPIC for topic, _ in street.said) <= 4


async def test_who_is_gone_without_a_word_is_shown_nothing_after_a_while(
    street: Street, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookout_room, "HOLDS", 0.3)
    other = street.tails["b.1"]
    del street.workers["a.1"]
    body = encode(Watch("*"))
    street.workers["b.1"].heard(Word("watch", "a.1", number=7, body=body))
    assert other.watched
    await until(lambda: not other.watched)


async def test_strangers_and_nonsense_are_not_answered(street: Street) -> None:
    other = street.workers["b.1"]
    for word in (
        Word("watch", "stranger", number=1, body=encode(Watch("*"))),
        Word("watch", "stranger.>", number=1, body=encode(Watch(numbers=True))),
        Word("watch", "a.1", number=1, body=b"\xff\x00"),
        Word("watch", "a.1", number=1, body=encode(Watch(where=("nonsense",)))),
        Word("seen", "a.1", number=1, body=b""),
        Word("unwatch", "a.1", number=9),
    ):
        other.heard(word)
    await asyncio.sleep(0.05)
    assert street.said == []
    assert not street.tails["b.1"].watched


async def test_the_pages_of_a_large_fleet_are_bounded(street: Street) -> None:
    for number in range(1, 200):
        street.workers["b.1"].heard(Word("watch", "a.1", number=number, body=encode(Watch("*"))))
    assert len(street.tails["b.1"]._viewers) == 64
    # Our own viewers have places of their own.
    assert street.tails["b.1"].open(Filter()) is not None


async def test_numbers_are_told_while_a_page_is_open(street: Street) -> None:
    one = street.workers["a.1"]
    assert one.numbers == {}
    one.look(True)
    await until(lambda: one.numbers == {"b.1": {"of": "b.1"}})
    assert one.silent == set()
    street.living.discard("b.1")
    assert one.numbers == {}
    street.living.add("b.1")
    one.look(False)
    street.said.clear()
    await until(lambda: street.workers["b.1"]._telling is not None and street.workers["b.1"]._telling.done())
    assert [word.kind for _, word in street.said if word.kind == "seen"] == []


async def test_a_worker_that_does_not_answer_is_named(street: Street, monkeypatch: pytest.MonkeyPatch) -> None:
    street.living.add("old.1")
    one = street.workers["a.1"]
    one.look(True)
    await until(lambda: one.numbers)
    assert one.silent == set(), "it may still answer"
    monkeypatch.setattr(lookout_room, "HOLDS", 0.0)
    assert "old.1" in one.silent


async def test_a_worker_that_comes_later_is_asked_too(street: Street, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookout_room, "RENEWAL", 0.05)
    looks(street.tails["a.1"])
    tail = street.move_in("c.1")
    await until(lambda: tail.watched)
