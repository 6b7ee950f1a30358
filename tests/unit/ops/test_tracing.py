"""A request's trace goes through the command's span to the reply."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import pytest

pytest.importorskip("opentelemetry.sdk")

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode

from bridge.messages.command import CommandReply, encode_reply
from bridge.messages.reply import Executed, Status, Timing
from bridge.ops.tracing import tracing

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"


class Inner:
    """A delivery that notes what becomes of it."""

    def __init__(self, headers: Mapping[str, str] | None = None, **fields: Any) -> None:
        self.payload = json.dumps({"id": "42", "command": "originate {p=geheim}user/1 &park", **fields}).encode()
        self.headers = headers or {}
        self.queue = "esl.cmd"
        self.entry_id = "e1"
        self.reply_to = "_INBOX.1"
        self.queued_at = None
        self.claimed = self.doubtful = False
        self.pulled = False
        self.finished: list[tuple[Any, ...]] = []
        self.rejected = ""
        self.let = False

    def finish(self, *args: Any, refusal: bool = False) -> None:
        self.finished.append(args)

    def reject(self, reason: str) -> None:
        self.rejected = reason

    def let_go(self) -> None:
        self.let = True


class Traces:
    def __init__(self, **options: Any) -> None:
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False, **options)
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.wrap = tracing(provider)

    @property
    def spans(self) -> dict[str, ReadableSpan]:
        return {span.name: span for span in self.exporter.get_finished_spans()}


@pytest.fixture
def traces() -> Traces:
    return Traces()


def reply(status: Status = Status.OK) -> bytes:
    timing = Timing(1.0, 25.0)
    return encode_reply(
        CommandReply(id="42", status=status, executed=Executed.YES, node="fs1", worker="w1", job="j1", timing=timing)
    )


def test_the_callers_trace_goes_through_the_span_to_the_reply(traces: Traces) -> None:
    inner = Inner({"traceparent": PARENT, "tracestate": "a=b", "other": "kept"})
    delivery = traces.wrap(inner)
    assert delivery.headers["other"] == "kept"
    assert delivery.headers["tracestate"] == "a=b"
    told = re.fullmatch(r"00-([0-9a-f]{32})-([0-9a-f]{16})-01", delivery.headers["traceparent"])
    assert told is not None
    assert told[1] == TRACE
    assert traces.spans == {}
    delivery.finish("_INBOX.1", reply(), "application/json", {"x": "y"})
    assert inner.finished == [("_INBOX.1", reply(), "application/json", {"x": "y"})]
    span = traces.spans["api originate"]
    assert f"{span.context.span_id:016x}" == told[2]
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == "b7ad6b7169203331"
    assert span.kind is SpanKind.CONSUMER
    assert span.attributes is not None
    assert dict(span.attributes) == {
        "messaging.operation.type": "process",
        "messaging.destination.name": "esl.cmd",
        "messaging.message.conversation_id": "42",
        "esl_bridge.op": "api",
        "esl_bridge.node": "fs1",
        "esl_bridge.worker": "w1",
        "esl_bridge.status": "ok",
        "esl_bridge.executed": "yes",
        "esl_bridge.job": "j1",
    }
    assert "geheim" not in span.to_json()
    inside = traces.spans["FreeSWITCH"]
    assert inside.parent is not None
    assert inside.parent.span_id == span.context.span_id
    assert inside.end_time is not None
    assert inside.start_time is not None
    assert (inside.end_time - inside.start_time) / 1e6 == pytest.approx(25.0)


def test_without_headers_the_trace_may_stand_in_meta(traces: Traces) -> None:
    delivery = traces.wrap(Inner(meta={"traceparent": PARENT}))
    assert TRACE in delivery.headers["traceparent"]


@pytest.mark.parametrize("hostile", ["", "nonsense", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "x" * 10_000])
def test_a_trace_that_is_none_begins_a_new_one(traces: Traces, hostile: str) -> None:
    delivery = traces.wrap(Inner({"traceparent": hostile}))
    delivery.finish("a", reply(), "application/json")
    assert traces.spans["api originate"].parent is None
    assert hostile != delivery.headers["traceparent"]


def test_failures_and_dead_letters_are_errors(traces: Traces) -> None:
    traces.wrap(Inner()).finish("a", reply(Status.TIMEOUT), "application/json")
    assert traces.spans["api originate"].status.status_code is StatusCode.ERROR
    inner = Inner()
    traces.wrap(inner).reject("no such thing")
    assert inner.rejected == "no such thing"
    assert traces.spans["esl-bridge command"].status.status_code is StatusCode.ERROR


def test_what_is_not_sampled_still_passes_the_trace_on() -> None:
    traces = Traces(sampler=ALWAYS_OFF)
    delivery = traces.wrap(Inner({"traceparent": PARENT}))
    assert delivery.headers["traceparent"].startswith(f"00-{TRACE}-")
    delivery.finish("a", reply(), "application/json")
    assert traces.spans == {}


def test_a_span_ends_when_another_worker_has_the_entry(traces: Traces) -> None:
    inner = Inner()
    traces.wrap(inner).let_go()
    assert inner.let
    assert traces.spans["esl-bridge command"].status.description == "another worker has it"
