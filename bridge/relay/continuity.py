"""After a hole: what calls the node really has, told as a snapshot, and the end of every call that is gone.

Consumers' state never keeps ghosts. This room never ends a call in FreeSWITCH, and asks it only through the pool.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol

import structlog

from bridge.errors import BridgeError
from bridge.esl.event import Event
from bridge.esl.replies import Reply
from bridge.messages.notice import MAX_SNAPSHOT_PART, SnapshotNotice
from bridge.relay.call_table import CallTable
from bridge.relay.known_calls import KnownCalls
from bridge.relay.notices import NoticeBoard

log = structlog.get_logger(__name__)

QUERY = "show channels as json"
TIMEOUT = 10.0
"""Seconds for FreeSWITCH's list."""
GRACE = 1.0
"""Seconds that a call's own end may still be on the wire after FreeSWITCH no longer lists the call."""
ATTEMPTS = 5
GONE = "NORMAL_UNSPECIFIED"
RESTARTED = "SYSTEM_SHUTDOWN"
_FRAME = 1024  # bytes that a notice needs beside its channels


class Asked(Protocol):
    """The node's command connections."""

    async def api(self, line: str, timeout: float) -> Reply:
        """Run an API command."""


class Continuity:
    """One node's calls over holes. ``publish`` takes the ends that were made up."""

    def __init__(
        self,
        node: str,
        pool: Asked,
        known: KnownCalls,
        table: CallTable,
        notices: NoticeBoard,
        publish: Callable[[list[Event]], None],
    ) -> None:
        self.known = known
        self.checked = False
        """The calls that the node had when it was taken are known."""
        self._node = node
        self._pool = pool
        self._table = table
        self._notices = notices
        self._publish = publish
        self._task: asyncio.Task[None] | None = None

    def check(self, core_uuid: str) -> None:
        """The owner has a new link, or the link a new owner: whatever ended unseen shall end now."""
        self.stop()
        self.checked = False
        self.end_all(core_uuid)
        self._task = asyncio.create_task(self._check(core_uuid, list(self.known.doubtful)), name=f"calls-{self._node}")

    def end_all(self, core_uuid: str) -> None:
        """FreeSWITCH runs as ``core_uuid``: the calls of every run before have ended."""
        if core_uuid:
            self._end(self.known.of_another_run(core_uuid), RESTARTED)

    def trust(self, calls: bytes, begun: Collection[str]) -> None:
        """Forget what the owner before did not know any more when it handed over: it has told the end.

        ``calls`` is all that it knew, ``begun`` are those that began behind its last event.
        """
        for uuid in self.known.settled(calls, begun):
            self._table.forget(uuid, self._node)

    def stop(self) -> None:
        """Ask no more."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    def forget(self) -> None:
        """From now on nothing is heard of the node: no end of a call would be."""
        self.stop()
        self.known.clear()
        self._table.forget_node(self._node)

    async def _check(self, core_uuid: str, suspects: Sequence[str]) -> None:
        rows = await self._ask()
        if rows is None:
            return
        self._tell(rows)
        listed = {row.get("uuid") for row in rows}
        self.known.take_over(rows, core_uuid)
        for uuid in listed:
            if isinstance(uuid, str) and uuid in self.known:
                self._table.learn(uuid, self._node)
        self.checked = True
        self.known.doubtful.difference_update(suspects)
        gone = [uuid for uuid in suspects if uuid not in listed]
        if gone:
            await asyncio.sleep(GRACE)
            self._end(gone, GONE)

    async def _ask(self) -> list[dict[str, Any]] | None:
        for attempt in range(ATTEMPTS):
            try:
                reply = await self._pool.api(QUERY, TIMEOUT)
                if reply.skipped:
                    log.error("calls cannot be listed: too many", node=self._node, size=reply.skipped)
                    return None
                return read_channels(reply.text)
            except (BridgeError, ValueError) as error:
                log.warning("calls cannot be listed", node=self._node, reason=str(error))
                await asyncio.sleep(0.5 * 2**attempt)
        return None

    def _tell(self, rows: list[dict[str, Any]]) -> None:
        parts = split_rows(rows)
        snapshot = secrets.token_hex(8)
        for number, part in enumerate(parts, 1):
            notice = SnapshotNotice(snapshot=snapshot, part=number, parts=len(parts), channels=part)
            self._notices.tell(notice, node=self._node)

    def _end(self, uuids: Sequence[str], cause: str) -> None:
        ends = [event for uuid in uuids if (event := self.known.end(uuid, cause)) is not None]
        if ends:
            log.info("calls ended unseen", node=self._node, calls=len(ends), cause=cause)
            for uuid in uuids:
                self._table.forget(uuid, self._node)
            self._publish(ends)


def read_channels(text: str) -> list[dict[str, Any]]:
    """The rows of ``show channels as json``. Raises ``ValueError`` for anything else (``-ERR ...``)."""
    try:
        found = json.loads(text)
    except ValueError:
        raise ValueError(f"not a list of channels: {text[:80]!r}") from None
    rows = found.get("rows", []) if isinstance(found, dict) and "row_count" in found else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"not a list of channels: {text[:80]!r}")
    return rows


def split_rows(rows: Sequence[dict[str, Any]], limit: int = MAX_SNAPSHOT_PART - _FRAME) -> list[list[dict[str, Any]]]:
    """Rows in parts of at most ``limit`` bytes each as JSON (one row at least); one empty part where there is none."""
    parts: list[list[dict[str, Any]]] = [[]]
    size = 0
    for row in rows:
        length = len(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace")) + 1
        if parts[-1] and size + length > limit:
            parts.append([])
            size = 0
        parts[-1].append(row)
        size += length
    return parts
