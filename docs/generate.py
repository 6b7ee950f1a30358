"""Write what the reference pages say about the code from the code itself.

A page is written by hand around blocks::

    <!-- generated: metrics -->
    ...
    <!-- end -->

``python docs/generate.py`` (``make docs``) fills every block anew and never touches a word outside of them; with
``--check`` it writes nothing and names the blocks that are no longer true (exit code 1). ``tests/test_docs.py`` does
the same, and sees to it that every block below stands on some page.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import msgspec
import typer

import bridge.errors
from bridge import client
from bridge.cli import app
from bridge.cli.asyncapi import document_of, render_yaml
from bridge.config import Settings, describe_settings
from bridge.config.problems import fields_of, model_in
from bridge.messages import topics, validation
from bridge.messages.asyncapi import PLACEHOLDERS
from bridge.messages.command import STATUSES, CommandReply, CommandRequest, Timing
from bridge.messages.envelope import EventEnvelope
from bridge.messages.event import EventMessage
from bridge.messages.notice import NOTICES, Notice
from bridge.ops.metrics import Metrics
from bridge.relay import verbs
from bridge.relay.policy import DEFAULT_DENY, patterns
from bridge.simulator import FAULTS

DOCS = Path(__file__).resolve().parent
BLOCK = re.compile(r"^<!-- generated: ([a-z-]+) -->\n(.*?)^<!-- end -->$", re.MULTILINE | re.DOTALL)

Block = Callable[[], Iterable[str]]
BLOCKS: dict[str, Block] = {}


def block(name: str) -> Callable[[Block], Block]:
    """Name the function that yields a block's lines."""

    def note(make: Block) -> Block:
        BLOCKS[name] = make
        return make

    return note


