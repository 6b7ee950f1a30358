"""The same through nats-py's public calls: slower, for a nats-py built otherwise than we know. Never reaches in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from bridge.bus.base import Message
from bridge.bus.nats.reading import IncomingHandler
from bridge.bus.nats.render import check_subject, message_size
from bridge.errors import MessageTooLarge

FLUSH_TIMEOUT = 3600
"""A ``flush`` that times out can end nats-py's reader; the link's own watch is much sooner."""

_Item = tuple[str, str, bytes, dict[str, str] | None]


class PlainWire:
    """One task publishes what was gathered, in order."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._items: list[_Item] = []
        self._work: asyncio.Queue[tuple[list[_Item], Callable[[], None] | None]] = asyncio.Queue()
        self._drains: set[asyncio.Task[None]] = set()
        self._ended: Callable[[str], None] = lambda _reason: None
        self._task = asyncio.create_task(self._run(), name="nats-publish")
        self.gathered = 0
        self.limit = client.max_payload

    def add_batch(self, batch: Sequence[Message], replies: str = "", first: int = 0) -> None:
        """See ``Wire``."""
        items, total = [], 0
        for number, message in enumerate(batch, first):
            check_subject(message.topic)
            size = message_size(message)
            if size > self.limit:
                raise MessageTooLarge(size, self.limit)
            headers = {"Nats-Msg-Id": message.id} if message.id else {}
            if message.content_type:
                headers["Content-Type"] = message.content_type
            headers.update(message.headers)
            items.append((message.topic, f"{replies}{number:x}" if replies else "", message.payload, headers or None))
            total += size
        self._items += items
        self.gathered += total

    def add(
        self, subject: str, reply: str, payload: bytes, content_type: str, headers: Mapping[str, str] | None
    ) -> None:
        """See ``Wire``."""
        check_subject(subject)
        if reply:
            check_subject(reply)
        size = message_size(Message(subject, payload, "", "", content_type, tuple((headers or {}).items())))
        if size > self.limit:
            raise MessageTooLarge(size, self.limit)
        lines = {"Content-Type": content_type} if content_type else {}
        lines.update(headers or {})
        self._items.append((subject, reply, payload, lines or None))
        self.gathered += size

    def write(self, pong: Callable[[], None] | None) -> None:
        """See ``Wire``."""
        if self._items or pong is not None:
            self._work.put_nowait((self._items, pong))
            self._items = []
            self.gathered = 0

    async def _run(self) -> None:
        try:
            while True:
                items, pong = await self._work.get()
                for subject, reply, payload, headers in items:
                    await self._client.publish(subject, payload, reply=reply, headers=headers)
                if pong is not None:
                    # flush() writes its PING past what is pending; so that has to leave first.
                    while self._client.pending_data_size and self._client.is_connected:  # noqa: ASYNC110
                        await asyncio.sleep(0)
                    await self._client.flush(FLUSH_TIMEOUT)
                    pong()
        except Exception as error:
            self._ended(str(error) or type(error).__name__)

    async def subscribe(self, subject: str, queue: str, handler: IncomingHandler) -> Subscription:
        """See ``Wire``."""

        async def call(message: Msg) -> None:
            try:
                handler(message)
            except Exception as error:
                context = {"message": "a message handler failed", "exception": error}
                asyncio.get_running_loop().call_exception_handler(context)

        return await self._client.subscribe(subject, queue=queue, cb=call, pending_bytes_limit=0)

    def unsubscribe(self, handle: Subscription) -> None:
        """See ``Wire``."""
        task = asyncio.create_task(handle.drain())  # type: ignore[no-untyped-call]
        self._drains.add(task)
        task.add_done_callback(self._drained)

    def _drained(self, task: asyncio.Task[None]) -> None:
        self._drains.discard(task)
        if not task.cancelled():
            task.exception()  # a link that broke meanwhile is told elsewhere

    def forget(self, handle: Subscription) -> None:
        """See ``Wire``: the drain that ``unsubscribe`` began does it."""

    def watch(self, ended: Callable[[str], None]) -> None:
        """See ``Wire``."""
        self._ended = ended

    def abort(self) -> None:
        """See ``Wire``."""
        self._task.cancel()
        drains: Any = list(self._drains)
        for task in drains:
            task.cancel()
