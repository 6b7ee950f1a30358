"""One request in hand and its reply to come: what is known of it on its way.

This room never acts; ``commands`` moves an exchange on, step by step.
"""

from __future__ import annotations

import msgspec

from bridge.bus.base import Delivery
from bridge.messages.codec import Codec
from bridge.messages.reply import CommandReply
from bridge.messages.request import CommandRequest
from bridge.relay.execution import Result, Work
from bridge.relay.routing import Refusal, Submission
from bridge.relay.scatter import Scatter
from bridge.switch.deadlines import Deadline


class Exchange(msgspec.Struct, eq=False, kw_only=True):
    """One request in hand; instants are loop time (s)."""

    delivery: Delivery
    request: CommandRequest
    codec: Codec
    address: str
    """Where its replies go."""
    id: str
    key: str
    """Its id in the ledger, "" for none."""
    queue_node: str
    """The node of the strictly ordered queue that it came from, else ""."""
    queued_at: float
    deadline: float
    taken_at: float
    ours_until: float
    """From then on another worker may have its entry, and is asked for before the command goes anywhere."""
    to: str
    """Its target; the default of its command where the request names none."""
    verb: str
    safe: bool
    work: Work | None = None
    refusal: Refusal | None = None
    """Why it will not run, whatever the ledger knows of its id."""

    place: int = 0
    """In the line of its node; 0 when it never stood there."""
    turn: bool = False
    """It is its turn in that line."""
    timer: Deadline | None = None
    """Only while it waits for a turn or for a search; afterwards the pool watches its deadline."""
    ours: bool = False
    """The record of its entry says that we have it; asked for only where another worker may have it too."""
    asked: bool = False
    """The ledger was asked."""
    marked: bool = False
    """The ledger holds our marker."""

    node: str = ""
    job: str = ""
    told_accepted: bool = False
    tried: tuple[str, ...] = ()
    """Nodes that could not take it."""
    attempts: int = 0
    doubt: Result | None = None
    """What came of an attempt before this one that may have run (idempotent requests only)."""
    submission: Submission | None = None
    scatter: Scatter | None = None

    ended: bool = False
    """The final reply is decided."""
    unknown: bool = False
    """... and says ``timeout`` or ``connection_lost``."""
    answered: bool = False
    """The final reply has left."""
    held: list[tuple[CommandReply, CommandReply | None]] | None = None
    """Late answers that came in between: they follow the final reply."""
    late: bool = False
    """A late answer followed it."""

    def asks_for(self, uuid: str) -> bool:
        """Whether it only asks whether this very call exists; its target may be another call."""
        return self.verb == "uuid_exists" and self.request.command.split()[1:] == [uuid]
