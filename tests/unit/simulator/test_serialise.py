from __future__ import annotations

import json

import pytest

from bridge.simulator.serialise import (
    encode_plain,
    render_frame,
    render_json,
    render_plain,
    render_xml,
    to_bytes,
    to_text,
)


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        ("a b", b"a%20b"),
        ("a%20b", b"a%20b"),  # what looks like an escape is left alone: plain loses the difference
        ("50%", b"50%25"),
        ("%zz %4a", b"%25zz%20%254a"),  # lower-case hex is no escape of FreeSWITCH's
        ("a:b;c=d?e", b"a%3Ab%3Bc%3Dd%3Fe"),
        ("line\r\nend\t", b"line%0D%0Aend%09"),
        ("é", b"%C3%A9"),
        ("/,()'!$*~.-_", b"/,()'!$*~.-_"),
        ('[x]{y}|\\^`<>@#&+"', b"%5Bx%5D%7By%7D%7C%5C%5E%60%3C%3E%40%23%26%2B%22"),
        ("", b"_undef_"),
    ],
)
def test_plain_values(value: str, encoded: bytes) -> None:
    assert encode_plain(value) == encoded


def test_plain_event_without_and_with_body() -> None:
    assert render_plain([("A", "1")], None) == b"A: 1\n\n"
    assert render_plain([("A", "1")], "") == b"A: 1\n\n"
    assert render_plain([("A", "1")], "é\n") == b"A: 1\nContent-Length: 3\n\n\xc3\xa9\n"


def test_plain_array() -> None:
    assert render_plain([("a", ["x", "y z"])], None) == b"a: ARRAY%3A%3Ax%7C%3Ay%20z\n\n"


def test_json_keeps_repeated_keys_order_arrays_and_body() -> None:
    raw = render_json([("K", "1"), ("K", "2"), ("L", ["a", 'b"'])], "x\ny")
    assert raw == b'{"K":"1","K":"2","L":["a","b\\""],"Content-Length":"3","_body":"x\\ny"}'
    assert render_json([("New-Name", "1")], "") == b'{"New-Name":"1","Content-Length":"0","_body":""}'


def test_json_escapes_as_cjson_does() -> None:
    raw = render_json([("a", 'q"\\/\x01\x1f\t\n\r\b\f\x7f é\u2028')], None)
    assert raw == b'{"a":"q\\"\\\\/\\u0001\\u001f\\t\\n\\r\\b\\f\x7f \xc3\xa9\xe2\x80\xa8"}'
    assert json.loads(raw)["a"].startswith('q"\\/')


def test_invalid_utf8_passes_raw() -> None:
    value = to_text(b"Zo\xe9")
    assert to_bytes(value) == b"Zo\xe9"
    assert render_json([("a", value)], None) == b'{"a":"Zo\xe9"}'
    assert encode_plain(value) == b"Zo%E9"


def test_xml() -> None:
    raw = render_xml([("Event-Name", "API"), ("X", "<a b>")], "+OK\n")
    assert raw == (
        b"<event>\n  <headers>\n    <Event-Name>API</Event-Name>\n    <X>%3Ca%20b%3E</X>\n  </headers>\n"
        b"  <Content-Length>4</Content-Length>\n  <body>+OK\n  </body>\n</event>\n"
    )


def test_a_frame_has_its_length_first() -> None:
    frame = render_frame([("A", "é")], None, "json")
    assert frame == b'Content-Length: 10\nContent-Type: text/event-json\n\n{"A":"\xc3\xa9"}'.replace(b"10", b"10")
    assert len(frame.partition(b"\n\n")[2]) == 10
