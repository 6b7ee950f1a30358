"""``esl-bridge asyncapi``: the bus's language as an AsyncAPI 3 document, for code generators and catalogues.

This room only prints; the document is made in ``messages``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from bridge.cli.options import BusOption, ConfigOption, settings_for_bus

if TYPE_CHECKING:
    from bridge.config import Settings


def asyncapi(
    form: Annotated[Literal["json", "yaml"], typer.Option("--format", "-f", help="How it is written.")] = "json",
    config: ConfigOption = None,
    bus: BusOption = None,
) -> None:
    """Print the AsyncAPI 3 document: topics, queues, messages and their fields, made from the types that check them.

    Addresses, encoding, broker and node names are those of the configuration; no password is in it.

    [bold]Examples[/bold]

    \b
      esl-bridge asyncapi > asyncapi.json
      esl-bridge asyncapi --format yaml -c bridge.toml
      esl-bridge asyncapi --bus redis://127.0.0.1:6379
    """
    document = document_of(settings_for_bus(config, bus))
    print("\n".join(render_yaml(document)) if form == "yaml" else json.dumps(document, indent=2, ensure_ascii=False))


def document_of(settings: Settings) -> dict[str, Any]:
    """Return the document for a configuration."""
    from bridge import __version__
    from bridge.messages.asyncapi import EventRoute, describe_bus

    url = settings.bus.url.get_secret_value()
    events = settings.events
    codec = events.codec or settings.bus.codec
    # Credentials stand before the last "@" of what stands between the scheme and the path.
    host = url.partition("://")[2].partition("?")[0].partition("/")[0].rpartition("@")[2]
    return describe_bus(
        version=__version__,
        bus="nats" if settings.bus.url.scheme in ("nats", "tls", "memory") else "redis",
        host=host or "localhost",
        codec=codec,
        topic=events.topic,
        envelope=events.envelope,
        routes=[
            EventRoute(route.name, route.topic, route.codec or codec, route.envelope or events.envelope)
            for route in events.routes
        ],
        queue=settings.commands.queue,
        nodes=[node.name for node in settings.nodes],
    )


_PLAIN = re.compile(r"[A-Za-z/$][A-Za-z0-9_./$-]*(?: [A-Za-z0-9_./$-]+)*\Z")
# Words that YAML readers take for something else than text.
_NOT_TEXT = frozenset(["y", "n", "yes", "no", "on", "off", "true", "false", "null", "none"])


def render_yaml(value: Any, indent: str = "") -> Iterator[str]:
    """Yield the lines of a map of maps, lists and plain values as YAML."""
    for key, inner in value.items():
        name = f"{indent}{_scalar(key)}:"
        if isinstance(inner, dict) and inner:
            yield name
            yield from render_yaml(inner, indent + "  ")
        elif isinstance(inner, list) and inner:
            yield name
            for item in inner:
                yield from _item(item, indent + "  ")
        else:
            yield f"{name} {_scalar(inner)}"


def _item(item: Any, indent: str) -> Iterator[str]:
    if isinstance(item, dict) and item:
        first, *rest = render_yaml(item, indent + "  ")
        yield f"{indent}- {first.strip()}"
        yield from rest
    else:
        yield f"{indent}- {_scalar(item)}"


def _scalar(value: Any) -> str:
    if isinstance(value, str) and _PLAIN.match(value) and value.lower() not in _NOT_TEXT:
        return value
    # JSON's form of anything else is YAML's too.
    return json.dumps(value, ensure_ascii=False)
