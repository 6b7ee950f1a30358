"""The rows of the conformance table that are about what we write."""

from __future__ import annotations

import pytest

from bridge.errors import InvalidCommand
from bridge.esl import commands
from bridge.esl.protocol import Protocol

BAD = ["\r", "\n", "\r\n", "\0", "\ud800", "\udfff"]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize(
    ("field", "render"),
    [
        ("password", lambda x: commands.auth(x)),
        ("password", lambda x: commands.userauth("u@d", x)),
        ("user", lambda x: commands.userauth(x, "p")),
        ("command", lambda x: commands.api(x)),
        ("command", lambda x: commands.bgapi(x, "j")),
        ("job_uuid", lambda x: commands.bgapi("status", x)),
        ("names", lambda x: commands.event("json", [x])),
        ("subclasses", lambda x: commands.event("json", ["ALL"], [x])),
        ("names", lambda x: commands.nixevent([x])),
        ("header", lambda x: commands.filter_add(x, "v")),
        ("value", lambda x: commands.filter_add("H", x)),
        ("header", lambda x: commands.filter_delete(x)),
        ("value", lambda x: commands.filter_delete("H", x)),
        ("uuid", lambda x: commands.sendmsg(x, {})),
        ("headers.?", lambda x: commands.sendmsg("u", {x: "v"})),
        ("headers.H", lambda x: commands.sendmsg("u", {"H": x})),
        ("uuid", lambda x: commands.execute(x, "answer")),
        ("app", lambda x: commands.execute("u", x)),
        ("event_uuid", lambda x: commands.execute("u", "answer", "", x)),
        ("uuid", lambda x: commands.hangup(x)),
        ("cause", lambda x: commands.hangup("u", x)),
        ("event", lambda x: commands.sendevent(x, {})),
        ("headers.H", lambda x: commands.sendevent("CUSTOM", {"H": x})),
        ("headers.?", lambda x: commands.sendevent("CUSTOM", {x: "v"})),
        ("level", lambda x: commands.log(x)),
        ("uuid", lambda x: commands.myevents(x)),
    ],
)
def test_row_52_no_argument_ends_a_line(bad, field, render):
    with pytest.raises(InvalidCommand) as caught:
        render(f"a{bad}b")
    assert caught.value.field == field


@pytest.mark.parametrize("bad", ["\0", "\ud800"])
def test_row_52_nor_spoils_a_body(bad):
    for render in (
        lambda: commands.sendevent("CUSTOM", {}, f"a{bad}"),
        lambda: commands.sendmsg("u", {}, f"a{bad}"),
    ):
        with pytest.raises(InvalidCommand) as caught:
            render()
        assert caught.value.field == "body"
    with pytest.raises(InvalidCommand) as caught:
        commands.execute("u", "x", f"a\n{bad}")
    assert caught.value.field == "arg"


def test_row_53_length_in_bytes_and_one_write():
    rendered = commands.sendevent("CUSTOM", {"Event-Subclass": "my::x"}, "é")
    assert rendered == b"sendevent CUSTOM\nEvent-Subclass: my::x\nContent-Length: 2\n\n\xc3\xa9"
    protocol = Protocol()
    protocol.send(rendered)
    assert protocol.data_to_send() == rendered
    assert protocol.data_to_send() == b""
