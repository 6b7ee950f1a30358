"""An entry that another worker may have claimed: whose it is, is asked before its command goes anywhere."""

from __future__ import annotations

import asyncio
import math
import time
from typing import Any

import pytest

from bridge.errors import BudgetSpent
from bridge.messages.command import Executed, Status
from tests.unit.relay.conftest import SlowLedger

HELD = {"pulled": True, "entry_id": "17-0"}


def lately() -> dict[str, Any]:
    """A delivery that others may have claimed since."""
    return {**HELD, "perhaps_lost_at": time.monotonic() - 1}


@pytest.mark.parametrize("request_", [{"command": "x", "id": "a"}, {"command": "status", "id": "a"}])
async def test_what_is_ours_still_runs_once_that_is_known(world: Any, request_: Any) -> None:
    given = world.put(**request_, delivery=lately())
    assert not world.pool().given
    given.perhaps_lost_at = math.inf
    given.asked(True)
    world.pool().take().api("+OK")
    assert given.reply.executed is Executed.YES


async def test_what_is_anothers_is_left_to_it_and_its_id_is_free(world: Any) -> None:
    given = world.put(command="x", id="a", delivery=lately())
    given.asked(False)
    assert given.let
    assert not given.answered
    assert not world.pool().given
    again = world.put(command="x", id="a", delivery={**HELD, "entry_id": "18-0"})
    world.pool().take().api("+OK")
    assert (again.reply.status, again.reply.replayed) == (Status.OK, False)


async def test_the_marker_is_set_before_it_is_asked(make_world: Any, slow_ledger: SlowLedger) -> None:
    world = make_world(ledger=slow_ledger)
    given = world.put(command="x", id="a", delivery=lately())
    assert given.asked is None
    slow_ledger.go()
    given.asked(False)
    assert given.let


async def test_while_the_broker_does_not_answer_it_is_asked_again(world: Any, until: Any) -> None:
    given = world.put(command="x", id="a", delivery=lately())
    asked, given.asked = given.asked, None
    asked(None)
    await until(lambda: given.asked is not None)
    given.perhaps_lost_at = math.inf
    given.asked(True)
    world.pool().take().api("+OK")
    assert given.reply.status is Status.OK


async def test_who_stood_still_again_asks_again(world: Any) -> None:
    given = world.put(command="x", id="a", delivery=lately())
    given.asked(True)  # it is no later than before
    assert not world.pool().given
    given.asked(False)
    assert given.let


async def test_a_repeat_that_waited_for_it_asks_again_and_hears_no_no(world: Any, until: Any) -> None:
    given = world.put(command="x", id="a", delivery=lately())
    repeat = world.put(command="x", id="a", delivery={**HELD, "entry_id": "18-0"})
    given.asked(False)
    assert not repeat.answered
    await until(lambda: world.pool().waiting)
    world.pool().take().api("+OK")
    assert (repeat.reply.status, repeat.reply.executed) == (Status.OK, Executed.YES)


async def test_an_earlier_attempt_that_may_have_run_is_not_forgotten(world: Any) -> None:
    first = world.put(command="x", id="a", idempotent=True, timeout_ms=60_000)
    world.pool().take().lost()
    world.pool().take().lost()
    world.pool().take().lost()
    assert first.reply.executed is Executed.UNKNOWN
    again = world.put(command="x", id="a", idempotent=True, delivery=lately())
    again.asked(False)
    repeat = world.put(command="x", id="a", idempotent=True, delivery={**HELD, "entry_id": "18-0"})
    world.pool().take().unsent(BudgetSpent("late"))
    assert (repeat.reply.status, repeat.reply.executed) == (Status.CONNECTION_LOST, Executed.UNKNOWN)


async def test_nobody_asks_about_an_entry_that_was_just_taken(world: Any) -> None:
    given = world.put(command="x", id="a", delivery={**HELD, "perhaps_lost_at": time.monotonic() + 10})
    world.pool().take().api("+OK")
    assert given.reply.status is Status.OK
    assert given.asked is None


async def test_a_no_that_comes_late_is_no_word_for_a_repeat(world: Any, until: Any) -> None:
    """Whoever has the entry by now may be running it; where it is ours after all the repeat runs, as after any no."""
    given = world.put(command="x", id="a", delivery={**HELD, "perhaps_lost_at": time.monotonic() + 0.01})
    repeat = world.put(command="x", id="a", delivery={**HELD, "entry_id": "18-0"})
    await asyncio.sleep(0.02)
    world.pool().take().unsent(BudgetSpent("late"))
    assert given.reply.status is Status.EXPIRED
    assert not repeat.answered
    await until(lambda: world.pool().waiting)
    world.pool().take().api("+OK")
    assert repeat.reply.executed is Executed.YES
