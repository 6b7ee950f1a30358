"""One subscription that every new link gets, and what the server says of it. Never retries: the keeper does."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import nats.errors

from bridge.bus.nats.link import NatsLink
from bridge.bus.nats.reading import Incoming
from bridge.errors import BusRefused, BusUnavailable


class Listener:
    """One subscription, attached to every link anew; ``guard`` may raise ``BusRefused`` before it is attached."""

    def __init__(
        self,
        subject: str,
        queue: str,
        handler: Callable[[Incoming], None],
        guard: Callable[[NatsLink], Awaitable[None]] | None = None,
    ) -> None:
        self.subject = subject
        self.queue = queue
        self.handler = handler
        self.guard = guard
        self.handle: Any = None
        self.link: NatsLink | None = None
        self.refusal = ""
        self.optional = False
        """Whether it is not minded that the server denies it from the beginning."""

    async def attach(self, link: NatsLink) -> None:
        """Subscribe on this link. Raises ``BusRefused`` (guard), ``BusUnavailable`` and ``ValueError``."""
        if self.link is link:
            self.detach()  # what the server took away is forgotten here, too
        self.link, self.refusal = link, ""
        try:
            if self.guard is not None:
                await self.guard(link)
            self.handle = await link.wire.subscribe(self.subject, self.queue, self.handler)
        except nats.errors.BadSubjectError:
            raise ValueError(f"not a subject to listen to: {self.subject!r}") from None
        except BusRefused as error:
            self.refusal = str(error)
            raise
        except nats.errors.Error as error:
            raise BusUnavailable(str(error)) from None

    def check(self) -> None:
        """Raise ``BusRefused`` when the server has denied this subscription (known after a confirmation)."""
        if self.optional:
            return
        if self.refusal:
            raise BusRefused(self.refusal)
        for text in self.link.violations if self.link is not None else ():
            if f'subscription to "{self.subject.lower()}"' in text:
                self.refuse(text)
                raise BusRefused(self.refusal)

    def refuse(self, violation: str) -> None:
        """The server does not let us have it."""
        self.refusal = f"the server does not let us listen to {self.subject} ({violation})"

    def detach(self) -> None:
        """Take it back at once."""
        if self.handle is not None and self.link is not None and self.link.alive:
            self.link.wire.unsubscribe(self.handle)
            self.link.wire.forget(self.handle)
        self.handle = None
