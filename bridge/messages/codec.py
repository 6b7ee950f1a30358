"""JSON and msgpack: values to bytes and back, the same map in both.

It never knows what a message means.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from bridge.errors import InvalidMessage

_decode_json = msgspec.json.Decoder().decode
_decode_msgpack = msgspec.msgpack.Decoder().decode


class Codec:
    """One encoding: ``encode`` makes bytes of a value, ``decode`` gives it back (``InvalidMessage``).

    ``event_content_type`` is for events and notices, ``request_content_type`` for requests and replies.
    """

    __slots__ = ("_decode", "encode", "event_content_type", "name", "request_content_type")

    def __init__(self, name: str, encode: Callable[[object], bytes], decode: Callable[[bytes], object]) -> None:
        self.name = name
        self.encode = encode
        self.event_content_type = f"application/cloudevents+{name}"
        self.request_content_type = f"application/{name}"
        self._decode = decode

    def __repr__(self) -> str:
        return f"<codec {self.name}>"

    def decode(self, payload: bytes) -> object:
        """The value that the bytes stand for. Raises ``InvalidMessage``."""
        try:
            return self._decode(payload)
        except (msgspec.MsgspecError, ValueError, TypeError, OverflowError) as error:
            raise InvalidMessage(f"not {self.name}: {error}") from None
        except RecursionError:
            raise InvalidMessage(f"not {self.name} of a reasonable depth") from None


JSON = Codec("json", msgspec.json.Encoder().encode, _decode_json)
# msgspec's msgpack is the same encoding as the msgpack package's, two to three times as fast.
MSGPACK = Codec("msgpack", msgspec.msgpack.Encoder().encode, _decode_msgpack)

_BY_NAME = {"json": JSON, "msgpack": MSGPACK}
_BY_FIRST_BYTE: dict[int, Codec] = {
    0x7B: JSON,
    **dict.fromkeys(range(0x80, 0x90), MSGPACK),
    0xDE: MSGPACK,
    0xDF: MSGPACK,
}


def codec_named(name: str) -> Codec:
    """The codec of a setting. Raises ``ValueError``."""
    try:
        return _BY_NAME[name]
    except KeyError:
        raise ValueError(f"unknown codec {name!r}: json or msgpack") from None


def codec_of(payload: bytes) -> Codec:
    """The codec of a map, by its first byte. Raises ``InvalidMessage`` for anything but a map."""
    if not payload:
        raise InvalidMessage("the message is empty")
    codec = _BY_FIRST_BYTE.get(payload[0])
    if codec is not None:
        return codec
    if payload[:64].lstrip(b" \t\r\n")[:1] == b"{" or payload.lstrip(b" \t\r\n")[:1] == b"{":
        return JSON
    raise InvalidMessage("neither a JSON object nor a msgpack map")
