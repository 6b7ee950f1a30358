"""The look-up of calls: one question, answered once, by who knows or when all have said no."""

from __future__ import annotations

import asyncio

import pytest

from bridge.fleet.calls import CallLookup
from bridge.messages.fleet import TOPIC, decode_word


class Wire:
    """Two or three workers whose words reach each other."""

    def __init__(self, **calls: dict[str, str]) -> None:
        self.said: list[tuple[str, str]] = []
        self.deaf: set[str] = set()
        names = frozenset(calls)
        self.workers = {
            name: CallLookup(name, say=self.say, others=lambda name=name: names - {name}, node_of=known.get)  # type: ignore[misc]
            for name, known in calls.items()
        }

    def say(self, topic: str, payload: bytes) -> None:
        word = decode_word(payload)
        self.said.append((topic, word.kind))
        for name, worker in self.workers.items():
            if name not in self.deaf and topic in (TOPIC, f"{TOPIC}.{name}"):
                asyncio.get_running_loop().call_soon(worker.heard, word)

    async def ask(self, who: str, uuid: str, timeout: float = 5.0) -> str:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[str] = loop.create_future()
        self.workers[who].ask(uuid, loop.time() + timeout, answer.set_result)
        async with asyncio.timeout(5):
            return await answer


async def test_who_knows_answers() -> None:
    wire = Wire(a={}, b={"u1": "fs1"}, c={})
    assert await wire.ask("a", "u1") == "fs1"
    assert wire.said[0] == (TOPIC, "call")


async def test_when_all_say_no_nobody_waits() -> None:
    wire = Wire(a={}, b={}, c={})
    assert await wire.ask("a", "u1") == ""


async def test_a_silent_worker_is_not_waited_for_beyond_the_deadline() -> None:
    wire = Wire(a={}, b={}, c={"u1": "fs1"})
    wire.deaf.add("c")
    assert await wire.ask("a", "u1", timeout=0.05) == ""


async def test_alone_nobody_is_asked() -> None:
    wire = Wire(a={})
    assert await wire.ask("a", "u1") == ""
    assert not wire.said


@pytest.mark.parametrize("uuid", ["u1", "nobody's"])
async def test_an_answer_is_given_once(uuid: str) -> None:
    wire = Wire(a={}, b={"u1": "fs1"}, c={"u1": "fs1"})
    await wire.ask("a", uuid)
    await asyncio.sleep(0.01)
