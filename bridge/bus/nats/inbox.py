"""One wildcard inbox for all replies to this bus's own requests. Never waits: replies are handed over."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable

from bridge.bus.nats.keeper import LinkKeeper
from bridge.bus.nats.link import NatsLink
from bridge.bus.nats.listener import Listener
from bridge.bus.nats.reading import Incoming
from bridge.errors import BusError, BusUnavailable, NoConsumer

NO_RESPONDERS = "503"

ReplyHandler = Callable[[bytes, str], None]


def is_no_responders(message: Incoming) -> bool:
    """The server's own answer: nobody listens to the subject of the request."""
    headers = message.headers
    return not message.data and headers is not None and headers.get("Status") == NO_RESPONDERS


class _Expected:
    __slots__ = ("handler", "nobody")

    def __init__(self, handler: ReplyHandler) -> None:
        self.handler = handler
        self.nobody = False


class PendingRequest:
    """A request whose replies are handed over until it is closed."""

    def __init__(self, inbox: Inbox, token: str) -> None:
        self._inbox = inbox
        self._token = token

    async def close(self) -> None:
        """Hand over no more replies."""
        self._inbox.forget(self._token)


class Inbox:
    """Gives out reply subjects below one wildcard subscription and knows whose reply is whose."""

    def __init__(self, keeper: LinkKeeper, prefix: str) -> None:
        self._keeper = keeper
        self._base = f"{prefix}.{secrets.token_hex(11)}."
        self._expected: dict[str, _Expected] = {}
        self._count = 0
        self._listener = Listener(self._base + "*", "", self._arrived)
        self._added = False

    async def request(
        self, subject: str, payload: bytes, content_type: str, handler: ReplyHandler, headers: dict[str, str] | None
    ) -> PendingRequest:
        """Publish a request; every reply goes to ``handler``. Raises ``BusUnavailable``, ``NoConsumer``."""
        link = self._keeper.current()
        if not self._added:
            self._added = True
            await self._keeper.add(self._listener)
            link = self._keeper.current()
        return await self._send(link, subject, payload, content_type, handler, headers)

    def new_address(self) -> str:
        """A fresh reply subject below our own."""
        self._count += 1
        return f"{self._base}{self._count:x}"

    def owns(self, address: str) -> bool:
        """Whether ``new_address`` gave it."""
        return address.startswith(self._base)

    async def expect(self, address: str, handler: ReplyHandler) -> PendingRequest:
        """Hand every reply to ``address``, one of our own, to ``handler``."""
        if not self._added:
            self._added = True
            await self._keeper.add(self._listener)
        token = address[len(self._base) :]
        self._expected[token] = _Expected(handler)
        return PendingRequest(self, token)

    async def _send(
        self,
        link: NatsLink,
        subject: str,
        payload: bytes,
        content_type: str,
        handler: ReplyHandler,
        headers: dict[str, str] | None,
    ) -> PendingRequest:
        self._count += 1
        token = f"{self._count:x}"
        link.wire.add(subject, self._base + token, payload, content_type, headers)
        expected = self._expected[token] = _Expected(handler)
        try:
            # The server's 503 comes before the PONG of the PING behind the request, so the PONG decides.
            with contextlib.suppress(BusUnavailable):
                # A link lost now leaves the request in doubt: the caller's timeout answers it.
                await link.confirm()
        except BaseException:
            self.forget(token)
            raise
        if expected.nobody:
            self.forget(token)
            raise NoConsumer(f"nobody consumes {subject}")
        return PendingRequest(self, token)

    def forget(self, token: str) -> None:
        """Expect no more replies to this request."""
        self._expected.pop(token, None)

    def _arrived(self, message: Incoming) -> None:
        expected = self._expected.get(message.subject[len(self._base) :])
        if expected is None:
            return
        if is_no_responders(message):
            expected.nobody = True
            return
        headers = message.headers
        expected.handler(message.data, headers.get("Content-Type", "") if headers else "")


async def ask(link: NatsLink, subject: str, payload: bytes, timeout: float) -> bytes | None:
    """One reply to a question to the server itself, on this very link; None when nobody or nothing answers.

    Raises ``BusUnavailable`` when the link breaks.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[bytes | None] = loop.create_future()

    def arrived(message: Incoming) -> None:
        if not answer.done():
            answer.set_result(None if is_no_responders(message) else message.data)

    listener = Listener(f"_INBOX.{secrets.token_hex(11)}", "", arrived)
    violations = len(link.violations)
    try:
        await listener.attach(link)
        link.wire.add(subject, listener.subject, payload, "", None)
        await link.confirm()
        if len(link.violations) > violations and not answer.done():
            return None  # we may not ask, or not hear the answer
        async with asyncio.timeout(timeout):
            return await answer
    except TimeoutError:
        return None
    except BusError:
        raise
    finally:
        listener.detach()
