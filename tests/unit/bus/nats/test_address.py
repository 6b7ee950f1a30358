from __future__ import annotations

from pathlib import Path

import pytest

from bridge.bus.nats.address import NatsAddress, NatsFiles, NatsServer
from bridge.errors import BusRefused, ConfigError


def test_one_server() -> None:
    address = NatsAddress.parse("nats://127.0.0.1")
    assert address.servers == (NatsServer("nats://127.0.0.1:4222"),)
    assert address.redacted == "nats://127.0.0.1:4222"
    assert not address.tls


def test_several_servers_share_what_the_first_says() -> None:
    address = NatsAddress.parse("tls://bob:p%40ss%3A@h1:5000, h2,tls://[::1]:6000,eve:x@h4")
    assert [server.address for server in address.servers] == [
        "tls://h1:5000",
        "tls://h2:4222",
        "tls://[::1]:6000",
        "tls://h4:4222",
    ]
    assert [(server.user, server.password) for server in address.servers] == [("bob", "p@ss:")] * 3 + [("eve", "x")]
    assert address.tls
    assert address.redacted == "tls://bob:***@h1:5000,h2:4222,[::1]:6000,h4:4222"
    assert "p@ss" not in repr(address)


def test_a_token_is_user_info_without_a_colon() -> None:
    address = NatsAddress.parse("nats://s3cret@h1")
    assert address.servers[0].token == "s3cret"
    assert address.redacted == "nats://***@h1:4222"
    assert "s3cret" not in repr(address)


def test_arguments_stand_in() -> None:
    server = NatsAddress.parse("nats://h1", user="bob", password="pw").servers[0]
    assert (server.user, server.password) == ("bob", "pw")


@pytest.mark.parametrize(
    "url",
    [
        "http://h",
        "nats://",
        "nats://u:secret@",
        "nats://h:port",
        "nats://h:99999",
        "nats://h/path",
        "nats://h1,tls://h2",
    ],
)
def test_faults(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        NatsAddress.parse(url)
    assert "secret" not in str(caught.value)


def test_files_are_looked_at_before_the_driver_reads_them_for_ever(tmp_path: Path) -> None:
    file = tmp_path / "worker.creds"
    for files in (NatsFiles(credentials=str(file)), NatsFiles(nkey=str(file))):
        with pytest.raises(BusRefused, match="No such file"):
            files.check()
    file.write_text("no such thing")
    for files in (NatsFiles(credentials=str(file)), NatsFiles(nkey=str(file))):
        with pytest.raises(BusRefused, match=r"worker\.creds: not an? "):
            files.check()
    with pytest.raises(BusRefused, match="TLS files"):
        NatsFiles(tls_ca=str(file)).tls_context()
