from __future__ import annotations

from hashlib import sha256

import pytest

from bridge.messages.topics import (
    DEFAULT_TOPIC,
    NATS_REPLY_ADDRESSES,
    REDIS_REPLY_ADDRESSES,
    ReplyAddresses,
    TopicTemplate,
    check_node_name,
    escape_token,
    event_token,
    notice_topic,
    reply_address_fault,
    reply_subject_allowed,
    unescape_token,
)


@pytest.mark.parametrize(
    ("value", "token"),
    [
        ("CHANNEL_CREATE", "CHANNEL_CREATE"),
        ("CUSTOM:sofia::register", "CUSTOM:sofia::register"),
        ("", "-"),
        ("-", "%2D"),
        ("--", "--"),
        ("a.b", "a%2Eb"),
        ("a b", "a%20b"),
        ("*", "%2A"),
        (">", "%3E"),
        ("%41", "%2541"),
        ("~", "%7E"),
        ("é", "%C3%A9"),
        ("\x00\r\n", "%00%0D%0A"),
        (b"\xff", "%FF"),
        (b"", "-"),
        ("\ud800", "%ED%A0%80"),
        ("a\n", "a%0A"),
    ],
)
def test_a_token_escapes_every_byte_that_is_not_plain(value: str | bytes, token: str) -> None:
    assert escape_token(value) == token


@pytest.mark.parametrize("value", ["", "-", "a.b", "ü*>", "%41", "a" * 128, "\ud800", "x~y"])
def test_a_token_gives_its_value_back(value: str) -> None:
    assert unescape_token(escape_token(value)) == value


def test_bytes_that_are_not_utf8_come_back_repaired() -> None:
    assert unescape_token(escape_token(b"a\xff")) == "a\ufffd"


def test_a_token_of_128_bytes_is_whole_and_of_129_is_cut_with_its_hash() -> None:
    assert escape_token("a" * 128) == "a" * 128
    cut = escape_token("a" * 129)
    assert cut == "a" * 111 + "~" + sha256(b"a" * 129).hexdigest()[:16]
    assert len(cut) == 128


@pytest.mark.parametrize("lead", [0, 1, 2])
def test_a_cut_never_leaves_half_an_escape(lead: int) -> None:
    value = "a" * lead + "é" * 60
    head, _, digest = escape_token(value).partition("~")
    assert head.removeprefix("a" * lead).count("%") * 3 == len(head) - lead
    assert digest == sha256(value.encode()).hexdigest()[:16]


def test_values_that_differ_behind_the_cut_stay_apart() -> None:
    assert escape_token("a" * 200 + "b") != escape_token("a" * 200 + "c")


@pytest.mark.parametrize("token", ["", "a.b", "%4", "%zz", "%c3", "a b", "é", "a\n"])
def test_what_is_no_token_is_refused(token: str) -> None:
    with pytest.raises(ValueError, match="not an address token"):
        unescape_token(token)


def test_a_cut_token_has_lost_its_value() -> None:
    with pytest.raises(ValueError, match="cut"):
        unescape_token(escape_token("a" * 300))


@pytest.mark.parametrize(
    ("name", "subclass", "token"),
    [
        ("CHANNEL_ANSWER", "", "CHANNEL_ANSWER"),
        ("CUSTOM", "sofia::register", "CUSTOM:sofia::register"),
        ("CUSTOM", "", "CUSTOM"),
        ("CUSTOM", "my.sub", "CUSTOM:my%2Esub"),
        ("MESSAGE", "ignored", "MESSAGE"),
        ("", "", "-"),
    ],
)
def test_an_event_has_one_token(name: str, subclass: str, token: str) -> None:
    assert event_token(name, subclass) == token


def test_the_cache_of_event_tokens_is_bounded() -> None:
    from bridge.messages import topics

    for number in range(10_000):
        event_token("CUSTOM", f"flood::{number}")
    assert len(topics._event_tokens) <= topics._CACHE_LIMIT
    assert event_token("CUSTOM", "flood::1") == "CUSTOM:flood::1"


