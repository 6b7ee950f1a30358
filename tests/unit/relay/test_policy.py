from __future__ import annotations

import json
import time

import pytest

from bridge.messages.command import CommandRequest
from bridge.relay.policy import DEFAULT_DENY, Policy

UUID = "7f4de4bc-17d7-11dd-b7a0-db4edd065621"
DEFAULT = Policy()


def api(command: str) -> CommandRequest:
    return CommandRequest(command=command)


def execute(app: str, arg: str = "") -> CommandRequest:
    return CommandRequest(op="execute", uuid=UUID, app=app, arg=arg)


@pytest.mark.parametrize(
    "command",
    [
        "status",
        "show channels as json",
        f"uuid_kill {UUID}",
        "originate user/1000 &park",
        "originate {origination_caller_id_name='O\\'Brien',x=1}user/1000 &playback(/tmp/a b.wav)",
        "originate {ignore_early_media=true}[leg_timeout=5]user/1000,[x=(y)]user/1001 &bridge({a=b}user/2)",
        "originate user/1000 'answer,playback:/tmp/x.wav,hangup' inline",
        "originate user/1000 9196 XML default",
        f"uuid_transfer {UUID} -both 1000 XML default",
        f"uuid_broadcast {UUID} playback::/tmp/x.wav both",
        f"uuid_broadcast {UUID} /tmp/system.wav",
        f"uuid_setvar {UUID} my_system system",
        f"uuid_getvar {UUID} api_hangup_hook",
        "eval ${hostname}",
        "eval $${domain} ${strftime(%Y-%m-%d)}",
        "expand status ${local_ip_v4}",
        "bgapi originate user/1000 &park",
        "sched_api +10 none status",
        "xml_wrap encoded show calls",
        "fsctl sync_clock",
        "fsctl pause inbound",
        "reload mod_sofia",
        f"uuid_chat {UUID} it's the system, you know",
        'json {"command":"status","data":{}}',
        "luacheck",
        "show system",
        "hupall NORMAL_CLEARING system lua",
        f"uuid_chat {UUID} " + "a" * 100_000,
    ],
)
def test_everyday_commands_pass(command: str) -> None:
    assert DEFAULT.check(api(command)) is None


