"""The worker's side: a reply is written, and only then its entry removed; after a broken connection only if it must.

Where one server holds both keys, reply and removal are one transaction: it ran or it did not, and the entry shows
which. A refusal of an entry that another worker may have claimed meanwhile is one script, which looks first whose it
is. In a Cluster they are two steps, and a reply in doubt is written again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from bridge.bus.redis.entry import Entry
from bridge.bus.redis.link import Operation, ignore
from bridge.bus.redis.publish import MAX_PAYLOAD
from bridge.bus.redis.wire import EXEC, MULTI, Reply, ReplyError, command
from bridge.bus.redis.writers import Writers
from bridge.errors import MessageTooLarge

_RETRY_AFTER = 1.0  # s; a server out of memory
_MAX_DEAD = 10_000
_PUBSUB = "pubsub:"
_ANOTHERS = "another worker has a request by now that was refused here: it answers"


class Answers:
    """Writes replies and removals, gathered per turn of the loop."""

    def __init__(self, writers: Writers, *, reply_ttl: float, dead: str, on_problem: Callable[[str], None]) -> None:
        self._writers = writers
        self._dead = dead.encode()
        self._on_problem = on_problem
        ttl = b"%d" % max(1, round(reply_ttl * 1000))
        self.ttl = ttl
        self._expiry = b"$%d\r\n%b\r\n" % (len(ttl), ttl)
        self._round: _Round | None = None

    def send(self, address: str, payload: bytes) -> None:
        """Write one reply; it waits while the broker is away, and is not written again when in doubt."""
        key, commands, count = self._reply(address, payload)
        early = _Early(self, key, commands, count)
        if self._writers.together(key, key):
            self.gather(early)  # in order with the final replies of this turn
        else:
            early.transact()

    def finish(self, address: str, payload: bytes, entry: Entry, *, refusal: bool = False) -> None:
        """Write the reply (none when ``address`` is empty), then remove the entry.

        A ``refusal`` is not written where the entry is another worker's by now.
        """
        if address:
            key, commands, count = self._reply(address, payload)
            completion = _Completion(self, entry, key, commands, count)
            if refusal:
                completion.refusal = payload
                completion.channel = address.startswith(_PUBSUB)
            completion.start()
        else:
            _Completion(self, entry, b"", b"", 0).start()

    def reject(self, entry: Entry, reason: str) -> None:
        """Write the dead letter, then remove the entry."""
        key, commands = self.dead_letter(entry, reason)
        _Completion(self, entry, key, commands, 1, dead=True).start()

    def dead_letter(self, entry: Entry, reason: str) -> tuple[bytes, bytes]:
        """The key of the dead letters, and the command that adds one."""
        fields = entry.dead_letter(reason)
        return self._dead, command(b"XADD", self._dead, b"MAXLEN", b"~", b"%d" % _MAX_DEAD, b"*", *fields)

    def gather(self, completion: _Completion | _Early) -> None:
        """Transact at the end of this turn of the loop, together with the others of this turn."""
        if self._round is None:
            self._round = _Round(self)
            self._round.completions.append(completion)
            self._writers.submit(self._round)
        else:
            self._round.completions.append(completion)

    def round_closed(self) -> None:
        """What comes now goes into the next one."""
        self._round = None

    def submit(self, operation: Operation) -> None:
        """Hand an operation to the writers."""
        self._writers.submit(operation)

    @property
    def closed(self) -> bool:
        """Whether nothing is written any more."""
        return self._writers.closed

    def together(self, one: bytes, other: bytes) -> bool:
        """Whether both keys lie on one server."""
        return self._writers.together(one, other)

    def problem(self, text: str) -> None:
        """Tell something that should be seen by people."""
        self._on_problem(text)

    def _reply(self, address: str, payload: bytes) -> tuple[bytes, bytes, int]:
        if len(payload) > MAX_PAYLOAD:
            raise MessageTooLarge(len(payload), MAX_PAYLOAD)
        if address.startswith(_PUBSUB):
            channel = address[len(_PUBSUB) :].encode()
            return channel, command(b"PUBLISH", channel, payload), 1
        key = address.encode()
        named = b"$%d\r\n%b\r\n" % (len(key), key)
        commands = b"*3\r\n$5\r\nRPUSH\r\n%b$%d\r\n%b\r\n*3\r\n$7\r\nPEXPIRE\r\n%b%b" % (
            named, len(payload), payload, named, self._expiry,
        )  # fmt: skip
        return key, commands, 2


class _Round(Operation):
    """The transactions of one turn of the loop, as one: it costs a fifth of what they cost singly."""

    __slots__ = ("_answers", "completions")

    def __init__(self, answers: Answers) -> None:
        super().__init__(b"", 0, self._done, waits=True)
        self._answers = answers
        self.completions: list[_Completion | _Early] = []
        self.prepare = self._close

    def _close(self) -> None:
        self.prepare = None
        self._answers.round_closed()
        parts = [MULTI]
        count = 2
        now = time.monotonic()
        for completion in [one for one in self.completions if one.perhaps_lost(now)]:
            self.completions.remove(completion)
            completion.transact()
        for completion in self.completions:
            removal, removals = completion.removal
            parts += (completion.commands, removal)
            completion.steps = completion.count + removals
            count += completion.steps
        parts.append(EXEC)
        self.commands = b"".join(parts)
        self.count = count

    def _done(self, replies: list[Reply], error: Exception | None) -> None:
        if error is not None:
            if self.prepare is not None:
                self._answers.round_closed()  # never written
            for completion in self.completions:
                completion.broken()
            return
        results = replies[-1]
        if isinstance(results, ReplyError):  # nothing ran: each for itself, so that one cannot hold up the others
            for completion in self.completions:
                completion.transact()
            return
        at = 0
        for completion in self.completions:
            completion.ran(results[at : at + completion.count])
            at += completion.steps


class _Early:
    """A reply that finishes nothing (accepted, late): written once, and not again when in doubt."""

    __slots__ = ("_answers", "_key", "commands", "count", "steps")

    removal = (b"", 0)

    @staticmethod
    def perhaps_lost(now: float) -> bool:
        """It refuses nothing."""
        return False

    def __init__(self, answers: Answers, key: bytes, commands: bytes, count: int) -> None:
        self._answers = answers
        self._key = key
        self.commands = commands
        self.count = count
        self.steps = 0

    def transact(self) -> None:
        self._answers.submit(Operation(self.commands, self.count, self._done, key=self._key, waits=True))

    def _done(self, replies: list[Reply], error: Exception | None) -> None:
        self.ran(replies)

    def ran(self, results: list[Reply]) -> None:
        for result in results:
            if isinstance(result, ReplyError):
                self._answers.problem(f"a reply was refused: {result}")
                return

    def broken(self) -> None:
        """In doubt: that is how it stays."""


class _Completion:
    """A reply (or dead letter) and the removal of its entry, until both are certain."""

    __slots__ = ("_answers", "_dead", "_key", "_step", "channel", "commands", "count", "entry", "refusal", "steps")

    def __init__(
        self, answers: Answers, entry: Entry, key: bytes, commands: bytes, count: int, *, dead: bool = False
    ) -> None:
        self._answers = answers
        self._key = key
        self._dead = dead
        self.entry = entry
        self.commands = commands
        self.count = count
        self.steps = 0
        self.refusal = b""
        """The reply, where it says that the request did not run."""
        self.channel = False
        self._step = self.transact

    def perhaps_lost(self, now: float) -> bool:
        """Whether it must not be written without a look at whose the entry is."""
        return bool(self.refusal) and now >= self.entry.perhaps_lost_at

    @property
    def removal(self) -> tuple[bytes, int]:
        return self.entry.removal

    def start(self) -> None:
        if self.commands and not self._answers.together(self._key, self.entry.key):
            self._step = self._write_first
            refusal, self.refusal = self.refusal, b""  # no one step reaches both
            keeping = self.entry.keep_refusal(refusal) if refusal else b""
            if keeping:
                self._keep(keeping)
            else:
                self._write_first()
        elif self._answers.together(self._key, self.entry.key):
            self._answers.gather(self)
        else:
            self.transact()

    # --- one server: one transaction -------------------------------------------------------------------

    def transact(self) -> None:
        if self.perhaps_lost(time.monotonic()):
            ttl = b"" if self.channel else self._answers.ttl
            asking = self.entry.if_ours(self._key, self.refusal, ttl)
            self._answers.submit(Operation(asking, 1, self._asked, key=self.entry.key, waits=True))
            return
        removal, count = self.entry.removal
        transaction = b"".join((MULTI, self.commands, removal, EXEC))
        self._answers.submit(
            Operation(transaction, self.count + count + 2, self._transacted, key=self.entry.key, waits=True)
        )

    def _asked(self, replies: list[Reply], error: Exception | None) -> None:
        if error is not None:
            if not self._answers.closed:
                self.transact()  # what ran already does not run again: the entry is gone
        elif isinstance(replies[0], ReplyError):
            if replies[0].code == "OOM":
                asyncio.get_running_loop().call_later(_RETRY_AFTER, self.transact)
                return
            self.refusal = b""  # scripts are not for us, or the reply is not: the transaction tells
            self.transact()
        else:
            if not replies[0]:
                self._answers.problem(_ANOTHERS)
            self.entry.removed()

    def _transacted(self, replies: list[Reply], error: Exception | None) -> None:
        if error is not None:
            self.broken()
            return
        results = replies[-1]
        if isinstance(results, ReplyError):  # EXECABORT: nothing ran
            causes = [reply for reply in replies[:-1] if isinstance(reply, ReplyError)]
            self._refused(causes[0] if causes else results)
            return
        self.ran(results[: self.count])

    def ran(self, results: list[Reply]) -> None:
        """The transaction ran; ``results`` are those of the reply's commands."""
        for result in results:
            if isinstance(result, ReplyError):
                self._answers.problem(f"{'a dead letter' if self._dead else 'a reply'} was refused: {result}")
                if not self._dead:
                    self._bury(f"the reply could not be written: {result}")
                break
        self.entry.removed()

    def broken(self) -> None:
        """The connection broke: the entry shows whether the transaction ran."""
        if not self._answers.closed:
            self._in_doubt()

    def _in_doubt(self) -> None:
        self._answers.submit(
            Operation(self.entry.probe, 1, self._probed, key=self.entry.key, waits=True),
        )

    def _probed(self, replies: list[Reply], error: Exception | None) -> None:
        if error is not None:
            if not self._answers.closed:
                self._in_doubt()
        elif isinstance(replies[0], ReplyError) or not self.entry.is_there(replies[0]):
            self.entry.removed()
        else:
            self._step()

    # --- a Cluster: two steps --------------------------------------------------------------------------

    def _keep(self, keeping: bytes) -> None:
        """Before it is told: who claims the entry from now on finds that it was refused."""

        def kept(replies: list[Reply], error: Exception | None) -> None:
            if error is not None:
                if not self._answers.closed:
                    self._keep(keeping)
                return
            done = not isinstance(replies[0], ReplyError) and bool(replies[0])
            self.entry.refusal_kept(done)
            if done or isinstance(replies[0], ReplyError):  # where no scripts are allowed it is told all the same
                self._write_first()
                return
            self._answers.problem(_ANOTHERS)
            self.entry.removed()

        self._answers.submit(Operation(keeping, 1, kept, key=self.entry.key, waits=True))

    def _write_first(self) -> None:
        self._answers.submit(Operation(self.commands, self.count, self._first_written, key=self._key, waits=True))

    def _first_written(self, replies: list[Reply], error: Exception | None) -> None:
        if error is not None:
            if not self._answers.closed:
                self._write_first()
            return
        refused = next((reply for reply in replies if isinstance(reply, ReplyError)), None)
        if refused is not None:
            self._refused(refused)
            return
        self.commands, self.count = b"", 0
        self._step = self.transact
        self._step()

    # --- refusals --------------------------------------------------------------------------------------

    def _refused(self, cause: ReplyError) -> None:
        if cause.code == "OOM":
            asyncio.get_running_loop().call_later(_RETRY_AFTER, self._step)
            return
        self._answers.problem(f"{'a dead letter' if self._dead else 'a reply'} was refused: {cause}")
        if not self.commands or self._dead:
            # Not even the removal is allowed: the entry stays, and is claimed when we have let it go.
            self.entry.removed()
            return
        self.commands, self.count = b"", 0
        self._bury(f"the reply could not be written: {cause}")
        self._step = self.transact
        self._step()

    def _bury(self, reason: str) -> None:
        answers = self._answers
        key, commands = answers.dead_letter(self.entry, reason)
        answers.submit(Operation(commands, 1, ignore, key=key, waits=True))
