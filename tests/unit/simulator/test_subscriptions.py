from __future__ import annotations

import pytest

from bridge.simulator.events import EVENT_NAMES, Stamp, event_named
from bridge.simulator.subscriptions import Subscription

STAMP = Stamp("core", "host", "switch", "192.0.2.1", "::1")


def subscription(*known: str) -> Subscription:
    return Subscription(lambda: set(known))


def wants(chosen: Subscription, name: str, subclass: str | None = None, **headers: str) -> bool:
    pairs = [(key.replace("_", "-"), value) for key, value in headers.items()]
    return chosen.wants(STAMP.event(name, pairs, subclass=subclass))


def allow_all(name: str, subclass: bool) -> bool:
    return True


def add(chosen: Subscription, words: str) -> str:
    return chosen.add(words.split(), allow_all)


def test_names_in_any_case_and_with_a_prefix() -> None:
    assert event_named("heartbeat") == "HEARTBEAT"
    assert event_named("SWITCH_EVENT_HEARTBEAT") == "HEARTBEAT"
    assert event_named("NOSUCH") is None
    assert len(EVENT_NAMES) > 90


def test_unknown_names_are_skipped_and_alone_an_error() -> None:
    chosen = subscription()
    assert add(chosen, "json NOSUCH heartbeat") == "+OK event listener enabled json"
    assert wants(chosen, "HEARTBEAT")
    assert add(chosen, "xml NOSUCH") == "-ERR no keywords supplied"
    assert chosen.format == "xml"  # the format word has taken effect all the same


def test_after_custom_every_word_is_a_subclass() -> None:
    chosen = subscription()
    add(chosen, "plain CUSTOM my::a CHANNEL_ANSWER")
    assert wants(chosen, "CUSTOM", "my::a")
    assert wants(chosen, "CUSTOM")  # one without a subclass
    assert not wants(chosen, "CUSTOM", "MY::A")
    assert not wants(chosen, "CHANNEL_ANSWER")


def test_subscriptions_add_up() -> None:
    chosen = subscription()
    add(chosen, "plain HEARTBEAT")
    add(chosen, "json API")
    assert wants(chosen, "HEARTBEAT")
    assert wants(chosen, "API")
    assert chosen.format == "json"


def test_all_has_every_subclass_until_a_nixevent() -> None:
    chosen = subscription("known::one")
    add(chosen, "json ALL")
    assert wants(chosen, "CUSTOM", "new::one")
    assert chosen.remove(["HEARTBEAT"]) == "+OK events nixed"
    assert not wants(chosen, "HEARTBEAT")
    assert wants(chosen, "API")
    assert wants(chosen, "CUSTOM", "known::one")
    assert not wants(chosen, "CUSTOM", "new::one")


def test_nixevent() -> None:
    chosen = subscription()
    add(chosen, "plain HEARTBEAT CUSTOM my::a my::b")
    assert chosen.remove([]) == "-ERR no keywords supplied"
    assert chosen.remove(["NOSUCH"]) == "-ERR no keywords supplied"
    assert chosen.remove(["CUSTOM", "my::a"]) == "+OK events nixed"
    assert not wants(chosen, "CUSTOM", "my::a")
    assert wants(chosen, "CUSTOM", "my::b")
    assert chosen.remove(["all"]) == "+OK events nixed"
    assert not wants(chosen, "HEARTBEAT")


def test_noevents() -> None:
    chosen = subscription()
    assert chosen.clear() == "-ERR not listening for events"
    add(chosen, "plain ALL")
    assert chosen.clear() == "+OK no longer listening for events"
    assert not wants(chosen, "HEARTBEAT")


def test_a_refusal_in_mid_list_leaves_the_earlier_names() -> None:
    chosen = subscription()
    answer = chosen.add(["json", "HEARTBEAT", "API", "DTMF"], lambda name, subclass: name != "API")
    assert answer == "-ERR permission denied"
    assert wants(chosen, "HEARTBEAT")
    assert not wants(chosen, "DTMF")


@pytest.mark.parametrize(
    ("filters", "name", "passes"),
    [
        ([], "HEARTBEAT", True),
        (["Event-Name HEARTBEAT"], "HEARTBEAT", True),
        (["event-name heartbeat"], "HEARTBEAT", True),
        (["Event-Name HEARTBEAT"], "API", False),
        (["Event-Name HEARTBEAT", "Event-Name API"], "API", True),
        (["Event-Name -HEARTBEAT"], "API", False),  # only negative ones: nothing ever
        (["X yes", "Event-Name -HEARTBEAT"], "HEARTBEAT", False),
        (["X yes", "Event-Name -HEARTBEAT"], "API", True),
        (["X /^y/"], "API", True),
        (["X /^Y/"], "API", False),
        (["X /^Y/i"], "API", True),
        (["X +yes"], "API", True),
        (["X /(/"], "API", False),
        (["Unique-ID abc"], "API", False),
    ],
)
def test_filters(filters: list[str], name: str, passes: bool) -> None:
    chosen = subscription()
    add(chosen, "json ALL")
    for line in filters:
        assert chosen.filter(line).startswith("+OK filter added. [")
    assert wants(chosen, name, X="yes") is passes


def test_filter_replies() -> None:
    chosen = subscription()
    assert chosen.filter("Event-Name") == "-ERR invalid syntax"
    assert chosen.filter("add Event-Name") == "-ERR invalid syntax"
    assert chosen.filter("add Unique-ID abc") == "+OK filter added. [Unique-ID]=[abc]"
    assert chosen.filter("Unique-ID def") == "+OK filter added. [Unique-ID]=[def]"
    assert chosen.filter("delete Unique-ID abc") == "+OK filter deleted. [Unique-ID][abc]"
    assert [filter.value for filter in chosen.filters] == ["def"]
    assert chosen.filter("delete Unique-ID") == "+OK filter deleted. [Unique-ID][]"
    assert chosen.filter("delete all") == "+OK filter deleted. [all][]"
    assert chosen.filters == []


def test_myevents_wants_only_its_call() -> None:
    chosen = subscription()
    chosen.follow("u1")
    assert chosen.wants(STAMP.event("DTMF", [("Unique-ID", "u1")]))
    assert not chosen.wants(STAMP.event("DTMF", [("Unique-ID", "u2")]))
    assert not chosen.wants(STAMP.event("HEARTBEAT"))
