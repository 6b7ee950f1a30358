"""``[[events.route]]``: what is wrong is told with its key, what is right becomes plain values."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from bridge.config import Settings, load_settings
from bridge.config.events import event_routes
from bridge.errors import ConfigError
from bridge.relay.routes import RouteSettings

NODE = '[[node]]\nname = "fs1"\nurl = "fs://:x@127.0.0.1"\n'


def load(tmp_path: Path, text: str, bus: str = "redis://h") -> Settings:
    file = tmp_path / "bridge.toml"
    file.write_text(f'[bus]\nurl = "{bus}"\n{NODE}{text}')
    return load_settings(file, {})


def routes(settings: Settings) -> list[RouteSettings]:
    scheme = settings.bus.url.scheme
    return msgspec.convert(
        event_routes(settings.events, bus_codec=settings.bus.codec, scheme=scheme), list[RouteSettings]
    )


def test_without_routes_there_is_the_default_one(tmp_path: Path) -> None:
    assert routes(load(tmp_path, "")) == [RouteSettings()]


def test_a_route_inherits_what_it_does_not_say(tmp_path: Path) -> None:
    settings = load(
        tmp_path,
        '[events]\ncodec = "msgpack"\nenvelope = "none"\ndelivery = "both"\n[[events.route]]\nname = "calls"\n'
        'topic = "fs.calls.{uuid}.{name}"\nevents = ["CHANNEL_*"]\n'
        'where = { Call-Direction = "inbound", x = ["a", "b"] }\n'
        'drop = ["variable_*"]\ndelivery = "durable"\nstream = "calls"\n'
        '[[events.route]]\nname = "b"\ntopic = "b.x"\ncodec = "json"\n',
    )
    default, calls, other = routes(settings)
    assert default.stream is not None
    assert (default.stream.key, default.stream.topics, default.delivery) == ("fs.events", ("fs.events.>",), "both")
    assert (calls.name, calls.codec, calls.envelope, calls.drop) == ("calls", "msgpack", "none", ("variable_*",))
    assert calls.where == {"Call-Direction": ("inbound",), "x": ("a", "b")}
    assert calls.stream is not None
    assert (calls.stream.key, calls.stream.topics) == ("calls", ("fs.calls.>",))
    assert (other.codec, other.stream) == ("json", None)
    assert settings.events.durable


def test_the_stream_of_the_default_route_has_the_name_of_its_broker(tmp_path: Path) -> None:
    [route] = routes(load(tmp_path, '[events]\ndelivery = "durable"\n', "nats://h"))
    assert route.stream is not None
    assert route.stream.name == "FS_EVENTS"


@pytest.mark.parametrize(
    ("text", "key", "words"),
    [
        ('name = "a"\ntopic = "fs.events.x.{name}"', "route[0].topic", "default route"),
        ('name = "a"\ntopic = "fs.x"\ndelivery = "durable"', "route[0].stream", "stream of its own"),
        ('name = "a"\ntopic = "fs.x"\nstream = "s"', "route[0].stream", "is for delivery"),
        ('name = "a b"\ntopic = "fs.x"', "route[0].name", "letters"),
        ('name = "a"\ntopic = "fs.{Name}"', "route[0]", "{name}"),
        ('name = "a"\ntopic = "esl.cmd.{name}"', "route[0]", "keeps for itself"),
        ('name = "a"\ntopic = "a.x"\n[[events.route]]\nname = "a"\ntopic = "b.x"', "route[1].name", "earlier route"),
        ('name = "a"\ntopic = "a.x"\n[[events.route]]\nname = "b"\ntopic = "a.x"', "route[1].topic", "already"),
        (
            'name = "a"\ntopic = "a.x"\ndelivery = "both"\nstream = "s"\n'
            '[[events.route]]\nname = "b"\ntopic = "b.x"\ndelivery = "both"\nstream = "s"',
            "route[1].stream", "already",
        ),
        ('name = "a"\ntopic = "fs.x"\ncolour = "red"', "route[0].colour", "unknown key"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_its_key(tmp_path: Path, text: str, key: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, f"[[events.route]]\n{text}\n")
    assert any(path.startswith(f"events.{key}") and words in problem for path, problem in caught.value.problems), str(
        caught.value
    )


def test_a_jetstream_name_has_no_dots(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot name a JetStream stream"):
        load(tmp_path, '[events]\ndelivery = "durable"\nstream = "fs.events"\n', "nats://h")


@pytest.mark.parametrize(
    ("topic", "other", "default", "key"),
    [
        ("fs.calls.{uuid}", "fs.calls.{uuid}.{name}", "pubsub", "route[1].topic"),
        ("fs.calls.{uuid}.{name}", "fs.calls.x.{name}", "pubsub", "route[1].topic"),
        ("fs.calls.x", "fs.calls.{uuid}", "pubsub", "route[1].topic"),
        ("fs.{name}", "calls.x", "durable", "route[0].topic"),
        ("fs.calls.{uuid}", "fs.callsigns.{uuid}", "durable", ""),
        ("fs.calls.x", "fs.calls.xy", "durable", ""),
        ("fs.{name}", "calls.x", "pubsub", ""),
    ],
)
def test_streams_of_jetstream_do_not_overlap(tmp_path: Path, topic: str, other: str, default: str, key: str) -> None:
    text = f'[events]\ndelivery = "{default}"\n' + "".join(
        f'[[events.route]]\nname = "{name}"\ntopic = "{one}"\ndelivery = "durable"\nstream = "{name}"\n'
        for name, one in (("a", topic), ("b", other))
    )
    load(tmp_path, text, "redis://h")  # a Redis stream captures nothing
    if not key:
        load(tmp_path, text, "nats://h")
        return
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text, "nats://h")
    [(path, problem)] = caught.value.problems
    assert path == f"events.{key}"
    assert "overlap" in problem
