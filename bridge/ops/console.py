"""The page's console: one request through the bridge, for whoever has the token.

This room never runs a command: it hands a request to ``ask``, the way every client's goes, policy and ledger included.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import structlog
from aiohttp import web

from bridge.errors import BridgeError, InvalidRequest
from bridge.messages.command import CommandReply, encode_reply
from bridge.ops.access import Access

log = structlog.get_logger(__name__)

Ask = Callable[[Mapping[str, Any], float], Awaitable[CommandReply]]

MAX_TIMEOUT = 120.0
DEFAULT_TIMEOUT = 10.0
# What the console may send; the rest of a request is the client's business.
FIELDS = frozenset(("op", "command", "uuid", "app", "arg", "wait", "cause", "headers", "body", "event", "to"))
# A guess costs so long, and guesses wait for each other, in seconds.
WRONG_TOKEN_DELAY = 0.5
MAX_WAITING_GUESSES = 8


class Console:
    """``enabled`` and ``access`` are asked for every request, so that a reload changes them."""

    def __init__(self, ask: Ask, enabled: Callable[[], bool], access: Callable[[], Access]) -> None:
        self._ask = ask
        self._enabled = enabled
        self._access = access
        self._guessing = asyncio.Lock()
        self._guesses = 0

    async def take(self, request: web.Request) -> web.Response:
        """``POST /console``: a request as JSON, answered with its reply."""
        if not self._enabled():
            return _told(404, "the console is off (http.console)")
        refusal = self._access().refusal_of_acting(request.headers)
        if refusal:
            await self._slow_down()
            log.warning("console refused", reason=refusal, remote=request.remote)
            return _told(403, refusal)
        try:
            fields = json.loads(await request.read())
        except (ValueError, RecursionError):
            return _told(400, "the body is not JSON")
        if not isinstance(fields, dict) or not set(fields) <= FIELDS | {"timeout"}:
            return _told(400, f"expected a map of {', '.join(sorted(FIELDS))}, timeout")
        timeout = fields.pop("timeout", DEFAULT_TIMEOUT)
        if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout <= MAX_TIMEOUT:
            return _told(400, f"timeout: expected seconds, more than 0 and at most {MAX_TIMEOUT:g}")
        log.info("console", op=fields.get("op", "api"), to=fields.get("to"), remote=request.remote)
        try:
            reply = await self._ask(fields, float(timeout))
        except InvalidRequest as error:
            return _told(400, str(error))
        except BridgeError as error:
            return _told(502, str(error))
        return web.Response(body=encode_reply(reply), content_type="application/json")

    async def _slow_down(self) -> None:
        if self._guesses >= MAX_WAITING_GUESSES:
            return
        self._guesses += 1
        try:
            async with self._guessing:
                await asyncio.sleep(WRONG_TOKEN_DELAY)
        finally:
            self._guesses -= 1


def _told(status: int, text: str) -> web.Response:
    return web.json_response({"error": text}, status=status)
