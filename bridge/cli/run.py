"""``esl-bridge run``: one worker, until it is told to end.

This room reads the configuration, sets up the log and passes signals on; the worker does the work.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from bridge.cli import exits
from bridge.cli.options import ConfigOption
from bridge.errors import ConfigError

if TYPE_CHECKING:
    from bridge.cli.loop import StopWish
    from bridge.config import Settings

# What the worker may take beyond its drain time before it is not waited for any more, in seconds.
PATIENCE = 5.0


def run(
    config: ConfigOption = None,
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"] | None,
        typer.Option(help="Instead of the configuration's log.level.", show_default=False),
    ] = None,
) -> None:
    """Run one worker: relay events to the bus, answer commands from it.

    FreeSWITCH or the bus may be absent when it starts and may come and go: it connects again for ever. SIGTERM (or
    Ctrl-C) drains: requests in hand are answered, events flushed, then it ends with exit code 0. A second signal ends
    it at once.

    [bold]Examples[/bold]

    \b
      esl-bridge run -c /etc/esl-bridge/bridge.toml
      ESL_BRIDGE_BUS__URL=redis://127.0.0.1 ESL_BRIDGE_NODE__fs1__URL=fs://:ClueCon@127.0.0.1 esl-bridge run
    """
    import structlog

    from bridge.cli.loop import run_async
    from bridge.config import load_settings, settings_warnings
    from bridge.ops.logging import configure_logging

    settings = load_settings(config)
    if not settings.nodes:
        raise ConfigError([("node", "no FreeSWITCH node is configured; add a [[node]] with name and url")])
    configure_logging(log_level or settings.log.level, settings.log.format, secrets=settings.secrets())
    log = structlog.get_logger("bridge")
    for key, text in settings_warnings(settings):
        log.warning("setting deserves a second look", key=key, reason=text)
    raise typer.Exit(run_async(serve(settings)))


async def serve(settings: Settings) -> int:
    """Run a worker until SIGTERM or SIGINT; return the exit code."""
    from bridge.cli.loop import stop_on_signals
    from bridge.worker import Worker

    with stop_on_signals() as wish:
        worker = Worker(settings)
        try:
            await worker.start()
        except OSError as error:
            raise ConfigError([("http.listen", f"cannot listen on {settings.http.listen}: {error.strerror}")]) from None
        # What can never serve ends by itself, as if it had been told to.
        worker.failed.add_done_callback(lambda _: wish.set())
        await wish.wait()
        drained = await _drain(worker.stop(), wish, settings.worker.drain_timeout + PATIENCE)
        if worker.failed.done():
            return exits.tell(worker.failed.result())
        return exits.FINE if drained else exits.FAILED


async def _drain(stop: Coroutine[Any, Any, None], wish: StopWish, timeout: float) -> bool:
    """Let the worker drain, for ``timeout`` s at most; a second signal ends it at once. Says whether it was done."""
    stopping = asyncio.ensure_future(stop)
    impatient = asyncio.ensure_future(wish.impatient.wait())
    await asyncio.wait({stopping, impatient}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    impatient.cancel()
    if stopping.done():
        stopping.result()
        return True
    stopping.cancel()
    await asyncio.wait({stopping}, timeout=1.0)
    print("esl-bridge: ended before the drain was complete", file=sys.stderr)
    return False
