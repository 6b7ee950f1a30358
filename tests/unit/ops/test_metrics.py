from __future__ import annotations

import re
from pathlib import Path

import pytest

import bridge
from bridge.ops.metrics import Metrics

CONTRACT = [
    "events_received_total",
    "events_published_total",
    "events_dropped_total",
    "event_lag_seconds",
    "commands_total",
    "command_seconds",
    "commands_in_flight",
    "late_replies_total",
    "node_up",
    "node_sessions",
    "reconnects_total",
    "bus_up",
    "buffer_events",
    "buffer_bytes",
]


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(process=False)


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"esl_bridge_{name}", labels)


def test_every_metric_of_the_contract_exists(metrics):
    assert {f"esl_bridge_{name}" for name in CONTRACT} <= set(metrics.names())


def test_events_are_counted_by_node(metrics):
    metrics.events_received("fs1", 10)
    metrics.events_published("fs1", 7)
    metrics.events_published("fs2")
    metrics.events_dropped("fs1", "buffer", 3)
    metrics.events_repaired("fs1")
    metrics.event_read("fs1", 0.003)
    metrics.event_lag("fs1", 2.0)
    metrics.event_read("fs1", -5)
    metrics.event_lag("fs1", -5)
    metrics.gap("fs1", "link")
    assert value(metrics, "events_received_total", node="fs1") == 10
    assert value(metrics, "events_published_total", node="fs2") == 1
    assert value(metrics, "events_dropped_total", node="fs1", reason="buffer") == 3
    assert value(metrics, "event_lag_seconds_count") == 2
    assert value(metrics, "event_lag_seconds_bucket", le="0.0005") == 1
    assert value(metrics, "event_lag_seconds_sum") == pytest.approx(2.003)
    assert value(metrics, "node_event_lag_seconds", node="fs1") == 0
    assert metrics.totals["events_published"] == 8
    assert metrics.totals["events_dropped"] == 3


def test_commands_are_counted_by_op_and_status(metrics):
    metrics.command_done("api", "ok", 0.002)
    metrics.command_done("api", "ok", 0.002)
    metrics.command_done("bgapi", "timeout", 5)
    metrics.late_reply()
    assert value(metrics, "commands_total", op="api", status="ok") == 2
    assert value(metrics, "commands_total", op="bgapi", status="timeout") == 1
    assert value(metrics, "command_seconds_count") == 3
    assert value(metrics, "command_seconds_sum") == pytest.approx(5.004)
    buckets = {le: value(metrics, "command_seconds_bucket", le=le) for le in ("0.001", "0.0025", "2.5", "5.0", "+Inf")}
    assert buckets == {"0.001": 0, "0.0025": 2, "2.5": 2, "5.0": 3, "+Inf": 3}, "a bound belongs to its bucket"
    assert value(metrics, "late_replies_total") == 1
    assert metrics.totals["commands_failed"] == 1


def test_a_node_that_is_gone_has_no_gauges(metrics):
    metrics.node_up("fs1", True)
    metrics.node_sessions("fs1", 12, lag=0.01)
    metrics.reconnected("fs1")
    metrics.link_lost("fs1", "refused")
    assert value(metrics, "node_up", node="fs1") == 1
    assert value(metrics, "node_sessions", node="fs1") == 12
    assert value(metrics, "reconnects_total", node="fs1") == 1
    metrics.event_lag("fs1", 1.0)
    metrics.forget_node("fs1")
    assert value(metrics, "node_event_lag_seconds", node="fs1") is None
    metrics.forget_node("never seen")
    assert value(metrics, "node_up", node="fs1") is None


def test_the_first_connection_to_the_bus_is_no_reconnect(metrics):
    metrics.bus_up(False)
    metrics.bus_up(True)
    metrics.bus_up(True)
    assert value(metrics, "bus_reconnects_total") == 0
    metrics.bus_up(False)
    assert value(metrics, "bus_up") == 0
    metrics.bus_up(True)
    assert value(metrics, "bus_reconnects_total") == 1


def test_gauges_ask_when_they_are_read(metrics):
    waiting = 3
    metrics.watch_buffer(lambda: waiting, lambda: waiting * 100)
    metrics.watch_in_flight(lambda: waiting)
    waiting = 5
    assert value(metrics, "buffer_events") == 5
    assert value(metrics, "buffer_bytes") == 500
    assert value(metrics, "commands_in_flight") == 5


def test_two_workers_in_one_process_do_not_meet():
    Metrics().events_received("fs1")
    assert b'esl_bridge_events_received_total{node="fs1"}' not in Metrics().render()


def test_label_values_cannot_break_the_text(metrics):
    metrics.command_done('a"b\nc', "ok", 0)
    assert b'op="a\\"b\\nc"' in metrics.render()


def test_nothing_is_counted_that_nobody_tells() -> None:
    """A method that nobody calls is a metric that stands still, and an alert that never fires."""
    package = Path(bridge.__file__).parent
    told = "".join(path.read_text("utf-8") for path in package.rglob("*.py") if path.name != "metrics.py")
    methods = [name for name in vars(Metrics) if not name.startswith("_") and name != "names"]
    assert len(methods) > 20
    assert [name for name in methods if not re.search(rf"(meter|metrics)\.{name}\b", told)] == []


def test_all_families_are_those_of_the_registry(metrics):
    """The reference and the alerts are checked against this list."""
    metrics.command_done("api", "ok", 0.002)
    told = {family.name.removesuffix("_total").removesuffix("_info"): family.kind for family in metrics.families}
    ours = {one.name: one.type for one in metrics.registry.collect() if one.name.startswith("esl_bridge_")}
    assert told == ours


def test_sessions_that_nobody_tells_of_any_more_are_not_shown() -> None:
    metrics = Metrics(process=False)
    metrics.forget_sessions("fs1")  # never told
    for node in ("fs1", "fs2"):
        metrics.node_sessions(node, 500, 9.0)
    metrics.forget_sessions("fs1")
    text = metrics.render().decode()
    assert '_sessions{node="fs1"}' not in text
    assert 'heartbeat_lag_seconds{node="fs1"}' not in text
    assert 'esl_bridge_node_sessions{node="fs2"} 500.0' in text
