"""``esl-bridge call``: one request through the bus, and its reply.

This room speaks to the bus only; a worker runs the command.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from bridge.cli import exits
from bridge.cli.options import BusOption, ConfigOption, settings_for_bus

if TYPE_CHECKING:
    from bridge.config import Settings
    from bridge.messages.command import CommandReply

CONNECT_TIMEOUT = 5.0
DIRECT_TIMEOUT = 10.0
JOB_TIMEOUT = 120.0
# The longest that a worker can be configured to grant, in seconds.
LONGEST_TIMEOUT = 31_536_000.0

Op = Literal["api", "bgapi", "execute", "hangup", "sendmsg", "sendevent"]


def call(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            help="The command. With --op execute: APP [ARG]; hangup: [CAUSE]; sendevent: EVENT.", metavar="COMMAND..."
        ),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(
            help="Where: any (the least loaded), all, a node's name, tag:TAG or call:UUID.",
            show_default=False,
            metavar="TARGET",
        ),
    ] = None,
    op: Annotated[Op, typer.Option(help="What kind of command it is.")] = "api",
    timeout: Annotated[
        float | None,
        typer.Option(
            help="Longest wait for the reply, in seconds.",
            min=0.001,
            max=LONGEST_TIMEOUT,
            show_default=f"{DIRECT_TIMEOUT:g}, for jobs {JOB_TIMEOUT:g}",
            metavar="SECONDS",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole reply, as one line of JSON.")] = False,
    identity: Annotated[
        str | None,
        typer.Option("--id", help="Correlation id. The same id never runs a command twice.", metavar="ID"),
    ] = None,
    uuid: Annotated[
        str | None, typer.Option(help="The call, for --op execute, hangup and sendmsg.", metavar="UUID")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="With --op execute: reply when the application ended.")] = False,
    header: Annotated[
        list[str] | None,
        typer.Option(
            "--header", help="For sendmsg and sendevent, as Name=value. May be repeated.", metavar="NAME=VALUE"
        ),
    ] = None,
    body: Annotated[str | None, typer.Option(help="Body, for sendmsg and sendevent.", metavar="TEXT")] = None,
    idempotent: Annotated[
        bool, typer.Option("--idempotent", help="Running it twice is harmless: it may be tried again.")
    ] = False,
    queue: Annotated[
        str | None, typer.Option(help="Another queue, such as esl.cmd.fs1 (strict order).", metavar="QUEUE")
    ] = None,
    config: ConfigOption = None,
    bus: BusOption = None,
) -> None:
    """Send a command to FreeSWITCH through the bus and print its reply.

    The result goes to stdout. A failure goes to stderr with exit code 1, and says whether the command ran. Words
    after [bold]--[/bold] are the command's, even when they look like options.

    [bold]Examples[/bold]

    \b
      esl-bridge call status
      esl-bridge call --to all show channels count
      esl-bridge call originate user/1000 '&park'
      esl-bridge call --op hangup --uuid 0f1c... USER_BUSY
      esl-bridge call --op execute --uuid 0f1c... playback /tmp/hello.wav
    """
    from bridge.cli.loop import run_async

    fields = request_fields(
        words or [], op=op, to=to, uuid=uuid, wait=wait, headers=header or [], body=body, idempotent=idempotent
    )
    if identity:
        fields["id"] = identity
    settings = settings_for_bus(config, bus)
    if timeout is None:
        timeout = JOB_TIMEOUT if _takes_long(fields) else DIRECT_TIMEOUT
    raise typer.Exit(run_async(_call(settings, fields, timeout=timeout, queue=queue, as_json=as_json)))


def request_fields(
    words: list[str],
    *,
    op: Op,
    to: str | None,
    uuid: str | None,
    wait: bool,
    headers: list[str],
    body: str | None,
    idempotent: bool,
) -> dict[str, Any]:
    """Return the request's fields (contract section 4); raises ``typer.BadParameter`` for what cannot be one."""
    fields: dict[str, Any] = {"op": op, "to": to, "uuid": uuid, "body": body}
    if wait:
        fields["wait"] = True
    if idempotent:
        fields["idempotent"] = True
    if op in ("api", "bgapi"):
        fields["command"] = " ".join(words)
    elif op == "execute":
        fields["app"] = words[0] if words else ""
        fields["arg"] = " ".join(words[1:]) or None
    elif op == "hangup":
        fields["cause"] = words[0] if words else None
    elif op == "sendevent":
        fields["event"] = words[0] if words else ""
    if headers:
        pairs = [text.partition("=") for text in headers]
        for name, equals, _ in pairs:
            if not equals or not name:
                raise typer.BadParameter(f'"{name}" is not Name=value', param_hint="--header")
        fields["headers"] = {name: value for name, _, value in pairs}
    if op in ("api", "bgapi", "execute", "sendevent") and not words:
        raise typer.BadParameter("nothing to send", param_hint="COMMAND")
    given = [to, uuid, body, *words, *headers]
    if any("\ud800" <= char <= "\udfff" for text in given if text for char in text):
        raise typer.BadParameter("an argument is not UTF-8", param_hint="COMMAND")
    if op in ("execute", "hangup", "sendmsg") and not uuid:
        raise typer.BadParameter(f"{op} needs the call's --uuid", param_hint="--uuid")
    return {name: value for name, value in fields.items() if value is not None}


def _takes_long(fields: dict[str, Any]) -> bool:
    verb = str(fields.get("command", "")).partition(" ")[0]
    return fields["op"] == "bgapi" or bool(fields.get("wait")) or verb in ("originate", "bgapi")


async def _call(settings: Settings, fields: dict[str, Any], *, timeout: float, queue: str | None, as_json: bool) -> int:
    from bridge.cli.loop import connected, stop_on_signals, until_stopped
    from bridge.client import Bridge

    with stop_on_signals() as wish:
        bridge = Bridge(
            settings.bus.url.get_secret_value(),
            queue=settings.commands.queue,
            connect_timeout=CONNECT_TIMEOUT,
            **settings.bus.options(),
        )
        async with connected(wish, bridge) as there:
            if not there:
                print("esl-bridge: given up before anything was sent", file=sys.stderr)
                return exits.INTERRUPTED
            reply = await until_stopped(wish, bridge.request(fields, timeout=timeout, queue=queue))
    if reply is None:
        print("esl-bridge: given up; the command may run nevertheless", file=sys.stderr)
        return exits.INTERRUPTED
    if as_json:
        from bridge.messages.command import encode_reply

        print(encode_reply(reply).decode())
    else:
        print_reply(reply)
    return exits.FINE if reply.status == "ok" else exits.FAILED


def print_reply(reply: CommandReply) -> None:
    """Print the result to stdout, a failure to stderr; for ``to: all`` node by node."""
    from bridge.cli.rendering import printable_output

    for part in reply.replies or [reply]:
        heading = f"{part.node}: " if reply.replies else ""
        if part.status == "ok":
            print(heading + printable_output((part.result or "").rstrip("\n")))
        else:
            text = part.error or part.result or ""
            print(
                f"{heading}{part.status} (executed: {part.executed}) {printable_output(text.strip())}", file=sys.stderr
            )
    if reply.replies == [] and reply.status != "ok":
        print(f"{reply.status} (executed: {reply.executed}) {printable_output(reply.error)}", file=sys.stderr)
