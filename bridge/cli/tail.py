"""``esl-bridge tail``: events as they pass on the bus, one readable line each.

This room listens to the bus only; FreeSWITCH never learns of it.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from bridge.cli import exits
from bridge.cli.options import BusOption, ConfigOption, settings_for_bus

if TYPE_CHECKING:
    from rich.console import Console

    from bridge.client import EventStream
    from bridge.config import Settings
    from bridge.messages.event import EventMessage

CONNECT_TIMEOUT = 5.0


def tail(
    pattern: Annotated[
        str, typer.Argument(help="Event names to show, as a glob: CHANNEL_*, CUSTOM:sofia::*", metavar="PATTERN")
    ] = "*",
    where: Annotated[
        list[str] | None,
        typer.Option(
            "--where",
            "-w",
            help="Show only events whose header matches, as Header=glob. Repeat it: all must match.",
            metavar="HEADER=GLOB",
        ),
    ] = None,
    count: Annotated[
        int | None, typer.Option("--count", "-n", help="End after so many events.", min=1, metavar="N")
    ] = None,
    seconds: Annotated[
        float | None, typer.Option("--for", help="End after so many seconds.", min=0, metavar="SECONDS")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print each event whole, as one line of JSON.")] = False,
    config: ConfigOption = None,
    bus: BusOption = None,
) -> None:
    """Show events as they pass on the bus, one line each. Ctrl-C ends it.

    [bold]Examples[/bold]

    \b
      esl-bridge tail
      esl-bridge tail 'CHANNEL_*' --bus nats://127.0.0.1:4222
      esl-bridge tail CHANNEL_ANSWER --where 'Caller-Destination-Number=10*'
      esl-bridge tail CHANNEL_HANGUP_COMPLETE --json -n 1
    """
    from bridge.cli.loop import run_async

    conditions = parse_conditions(where or [])
    settings = settings_for_bus(config, bus)
    if settings.events.delivery == "durable" and not settings.bus.url.scheme.startswith(("nats", "tls")):
        print("esl-bridge: events.delivery is durable: on Redis tail sees what is published only", file=sys.stderr)
    code = run_async(_tail(settings, pattern, conditions, count=count, seconds=seconds, as_json=as_json))
    raise typer.Exit(code)


def parse_conditions(texts: list[str]) -> dict[str, str]:
    """Return ``Header=glob`` texts as a map; raises ``typer.BadParameter``."""
    conditions = {}
    for text in texts:
        header, equals, glob = text.partition("=")
        if not equals or not header:
            raise typer.BadParameter(f'"{text}" is not Header=glob', param_hint="--where")
        conditions[header] = glob
    return conditions


def topic_pattern(template: str) -> str | None:
    """Return the pattern that covers all topics of a template; None where the client's own default does."""
    if template == "fs.events.{event}":
        return None
    return ".".join("*" if "{" in token else token for token in template.split("."))


async def _tail(
    settings: Settings,
    pattern: str,
    conditions: dict[str, str],
    *,
    count: int | None,
    seconds: float | None,
    as_json: bool,
) -> int:
    from rich.console import Console

    from bridge.cli.loop import connected, stop_on_signals, until_stopped
    from bridge.client import Bridge

    console = Console(highlight=False, markup=False, emoji=False)
    url = settings.bus.url
    with stop_on_signals() as wish:
        bridge = Bridge(url.get_secret_value(), connect_timeout=CONNECT_TIMEOUT, **settings.bus.options())
        async with connected(wish, bridge) as there:
            if not there:
                return exits.FINE
            stream = await bridge.subscribe(pattern, where=conditions, topic=topic_pattern(settings.events.topic))
            if sys.stderr.isatty():
                print(f"listening to {pattern} on {url.redacted} (Ctrl-C ends)", file=sys.stderr)
            show = _show(stream, console, count=count, as_json=as_json)
            try:
                async with asyncio.timeout(seconds):
                    await until_stopped(wish, show)
            except TimeoutError:
                pass
            if stream.lost:
                print(f"esl-bridge: {stream.lost} events came faster than they could be shown", file=sys.stderr)
            if stream.undecodable:
                print(f"esl-bridge: {stream.undecodable} messages were no events", file=sys.stderr)
    return exits.FINE


async def _show(stream: EventStream, console: Console, *, count: int | None, as_json: bool) -> None:
    shown = 0
    async for event in stream:
        if as_json:
            print(json_line(event), flush=True)
        else:
            print_line(console, event)
        shown += 1
        if count is not None and shown >= count:
            return


def json_line(event: EventMessage) -> str:
    """The whole message on one line, whatever its codec and envelope were."""
    return json.dumps({**event.attributes, "data": event.data}, ensure_ascii=False, default=str)


def print_line(console: Console, event: EventMessage) -> None:
    """Print an event's line: cut to a terminal's width, whole elsewhere."""
    from bridge.cli.rendering import render_event

    if console.is_terminal:
        line = render_event(event, width=console.width)
        console.print(line, overflow="ellipsis", no_wrap=True, crop=True)
    else:
        print(render_event(event).plain, flush=True)
