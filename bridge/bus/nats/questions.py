"""Questions to the server with one answer each, many at a time over one inbox subscription. Never repeats one."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping

from bridge.bus.nats.keeper import LinkKeeper
from bridge.bus.nats.link import NatsLink
from bridge.bus.nats.listener import Listener
from bridge.bus.nats.reading import Incoming
from bridge.errors import BusRefused, BusUnavailable


class Unanswered(BusUnavailable):
    """It was asked, and no answer came: what it asked for may have been done."""


class Questions:
    """Asks on the link of the moment; what is asked in one turn of the loop leaves in one write."""

    def __init__(self, keeper: LinkKeeper, prefix: str) -> None:
        self._keeper = keeper
        self._base = f"{prefix}.{secrets.token_hex(11)}."
        self._listener = Listener(self._base + "*", "", self._arrived)
        self._added = False
        self._count = 0
        self._open: dict[str, tuple[asyncio.Future[Incoming], NatsLink]] = {}
        self._leaving = False

    async def ask(
        self, subject: str, payload: bytes, timeout: float, headers: Mapping[str, str] | None = None
    ) -> Incoming:
        """The answer (a 503 of the server's where nobody listens). Raises ``Unanswered`` where none came.

        Raises ``BusUnavailable`` where there is no link, ``BusRefused`` where the server does not let us ask.
        """
        if self._keeper.link is None:
            await self._keeper.wanted(timeout)
        if not self._added:
            self._added = True
            await self._keeper.add(self._listener)
        link = self._keeper.current()
        self._count += 1
        token = f"{self._count:x}"
        answer: asyncio.Future[Incoming] = asyncio.get_running_loop().create_future()
        self._open[token] = (answer, link)
        try:
            link.wire.add(subject, self._base + token, payload, "", headers)
            self._leave_soon()
            async with asyncio.timeout(timeout):
                return await answer
        except TimeoutError:
            if any(f'"{subject.lower()}"' in text.lower() for text in link.violations):
                raise BusRefused(f"the server does not let us publish to {subject}") from None
            if self._listener.refusal:
                raise BusRefused(self._listener.refusal) from None
            raise Unanswered(f"no answer to {subject} within {timeout:g} s") from None
        finally:
            self._open.pop(token, None)

    def lost(self, reason: str) -> None:
        """The link broke: nothing will be answered."""
        for answer, _link in self._open.values():
            if not answer.done():
                answer.set_exception(Unanswered(reason))

    def tell(self, subject: str, payload: bytes) -> None:
        """Say something that nobody answers; nothing is said while there is no link."""
        link = self._keeper.link
        if link is not None:
            link.wire.add(subject, "", payload, "", None)
            self._leave_soon()

    def _leave_soon(self) -> None:
        if not self._leaving:
            self._leaving = True
            loop = asyncio.get_running_loop()
            loop.call_soon(loop.call_soon, self._leave)

    def _leave(self) -> None:
        self._leaving = False
        link = self._keeper.link
        if link is not None:
            link.write()

    def _arrived(self, message: Incoming) -> None:
        found = self._open.get(message.subject[len(self._base) :])
        if found is not None and not found[0].done():
            found[0].set_result(message)
