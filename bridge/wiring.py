"""Settings as the plain values that the rooms below take.

This room translates and nothing else; it starts nothing and knows no running object.
"""

from __future__ import annotations

from bridge.config import Settings
from bridge.messages.topics import NATS_REPLY_ADDRESSES, REDIS_REPLY_ADDRESSES
from bridge.relay.policy import DEFAULT_DENY, Policy
from bridge.relay.settings import CommandSettings
from bridge.relay.verbs import DEFAULT_BACKGROUND, DEFAULT_SAFE


def is_redis(settings: Settings) -> bool:
    """Whether the bus is a Redis of whatever kind."""
    return settings.bus.url.scheme not in ("nats", "tls", "memory")


def command_settings(settings: Settings) -> CommandSettings:
    """``[commands]``, ``[esl]`` and the rates of ``[policy]`` for the command path."""
    commands, esl, policy = settings.commands, settings.esl, settings.policy
    redis = is_redis(settings)
    return CommandSettings(
        queues=(commands.queue,),
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


def command_policy(settings: Settings) -> Policy:
    """``[policy]``."""
    policy = settings.policy
    return Policy(policy.allow, DEFAULT_DENY if policy.deny is None else policy.deny)
