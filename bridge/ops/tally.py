"""Outcomes and times of commands, counted in plain numbers and made metrics when somebody asks.

A counter and a histogram of prometheus-client cost a microsecond a command, of some thirty in all. This room
is for what is counted in the event loop's thread alone.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector


class CommandTally(Collector):
    """``count`` and ``time`` are names and texts of the two metrics; ``buckets`` upper bounds in seconds."""

    def __init__(self, count: tuple[str, str], time: tuple[str, str], buckets: tuple[float, ...]) -> None:
        self._count = count
        self._time = time
        self._buckets = buckets
        self._outcomes: dict[tuple[str, str], int] = {}
        self._filled = [0] * (len(buckets) + 1)
        self._sum = 0.0

    def done(self, op: str, status: str, seconds: float) -> None:
        """Count one."""
        key = (op, status)
        outcomes = self._outcomes
        outcomes[key] = outcomes.get(key, 0) + 1
        self._filled[bisect_left(self._buckets, seconds)] += 1
        self._sum += seconds

    def collect(self) -> Iterator[Metric]:
        """See ``Collector``; another thread may ask."""
        outcomes = CounterMetricFamily(*self._count, labels=("op", "status"))
        for labels, count in list(self._outcomes.items()):
            outcomes.add_metric(labels, count)
        yield outcomes
        total = 0
        buckets = []
        for bound, count in zip((*self._buckets, float("inf")), list(self._filled), strict=True):
            total += count
            buckets.append(("+Inf" if bound == float("inf") else str(float(bound)), float(total)))
        yield HistogramMetricFamily(*self._time, buckets=buckets, sum_value=self._sum)
