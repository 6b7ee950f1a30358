"""What a worker of this configuration will do on the bus, and whether the broker lets it. For ``esl-bridge check``.

Nothing is sent to a topic, a queue or a reply address for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from bridge.bus.rights import Use
from bridge.errors import BusRefused

if TYPE_CHECKING:
    from bridge.bus.base import Bus
    from bridge.config import Settings

_EVENT: Final = "CHANNEL_ANSWER"
_UUID: Final = "00000000-0000-4000-8000-000000000000"
_DOES: Final = {"topic": "publish to", "stream": "append to", "queue": "take from", "reply": "answer to", "api": "ask"}


async def faults_of(bus: Bus, settings: Settings) -> tuple[list[str], str]:
    """What the broker would refuse, each with the setting that asks for it, and why it is not known where it is not.

    Raises ``BusUnavailable``.
    """
    refused: list[Use] = []
    unknown = ""
    try:
        refused = await bus.refused(list(uses_of(settings)))
    except BusRefused as error:
        unknown = f"what this user may do is not told: {error}"
    faults = [f"{use.setting}: the broker does not let us {_DOES[use.kind]} {use.address}" for use in refused]
    copies, durable = settings.events.stream_replicas, settings.events.durable
    servers = await bus.servers() if durable and copies > 1 else None
    if servers is not None and servers < copies:
        there = "stands alone" if servers == 1 else f"is one of {servers} only"
        faults.append(f"events.stream_replicas: {copies} servers are asked for, and the server {there}")
    return faults, unknown


def uses_of(settings: Settings) -> Iterator[Use]:
    """All that a worker does with the bus beside what it keeps for the fleet."""
    from bridge.wiring import command_settings, is_redis

    scheme = settings.bus.url.scheme
    redis = is_redis(settings)
    nodes = [node.name for node in settings.nodes]
    yield from _events(settings, nodes[0] if nodes else "node", redis)
    yield Use("topic", "fs.bridge.node", "notices")
    commands = settings.commands
    for queue in commands.queues(scheme):
        if queue != commands.queue:  # JetStream's: it is asked for entries, and told that they are over
            stream = "ESL_QUEUE"
            for subject in (
                *(f"$JS.API.STREAM.INFO.{stream}", f"$JS.API.CONSUMER.INFO.{stream}.esl-bridge"),
                *(f"$JS.API.CONSUMER.MSG.NEXT.{stream}.esl-bridge", f"$JS.ACK.{stream}.esl-bridge.1.1.1.1.0"),
            ):
                yield Use("api", subject, "commands.durable")
            continue
        yield Use("queue", queue, "commands.queue")
        for node in nodes:
            yield Use("queue", f"{queue}.{node}", "commands.queue")
    for pattern in command_settings(settings).reply_to:
        yield Use("reply", pattern.replace(">", "check").replace("*", "check"), "commands.reply_to")
    yield Use("stream" if redis else "topic", "esl.dead", "dead letters")


def _events(settings: Settings, node: str, redis: bool) -> Iterator[Use]:
    from bridge.messages.topics import TopicTemplate

    events = settings.events
    ways = [("events.topic", "events.stream", events.topic, events.delivery, events.stream_of(settings.bus.url.scheme))]
    for route in events.routes:
        where = f'events.route "{route.name}"'
        ways.append((f"{where} topic", f"{where} stream", route.topic, route.delivery, route.stream))
    for topic_setting, stream_setting, topic, delivery, stream in ways:
        if redis and delivery != "pubsub":
            yield Use("stream", stream, stream_setting)
        if not redis or delivery != "durable":
            template = TopicTemplate(topic)
            address = template.render(name=_EVENT, node=node, uuid=_UUID, header=lambda _name: None)
            yield Use("topic", address, topic_setting)
