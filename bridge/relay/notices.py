"""What the bridge says of itself: notices on ``fs.bridge.<kind>``, in order, waiting for the bus like events do.

This room never decides what happened; it words it and keeps it until the bus takes it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from bridge.bus.base import Message
from bridge.messages.codec import codec_named
from bridge.messages.notice import (
    TYPE_PREFIX,
    AuditNotice,
    GapNotice,
    LateNotice,
    LogNotice,
    NodeNotice,
    SnapshotNotice,
    WorkerNotice,
    encode_notice,
    notice_id,
)
from bridge.messages.topics import notice_topic

NoticeData = AuditNotice | GapNotice | LateNotice | LogNotice | NodeNotice | SnapshotNotice | WorkerNotice

# A notice is rare; what is over this is a fault that would only repeat itself.
_WAITING_LIMIT = 10_000
_WAITING_BYTES = 16 * 1024 * 1024  # a snapshot of a busy node alone is some MB
_LOG = notice_topic(LogNotice.kind)


class NoticeBoard:
    """Notices of one worker, numbered, waiting to be published.

    ``instance`` names this run of the worker; ``wake`` is called when there is something to publish.
    """

    def __init__(self, *, worker: str, instance: str, codec: str, wake: Callable[[], None] = lambda: None) -> None:
        self.worker = worker
        self.instance = instance
        self.wake = wake
        self.dropped = 0
        self._codec = codec_named(codec)
        self._number = 0
        self._waiting: deque[Message] = deque()
        self._bytes = 0
        self._logs = 0  # of those that wait

    def __len__(self) -> int:
        return len(self._waiting)

    def tell(self, notice: NoticeData, *, node: str = "") -> None:
        """Publish a notice as soon as the bus takes it."""
        kind = notice.kind
        self._number += 1
        payload = encode_notice(
            kind,
            notice,
            worker=self.worker,
            instance=self.instance,
            number=self._number,
            node=node,
            time=time.time(),
            codec=self._codec,
        )
        topic = notice_topic(kind)
        self._bytes += len(payload)
        self._logs += topic == _LOG
        self._waiting.append(
            Message(
                topic=topic,
                payload=payload,
                id=notice_id(self.instance, self._number),
                type=TYPE_PREFIX + kind,
                content_type=self._codec.event_content_type,
            )
        )
        self._trim()
        self.wake()

    def take(self) -> list[Message]:
        """All that wait, oldest first."""
        taken = list(self._waiting)
        self._waiting.clear()
        self._bytes = self._logs = 0
        return taken

    def put_back(self, messages: list[Message]) -> None:
        """Return what was not written, to the front."""
        self._waiting.extendleft(reversed(messages))
        self._bytes += sum(len(message.payload) for message in messages)
        self._logs += sum(message.topic == _LOG for message in messages)
        self._trim()

    def _trim(self) -> None:
        """FreeSWITCH's log goes first, then the oldest; the newest stays, however large."""
        if self._logs and self._over(_WAITING_LIMIT, _WAITING_BYTES):
            self._drop_logs()
        while len(self._waiting) > 1 and self._over(_WAITING_LIMIT, _WAITING_BYTES):
            self._leave(self._waiting.popleft())

    def _over(self, count: int, size: int) -> bool:
        return len(self._waiting) > count or self._bytes > size

    def _drop_logs(self) -> None:
        """Drop the oldest log lines: a busy node has thousands a second, but tells a change of state once."""
        # Down to nine tenths: dropping a little more now keeps the cost off the next thousand lines.
        waiting, self._waiting = self._waiting, deque()
        count = len(waiting)
        for message in waiting:
            much = count > _WAITING_LIMIT * 9 // 10 or self._bytes > _WAITING_BYTES * 9 // 10
            if much and message.topic == _LOG:
                self._leave(message)
                count -= 1
            else:
                self._waiting.append(message)

    def _leave(self, message: Message) -> None:
        self._bytes -= len(message.payload)
        self._logs -= message.topic == _LOG
        self.dropped += 1
