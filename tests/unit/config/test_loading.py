from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from bridge.config import Settings, find_config_file, load_settings, settings_warnings
from bridge.errors import ConfigError

NODE = '[[node]]\nname = "fs1"\nurl = "fs://:ClueCon@127.0.0.1:8021"\n'


@pytest.fixture
def load(tmp_path: Path):
    def load_text(text: str, environ: Mapping[str, str] | None = None) -> Settings:
        file = tmp_path / "bridge.toml"
        file.write_text(text)
        return load_settings(file, environ or {})

    return load_text


@pytest.fixture
def problems(load):
    def problems_of(text: str, environ: Mapping[str, str] | None = None) -> dict[str, str]:
        with pytest.raises(ConfigError) as caught:
            load(text, environ)
        # A traceback must not show pydantic's own error, which quotes its input.
        assert caught.value.__cause__ is None
        assert caught.value.__context__ is None
        return dict(caught.value.problems)

    return problems_of


def test_the_example_of_the_contract_is_valid(load):
    settings = load("""
[worker]
id = "auto"
state_dir = "/var/lib/esl-bridge"
[bus]
url = "nats://127.0.0.1:4222"
codec = "json"
[esl]
event_heartbeat_interval = 0
esl_connect_timeout = 5000
esl_cmd_timeout = 5000
esl_cmd_polling_itv = 0
[[node]]
name = "fs1"
url = "fs://:ClueCon@127.0.0.1:8021"
tags = ["media"]
[events]
subscribe = ["ALL"]
topic = "fs.events.{event}"
delivery = "pubsub"
[commands]
queue = "esl.cmd"
durable = false
max_in_flight = 512
dedup_window = 300
job_timeout = 120
[fleet]
standby = 0
[policy]
deny = ["system"]
[http]
listen = "127.0.0.1:8090"
""")
    assert settings.nodes[0].name == "fs1"
    assert settings.nodes[0].esl_url.password == "ClueCon"
    assert settings.esl.esl_cmd_timeout == 5000
    assert settings.commands.dedup_window == 300


