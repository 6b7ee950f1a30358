from __future__ import annotations

import json

import msgpack
import pytest

from bridge.errors import InvalidMessage
from bridge.messages.codec import JSON, MSGPACK
from bridge.messages.command import (
    EXECUTED,
    STATUSES,
    CommandReply,
    Executed,
    Status,
    Timing,
    agreed_executed,
    decode_reply,
    encode_reply,
    worst_status,
)

FULL = CommandReply(
    id="r1",
    status=Status.ERROR,
    executed=Executed.YES,
    node="fs1",
    worker="w1",
    result="-ERR x",
    error="FreeSWITCH said -ERR x",
    job="j1",
    elapsed_ms=12.5,
    timing=Timing(queued_ms=1.0, esl_ms=2.0),
    replayed=True,
    late=True,
    meta={"a": 1},
    replies=[CommandReply(status=Status.OK, executed=Executed.YES, node="fs1")],
)


def test_fields_stand_in_the_order_of_the_contract() -> None:
    names = "id status executed node worker result error job elapsed_ms timing replayed late meta replies"
    assert " ".join(json.loads(encode_reply(FULL))) == names


def test_absent_fields_are_left_out_and_an_empty_result_is_not_absent() -> None:
    reply = CommandReply(id="r1", status=Status.OK, executed=Executed.YES, result="")
    assert encode_reply(reply) == b'{"id":"r1","status":"ok","executed":"yes","result":""}'
    assert decode_reply(encode_reply(reply)).result == ""


@pytest.mark.parametrize("codec", [JSON, MSGPACK])
def test_a_reply_is_read_back(codec: object) -> None:
    assert decode_reply(encode_reply(FULL, codec)) == FULL


def test_msgpack_is_what_other_libraries_read() -> None:
    assert msgpack.unpackb(encode_reply(FULL, MSGPACK)) == json.loads(encode_reply(FULL))


def test_fields_of_a_later_version_are_skipped() -> None:
    assert decode_reply(b'{"status":"ok","executed":"yes","future":{"a":1}}').status is Status.OK


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"x",
        b"{}",
        b'{"status":"ok"}',
        b'{"status":"great","executed":"yes"}',
        b'{"status":1,"executed":"yes"}',
        b"\x81",
    ],
)
def test_what_is_no_reply(payload: bytes) -> None:
    with pytest.raises(InvalidMessage):
        decode_reply(payload)


def test_the_status_table_is_that_of_the_contract() -> None:
    said: dict[str, set[str]] = {"yes": set(), "no": set(), "unknown": set()}
    for status, executed in EXECUTED.items():
        said[executed].add(status.value)
    assert said["yes"] == {"ok", "error"}
    assert said["unknown"] == {"accepted", "timeout", "connection_lost"}
    assert said["no"] == set(Status) - said["yes"] - said["unknown"]
    assert set(STATUSES) == set(Status)
    assert [s.value for s, row in STATUSES.items() if len(row.executed) > 1] == ["error", "too_large"]


def test_only_accepted_is_not_final() -> None:
    assert [s for s in Status if not CommandReply(status=s, executed=EXECUTED[s]).final] == [Status.ACCEPTED]


def test_the_worst_status_wins() -> None:
    assert worst_status([Status.OK, Status.OK]) is Status.OK
    assert worst_status([Status.OK, Status.ERROR]) is Status.ERROR
    assert worst_status([Status.ERROR, Status.UNAVAILABLE, Status.OK]) is Status.UNAVAILABLE
    assert worst_status([Status.DENIED, Status.CONNECTION_LOST]) is Status.CONNECTION_LOST
    assert worst_status(list(Status)) is Status.TIMEOUT


def test_executed_of_all_is_what_all_say() -> None:
    assert agreed_executed(["yes", "yes"]) is Executed.YES
    assert agreed_executed(["no"]) is Executed.NO
    assert agreed_executed(["yes", "no"]) is Executed.UNKNOWN
    assert agreed_executed(["yes", "unknown"]) is Executed.UNKNOWN
    assert agreed_executed(["unknown"]) is Executed.UNKNOWN
    assert agreed_executed([]) is Executed.UNKNOWN
