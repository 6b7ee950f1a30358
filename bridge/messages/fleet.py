"""What workers tell each other, and tools read: a worker's entry in the fleet, with the nodes it owns.

Never decides who owns what; msgpack, because the bridge keeps it for itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from bridge.errors import InvalidMessage

TOPIC = "esl.fleet"
"""Where workers tell each other to look; ``esl.fleet.<instance>`` reaches one of them."""

UNKNOWN = "unknown"
"""The state of a node whose owner cannot tell it: on a bus that keeps nothing."""
PAGE_WORDS = frozenset({"watch", "unwatch", "seen"})
"""Kinds of words that the workers' pages say to each other."""


class NodeEntry(msgspec.Struct, array_like=True, frozen=True):
    """A node as its owner sees it. Loads are -1 where the last HEARTBEAT is too old; times in seconds.

    ``behind``: something that FreeSWITCH said was not read, or not published, when this was written.
    """

    name: str
    state: str = ""
    reason: str = ""
    core_uuid: str = ""
    epoch: str = ""
    sessions: int = -1
    max_sessions: int = 0
    sessions_per_sec: int = 0
    sessions_per_sec_last: int = 0
    idle_cpu: float = -1.0
    load_age: float = 0.0
    interval: float = 20.0
    lag: float = 0.0
    calls: int = 0
    in_flight: int = 0
    events: int = 0
    url: str = ""
    tags: tuple[str, ...] = ()
    mark: str = ""
    behind: bool = False


class WorkerEntry(msgspec.Struct, omit_defaults=True, frozen=True):
    """A living worker. ``id`` is stable, ``instance`` names this run, ``started`` is Unix time (s).

    ``knows`` are the nodes of its configuration, ``ready`` those it could take over without a hole at once,
    ``owned`` those whose events it publishes. ``beat`` counts its writings; the rates are a second's.
    """

    id: str
    instance: str
    started: float
    beat: int = 0
    version: str = ""
    weight: float = 1.0
    tags: tuple[str, ...] = ()
    draining: bool = False
    in_flight: int = 0
    event_rate: float = 0.0
    command_rate: float = 0.0
    knows: tuple[str, ...] = ()
    ready: tuple[str, ...] = ()
    owned: tuple[NodeEntry, ...] = ()


class Mark(msgspec.Struct, array_like=True, frozen=True):
    """How far a node's events were published: the identity of the last one that the broker confirmed.

    ``token`` of the ownership, ``worker`` that published, ``at`` when it was written down (Unix time, s), ``stamp``
    FreeSWITCH's own time of that event (us, 0 unknown); ``clean`` when nothing was left unpublished behind it, and the
    node's calls of that moment are kept beside it. Then ``trail`` are identities of events published before it, the
    latest first: for a link that did not bring the last one.
    """

    token: int = 0
    identity: str = ""
    at: float = 0.0
    stamp: int = 0
    worker: str = ""
    clean: bool = False
    trail: tuple[str, ...] = ()


class NodeOrder(msgspec.Struct, omit_defaults=True, frozen=True):
    """A node as ``esl-bridge nodes`` wrote it: added (with a ``url``), or one of the configuration taken out."""

    name: str
    url: str = ""
    tags: tuple[str, ...] = ()
    pin: str = ""
    drain: bool = False


class Word(msgspec.Struct, omit_defaults=True, frozen=True):
    """One word between workers: ``look`` (something changed), ``call`` (who has this call?), ``has`` (the answer).

    ``watch`` and ``unwatch``: somebody looks at the sender's page (``number`` says which viewer), ``seen`` is what
    there is to see for him. ``body`` holds a ``Watch`` or a ``Seen``.
    """

    kind: str
    sender: str
    uuid: str = ""
    node: str = ""
    number: int = 0
    body: bytes = b""


class Watch(msgspec.Struct, omit_defaults=True, frozen=True):
    """What a viewer of the tail wants (``ops.tail.Filter``), or the numbers of the page (``numbers``)."""

    names: str = ""
    node: str = ""
    where: tuple[str, ...] = ()
    numbers: bool = False


class SeenLine(msgspec.Struct, frozen=True):
    """One line of the tail; ``at`` is FreeSWITCH's time (Unix, s)."""

    at: float
    node: str
    name: str
    uuid: str
    headers: dict[str, str]


class Seen(msgspec.Struct, omit_defaults=True, frozen=True):
    """What another worker's page shows of us: lines of the tail and how many were left out, or the page's numbers."""

    lines: tuple[SeenLine, ...] = ()
    skipped: int = 0
    numbers: dict[str, Any] | None = None