def test_without_a_file_the_defaults_hold(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = load_settings(None, {})
    assert settings.bus.url.get_secret_value() == "nats://127.0.0.1:4222"
    assert settings.commands.queue == "esl.cmd"
    assert settings.nodes == []


def test_the_file_is_found_by_argument_then_variable_then_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config_file(None, {}) is None
    (tmp_path / "bridge.toml").write_text("")
    assert find_config_file(None, {}) == Path("bridge.toml")
    assert find_config_file(None, {"ESL_BRIDGE_CONFIG": "/etc/x.toml"}) == Path("/etc/x.toml")
    assert find_config_file(Path("a.toml"), {"ESL_BRIDGE_CONFIG": "/etc/x.toml"}) == Path("a.toml")


def test_a_file_that_is_named_must_be_there(tmp_path):
    with pytest.raises(ConfigError, match=r"missing\.toml: cannot be read: No such file"):
        load_settings(None, {"ESL_BRIDGE_CONFIG": str(tmp_path / "missing.toml")})


def test_a_file_that_is_not_toml_is_told_with_its_place(problems):
    ((key, text),) = problems("[bus]\nurl = \n").items()
    assert key.endswith("bridge.toml")
    assert "line 2" in text


@pytest.mark.parametrize(
    ("text", "key", "told"),
    [
        ('[bus]\ncodec = "json"\ncodec = "json"\n', "bridge.toml", "a key or table is given twice (at line 3"),
        ("[bus]\nurl = nats://h", "bridge.toml", "no value (text stands in quotes) (at line 2"),
        ('[node]\nname = "fs1"\nurl = "fs://:x@h"', "node", "write [[node]], in two brackets"),
        ('[events.route]\nname = "a"\ntopic = "fs.x"', "events.route", "write [[events.route]], in two brackets"),
    ],
)
def test_the_commonest_slips_in_toml_are_told_in_plain_words(problems, text, key, told):
    [(where, what)] = problems(text).items()
    assert where.endswith(key)
    assert told in what


def test_every_fault_is_told_at_once_with_its_key(problems):
    found = problems(
        """
[bus]
codec = "xml"
urk = "x"
[evnts]
[esl]
esl_cmd_timeout = true
esl_connect_timeout = "50"
[commands]
max_in_flight = 0
[fleet]
standby = 2
[[node]]
name = "fs 1"
url = "fs://:secret@"
[[node]]
name = "a"
url = "http://h"
formt = "xml"
[[node]]
name = "a"
url = "fs://:x@h:99999"
[http]
listen = "8090"
""",
        {"ESL_BRIDGE_LOG__LEVEL": "loud", "ESL_BRIDGE_BUS__URLL": "x", "ESL_BRIDGE_NODE__a__FORMATT": "x"},
    )
    assert found["bus.codec"] == 'must be "json" or "msgpack", got "xml"'
    assert found["bus.urk"] == 'unknown key; did you mean "url"?'
    assert found["evnts"] == 'unknown key; did you mean "events"?'
    assert found["esl.esl_cmd_timeout"] == "must be a whole number, got true"
    assert found["esl.esl_connect_timeout"] == 'must be a whole number, got "50"'
    assert found["commands.max_in_flight"] == "must be at least 1, got 0"
    assert found["fleet.standby"] == "must be at most 1, got 2"
    assert found["node[0].name"] == 'must be 1 to 64 of A-Z a-z 0-9 _ -, got "fs 1"'
    assert "host" in found["node[0].url"]
    assert "fs://" in found["node[1].url"]
    assert found["node[1].formt"] == 'unknown key; did you mean "format"?'
    assert found["node[2].name"] == '"a" is the name of node[1] already'
    assert "port" in found["node[2].url"]
    assert "host:port" in found["http.listen"]
    assert found["log.level"].endswith('got "loud" (set by ESL_BRIDGE_LOG__LEVEL)')
    assert found["ESL_BRIDGE_BUS__URLL"] == 'unknown environment variable; did you mean "ESL_BRIDGE_BUS__URL"?'
    assert "ESL_BRIDGE_NODE__a__FORMAT" in found["ESL_BRIDGE_NODE__a__FORMATT"]
    assert len(found) == 17


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("bus = 5", "bus"),
        ("node = 5", "node"),
        ('node = ["x"]', "node[0]"),
        ('[events]\nsubscribe = "ALL"', "events.subscribe"),
        ("[worker]\ndrain_timeout = inf", "worker.drain_timeout"),
        ("[worker]\ndrain_timeout = -1", "worker.drain_timeout"),
        ("[[node]]\nname = 'a'", "node[0].url"),
        ("[events]\ntopic = 'fs events'", "events.topic"),
        ("[events]\ntopic = '{event}.x'", "events.topic"),
        ("[events]\ntopic = 'fs.{event'", "events.topic"),
        ("[events]\nsubscribe = ['CHANNEL CREATE']", "events.subscribe[0]"),
        ('[events]\nsubscribe = ["CUSTOM:a\\u0000b"]', "events.subscribe[0]"),
        ("[[node]]\nname = 'a'\nurl = 'fs://:x@h'\nfilters = ['delete all']", "node[0].filters[0]"),
        ("[[node]]\nname = 'a'\nurl = 'fs://u%3Av:x@h'", "node[0].url"),
        ("[policy]\nrates = {originate = 0}", "policy.rates.originate"),
        ("[bus]\nurl = 'http://h'", "bus.url"),
        ("[bus]\nurl = 'nats://'", "bus.url"),
        ("[bus]\nurl = 'nats://h:0'", "bus.url"),
        ("[bus]\nurl = 'redis://h:x/0'", "bus.url"),
        ("[bus]\ntls_cert = 'a.pem'", "bus.tls_key"),
        ("[bus]\nurl = 'redis://h'\ncreds = 'x'", "bus.creds"),
        ("[[node]]\nname='a'\nurl='fs://:x@h'\nfilters=['nonsense']", "node[0].filters[0]"),
        ("[[node]]\nname='a'\nurl='fs://:x@h'\ntags=['a b']", "node[0].tags"),
        ("[commands]\nqueue = 'esl.*'", "commands.queue"),
        ("[http]\nlisten = 'h:70000'", "http.listen"),
        ("[http]\nlisten = '" + 70 * "h" + ".x:80'", "http.listen"),
        ("[http]\ntoken = ' long-enough-a-token'", "http.token"),
        ("[commands]\nqueue = 'esl..cmd'", "commands.queue"),
        ("[commands]\ndedup_window = 1e15", "commands.dedup_window"),
        ("[events]\nstream_age = 1e300", "events.stream_age"),
        ("[events]\nstream_events = 99999999999999999999", "events.stream_events"),
        ("[esl]\nesl_cmd_timeout = 99999999999999999999", "esl.esl_cmd_timeout"),
        ("[worker]\ndrain_timeout = 1e308", "worker.drain_timeout"),
        ("[worker]\nid = '.'", "worker.id"),
        ("[worker]\nid = 'a..b'", "worker.id"),
        ('[worker]\nid = "a\\n"', "worker.id"),
        ("[bus]\nurl = 'redis://a..b'", "bus.url"),
        ("[[node]]\nname='a'\nurl='fs://:x@" + 70 * "h" + "'", "node[0].url"),
        ("[[node]]\nname='a'\nurl='fs://:x@h'\npassword='y'", "node[0].password"),
        ('[[node]]\nname="a"\nurl="fs://:x@h"\nfilters=["Header a\\u0000"]', "node[0].filters[0]"),
    ],
)
def test_a_wrong_value_is_told_at_its_key(problems, text, key):
    assert list(problems(text)) == [key]