@pytest.mark.parametrize(
    "command",
    [
        "system ls",
        "SYSTEM ls",
        "  system ls",
        "system",
        "system\tls",
        "bg_system ls",
        "spawn ls",
        "bg_spawn ls",
        "spawn_stream ls",
        "fsctl shutdown",
        "fsctl  shutdown elegant restart",
        "FSCTL ShutDown now",
        "fsctl 'shutdown'",
        'fsctl "shut\\down" now',
        "fsctl crash",
        "shutdown",
        "lua x.lua",
        "luarun ~freeswitch.API():execute('system')",
        "js x.js",
        "jsrun x.js",
        "python x",
        "pyrun x",
        "perl x.pl",
        "perlrun x.pl",
        "java x",
        "managed x",
        "managedrun x",
        # wrappers
        "bgapi system ls",
        "bgapi uuid:abc system ls",
        "expand system ls",
        "expand uuid:abc system ls",
        "xml_wrap system ls",
        "xml_wrap encoded system ls",
        "sched_api +10 none system ls",
        "sched_api @10 none system ls&",
        "sched_api +10 none bgapi expand xml_wrap system ls",
        'json {"command":"fsapi","data":{"cmd":"system","arg":"ls"}}',
        'json {"a":[{"cmd":"fsctl","arg":"shutdown now"}]}',
        "json {not json",
        "chat api|me|system ls|x",
        # expansions
        "eval ${system(ls)}",
        "eval ${system ls}",
        "eval x${ system(ls)}",
        "eval ${cond(${system(ls)} == 1 ? a : b)}",
        "eval ${a${system(ls)}}",
        "eval ${expand(system ls)}",
        "eval ${fsctl(shutdown)}",
        "expand echo ${system(ls)}",
        "eval ${${x}(ls)}",
        "expand eval ${url_decode(%24%7Bsystem(ls)%7D)}",
        "originate {x=${system(ls)}}user/1000 &park",
        # applications
        "originate user/1000 &system(ls)",
        "originate user/1000 & system(ls)",
        "originate user/1000 &SYSTEM(ls)",
        "originate user/1000 '&system(ls -la)'",
        "originate user/1000 &bgsystem(ls)",
        "originate user/1000 &lua(x.lua)",
        "originate user/1000 &playback(${system(ls)})",
        "originate user/1000 &set(x=${system ls})",
        "originate user/1000 &set(api_hangup_hook=system ls)",
        "originate user/1000 &${app}(x)",
        "originate user/1000 'set:x=1,system:ls' inline",
        "originate user/1000 'm:|:set:x=1,2|system:ls' INLINE",
        "originate user/1000 system:ls inline",
        "originate loopback/app=system:ls &park",
        "originate {x=1}loopback/app=lua:x.lua &park",
        "originate loopback/system:ls/default/inline &park",
        f"uuid_transfer {UUID} system:ls inline",
        f"uuid_transfer {UUID} -both 'answer,system:ls' inline",
        f"sched_transfer +5 {UUID} system:ls inline",
        f"uuid_dual_transfer {UUID} system:ls/inline park/inline",
        f"uuid_broadcast {UUID} system::ls",
        f"uuid_broadcast {UUID} 'system::ls -la' both",
        f"uuid_broadcast {UUID} system!NORMAL_CLEARING::ls",
        f"sched_broadcast +5 {UUID} lua::x.lua",
        f"tone_detect {UUID} key 1000 r 0 system ls",
        # variables that run something
        "originate {api_hangup_hook=system ls}user/1000 &park",
        "originate {api_hangup_hook='system ls',x=1}user/1000 &park",
        "originate {^^;api_on_answer=system ls;x=1}user/1000 &park",
        "originate {nolocal:api_on_answer=system ls}user/1000 &park",
        "originate {_nolocal_api_on_answer=system ls}user/1000 &park",
        "originate [api_on_ring=bgapi system ls]user/1000 &park",
        "originate <api_on_media=lua x.lua>user/1000 &park",
        "originate {API_ON_ANSWER=system::ls}user/1000 &park",
        "originate {api_on_answer = system ls}user/1000 &park",
        "originate {execute_on_answer=system ls}user/1000 &park",
        "originate {execute_on_answer=system::ls}user/1000 &park",
        "originate {execute_on_media_2='lua x.lua'}user/1000 &park",
        "originate {exec_after_bridge_app=system}user/1000 &park",
        "originate {record_post_process_exec_api=system:ls}user/1000 &park",
        "originate {api_on_answer=fsctl shutdown}user/1000 &park",
        "originate {api_on_answer=${x} ls}user/1000 &park",
        f"uuid_setvar {UUID} api_hangup_hook system ls",
        f"uuid_setvar {UUID} nolocal:execute_on_answer lua x.lua",
        f"uuid_setvar_multi {UUID} a=b;api_hangup_hook=system ls;c=d",
        "global_setvar api_hangup_hook=system ls",
        # files that are commands
        "originate user/1000 &playback(shell_stream:///bin/sh)",
        f"uuid_broadcast {UUID} SHELL_STREAM:///bin/sh",
        # unload trap
        "unload mod_event_socket",
        "reload mod_event_socket",
        "bgapi reload -f mod_event_socket",
        "log mod_event_socket was not RELOADED",
    ],
)
def test_dangerous_commands_are_denied_through_every_wrapper(command: str) -> None:
    assert DEFAULT.check(api(command)) is not None
    assert DEFAULT.check(CommandRequest(op="bgapi", command=command)) is not None


