"""Settings as the plain values that the rooms below take.

This room translates, and opens the room for what waits; it starts nothing and knows no running object.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import msgspec
import structlog

from bridge.bus.open import open_bus
from bridge.config import Settings
from bridge.config.events import EventSettings, event_routes
from bridge.errors import ConfigError
from bridge.fleet.identity import Identity
from bridge.messages.topics import NATS_REPLY_ADDRESSES, REDIS_REPLY_ADDRESSES, ReplyAddresses
from bridge.relay.policy import DEFAULT_DENY, Policy
from bridge.relay.reservoir import BufferLimits, Reservoir
from bridge.relay.routes import RouteSettings
from bridge.relay.settings import CommandSettings
from bridge.relay.spill import Spill
from bridge.relay.untold import Untold
from bridge.relay.verbs import DEFAULT_BACKGROUND, DEFAULT_SAFE

log = structlog.get_logger(__name__)


def is_redis(settings: Settings) -> bool:
    """Whether the bus is a Redis of whatever kind."""
    return settings.bus.url.scheme not in ("nats", "tls", "memory")


def command_settings(settings: Settings) -> CommandSettings:
    """``[commands]``, ``[esl]`` and the rates of ``[policy]`` for the command path. Raises ``ConfigError``."""
    commands, esl, policy = settings.commands, settings.esl, settings.policy
    redis = is_redis(settings)
    problems = _faults("commands.reply_to", commands.reply_to or [], lambda text: ReplyAddresses([text], glob=redis))
    if problems:
        raise ConfigError(problems)
    return CommandSettings(
        queues=commands.queues(settings.bus.url.scheme),
        reply_to=tuple(commands.reply_to or (REDIS_REPLY_ADDRESSES if redis else NATS_REPLY_ADDRESSES)),
        reply_to_glob=redis,
        reply_prefix="esl.reply." if redis else "",
        max_in_flight=commands.max_in_flight,
        max_in_flight_node=commands.max_in_flight_node,
        max_timeout=commands.max_timeout,
        job_timeout=commands.job_timeout,
        connect_timeout=esl.esl_connect_timeout / 1000,
        command_timeout=esl.esl_cmd_timeout / 1000,
        scatter_limit=commands.scatter_limit,
        background=tuple(commands.background) if commands.background is not None else DEFAULT_BACKGROUND,
        safe=tuple(commands.safe) if commands.safe is not None else DEFAULT_SAFE,
        rates=policy.rates,
    )


def buffer_limits(events: EventSettings) -> BufferLimits:
    """How much may wait for the bus."""
    return BufferLimits(
        events=events.buffer_events,
        size=events.buffer_bytes,
        age=events.buffer_age,
        disk=events.buffer_disk,
        durable_age=events.durable_age,
        drop=events.buffer_drop,
    )


def open_reservoir(events: EventSettings, identity: Identity) -> Reservoir:
    """The room for what waits, on disk too where that can be. Raises ``ConfigError`` where it must be and cannot.

    In a folder that is temporary nothing outlives the worker.
    """
    limits = buffer_limits(events)
    path = identity.state_dir / f"{identity.id}.spill"
    untold = Untold(None if identity.temporary else path.with_suffix(".untold"))
    reservoir = Reservoir(limits, Spill(path), untold)
    try:
        reservoir.open()
    except OSError as error:
        if events.durable:
            raise ConfigError([("worker.state_dir", f"events cannot be spilled: {error}")]) from None
        log.warning("events cannot be spilled to disk", reason=str(error))
        return Reservoir(msgspec.structs.replace(limits, disk=0), untold=untold)
    return reservoir


def event_settings(settings: Settings) -> list[RouteSettings]:
    """``[events]`` and its routes, the default one first."""
    bus = settings.bus
    routes = event_routes(settings.events, bus_codec=bus.codec, scheme=bus.url.scheme)
    return msgspec.convert(routes, list[RouteSettings])


def command_policy(settings: Settings) -> Policy:
    """``[policy]``. Raises ``ConfigError`` for patterns that are none."""
    allow, deny = settings.policy.allow, settings.policy.deny
    problems = _faults("policy.allow", allow, lambda text: Policy([text], []))
    problems += _faults("policy.deny", deny or [], lambda text: Policy([], [text]))
    if problems:
        raise ConfigError(problems)
    return Policy(allow, DEFAULT_DENY if deny is None else deny)


def _faults(key: str, texts: Iterable[str], read: Callable[[str], object]) -> list[tuple[str, str]]:
    """What is wrong with each of these texts, under its key path."""
    found = []
    for number, text in enumerate(texts):
        try:
            read(text)
        except ValueError as error:
            found.append((f"{key}[{number}]", str(error)))
    return found


def rehearse(settings: Settings) -> None:
    """Make what can be made without connecting. Raises ``ConfigError`` with all that cannot be.

    So ``check`` finds what ``run`` would stumble over, and neither begins with files that are not there.
    """
    problems = []
    for key, name in settings.bus.files().items():
        try:
            with Path(name).open("rb"):
                pass
        except OSError as error:
            problems.append((f"bus.{key}", f"cannot read {name}: {error.strerror}"))
    makers: list[Callable[[], object]] = [node.tls_context for node in settings.nodes]
    makers += [
        partial(command_policy, settings),
        partial(command_settings, settings),
        partial(event_settings, settings),
    ]
    if not problems:
        makers.append(partial(open_bus, settings.bus.url.get_secret_value(), **settings.bus.options()))
    for make in makers:
        try:
            make()
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
