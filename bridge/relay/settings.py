"""What the command path needs to know, as plain values; the composition root fills it.

This room never reads a file or the environment.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from bridge.bus.base import Delivery
from bridge.messages.reply import CommandReply
from bridge.messages.request import CommandRequest
from bridge.relay.verbs import DEFAULT_BACKGROUND, DEFAULT_SAFE


@dataclass(frozen=True, slots=True)
class CommandSettings:
    """The settings of ``[commands]`` and ``[esl]`` as the command path uses them; times in seconds."""

    queues: Sequence[str] = ("esl.cmd", "esl.queue")
    """Shared queues; ``<queue>.<node>`` is the strictly ordered queue of a node."""
    reply_to: Sequence[str] = ("_INBOX.>", "esl.reply.>")
    reply_to_glob: bool = False
    """The patterns of ``reply_to`` are globs (Redis), not NATS subjects."""
    reply_prefix: str = ""
    """Replies without a reply address go to this and the id (Redis: ``esl.reply.``); empty: nowhere."""
    max_in_flight: int = 512
    max_in_flight_node: int = 256
    max_waiting_repeats: int = 65_536
    """Requests beyond ``max_in_flight`` that wait for what the ledger says of their ids (some 2 KB each): repeats of
    what still runs, and what a push queue brings at once. More are told ``busy``.
    """
    max_timeout: float = 3600.0
    job_timeout: float = 120.0
    connect_timeout: float = 5.0
    command_timeout: float = 5.0
    scatter_limit: int = 16
    max_request: int = 1_048_576
    """Largest request in bytes; FreeSWITCH reads a command byte by byte."""
    background: Sequence[str] = DEFAULT_BACKGROUND
    safe: Sequence[str] = DEFAULT_SAFE
    rates: Mapping[str, float] = field(default_factory=dict)
    """Most commands per second of a verb on one node."""


def _ignore(*_: object) -> None:
    return None


@dataclass(slots=True)
class CommandHooks:
    """What others want to hear of the command path; each is called synchronously and must not block."""

    on_reply: Callable[[str, str, float], None] = _ignore
    """Every final reply: op ("" when the request could not be read), status, seconds since it was queued."""
    on_late: Callable[[dict[str, object]], None] = _ignore
    """Every late answer, as the reply map for ``fs.bridge.late``."""
    on_denied: Callable[[str, str], None] = _ignore
    """Every denial: op, reason."""
    on_dead: Callable[[str], None] = _ignore
    """Every request that went to the dead letters: the reason."""
    on_room: Callable[[], None] = _ignore
    """``room()``, or ``room_in_line()`` of a node, was 0 and is not any more."""
    wrap: Callable[[Delivery], Delivery] | None = None
    """Every delivery, before it is read: what comes back is taken in its place (tracing)."""
    audit: Callable[[CommandRequest, CommandReply, str, str], None] | None = None
    """Every request that could be read, with its final reply, its queue and where the reply goes."""