@pytest.mark.parametrize(
    "command",
    [
        "originate {x=1user/1000 &park",
        "originate {x='1}user/1000 &park",
        "originate {x=1]}user/1000 &park",
        "originate user/1000 &playback(x",
        "originate user/1000 'answer,park inline",
        "eval ${hostname",
        "eval ${cond(1 == 1 ? ${x : y)}",
        "expand " * 40 + "status",
        "originate user/1000 &set(" + "${a(" * 40,
        "bgapi originate " + "x" * 70_000,
        "eval " + "".join(f"${{a({number})}}" for number in range(100)),
    ],
)
def test_what_cannot_be_understood_is_denied_while_a_rule_looks_inside(command: str) -> None:
    denial = DEFAULT.check(api(command))
    assert denial is not None
    assert "cannot understand" in denial.reason
    assert Policy(allow=["*"], deny=[]).check(api(command)) is not None
    assert Policy(deny=[]).check(api(command)) is None
    assert Policy(deny=["op:sendevent", "text:*secret*"]).check(api(command)) is None


@pytest.mark.parametrize(
    ("app", "arg"),
    [
        ("system", "ls"),
        ("bgsystem", "ls"),
        ("lua", "x.lua"),
        ("SYSTEM", "ls"),
        ("set", "x=${system(ls)}"),
        ("eval", "${system(ls)}"),
        ("export", "nolocal:api_on_answer=system ls"),
        ("set", "api_hangup_hook=lua x.lua"),
        ("push", "execute_on_answer,system ls"),
        ("bridge", "{api_on_answer=system ls}user/1000"),
        ("bridge", "loopback/app=system:ls"),
        ("execute_extension", "system:ls inline"),
        ("transfer", "'set:x=1,lua:x' inline"),
        ("bind_meta_app", "1 a s system::ls"),
        ("bind_digit_action", "realm,1,exec:system,ls"),
        ("bind_digit_action", "realm,1,exec[x]:lua,ls"),
        ("bind_digit_action", "realm,1,api:system,ls"),
        ("limit_execute", "hash realm id 5 system ls"),
        ("tone_detect", "key 1000 r 0 system ls"),
        ("sched_broadcast", f"+5 {UUID} system::ls"),
        ("playback", "shell_stream:///bin/sh"),
        ("set", "mod_event_socket=unload"),
    ],
)
def test_applications_are_looked_into(app: str, arg: str) -> None:
    assert DEFAULT.check(execute(app, arg)) is not None
    by_message = CommandRequest(
        op="sendmsg",
        uuid=UUID,
        headers={"Call-Command": "execute", "Execute-App-Name": app, "execute-app-arg": arg},
    )
    assert DEFAULT.check(by_message) is not None


@pytest.mark.parametrize(
    ("app", "arg"),
    [
        ("playback", "/tmp/x.wav"),
        ("set", "x=${hostname}"),
        ("bridge", "{origination_caller_id_number=1}user/1000"),
        ("bind_digit_action", "realm,1,exec:playback,/tmp/x.wav"),
        ("transfer", "1000 XML default"),
        ("limit_execute", "hash realm id 5 playback x"),
        ("speak", "it's the system speaking"),
    ],
)
def test_everyday_applications_pass(app: str, arg: str) -> None:
    assert DEFAULT.check(execute(app, arg)) is None


