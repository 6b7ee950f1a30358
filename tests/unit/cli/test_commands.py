from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer

from bridge.cli import exits, main
from bridge.cli.call import print_reply, request_fields
from bridge.cli.check import Finding, exit_code
from bridge.cli.tail import parse_conditions, topic_pattern
from bridge.errors import (
    AuthenticationFailed,
    BusRefused,
    BusUnavailable,
    ConfigError,
    Denied,
    InvalidRequest,
    NotConnected,
    Unavailable,
)
from bridge.messages.reply import CommandReply, Executed, Status

COMMANDS = ["demo", "run", "check", "tail", "call", "simulate"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("ESL_BRIDGE_CONFIG", "ESL_BRIDGE_BUS__URL"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def fields(words: list[str], **options: object) -> dict[str, object]:
    given = {"op": "api", "to": None, "uuid": None, "wait": False, "headers": [], "body": None, "idempotent": False}
    return request_fields(words, **{**given, **options})  # type: ignore[arg-type]


# --- help and usage -----------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_helps_with_examples(command, capsys):
    assert main([command, "--help"]) == exits.FINE
    shown = capsys.readouterr().out
    assert "Examples" in shown
    assert f"esl-bridge {command}" in shown


def test_the_form_of_a_nodes_url_is_told_whole(capsys, monkeypatch):
    """Brackets are marks of Rich: it took ``[username]`` for one and left it out."""
    monkeypatch.setenv("COLUMNS", "120")
    main(["nodes", "--help"])
    assert "fs://[username]:password@host[:port]" in capsys.readouterr().out


def test_the_overview_names_every_command_and_exit_code(capsys):
    assert main(["--help"]) == exits.FINE
    shown = capsys.readouterr().out
    for command in COMMANDS:
        assert command in shown
    for code in ("69", "78"):
        assert code in shown


def test_the_version_is_told(capsys):
    import bridge

    assert main(["--version"]) == exits.FINE
    assert capsys.readouterr().out == f"esl-bridge {bridge.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nonsense"], "nonsense"),
        (["tail", "--nonsense"], "--nonsense"),
        (["tail", "--where", "nonsense"], "Header=glob"),
        (["call"], "nothing to send"),
        (["call", "--op", "hangup"], "--uuid"),
        (["call", "--op", "nonsense", "x"], "--op"),
        (["call", "--op", "sendevent", "X", "--header", "nonsense"], "Name=value"),
        (["simulate", "--fault", "nonsense"], "--fault"),
        (["simulate", "--replay", __file__], "--replay"),
        (["demo", "--bus", "kafka"], "kafka"),
        (["demo", "--port", "-1"], "--port"),
        (["call", "status", "--timeout", "inf"], "--timeout"),
        (["call", "echo", "\udcff"], "UTF-8"),
        (["simulate", "--password", ""], "--password"),
        (["simulate", "--password", "a\nb"], "--password"),
    ],
)
def test_wrong_usage_ends_with_2(arguments, told, here, capsys):
    assert main(arguments) == exits.USAGE
    assert told in capsys.readouterr().err


# --- exit codes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("x"), 78),
        (BusRefused("x"), 78),
        (AuthenticationFailed("x"), 78),
        (BusUnavailable("x"), 69),
        (NotConnected("x"), 69),
        (Unavailable("no worker"), 69),
        (Unavailable("down", CommandReply(status=Status.UNAVAILABLE, executed=Executed.NO)), 1),
        (Denied("x"), 1),
        (InvalidRequest("id", "x"), 2),
    ],
)
def test_an_error_has_its_exit_code(error, code):
    assert exits.code_of(error) == code


@pytest.mark.parametrize(("codes", "code"), [([], 0), ([0, 0], 0), ([0, 69], 69), ([78, 69, 0], 78)])
def test_the_worst_finding_is_the_exit_code(codes, code):
    assert exit_code([Finding("x", "y", each) for each in codes]) == code


# --- check --------------------------------------------------------------------------------------


