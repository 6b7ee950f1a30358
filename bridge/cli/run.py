"""``esl-bridge run``: one worker, or several, until it is told to end.

This room reads the configuration, sets up the log and passes signals on; the worker does the work.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from bridge.cli import exits
from bridge.cli.options import ConfigOption
from bridge.errors import ConfigError

if TYPE_CHECKING:
    from bridge.cli.loop import StopWish
    from bridge.config import Settings
    from bridge.ops.service import ServiceManager
    from bridge.worker import Worker

# What the worker may take beyond its drain time before it is not waited for any more, in seconds.
PATIENCE = 5.0
# How often it is looked whether the worker can serve, for the log and the service manager, in seconds.
LOOK_INTERVAL = 1.0

LogLevel = Literal["debug", "info", "warning", "error"]


def run(
    config: ConfigOption = None,
    log_level: Annotated[
        LogLevel | None,
        typer.Option(help="Instead of the configuration's log.level.", show_default=False),
    ] = None,
    workers: Annotated[
        int,
        typer.Option(
            help="Worker processes. They share the nodes; what dies is started again. Each listens on an HTTP port of "
            "its own: http.listen, the next one, ...",
            min=1,
            max=256,
            metavar="N",
        ),
    ] = 1,
) -> None:
    """Run one worker: relay events to the bus, answer commands from it.

    FreeSWITCH or the bus may be absent when it starts and may come and go: it connects again for ever. SIGTERM (or
    Ctrl-C) drains: requests in hand are answered, events flushed, then it ends with exit code 0. A second signal ends
    it at once. SIGHUP, or [bold]esl-bridge reload[/bold], takes a changed configuration over.

    [bold]Examples[/bold]

    \b
      esl-bridge run -c /etc/esl-bridge/bridge.toml
      esl-bridge run --workers 4
      ESL_BRIDGE_BUS__URL=redis://127.0.0.1 ESL_BRIDGE_NODE__fs1__URL=fs://:ClueCon@127.0.0.1 esl-bridge run
    """
    # A reload that is asked for before we can do it is no reason to end.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    import structlog

    from bridge.cli.loop import run_async
    from bridge.config import load_settings, settings_warnings
    from bridge.wiring import rehearse

    settings = load_settings(config)
    if not settings.model_fields_set:
        raise ConfigError(
            [("node", "nothing is configured at all; name a bus, and a [[node]] or `esl-bridge nodes add`")]
        )
    rehearse(settings)
    set_up_log(settings, log_level)
    log = structlog.get_logger("bridge")
    for key, text in settings_warnings(settings):
        log.warning("setting deserves a second look", key=key, reason=text)
    if workers > 1:
        from bridge.cli.workers import supervise

        raise typer.Exit(run_async(supervise(settings, workers, config=config, log_level=log_level)))
    raise typer.Exit(run_async(serve(settings, config=config, log_level=log_level)))


def set_up_log(settings: Settings, level: LogLevel | None, *earlier: Settings) -> None:
    """Set the log up; secrets of ``earlier`` settings stay hidden too."""
    from bridge.ops.logging import configure_logging

    secrets = [secret for one in (settings, *earlier) for secret in one.secrets()]
    configure_logging(level or settings.log.level, settings.log.format, secrets=secrets)


async def serve(settings: Settings, *, config: Path | None = None, log_level: LogLevel | None = None) -> int:
    """Run a worker until SIGTERM or SIGINT; return the exit code."""
    from bridge.cli.allocator import keep_heap
    from bridge.cli.collector import spare_what_lasts
    from bridge.cli.loop import stop_on_signals
    from bridge.ops.service import ServiceManager
    from bridge.worker import Worker

    manager = ServiceManager()
    keep_heap()
    with stop_on_signals() as wish:
        worker = Worker(settings)
        with _on_hangup(lambda: reload_worker(worker, manager, config, log_level)):
            try:
                await worker.start()
            except OSError as error:
                told = f"cannot listen on {settings.http.listen}: {error.strerror}"
                raise ConfigError([("http.listen", told)]) from None
            spare_what_lasts()
            # What can never serve ends by itself, as if it had been told to.
            worker.failed.add_done_callback(lambda _: wish.set())
            # The bus and FreeSWITCH may be absent for long: systemd shall not wait for them, /ready tells of them.
            manager.ready("started")
            manager.watch()
            looking = asyncio.create_task(_tell_readiness(worker, manager))
            await wish.wait()
        looking.cancel()
        manager.stopping(worker.settings.worker.drain_timeout + PATIENCE)
        drained = await _drain(worker.stop(), wish, worker.settings.worker.drain_timeout + PATIENCE)
        manager.close()
        if worker.failed.done():
            return exits.tell(worker.failed.result())
        return exits.FINE if drained else exits.FAILED


@contextlib.contextmanager
def _on_hangup(reload: Callable[[], Coroutine[Any, Any, None]]) -> Any:
    """Run ``reload`` at every SIGHUP, one after another."""
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()
    turn = asyncio.Lock()

    async def in_turn() -> None:
        async with turn:
            await reload()

    def begin() -> None:
        task = loop.create_task(in_turn(), name="reload")
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    loop.add_signal_handler(signal.SIGHUP, begin)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        for task in tasks:
            task.cancel()


async def reload_worker(
    worker: Worker, manager: ServiceManager, config: Path | None, log_level: LogLevel | None
) -> None:
    """Read the configuration anew and have the worker take it over; a wrong one changes nothing and is told."""
    import structlog

    from bridge.config import load_settings

    log = structlog.get_logger("bridge")
    manager.reloading()
    before = worker.settings
    try:
        settings = await asyncio.to_thread(load_settings, config)
        if before.nodes and not settings.nodes:  # more likely a file that was cut short than a wish
            raise ConfigError([("node", "no FreeSWITCH node is configured any more")])
        # First, so that the diff itself hides what is new.
        set_up_log(settings, log_level, before)
        outcome = await worker.reload(settings)
        told = {"changes": [str(one) for one in outcome.changed], "restart": [str(one) for one in outcome.fixed]}
    except ConfigError as error:
        problems = [f"{key}: {text}" if key else text for key, text in error.problems]
        log.error("configuration not reloaded, nothing changed", problems=problems)
        told = {"problems": problems}
    except Exception:
        log.exception("the reload broke off")
        told = {"problems": ["a fault of the bridge, its log says more"]}
    worker.metrics.reloaded("problems" not in told)
    worker.identity.note_reload(told)
    manager.ready()


async def _tell_readiness(worker: Worker, manager: ServiceManager) -> None:
    """One line whenever the worker begins or ceases to be able to serve."""
    import structlog

    log = structlog.get_logger("bridge")
    before: tuple[bool, str] | None = None
    while True:
        ready, reason = worker.ready
        if (ready, reason) != before:
            if ready:
                log.info("ready")
            elif before is not None and before[0]:
                log.warning("not ready", reason=reason)
            before = (ready, reason)
        serving = len(worker.nodes.serving())
        manager.status(f"ready, {serving} of {len(worker.nodes)} nodes serve" if ready else f"not ready: {reason}")
        await asyncio.sleep(LOOK_INTERVAL)


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