@pytest.mark.parametrize(
    "command",
    [
        # FreeSWITCH takes quotes away when it cuts a line
        "originate user/1000 &sys''tem(ls)",
        "originate user/1000 &'system(ls)'",
        "originate user/1000 '&log($''{system ls})'",
        "originate {x='a &b'}user/1000 &system(ls)",
        "originate {api_hang''up_hook='system ls'}user/1000 &park",
        "originate loopback/a''pp=system:ls &park",
        "originate user/1000 '&playback(shell_st''ream://ls)'",
        f"uuid_setvar {UUID} 'api_hangup_hook' 'system ls'",
        f"uuid_transfer {UUID} system:ls in''line",
        "chat a''pi|me|system|ls",
        # a text may bring its own delimiter
        "originate ^^;user/1000;&system(ls)",
        "originate ^^suser/1000s&\\sy\\stem(ls)",
        "originate {a=1,^^:api_hangup_hook:system ls}user/1000 &park",
        f"uuid_broadcast ^^;{UUID};system::ls",
        f"uuid_setvar ^^;{UUID};api_hangup_hook;system ls",
        f"uuid_transfer ^^;{UUID};system:ls;inline",
        f"uuid_transfer {UUID} '^^;answer;system:ls' inline",
        "fsctl ^^;shutdown;now",
        # dialplans come in lists and with arguments
        f"uuid_transfer {UUID} system:ls XML,inline",
        f"uuid_transfer {UUID} 1000 inline:system:ls",
        f"uuid_transfer {UUID} 1000 'inline:m:^:answer^system:ls'",
        f"uuid_transfer {UUID} '\\\\ssystem:ls' inline",
        "originate loopback/m:^:answer^system:ls/default/inline &park",
        "originate loopback/1000/default/inline:system:ls &park",
        # an index belongs to no name, and ARRAY:: to no value
        f"uuid_setvar {UUID} api_hangup_hook[0] system ls",
        f"uuid_setvar {UUID} api_hangup_hook ARRAY::status|:system ls",
        f"uuid_setvar {UUID} sip_execute_on_image system ls",
        "global_setvar api_hangup_hook[0[x=system ls",
        # FreeSWITCH's JSON takes the first of two keys, in any case
        'json {"command":"fsapi","data":{"cmd":"system","cmd":"status","arg":"ls"}}',
        'json {"command":"fsapi","data":{"CMD":"system","Arg":"ls"}}',
        'json {"command":"fsapi","data":{"cmd":"fsctl","arg":"shutdown","arg":"pause"}}',
        # what FreeSWITCH fills in before it runs
        "expand bgapi ${x} ls",
        "expand expand sys${x}tem ls",
        "expand fsctl shut${x}down",
        "expand fsctl ${x}",
        "eval ${fsctl(shut${x}down)}",
        "expand unload ${x}",
        "originate user/1000 &playback(shell_st${x}ream://ls)",
    ],
)
def test_nothing_hides_behind_how_freeswitch_reads_texts(command: str) -> None:
    assert DEFAULT.check(api(command)) is not None


@pytest.mark.parametrize(
    ("app", "arg"),
    [
        ("sched_broadcast", "+1 system::ls both"),
        ("sched_broadcast", '+1" system::ls "'),
        ("set", "api_hangup_hook,system ls"),
        ("set", "api_hangup_hook[0]=system ls"),
        ("export", "nolocal:api_hangup_hook,system ls"),
        ("bind_digit_action", "realm,1,EXEC:system,ls"),
        ("bind_digit_action", "exec:x,1,exec:system,ls"),
        ("bind_digit_action", "realm,1,exec[a[b]c]:system,ls"),
        ("bind_digit_action", "realm,1,ex''ec:system,ls"),
        ("bind_digit_action", "^^;realm;1;exec:system;ls"),
        ("limit_execute", "^^;hash;realm;id;5;system;ls"),
        ("limit_hash_execute", "realm id 5 system ls"),
        ("bridge_export", "api_hangup_hook,system ls"),
        ("limit_execute", 'hash realm id" 5 system ls "'),
        ("ARRAY::system", "ls"),
        ("limit_execute", "ARRAY::^^;hash;realm;id;5;system;ls"),
        ("playback", "shell_st''ream://ls"),
    ],
)
def test_nor_do_applications(app: str, arg: str) -> None:
    assert DEFAULT.check(execute(app, arg)) is not None


