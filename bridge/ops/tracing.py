"""Spans of commands for OpenTelemetry: a request's ``traceparent`` goes through the command's span to the reply.

The command path knows nothing of it: a delivery is wrapped when it comes and unwraps itself with the reply. This room
is imported only where traces are asked for, and never slows a command that is not sampled by more than its headers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, TracerProvider, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

import bridge
from bridge.bus.base import Delivery
from bridge.errors import BridgeError, ConfigError
from bridge.messages.command import decode_reply, parse_request

# Where a request that has no headers (a Redis list) may bear its trace: in its ``meta``, which the reply echoes.
_IN_META = b"traceparent"
_propagator = TraceContextTextMapPropagator()


class TracedDelivery:
    """A delivery with a span that begins with it and ends with its final reply (see ``Delivery``)."""

    __slots__ = ("_inner", "_span", "_tracer", "headers")

    def __init__(self, inner: Delivery, tracer: Tracer) -> None:
        self._inner = inner
        self._tracer = tracer
        self._span = tracer.start_span("esl-bridge command", _context_of(inner), SpanKind.CONSUMER)
        headers = {name: value for name, value in inner.headers.items() if name not in ("traceparent", "tracestate")}
        # What the reply echoes is this span: the caller sees which one answered it.
        _propagator.inject(headers, set_span_in_context(self._span))
        self.headers: Mapping[str, str] = headers

    @property
    def payload(self) -> bytes:
        """See ``Delivery``."""
        return self._inner.payload

    @property
    def queue(self) -> str:
        """See ``Delivery``."""
        return self._inner.queue

    @property
    def entry_id(self) -> str:
        """See ``Delivery``."""
        return self._inner.entry_id

    @property
    def reply_to(self) -> str:
        """See ``Delivery``."""
        return self._inner.reply_to

    @property
    def queued_at(self) -> float | None:
        """See ``Delivery``."""
        return self._inner.queued_at

    @property
    def claimed(self) -> bool:
        """See ``Delivery``."""
        return self._inner.claimed

    @property
    def doubtful(self) -> bool:
        """See ``Delivery``."""
        return self._inner.doubtful

    @property
    def pulled(self) -> bool:
        """See ``Delivery``."""
        return self._inner.pulled

    @property
    def told(self) -> bytes:
        """See ``Delivery``."""
        return self._inner.told

    @property
    def perhaps_lost_at(self) -> float:
        """See ``Delivery``."""
        return self._inner.perhaps_lost_at

    def finish(
        self,
        address: str,
        payload: bytes,
        content_type: str,
        headers: Mapping[str, str] | None = None,
        *,
        refusal: bool = False,
    ) -> None:
        """See ``Delivery``."""
        self._inner.finish(address, payload, content_type, headers, refusal=refusal)
        if self._span.is_recording():
            self._describe(payload)
        self._span.end()

    def reject(self, reason: str) -> None:
        """See ``Delivery``."""
        self._inner.reject(reason)
        self._span.set_status(Status(StatusCode.ERROR, "put with the dead letters"))
        self._span.end()

    def still_ours(self, told: Callable[[bool | None], None]) -> None:
        """See ``Delivery``."""
        self._inner.still_ours(told)

    def let_go(self) -> None:
        """See ``Delivery``."""
        self._inner.let_go()
        self._span.set_status(Status(StatusCode.ERROR, "another worker has it"))
        self._span.end()

    def _describe(self, payload: bytes) -> None:
        span = self._span
        try:
            request, _ = parse_request(self._inner.payload)
            reply = decode_reply(payload)
        except BridgeError:
            span.set_status(Status(StatusCode.ERROR, "unreadable"))
            return
        # The verb only: a whole command line may hold passwords and numbers.
        verb = request.command.split(None, 1)[0] if request.command.strip() else request.app or request.event
        span.update_name(f"{request.op} {verb}".strip())
        told = {
            "messaging.operation.type": "process",
            "messaging.destination.name": self._inner.queue,
            "messaging.message.conversation_id": reply.id,
            "esl_bridge.op": request.op,
            "esl_bridge.to": request.to,
            "esl_bridge.node": reply.node,
            "esl_bridge.worker": reply.worker,
            "esl_bridge.status": str(reply.status),
            "esl_bridge.executed": str(reply.executed),
            "esl_bridge.job": reply.job,
        }
        span.set_attributes({name: value for name, value in told.items() if value})
        if reply.replayed:
            span.set_attribute("esl_bridge.replayed", True)
        if reply.status != "ok":
            span.set_status(Status(StatusCode.ERROR, str(reply.status)))
        if reply.timing is not None and reply.timing.esl_ms is not None:
            self._tell_freeswitch(span, reply.timing.esl_ms, reply.node)

    def _tell_freeswitch(self, span: Span, esl_ms: float, node: str) -> None:
        """The time that FreeSWITCH itself took, as a span of its own inside."""
        now = time.time_ns()
        begun = now - int(esl_ms * 1e6)
        inner = self._tracer.start_span(
            "FreeSWITCH", set_span_in_context(span), SpanKind.CLIENT, {"esl_bridge.node": node}, start_time=begun
        )
        inner.end(now)


def _context_of(delivery: Delivery) -> Context:
    """The caller's trace, from the headers or else from ``meta``; an empty context where there is none."""
    headers = {name.lower(): value for name, value in delivery.headers.items()}
    if "traceparent" not in headers and _IN_META in delivery.payload[:65_536]:
        try:
            meta = parse_request(delivery.payload)[0].meta
        except BridgeError:
            meta = {}
        headers |= {name: str(meta[name]) for name in ("traceparent", "tracestate") if name in meta}
    return _propagator.extract(headers, Context())


def tracing(provider: TracerProvider) -> Callable[[Delivery], Delivery]:
    """Return what wraps deliveries, with the tracer of ``provider``."""
    tracer = provider.get_tracer("esl-bridge", bridge.__version__)
    return lambda delivery: TracedDelivery(delivery, tracer)


class OtlpTracing:
    """Sends spans by OTLP; endpoint, headers and sampler come from the ``OTEL_...`` variables.

    Raises ``ConfigError`` when the extra is not installed.
    """

    def __init__(self, worker: str) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider as SdkProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise ConfigError([("trace.exporter", f"needs pip install 'esl-bridge[otel]' ({error.name})")]) from None
        resource = Resource.create({"service.name": "esl-bridge", "service.instance.id": worker})
        self._provider = SdkProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self.wrap = tracing(self._provider)

    def close(self) -> None:
        """Send what waits; blocks for a moment."""
        self._provider.shutdown()


__all__ = ["OtlpTracing", "TracedDelivery", "tracing"]
