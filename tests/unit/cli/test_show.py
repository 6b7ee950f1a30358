from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from rich.console import Console

from bridge.cli.demo import SAMPLES, Sample, own_name
from bridge.cli.live import StatusLine
from bridge.cli.show import LINES_PER_SECOND, Show
from bridge.cli.stage import free_port
from bridge.messages.event import EventMessage
from bridge.messages.reply import CommandReply, Executed, Status


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def make_show(clock: Clock, *, terminal: bool = False) -> tuple[Show, io.StringIO]:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=60, markup=False, highlight=False)
    return Show(console, clock), stream


def event(name: str) -> EventMessage:
    return EventMessage({"node": "demo"}, {"Event-Name": name, "Caller-Destination-Number": "1" * 100})


def test_no_more_is_printed_than_can_be_read(clock):
    show, stream = make_show(clock)
    for _ in range(1000):
        show.event(event("CHANNEL_CREATE"))
    assert show.events == 1000
    assert len(stream.getvalue().splitlines()) == show.shown <= LINES_PER_SECOND
    clock.now += 1.0
    show.event(event("CHANNEL_CREATE"))
    assert show.shown == len(stream.getvalue().splitlines()) > 1


def test_what_tells_little_gives_way_first(clock):
    show, _ = make_show(clock)
    for _ in range(5):
        show.event(event("CHANNEL_STATE"))
    noisy = show.shown
    show.event(event("CHANNEL_ANSWER"))
    assert show.shown == noisy + 1


def test_lines_are_cut_on_a_terminal_and_whole_elsewhere(clock):
    on_terminal, narrow = make_show(clock, terminal=True)
    on_terminal.event(event("CHANNEL_CREATE"))
    assert "\x1b[" in narrow.getvalue()
    assert narrow.getvalue().count("\n") == 1
    elsewhere, wide = make_show(clock)
    elsewhere.event(event("CHANNEL_CREATE"))
    assert "\x1b[" not in wide.getvalue()
    assert len(wide.getvalue()) > 60


def test_the_numbers_and_the_summary_say_what_flowed(clock):
    show, stream = make_show(clock)
    clock.now = 2.0
    show.event(event("CHANNEL_CREATE"))
    show.event(event("DTMF"))
    show.reply("status", CommandReply(status=Status.OK, executed=Executed.YES, result="UP"), "an explanation")
    show.failure("x", ValueError("gone"))
    clock.now = 4.0
    show.numbers("http://127.0.0.1:8090/")
    show.summary()
    text = stream.getvalue()
    for part in (
        "2 events (0.5/s",
        "1 ok",
        "http://127.0.0.1:8090/",
        "first event: after 2.0 s",
        "answers: 1 ok",
        "gone",
    ):
        assert part in text


def test_the_samples_show_success_failure_and_refusal():
    texts = [sample.text for sample in SAMPLES]
    assert any(text.startswith("originate") for text in texts)
    assert any(text.startswith("system") for text in texts)
    assert Sample({"op": "hangup", "uuid": "u", "to": "a"}, "").text == "hangup u  → a"


def test_a_status_line_is_for_terminals_only():
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    plain, terminal = io.StringIO(), Terminal()
    for stream in (plain, terminal):
        with StatusLine(stream) as line:
            line.show("3 connections")
    assert plain.getvalue() == ""
    assert "3 connections" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r\x1b[2K")


def test_a_taken_port_is_replaced_by_a_free_one():
    import socket

    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        taken = holder.getsockname()[1]
        assert free_port(taken) not in (0, taken)


def test_a_reply_of_many_nodes_shows_a_line_for_each(clock):
    show, stream = make_show(clock)
    parts = [
        CommandReply(id="1", status=Status.OK, executed=Executed.YES, node="fs1", result="3 total.\n"),
        CommandReply(id="1", status=Status.TIMEOUT, executed=Executed.UNKNOWN, node="fs2", error="no\x1breply"),
    ]
    whole = CommandReply(id="1", status=Status.TIMEOUT, executed=Executed.UNKNOWN, error="fs2: no", replies=parts)
    show.reply("show channels count  → all", whole, "asked of every node")
    text = stream.getvalue()
    assert "by 2 nodes" in text
    assert "fs1: 3 total." in text
    assert "fs2: timeout executed=unknown no\\x1breply" in text


def test_the_demo_names_a_command_that_works_where_it_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / ".venv" / "bin" / "esl-bridge"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(program), "demo"])
    monkeypatch.setenv("PATH", "/usr/bin")
    assert own_name() == ".venv/bin/esl-bridge"
    monkeypatch.setenv("PATH", str(program.parent))
    assert own_name() == "esl-bridge"
    monkeypatch.setattr(sys, "argv", ["/somewhere/bridge/__main__.py", "demo"])
    assert own_name() == "esl-bridge"