def test_check_shows_what_the_configuration_comes_to(here, capsys):
    (here / "bridge.toml").write_text(
        '[bus]\nurl = "redis://u:geheim@h/0"\n[[node]]\nname = "fs1"\nurl = "fs://:geheim@10.0.0.9"\ntags = ["media"]\n'
    )
    assert main(["check"]) == exits.FINE
    shown = capsys.readouterr().out
    for part in ("bridge.toml", "redis://u:***@h/0", "fs://:***@10.0.0.9:8021", "tags media", "esl.cmd", "fine"):
        assert part in shown
    assert "geheim" not in shown


def test_check_refuses_the_default_password_off_loopback_unless_told(here, capsys):
    node = '[[node]]\nname = "fs1"\nurl = "fs://:ClueCon@10.0.0.9"\n'
    (here / "bridge.toml").write_text(node)
    assert main(["check"]) == exits.WRONG_CONFIGURATION
    assert "node[0].password: is FreeSWITCH's default password" in capsys.readouterr().err
    (here / "bridge.toml").write_text(node + "allow_default_password = true\n")
    assert main(["check"]) == exits.FINE
    assert "node[0].url: FreeSWITCH's default password" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["check", "run"])
def test_a_wrong_configuration_ends_with_78_and_all_its_faults(here, capsys, command):
    (here / "bridge.toml").write_text('[bus]\ncodec = "xml"\nurl = "redis://:geheim@"\n[log]\nlevel = "loud"\n')
    assert main([command]) == exits.WRONG_CONFIGURATION
    told = capsys.readouterr().err
    for part in ("3 problems", 'bus.codec: must be "json" or "msgpack", got "xml"', "bus.url: ", "log.level: "):
        assert part in told
    assert "geheim" not in told


@pytest.mark.parametrize("command", ["check", "run"])
def test_without_any_configuration_there_is_nothing_to_run(here, capsys, command):
    assert main([command]) == exits.WRONG_CONFIGURATION
    assert "[[node]]" in capsys.readouterr().err


# --- call ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["check", "run", "reload"])
def test_what_the_worker_would_stumble_over_is_found_before(here, capsys, command):
    (here / "bridge.toml").write_text(
        """
[bus]
url = "nats://127.0.0.1:1"
creds = "/not/there"
[[node]]
name = "fs1"
url = "fs+tls://:x@127.0.0.1"
tls_ca = "/not/there"
[policy]
allow = ["api status", ""]
deny = ["op:"]
[commands]
reply_to = ["a..b"]
"""
    )
    assert main([command]) == exits.WRONG_CONFIGURATION
    told = capsys.readouterr().err
    for key in ("bus.creds", "node fs1: tls_ca", "policy.allow[1]", "policy.deny[0]", "commands.reply_to[0]"):
        assert f"  {key}: " in told, key
    assert "5 problems" in told


def test_words_become_the_fields_of_their_op():
    assert fields(["show", "channels"]) == {"op": "api", "command": "show channels"}
    assert fields(["originate", "user/1", "&park"], op="bgapi", to="fs1") == {
        "op": "bgapi",
        "to": "fs1",
        "command": "originate user/1 &park",
    }
    assert fields(["playback", "/a", "b"], op="execute", uuid="u", wait=True) == {
        "op": "execute", "uuid": "u", "wait": True, "app": "playback", "arg": "/a b",
    }  # fmt: skip
    assert fields(["USER_BUSY"], op="hangup", uuid="u") == {"op": "hangup", "uuid": "u", "cause": "USER_BUSY"}
    assert fields([], op="hangup", uuid="u") == {"op": "hangup", "uuid": "u"}
    assert fields(["CUSTOM"], op="sendevent", headers=["Event-Subclass=a=b"], body="x", idempotent=True) == {
        "op": "sendevent", "event": "CUSTOM", "headers": {"Event-Subclass": "a=b"}, "body": "x", "idempotent": True,
    }  # fmt: skip


@pytest.mark.parametrize("op", ["execute", "hangup", "sendmsg"])
def test_what_speaks_of_a_call_needs_its_uuid(op):
    with pytest.raises(typer.BadParameter, match="--uuid"):
        fields(["x"], op=op)


def test_a_result_goes_to_stdout_a_failure_to_stderr(capsys):
    print_reply(CommandReply(status=Status.OK, executed=Executed.YES, result="+OK\nmore\n"))
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("+OK\nmore\n", "")
    print_reply(CommandReply(status=Status.TIMEOUT, executed=Executed.UNKNOWN, error="no answer within 5 s"))
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "timeout (executed: unknown) no answer within 5 s\n")


