"""``esl-bridge demo``: everything on this machine, flowing, within seconds.

This room conducts: ``stage`` puts up the parts, ``show`` prints; nothing outlives it.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from bridge.cli import exits
from bridge.cli.stage import Kind
from bridge.errors import BridgeError

if TYPE_CHECKING:
    from bridge.cli.loop import StopWish
    from bridge.cli.show import Show
    from bridge.cli.stage import Stage
    from bridge.client import Bridge

COMMAND_INTERVAL = 2.0
NUMBERS_INTERVAL = 5.0
FIRST_EVENT_TIMEOUT = 20.0
FIRST_COMMAND_AFTER = 1.0


class Sample(NamedTuple):
    """A command to show: its request, what it stands for, and whether it speaks of the call that was made before."""

    fields: dict[str, Any]
    explanation: str
    of_call: bool = False

    @property
    def text(self) -> str:
        """How the request reads."""
        words = [self.fields.get(key) for key in ("command", "uuid", "app", "arg", "cause")]
        text = " ".join(str(word) for word in words if word)
        op, to = self.fields.get("op", "api"), self.fields.get("to")
        return (text if op == "api" else f"{op} {text}") + (f"  → {to}" if to else "")


SAMPLES = (
    Sample({"command": "status"}, "an api command: FreeSWITCH answers, the reply bears the request's id"),
    Sample({"command": "originate user/1000 &park"}, "a slow verb: runs as a job, its outcome is the reply"),
    Sample(
        {"op": "hangup", "cause": "NORMAL_CLEARING"}, "the call that was just made, found by its uuid", of_call=True
    ),
    Sample({"command": "system rm -rf /"}, "denied by the policy: FreeSWITCH never sees it"),
    Sample({"command": "no_such_command"}, "FreeSWITCH's own error, told as such"),
    Sample({"command": "show channels count", "to": "all"}, "asked of every node, gathered into one reply"),
    Sample({"command": "status", "to": "fs9"}, "a node that nobody knows: executed=no, safe to send again"),
)


def demo(
    bus: Annotated[Kind, typer.Option("--bus", "-b", help="The broker to start: nats-server or Valkey.")] = "nats",
    seconds: Annotated[
        float | None,
        typer.Option("--for", help="End after so many seconds; without it Ctrl-C ends.", min=0, metavar="SECONDS"),
    ] = None,
    rate: Annotated[float, typer.Option(help="Made-up calls per second.", min=0.01)] = 0.5,
    port: Annotated[
        int, typer.Option(help="Port of the web page; a free one when it is taken.", min=0, max=65535)
    ] = 8090,
) -> None:
    """Show all of it on this machine: calls, events, commands, replies. Nothing to configure; Ctrl-C ends it.

    Starts a simulated FreeSWITCH with live calls, a real broker, one worker and its web page, then shows events and
    sample commands as they happen. Nothing is left behind.

    [bold]Examples[/bold]

    \b
      esl-bridge demo
      esl-bridge demo --bus redis --for 20
    """
    from bridge.cli.loop import run_async
    from bridge.ops.logging import configure_logging

    configure_logging("warning", "text")
    raise typer.Exit(run_async(conduct(bus, seconds=seconds, rate=rate, port=port)))


async def conduct(kind: Kind, *, seconds: float | None, rate: float, port: int) -> int:
    """Put the stage up, show, take it down; return the exit code."""
    from bridge.cli.loop import stop_on_signals, until_stopped
    from bridge.cli.show import Show
    from bridge.cli.stage import Stage

    show = Show()
    with stop_on_signals() as wish:
        broker = "nats-server" if kind == "nats" else "Valkey"
        show.line(f"starting a simulated FreeSWITCH, {broker}, one worker ...", style="dim")
        stage = Stage(kind, rate=rate, http_port=port)
        if await until_stopped(wish, stage.__aenter__()) is None:
            return exits.FINE
        try:
            _introduce(show, stage)
            show.restart_clock()
            flowing = await perform(show, stage, wish, seconds)
        finally:
            show.line("ending: the worker drains, the broker stops ...", style="dim")
            await stage.__aexit__(*sys.exc_info())
        show.summary()
        _say_where_to_go_on(show)
    return exits.FINE if flowing else exits.UNREACHABLE


async def perform(show: Show, stage: Stage, wish: StopWish, seconds: float | None) -> bool:
    """Show events and commands until the wish to end, or for so many seconds; False when no event ever came."""
    work = [
        asyncio.create_task(_show_events(show, stage), name="demo events"),
        asyncio.create_task(_send_commands(show, stage.client), name="demo commands"),
        asyncio.create_task(_show_numbers(show, stage.page), name="demo numbers"),
    ]
    deadline = None if seconds is None else time.monotonic() + seconds
    try:
        await wish.within(FIRST_EVENT_TIMEOUT if deadline is None else min(seconds or 0.0, FIRST_EVENT_TIMEOUT))
        if not wish.is_set() and show.events and (deadline is None or time.monotonic() < deadline):
            await wish.within(None if deadline is None else deadline - time.monotonic())
    finally:
        for task in work:
            task.cancel()
        await asyncio.wait(work)
    for task in work:
        if not task.cancelled() and (error := task.exception()):
            raise error
    if not show.events and not wish.is_set():
        show.line("no event came: something is wrong here", style="bold red")
        return False
    return True


async def _show_events(show: Show, stage: Stage) -> None:
    async for event in stage.events:
        show.event(event)


async def _show_numbers(show: Show, page: str) -> None:
    while True:
        await asyncio.sleep(NUMBERS_INTERVAL)
        show.numbers(page)


async def _send_commands(show: Show, client: Bridge) -> None:
    await asyncio.sleep(FIRST_COMMAND_AFTER)
    call = ""
    while True:
        for sample in SAMPLES:
            if sample.of_call and not call:
                continue
            asked = sample._replace(fields={**sample.fields, "uuid": call}) if sample.of_call else sample
            try:
                reply = await client.request(asked.fields, timeout=10.0)
            except BridgeError as error:
                show.failure(asked.text, error)
            else:
                show.reply(asked.text, reply, sample.explanation)
                if sample.fields.get("command", "").startswith("originate"):
                    call = (reply.result or "").strip().removeprefix("+OK ").strip()
                elif sample.of_call:
                    call = ""
            await asyncio.sleep(COMMAND_INTERVAL)


def own_name() -> str:
    """How this program is called from the same folder: by its name alone only where that finds it."""
    called = Path(sys.argv[0])
    found = shutil.which("esl-bridge")
    if called.name != "esl-bridge" or (found is not None and Path(found).resolve() == called.resolve()):
        return "esl-bridge"
    with contextlib.suppress(ValueError):
        return str(called.resolve().relative_to(Path.cwd()))
    return str(called)


def _introduce(show: Show, stage: Stage) -> None:
    program = own_name()
    url, port = stage.broker.url, stage.broker.port
    show.line("")
    show.line(f"FreeSWITCH (simulated)  {stage.switch.host}:{stage.switch.port}, password {stage.switch.password}")
    show.line(f"bus                     {url}")
    show.line(f"web page                {stage.page}")
    show.line("")
    show.line("look for yourself, from another terminal:", style="bold")
    show.line(f"  {program} tail 'CHANNEL_*' --bus {url}")
    show.line(f"  {program} call status --bus {url}")
    if stage.kind == "nats":
        show.line(f"  nats --server {url} sub 'fs.events.>'")
        show.line(f"""  nats --server {url} request esl.cmd '{{"command": "status"}}'""")
    else:
        show.line(f"  redis-cli -p {port} psubscribe 'fs.events.*'")
        show.line(f"""  redis-cli -p {port} xadd esl.cmd '*' data '{{"id": "1", "command": "status"}}'""")
        show.line(f"  redis-cli -p {port} blpop esl.reply.1 5")
    show.line("")


def _say_where_to_go_on(show: Show) -> None:
    show.line("")
    show.line("your own FreeSWITCH: write a bridge.toml (the README has one of ten lines), then")
    show.line(f"  {own_name()} check --connect && {own_name()} run")
