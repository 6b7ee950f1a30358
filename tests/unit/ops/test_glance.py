from __future__ import annotations

from typing import Any

from bridge.ops.glance import Pace, node_numbers, put_together


def numbers(**more: Any) -> dict[str, Any]:
    return {
        "nodes": [], "gaps": {}, "totals": {}, "buffer": {}, "in_flight": 0, "in_hand": [],
        "journal": {"outcomes": {}, "failed": [], "slowest": []}, **more,
    }  # fmt: skip


def test_each_node_is_shown_as_its_owner_tells_it() -> None:
    known = [
        {"name": "fs1", "state": "UP", "owner": "w1"},
        {"name": "fs2", "state": "UP", "owner": "w2", "in_flight": 3},
    ]
    own = numbers(nodes=node_numbers([{"name": "fs1", "state": "SUSPECT", "owner": "w1", "rate": 5.0}]))
    other = numbers(
        nodes=node_numbers([{"name": "fs2", "state": "DOWN", "owner": "w2", "rate": 7.0, "reason": "x" * 999}])
    )
    before, after = put_together(own, [], known)["nodes"], put_together(own, [other], known)["nodes"]
    assert [(node["name"], node["state"], node["rate"]) for node in before] == [
        ("fs1", "SUSPECT", 5.0),
        ("fs2", "UP", None),
    ]
    assert before[1]["commands_in_flight"] == 3
    assert [(node["state"], node["rate"]) for node in after] == [("SUSPECT", 5.0), ("DOWN", 7.0)]
    assert len(after[1]["reason"]) == 200


def test_gaps_count_whoever_told_them_and_the_last_is_named() -> None:
    known = [{"name": "fs1", "state": "UP", "owner": "w2"}, {"name": "fs2", "state": "UP", "owner": "w2"}]
    own = numbers(
        gaps={"fs1": {"count": 2, "reason": "link", "at": 10.0}, "gone": {"count": 9, "reason": "bus", "at": 1.0}}
    )
    other = numbers(gaps={"fs1": {"count": 1, "reason": "failover", "at": 20.0}})
    first, second = put_together(own, [other], known)["nodes"]
    assert (first["gaps"], first["last_gap"]["reason"], first["last_gap"]["at"]) == (3, "failover", 20.0)
    assert "gaps" not in second


def test_commands_of_all_workers_are_one_list() -> None:
    def worker(*entries: tuple[float, float]) -> dict[str, Any]:
        listed = [{"at": at, "ms": ms} for at, ms in entries]
        journal = {"outcomes": {"ok": 2, "error": 1}, "failed": listed, "slowest": listed}
        return numbers(journal=journal, in_hand=listed, in_flight=5, totals={"commands": 3}, buffer={"events": 4})

    found = put_together(worker((1.0, 30.0), (4.0, 1.0)), [worker((2.0, 20.0))], [])
    assert [one["at"] for one in found["journal"]["failed"]] == [4.0, 2.0, 1.0]
    assert [one["ms"] for one in found["journal"]["slowest"]] == [30.0, 20.0, 1.0]
    assert [one["ms"] for one in found["in_hand"]] == [30.0, 20.0, 1.0]
    assert (found["in_flight"], found["totals"], found["buffer"]) == (10, {"commands": 6}, {"events": 8})
    assert found["journal"]["outcomes"] == {"ok": 4, "error": 2}


def test_a_pace_is_measured_over_a_moment_not_at_every_look() -> None:
    now = 100.0
    pace = Pace(lambda: now)
    assert pace.measure({"fs1": 50}) == {}
    now += 0.1
    assert pace.measure({"fs1": 60}) == {}
    now += 1.9
    assert pace.measure({"fs1": 150, "fs2": 7}) == {"fs1": 50.0}
    now += 0.1
    assert pace.measure({"fs1": 999}) == {"fs1": 50.0}
    now += 0.9
    assert pace.measure({"fs1": 100, "fs2": 17}) == {"fs1": 0.0, "fs2": 10.0}
