"""The log: readable on a terminal, JSON otherwise, secrets redacted everywhere, repeats held back.

This room sets up structlog and the standard library's logging as one; it never decides what is worth a line.
"""

from __future__ import annotations

import logging
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, MutableMapping
from typing import Any, TextIO

import structlog

from bridge.redaction import Redactor

EventDict = MutableMapping[str, Any]

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
NOISY = ("nats", "asyncio", "aiohttp.access", "redis")
_UNTOUCHED = frozenset({"timestamp", "level", "_record", "_from_structlog", "exc_info"})


class RepeatLimiter:
    """Lets the first ``burst`` lines of a kind pass in each ``window`` (s); the next window's first tells how many not.

    Lines are of one kind when text, level, node and reason agree. Memory is bounded by ``kinds``.
    """

    def __init__(
        self,
        burst: int = 5,
        window: float = 60.0,
        kinds: int = 1024,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._burst = burst
        self._window = window
        self._kinds = kinds
        self._clock = clock
        self._seen: OrderedDict[tuple[str, ...], list[float]] = OrderedDict()

    def __call__(self, logger: object, method: str, event: EventDict) -> EventDict:
        """Pass the line, or raise ``structlog.DropEvent``."""
        key = (method, *(str(event.get(name, "")) for name in ("event", "node", "reason")))
        now = self._clock()
        entry = self._seen.get(key)
        if entry is None:
            entry = self._seen[key] = [now, 0.0, 0.0]
            if len(self._seen) > self._kinds:
                self._seen.popitem(last=False)
        self._seen.move_to_end(key)
        if now - entry[0] >= self._window:
            held_back = int(entry[2])
            entry[:] = [now, 1.0, 0.0]
            if held_back:
                event["held_back"] = held_back
            return event
        entry[1] += 1
        if entry[1] > self._burst:
            entry[2] += 1
            raise structlog.DropEvent
        return event


def redact(redactor: Redactor) -> Callable[[object, str, EventDict], EventDict]:
    """Make the processor that takes the secrets out of every value of a line."""

    def processor(logger: object, method: str, event: EventDict) -> EventDict:
        for key in list(event):
            if key not in _UNTOUCHED:
                event[key] = redactor.value(key, event[key])
        return event

    return processor


def _first_things_first(logger: object, method: str, event: EventDict) -> EventDict:
    first = {key: event.pop(key) for key in ("timestamp", "level", "event") if key in event}
    return {**first, **event}


def configure_logging(
    level: str = "info",
    format: str = "auto",
    *,
    secrets: Iterable[str] = (),
    stream: TextIO | None = None,
    limiter: RepeatLimiter | None = None,
) -> None:
    """Set up all logging of the process on ``stream`` (stderr).

    ``level`` is debug, info, warning or error; ``format`` text, json or auto (text on a terminal); ``secrets``
    are blanked out wherever they turn up, tracebacks included.
    """
    stream = sys.stderr if stream is None else stream
    terminal = hasattr(stream, "isatty") and stream.isatty()
    if format == "auto":
        format = "text" if terminal else "json"
    if limiter is None:
        limiter = RepeatLimiter()
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(allow=()),
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="timestamp"),
    ]
    last: list[Any] = [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        _first_things_first,
        # Tracebacks become text first: whatever an exception quotes passes the redaction too.
        structlog.processors.format_exc_info,
        redact(Redactor(secrets)),
    ]
    if format == "json":
        last.append(structlog.processors.JSONRenderer(sort_keys=False, ensure_ascii=False))
    else:
        last.append(structlog.dev.ConsoleRenderer(colors=terminal, exception_formatter=structlog.dev.plain_traceback))
    handler = logging.StreamHandler(stream)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processors=last, foreign_pre_chain=shared))
    handler.addFilter(_ForeignLimit(limiter))
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(LEVELS[level])
    for name in NOISY:
        # Their connection errors come to us as exceptions, and are told once, in our words.
        logging.getLogger(name).setLevel(max(LEVELS[level], logging.WARNING if level != "debug" else logging.DEBUG))
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            limiter,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


def use_standard_logging() -> None:
    """Hand lines to the standard library's logging where nobody has set structlog up; never to stdout.

    So a program that embeds a worker decides itself where its log goes, and a test runner captures it.
    """
    if structlog.is_configured():
        return
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.processors.format_exc_info,
            structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


class _ForeignLimit(logging.Filter):
    """Holds back repeats of the libraries' own lines; ours have passed the limiter already."""

    def __init__(self, limiter: RepeatLimiter) -> None:
        super().__init__()
        self._limiter = limiter

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.msg, dict):
            return True
        try:
            self._limiter(None, record.levelname.lower(), {"event": str(record.msg)})
        except structlog.DropEvent:
            return False
        return True