def test_a_filter_may_be_written_with_a_colon(load):
    text = '[[node]]\nname="a"\nurl="fs://:x@h"\nfilters=["Event-Name HEARTBEAT", "Call-Direction: /^in/ x"]'
    assert load(text).nodes[0].filters == ["Event-Name HEARTBEAT", "Call-Direction /^in/ x"]


@pytest.mark.parametrize(
    "url",
    [
        "nats://a:1,b:2",
        "nats://u:p@a:1,nats://u:p@b",
        "tls://h",
        "redis://[::1]:6379/1",
        "rediss://u:p@h/0",
        "redis+cluster://a,b:7000",
        "redis+sentinel://u:p@a:26379,b/mymaster/0",
        "unix:///run/redis.sock",
        "memory://",
    ],
)
def test_the_buses_of_the_contract_are_taken(load, url):
    assert load(f'[bus]\nurl = "{url}"').bus.url.get_secret_value() == url


# --- environment --------------------------------------------------------------------------------


def test_the_environment_stands_over_the_file(load):
    settings = load(
        NODE,
        {
            "ESL_BRIDGE_BUS__URL": "redis://h/0",
            "ESL_BRIDGE_ESL__ESL_CMD_TIMEOUT": "700",
            "ESL_BRIDGE_COMMANDS__DURABLE": "true",
            "ESL_BRIDGE_EVENTS__SUBSCRIBE": "CHANNEL_CREATE, CHANNEL_ANSWER",
            "ESL_BRIDGE_POLICY__DENY": '["a b", "c"]',
            "ESL_BRIDGE_POLICY__RATES": '{"originate": 5}',
            "ESL_BRIDGE_NODE__fs1__TAGS": "media,edge",
            "ESL_BRIDGE_CONFIG": "ignored when a path is given",
            "ESL_BRIDGE_TEST_REDIS_URL": "ours",
            "OTHER": "x",
        },
    )
    assert settings.bus.url.get_secret_value() == "redis://h/0"
    assert settings.esl.esl_cmd_timeout == 700
    assert settings.commands.durable is True
    assert settings.events.subscribe == ["CHANNEL_CREATE", "CHANNEL_ANSWER"]
    assert settings.policy.deny == ["a b", "c"]
    assert settings.policy.rates == {"originate": 5}
    assert settings.nodes[0].tags == ["media", "edge"]


