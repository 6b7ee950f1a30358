from __future__ import annotations

import json

import msgpack
import pytest

from bridge.errors import InvalidMessage
from bridge.messages.codec import JSON, MSGPACK, codec_named, codec_of


def test_both_codecs_carry_the_same_map() -> None:
    value = {"a": "é", "b": [1, 2.5, None, True], "c": {"d": ""}}
    assert JSON.decode(JSON.encode(value)) == MSGPACK.decode(MSGPACK.encode(value)) == value


def test_other_libraries_read_what_is_written_and_the_other_way_round() -> None:
    value = {"a": "é" * 40, "b": [1, -1, 2.5, None, True], "c": {str(n): n for n in range(40)}, "d": "x" * 70_000}
    assert json.loads(JSON.encode(value)) == value
    assert msgpack.unpackb(MSGPACK.encode(value)) == value
    assert MSGPACK.decode(msgpack.packb(value)) == value
    assert MSGPACK.decode(msgpack.packb(value, use_bin_type=False)) == value
    assert JSON.decode(json.dumps(value, indent=1).encode()) == value


@pytest.mark.parametrize("size", [0, 1, 15, 16, 65_536])
def test_the_first_byte_tells_msgpack_maps_of_every_size(size: int) -> None:
    payload = MSGPACK.encode(dict.fromkeys(map(str, range(size))))
    assert codec_of(payload) is MSGPACK


@pytest.mark.parametrize("payload", [b"{}", b" {}", b"\r\n\t {}", b" " * 100 + b"{}"])
def test_the_first_byte_tells_json(payload: bytes) -> None:
    assert codec_of(payload) is JSON


@pytest.mark.parametrize(
    "payload", [b"", b" ", b"[]", b"x", b"\x90", b"\xdc\x00\x00", b"\xff", b"\x00", b"\xef\xbb\xbf{}"]
)
def test_anything_but_a_map_is_refused(payload: bytes) -> None:
    with pytest.raises(InvalidMessage):
        codec_of(payload)


@pytest.mark.parametrize("payload", [b"{", b'{"a":"\xff"}', b"{} x", b'{"a":' * 100_000])
def test_broken_json_is_an_invalid_message(payload: bytes) -> None:
    with pytest.raises(InvalidMessage):
        JSON.decode(payload)


@pytest.mark.parametrize(
    "payload", [b"\x81", b"\x81\xa1a\xa1\xff", b"\x80\x80", b"\x81\x80\x01", b"\x81\x01" * 100_000]
)
def test_broken_msgpack_is_an_invalid_message(payload: bytes) -> None:
    with pytest.raises(InvalidMessage):
        MSGPACK.decode(payload)


def test_codecs_by_name_and_their_content_types() -> None:
    assert codec_named("json") is JSON
    assert codec_named("msgpack") is MSGPACK
    with pytest.raises(ValueError, match="xml"):
        codec_named("xml")
    assert JSON.event_content_type == "application/cloudevents+json"
    assert MSGPACK.request_content_type == "application/msgpack"
