"""What waits for the bus: chunks of events, the losses between them, and how dear each event is.

This room only describes; it neither keeps nor drops anything.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

from bridge.bus.base import Message
from bridge.messages.notice import GapReason
from bridge.messages.wrapping import TYPE_PREFIX

# What an entry costs beside its payload: the Message, its strings, its place in a list.
ENTRY_OVERHEAD = 400

DropPolicy = Literal["oldest", "newest", "class"]


class Loss(msgspec.Struct):
    """Events of one node that will never reach the bus, as the ``gap`` notice tells it.

    ``start`` and ``end`` are Unix times of reading, ``before`` and ``after`` the identities around the hole (empty
    when unknown), ``count`` how many; ``exact`` is False when the count is an upper bound. ``count`` is None for an
    outage of the link: nobody knows what FreeSWITCH said meanwhile; ``uncertain`` says that part of it may have been
    published all the same.
    """

    epoch: str
    reason: GapReason
    start: float
    end: float
    before: str = ""
    after: str = ""
    count: int | None = 0
    exact: bool = True
    uncertain: bool = False


class Chunk(msgspec.Struct, gc=False):
    """Consecutive events of one link: ``size`` in bytes, ``at`` the Unix time when they were read.

    ``holes`` are losses between the chunk before and this one; ``parcel`` is the number of the parcel on disk that
    goes when the broker has the chunk (0: none); ``read`` numbers the socket reads of this run (0: an earlier one);
    ``before`` is the identity of the event that left before it, known when it was taken.
    """

    epoch: str
    messages: list[Message]
    size: int
    at: float
    holes: list[Loss] | None = None
    parcel: int = 0
    read: int = 0
    before: str = ""


class Receipt(msgspec.Struct, gc=False):
    """What is remembered of a chunk that was written, until the broker has it: its events themselves are not needed."""

    epoch: str
    at: float
    count: int
    last: str
    read: int


def receipt_of(chunk: Chunk) -> Receipt:
    """A chunk without its events."""
    return Receipt(chunk.epoch, chunk.at, len(chunk.messages), identity_of(chunk.messages[-1]), chunk.read)


def add_loss(losses: list[Loss], loss: Loss) -> None:
    """Put a loss behind the others; of one reason and epoch they become one."""
    for known in losses:
        if known.reason == loss.reason and known.epoch == loss.epoch:
            known.end = max(known.end, loss.end)
            known.after = loss.after  # unknown yet where that of the later is
            if known.count is not None and loss.count is not None:
                known.count += loss.count
            known.exact = known.exact and loss.exact
            return
    losses.append(loss)


def corrected(at: float, step: float, now: float) -> float:
    """An instant by the clock that was set by ``step`` s a moment ago, where it was told by the one before.

    What was read since then may be among what it is asked for: it is not moved into the future, nor made older than it
    may be.
    """
    if step > 0:
        return min(at + step, now)
    return at + step if at > now else at


def identity_of(message: Message) -> str:
    """The event's identity: the message's id without the name of its route."""
    return message.id.partition("/")[0]


MADE_UP = "end:"
"""How the ``Event-Sequence`` of an event begins that the bridge made up."""


def is_made_up(identity: str) -> bool:
    """Whether no link of another worker has this event: then it is no mark that could be found there."""
    return identity.partition(":")[2].startswith(MADE_UP)


RANKS = 4
_RANKED: dict[str, int] = {
    **dict.fromkeys(("CHANNEL_HANGUP_COMPLETE", "BACKGROUND_JOB"), 0),
    **dict.fromkeys(("DTMF", "TALK", "NOTALK", "CHANNEL_EXECUTE", "CHANNEL_EXECUTE_COMPLETE", "API", "COMMAND"), 2),
    **dict.fromkeys(
        ("HEARTBEAT", "SESSION_HEARTBEAT", "RE_SCHEDULE", "ADD_SCHEDULE", "DEL_SCHEDULE", "PRESENCE_IN",
         "PRESENCE_OUT", "PRESENCE_PROBE", "MESSAGE_QUERY", "MESSAGE_WAITING", "LOG", "SEND_INFO"), 3),
}  # fmt: skip
_BY_TYPE = {TYPE_PREFIX + name: rank for name, rank in _RANKED.items()}
_USUAL_RANK = 1


def rank_of(message: Message) -> int:
    """How soon an event may be dropped by class: 0 last, 3 first."""
    return _BY_TYPE.get(message.type, _USUAL_RANK)


def share_of(chunk: Chunk, messages: list[Message]) -> int:
    """The bytes of a part of a chunk."""
    return chunk.size * len(messages) // len(chunk.messages)


def add_in_front(losses: list[Loss], loss: Loss) -> None:
    """Put a loss in front of the others; of one reason and epoch they become one."""
    for known in losses:
        if known.reason == loss.reason and known.epoch == loss.epoch:
            known.start = min(known.start, loss.start)
            known.before = loss.before or known.before
            if known.count is not None and loss.count is not None:
                known.count += loss.count
            known.exact = known.exact and loss.exact
            return
    losses.insert(0, loss)


def count_of(chunks: Iterable[Chunk]) -> int:
    """How many messages the chunks hold."""
    return sum([len(chunk.messages) for chunk in chunks])
