"""One batch into a stream, awaited to its last ack: what a pipeline does, for tests that want to see its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from bridge.bus.base import Message, StreamSpec
from bridge.errors import BusUnavailable, PublishFailed


async def append_all(
    bus: Any, stream: StreamSpec, batch: Sequence[Message], allowed: Callable[[], bool] | None = None
) -> None:
    """Raises what ``Appender.append`` does, and ``PublishFailed`` when something was written and not all confirmed."""
    changed = asyncio.Event()
    pipeline = bus.appender(stream, changed.set)
    try:
        await pipeline.append(batch, allowed)
        while pipeline.confirmed < pipeline.written and not pipeline.failure:
            changed.clear()
            await changed.wait()
    except BusUnavailable:
        if not pipeline.written:
            raise
    finally:
        failure = pipeline.failure
        pipeline.close()
    if failure:
        doubt = pipeline.written - pipeline.confirmed
        raise PublishFailed(failure, confirmed=pipeline.confirmed, uncertain=doubt)
