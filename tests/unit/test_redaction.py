from __future__ import annotations

import time

import pytest

from bridge.redaction import Redactor, is_telling, redact_text, redact_url


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("fs://:ClueCon@127.0.0.1:8021", "fs://:***@127.0.0.1:8021"),
        ("fs://bob@home:pa/ss@[::1]:8021", "fs://bob@home:***@[::1]:8021"),
        ("nats://token@h:4222", "nats://***@h:4222"),
        ("nats://u:p,w@h1,h2", "nats://u:***@h1,h2"),
        ("nats://u:p/w@h1,nats://v:q@h2", "nats://u:***@h1,nats://v:***@h2"),
        ("redis://h/0?password=x&db=1", "redis://h/0?password=***&db=1"),
        ("nats://127.0.0.1:4222", "nats://127.0.0.1:4222"),
        ("unix:///run/redis.sock", "unix:///run/redis.sock"),
    ],
)
def test_a_url_is_shown_without_its_secrets(url, shown):
    assert redact_url(url) == shown


@pytest.mark.parametrize(
    "text",
    [
        "cannot reach fs://:geheim@h:8021, trying again",
        "cannot reach fs://u:ge/geheim@h",
        "Connect to nats://u:geheim@h1,nats://v:geheim@h2 failed",
        "wrote 'auth geheim\\n\\n'",
        "auth geheim\n\n",
        "userauth bob@home:geheim\n\n",
        "https://h/?token=geheim",
        "known by value: geheim!",
    ],
)
def test_free_text_is_shown_without_secrets(text):
    assert "geheim" not in redact_text(text, ["geheim!"])


@pytest.mark.parametrize("text", ["authentication refused by 10.0.0.1", "see http://h/path and mail@example.org", ""])
def test_other_text_is_left_alone(text):
    assert redact_text(text) == text


@pytest.mark.parametrize("key", ["password", "bus_password", "api_token", "secret", "Authorization", "nkey", "seed"])
def test_telling_keys_hide_their_values(key):
    assert is_telling(key)
    assert Redactor().value(key, "x") == "***"


@pytest.mark.parametrize("key", ["password_file", "node", "tokens_left", "passed"])
def test_other_keys_show_them(key):
    assert Redactor().value(key, "x") == "x"


def test_values_are_redacted_however_deep():
    redactor = Redactor(["geheim"])
    value = redactor.value("a", {"b": ["geheim", {"token": 5, "c": (b"geheim", None, True, 1.5)}], "geheim": 1})
    assert value == {"b": ["***", {"token": "***", "c": ["***", None, True, 1.5]}], "***": 1}


def test_an_object_is_shown_as_its_text():
    assert Redactor(["geheim"]).value("error", ValueError("geheim")) == "***"


@pytest.mark.parametrize(
    "text",
    [
        "originate {sip_auth_password=geheim,x=1}user/1 &park",
        "originate [api_token='geheim und mehr']user/1 &park",
        "uuid_setvar 1 Password = geheim",
        '{sip_h_X-Secret="geheim"}user/1',
    ],
)
def test_variables_that_hold_secrets_are_hidden_in_command_lines(text):
    shown = redact_text(text)
    assert "geheim" not in shown
    assert "***" in shown


def test_other_variables_are_shown():
    text = "originate {origination_caller_id_number=1000,password_file=/x}user/1 &park"
    assert redact_text(text) == text


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (
            "originate {sip_auth_username=a,sip_auth_password=s3cret,x=1}sofia/gateway/g/100 &park",
            "originate {sip_auth_username=a,sip_auth_password=***,x=1}sofia/gateway/g/100 &park",
        ),
        ("originate {api_token='a b, c',x=1}user/1 &park", "originate {api_token=***,x=1}user/1 &park"),
        ("uuid_setvar 1234-abcd vm-password 4711", "uuid_setvar 1234-abcd vm-password ***"),
        ("global_setvar default_password=1234", "global_setvar default_password=***"),
        ("set conference_pin=99", "set conference_pin=***"),
        ("curl http://u:pw@host/?token=x", "curl http://u:***@host/?token=***"),
        ("uuid_setvar 1234 ring_back pass", "uuid_setvar 1234 ring_back pass"),
        ("uuid_bridge a b", "uuid_bridge a b"),
    ],
)
def test_commands_are_shown_without_their_secrets(line: str, shown: str) -> None:
    assert Redactor().command(line) == shown


@pytest.mark.parametrize(
    "text", ["a." * 32_000 + "=", "fs://" * 13_000, "@ " + "fs://" * 13_000, "token " * 11_000 + "="]
)
def test_a_callers_text_is_read_in_no_time(text: str) -> None:
    began = time.perf_counter()
    Redactor().command(text)
    assert time.perf_counter() - began < 2.0  # some ms; a worker that thinks for minutes loses its nodes


def test_a_password_with_slashes_ends_at_the_last_at() -> None:
    assert Redactor().text("see fs://u:a/b@c@host:8021 and fs://:x/y@h, not fs://host") == (
        "see fs://u:***@host:8021 and fs://:***@h, not fs://host"
    )
