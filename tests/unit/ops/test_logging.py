from __future__ import annotations

import io
import json
import logging

import pytest
import structlog

from bridge.ops.logging import RepeatLimiter, configure_logging, use_standard_logging


@pytest.fixture(autouse=True)
def undo_logging():
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def lines_of(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_json_off_a_terminal_text_on_one():
    plain, terminal = io.StringIO(), Terminal()
    configure_logging(stream=plain)
    structlog.get_logger().info("node changed", node="fs1", state="UP")
    configure_logging(stream=terminal)
    structlog.get_logger().info("node changed", node="fs1", state="UP")
    (line,) = lines_of(plain)
    assert (line["event"], line["node"], line["level"]) == ("node changed", "fs1", "info")
    assert str(line["timestamp"]).endswith("Z")
    assert "node changed" in terminal.getvalue()
    assert "\x1b[" in terminal.getvalue()


def test_the_format_can_be_forced():
    stream = io.StringIO()
    configure_logging(format="text", stream=stream)
    structlog.get_logger().info("hello")
    assert "\x1b[" not in stream.getvalue()
    with pytest.raises(json.JSONDecodeError):
        json.loads(stream.getvalue())


def test_the_level_holds_for_all_loggers():
    stream = io.StringIO()
    configure_logging("warning", stream=stream)
    structlog.get_logger().info("quiet")
    logging.getLogger("some.library").info("quiet too")
    logging.getLogger("some.library").warning("loud %s", "enough")
    assert [line["event"] for line in lines_of(stream)] == ["loud enough"]


@pytest.mark.parametrize("format", ["json", "text"])
def test_no_secret_reaches_the_log(format):
    stream = io.StringIO()
    configure_logging(format=format, stream=stream, secrets=["geheim"])
    log = structlog.get_logger()
    log.warning("connecting to fs://:geheim@h", url="nats://u:other@h", password="whatever", nested={"token": "abc"})
    logging.getLogger("lib").error("failed: %s", "geheim")
    try:
        raise ValueError("geheim in fs://:other@h")
    except ValueError:
        log.exception("it broke")
        logging.getLogger("lib").exception("it broke there")
    text = stream.getvalue()
    assert text.count("ValueError: ***") == 2
    for secret in ("geheim", "other@", "whatever", "abc"):
        assert secret not in text


def test_repeats_are_held_back_and_told():
    now = 0.0
    stream = io.StringIO()
    configure_logging(stream=stream, limiter=RepeatLimiter(burst=2, window=10, clock=lambda: now))
    log = structlog.get_logger()
    for _ in range(5):
        log.warning("cannot connect", node="fs1")
    log.warning("cannot connect", node="fs2")
    now = 11.0
    log.warning("cannot connect", node="fs1")
    log.warning("cannot connect", node="fs1")
    lines = lines_of(stream)
    assert [(line["node"], line.get("held_back")) for line in lines] == [
        ("fs1", None),
        ("fs1", None),
        ("fs2", None),
        ("fs1", 3),
        ("fs1", None),
    ]


def test_repeats_of_libraries_are_held_back_too():
    stream = io.StringIO()
    configure_logging(stream=stream, limiter=RepeatLimiter(burst=2, window=10))
    for number in range(5):
        logging.getLogger("lib").warning("attempt %s failed", number)
    assert len(lines_of(stream)) == 2


def test_the_limiter_remembers_a_bounded_number_of_kinds():
    limiter = RepeatLimiter(burst=1, kinds=10)
    for number in range(1000):
        limiter(None, "info", {"event": f"line {number}"})
    assert len(limiter._seen) == 10


def test_where_nobody_set_it_up_lines_go_to_standard_logging(capsys, caplog):
    structlog.reset_defaults()
    use_standard_logging()
    with caplog.at_level("INFO"):
        structlog.get_logger("bridge.test").warning("node changed", node="fs1")
    out, _ = capsys.readouterr()
    assert out == ""
    assert "node changed" in caplog.text
    assert "node=fs1" in caplog.text


def test_what_was_set_up_stays():
    stream = io.StringIO()
    configure_logging(stream=stream)
    use_standard_logging()
    structlog.get_logger().info("hello")
    assert lines_of(stream)[0]["event"] == "hello"
