"""The command line: one room a command; this one puts them together and turns errors into exit codes.

It never does a command's work, and imports what a command needs only when that command runs.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from bridge import __version__
from bridge.cli import exits
from bridge.cli.asyncapi import asyncapi
from bridge.cli.call import call
from bridge.cli.check import check
from bridge.cli.demo import demo
from bridge.cli.nodes import nodes
from bridge.cli.reload import reload
from bridge.cli.run import run
from bridge.cli.simulate import simulate
from bridge.cli.tail import tail
from bridge.errors import BridgeError

EXAMPLES = "[bold]Examples[/bold]"

app = typer.Typer(
    name="esl-bridge",
    rich_markup_mode="rich",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 fine, 1 answered with a failure, 2 usage, 69 bus or node not reachable, 78 configuration "
    "or credentials wrong.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"esl-bridge {__version__}")
        raise typer.Exit(exits.FINE)


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and end.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """The message-bus bridge between FreeSWITCH's Event Socket and NATS or Redis.

    New here? [bold]esl-bridge demo[/bold] shows all of it on this machine, with nothing to install or configure.
    """


def help_of(docstring: str) -> str:
    """Return a docstring as help: paragraphs flow, examples keep their lines (``\\b`` is Click's mark for that)."""
    text, _, examples = inspect.cleandoc(docstring).partition(f"{EXAMPLES}\n\n\b\n")
    paragraphs = [paragraph.replace("\n", " ") for paragraph in text.strip().split("\n\n")]
    lines = [f"[dim]$[/dim] {line.strip()}" for line in examples.strip().split("\n")]
    return "\n\n".join([*paragraphs, "\n".join([f"\b{EXAMPLES}", *lines])])


for command in (demo, run, reload, check, tail, call, nodes, simulate, asyncapi):
    app.command(help=help_of(command.__doc__ or ""))(command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    out, err = sys.stdout, sys.stderr
    try:
        code = _run(arguments)
        out.flush()
    except BrokenPipeError:
        # The reader of our output went away (`| head`): not a fault. The interpreter must not flush into it again.
        sys.stdout, sys.stderr = out, err  # Typer has wrapped them
        os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())
        return exits.FINE
    return code


def _run(arguments: Sequence[str] | None) -> int:
    try:
        app(args=None if arguments is None else list(arguments), prog_name="esl-bridge")
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):
            raise end.__context__ from None  # Typer and Rich make a 1 of it: "answered with a failure"
        return end.code if isinstance(end.code, int) else exits.FINE if end.code is None else exits.FAILED
    except BridgeError as error:
        return exits.tell(error)
    except KeyboardInterrupt:
        return exits.INTERRUPTED
    return exits.FINE