@pytest.mark.parametrize(
    "headers",
    [
        {"call-command": "", "Call-Command": "execute", "execute-app-name": "system"},
        {"call-command[0]": "execute", "execute-app-name": "system"},
        {"call-command": "execute", "execute-app-name[0]": "system"},
        {"call-command": "execute", "execute-app-name": "ARRAY::system"},
        {"call-command": "ARRAY::execute", "execute-app-name": "ARRAY::x|:system"},
        {"call-command": "execute", "execute-app-name": "set", "_body": "api_hangup_hook=system ls"},
        {"dest_proto": "", "Dest_Proto": "api", "to": "system"},
        {"dest_proto[0]": "api", "to": "system"},
        {"dest_proto": "ARRAY::api", "_body": "system ls"},
    ],
)
def test_headers_are_read_as_freeswitch_reads_them(headers: dict[str, str]) -> None:
    for op in ({"op": "sendmsg", "uuid": UUID}, {"op": "sendevent", "event": "CUSTOM"}):
        assert DEFAULT.check(CommandRequest(**op, headers=headers)) is not None


def test_an_allow_list_is_not_asked_for_what_only_a_wrong_reading_finds() -> None:
    policy = Policy(allow=["originate", "answer", "playback"], deny=[])
    for command in (
        "originate user/1 'answer,playback:/tmp/a b.wav' inline",
        "originate {^^:a=b:c=d}user/1 &playback(/x.wav)",
        "originate {x='a b',y=\"c\"}user/1 '&playback(/tmp/it''s.wav)'",
    ):
        assert policy.check(api(command)) is None
    assert policy.check(api("originate user/1 answer,hangup inline")) is not None


def test_limits_hold_for_what_cannot_be_understood() -> None:
    policy = Policy(deny=[])
    broken = "originate {x=(}user/1 &park"
    assert policy.check(api(broken)) is None
    assert "originate" in policy.verbs(api(broken))
    assert {"expand", "originate"} <= set(policy.verbs(api(f"expand {broken}")))


def test_computed_arguments_are_denied_only_where_a_rule_asks_for_them() -> None:
    assert DEFAULT.check(api("expand originate {x=${y}}user/1 &park")) is None
    assert DEFAULT.check(api("expand fsctl pause")) is None
    policy = Policy(deny=["originate *premium*"])
    assert policy.check(api("originate {x=${y}}user/1 &park")) is None
    assert policy.check(api("expand originate user/${x} &park")) is not None


@pytest.mark.parametrize(
    "text", ["&" * 60_000, "x &" * 20_000, "inline:" * 9_000, "a/inline:" * 7_000, "^^;^^,^^:^^|" + "a;b,c:d|" * 8_000]
)
def test_what_would_take_long_to_read_is_not_read_to_its_end(text: str) -> None:
    began = time.perf_counter()
    DEFAULT.check(api(f"eval {text}"))
    DEFAULT.check(api("uuid_chat " + "${" * 100_000 + "}" * 100_000))
    assert time.perf_counter() - began < 2.0  # it takes a tenth of a second; without a bound minutes


def test_the_uuid_of_an_execute_counts_for_the_whole_text_although_verdicts_are_kept() -> None:
    policy = Policy()
    trapped = CommandRequest(op="execute", uuid="unload", app="set", arg="x=mod_event_socket")
    harmless = CommandRequest(op="execute", uuid=UUID, app="set", arg="x=mod_event_socket")
    for _ in range(2):
        assert policy.check(harmless) is None
        assert policy.check(trapped) is not None


