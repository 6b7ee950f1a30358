"""Rate limits of commands: one token bucket for each verb and node.

It never reads a clock: whoever asks says what time it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

_SWEEP_AT = 4096


class RateLimits:
    """How many commands of a verb a node may get in a second.

    ``per_second`` maps a verb to its rate; the bucket holds one second's worth, at least one command. Verbs that are
    not listed are free. Raises ``ValueError`` for a rate that is not positive.
    """

    __slots__ = ("_buckets", "_rates")

    def __init__(self, per_second: Mapping[str, float] | None = None) -> None:
        self._rates = {verb.lower(): float(rate) for verb, rate in (per_second or {}).items()}
        for verb, rate in self._rates.items():
            if not rate > 0:
                raise ValueError(f"the rate of {verb!r} must be a positive number of commands per second")
        self._buckets: dict[tuple[str, str], tuple[float, float]] = {}

    def __bool__(self) -> bool:
        return bool(self._rates)

    def take(self, verbs: Iterable[str], node: str, now: float) -> float:
        """Take one token for each limited verb; 0.0 when the command may go now.

        Otherwise nothing is taken, and the answer is how many seconds it is too early. ``now`` is in seconds of a
        clock that never goes back.
        """
        limited = [verb for verb in dict.fromkeys(verbs) if verb in self._rates]
        wait = 0.0
        left: list[tuple[tuple[str, str], float]] = []
        for verb in limited:
            rate = self._rates[verb]
            tokens = self._tokens((verb, node), rate, now)
            if tokens < 1.0 - 1e-9:  # a second at rate 3 is three thirds, whatever floats say
                wait = max(wait, (1.0 - tokens) / rate)
            left.append(((verb, node), tokens - 1.0))
        if wait:
            return wait
        for key, tokens in left:
            self._buckets[key] = (max(tokens, 0.0), now)
        if len(self._buckets) > _SWEEP_AT:
            self._sweep(now)
        return 0.0

    def _tokens(self, key: tuple[str, str], rate: float, now: float) -> float:
        size = max(rate, 1.0)
        bucket = self._buckets.get(key)
        if bucket is None:
            return size
        return min(size, bucket[0] + max(0.0, now - bucket[1]) * rate)

    def _sweep(self, now: float) -> None:
        """Forget buckets that are full again: they are as good as new ones."""
        self._buckets = {
            key: bucket
            for key, bucket in self._buckets.items()
            if self._tokens(key, self._rates[key[0]], now) < max(self._rates[key[0]], 1.0)
        }