encode = msgspec.msgpack.Encoder().encode
_worker = msgspec.msgpack.Decoder(WorkerEntry)
_mark = msgspec.msgpack.Decoder(Mark)
_order = msgspec.msgpack.Decoder(NodeOrder)
_word = msgspec.msgpack.Decoder(Word)
_watch = msgspec.msgpack.Decoder(Watch)
_seen = msgspec.msgpack.Decoder(Seen)


def decode_worker(payload: bytes) -> WorkerEntry:
    """Read a worker's entry. Raises ``InvalidMessage``."""
    try:
        return _worker.decode(payload)
    except msgspec.MsgspecError as error:
        raise InvalidMessage(f"worker entry: {error}") from None


def decode_mark(payload: bytes) -> Mark | None:
    """Read a mark; None where there is none, or none that this version can read."""
    if not payload:
        return None
    try:
        return _mark.decode(payload)
    except msgspec.MsgspecError:
        return None


def decode_order(payload: bytes) -> NodeOrder:
    """Read a node's order. Raises ``InvalidMessage``."""
    try:
        return _order.decode(payload)
    except msgspec.MsgspecError as error:
        raise InvalidMessage(f"node entry: {error}") from None


def decode_word(payload: bytes) -> Word:
    """Read a word. Raises ``InvalidMessage``."""
    try:
        return _word.decode(payload)
    except msgspec.MsgspecError as error:
        raise InvalidMessage(f"word between workers: {error}") from None


def decode_watch(payload: bytes) -> Watch:
    """Read what a viewer wants. Raises ``InvalidMessage``."""
    try:
        return _watch.decode(payload)
    except msgspec.MsgspecError as error:
        raise InvalidMessage(f"what another worker's page asks: {error}") from None


def decode_seen(payload: bytes) -> Seen:
    """Read what there is to see. Raises ``InvalidMessage``."""
    try:
        return _seen.decode(payload)
    except msgspec.MsgspecError as error:
        raise InvalidMessage(f"what another worker shows: {error}") from None


def describe_fleet(workers: Iterable[WorkerEntry], orders: Mapping[str, NodeOrder] | None = None) -> dict[str, Any]:
    """The fleet as ``esl-bridge nodes``, ``/nodes`` and ``Bridge.nodes()`` show it: ``workers`` and ``nodes``.

    A node that nobody owns has the owner "" and the state "UNOWNED". Statistics are None where they are stale.
    """
    orders = orders or {}
    nodes: dict[str, dict[str, Any]] = {}
    crew = sorted(workers, key=lambda it: it.id)
    for entry in crew:
        for name in (*entry.knows, *(one.name for one in entry.owned)):
            nodes.setdefault(name, {"name": name, "state": "UNOWNED", "owner": "", "standby": []})
    for name in orders:
        nodes.setdefault(name, {"name": name, "state": "UNOWNED", "owner": "", "standby": []})
    for entry in crew:
        for one in entry.owned:
            nodes[one.name] |= {"owner": entry.id, **_describe_node(one)}
        for name in entry.ready:
            if name in nodes:
                nodes[name]["standby"].append(entry.id)
    for name, node in nodes.items():
        order = orders.get(name)
        node["from"] = "bus" if order is not None and order.url else "configuration"
        node["drained"] = bool(order is not None and order.drain)
    told = [
        {
            "worker": it.id, "instance": it.instance, "started": it.started, "version": it.version,
            "state": "draining" if it.draining else "up", "in_flight": it.in_flight, "weight": it.weight,
            "tags": list(it.tags), "nodes": len(it.owned), "ready": len(it.ready),
        }
        for it in crew
    ]  # fmt: skip
    return {"workers": told, "nodes": [nodes[name] for name in sorted(nodes)]}


def _describe_node(one: NodeEntry) -> dict[str, Any]:
    fresh = one.sessions >= 0
    return {
        "state": one.state,
        "reason": one.reason,
        "url": one.url,
        "tags": list(one.tags),
        "core_uuid": one.core_uuid,
        "epoch": one.epoch,
        "sessions": one.sessions if fresh else None,
        "max_sessions": one.max_sessions if fresh else None,
        "idle_cpu": one.idle_cpu if fresh else None,
        "lag": round(one.lag, 6),
        "calls": one.calls,
        "in_flight": one.in_flight,
        "events": one.events,
    }


def read_card(card: Mapping[str, object]) -> WorkerEntry | None:
    """A worker by its service card, None where it is no worker of ours."""
    metadata = card.get("metadata")
    if not isinstance(metadata, dict) or not metadata.get("worker"):
        return None
    return WorkerEntry(
        id=str(metadata["worker"]),
        instance=str(metadata.get("instance", "")),
        started=float(metadata.get("started", 0.0)),
        version=str(card.get("version", "")),
        tags=tuple(str(metadata.get("tags", "")).split(",")) if metadata.get("tags") else (),
        knows=tuple(str(metadata.get("nodes", "")).split(",")) if metadata.get("nodes") else (),
    )
