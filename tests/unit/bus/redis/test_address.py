"""The URL forms of Redis."""

from __future__ import annotations

import pytest

from bridge.bus.redis.address import Host, RedisUrl
from bridge.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "kind", "tls", "hosts", "login", "db", "service"),
    [
        ("redis://h", "server", False, [Host("h", 6379)], ("", ""), 0, ""),
        ("redis://h:1/3", "server", False, [Host("h", 1)], ("", ""), 3, ""),
        ("redis://h/?db=4", "server", False, [Host("h", 6379)], ("", ""), 4, ""),
        ("REDISS://:p@h", "server", True, [Host("h", 6379)], ("", "p"), 0, ""),
        ("redis://u:p%40%2F%3A@[::1]:7/0", "server", False, [Host("::1", 7)], ("u", "p@/:"), 0, ""),
        ("redis://u:a@b:c@h", "server", False, [Host("h", 6379)], ("u", "a@b:c"), 0, ""),
        ("unix:///run/v.sock", "unix", False, [Host(path="/run/v.sock")], ("", ""), 0, ""),
        ("unix://:p@/run/a%20b@c.sock?db=2", "unix", False, [Host(path="/run/a b@c.sock")], ("", "p"), 2, ""),
        ("redis+cluster://a,b:1,[fe80::1]:2", "cluster", False, [Host("a", 6379), Host("b", 1), Host("fe80::1", 2)],
         ("", ""), 0, ""),
        ("rediss+cluster://u:p@a", "cluster", True, [Host("a", 6379)], ("u", "p"), 0, ""),
        ("redis+sentinel://u:p@a:1,b/main/5", "sentinel", False, [Host("a", 1), Host("b", 26379)],
         ("u", "p"), 5, "main"),
        ("rediss+sentinel://a/main", "sentinel", True, [Host("a", 26379)], ("", ""), 0, "main"),
    ],
)  # fmt: skip
def test_forms(
    text: str, kind: str, tls: bool, hosts: list[Host], login: tuple[str, str], db: int, service: str
) -> None:
    url = RedisUrl.parse(text)
    assert (url.kind, url.tls, list(url.hosts), (url.username, url.password), url.db, url.service) == (
        kind, tls, hosts, login, db, service,
    )  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "h:6379", "http://h", "redis://", "redis://h:0", "redis://h:99999", "redis://h:x", "redis://a b",
        "redis://a,b", "redis://h/x", "redis://h/1/2", "redis://h?timeout=3", "redis://u:se/cret@h",
        "unix://", "unix://relative.sock", "redis+cluster://a/3", "redis+sentinel://a", "redis+sentinel://a//0",
        "redis+cluster://a,,b",
    ],
)  # fmt: skip
def test_what_is_not_an_url(text: str) -> None:
    with pytest.raises(ConfigError) as fault:
        RedisUrl.parse(text)
    assert "cret" not in str(fault.value)


def test_given_credentials_win() -> None:
    url = RedisUrl.parse("redis://a:b@h", username="u", password="p")
    assert (url.username, url.password) == ("u", "p")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("redis://u:secret@h:1/2", "redis://u:***@h:1/2"),
        ("redis://:secret@[::1]", "redis://:***@[::1]:6379"),
        ("redis://u@h", "redis://u@h:6379"),
        ("unix://:secret@/a.sock?db=1", "unix://:***@/a.sock?db=1"),
        ("redis+sentinel://:secret@a,b:2/main/0", "redis+sentinel://:***@a:26379,b:2/main/0"),
    ],
)
def test_secrets_are_not_shown(text: str, shown: str) -> None:
    url = RedisUrl.parse(text)
    assert url.redacted == shown
    assert "secret" not in repr(url)
