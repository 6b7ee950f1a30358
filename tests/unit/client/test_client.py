"""The client library over the memory bus: what it leaves behind, and what it refuses before anything is sent."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator

import pytest

from bridge.client import Bridge
from bridge.errors import InvalidRequest


@pytest.fixture
async def client() -> AsyncIterator[Bridge]:
    async with Bridge(f"memory://{secrets.token_hex(4)}") as client:
        yield client


async def test_a_stream_that_was_closed_is_not_kept(client: Bridge) -> None:
    for _ in range(3):
        async with await client.subscribe():
            assert len(client._streams) == 1
    assert not client._streams


async def test_closing_ends_every_loop_over_events(client: Bridge) -> None:
    async def follow() -> int:
        return len([event async for event in client.events()])

    following = [asyncio.create_task(follow()) for _ in range(4)]
    async with asyncio.timeout(10):
        while len(client._streams) < 4:  # noqa: ASYNC110 - anybody's state
            await asyncio.sleep(0)
        await client.close()
        assert await asyncio.gather(*following) == [0] * 4


@pytest.mark.parametrize("timeout", [float("inf"), float("nan")])
async def test_a_time_without_end_is_refused(client: Bridge, timeout: float) -> None:
    with pytest.raises(InvalidRequest, match="timeout_ms"):
        await client.api("status", timeout=timeout)


async def test_a_text_that_is_not_unicode_is_refused(client: Bridge) -> None:
    with pytest.raises(InvalidRequest, match="Unicode"):
        await client.api("echo \udcff")