def test_the_replies_of_all_nodes_are_told_one_by_one(capsys):
    print_reply(
        CommandReply(
            status=Status.UNAVAILABLE,
            executed=Executed.UNKNOWN,
            replies=[
                CommandReply(status=Status.OK, executed=Executed.YES, node="a", result="3 total."),
                CommandReply(status=Status.UNAVAILABLE, executed=Executed.NO, node="b", error="DOWN"),
            ],
        )
    )
    shown = capsys.readouterr()
    assert shown.out == "a: 3 total.\n"
    assert shown.err == "b: unavailable (executed: no) DOWN\n"


# --- tail ---------------------------------------------------------------------------------------


def test_conditions_are_header_and_glob():
    assert parse_conditions(["A=b*", "C=d=e", "F="]) == {"A": "b*", "C": "d=e", "F": ""}


@pytest.mark.parametrize(
    ("template", "pattern"),
    [
        ("fs.events.{event}", None),
        ("x.{node}.{event}", "x.*.*"),
        ("calls.{uuid}.a-{name}.end", "calls.*.*.end"),
    ],
)
def test_the_pattern_covers_all_topics_of_a_template(template, pattern):
    assert topic_pattern(template) == pattern


def test_a_bus_that_is_not_there_ends_with_69(here, capsys):
    assert main(["tail", "--bus", "nats://127.0.0.1:1", "--for", "1"]) == exits.UNREACHABLE
    assert main(["call", "--bus", "redis://127.0.0.1:1", "status"]) == exits.UNREACHABLE
    assert "127.0.0.1:1" in capsys.readouterr().err


def test_a_bus_of_ones_own_needs_no_file_and_hears_no_variables(here, monkeypatch):
    from bridge.cli.options import settings_for_bus

    (here / "bridge.toml").write_text("nonsense")
    monkeypatch.setenv("ESL_BRIDGE_BUS__PASSWORD", "of another bus")
    settings = settings_for_bus(None, "redis://h")
    assert settings.bus.options() == {}
    with pytest.raises(ConfigError):
        settings_for_bus(None, None)


# --- simulate -----------------------------------------------------------------------------------


def test_a_bus_of_ones_own_gets_no_credentials_of_the_files(here, monkeypatch):
    from bridge.cli.options import settings_for_bus

    (here / "bridge.toml").write_text(
        '[bus]\nurl = "nats://h"\nusername = "u"\npassword_file = "/not/there"\ncreds = "c"\ncodec = "msgpack"\n'
    )
    monkeypatch.setenv("ESL_BRIDGE_BUS__NKEY", "n")
    settings = settings_for_bus(here / "bridge.toml", "redis://other")
    assert settings.bus.options() == {}
    assert settings.bus.codec == "msgpack"


def test_the_faults_are_listed(capsys):
    from bridge.simulator import FAULTS

    assert main(["simulate", "--fault", "list"]) == exits.FINE
    shown = capsys.readouterr().out
    assert all(name in shown for name in FAULTS)


def test_a_taken_port_is_told(capsys, unused_tcp_port_holder):
    assert main(["simulate", "--port", str(unused_tcp_port_holder)]) == exits.UNREACHABLE
    assert "cannot listen" in capsys.readouterr().err


@pytest.fixture
def unused_tcp_port_holder():
    import socket

    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield holder.getsockname()[1]


def test_a_host_that_is_no_name_is_told(capsys):
    assert main(["simulate", "--host", 70 * "h" + ".x", "--port", "0"]) == exits.UNREACHABLE
    assert "not a host name" in capsys.readouterr().err


def test_a_whole_event_is_one_line_of_json():
    from bridge.cli.tail import json_line
    from bridge.messages.event import EventMessage

    line = json_line(EventMessage({"id": "x:1", "node": "fs1"}, {"Event-Name": "DTMF", "name": "ä\n"}))
    assert "\n" not in line
    assert json.loads(line) == {"id": "x:1", "node": "fs1", "data": {"Event-Name": "DTMF", "name": "ä\n"}}