def test_the_default_template() -> None:
    template = TopicTemplate(DEFAULT_TOPIC)
    assert template.render(name="CUSTOM", subclass="sofia::register", node="fs1") == "fs.events.CUSTOM:sofia::register"
    assert template.placeholders == ("event",)
    assert template.per_topic
    assert not template.needs_headers
    assert template.literal_prefix == "fs.events."
    assert template.pattern == "fs.events.*"


def test_a_template_with_every_placeholder() -> None:
    template = TopicTemplate("pbx.{node}.{uuid}.{name}.{subclass}.{event}.{variable_x.y}")
    asked: list[str] = []

    def header(name: str) -> str | None:
        asked.append(name)
        return "a.b"

    address = template.render(name="CUSTOM", subclass="a::b", node="fs1", uuid="u-1", header=header)
    assert address == "pbx.fs1.u-1.CUSTOM.a::b.CUSTOM:a::b.a%2Eb"
    assert asked == ["variable_x.y"]
    assert template.needs_headers
    assert not template.per_topic
    assert template.literal_prefix == "pbx."
    assert template.pattern == "pbx.*.*.*.*.*.*"


def test_missing_values_are_a_dash() -> None:
    template = TopicTemplate("calls.{uuid}.{Caller-Destination-Number}")
    assert template.render(name="HEARTBEAT", header=lambda name: None) == "calls.-.-"
    assert template.render(name="HEARTBEAT") == "calls.-.-"


def test_a_token_may_mix_literals_and_placeholders() -> None:
    template = TopicTemplate("fs.x-{node}_{name}.tail")
    assert template.render(name="API", node="fs1") == "fs.x-fs1_API.tail"
    assert template.literal_prefix == "fs."
    assert template.pattern == "fs.*.tail"


def test_a_mixed_token_is_held_to_128_bytes_too() -> None:
    address = TopicTemplate("fs.{name}{uuid}").render(name="a" * 100, uuid="b" * 100)
    token = address.removeprefix("fs.")
    assert len(token) == 128
    assert token[111] == "~"


def test_a_template_without_placeholder_is_one_topic() -> None:
    template = TopicTemplate("pbx.all")
    assert template.render(name="API") == "pbx.all"
    assert template.literal_prefix == template.pattern == "pbx.all"
    assert template.per_topic


def test_an_address_over_512_bytes_is_cut_with_its_hash() -> None:
    template = TopicTemplate("pbx.{a}.{b}.{c}.{d}.{e}")
    address = template.render(name="X", header=lambda name: name * 128)
    whole = "pbx." + ".".join(name * 128 for name in "abcde")
    assert address == whole[:495] + "~" + sha256(whole.encode()).hexdigest()[:16]
    assert len(address) == 512


