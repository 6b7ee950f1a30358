"""One command on every node, and what all of them said (``to: all``).

This room never tries a node twice, and waits for nobody longer than the command's deadline.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from bridge.errors import EslError
from bridge.messages.reply import CommandReply, Executed, Status
from bridge.relay.execution import Result, Work, failed_to_start, refused, result_of, start
from bridge.relay.routing import Nodes, Refusal, Router, Submission
from bridge.switch.command_pool import Outcome

Word = Callable[[str, Result, bool], CommandReply]


class Scatter:
    """One command on its way on many nodes.

    ``word`` tells one node's result (node, result, late), ``gate`` says why a node may not have the command; ``done``
    gets all replies once; ``late`` gets every late one, and with the last of them all replies anew (else None).
    """

    def __init__(
        self,
        work: Work,
        verb: str,
        *,
        deadline: float,
        nodes: Nodes,
        router: Router,
        word: Word,
        gate: Callable[[str], Refusal | None],
        done: Callable[[list[CommandReply]], None],
        late: Callable[[CommandReply, list[CommandReply] | None], None],
    ) -> None:
        self._work = work
        self._verb = verb
        self._deadline = deadline
        self._nodes = nodes
        self._router = router
        self._word = word
        self._gate = gate
        self._done = done
        self._late = late
        self._replies: dict[str, CommandReply | None] = {}
        self._submissions: dict[str, Submission] = {}

    def start(self, names: Sequence[str]) -> None:
        """Send to all of these nodes; ``done`` may be called before this returns."""
        self._replies = dict.fromkeys(names)
        for name in names:
            pool = self._nodes.pool(name)
            refusal = self._router.refusal(name) or self._gate(name)
            if pool is None or refusal is not None:
                self._replies[name] = self._word(name, refused(refusal) if refusal else _UNKNOWN_NODE, False)
                continue
            self._router.took(name, self._verb)
            try:
                ended = partial(self._ended, name)
                self._submissions[name] = start(self._work, pool, ended, deadline=self._deadline)
            except EslError as error:
                self._router.gave_back(name, self._verb, failed=True)
                self._replies[name] = self._word(name, failed_to_start(error), False)
        self._tell_when_whole()

    def give_up(self, result_of_written: Result, result_of_unwritten: Result) -> None:
        """Answer for the nodes that are still silent, and end."""
        for name, reply in self._replies.items():
            if reply is None:
                submission = self._submissions[name]
                written = submission.written_at > 0
                submission.cancel()
                self._router.gave_back(name, self._verb, failed=True)
                self._replies[name] = self._word(name, result_of_written if written else result_of_unwritten, False)
        self._tell_when_whole()

    def _ended(self, name: str, outcome: Outcome) -> None:
        result = result_of(outcome)
        if outcome.late:
            self._came_late(name, result)
            return
        self._router.gave_back(name, self._verb, failed=result.status is not Status.OK)
        if name in self._replies:
            self._replies[name] = self._word(name, result, False)
            self._tell_when_whole()

    def _came_late(self, name: str, result: Result) -> None:
        before = self._replies.get(name)
        if before is None or before.late or before.executed is not Executed.UNKNOWN:
            return
        reply = self._replies[name] = self._word(name, result, True)
        whole = [part for part in self._replies.values() if part is not None]
        settled = len(whole) == len(self._replies) and all(part.executed is not Executed.UNKNOWN for part in whole)
        self._late(reply, whole if settled else None)

    def _tell_when_whole(self) -> None:
        replies = [reply for reply in self._replies.values() if reply is not None]
        if len(replies) == len(self._replies):
            self._done(replies)


_UNKNOWN_NODE = Result(Status.UNAVAILABLE, Executed.NO, None, "unknown node")
