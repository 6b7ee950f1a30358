from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.errors import EslUrlError
from bridge.esl import commands
from bridge.esl.url import EslUrl


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("fs://:ClueCon@127.0.0.1", ("fs", "127.0.0.1", 8021, None, "ClueCon", "")),
        ("fs://:ClueCon@127.0.0.1:8022", ("fs", "127.0.0.1", 8022, None, "ClueCon", "")),
        ("fs://:ClueCon@fs1.example.org/", ("fs", "fs1.example.org", 8021, None, "ClueCon", "")),
        ("fs://user:pw@host", ("fs", "host", 8021, "user", "pw", "")),
        ("fs://user@domain:pw@host:1", ("fs", "host", 1, "user@domain", "pw", "")),
        ("fs://user%40domain:pw@host", ("fs", "host", 8021, "user@domain", "pw", "")),
        ("fs://:p%40s:s%2Fw%3A%25@host", ("fs", "host", 8021, None, "p@s:s/w:%", "")),
        ("fs://:a:b@host", ("fs", "host", 8021, None, "a:b", "")),
        ("fs://:a@b@host", None),
        ("fs://:with space@host", ("fs", "host", 8021, None, "with space", "")),
        ("fs://:pw@[::1]", ("fs", "::1", 8021, None, "pw", "")),
        ("fs://:pw@[2001:db8::1]:8023", ("fs", "2001:db8::1", 8023, None, "pw", "")),
        ("fs://:pw@[fe80::1%25eth0]:8023", ("fs", "fe80::1%eth0", 8023, None, "pw", "")),
        ("fs+tls://:pw@host:8443", ("fs+tls", "host", 8443, None, "pw", "")),
        ("fs+unix://:pw@/run/fs.sock", ("fs+unix", "", 0, None, "pw", "/run/fs.sock")),
        ("fs+unix://u@d:pw@/run/a%20b.sock", ("fs+unix", "", 0, "u@d", "pw", "/run/a b.sock")),
        ("FS://:pw@Host_1", ("fs", "Host_1", 8021, None, "pw", "")),
        ("  fs://:pw@host\n", ("fs", "host", 8021, None, "pw", "")),
    ],
)
def test_parse(text, expected):
    if expected is None:
        expected = ("fs", "host", 8021, None, "a@b", "")
    url = EslUrl.parse(text)
    assert (url.scheme, url.host, url.port, url.username, url.password, url.path) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "fs://",
        "http://:S3cret@host",
        "S3cret@host",
        "fs:/:S3cret@host",
        "fs://host",
        "fs://S3cret@host",
        "fs://:@host",
        "fs://user:@host",
        "fs://:S3cret@",
        "fs://:S3cret@:8021",
        "fs://:S3cret@host:",
        "fs://:S3cret@host:0",
        "fs://:S3cret@host:65536",
        "fs://:S3cret@host:٣",
        "fs://:S3cret@host:80:21",
        "fs://:S3cret@host/path",
        "fs://:S3cret@ho st",
        "fs://:S3cret@::1",
        "fs://:S3cret@[::1",
        "fs://:S3cret@[::1]8021",
        "fs://:S3cret@[host]",
        "fs://:S3cret%0A@host",
        "fs://:S3cret%00@host",
        "fs://us%0Aer:S3cret@host",
        "fs://us%3Aer:S3cret@host",
        "fs://us%20er:S3cret@host",
        "fs://us er:S3cret@host",
        "fs://:%20@host",
        "fs://:S3cret%FF@host",
        "fs+unix://:S3cret@host",
        "fs+unix://:S3cret@",
        "fs://:S3cret@host?x=1",
    ],
)
def test_refused_without_telling_the_password(text):
    with pytest.raises(EslUrlError) as caught:
        EslUrl.parse(text)
    assert "S3cret" not in str(caught.value)
    assert "S3cret" not in repr(caught.value)


def test_the_password_is_shown_nowhere():
    url = EslUrl.parse("fs://user@domain:S3cret@host:8022")
    assert url.redacted == str(url) == "fs://user@domain:***@host:8022"
    assert "S3cret" not in repr(url)
    assert EslUrl.parse("fs://:S3cret@[::1]").redacted == "fs://:***@[::1]:8021"
    assert EslUrl.parse("fs+unix://:S3cret@/run/x").redacted == "fs+unix://:***@/run/x"


@given(st.text())
def test_any_text_parses_or_is_refused(text):
    for url in (text, f"fs://{text}", f"fs://:{text}@host", f"fs://:pw@{text}"):
        with contextlib.suppress(EslUrlError):
            EslUrl.parse(url)


@given(st.text(st.characters(exclude_categories=["Cs"])), st.text(st.characters(exclude_categories=["Cs"])))
def test_what_parses_can_log_in(username, password):
    """Else it would fail at each connection, and no check of the configuration would have told."""
    from urllib.parse import quote

    with contextlib.suppress(EslUrlError):
        url = EslUrl.parse(f"fs://{quote(username, safe='@')}:{quote(password, safe='')}@host")
        assert commands.userauth(url.username, url.password) if url.username else commands.auth(url.password)


@given(st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"]), min_size=1).filter(str.strip))
def test_any_password_can_be_percent_encoded(password):
    from urllib.parse import quote

    assert EslUrl.parse(f"fs://:{quote(password, safe='')}@host").password == password
