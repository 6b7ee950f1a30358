"""``esl-bridge nodes``: the fleet as its workers tell it, and nodes added, removed, taken out of service.

This room speaks to the bus only; it never connects to FreeSWITCH.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from bridge.cli import exits
from bridge.cli.options import BusOption, ConfigOption, settings_for_bus

if TYPE_CHECKING:
    from bridge.client import Bridge
    from bridge.config import Settings

CONNECT_TIMEOUT = 5.0
Action = Literal["list", "add", "remove", "drain", "resume"]
_COLUMNS = ("node", "state", "owner", "standby", "sessions", "calls", "load", "lag", "cmds")
_NAMES = (2, 3)  # the columns that give way on a narrow terminal
_LEAST = 8
_STYLES = {"UP": "green", "DOWN": "bold red", "UNOWNED": "bold red"}


def nodes(
    action: Annotated[Action, typer.Argument(help="list, add, remove, drain or resume.")] = "list",
    name: Annotated[str | None, typer.Argument(help="The node.", show_default=False, metavar="NAME")] = None,
    url: Annotated[
        str | None,
        typer.Argument(help=r"With add: fs://\[username]:password@host[:port].", show_default=False, metavar="URL"),
    ] = None,
    tag: Annotated[list[str] | None, typer.Option("--tag", help="With add: a tag; repeat it for more.")] = None,
    pin: Annotated[
        str, typer.Option("--pin", help="With add: worker id or tag of the workers that shall own it.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the fleet as one line of JSON.")] = False,
    config: ConfigOption = None,
    bus: BusOption = None,
) -> None:
    """Show the nodes of the fleet: state, owner, sessions, load, lag. Add, remove, drain or resume one.

    What is added lives on the bus, its password with it, and all running workers pick it up at once. A node that is
    drained gets no new work from "any" until it is resumed; its owner tells when its last call has ended.

    [bold]Examples[/bold]

    \b
      esl-bridge nodes
      esl-bridge nodes --json --bus redis://127.0.0.1
      esl-bridge nodes add fs3 fs://:secret@10.0.0.3 --tag media
      esl-bridge nodes drain fs1
    """
    from bridge.cli.loop import run_async

    if action != "list" and not name:
        raise typer.BadParameter(f"{action} needs the name of a node", param_hint="NAME")
    if (action == "add") != bool(url):
        raise typer.BadParameter("add needs a URL, the others take none", param_hint="URL")
    settings = settings_for_bus(config, bus)
    raise typer.Exit(run_async(_nodes(settings, action, name or "", url or "", tuple(tag or ()), pin, as_json=as_json)))


async def _nodes(
    settings: Settings, action: Action, name: str, url: str, tags: tuple[str, ...], pin: str, *, as_json: bool
) -> int:
    from bridge.client import Bridge

    options = settings.bus.options()
    async with Bridge(settings.bus.url.get_secret_value(), connect_timeout=CONNECT_TIMEOUT, **options) as client:
        if action != "list":
            return await _order(client, action, name, url, tags, pin)
        fleet = await client.fleet()
    if as_json:
        print(json.dumps(fleet, ensure_ascii=False))
    else:
        _show(fleet)
    return exits.FINE


async def _order(client: Bridge, action: Action, name: str, url: str, tags: tuple[str, ...], pin: str) -> int:
    import msgspec

    from bridge.client.fleet import read_orders, write_order
    from bridge.config import NodeSettings
    from bridge.messages.fleet import NodeOrder

    order = (await read_orders(client.bus)).get(name)
    if action == "add":
        try:
            NodeSettings.model_validate({"name": name, "url": url, "tags": list(tags), "pin": pin})
        except ValueError as error:
            # The validation error never shows its input: the URL holds a password.
            raise typer.BadParameter(_reason(error), param_hint="NAME or URL") from None
        if (order is None or not order.url) and any(node["name"] == name for node in await client.nodes()):
            print(f"esl-bridge: {name} is known already: workers whose configuration names it go by that",
                  file=sys.stderr)  # fmt: skip
        order = NodeOrder(name, url, tags, pin)
    elif action == "remove":
        if order is None or not order.url:
            print(f"esl-bridge: {name} is not a node of the bus; one of the configuration is removed there",
                  file=sys.stderr)  # fmt: skip
            return exits.FAILED
        order = None
    elif not any(node["name"] == name for node in await client.nodes()):
        print(f"esl-bridge: no worker knows {name}", file=sys.stderr)
        return exits.FAILED
    else:
        order = msgspec.structs.replace(order or NodeOrder(name), drain=action == "drain")
        if order == NodeOrder(name):
            order = None
    await write_order(client.bus, name, order)
    done = {"add": "added", "remove": "removed", "drain": "drained: no new work", "resume": "back in service"}
    print(f"{name}: {done[action]}")
    return exits.FINE


def _reason(error: ValueError) -> str:
    from pydantic import ValidationError

    if isinstance(error, ValidationError):
        return "; ".join(f"{'.'.join(map(str, it['loc']))}: {it['msg']}" for it in error.errors(include_input=False))
    return str(error)


def _show(fleet: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    rows = [_row(node) for node in fleet["nodes"]]
    console = Console(highlight=False, markup=False, emoji=False)
    workers = fleet["workers"]
    if console.is_terminal:
        columns = [
            Column(name, justify="right" if at > max(_NAMES) else "left", no_wrap=True)
            for at, name in enumerate(_COLUMNS)
        ]
        table = Table(*columns, box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        for node, state, *rest in fitted(rows, console.width):
            table.add_row(Text(node, style="bold"), Text(state, style=_STYLES.get(state, "yellow")), *map(Text, rest))
        console.print(table)
    else:
        widths = [max(len(row[at]) for row in [_COLUMNS, *rows]) for at in range(len(_COLUMNS))]
        for row in [_COLUMNS, *rows]:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    for worker in workers:
        state = "" if worker["state"] == "up" else f" ({worker['state']})"
        print(f"worker {worker['worker']}{state}: {worker['nodes']} owned, {worker['ready']} ready")
    if not workers:
        print("no worker lives on this bus", file=sys.stderr)


def fitted(rows: list[tuple[str, ...]], width: int) -> list[tuple[str, ...]]:
    """The rows with the names of workers cut to what ``width`` columns leave them; their ends tell them apart."""
    widths = [max(len(row[at]) for row in [_COLUMNS, *rows]) for at in range(len(_COLUMNS))]
    excess = sum(widths) + 2 * (len(widths) - 1) - width
    while excess > 0 and max(widths[at] for at in _NAMES) > _LEAST:
        widest = max(_NAMES, key=lambda at: widths[at])
        widths[widest] -= 1
        excess -= 1

    def cut(at: int, text: str) -> str:
        return text if at not in _NAMES or len(text) <= widths[at] else "…" + text[len(text) - widths[at] + 1 :]

    return [tuple(cut(at, text) for at, text in enumerate(row)) for row in rows]


def _row(node: dict[str, Any]) -> tuple[str, ...]:
    def shown(key: str) -> str:
        value = node.get(key)
        return "-" if value is None else str(value)

    idle, lag = node.get("idle_cpu"), node.get("lag")
    state = node["state"] + (" (out of service)" if node.get("drained") and node["state"] != "DRAINING" else "")
    return (
        node["name"],
        state,
        node["owner"] or "-",
        ",".join(node["standby"]) or "-",
        shown("sessions"),
        shown("calls"),
        "-" if idle is None else f"{100 - idle:.0f}%",
        "-" if lag is None else f"{lag * 1000:.1f} ms",
        shown("in_flight"),
    )
