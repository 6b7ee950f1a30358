"""A changed configuration taken over by a running worker: what differs, what can change now, and the change itself.

Everything that can be wrong is found before anything changes. What cannot change in a running worker stays as it was
and is named. This room never reads a file.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Awaitable, Iterator
from typing import Any, NamedTuple, Protocol

from pydantic import BaseModel, SecretStr

from bridge.config import NodeSettings, Settings
from bridge.nodes import Node, NodeMaker, NodeOrders, Nodes
from bridge.operations import Operations
from bridge.redaction import HIDDEN, redact_url
from bridge.relay.commands import CommandRelay
from bridge.relay.reservoir import Reservoir
from bridge.relay.routes import RouteSettings
from bridge.wiring import buffer_limits, command_policy, command_settings, event_settings

# Keys, and beginnings of keys, that a running worker cannot change.
FIXED = (
    "worker.id", "worker.state_dir", "bus.", "commands.queue", "commands.queue_type", "commands.durable",
    "commands.claim_after", "commands.dedup_window", "commands.ledger", "fleet.", "http.listen",
    "events.buffer_disk", "trace.",
)  # fmt: skip
# Fields of a node that its link and its connections take over while they stand.
LIVE_FIELDS = frozenset(("tags", "max_connections", "max_pipelined", "idle_timeout", "allow_default_password"))


class Difference(NamedTuple):
    """One key that is not what it was; ``old`` and ``new`` are for people and hold no secret, "" is absent."""

    key: str
    old: str
    new: str

    def __str__(self) -> str:
        if not self.old:
            return f"{self.key}: {self.new} (new)"
        return f"{self.key}: {self.old} -> {self.new}" if self.new else f"{self.key}: {self.old} (gone)"

    @property
    def fixed(self) -> bool:
        """Whether it takes a restart."""
        return any(self.key == key or (key.endswith(".") and self.key.startswith(key)) for key in FIXED)


def differences(old: Settings, new: Settings) -> list[Difference]:
    """What differs, key by key; nodes and routes are told by their names."""
    before, after = dict(_flat(old)), dict(_flat(new))
    found = []
    for key in dict.fromkeys([*before, *after]):
        was, now = before.get(key), after.get(key)
        if was is None or now is None:
            # A node or a route that came or went is one line, not one for each of its fields.
            if key.endswith(".name"):
                whole = key.removesuffix(".name")
                what = (after if was is None else before)[f"{whole}.{'url' if key.startswith('node ') else 'topic'}"][1]
                found.append(Difference(whole, *(("", what) if was is None else (what, ""))))
            continue
        if was[0] != now[0]:
            shown = [was[1], now[1]]
            if shown[0] == shown[1]:
                shown[1] += " (another one)"
            found.append(Difference(key, *shown))
    return found


def _flat(model: BaseModel, prefix: str = "") -> Iterator[tuple[str, tuple[Any, str]]]:
    for name, field in type(model).model_fields.items():
        value, key = getattr(model, name), f"{prefix}{field.alias or name}"
        if isinstance(value, BaseModel):
            yield from _flat(value, f"{key}.")
        elif isinstance(value, list) and value and isinstance(value[0], BaseModel):
            for one in value:
                yield from _flat(one, f"{key} {one.name}.")
        elif isinstance(value, list) and name in ("nodes", "routes"):
            continue
        elif isinstance(value, SecretStr):
            secret = value.get_secret_value()
            shown = "" if not secret else redact_url(secret) if "://" in secret else HIDDEN
            yield key, (secret, shown or '""')
        else:
            yield key, (value, "default" if value is None else json.dumps(value, default=str))


class Reloadable(Protocol):
    """The worker, as a reload sees it."""

    settings: Settings
    nodes: Nodes
    orders: NodeOrders
    maker: NodeMaker
    commands: CommandRelay
    operations: Operations
    routes: list[RouteSettings]

    @property
    def reservoir(self) -> Reservoir:
        """What the buffers have in common."""

    def add_node(self, settings: NodeSettings) -> None:
        """Begin with a node."""

    def remove_node(self, name: str) -> Awaitable[None]:
        """Be done with a node: handed over, its events published, its commands answered."""

    def retag_node(self, node: Node) -> None:
        """The node has other tags."""


class Outcome(NamedTuple):
    """What a reload came to."""

    changed: list[Difference]
    fixed: list[Difference]


async def reload(worker: Reloadable, new: Settings) -> Outcome:
    """Take ``new`` over. Raises ``ConfigError`` before anything changed."""
    old = worker.settings
    found = differences(old, new)
    # What must stay is put back, so that the next reload tells it again.
    settings = new.model_copy(
        update={
            "bus": old.bus,
            "trace": old.trace,
            "fleet": old.fleet,
            "worker": new.worker.model_copy(update={"id": old.worker.id, "state_dir": old.worker.state_dir}),
            "commands": new.commands.model_copy(
                update={
                    key: getattr(old.commands, key)
                    for key in ("queue", "queue_type", "durable", "claim_after", "dedup_window", "ledger")
                }
            ),
            "events": new.events.model_copy(update={"buffer_disk": old.events.buffer_disk}),
            "http": new.http.model_copy(update={"listen": old.http.listen}),
        }
    )
    commands, policy = command_settings(settings), command_policy(settings)
    routes = event_settings(settings)
    # Those that the bus added follow what all nodes have in common; one that the file names too is the file's.
    added = worker.orders.added
    before, after = ({**added, **{node.name: node for node in one.nodes}} for one in (old, settings))
    for name, node in after.items():
        if name not in before or before[name] != node:
            node.tls_context()  # raises for an unusable CA file

    # From here on nothing can go wrong any more.
    worker.settings = settings
    worker.maker.follow(settings, routes)
    worker.operations.follow(settings)
    worker.commands.reconfigure(commands, policy)
    worker.reservoir.limits = buffer_limits(settings.events)
    if routes != worker.routes:
        worker.routes = routes
        for each in worker.nodes:
            each.relay.reroute(routes)
    gone = [name for name in before if name not in after]
    fresh = [name for name in after if name not in before]
    for name in before.keys() & after.keys():
        if _needs_new_link(before[name], after[name], old, settings):
            gone.append(name)
            fresh.append(name)
        else:
            _adjust(worker, after[name])
    for name in gone:
        await worker.remove_node(name)
    for name in fresh:
        worker.add_node(after[name])
    worker.orders.look()
    return Outcome([one for one in found if not one.fixed], [one for one in found if one.fixed])


def _needs_new_link(before: NodeSettings, after: NodeSettings, old: Settings, new: Settings) -> bool:
    if before.subscribe is None and after.subscribe is None and old.events.subscribe != new.events.subscribe:
        return True
    names = set(type(after).model_fields) - LIVE_FIELDS
    return any(getattr(before, name) != getattr(after, name) for name in names)


def _adjust(worker: Reloadable, settings: NodeSettings) -> None:
    node = worker.nodes.get(settings.name)
    if node is None:
        return
    worker.maker.adjust(node, settings)
    if node.tags != tuple(settings.tags):
        node = dataclasses.replace(node, tags=tuple(settings.tags))
        worker.nodes.add(node)
        worker.retag_node(node)
