from __future__ import annotations

import json

import pytest

from bridge.errors import InvalidMessage
from bridge.messages.codec import JSON, MSGPACK
from bridge.messages.notice import (
    NOTICES,
    AuditNotice,
    GapNotice,
    LateNotice,
    LogNotice,
    NodeNotice,
    SnapshotNotice,
    WorkerNotice,
    decode_notice,
    encode_notice,
    rfc3339,
    rfc3339_us,
)

EXAMPLES = {
    "node": NodeNotice(state="UP", previous="SYNCING", reason="r", owner="w", epoch="e", core_uuid="c", restarted=True),
    "worker": WorkerNotice(state="joined", nodes=["fs1"]),
    "gap": GapNotice(
        reason="link", epoch="e", start=rfc3339(1.0), end=rfc3339(2.0), before="a:1", after="a:2", count=3, exact=False
    ),
    "late": LateNotice(id="r1", status="ok", executed="yes", result="+OK", late=True),
    "snapshot": SnapshotNotice(snapshot="s", part=1, parts=2, channels=[{"uuid": "u"}]),
    "audit": AuditNotice(id="r1", op="api", command="status", uuid="u", to="fs1", status="ok", executed="yes"),
    "log": LogNotice(level=3, text="t", file="f.c", line=7, uuid="u"),
}
FIELDS = {
    "node": ["state", "previous", "reason", "owner", "epoch", "core_uuid", "restarted"],
    "worker": ["state", "nodes"],
    "gap": ["reason", "epoch", "from", "to", "before", "after", "count", "exact"],
    "late": ["id", "status", "executed", "result", "late"],
    "snapshot": ["snapshot", "part", "parts", "channels"],
    "audit": ["id", "op", "command", "uuid", "to", "status", "executed"],
    "log": ["level", "text", "file", "line", "uuid"],
}


@pytest.mark.parametrize("codec", [JSON, MSGPACK])
@pytest.mark.parametrize("kind", NOTICES)
def test_every_kind_is_a_cloud_event_and_is_read_back(kind: str, codec: object) -> None:
    payload = encode_notice(
        kind, EXAMPLES[kind], worker="w1", instance="w1-abc", number=7, node="fs1", time=1.5, codec=codec
    )
    notice = decode_notice(payload)
    assert notice.kind == kind
    assert notice.specversion == "1.0"
    assert notice.id == "w1-abc:7"
    assert notice.source == "/bridge/w1"
    assert notice.type == f"org.freeswitch.bridge.{kind}"
    assert notice.time == "1970-01-01T00:00:01.500000Z"
    assert (notice.node, notice.worker) == ("fs1", "w1")
    assert list(notice.data) == FIELDS[kind]


def test_a_notice_without_node_has_no_such_attribute() -> None:
    payload = encode_notice("worker", {"state": "left"}, worker="host a/1", instance="i", number=1, time=0.0)
    assert "node" not in json.loads(payload)
    assert json.loads(payload)["source"] == "/bridge/host%20a%2F1"


def test_an_unknown_kind_is_a_mistake_of_ours() -> None:
    with pytest.raises(ValueError, match="gossip"):
        encode_notice("gossip", {}, worker="w", instance="i", number=1, time=0.0)


@pytest.mark.parametrize(
    "payload", [b"", b"{}", b"x", b'{"id":"a","source":"b","type":"org.freeswitch.API","time":"t","data":{}}']
)
def test_what_is_no_notice(payload: bytes) -> None:
    with pytest.raises(InvalidMessage):
        decode_notice(payload)


def test_times_have_microseconds() -> None:
    assert rfc3339_us(1_700_000_000_000_001) == "2023-11-14T22:13:20.000001Z"
    assert rfc3339(1_700_000_000.25) == "2023-11-14T22:13:20.250000Z"
    assert rfc3339_us(0) == "1970-01-01T00:00:00.000000Z"
