"""Finds the node that has a call: the own table, then the bus, then ``uuid_exists`` on every node.

This room never sends the caller's command, and never asks for one uuid twice at the same time.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

import msgspec

from bridge.errors import InvalidCommand
from bridge.esl.commands import api
from bridge.messages.reply import Status
from bridge.relay.call_table import CallTable
from bridge.relay.routing import Nodes, Refusal
from bridge.switch.command_pool import Outcome
from bridge.switch.node import NodeState


class Found(msgspec.Struct, frozen=True):
    """The end of a search for ``uuid``: the node, or "" and the nodes that could not be asked."""

    uuid: str
    node: str = ""
    silent: tuple[str, ...] = ()

    @property
    def refusal(self) -> Refusal:
        """What to answer when there is no node."""
        if not self.silent:
            return Refusal(Status.NO_ROUTE, f"no node has the call {self.uuid}")
        silent = ", ".join(self.silent)
        return Refusal(Status.UNAVAILABLE, f"no node knows this call, and not all could be asked: {silent}")


Answer = Callable[[Found], None]


class CallDirectory(Protocol):
    """The look-up on the bus: owners of nodes answer for their calls."""

    def ask(self, uuid: str, deadline: float, answer: Callable[[str], None]) -> None:
        """Ask once; ``answer`` is called exactly once, by ``deadline`` (loop time), with the node or ""."""


class CallSearch:
    """Searches for calls. ``timeout`` in seconds bounds one search, ``clock`` gives loop time."""

    def __init__(
        self,
        nodes: Nodes,
        calls: CallTable,
        *,
        scatter_limit: int,
        timeout: float,
        clock: Callable[[], float],
        directory: CallDirectory | None = None,
    ) -> None:
        self._nodes = nodes
        self._calls = calls
        self.scatter_limit = scatter_limit
        self._timeout = timeout
        self._clock = clock
        self._directory = directory
        self._asking: dict[str, list[Answer]] = {}

    def find(self, uuid: str, answer: Answer) -> None:
        """Call ``answer`` once with what was found: at once when the table knows, else within the time-out."""
        node = self._calls.node_of(uuid)
        if node is not None and self._nodes.state(node):
            answer(Found(uuid, node))
        elif self._calls.is_unknown(uuid):
            answer(Found(uuid))
        elif uuid in self._asking:
            self._asking[uuid].append(answer)
        else:
            self._asking[uuid] = [answer]
            deadline = self._clock() + self._timeout
            if self._directory is None:
                self._scatter(uuid, deadline)
            else:
                self._directory.ask(uuid, deadline, partial(self._directory_said, uuid, deadline))

    def _directory_said(self, uuid: str, deadline: float, node: str) -> None:
        if node:
            self._end(Found(uuid, node))
        else:
            self._scatter(uuid, deadline)

    def _scatter(self, uuid: str, deadline: float) -> None:
        names = list(self._nodes.names())
        if len(names) > self.scatter_limit:
            self._end(Found(uuid))
            return
        try:
            question = api(f"uuid_exists {uuid}")
        except InvalidCommand:
            question = b""
        if not question or _unloads(uuid):  # no call has such a name
            self._end(Found(uuid))
            return
        asked = [
            name for name in names if self._nodes.state(name) != NodeState.DOWN and self._nodes.pool(name) is not None
        ]
        poll = _Poll(len(asked), [name for name in names if name not in asked])
        if not asked:
            self._end(Found(uuid, silent=tuple(poll.silent)))
        for name in asked:
            pool = self._nodes.pool(name)
            assert pool is not None
            pool.submit(question, partial(self._node_said, uuid, poll, name), deadline=deadline)

    def _node_said(self, uuid: str, poll: _Poll, name: str, outcome: Outcome) -> None:
        if outcome.late:
            return
        poll.open -= 1
        reply = outcome.reply
        if reply is None or reply.text.strip() not in ("true", "false"):
            poll.silent.append(name)
        elif reply.text.strip() == "true" and not poll.over:
            poll.over = True
            self._calls.note_found(uuid, name)
            self._end(Found(uuid, name))
        if poll.open == 0 and not poll.over:
            poll.over = True
            self._end(Found(uuid, silent=tuple(poll.silent)))

    def _end(self, found: Found) -> None:
        if not found.node and not found.silent:
            self._calls.note_unknown(found.uuid)
        for answer in self._asking.pop(found.uuid):
            answer(found)


def _unloads(uuid: str) -> bool:
    """Whether FreeSWITCH, asked for this, would unload its Event Socket instead: it does at a pair of words."""
    text = uuid.lower()
    return "mod_event_socket" in text and ("unload" in text or "reload" in text)


class _Poll:
    """One question put to many nodes."""

    __slots__ = ("open", "over", "silent")

    def __init__(self, asked: int, silent: list[str]) -> None:
        self.open = asked
        self.silent = silent
        self.over = False