def test_a_node_can_come_from_the_environment_alone(load):
    settings = load(NODE, {"ESL_BRIDGE_NODE__fs2__URL": "fs://:pw@10.0.0.2", "ESL_BRIDGE_NODE__fs2__FORMAT": "plain"})
    assert [(node.name, node.format) for node in settings.nodes] == [("fs1", "json"), ("fs2", "plain")]


def test_a_name_that_no_shell_can_write_is_met_all_the_same(load):
    settings = load('[[node]]\nname = "fs-1"\nurl = "fs://:a@h"', {"ESL_BRIDGE_NODE__FS_1__URL": "fs://:b@h"})
    assert [node.esl_url.password for node in settings.nodes] == ["b"]


def test_a_variable_that_another_setting_refers_to_is_known(load):
    settings = load('[bus]\nurl = "${env:ESL_BRIDGE_MY_BUS}"', {"ESL_BRIDGE_MY_BUS": "redis://h"})
    assert settings.bus.url.get_secret_value() == "redis://h"


# --- secrets ------------------------------------------------------------------------------------


def test_secrets_come_from_files_and_variables(load, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("p@ss:w/ord\n")
    settings = load(
        f"""
[bus]
url = "redis://h"
password_file = "{secret}"
[[node]]
name = "a"
url = "fs://${{env:WHO}}:${{file:{secret}}}@h"
[[node]]
name = "b"
url = "fs://h"
password_file = "{secret}"
[[node]]
name = "c"
url = "fs://user@h"
password = "x@y"
[[node]]
name = "d"
url = "${{env:WHOLE}}"
""",
        {"WHO": "bob", "WHOLE": "fs://:w%40@h:1"},
    )
    assert settings.bus.password.get_secret_value() == "p@ss:w/ord"
    a, b, c, d = (node.esl_url for node in settings.nodes)
    assert (a.username, a.password, a.host) == ("bob", "p@ss:w/ord", "h")
    assert (b.username, b.password) == (None, "p@ss:w/ord")
    assert (c.username, c.password) == ("user", "x@y")
    assert (d.password, d.port) == ("w@", 1)


def test_a_secret_that_cannot_be_had_is_told_once(problems, tmp_path):
    empty = tmp_path / "empty"
    empty.write_text("\n")
    found = problems(
        f"""
[bus]
url = "redis://:${{env:NOT_SET}}@h"
password_file = "{empty}"
[[node]]
name = "a"
url = "fs://:${{file:/not/there}}@h"
[[node]]
name = "b"
url = "fs://h"
password_file = "/not/there"
[[node]]
name = "c"
url = "fs://:${{vault:x}}@h"
[[node]]
name = "d"
url = "fs://h"
password = "x"
password_file = "/not/there"
"""
    )
    assert found == {
        "bus.url": "environment variable NOT_SET is not set",
        "bus.password_file": f"cannot use {empty}: it is empty",
        "node[0].url": "cannot read /not/there: No such file or directory",
        "node[1].password_file": "cannot read /not/there: No such file or directory",
        "node[2].url": "holds a ${...} that is neither ${file:/path} nor ${env:NAME}",
        "node[3].password_file": "stands beside password; give one of them",
    }


@pytest.mark.parametrize(
    "text",
    [
        '[bus]\nurl = "redis://u:geheim@"',
        '[bus]\nurl = "http://u:geheim@h"',
        '[bus]\nurl = "geheim"',
        '[bus]\nurl = ["redis://:geheim@h"]',
        '[bus]\npassword = ["geheim"]',
        'bus = "redis://:geheim@h"',
        '[[node]]\nname="a"\nurl="fs://u:geheim@h:x"',
        '[[node]]\nname="a"\nurl="geheim@h"',
        '[[node]]\nname="a"\nurl={x="geheim"}',
        'node = ["fs://:geheim@h"]',
        '[[node]]\nname="a"\nurl="fs://:${env:PW}@h:x"',
        '[[node]]\nname="a"\nurl="fs://:${env:PW}"',
        '[bus]\nurl = "${env:PW}"',
        '[buss]\nurl = "geheim"',
        '[bus]\nurll = "geheim"',
        '[bus]\nurl = "redis://:geheim@h\nx=1',
    ],
)
def test_an_error_never_shows_a_secret(load, text):
    with pytest.raises(ConfigError) as caught:
        load(text, {"PW": "geheim", "ESL_BRIDGE_BUS__PASSWORDD": "geheim"})
    assert "geheim" not in str(caught.value)
    assert "geheim" not in repr(caught.value)


def test_no_representation_shows_a_secret(load):
    settings = load(
        '[bus]\nurl = "redis://u:geheim@h"\npassword = "geheim"\n'
        '[[node]]\nname = "a"\nurl = "fs://u:geheim@h"\n[[node]]\nname = "b"\nurl = "fs://h"\npassword = "geheim"'
    )
    for shown in (repr(settings), str(settings), str(settings.model_dump()), settings.model_dump_json(by_alias=True)):
        assert "geheim" not in shown
    assert "redis://u:***@h" in repr(settings)
    assert "geheim" in settings.secrets()


# --- warnings ------------------------------------------------------------------------------------


OTHER = NODE + '[[node]]\nname = "x"\nurl = "fs://:ClueCon@10.0.0.1"\n'


@pytest.mark.parametrize("host", ["10.0.0.1", "switch.example", "[2001:db8::5]", "0.0.0.0"])
def test_the_default_password_is_refused_off_loopback(load, host):
    with pytest.raises(ConfigError) as caught:
        load(OTHER.replace("10.0.0.1", host))
    assert [key for key, _ in caught.value.problems] == ["node[1].password"]
    assert "ClueCon" not in str(caught.value)


@pytest.mark.parametrize("where", ["127.0.0.1", "localhost", "[::1]"])
def test_the_default_password_is_fine_on_loopback(load, where):
    assert settings_warnings(load(OTHER.replace("10.0.0.1", where))) == []


def test_the_default_password_is_warned_about_where_it_is_allowed(load):
    warned = settings_warnings(load(OTHER + "allow_default_password = true\n"))
    assert [key for key, _ in warned] == ["node[1].url"]


def test_doors_left_open_are_warned_about(load):
    found = dict(settings_warnings(load('[http]\nlisten = ":8090"\n[policy]\ndeny = []')))
    assert set(found) == {"http.listen", "policy.deny", "node"}


def test_what_is_set_and_not_used_is_warned_about(load):
    settings = load(
        "[bus]\nurl = 'redis://u:x@h'\nusername = 'v'\npassword = 'y'\ntls_ca = 'ca.pem'\n[commands]\ndurable = true\n"
        "[[node]]\nname = 'a'\nurl = 'fs://:x@h'\ntls_ca = 'ca.pem'"
    )
    told = [key for key, text in settings_warnings(settings) if text.startswith("is not used")]
    assert told == ["bus.password", "bus.username", "bus.tls_ca", "commands.durable", "node[0].tls_ca"]


def test_the_token_of_the_page_comes_from_a_file_and_is_hidden(tmp_path):
    (tmp_path / "token").write_text("a-long-enough-token\n")
    file = tmp_path / "bridge.toml"
    file.write_text(f'[http]\nconsole = true\ntoken_file = "{tmp_path / "token"}"\n')
    settings = load_settings(file, {})
    assert settings.http.token.get_secret_value() == "a-long-enough-token"
    assert "a-long-enough-token" in settings.secrets()
    assert "a-long-enough-token" not in repr(settings)


@pytest.mark.parametrize(
    ("text", "key"),
    [("console = true", "http.token"), ('token = "short"', "http.token"), ("console = 1", "http.console")],
)
def test_a_console_needs_a_token_that_is_one(tmp_path, text, key):
    file = tmp_path / "bridge.toml"
    file.write_text(f"[http]\n{text}\n")
    with pytest.raises(ConfigError) as caught:
        load_settings(file, {})
    assert [problem[0] for problem in caught.value.problems] == [key]
