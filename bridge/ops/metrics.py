"""The numbers of contract section 8 as an object with plain callables that the lower floors are given.

This room counts what it is told; it never asks anybody, except for the gauges it was given a question for.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.gc_collector import GCCollector
from prometheus_client.process_collector import ProcessCollector

import bridge
from bridge.ops.tally import CommandTally

PREFIX = "esl_bridge_"
LAG_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
COMMAND_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Family(NamedTuple):
    """What one metric is: ``name`` as it is asked for, ``kind`` (counter, gauge, histogram, info), ``labels``, text."""

    name: str
    kind: str
    labels: tuple[str, ...]
    text: str
    buckets: tuple[float, ...] = ()
    """Upper bounds of a histogram, without infinity."""


class Metrics:
    """All metrics of one worker, in a registry of its own.

    The methods are cheap enough for every batch of events (children are kept, labels looked up once). ``process``
    adds the process's own figures (CPU, memory, open files).
    """

    def __init__(self, *, process: bool = True) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry(auto_describe=True)
        self.families: list[Family] = []
        """All that there is of ours."""
        if process:
            ProcessCollector(registry=self.registry)
            GCCollector(registry=self.registry)
        self._received = self._counter("events_received", "Events read from FreeSWITCH", "node")
        self._published = self._counter("events_published", "Events written to the bus", "node")
        self._dropped = self._counter("events_dropped", "Events that did not reach the bus", "node", "reason")
        self._repaired = self._counter("events_repaired", "Events whose invalid UTF-8 was repaired", "node")
        self._event_lag = self._histogram("event_lag_seconds", "FreeSWITCH's timestamp to the bus write", LAG_BUCKETS)
        self._node_event_lag = self._gauge(
            "node_event_lag_seconds",
            "The same of the node's last events: FreeSWITCH's timestamp to the bus write",
            "node",
        )
        self._heartbeat_lag = self._gauge("heartbeat_lag_seconds", "HEARTBEAT's timestamp to its arrival", "node")
        self._commands = CommandTally(
            self._note("commands_total", "counter", "Command requests by their outcome", ("op", "status")),
            self._note("command_seconds", "histogram", "Request taken to final reply", (), COMMAND_BUCKETS),
            COMMAND_BUCKETS,
        )
        self.registry.register(self._commands)
        self._in_flight = self._gauge("commands_in_flight", "Requests in hand")
        self._denied = self._counter("commands_denied", "Requests that the policy refused", "op")
        self._dead = self._counter("dead_letters", "Requests that went to the dead letters")
        self._late = self._counter("late_replies", "Replies that came after their timeout")
        self._node_up = self._gauge("node_up", "1 when the node is UP or SUSPECT", "node")
        self._node_sessions = self._gauge("node_sessions", "Sessions of the node by its last HEARTBEAT", "node")
        self._reconnects = self._counter("reconnects", "Event links made again", "node")
        self._link_losses = self._counter("link_losses", "Event links lost or not made", "node", "reason")
        self._gaps = self._counter("gaps", "Gaps told on fs.bridge.gap", "node", "reason")
        self._bus_up = self._gauge("bus_up", "1 when the bus is connected")
        self._bus_reconnects = self._counter("bus_reconnects", "Bus connections made again")
        self._clock_ahead = self._gauge(
            "clock_ahead_seconds", "This machine's clock minus the broker's, where durable requests are taken"
        )
        self._buffer_events = self._gauge("buffer_events", "Events that wait for the bus")
        self._buffer_bytes = self._gauge("buffer_bytes", "Bytes of events that wait for the bus")
        self._reloads = self._counter("reloads", "Configurations that were to be taken over", "outcome")
        self._reload_good = self._gauge("config_good", "0 when the last reload was refused: what runs is not the file")
        self._reload_good.set(1)
        build, text = self._note("build_info", "info", "What runs here", ("version",))
        Info(build.removesuffix("_info"), text, registry=self.registry).info({"version": bridge.__version__})

        self._by_node: dict[tuple[int, str], Counter] = {}
        self._read_lag: dict[str, float] = {}
        self._lag_of: dict[str, Gauge] = {}
        self._bus_was_up = False
        self._bus_ever_up = False
        self.gaps: dict[str, dict[str, Any]] = {}
        """For people: of each node how many gaps were told, and the last one's reason and Unix time (s)."""
        self.totals: dict[str, int] = dict.fromkeys(
            ("events_received", "events_published", "events_dropped", "commands", "commands_failed", "late_replies"), 0
        )

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(*self._note(f"{name}_total", "counter", text, labels), labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(*self._note(name, "gauge", text, labels), labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        full, text = self._note(name, "histogram", text, (), buckets)
        return Histogram(full, text, buckets=buckets, registry=self.registry)

    def _note(
        self, name: str, kind: str, text: str, labels: tuple[str, ...], buckets: tuple[float, ...] = ()
    ) -> tuple[str, str]:
        """Put a metric into the list of all; returns its name and text."""
        self.families.append(Family(PREFIX + name, kind, labels, text, buckets))
        return PREFIX + name, text

    def _child(self, counter: Counter, node: str) -> Counter:
        key = (id(counter), node)
        child = self._by_node.get(key)
        if child is None:
            child = self._by_node[key] = counter.labels(node)
        return child

    # --- events ---

    def events_received(self, node: str, count: int = 1) -> None:
        """Count events read from a node."""
        self._child(self._received, node).inc(count)
        self.totals["events_received"] += count

    def events_published(self, node: str, count: int = 1) -> None:
        """Count events of a node that were written to the bus."""
        self._child(self._published, node).inc(count)
        self.totals["events_published"] += count

    def events_dropped(self, node: str, reason: str, count: int = 1) -> None:
        """Count events of a node that did not reach the bus."""
        self._dropped.labels(node, reason).inc(count)
        self.totals["events_dropped"] += count

    def events_repaired(self, node: str, count: int = 1) -> None:
        """Count events whose invalid UTF-8 was repaired."""
        self._child(self._repaired, node).inc(count)

    def event_read(self, node: str, lag: float) -> None:
        """Note the age (s) of the last event of a read of the node's socket."""
        self._read_lag[node] = lag if lag > 0 else 0.0

    def event_lag(self, node: str, waited: float) -> None:
        """Events of the node were written to the bus, ``waited`` s after they were read; once a batch is enough."""
        lag = self._read_lag.get(node, 0.0) + (waited if waited > 0 else 0.0)
        self._event_lag.observe(lag)
        child = self._lag_of.get(node)
        if child is None:
            child = self._lag_of[node] = self._node_event_lag.labels(node)
        child.set(lag)

    def gap(self, node: str, reason: str) -> None:
        """Count a gap that was told."""
        self._gaps.labels(node, reason).inc()
        count = self.gaps[node]["count"] if node in self.gaps else 0
        self.gaps[node] = {"count": count + 1, "reason": reason, "at": round(time.time(), 3)}

    # --- commands ---

    def command_done(self, op: str, status: str, seconds: float) -> None:
        """Count a final reply, ``seconds`` after its request was taken."""
        self._commands.done(op, status, seconds)
        self.totals["commands"] += 1
        if status not in ("ok", "accepted"):
            self.totals["commands_failed"] += 1

    def denied(self, op: str) -> None:
        """Count a request that the policy refused."""
        self._denied.labels(op).inc()

    def dead_letter(self, _reason: str = "") -> None:
        """Count a request that went to the dead letters."""
        self._dead.inc()

    def late_reply(self) -> None:
        """Count a reply that came after its timeout."""
        self._late.inc()
        self.totals["late_replies"] += 1

    def reloaded(self, good: bool) -> None:
        """Count a reload; ``good`` when it was taken over."""
        self._reloads.labels("ok" if good else "refused").inc()
        self._reload_good.set(1 if good else 0)

    # --- nodes ---

    def node_up(self, node: str, up: bool) -> None:
        """Say whether a node serves."""
        self._node_up.labels(node).set(1 if up else 0)

    def node_sessions(self, node: str, sessions: int, lag: float | None = None) -> None:
        """Note the sessions of a HEARTBEAT and the time it took to arrive (s)."""
        self._node_sessions.labels(node).set(sessions)
        if lag is not None:
            self._heartbeat_lag.labels(node).set(lag)

    def forget_sessions(self, node: str) -> None:
        """No HEARTBEAT of late: an old number, which another worker may know better, is worse than none."""
        for gauge in (self._node_sessions, self._heartbeat_lag):
            gauge.remove_by_labels({"node": node})

    def link_lost(self, node: str, reason: str) -> None:
        """Count an event link lost or not made, by its class (refused, timeout, auth_failed, ...)."""
        self._link_losses.labels(node, reason).inc()

    def reconnected(self, node: str) -> None:
        """Count an event link made again."""
        self._child(self._reconnects, node).inc()

    def forget_node(self, node: str) -> None:
        """Take away the gauges of a node that is no longer ours."""
        self._lag_of.pop(node, None)
        self._read_lag.pop(node, None)
        for gauge in (self._node_up, self._node_sessions, self._heartbeat_lag, self._node_event_lag):
            gauge.remove_by_labels({"node": node})

    # --- bus ---

    def bus_up(self, up: bool) -> None:
        """Say whether the bus is connected; counts reconnects by itself."""
        self._bus_up.set(1 if up else 0)
        if up and not self._bus_was_up and self._bus_ever_up:
            self._bus_reconnects.inc()
        self._bus_was_up = up
        self._bus_ever_up = self._bus_ever_up or up

    # --- gauges that are asked when they are read ---

    def watch_in_flight(self, ask: Callable[[], int]) -> None:
        """Give the question for ``commands_in_flight``."""
        self._in_flight.set_function(ask)

    def watch_clock(self, ask: Callable[[], float | None]) -> None:
        """Give the question for ``clock_ahead_seconds``; 0 while nobody knows."""
        self._clock_ahead.set_function(lambda: ask() or 0.0)

    def watch_buffer(self, events: Callable[[], int], size: Callable[[], int]) -> None:
        """Give the questions for ``buffer_events`` and ``buffer_bytes``."""
        self._buffer_events.set_function(events)
        self._buffer_bytes.set_function(size)

    def names(self) -> list[str]:
        """The names of all metrics of ours as Prometheus sees them (counters end in ``_total``)."""
        names = []
        for family in self.registry.collect():
            if family.name.startswith(PREFIX):
                suffix = {"counter": "_total", "info": "_info"}.get(family.type, "")
                names.append(family.name + suffix)
        return sorted(names)

    def render(self) -> bytes:
        """The text for ``/metrics``."""
        return generate_latest(self.registry)
