"""How bytes reach a NATS connection: the interface of both ways. Never opens or supervises one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from nats.aio.client import Client

from bridge.bus.base import Message
from bridge.bus.nats.reading import IncomingHandler


class Wire(Protocol):
    """What is added is gathered; ``write`` lets all of it leave at once, in order."""

    limit: int
    """``max_payload`` of the server: larger messages are refused when they are added."""

    @property
    def gathered(self) -> int:
        """Bytes added and not written yet."""

    def add_batch(self, batch: Sequence[Message], replies: str = "", first: int = 0) -> None:
        """Gather a batch; raises ``MessageTooLarge`` or ``ValueError`` and then gathers nothing of it.

        With ``replies`` each message bears the reply subject ``<replies><number in hex>``, counted from ``first``.
        """

    def add(
        self, subject: str, reply: str, payload: bytes, content_type: str, headers: Mapping[str, str] | None
    ) -> None:
        """Gather one message; raises as ``add_batch``."""

    def write(self, pong: Callable[[], None] | None) -> None:
        """Write what was gathered, and behind it a PING whose PONG calls ``pong``."""

    async def subscribe(self, subject: str, queue: str, handler: IncomingHandler) -> Any:
        """Subscribe ahead of everything that is written later; returns a handle."""

    def unsubscribe(self, handle: Any) -> None:
        """Take interest back; what is already on its way to us is still handed over."""

    def forget(self, handle: Any) -> None:
        """Hand over nothing more."""

    def watch(self, ended: Callable[[str], None]) -> None:
        """Call ``ended`` with a reason when reading ended, however that came."""

    def abort(self) -> None:
        """End the work of this wire; nothing that it still has is sent."""


def wire_for(client: Client) -> Wire:
    """The fast way when this nats-py is built as we know it, else the public one."""
    from bridge.bus.nats.direct import DirectWire
    from bridge.bus.nats.plain import PlainWire

    return DirectWire(client) if DirectWire.fits(client) else PlainWire(client)
