from __future__ import annotations

import pytest

from bridge.errors import InvalidCommand
from bridge.esl import commands as c


@pytest.mark.parametrize(
    ("rendered", "expected"),
    [
        (c.auth("ClueCon "), b"auth ClueCon \n\n"),
        (c.userauth("u@d", "p:w"), b"userauth u@d:p:w\n\n"),
        (c.api("status"), b"api status\n\n"),
        (c.api("echo Zoé"), b"api echo Zo\xc3\xa9\n\n"),
        (c.bgapi("originate x &park", "1a2b-3"), b"bgapi originate x &park\nJob-UUID: 1a2b-3\n\n"),
        (c.event("json", ["ALL"]), b"event json ALL\n\n"),
        (c.event("plain", ["HEARTBEAT", "CUSTOM"]), b"event plain HEARTBEAT CUSTOM\n\n"),
        (
            c.event("json", ["CUSTOM", "CHANNEL_ANSWER"], ["sofia::register", "a::b"]),
            b"event json CHANNEL_ANSWER CUSTOM sofia::register a::b\n\n",
        ),
        (c.event("json", [], ["a::b"]), b"event json CUSTOM a::b\n\n"),
        (c.nixevent(["API"]), b"nixevent API\n\n"),
        (c.noevents(), b"noevents\n\n"),
        (c.filter_add("Job-UUID", "/^1a2b3c4d-/"), b"filter Job-UUID /^1a2b3c4d-/\n\n"),
        (c.filter_add("Caller-Name", "two words"), b"filter Caller-Name two words\n\n"),
        (c.filter_delete("Job-UUID", "x"), b"filter delete Job-UUID x\n\n"),
        (c.filter_delete("all"), b"filter delete all\n\n"),
        (c.sendmsg("u", {"call-command": "nomedia"}), b"sendmsg u\ncall-command: nomedia\n\n"),
        (c.sendmsg(None, {"a": "b"}, "x"), b"sendmsg\na: b\nContent-Length: 1\n\nx"),
        (c.execute("u", "answer"), b"sendmsg u\ncall-command: execute\nexecute-app-name: answer\n\n"),
        (
            c.execute("u", "playback", "a%20b.wav", "e-1", loops=2, event_lock=True),
            b"sendmsg u\ncall-command: execute\nexecute-app-name: playback\nexecute-app-arg: a%20b.wav\n"
            b"Event-UUID: e-1\nloops: 2\nevent-lock: true\n\n",
        ),
        (
            c.execute("u", "speak", "é\nb"),
            b"sendmsg u\ncall-command: execute\nexecute-app-name: speak\ncontent-type: text/plain\n"
            b"Content-Length: 4\n\n\xc3\xa9\nb",
        ),
        (c.hangup("u"), b"sendmsg u\ncall-command: hangup\nhangup-cause: NORMAL_CLEARING\n\n"),
        (c.hangup("u", "USER_BUSY"), b"sendmsg u\ncall-command: hangup\nhangup-cause: USER_BUSY\n\n"),
        (c.sendevent("CUSTOM", {"Event-Subclass": "x"}), b"sendevent CUSTOM\nEvent-Subclass: x\n\n"),
        (c.sendevent("MESSAGE", {}, ""), b"sendevent MESSAGE\nContent-Length: 0\n\n"),
        (c.sendevent("X", {}, "v=0\r\n\r\n"), b"sendevent X\nContent-Length: 7\n\nv=0\r\n\r\n"),
        (c.log(7), b"log 7\n\n"),
        (c.log("info"), b"log info\n\n"),
        (c.nolog(), b"nolog\n\n"),
        (c.exit_(), b"exit\n\n"),
        (c.linger(), b"linger\n\n"),
        (c.linger(5), b"linger 5\n\n"),
        (c.nolinger(), b"nolinger\n\n"),
        (c.myevents(), b"myevents\n\n"),
        (c.myevents("u"), b"myevents u\n\n"),
        (c.myevents(None, "json"), b"myevents json\n\n"),
        (c.divert_events(True), b"divert_events on\n\n"),
        (c.divert_events(False), b"divert_events off\n\n"),
        (c.connect(), b"connect\n\n"),
        (c.resume(), b"resume\n\n"),
    ],
)
def test_rendered(rendered, expected):
    assert rendered == expected


@pytest.mark.parametrize(
    ("field", "render"),
    [
        ("password", lambda: c.auth("")),
        ("user", lambda: c.userauth("a:b", "p")),
        ("user", lambda: c.userauth("", "p")),
        ("command", lambda: c.api("")),
        ("command", lambda: c.api("  ")),
        ("command", lambda: c.bgapi("", "j")),
        ("job_uuid", lambda: c.bgapi("x", "")),
        ("job_uuid", lambda: c.bgapi("x", "a b")),
        ("job_uuid", lambda: c.bgapi("x", "j" * 65)),
        ("names", lambda: c.event("json", [])),
        ("names", lambda: c.event("json", ["A B"])),
        ("format", lambda: c.event("yaml", ["ALL"])),
        ("subclasses", lambda: c.event("json", ["ALL"], ["a b"])),
        ("header", lambda: c.filter_add("delete", "x")),
        ("header", lambda: c.filter_add("Add", "x")),
        ("header", lambda: c.filter_add("a:", "x")),
        ("value", lambda: c.filter_add("a", "")),
        ("uuid", lambda: c.hangup("")),
        ("uuid", lambda: c.hangup("a b")),
        ("cause", lambda: c.hangup("u", "")),
        ("app", lambda: c.execute("u", "")),
        ("app", lambda: c.execute("u", "a b")),
        ("arg", lambda: c.execute("u", "a", "x\r\ny")),
        ("arg", lambda: c.execute("u", "a", "x\ry")),
        ("arg", lambda: c.execute("u", "a", "x\0")),
        ("event", lambda: c.sendevent("", {})),
        ("event", lambda: c.sendevent("A B", {})),
        ("headers.content-LENGTH", lambda: c.sendevent("A", {"content-LENGTH": "5"})),
        ("headers.Content-Length", lambda: c.sendmsg("u", {"Content-Length": "5"}, "hello")),
        ("headers.content-length[1]", lambda: c.sendmsg("u", {"content-length[1]": "5"}, "hello")),
        ("headers.Command[0]", lambda: c.sendevent("X", {"Command[0]": "api status"})),
        ("headers.a b", lambda: c.sendevent("A", {"a b": "x"})),
        ("headers.a:", lambda: c.sendevent("A", {"a:": "x"})),
        ("headers.", lambda: c.sendevent("A", {"": "x"})),
    ],
)
def test_refused_naming_the_field(field, render):
    with pytest.raises(InvalidCommand) as caught:
        render()
    assert caught.value.field == field
    assert str(caught.value).startswith(f"{field}: ")