def test_topics_of_a_flood_of_subclasses_do_not_pile_up() -> None:
    template = TopicTemplate(DEFAULT_TOPIC)
    for number in range(10_000):
        template.render(name="CUSTOM", subclass=f"flood::{number}")
    assert len(template._cache) <= 4096


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "empty"),
        ("fs..{event}", "empty token"),
        ("fs.{event}.", "empty token"),
        (".fs", "empty token"),
        ("fs.*", "wildcard"),
        ("fs.{event}.>", "wildcard"),
        ("fs .{event}", "space"),
        ("fs.{event", "unbalanced"),
        ("fs.event}", "unbalanced"),
        ("fs.{{event}}", "unbalanced"),
        ("fs.{}", "empty placeholder"),
        ("fs.{event!r}", "neither a known placeholder"),
        ("fs.{event:>10}", "neither a known placeholder"),
        ("fs.{a b}", "neither a known placeholder"),
        ("fs.{Event}", "write {event}"),
        ("{node}.events", "literal"),
        ("$JS.{event}", "holds '\\$'"),
        ("fs/events/{event}", "holds '/'"),
        ("fs.é", "holds"),
        ("fs.bridge.{event}", "fs.bridge"),
        ("esl.cmd.{node}", "esl.cmd"),
        ("esl.dead", "esl.dead"),
        ("a" * 300 + ".{event}", "too long"),
    ],
)
def test_a_bad_template_is_refused_by_its_fault(text: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        TopicTemplate(text)


def test_a_literal_that_only_looks_reserved_is_fine() -> None:
    assert TopicTemplate("fs.bridges.{event}").literal_prefix == "fs.bridges."


@pytest.mark.parametrize("name", ["fs1", "A_b-9", "a" * 64])
def test_node_names(name: str) -> None:
    assert check_node_name(name) == name


@pytest.mark.parametrize("name", ["", "a" * 65, "fs.1", "fs 1", "fs1\n", "é", "any", "all", "call:x"])
def test_bad_node_names(name: str) -> None:
    with pytest.raises(ValueError, match="node"):
        check_node_name(name)


def test_notice_topics() -> None:
    assert notice_topic("gap") == "fs.bridge.gap"


@pytest.mark.parametrize("address", ["_INBOX.abc.def", "esl.reply.x", "esl.reply.a.b"])
def test_the_usual_nats_reply_addresses_are_allowed(address: str) -> None:
    assert ReplyAddresses(NATS_REPLY_ADDRESSES).allows(address)


@pytest.mark.parametrize(
    "address",
    [
        "",
        "_INBOX",
        "_INBOX.",
        "esl.replyx.a",
        "my.topic",
        "fs.events.X",
        "_INBOX.*",
        "_INBOX.>",
        "_INBOX.a b",
        "_INBOX.a\n",
    ],
)
def test_other_nats_reply_addresses_are_not(address: str) -> None:
    assert not ReplyAddresses(NATS_REPLY_ADDRESSES).allows(address)


def test_a_star_is_one_token_in_a_subject_and_anything_in_a_glob() -> None:
    assert not ReplyAddresses(["r.*"]).allows("r.a.b")
    assert ReplyAddresses(["r.*"], glob=True).allows("r.a.b")
    assert ReplyAddresses(["r.*.x"]).allows("r.a.x")


def test_redis_reply_addresses() -> None:
    addresses = ReplyAddresses(REDIS_REPLY_ADDRESSES, glob=True)
    assert addresses.allows("esl.reply.1")
    assert addresses.allows("pubsub:esl.reply.1")
    assert not addresses.allows("pubsub:fs.events.X")
    assert not addresses.allows("esl.cmd")


@pytest.mark.parametrize(
    "address", ["fs.events.X", "$SYS.x", "esl.cmd", "esl.cmd.fs1", "esl.queue", "esl.dead", "pubsub:fs.x"]
)
def test_what_belongs_to_the_bridge_or_broker_is_never_a_reply_address(address: str) -> None:
    assert reply_address_fault(address)
    assert not ReplyAddresses(["*"], glob=True).allows(address)


def test_a_reply_address_has_at_most_256_bytes() -> None:
    assert not reply_address_fault("a" * 256)
    assert reply_address_fault("a" * 257)
    assert reply_address_fault("é" * 129)


def test_no_patterns_allow_nothing() -> None:
    assert not ReplyAddresses([]).allows("esl.reply.x")


@pytest.mark.parametrize("pattern", ["", "a..b", ">.a", "a.>b"])
def test_bad_subject_patterns(pattern: str) -> None:
    with pytest.raises(ValueError, match="pattern"):
        ReplyAddresses([pattern])


def test_reply_subjects_of_nats_messages() -> None:
    assert reply_subject_allowed("_INBOX.x")
    assert reply_subject_allowed("my.own.subject")
    assert reply_subject_allowed("my.$own/é..subject")
    assert reply_subject_allowed("esl.dead")  # spoils nothing but itself
    unpublishable = ("a.*", ">", "a b", "a\0b", "\udcff", "x" * 1_025)
    for subject in ("", "$JS.ACK.x", "fs.events.A", "esl.cmd", "esl.queue.fs1", *unpublishable):
        assert not reply_subject_allowed(subject)
