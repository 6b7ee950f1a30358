"""Shows the worker as a NATS service: ``nats micro ls``, ``info`` and ``stats``. Never takes a request.

The answers are built from ``nats.micro``'s own types. Its ``Endpoint`` is not used: it would cost 2 us a request, run
handlers one at a time, lose requests when stopped, and change identity with every new connection.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime

from nats.micro.service import (
    EndpointInfo,
    EndpointStats,
    ServiceInfo,
    ServicePing,
    ServiceStats,
    ServiceVerb,
    control_subject,
)
from nats.nuid import NUID

from bridge.bus.base import ServiceCard
from bridge.bus.nats.keeper import LinkKeeper
from bridge.bus.nats.listener import Listener
from bridge.bus.nats.reading import Incoming


class Endpoint:
    """What is counted of one queue."""

    def __init__(self, queue: str, group: str) -> None:
        self.queue = queue
        self.group = group
        self.requests = 0
        self.errors = 0
        self.last_error = ""
        self.nanoseconds = 0

    @property
    def name(self) -> str:
        """``cmd`` for ``esl.cmd``, ``cmd-fs1`` for ``esl.cmd.fs1``."""
        return re.sub(r"[^A-Za-z0-9_-]", "-", self.queue.removeprefix("esl.")) or "-"

    def finished(self, nanoseconds: int, error: str) -> None:
        """A request was answered after so long; ``error`` is empty when it went well."""
        self.requests += 1
        self.nanoseconds += nanoseconds
        if error:
            self.errors += 1
            self.last_error = error


class NatsService:
    """One instance of a service; it listens while it has endpoints."""

    def __init__(self, keeper: LinkKeeper, card: ServiceCard, send: Callable[[str, bytes], None]) -> None:
        self.id: str = NUID().next().decode()
        self._keeper = keeper
        self._card = card
        self._send = send
        self._endpoints: list[Endpoint] = []
        self._listeners: list[Listener] = []
        self._started = datetime.now(UTC)

    async def add(self, endpoint: Endpoint) -> None:
        """Show this endpoint. Raises nothing: being found is not needed for being served."""
        self._endpoints.append(endpoint)
        if self._listeners:
            return
        answers = {ServiceVerb.PING: self.ping, ServiceVerb.INFO: self.info, ServiceVerb.STATS: self.stats}
        for verb, answer in answers.items():
            for name, identity in ((None, None), (self._card.name, None), (self._card.name, self.id)):
                subject = control_subject(verb, name=name, id=identity)
                self._listeners.append(Listener(subject, "", self._answering(answer)))
        for listener in list(self._listeners):
            await self._keeper.add_quietly(listener)

    def remove(self, endpoint: Endpoint) -> None:
        """Show it no more."""
        if endpoint in self._endpoints:
            self._endpoints.remove(endpoint)
        if not self._endpoints:
            for listener in self._listeners:
                self._keeper.remove(listener)
                listener.detach()
            self._listeners.clear()

    def _answering(self, answer: Callable[[], dict[str, object]]) -> Callable[[Incoming], None]:
        def asked(message: Incoming) -> None:
            if message.reply:
                self._send(message.reply, json.dumps(answer()).encode())

        return asked

    def ping(self) -> dict[str, object]:
        """Who is there."""
        card = self._card
        return ServicePing(id=self.id, name=card.name, version=card.version, metadata=dict(card.metadata)).to_dict()

    def info(self) -> dict[str, object]:
        """What it offers."""
        card = self._card
        endpoints = [EndpointInfo(it.name, it.queue, it.group, dict(card.endpoint_metadata)) for it in self._endpoints]
        return ServiceInfo(
            name=card.name,
            id=self.id,
            version=card.version,
            description=card.description,
            endpoints=endpoints,
            metadata=dict(card.metadata),
        ).to_dict()

    def stats(self) -> dict[str, object]:
        """What it did; the time of a request runs from its arrival to its reply."""
        card = self._card
        endpoints = [
            EndpointStats(
                name=it.name,
                subject=it.queue,
                queue_group=it.group,
                num_requests=it.requests,
                num_errors=it.errors,
                processing_time=it.nanoseconds,
                average_processing_time=it.nanoseconds // max(it.requests, 1),
                last_error=it.last_error,
            )
            for it in self._endpoints
        ]
        return ServiceStats(
            id=self.id,
            name=card.name,
            version=card.version,
            started=self._started,
            endpoints=endpoints,
            metadata=dict(card.metadata),
        ).to_dict()
