"""Losses that wait to be told: over restarts, by fencing token, and in the log where nothing outlives the worker."""

from __future__ import annotations

from pathlib import Path

import structlog

from bridge.bus.base import Message
from bridge.relay.chunks import Loss
from bridge.relay.untold import Untold

LOSS = Loss("0000000000000003.0.0", "buffer", 1.0, 2.0, before="a:1", count=7)
DOUBT = Loss("0000000000000003.0.0", "bus", 1.0, 2.0, count=2, exact=False)


def test_the_next_run_finds_them_once(tmp_path: Path) -> None:
    path = tmp_path / "w1.untold"
    one = Untold(path)
    one.open()
    one.owe("fs1", [LOSS, DOUBT])
    one.put_notices([Message("fs.bridge.gap", b"{}", "w1.1:4")])
    assert one.save()
    other = Untold(path)
    other.open()
    assert other.nodes == ["fs1"]
    assert other.take_notices() == [Message("fs.bridge.gap", b"{}", "w1.1:4")]
    assert other.due("fs1", 3) == [LOSS, DOUBT]
    assert other.due("fs1", 3) == []
    assert not path.exists()


def test_another_workers_time_in_between_makes_them_void(tmp_path: Path) -> None:
    path = tmp_path / "w1.untold"
    one = Untold(path)
    one.owe("fs1", [LOSS])
    assert one.due("fs1", 4) == []
    assert one.nodes == []


def test_a_file_that_cannot_be_read_is_put_aside(tmp_path: Path) -> None:
    path = tmp_path / "w1.untold"
    path.write_bytes(b"\xff nonsense")
    one = Untold(path)
    one.open()
    assert one.nodes == []
    assert (tmp_path / "w1.untold.broken").exists()


def test_where_nothing_lasts_it_says_so_with_the_counts(tmp_path: Path) -> None:
    for path in (None, tmp_path / "absent" / "w1.untold"):
        one = Untold(path)
        one.owe("fs1", [LOSS, DOUBT])
        with structlog.testing.capture_logs() as lines:
            assert not one.save()
            one.log_lost()
        told = [line for line in lines if "lost, and nobody" in line["event"]]
        assert [(line["node"], line["events"], line["exact"]) for line in told] == [("fs1", 7, True), ("fs1", 2, False)]
