"""Durable queues on JetStream: a work-queue stream, and one pull consumer for each queue on it, shared by the workers.

This room never takes an entry; what is there already, made by somebody else, it leaves as it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from typing import Any, Final, NamedTuple

import msgspec

from bridge.bus.base import Delivery
from bridge.bus.clock import ASK_EVERY, BrokerClock
from bridge.bus.nats.entry import InHand
from bridge.bus.nats.inbox import is_no_responders
from bridge.bus.nats.keeper import LinkKeeper
from bridge.bus.nats.pulling import DurableConsumer
from bridge.bus.nats.questions import Questions
from bridge.bus.nats.reading import Incoming
from bridge.bus.problems import Problems
from bridge.errors import BusError, BusRefused, BusUnavailable, NoConsumer

API: Final = "$JS.API."
API_TIMEOUT: Final = 5.0
MAX_PENDING: Final = 65_536
DURABLE: Final = "esl-bridge"

log = logging.getLogger(__name__)

_NOT_FOUND, _IN_USE, _NO_CONSUMER = 10059, 10058, 10014


class QueueNames(NamedTuple):
    """The shared queue, its stream, and where dead letters are kept (stream and subject)."""

    queue: str = "esl.queue"
    stream: str = "ESL_QUEUE"
    dead_stream: str = "ESL_DEAD"
    dead: str = "esl.dead"


class DurableQueues:
    """The queue ``names.queue`` and those below it, one for each node, which are served strictly one by one.

    What was delivered to a worker that does not renew it for ``claim_after`` s is delivered again.
    """

    def __init__(
        self,
        keeper: LinkKeeper,
        inbox_prefix: str,
        out: InHand,
        *,
        names: QueueNames | None = None,
        claim_after: float = 30.0,
        replicas: int = 1,
    ) -> None:
        self.names = names or QueueNames()
        self._keeper = keeper
        self._out = out
        self._claim_after = claim_after
        self._replicas = replicas
        self._questions = Questions(keeper, inbox_prefix)
        self._inbox_prefix = inbox_prefix
        self._consumers: list[DurableConsumer] = []
        self.clock = BrokerClock()
        self._following: asyncio.Task[None] | None = None
        self._known: set[str] = set()  # streams that were there
        self._remaking: asyncio.Task[None] | None = None
        self.problem = Problems(log.warning)

    def covers(self, queue: str) -> bool:
        """Whether this is the name of a durable queue."""
        return queue == self.names.queue or queue.startswith(self.names.queue + ".")

    async def consume(
        self, queue: str, handler: Callable[[Delivery], None], room: Callable[[], int] | None
    ) -> DurableConsumer:
        """See ``Bus.consume``. Raises ``BusRefused`` where there is no JetStream for us."""
        if self._keeper.link is not None:
            await self.make()
        name, strict = self._name(queue), queue != self.names.queue
        consumer = DurableConsumer(
            queue,
            handler,
            room,
            keeper=self._keeper,
            out=self._out,
            next_subject=f"{API}CONSUMER.MSG.NEXT.{self.names.stream}.{name}",
            dead_letters=self.names.dead,
            inbox_prefix=self._inbox_prefix,
            strict=strict,
            clock=self.clock,
            prepare=partial(self.make_consumer, name, queue, strict=strict),
            unkept=self._make_again,
            problem=self.problem,
        )
        for drained in [one for one in self._consumers if one.over]:
            drained.close()
            self._consumers.remove(drained)
        self._consumers.append(consumer)
        if self._following is None:
            self._following = asyncio.create_task(self._follow(), name="broker's clock")
        await consumer.start()
        return consumer

    def _name(self, queue: str) -> str:
        node = queue[len(self.names.queue) + 1 :]
        return f"{DURABLE}-{node}" if node else DURABLE

    async def put(
        self, queue: str, payload: bytes, content_type: str, headers: Mapping[str, str] | None = None
    ) -> None:
        """Return when the entry is stored. Raises ``NoConsumer`` where no stream takes it, and as ``make``."""
        lines = {**(headers or {}), **({"Content-Type": content_type} if content_type else {})}
        answer = await self._questions.ask(queue, payload, API_TIMEOUT, lines or None)
        if is_no_responders(answer):
            raise NoConsumer(f"no stream takes {queue}: is commands.durable set at a worker?")
        error = decode(answer).get("error")
        if error is not None:
            raise BusRefused(f"{queue}: {error.get('description')}")

    async def make(self) -> None:
        """Have both streams. Raises ``BusUnavailable`` and ``BusRefused``."""
        names = self.names
        subjects = [names.queue, names.queue + ".>"]
        # Full is told to the caller: nothing that was confirmed is ever pushed out.
        await self._make_stream(names.stream, subjects, retention="workqueue", discard="new")
        with contextlib.suppress(BusRefused):  # where another stream has them already, that is as good
            await self._make_stream(names.dead_stream, [names.dead], retention="limits", discard="old", max_msgs=10_000)

    async def _make_stream(self, name: str, subjects: list[str], **limits: object) -> None:
        known = name in self._known  # before anybody else of us makes it
        answer = await self.api(f"STREAM.INFO.{name}")
        if answer.get("error", {}).get("err_code") == _NOT_FOUND:
            config = {
                "name": name,
                "subjects": subjects,
                "storage": "file",
                "num_replicas": self._replicas,
                "max_consumers": -1,
                "max_msgs": -1,
                "max_bytes": -1,
                "max_age": 0,
                **limits,
            }
            answer = await self.api(f"STREAM.CREATE.{name}", config)
            if known and "error" not in answer:
                self.problem(f"somebody deleted the stream {name}, with what was in it: it was made again")
        check(answer, f"stream {name}", (_IN_USE,))
        self._known.add(name)

    def _make_again(self) -> None:
        """Dead letters find no stream."""
        if self._remaking is None or self._remaking.done():
            self._remaking = asyncio.create_task(self._remake(), name="dead letters' stream")

    async def _remake(self) -> None:
        try:
            await self.make()
        except BusError as error:
            self.problem(str(error))

    async def make_consumer(self, name: str, queue: str, *, strict: bool) -> tuple[float, int]:
        """Have a consumer on the queue; returns its own ``ack_wait`` in s, and the place of the stream's last entry.

        Raises as ``make``.
        """
        stream = self.names.stream
        answer = await self.api(f"CONSUMER.INFO.{stream}.{name}")
        if answer.get("error", {}).get("err_code") in (_NO_CONSUMER, _NOT_FOUND):
            await self.make()
            config = {
                "durable_name": name,
                "deliver_policy": "all",
                "ack_policy": "explicit",
                "ack_wait": round(self._claim_after * 1e9),
                "max_deliver": -1,
                "filter_subject": queue,
                "replay_policy": "instant",
                # One at a time and in order, over changes of the worker too.
                "max_ack_pending": 1 if strict else MAX_PENDING,
            }
            asked = {"stream_name": stream, "config": config}
            answer = await self.api(f"CONSUMER.DURABLE.CREATE.{stream}.{name}", asked)
        return self._ack_wait_of(name, answer, strict), int((await self._stream_info())["state"]["last_seq"])

    def _ack_wait_of(self, name: str, answer: Mapping[str, Any], strict: bool) -> float:
        """How long the consumer waits (s); what somebody made of it that breaks a promise is told."""
        what = f"consumer {name} of stream {self.names.stream}"
        check(answer, what)
        config = answer["config"]
        most, pending = config.get("max_deliver") or -1, config.get("max_ack_pending") or -1
        if most > 0:
            self.problem(f"{what}: max_deliver is {most}: a request whose workers die so often is never answered")
        if strict and pending != 1:
            self.problem(f"{what}: max_ack_pending is {pending}, not 1: order is not kept when the node changes hands")
        return float(config.get("ack_wait") or self._claim_after * 1e9) / 1e9

    async def _stream_info(self) -> dict[str, Any]:
        """The queue's stream as it is now; the answer bears the server's time (NATS 2.10)."""
        asked_at = time.time()
        answer = await self.api(f"STREAM.INFO.{self.names.stream}")
        check(answer, f"stream {self.names.stream}")
        with contextlib.suppress(KeyError, ValueError):
            self.clock.noted(asked_at, datetime.fromisoformat(answer["ts"]).timestamp())
        return answer

    async def _follow(self) -> None:
        """The server's clock, and what somebody does to the consumers."""
        while True:
            await asyncio.sleep(ASK_EVERY)
            with contextlib.suppress(BusError):
                await self._stream_info()
            for consumer in [one for one in self._consumers if not one.stopping]:
                name = self._name(consumer.queue)
                with contextlib.suppress(BusError):
                    answer = await self.api(f"CONSUMER.INFO.{self.names.stream}.{name}")
                    consumer.waits(self._ack_wait_of(name, answer, consumer.strict))

    async def api(self, verb: str, asked: object = None) -> dict[str, Any]:
        """Ask JetStream. Raises ``BusUnavailable``, and ``BusRefused`` where there is none."""
        payload = msgspec.json.encode(asked) if asked is not None else b""
        answer = await self._questions.ask(API + verb, payload, API_TIMEOUT)
        if is_no_responders(answer):
            raise BusRefused("this NATS has no JetStream, which durable queues need")
        return decode(answer)

    def up(self) -> None:
        """A link is there."""
        for consumer in self._consumers:
            consumer.up()

    def lost(self, reason: str) -> None:
        """The link broke."""
        self._questions.lost(reason)
        for consumer in self._consumers:
            consumer.lost()

    async def settle(self, timeout: float) -> None:
        """Wait until the replies that were written are certain, at most ``timeout`` s."""
        proving = [task for consumer in self._consumers if (task := consumer.proving) is not None]
        if proving:
            await asyncio.wait(proving, timeout=timeout)

    def close(self) -> None:
        """End all work: what is in hand will be claimed by others."""
        for task in (self._following, self._remaking):
            if task is not None:
                task.cancel()
        for consumer in self._consumers:
            consumer.close()


def check(answer: Mapping[str, Any], what: str, fine: tuple[int, ...] = ()) -> None:
    """Raise ``BusUnavailable`` or ``BusRefused`` for an error in an answer of JetStream's."""
    error = answer.get("error")
    if error is None or error.get("err_code") in fine:
        return
    text = f"{what}: {error.get('description')}"
    if error.get("code") in (408, 500, 503) and error.get("err_code") not in (10039, 10076):
        raise BusUnavailable(text)
    raise BusRefused(text)


def decode(message: Incoming) -> dict[str, Any]:
    """An answer of JetStream's as a map; empty where it is none."""
    try:
        value = msgspec.json.decode(message.data or b"{}")
    except msgspec.DecodeError:
        return {}
    return value if isinstance(value, dict) else {}