def table(heading: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    """Yield a Markdown table; a cell may hold anything but line ends."""
    heading = tuple(heading)
    yield f"| {' | '.join(heading)} |"
    yield f"|{'---|' * len(heading)}"
    for row in rows:
        yield f"| {' | '.join(_cell(cell) for cell in row)} |"


def _cell(text: str) -> str:
    # Outside of code "<node>" would be taken for HTML and "*" for emphasis.
    quiet = re.sub(r"(`[^`]*`)|([<*])", lambda found: found[1] or {"<": "&lt;", "*": "\\*"}[found[2]], text)
    return quiet.replace("|", "\\|").replace("\n", " ")


def code(text: str) -> str:
    """Quote a value."""
    return f"`{text}`" if text else ""


def prose(docstring: str | None) -> str:
    """One line of Markdown from a docstring's first paragraph."""
    return " ".join(inspect.cleandoc(docstring or "").split("\n\n")[0].split()).replace("``", "`")


# --- configuration ----------------------------------------------------------------------------------------------------


@block("settings")
def settings() -> Iterator[str]:
    """Every setting, section by section."""
    rows: dict[str, list[tuple[str, ...]]] = {}
    for info in describe_settings():
        section, _, key = info.key.rpartition(".")
        kind = info.type + (f", {info.unit}" if info.unit else "")
        rows.setdefault(section, []).append((code(key), kind, code(info.default), info.description))
    for section, lines in rows.items():
        name = section.removesuffix("[]")
        title = f"[[{name}]]" if section.endswith("[]") else f"[{name}]"
        about = prose(_model(name).__doc__).partition(": ")[2]
        yield f"## `{title}`"
        yield ""
        variable = _variable(section)
        about = f"{about[0].upper()}{about[1:]} " if about else ""
        yield about + (f"In the environment: `{variable}`." if variable else "In the file only.")
        yield ""
        yield from table(("key", "type", "default", "meaning"), lines)
        yield ""


def _model(table: str) -> Any:
    found: Any = Settings
    for step in table.split("."):
        found = model_in(fields_of(found)[step].annotation)
    return found


def _variable(section: str) -> str:
    if section == "node[]":
        return "ESL_BRIDGE_NODE__<name>__<KEY>"
    return "" if section.endswith("[]") else f"ESL_BRIDGE_{section.upper()}__<KEY>"


# --- messages ---------------------------------------------------------------------------------------------------------


def fields(shape: type[msgspec.Struct]) -> Iterator[tuple[str, str, str, str]]:
    """Name, type, whether it is always there, and meaning of every field of a message."""
    _, schemas = msgspec.json.schema_components([shape], schema_hook=lambda kind: {"type": "anything"})
    schema = schemas[shape.__name__]
    for name, field in schema["properties"].items():
        yield code(name), _kind(field, schemas), "always" if name in schema["required"] else "", field["description"]


def _kind(field: dict[str, Any], schemas: dict[str, Any]) -> str:
    if "$ref" in field:
        return _kind(schemas[field["$ref"].rpartition("/")[2]], schemas)
    if "enum" in field:
        return ", ".join(code(str(value)) for value in field["enum"])
    if "anyOf" in field:
        return " or ".join(_kind(one, schemas) for one in field["anyOf"] if one.get("type") != "null")
    if field.get("type") == "array":
        return f"list of {_kind(field['items'], schemas)}"
    words = {"string": "text", "object": "map", "boolean": "`true`, `false`", "integer": "integer", "number": "number"}
    return words.get(field.get("type", ""), "anything")


@block("event-fields")
def event_fields() -> Iterator[str]:
    """The envelope of an event."""
    return table(("attribute", "type", "present", "meaning"), fields(EventEnvelope))


@block("request-fields")
def request_fields() -> Iterator[str]:
    """A request's fields and which op has which."""
    shared = [row for row in fields(CommandRequest) if row[0].strip("`") not in _of_ops()]
    own = [row for row in fields(CommandRequest) if row[0].strip("`") in _of_ops()]
    yield "For every `op`:"
    yield ""
    yield from table(("field", "type", "meaning"), ((name, kind, text) for name, kind, _, text in shared))
    yield ""
    yield "For some:"
    yield ""
    yield from table(("field", "type", "meaning"), ((name, kind, text) for name, kind, _, text in own))
    yield ""
    optional = validation.optional_fields()
    yield from table(
        ("`op`", "needs", "may have"),
        (
            (code(op), ", ".join(map(code, needs)), ", ".join(map(code, optional[op])))
            for op, needs in validation.required_fields().items()
        ),
    )


def _of_ops() -> set[str]:
    rows = [*validation.required_fields().values(), *validation.optional_fields().values()]
    return {name for row in rows for name in row}


@block("reply-fields")
def reply_fields() -> Iterator[str]:
    """A reply's fields, those of its timing too."""
    yield from table(("field", "type", "present", "meaning"), fields(CommandReply))
    yield ""
    yield "`timing` holds:"
    yield ""
    yield from table(("field", "type", "present", "meaning"), fields(Timing))


@block("statuses")
def statuses() -> Iterator[str]:
    """The status table."""
    return table(
        ("`status`", "`executed`", "`Nats-Service-Error-Code`", "meaning"),
        (
            (code(status), ", ".join(code(value) for value in row.executed), code(row.code), row.meaning)
            for status, row in STATUSES.items()
        ),
    )


@block("notice-fields")
def notice_fields() -> Iterator[str]:
    """What all notices share, and the data of every kind."""
    yield from table(("attribute", "type", "present", "meaning"), fields(Notice))
    for kind, shape in NOTICES.items():
        yield ""
        yield f"## `{topics.NOTICE_PREFIX}{kind}`"
        yield ""
        yield prose(shape.__doc__)
        if kind != "late":
            yield ""
            yield from table(("field of `data`", "type", "present", "meaning"), fields(shape))
        else:
            yield "`data` has the fields of [a reply](replies.md)."


@block("placeholders")
def placeholders() -> Iterator[str]:
    """What may stand in a topic template."""
    known = [(code(f"{{{name}}}"), text) for name, text in PLACEHOLDERS.items()]
    return table(("placeholder", "stands for"), [*known, ("`{<any header>}`", "that header's value")])


@block("asyncapi-addresses")
def addresses() -> Iterator[str]:
    """Every channel of the AsyncAPI document."""
    document = document_of(Settings())
    return table(
        ("address", "carries"),
        (
            (code(channel["address"] or "(reply_to)"), channel["description"])
            for channel in document["channels"].values()
        ),
    )


# --- metrics, policy, verbs -------------------------------------------------------------------------------------------


@block("metrics")
def metrics() -> Iterator[str]:
    """Every metric of ours."""
    rows = {}
    for family in Metrics(process=False).families:
        text = family.text
        if family.buckets:
            text += f". Buckets: {', '.join(f'{bound:g}' for bound in family.buckets)}"
        rows[family.name] = (code(family.name), family.kind, ", ".join(map(code, family.labels)), text)
    return table(("metric", "type", "labels", "meaning"), (rows[name] for name in sorted(rows)))


@block("policy-patterns")
def policy_patterns() -> Iterator[str]:
    """The grammar as its room states it."""
    example = inspect.cleandoc(patterns.__doc__ or "").partition("::\n\n")[2].partition("\n\n")[0]
    yield "```text"
    yield from inspect.cleandoc(example).split("\n")
    yield "```"


@block("policy-defaults")
def policy_defaults() -> Iterator[str]:
    """The built-in deny list, as it could stand in a file."""
    yield "```toml"
    yield "[policy]"
    yield "deny = ["
    yield from (f"    {json.dumps(pattern)}," for pattern in DEFAULT_DENY)
    yield "]"
    yield "```"


@block("verbs-background")
def verbs_background() -> Iterator[str]:
    """Verbs that run as jobs."""
    yield ", ".join(map(code, verbs.DEFAULT_BACKGROUND)) + "."


@block("verbs-safe")
def verbs_safe() -> Iterator[str]:
    """Verbs that write nothing to the ledger."""
    yield ", ".join(map(code, verbs.DEFAULT_SAFE)) + "."


# --- command line, client, simulator ----------------------------------------------------------------------------------


@block("commands")
def commands() -> Iterator[str]:
    """Every command with its arguments and options."""
    group: Any = typer.main.get_command(app)
    for name, command in group.commands.items():
        arguments = [one for one in command.params if one.opts and not one.opts[0].startswith("-")]
        usage = "".join(f" {_metavar(one)}" if one.required else f" [{_metavar(one)}]" for one in arguments)
        yield f"## `esl-bridge {name}{usage}`"
        yield ""
        text, _, examples = re.sub(r"\[/?(?:bold|dim)\]", "", command.help).partition("\bExamples\n")
        yield text.strip().replace("``", "`")
        yield ""
        if examples:
            yield "```console"
            yield from examples.strip().split("\n")
            yield "```"
            yield ""
        rows = [_option(one) for one in command.params]
        if rows:
            yield from table(("argument or option", "default", "meaning"), rows)
            yield ""


def _metavar(option: Any) -> str:
    if option.metavar or getattr(option, "is_flag", False):
        return option.metavar or ""
    choices = option.type_descriptor.annotation
    return "/".join(get_args(choices)) if get_origin(choices) is Literal else str(option.name).upper()


def _option(option: Any) -> tuple[str, str, str]:
    names = [name for name in option.opts if name.startswith("-")]
    metavar = _metavar(option)
    default = option.show_default if isinstance(option.show_default, str) else option.default
    shown = "" if default is None or default is False or default == [] else str(default)
    told = (option.help or "").replace("\\[", "[")  # a bracket that Rich shall not take for a mark
    return code(f"{', '.join(names)} {metavar}".strip()), code(shown), told


@block("errors")
def errors() -> Iterator[str]:
    """The error tree as its room draws it."""
    yield "```text"
    tree = inspect.cleandoc(bridge.errors.__doc__ or "").partition("::\n\n")[2]
    yield from inspect.cleandoc(tree).split("\n")
    yield "```"


@block("client")
def client_methods() -> Iterator[str]:
    """Signature and meaning of everything public of the client."""
    for kind in (client.Bridge, client.EventStream, EventMessage):
        yield f"## `{kind.__name__}`"
        yield ""
        yield from _paragraphs(kind.__doc__)
        rows = []
        for name, member in vars(kind).items():
            if name.startswith("_"):
                continue
            if isinstance(member, property):
                rows.append((code(name), prose(member.__doc__)))
            elif inspect.isfunction(member):
                rows.append((code(_signature(name, member)), " ".join(_paragraphs(member.__doc__)).strip()))
        yield from table(("", "meaning"), rows)
        yield ""


def _signature(name: str, function: Any) -> str:
    parameters = list(inspect.signature(function).parameters.values())[1:]
    shown, starred = [], False
    for one in parameters:
        if one.kind is one.KEYWORD_ONLY and not starred:
            shown.append("*")
            starred = True
        prefix = "**" if one.kind is one.VAR_KEYWORD else ""
        shown.append(prefix + one.name + ("" if one.default is one.empty else f"={one.default!r}"))
    return f"{name}({', '.join(shown)})"


def _paragraphs(docstring: str | None) -> Iterator[str]:
    for paragraph in inspect.cleandoc(docstring or "").split("\n\n"):
        yield " ".join(paragraph.split()).replace("``", "`")
        yield ""


@block("faults")
def faults() -> Iterator[str]:
    """What the simulator can do wrong."""
    return table(
        ("fault", "argument", "fires at", "what happens"),
        ((code(one.name), one.argument, one.trigger, one.effect) for one in FAULTS.values()),
    )


# --- the pages --------------------------------------------------------------------------------------------------------


def pages() -> list[Path]:
    """All pages that may hold blocks."""
    return sorted(DOCS.rglob("*.md"))


def filled(page: str) -> str:
    """Return a page's text with every block made anew. Raises ``KeyError`` for a block that nothing makes."""

    def fill(found: re.Match[str]) -> str:
        lines = "\n".join(BLOCKS[found[1]]()).strip("\n")
        return f"<!-- generated: {found[1]} -->\n\n{lines}\n\n<!-- end -->"

    return BLOCK.sub(fill, page)


def document(form: str) -> str:
    """The AsyncAPI document of a bridge with nothing configured."""
    made = document_of(Settings())
    made["info"]["version"] = "0"  # the bridge's own would make every release change this file
    text = "\n".join(render_yaml(made)) if form == "yaml" else json.dumps(made, indent=2)
    return text + "\n"


def stale() -> Iterator[tuple[Path, str]]:
    """Yield every file that is not what the code says, with what it should hold."""
    for path in pages():
        text = path.read_text("utf-8")
        if filled(text) != text:
            yield path, filled(text)
    path = DOCS / "reference" / "asyncapi.yaml"
    if not path.exists() or path.read_text("utf-8") != document("yaml"):
        yield path, document("yaml")


def main(arguments: list[str]) -> int:
    """Fill the pages, or with ``--check`` tell which are stale."""
    found = list(stale())
    for path, text in found:
        print(("stale: " if "--check" in arguments else "written: ") + str(path.relative_to(DOCS.parent)))
        if "--check" not in arguments:
            path.write_text(text, "utf-8")
    return 1 if found and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
