"""JetStream: durable topics with windowed acks, and the check that no stream swallows a queue. Never consumes."""

from __future__ import annotations

from typing import Any

import msgspec

from bridge.bus.nats.inbox import ask
from bridge.bus.nats.keeper import LinkKeeper
from bridge.bus.nats.link import NatsLink
from bridge.errors import BusRefused

API = "$JS.API."
API_TIMEOUT = 2.0


async def check_not_captured(link: NatsLink, queue: str) -> None:
    """Raise ``BusRefused``, naming the stream, when a stream captures the queue's subject.

    Its PubAck would reach every caller as the first reply. Where there is no JetStream, or we may not ask, it is fine.
    """
    answer = await ask(link, API + "STREAM.NAMES", msgspec.json.encode({"subject": queue}), API_TIMEOUT)
    if not answer:
        return
    try:
        names: Any = msgspec.json.decode(answer).get("streams")
    except (msgspec.DecodeError, AttributeError):
        return
    if names:
        raise BusRefused(
            f"the JetStream stream {names[0]} captures {queue}: callers would get its PubAck for a reply; "
            f"take {queue} out of its subjects"
        )


class JetStream:
    """See ``DurableTopics``."""

    def __init__(self, keeper: LinkKeeper, inbox_prefix: str) -> None:
        self._keeper = keeper
        self._inbox_prefix = inbox_prefix
