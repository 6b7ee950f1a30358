from __future__ import annotations

from bridge.simulator.framing import ClientCommand, CommandReader, whole


def take_all(reader: CommandReader) -> list[ClientCommand]:
    commands = []
    while (command := reader.take()) is not None:
        commands.append(command)
    return commands


def read(data: bytes, step: int | None = None) -> list[ClientCommand]:
    reader = CommandReader()
    commands: list[ClientCommand] = []
    for at in range(0, len(data), step or len(data)):
        reader.feed(data[at : at + (step or len(data))])
        commands += take_all(reader)
    return commands


STREAM = (
    b"\n\r\n\napi status\n\n"
    b"sendevent CUSTOM\r\nEvent-Subclass: a::b\r\ncontent-length: 5\r\n\r\nab\n\ncapi echo x\n\n\n\n"
    b"sendmsg abc\ncall-command: execute\n\n"
)


def test_commands_are_cut_the_same_in_any_chunks() -> None:
    whole_stream = [(command.line, command.headers, command.raw_body) for command in read(STREAM)]
    assert [line for line, _, _ in whole_stream] == ["api status", "sendevent CUSTOM", "api echo x", "sendmsg abc"]
    assert whole_stream[1][1] == [("Event-Subclass", "a::b"), ("content-length", "5")]
    assert whole_stream[1][2] == b"ab\n\nc"
    for step in range(1, 9):
        assert [(command.line, command.headers, command.raw_body) for command in read(STREAM, step)] == whole_stream


def test_headers_are_found_in_any_case() -> None:
    (command,) = read(b"bgapi status\njob-uuid: x y\n\n")
    assert command.header("Job-UUID") == "x y"
    assert command.header("other") is None


def test_a_body_ends_at_a_nul_as_a_c_string() -> None:
    (command,) = read(b"sendevent CUSTOM\nContent-Length: 5\n\nab\0cd")
    assert command.body == "ab"


def test_an_injected_length_swallows_what_follows() -> None:
    commands = read(b"api echo hi\nContent-Length: 10\n\napi echo 1\n\napi echo 2\n\n")
    assert [command.line for command in commands] == ["api echo hi", "api echo 2"]


def test_a_length_out_of_bounds_breaks_the_reader() -> None:
    for length in (b"-1", b"16777217", b"9" * 40):
        reader = CommandReader()
        reader.feed(b"api x\nContent-Length: " + length + b"\n\n")
        assert reader.take() is None
        assert reader.broken


def test_partial_tells_of_half_a_command() -> None:
    reader = CommandReader()
    reader.feed(b"api ech")
    assert reader.take() is None
    assert reader.partial
    reader.feed(b"o x\n\n")
    assert reader.take() is not None
    assert not reader.partial


def test_whole() -> None:
    assert whole(" 12 ") == 12
    for text in ("", "-1", "²", "1.5", "9" * 5000):
        assert whole(text) is None
