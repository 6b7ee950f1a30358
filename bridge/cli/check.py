"""``esl-bridge check``: is the configuration right, and is everything it names there?

This room changes nothing anywhere: it reads, connects, asks ``status``, and tells.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from bridge.cli import exits
from bridge.cli.options import ConfigOption
from bridge.errors import BridgeError, BusRefused, ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from bridge.bus.base import Bus
    from bridge.config import NodeSettings, Settings


class Finding(NamedTuple):
    """One line of the report: what was looked at, how it is, and an exit code (0: fine)."""

    what: str
    text: str
    code: int = exits.FINE


def check(
    config: ConfigOption = None,
    connect: Annotated[
        bool,
        typer.Option(
            "--connect",
            help="Also connect to the bus, ask for the rights there, log in to every node, and ask its status.",
        ),
    ] = False,
) -> None:
    """Check the configuration, all of it at once, and show what it comes to.

    Exit code 0: fine. 78: something in it is wrong, or a credential is refused. 69: the bus or a node is not reachable.

    [bold]Examples[/bold]

    \b
      esl-bridge check -c bridge.toml
      esl-bridge check --connect
    """
    from rich.console import Console

    from bridge.cli.loop import run_async
    from bridge.config import find_config_file, load_settings, settings_warnings
    from bridge.wiring import rehearse

    file = find_config_file(config)
    settings = load_settings(config)
    if not settings.model_fields_set:
        raise ConfigError(
            [("node", "nothing is configured at all; name a bus, and a [[node]] or `esl-bridge nodes add`")]
        )
    rehearse(settings)
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=not sys.stdout.isatty())
    print_findings(console, describe_configuration(settings, file))
    for key, text in settings_warnings(settings):
        console.print(f"! {key}: {text}", style="yellow")
    findings: Sequence[Finding] = []
    if connect:
        findings = run_async(connect_everything(settings))
        console.print()
        print_findings(console, findings)
    code = exit_code(findings)
    console.print("the configuration is fine" if code == exits.FINE else "something is wrong", style="bold")
    raise typer.Exit(code)


def exit_code(findings: Sequence[Finding]) -> int:
    """Return 78 where something is refused or wrong, else 69 where something is not reachable, else 0."""
    return max((finding.code for finding in findings), default=exits.FINE)


def describe_configuration(settings: Settings, file: Path | None) -> list[Finding]:
    """What the configuration comes to, without its secrets."""
    variables = sorted(name for name in os.environ if name.startswith("ESL_BRIDGE_") and "_TEST_" not in name)
    bus, events, commands = settings.bus, settings.events, settings.commands
    findings = [
        Finding("file", str(file) if file else "none: defaults and environment"),
        Finding("environment", ", ".join(variables) or "no ESL_BRIDGE_ variables"),
        Finding("worker", f"id {settings.worker.id}, state in {settings.worker.state_dir}"),
        Finding("bus", f"{bus.url.redacted}, {bus.codec}"),
    ]
    for node in settings.nodes:
        details = [node.esl_url.redacted, node.format]
        if node.tags:
            details.append("tags " + " ".join(node.tags))
        if node.filters:
            details.append(f"{len(node.filters)} filters")
        findings.append(Finding(f"node {node.name}", ", ".join(details)))
    deny = settings.policy.deny
    denied = "the built-in list" if deny is None else ", ".join(deny) or "nothing"
    findings += [
        Finding("events", f"{' '.join(events.subscribe)} to {events.topic}, {events.delivery}, {events.envelope}"),
        Finding("commands", f"from {commands.queue}, at most {commands.max_in_flight} in hand, denied: {denied}"),
        Finding("http", settings.http.listen or "off"),
    ]
    return findings


def print_findings(console: Console, findings: Sequence[Finding]) -> None:
    """Print findings as a table; where nobody looks at a terminal, each whole on its line."""
    from rich.table import Table
    from rich.text import Text

    if not console.is_terminal:
        width = max((len(finding.what) for finding in findings), default=0)
        for finding in findings:
            sign = "✓" if finding.code == exits.FINE else "✗"
            print(f"{sign}  {finding.what:{width}}  {finding.text}")
        return
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column()
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        good = finding.code == exits.FINE
        mark = Text("✓", style="green") if good else Text("✗", style="bold red")
        table.add_row(mark, Text(finding.what), Text(finding.text, style="" if good else "red"))
    console.print(table)


async def connect_everything(settings: Settings) -> list[Finding]:
    """Try the bus and every node at once; never raises for what is not there."""
    nodes = asyncio.gather(*(_try_node(settings, node) for node in settings.nodes))
    return [*await _try_bus(settings), *await nodes]


async def _try_bus(settings: Settings) -> list[Finding]:
    from bridge.bus.open import open_bus
    from bridge.cli.rights import faults_of

    url = settings.bus.url
    try:
        bus = open_bus(url.get_secret_value(), name="esl-bridge check", **settings.bus.options())
        try:
            await bus.connect(5.0)
            ledger = await _ledger_of(bus, settings)
            text = f"{bus.url} answers, messages up to {bus.max_payload} bytes; the ledger is {ledger}"
            faults, unknown = await faults_of(bus, settings)
            text += f"; {unknown}" if unknown else ""
            return [Finding("bus", text), *(Finding("bus", fault, exits.WRONG_CONFIGURATION) for fault in faults)]
        finally:
            await bus.close()
    except BridgeError as error:
        text = f"{url.redacted}: {str(error).removeprefix(f'{url.redacted}: ')}"
        return [Finding("bus", text, exits.code_of(error))]


async def _ledger_of(bus: Bus, settings: Settings) -> str:
    """Where outcomes would be kept. Raises ``BusRefused`` where they cannot be kept as they should."""
    if settings.commands.ledger == "memory":
        return "each worker's own"
    try:
        await bus.records.probe()
    except BusRefused as error:
        if settings.commands.ledger == "shared":
            raise
        return f"each worker's own ({error})"
    return "shared"


async def _try_node(settings: Settings, node: NodeSettings) -> Finding:
    from bridge.switch.command_pool import CommandPool
    from bridge.switch.deadlines import Deadlines

    what = f"node {node.name}"
    try:
        tls = node.tls_context()
    except BridgeError as error:
        return Finding(what, str(error), exits.code_of(error))
    pool = CommandPool(
        node.name,
        node.esl_url,
        connect_timeout=settings.esl.esl_connect_timeout / 1000,
        command_timeout=settings.esl.esl_cmd_timeout / 1000,
        max_connections=1,
        deadlines=Deadlines(),
        tls=tls,
    )
    timeout = (settings.esl.esl_connect_timeout + settings.esl.esl_cmd_timeout) / 1000
    try:
        reply = await pool.api("status", timeout)
    except BridgeError as error:
        where = f"{node.esl_url.redacted}: "
        return Finding(what, where + str(error).removeprefix(where), exits.code_of(error))
    finally:
        await pool.close("check is done")
    if not reply.ok:
        return Finding(what, f"logged in; status is not permitted: {reply.text.strip()}")
    return Finding(what, f"logged in; {_first_words(reply.text)}")


def _first_words(status: str) -> str:
    from bridge.cli.rendering import printable

    lines = [line.strip() for line in status.splitlines() if line.strip()]
    wanted = [line for line in lines if line.startswith(("UP ", "FreeSWITCH ")) or "session(s) - peak" in line]
    return printable("; ".join(wanted or lines[:1]), 160)