def test_messages_and_events() -> None:
    def sendmsg(body: str = "", **headers: str) -> CommandRequest:
        return CommandRequest(
            op="sendmsg", uuid=UUID, headers={k.replace("_", "-"): v for k, v in headers.items()}, body=body
        )

    assert DEFAULT.check(sendmsg(call_command="nomedia")) is None
    assert DEFAULT.check(sendmsg("ls", call_command="execute", execute_app_name="system")) is not None
    assert DEFAULT.check(sendmsg("${system(ls)}", call_command="execute", execute_app_name="set")) is not None
    assert DEFAULT.check(sendmsg(call_command="xferext", application="system ls")) is not None

    def sendevent(name: str, body: str = "", **headers: str) -> CommandRequest:
        return CommandRequest(op="sendevent", event=name, headers=headers, body=body)

    assert DEFAULT.check(sendevent("NOTIFY", "please reload mod_event_socket", profile="internal")) is None
    assert DEFAULT.check(sendevent("NOTIFY", a="reload", b="mod_event_socket")) is not None
    assert DEFAULT.check(sendevent("CUSTOM", **{"call-command": "execute", "execute-app-name": "system"})) is not None
    assert DEFAULT.check(sendevent("SEND_MESSAGE", dest_proto="api", to="system ls")) is not None
    assert DEFAULT.check(sendevent("SEND_MESSAGE", "system ls", dest_proto="API")) is not None
    assert DEFAULT.check(sendevent("SEND_MESSAGE", "system ls", dest_proto="sip")) is None


def test_deny_by_op_node_and_application() -> None:
    policy = Policy(deny=["op:sendevent", "app:bridge", "node:fs1 hupall", "op:bgapi node:fs2 api:status"])
    assert policy.check(CommandRequest(op="sendevent", event="X")) is not None
    assert policy.check(CommandRequest(op="hangup", uuid=UUID)) is None
    assert policy.check(execute("bridge", "user/1")) is not None
    assert policy.check(api("originate user/1 &bridge(user/2)")) is not None
    assert policy.check(api("bridge")) is None
    assert policy.check(api("hupall"), "fs1") is not None
    assert policy.check(api("hupall"), "fs2") is None
    assert policy.check(api("hupall")) is None
    assert policy.needs_node
    assert policy.check(CommandRequest(op="bgapi", command="status"), "fs2") is not None
    assert policy.check(CommandRequest(op="bgapi", command="status"), "fs1") is None
    assert policy.check(api("status"), "fs2") is None
    assert not DEFAULT.needs_node


def test_deny_by_argument() -> None:
    policy = Policy(deny=["originate *international*", "app:playback *secret*", "text:*4711*"])
    assert policy.check(api("originate sofia/gateway/international/00 &park")) is not None
    assert policy.check(api("bgapi originate x/INTERNATIONAL &park")) is not None
    assert policy.check(api("originate user/1000 &park")) is None
    assert policy.check(execute("playback", "/tmp/secret.wav")) is not None
    assert policy.check(execute("playback", "/tmp/public.wav")) is None
    assert policy.check(CommandRequest(op="hangup", uuid="x4711")) is not None


def test_an_empty_allow_list_allows_all_and_another_only_what_is_on_it() -> None:
    assert Policy(allow=[], deny=[]).check(api("system ls")) is None
    policy = Policy(allow=["status", "uuid_*", "originate", "park", "op:hangup"], deny=["uuid_dump"])
    assert policy.check(api("status")) is None
    assert policy.check(api(f"uuid_kill {UUID}")) is None
    assert policy.check(api(f"uuid_dump {UUID}")) is not None  # deny wins
    assert policy.check(api("show calls")) is not None
    assert policy.check(CommandRequest(op="hangup", uuid=UUID)) is None
    assert policy.check(CommandRequest(op="sendevent", event="X")) is not None
    assert policy.check(execute("park")) is None
    assert policy.check(execute("playback", "x")) is not None


def test_the_allow_list_must_allow_what_is_wrapped_too() -> None:
    policy = Policy(allow=["bgapi", "status", "originate", "park", "eval"], deny=[])
    assert policy.check(api("bgapi status")) is None
    assert policy.check(api("bgapi show calls")) is not None
    assert policy.check(api("originate user/1 &park")) is None
    assert policy.check(api("originate user/1 &bridge(user/2)")) is not None
    assert policy.check(api("originate {api_on_answer=show calls}user/1 &park")) is not None
    assert policy.check(api("eval ${status()}")) is None
    assert policy.check(api("eval ${show(calls)}")) is not None


