from __future__ import annotations

import contextlib
import json
import re

import msgpack
from hypothesis import example, given
from hypothesis import strategies as st

from bridge.errors import InvalidMessage, InvalidRequest
from bridge.messages.codec import JSON, MSGPACK
from bridge.messages.command import CommandRequest, decode_reply, encode_request, fingerprint, parse_request
from bridge.messages.notice import decode_notice
from bridge.messages.topics import (
    ReplyAddresses,
    TopicTemplate,
    escape_token,
    event_token,
    reply_address_fault,
    unescape_token,
)

TOKEN = re.compile(r"[A-Za-z0-9_:%~-]{1,128}\Z")
ADDRESS = re.compile(r"[A-Za-z0-9_:%~.-]{1,512}\Z")
any_text = st.text(st.characters(), max_size=300)  # lone surrogates too
scalars = st.none() | st.booleans() | st.integers() | st.floats() | any_text
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=3), max_leaves=8
)
NAMES = CommandRequest.__struct_fields__


@given(any_text | st.binary(max_size=300))
@example("-")
@example("")
def test_any_value_is_one_safe_token(value: str | bytes) -> None:
    assert TOKEN.match(escape_token(value))


@given(any_text)
def test_a_token_that_was_not_cut_gives_its_value_back(value: str) -> None:
    token = escape_token(value)
    if "~" not in token:
        assert unescape_token(token) == value


@given(st.lists(any_text, min_size=2, max_size=2, unique=True))
def test_different_values_have_different_tokens(pair: list[str]) -> None:
    assert escape_token(pair[0]) != escape_token(pair[1])


@given(st.text(max_size=140))
def test_unescape_gives_a_value_or_a_value_error(token: str) -> None:
    try:
        value = unescape_token(token)
    except ValueError:
        return
    assert unescape_token(escape_token(value)) == value


@given(any_text, any_text, any_text, any_text, any_text)
def test_no_value_changes_the_shape_of_an_address(name: str, subclass: str, node: str, uuid: str, header: str) -> None:
    template = TopicTemplate("pbx.{event}.{node}-{uuid}.{X}")
    address = template.render(name=name, subclass=subclass, node=node, uuid=uuid, header=lambda _: header)
    assert ADDRESS.match(address)
    assert address.count(".") == 3
    assert "" not in address.split(".")
    assert TOKEN.match(event_token(name, subclass))


@given(any_text | st.text("fs.{}eventnd*> !:", max_size=30))
def test_a_template_compiles_or_names_its_fault(text: str) -> None:
    try:
        template = TopicTemplate(text)
    except ValueError:
        return
    address = template.render(name="A", subclass="b", node="c", uuid="d", header=lambda name: name)
    assert ADDRESS.match(address)
    assert address.startswith(template.literal_prefix)


@given(any_text | st.text("_INBOX.esl.reply*> :{}$", max_size=40))
def test_an_allowed_reply_address_is_a_safe_one(address: str) -> None:
    for addresses in (ReplyAddresses(["_INBOX.>", "esl.reply.>"]), ReplyAddresses(["*"], glob=True)):
        if addresses.allows(address):
            assert not reply_address_fault(address)
            assert not re.search(r"[\s*>\x00-\x1f]", address)
            assert not address.startswith(("$", "fs.", "esl.cmd"))


def read(payload: bytes) -> CommandRequest | None:
    try:
        request, codec = parse_request(payload)
    except InvalidRequest as error:
        refused = error
    else:
        refused = None
    if refused is not None:
        assert str(refused)
        assert refused.id is None or (0 < len(refused.id) <= 128 and refused.id.isprintable())
        assert refused.reply_to is None or not reply_address_fault(refused.reply_to)
        return None
    lines = [
        request.command,
        request.uuid,
        request.app,
        request.arg,
        request.cause,
        request.event,
        request.id,
        request.to,
    ]
    for text in [*lines, *request.headers, *request.headers.values()]:
        assert not set(text) & set("\r\n\0")
    for codec in (JSON, MSGPACK):  # whatever was let in can be said again in both
        again, _ = parse_request(encode_request(request, codec))
        assert fingerprint(again) == fingerprint(request)
        codec.encode(request.meta)
    return request


@given(st.binary(max_size=200))
@example(b'{"id":"\xff"}')
@example(b"\x81\xa2id\xff")
@example(b"\x81\x80\x01")
def test_any_bytes_are_a_request_or_an_invalid_request(payload: bytes) -> None:
    read(payload)
    read(b"{" + payload)
    read(b"\x83" + payload)


@given(st.dictionaries(st.sampled_from(NAMES) | any_text, values, max_size=6))
def test_any_map_is_a_request_or_an_invalid_request(fields: dict[str, object]) -> None:
    read(json.dumps(fields).encode())
    try:
        packed = msgpack.packb(fields, unicode_errors="surrogatepass")
    except OverflowError:
        return
    read(packed)


plain = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
plausible = st.fixed_dictionaries(
    {},
    optional={
        "id": plain,
        "op": st.sampled_from(["api", "bgapi", "execute", "hangup", "sendmsg", "sendevent"]),
        "command": plain,
        "uuid": plain,
        "app": plain,
        "arg": plain,
        "headers": st.dictionaries(plain, plain, max_size=2),
        "body": plain,
        "event": plain,
        "to": st.sampled_from(["any", "all", "fs1", "call:x", "tag:y", "", "a b"]),
        "timeout_ms": st.integers(-1, 10) | st.floats(),
        "accept": st.booleans(),
        "reply_to": plain,
        "meta": st.dictionaries(plain, values, max_size=2),
    },
)


@given(plausible)
def test_plausible_maps_are_a_request_or_an_invalid_request(fields: dict[str, object]) -> None:
    read(json.dumps(fields).encode())


@given(plausible, st.data())
def test_a_cut_request_is_never_read(fields: dict[str, object], data: st.DataObject) -> None:
    payload = json.dumps(fields).encode()
    cut = data.draw(st.integers(0, len(payload) - 1))
    assert read(payload[:cut]) is None


@given(st.binary(max_size=200))
def test_any_bytes_are_a_reply_or_an_invalid_message(payload: bytes) -> None:
    for decode in (decode_reply, decode_notice):
        for lead in (b"", b"{", b"\x83"):
            with contextlib.suppress(InvalidMessage):
                decode(lead + payload)
