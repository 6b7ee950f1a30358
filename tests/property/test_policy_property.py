from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.messages.command import CommandRequest
from bridge.relay.policy import Policy
from bridge.relay.policy.acts import acts_of, plain_verb
from bridge.relay.policy.patterns import Act

POLICY = Policy()
STRICT = Policy(allow=["status"], deny=["default", "op:sendevent", "node:fs1 show*", "originate *intl*"])

# What makes a command line of a command line; each of them runs the inner one.
WRAPPERS: list[Callable[[str], str]] = [
    lambda line: f"bgapi {line}",
    lambda line: f"BGAPI  {line}",
    lambda line: f"bgapi uuid:1234 {line}",
    lambda line: f"expand {line}",
    lambda line: f"xml_wrap {line}",
    lambda line: f"xml_wrap encoded {line}",
    lambda line: f"sched_api +10 none {line}",
    lambda line: f"sched_api @10 none {line}&",
    lambda line: f"eval ${{{line.partition(' ')[0]}({line.partition(' ')[2]})}}",
    lambda line: f"eval ${{{line}}}",
    lambda line: f"originate {{x=1,api_on_answer={line}}}user/1000 &park",
    lambda line: f"originate user/1000 &set(api_hangup_hook={line})",
    lambda line: f"originate user/1000 &playback(${{{line}}})",
    lambda line: f"uuid_setvar 1234 api_hangup_hook {line}",
    lambda line: f"uuid_setvar_multi 1234 a=b;api_after_bridge={line}",
    lambda line: f"global_setvar api_reporting_hook={line}",
]
wrappings = st.lists(st.sampled_from(WRAPPERS), max_size=4)


def wrapped(line: str, wrappers: list[Callable[[str], str]]) -> CommandRequest:
    for wrap in wrappers:
        line = wrap(line)
    return CommandRequest(command=line)


@given(
    st.sampled_from(["system ls", "lua x.lua", "fsctl shutdown", "bg_system x", "perlrun y", "fsctl crash"]), wrappings
)
def test_no_wrapping_hides_a_dangerous_command(line: str, wrappers: list[Callable[[str], str]]) -> None:
    assert POLICY.check(wrapped(line, wrappers)) is not None


@given(st.sampled_from(["status", "show calls", "uuid_exists 1234", "fsctl sync_clock"]), wrappings)
def test_no_wrapping_makes_a_harmless_command_dangerous(line: str, wrappers: list[Callable[[str], str]]) -> None:
    assert POLICY.check(wrapped(line, wrappers)) is None


pieces = st.sampled_from(
    [*"${}()[]<>'\"\\&=,;:|% ", "system", "inline", "api_on_answer", "execute_on_x", "originate", "bgapi", "eval",
     "uuid:", "m:|:", "loopback/app=", "::", "%24%7B", "json", "{\"cmd\":", "chat api|", "sched_api",
     "uuid_broadcast", "x"]
)  # fmt: skip
lines = st.lists(pieces, max_size=20).map("".join) | st.text(max_size=60)


@given(
    lines, lines, st.sampled_from(["api", "bgapi", "execute", "hangup", "sendmsg", "sendevent"]), st.text(max_size=5)
)
def test_any_request_gets_a_verdict_and_the_same_one_twice(one: str, two: str, op: str, node: str) -> None:
    request = CommandRequest(
        op=op,
        command=one,
        uuid=two,
        app=two,
        arg=one,
        event=two,
        headers={"call-command": "execute", "execute-app-name": two, "execute-app-arg": one, "x": one},
        body=one,
    )
    for policy in (POLICY, STRICT):
        first = policy.check(request, node)
        assert policy.check(request, node) == first
        assert first is None or first.reason


@given(lines)
def test_whatever_surrounds_it_a_command_named_system_is_denied(rest: str) -> None:
    assert POLICY.check(CommandRequest(command=f"system {rest}")) is not None
    assert POLICY.check(CommandRequest(op="execute", uuid="u", app="system", arg=rest)) is not None


@given(lines)
def test_an_allow_list_lets_nothing_else_through(line: str) -> None:
    policy = Policy(allow=["status"], deny=[])
    if policy.check(CommandRequest(command=line)) is None:
        assert line.split()[0].strip("'\"\\").lower().translate(str.maketrans("", "", "'\"\\")) == "status"


WORDS = (
    "status show md5 uuid_kill system lua fsctl shutdown crash bgapi expand originate inline json sched_api "
    "uuid_broadcast mod_event_socket unload reload 1-2 user/1000 a.b +5 x,y m:n SYSTEM Fsctl op ' x=y ..."
)
words = st.sampled_from(["", *WORDS.split()])
FAMILIES = [
    Policy(),
    Policy(allow=["status", "show *calls*", "uuid_*", "md5"], deny=["default"]),
    Policy(deny=["default", "api:uuid_*", "op:bgapi show", "node:fs1 md5", "fs* crash"]),
]


@given(
    st.lists(words, min_size=1, max_size=6).map(" ".join),
    st.sampled_from(["api", "bgapi"]),
    st.sampled_from(["", "fs1"]),
)
def test_a_plain_line_is_judged_by_its_verb_as_if_it_was_read(line: str, op: str, node: str) -> None:
    request = CommandRequest(op=op, command=line)
    for policy in FAMILIES:
        short = policy.check(request, node), policy.verbs(request)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("bridge.relay.policy.rules.plain_verb", lambda line: "")
            assert (policy.check(request, node), policy.verbs(request)) == short


@given(st.lists(words, min_size=1, max_size=6).map(" ".join))
def test_the_verb_of_a_plain_line_is_all_that_it_does(line: str) -> None:
    verb = plain_verb(line)
    if verb:
        assert acts_of(CommandRequest(command=line)) == [Act("api", verb, line.lower())]