def test_an_allowed_line_ends_at_a_space() -> None:
    policy = Policy(allow=["originate user/1000", "park"], deny=[])
    assert policy.check(api("originate user/1000 &park")) is None
    assert policy.check(api("originate user/10001 &park")) is not None
    assert policy.check(api("originate user/1000@evil &park")) is not None
    assert policy.check(api("originate user/1000,user/1 &park")) is not None


def test_an_allow_list_by_node() -> None:
    policy = Policy(allow=["node:fs1 status"], deny=[])
    assert policy.check(api("status"), "fs1") is None
    assert policy.check(api("status"), "fs2") is not None
    assert policy.check(api("status")) is None  # asked again when the node is known
    assert policy.check(api("show"), "fs1") is not None


def test_the_word_default_stands_for_the_built_in_list() -> None:
    policy = Policy(deny=["default", "hupall"])
    assert policy.check(api("system ls")) is not None
    assert policy.check(api("hupall")) is not None
    assert Policy(deny=["hupall"]).check(api("system ls")) is None


def test_a_denial_names_the_command_and_the_pattern_but_no_argument() -> None:
    denial = DEFAULT.check(api("bgapi expand system curl https://u:secret@h"))
    assert denial is not None
    assert denial.pattern == "system"
    assert denial.reason == "the policy denies the command 'system' inside 'bgapi' (pattern 'system')"
    denial = DEFAULT.check(execute("lua", "secret.lua"))
    assert denial is not None
    assert denial.reason == "the policy denies the application 'lua' (pattern 'lua')"
    denial = Policy(allow=["status"], deny=[]).check(api("show secret"))
    assert denial is not None
    assert "'show'" in denial.reason
    assert "secret" not in denial.reason


def test_verbs_for_rate_limits_see_through_wrappers() -> None:
    assert DEFAULT.verbs(api("bgapi originate user/1 &park")) == ("bgapi", "originate", "park")
    assert DEFAULT.verbs(CommandRequest(op="hangup", uuid=UUID)) == ("hangup",)


def test_a_verdict_is_kept_and_the_memory_for_verdicts_is_bounded() -> None:
    policy = Policy()
    for number in range(5000):
        assert policy.check(api(f"uuid_kill {number}")) is None
        assert policy.check(api(f"system {number}")) is not None
    assert len(policy._cache) <= 1024
    assert policy.check(api("status " + "x" * 5000)) is None
    assert not any(len(key[1]) > 1024 for key in policy._cache)


def test_the_default_list_holds_only_good_patterns() -> None:
    assert len(set(DEFAULT_DENY)) == len(DEFAULT_DENY)
    for pattern in DEFAULT_DENY:
        Policy(deny=[pattern])


def test_json_of_requests_cannot_hide_a_command_by_escapes() -> None:
    line = json.loads('"\\u0073ystem ls"')
    assert DEFAULT.check(api(line)) is not None


@pytest.mark.parametrize(
    "command",
    [
        "log " + "mod_event_socket" * 60_000,
        "log " + "unload" * 60_000,
        "eval " + "${" * 30_000,
        "eval " + "${a}" * 16_000,
        "originate " + "api_x=" * 10_000,
        "originate " + "&a " * 20_000,
        "originate " + "inline " * 9_000,
        "originate " + "[" * 60_000,
        "sched_api " * 6_000,
        "json " + "[" * 60_000,
        "bind_digit_action " + "exec:" * 12_000,
    ],
)
@pytest.mark.timeout(20)
def test_no_text_makes_the_policy_slow(command: str) -> None:
    """Each takes milliseconds; what grows with the square of the length would take minutes."""
    policy = Policy(deny=["default", "log *a*b*c*d*"])
    policy.check(api(command))
    policy.check(CommandRequest(op="sendevent", event="X", headers={"x": command}))
    policy.check(execute("set", command))
