"""Calls over holes: what is known, what is asked, what is told, and that no end comes twice."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from bridge.errors import CommandTimeout
from bridge.esl.event import Event
from bridge.esl.replies import Reply
from bridge.messages.codec import JSON
from bridge.messages.notice import MAX_SNAPSHOT_PART, decode_notice
from bridge.relay import continuity
from bridge.relay.call_table import CallTable
from bridge.relay.continuity import Continuity, read_channels, split_rows
from bridge.relay.known_calls import ENDED_FOR, KnownCalls
from bridge.relay.notices import NoticeBoard


def event(name: str, uuid: str, core: str = "c-1", **headers: str) -> Event:
    return Event.parse(
        json.dumps(
            {"Event-Name": name, "Core-UUID": core, "Unique-ID": uuid, "Event-Sequence": "1", **headers}
        ).encode()
    )


def hear(known: KnownCalls, *events: Event) -> None:
    for one in events:
        known.watchers()[one.name](one)


def test_a_call_is_known_from_its_beginning_to_its_end() -> None:
    known = KnownCalls()
    hear(known, event("CHANNEL_CREATE", "a"), event("CHANNEL_ANSWER", "b"))
    assert set(known.calls) == {"a", "b"}
    hear(known, event("CHANNEL_HANGUP_COMPLETE", "a"), event("CHANNEL_DESTROY", "a"))
    assert set(known.calls) == {"b"}
    # Late words of a call that has ended do not bring it back.
    hear(known, event("CHANNEL_ANSWER", "a"))
    assert set(known.calls) == {"b"}


def test_a_uuid_that_callers_chose_may_come_again() -> None:
    known = KnownCalls()
    hear(known, event("CHANNEL_CREATE", "a"), event("CHANNEL_DESTROY", "a"), event("CHANNEL_CREATE", "a"))
    assert set(known.calls) == {"a"}


def test_what_is_kept_of_ended_calls_leaves_after_its_time() -> None:
    now = [0.0]
    known = KnownCalls(clock=lambda: now[0])
    for number in range(3000):
        now[0] += 1
        hear(known, event("CHANNEL_CREATE", str(number)), event("CHANNEL_DESTROY", str(number)))
    assert not known.calls
    assert len(known._ended) <= ENDED_FOR
    hear(known, event("CHANNEL_ANSWER", "2999"))
    assert not known.calls


def test_a_call_that_is_dropped_is_doubted_no_more() -> None:
    known = KnownCalls()
    hear(known, event("CHANNEL_CREATE", "a"), event("CHANNEL_CREATE", "b"))
    known.doubt()
    known.drop(["a"])
    assert known.doubtful == {"b"}


def test_an_injected_event_begins_and_ends_nothing() -> None:
    known = KnownCalls()
    injected = Event.parse(
        b'{"Command":"sendevent CHANNEL_CREATE","Event-Name":"CHANNEL_CREATE","Unique-ID":"x","Core-UUID":"c-1"}'
    )
    hear(known, injected)
    assert not known.calls


def test_a_renamed_call_is_known_by_its_new_name() -> None:
    known = KnownCalls()
    hear(known, event("CHANNEL_CREATE", "a", **{"Call-Direction": "inbound"}))
    hear(known, event("CHANNEL_UUID", "b", **{"Old-Unique-ID": "a"}))
    assert list(known.calls) == ["b"]
    assert known.calls["b"].headers["Call-Direction"] == "inbound"


def test_an_end_that_was_made_up_names_its_call_and_says_so_once() -> None:
    known = KnownCalls()
    hear(known, event("CHANNEL_CREATE", "a", **{"Caller-Destination-Number": "1000"}))
    end = known.end("a", "NORMAL_UNSPECIFIED", now=1.5)
    assert end is not None
    assert end.identity == "c-1:end:a"
    assert (end.name, end.unique_id, end.timestamp_us) == ("CHANNEL_HANGUP_COMPLETE", "a", 1_500_000)
    assert end["Caller-Destination-Number"] == "1000"
    assert known.end("a", "NORMAL_UNSPECIFIED") is None


def test_what_another_worker_knew_is_taken_over_except_what_ended_since() -> None:
    before, after = KnownCalls(), KnownCalls()
    hear(before, event("CHANNEL_CREATE", "a"), event("CHANNEL_CREATE", "b"))
    hear(after, event("CHANNEL_HANGUP_COMPLETE", "a"))
    after.merge(before.encode())
    after.merge(b"")
    after.merge(b"\xff nonsense")
    assert list(after.calls) == ["b"]
    assert after.doubtful == {"b"}


def test_what_the_owner_before_did_not_know_any_more_has_its_end() -> None:
    before, after = KnownCalls(), KnownCalls()
    hear(after, *[event("CHANNEL_CREATE", uuid) for uuid in ("ended", "lives", "began-since")])
    after.doubt()
    hear(after, event("CHANNEL_CREATE", "on-this-link"))
    hear(before, event("CHANNEL_CREATE", "lives"))
    assert after.settled(b"", ()) == []  # nothing is known of what it knew
    assert after.settled(before.encode(), {"began-since"}) == ["ended"]
    assert set(after.calls) == {"lives", "began-since", "on-this-link"}
    assert after.doubtful == {"lives", "began-since"}
    assert after.end("ended", "NORMAL_UNSPECIFIED") is None


def test_only_calls_of_before_the_link_are_doubted() -> None:
    known = KnownCalls()
    hear(known, event("CHANNEL_CREATE", "old"))
    known.doubt()
    hear(known, event("CHANNEL_CREATE", "new"))
    assert known.doubtful == {"old"}


def test_nothing_is_kept_of_a_node_that_is_not_listened_to_any_more() -> None:
    known, table = KnownCalls(), CallTable()
    for one in (event("CHANNEL_CREATE", "a"), event("CHANNEL_CREATE", "b")):
        known.watchers()[one.name](one)
        table.watchers("fs1")[one.name](one)
    table.learn("c", "fs2")
    Continuity("fs1", Pool(), known, table, None, print).forget()  # type: ignore[arg-type]
    assert (len(known), list(table._nodes)) == (0, ["c"])


class Pool:
    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked = 0

    async def api(self, line: str, timeout: float) -> Reply:
        assert line == "show channels as json"
        self.asked += 1
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        text = json.dumps({"row_count": len(answer), "rows": answer} if answer else {"row_count": 0})
        return Reply("api", text, {})


class House:
    def __init__(self, *answers: Any) -> None:
        self.known = KnownCalls()
        self.table = CallTable()
        self.notices = NoticeBoard(worker="w", instance="w.1", codec="json")
        self.pool = Pool(*answers)
        self.ends: list[Event] = []
        self.continuity = Continuity("fs1", self.pool, self.known, self.table, self.notices, self.ends.extend)

    async def checked(self) -> None:
        task = self.continuity._task
        assert task is not None
        await task


@pytest.fixture(autouse=True)
def _no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(continuity, "GRACE", 0.01)


async def test_calls_that_are_gone_are_ended_and_the_others_told() -> None:
    house = House([{"uuid": "b"}, {"uuid": "c", "dest": "1000"}])
    hear(house.known, event("CHANNEL_CREATE", "a"), event("CHANNEL_CREATE", "b"))
    house.known.doubt()
    house.continuity.check("c-1")
    await house.checked()
    assert [end.unique_id for end in house.ends] == ["a"]
    assert set(house.known.calls) == {"b", "c"}
    assert house.table.node_of("c") == "fs1"
    (message,) = house.notices.take()
    notice = decode_notice(message.payload)
    assert (notice.kind, notice.node, notice.data["part"], notice.data["parts"]) == ("snapshot", "fs1", 1, 1)
    assert [row["uuid"] for row in notice.data["channels"]] == ["b", "c"]  # type: ignore[attr-defined]
    assert house.continuity.checked


async def test_an_end_that_is_still_on_the_wire_is_waited_for() -> None:
    house = House([])
    hear(house.known, event("CHANNEL_CREATE", "a"))
    house.known.doubt()
    house.continuity.check("c-1")
    await asyncio.sleep(0)
    hear(house.known, event("CHANNEL_HANGUP_COMPLETE", "a"))
    await house.checked()
    assert not house.ends


async def test_a_restart_ends_the_calls_of_the_run_before_without_asking() -> None:
    house = House([])
    hear(house.known, event("CHANNEL_CREATE", "a", core="old"))
    house.continuity.check("new")
    assert [(end.identity, end["Hangup-Cause"]) for end in house.ends] == [("old:end:a", "SYSTEM_SHUTDOWN")]
    house.continuity.stop()


async def test_a_list_that_cannot_be_had_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(continuity, "ATTEMPTS", 1)
    house = House(CommandTimeout("no"))
    hear(house.known, event("CHANNEL_CREATE", "a"))
    house.known.doubt()
    house.continuity.check("c-1")
    await house.checked()
    assert not house.ends
    assert not house.continuity.checked
    assert not len(house.notices)


@pytest.mark.parametrize("text", ["-ERR no", "", "[]", '{"rows":[]}', '{"row_count":1,"rows":[1]}'])
def test_what_is_no_list_is_no_list(text: str) -> None:
    with pytest.raises(ValueError, match="not a list of channels"):
        read_channels(text)


def test_a_snapshot_is_cut_into_parts_that_fit() -> None:
    rows = [{"uuid": f"{number}", "name": "ü" * 400} for number in range(2000)]
    parts = split_rows(rows)
    assert len(parts) > 5
    assert [row for part in parts for row in part] == rows
    assert all(len(JSON.encode(part)) < MAX_SNAPSHOT_PART for part in parts)
    assert split_rows([]) == [[]]
