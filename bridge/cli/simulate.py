"""``esl-bridge simulate``: a fake FreeSWITCH on a port, for people's own tests.

This room starts it and shows how it fares; the simulator plays the part.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bridge.cli import exits
from bridge.cli.live import StatusLine

if TYPE_CHECKING:
    from bridge.simulator import SimulatedSwitch


def simulate(
    port: Annotated[int, typer.Option("--port", "-p", help="Port; 0 takes a free one.", min=0, max=65535)] = 8021,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    password: Annotated[str, typer.Option(help="ESL password.")] = "ClueCon",
    rate: Annotated[float, typer.Option(help="Made-up calls per second.", min=0)] = 1.0,
    duration: Annotated[float, typer.Option(help="How long a made-up call lasts, in seconds.", min=0.1)] = 3.0,
    heartbeat: Annotated[float, typer.Option(help="Seconds between two HEARTBEATs.", min=0.1)] = 20.0,
    replay: Annotated[
        Path | None,
        typer.Option(
            help="Send the events of a recorded byte stream (.rx.bin, also .gz) instead of made-up calls.",
            exists=True,
            dir_okay=False,
            metavar="FILE",
        ),
    ] = None,
    replay_speed: Annotated[
        float, typer.Option(help="1: as recorded; 10: ten times faster; 0: as fast as it goes.", min=0)
    ] = 1.0,
    replay_loop: Annotated[
        bool, typer.Option("--replay-loop", help="Begin again at the end of the recording.")
    ] = False,
    fault: Annotated[
        list[str] | None,
        typer.Option(
            "--fault",
            help="Misbehave, as NAME:ARGUMENT@AFTER/EVERY (all but NAME may be left out); 'list' shows them.",
            metavar="FAULT",
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Make the same calls each time.", show_default=False)] = None,
    seconds: Annotated[
        float | None, typer.Option("--for", help="End after so many seconds.", min=0, metavar="SECONDS")
    ] = None,
) -> None:
    """Be a FreeSWITCH that is not there: its Event Socket on a port, with made-up calls. Ctrl-C ends it.

    It logs in, subscribes, filters, runs api and bgapi, and beats its heart as the real one does, so that you can try
    your own service, also against bad days.

    [bold]Examples[/bold]

    \b
      esl-bridge simulate
      esl-bridge simulate --port 8022 --rate 20 --heartbeat 5
      esl-bridge simulate --fault stall:5s@1000 --fault latin1/100
      esl-bridge simulate --fault list
    """
    from bridge.cli.loop import run_async
    from bridge.simulator import FaultSyntaxError, SimulatedSwitch
    from bridge.simulator.replay import ReplayError

    if not password or any(char in "\r\n\0" or "\ud800" <= char <= "\udfff" for char in password):
        raise typer.BadParameter("empty, or with a line end, it opens no Event Socket", param_hint="--password")
    faults = fault or []
    if "list" in faults:
        print_faults()
        raise typer.Exit(exits.FINE)
    try:
        switch = SimulatedSwitch(
            host=host,
            port=port,
            password=password,
            calls_per_second=0.0 if replay else rate,
            call_duration=duration,
            heartbeat_interval=heartbeat,
            seed=seed,
            replay=replay,
            replay_speed=replay_speed,
            replay_loop=replay_loop,
        )
    except ReplayError as error:
        raise typer.BadParameter(str(error), param_hint="--replay") from None
    try:
        for text in faults:
            switch.faults.add(text)
    except FaultSyntaxError as error:
        raise typer.BadParameter(str(error), param_hint="--fault") from None
    raise typer.Exit(run_async(_simulate(switch, seconds)))


def print_faults() -> None:
    """Print what can go wrong, as a table."""
    from rich.console import Console
    from rich.table import Table

    from bridge.simulator import FAULTS

    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("fault", "argument", "at", "effect"):
        table.add_column(heading)
    for kind in FAULTS.values():
        argument = f"{kind.argument} ({kind.default:g})" if kind.argument else "-"
        table.add_row(kind.name, argument, kind.trigger, kind.effect)
    Console(highlight=False, soft_wrap=not sys.stdout.isatty()).print(table)


async def _simulate(switch: SimulatedSwitch, seconds: float | None) -> int:
    from bridge.cli.loop import stop_on_signals

    try:
        await switch.start()
    except (OSError, UnicodeError) as error:
        reason = reason_of(error) if isinstance(error, OSError) else "not a host name"
        print(f"esl-bridge: cannot listen on {switch.host}:{switch.port}: {reason}", file=sys.stderr)
        return exits.UNREACHABLE
    try:
        with stop_on_signals() as wish:
            print(f"a simulated FreeSWITCH listens on {switch.host}:{switch.port} (Ctrl-C ends it)", flush=True)
            print(f'  [[node]]\n  name = "sim"\n  url = "{switch.url}"', flush=True)
            with StatusLine(sys.stderr) as line:
                left = seconds
                while left is None or left > 0:
                    step = 1.0 if left is None else min(1.0, left)
                    line.show(status_of(switch))
                    if await wish.within(step):
                        break
                    left = None if left is None else left - step
        print(f"ended: {status_of(switch)}", flush=True)
    finally:
        await switch.stop()
    return exits.FINE


def reason_of(error: OSError) -> str:
    """The kernel's own words where there are any; asyncio's repeat the address."""
    known = error.errno is not None and error.errno > 0
    return os.strerror(error.errno) if known and error.errno is not None else str(error.strerror or error)


def status_of(switch: SimulatedSwitch) -> str:
    """How the simulated switch fares, on one line."""
    text = (
        f"{len(switch.connections)} connections, {switch.events_fired} events fired, "
        f"{switch.commands_received} commands received"
    )
    fired = switch.faults.fired
    return f"{text}, {len(fired)} faults (last: {fired[-1]})" if fired else text
