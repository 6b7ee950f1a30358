"""The documentation is true: links lead somewhere, examples are what the code reads, nothing is left undocumented."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shlex
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, get_args

import pytest
import typer
import yaml

from bridge.cli import app, exits
from bridge.config import describe_settings, load_settings
from bridge.errors import ConfigError
from bridge.messages import topics
from bridge.messages.command import STATUSES, CommandReply, CommandRequest, decode_reply, parse_request
from bridge.messages.envelope import EventEnvelope
from bridge.messages.event import decode_event
from bridge.messages.notice import NOTICES, GapReason
from bridge.ops.metrics import Metrics
from bridge.relay.policy import DEFAULT_DENY
from bridge.switch.node import NodeState

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "deploy" / "README.md", *sorted(DOCS.rglob("*.md"))]
REFERENCE = DOCS / "reference"
ROOMS = {path.name for path in (ROOT / "bridge").iterdir() if path.is_dir()}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


class Example(NamedTuple):
    """A fenced block; ``mark`` is what the comment before it says."""

    page: Path
    line: int
    language: str
    mark: str
    text: str

    def __str__(self) -> str:
        return f"{name_of(self.page)}:{self.line}"


_FENCE = re.compile(
    r"(?:^[ ]*<!-- example: (?P<mark>[a-z]+) -->\n)?^(?P<indent>[ ]*)```(?P<language>[a-z]*)\n(?P<text>.*?)^[ ]*```$",
    re.MULTILINE | re.DOTALL,
)


def examples(*languages: str) -> list[Example]:
    found = []
    for page in PAGES:
        text = page.read_text("utf-8")
        for match in _FENCE.finditer(text):
            if match["language"] in languages:
                line = text.count("\n", 0, match.start("text"))
                block = textwrap.dedent(match["text"])
                found.append(Example(page, line, match["language"], match["mark"] or "", block))
    return found


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


GENERATE = generator()


def reference(page: str) -> str:
    return (REFERENCE / page).read_text("utf-8")


# --- the reference is what the code says -----------------------------------------------------------------------------


def test_the_generated_parts_are_current() -> None:
    stale = [name_of(path) for path, _ in GENERATE.stale()]
    assert not stale, "run `make docs` (python docs/generate.py) and commit what it writes"


def test_a_stale_block_is_noticed() -> None:
    page = reference("metrics.md")
    broken = page.replace("esl_bridge_bus_up", "esl_bridge_bus_upp")
    assert broken != page
    assert GENERATE.filled(broken) == page


def test_no_table_holds_a_bar_inside_of_code() -> None:
    """One reader of Markdown shows the backslash that another needs."""
    lines = [line for page in PAGES for line in page.read_text("utf-8").splitlines() if line.startswith("|")]
    assert [line for line in lines if any("|" in code for code in re.findall(r"`[^`]+`", line))] == []


def test_every_block_stands_on_some_page() -> None:
    used = {match[1] for path in GENERATE.pages() for match in GENERATE.BLOCK.finditer(path.read_text("utf-8"))}
    assert used == set(GENERATE.BLOCKS)


def undocumented(page: str, names: Any) -> list[str]:
    text = reference(page)
    return [name for name in names if f"`{name}`" not in text]


def test_nothing_is_undocumented() -> None:
    settings = [info.key.rpartition(".")[2] for info in describe_settings()]
    missing = {
        "settings": undocumented("settings.md", settings),
        "metrics": undocumented("metrics.md", Metrics(process=False).names()),
        "statuses": undocumented("replies.md", STATUSES),
        "request fields": undocumented("requests.md", CommandRequest.__struct_fields__),
        "reply fields": undocumented("replies.md", CommandReply.__struct_fields__),
        "event attributes": undocumented("events.md", EventEnvelope.__struct_fields__),
        "notices": undocumented("notices.md", [topics.NOTICE_PREFIX + kind for kind in NOTICES]),
        "gap reasons": undocumented("notices.md", get_args(GapReason)),
        "topics": undocumented("topics.md", [topics.DEFAULT_TOPIC, "esl.cmd", "esl.queue", "esl.dead"]),
        "reply addresses": undocumented("topics.md", topics.NATS_REPLY_ADDRESSES + topics.REDIS_REPLY_ADDRESSES),
    }
    assert {kind: names for kind, names in missing.items() if names} == {}


def test_every_state_of_a_node_is_documented() -> None:
    assert [state for state in NodeState if state not in reference("notices.md")] == []


def test_every_denied_pattern_is_documented() -> None:
    assert [pattern for pattern in DEFAULT_DENY if json.dumps(pattern) not in reference("policy.md")] == []


def test_every_command_is_documented() -> None:
    assert [name for name in commands() if f"## `esl-bridge {name}" not in reference("command-line.md")] == []


def test_every_exit_code_is_documented() -> None:
    codes = [value for name, value in vars(exits).items() if name.isupper() and isinstance(value, int)]
    assert sorted(codes) == [
        int(code) for code in re.findall(r"^\| (\d+) \|", reference("command-line.md"), re.MULTILINE)
    ]


def test_every_path_of_the_http_side_is_documented() -> None:
    source = "".join(path.read_text("utf-8") for path in sorted((ROOT / "bridge" / "ops").rglob("*.py")))
    paths = re.findall(r'\.(?:get|post|add_get|add_post|add_route)\(\s*(?:"[A-Z]+",\s*)?"(/[^"]*)"', source)
    assert {"/", "/live", "/ready", "/metrics", "/nodes"} <= set(paths)
    assert undocumented("http.md", paths) == []


# --- links ------------------------------------------------------------------------------------------------------------

_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MkDocs make them."""
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text("utf-8"), flags=re.DOTALL)
    broken = []
    for link in _LINK.findall(text):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        if not path.exists() or not path.is_relative_to(ROOT) or (anchor and anchor not in anchors(path)):
            broken.append(link)
    assert not broken


@pytest.mark.parametrize("folder", ["reference", "how-to", "decisions"])
def test_every_page_stands_in_the_index_of_its_folder(folder: str) -> None:
    index = (DOCS / folder / "README.md").read_text("utf-8")
    others = [page.name for page in (DOCS / folder).glob("*.md") if page.name != "README.md"]
    assert [name for name in sorted(others) if f"({name})" not in index] == []


def test_every_page_stands_in_the_sites_navigation() -> None:
    """What `make docs-site` would refuse, told without its tools."""

    def named(part: Any) -> Iterator[str]:
        if isinstance(part, str):
            yield part
        for inner in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
            yield from named(inner)

    nav = list(named(yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["nav"]))
    pages = {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md") if "node_modules" not in page.parts}
    assert sorted(nav) == sorted(pages), "add the page to nav in mkdocs.yml"


def test_no_page_links_outside_of_the_site() -> None:
    outside = [
        f"{name_of(page)}: {link}"
        for page in DOCS.rglob("*.md")
        for link in _LINK.findall(re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text("utf-8"), flags=re.DOTALL))
        if "://" not in link and not (page.parent / link.partition("#")[0]).resolve().is_relative_to(DOCS)
    ]
    assert outside == []


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent.name != "decisions"], ids=name_of)
def test_rooms_and_files_that_a_page_names_exist(page: Path) -> None:
    """Decisions may speak of what was; other pages of what is."""
    named = re.findall(r"`((?:[\w.-]+/)+[\w.-]*)`", page.read_text("utf-8"))
    ours = [name for name in named if name.split("/")[0] in ROOMS | {"bridge", "deploy", "docs", "tests"}]
    missing = [name for name in ours if not (ROOT / name).exists() and not (ROOT / "bridge" / name).exists()]
    assert missing == []


# --- examples ---------------------------------------------------------------------------------------------------------


def load(text: str, folder: Path) -> Any:
    """Load a configuration whose secrets lie in a folder of ours."""
    for number, name in enumerate(
        sorted(set(re.findall(r"/run/secrets/[\w.-]+|/etc/esl-bridge/secrets/[\w.-]+", text)))
    ):
        secret = folder / f"secret{number}"
        secret.write_text("a-secret-of-some-length")
        text = text.replace(name, str(secret))
    file = folder / "bridge.toml"
    file.write_text(text, "utf-8")
    return load_settings(file, {})


@pytest.mark.parametrize("example", [one for one in examples("toml") if one.mark != "other"], ids=str)
def test_toml_examples_load(example: Example, tmp_path: Path) -> None:
    load(example.text, tmp_path)


@pytest.mark.parametrize("path", sorted((ROOT / "deploy").rglob("bridge*.toml")), ids=name_of)
def test_deployed_configurations_load(path: Path, tmp_path: Path) -> None:
    assert load(path.read_text("utf-8"), tmp_path).nodes


def test_a_wrong_toml_example_would_be_noticed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        load('[bus]\nurll = "nats://x"\n', tmp_path)


def test_the_readme_shows_ten_lines_for_a_real_freeswitch() -> None:
    first = next(one for one in examples("toml") if one.page.name == "README.md")
    lines = [line for line in first.text.splitlines() if line and not line.startswith("#")]
    assert len(lines) <= 10


@pytest.mark.parametrize("example", examples("json"), ids=str)
def test_json_examples_are_messages(example: Example) -> None:
    payload = example.text.encode()
    if example.mark == "event":
        event = decode_event(payload)
        assert event.name
        assert event.id
        assert set(event.attributes) | {"data"} <= set(EventEnvelope.__struct_fields__)
    elif example.mark == "request":
        parse_request(payload)
    elif example.mark == "reply":
        reply = decode_reply(payload)
        assert reply.executed in STATUSES[reply.status].executed
        assert set(json.loads(payload)) <= set(CommandReply.__struct_fields__)
    else:
        assert example.mark == "other", "say what it is: <!-- example: event | request | reply | other -->"
        json.loads(payload)


def test_the_readme_shows_an_event_a_request_and_replies() -> None:
    marks = [one.mark for one in examples("json") if one.page.name == "README.md"]
    assert {"event", "request", "reply"} <= set(marks)


@pytest.mark.parametrize("example", examples("python"), ids=str)
def test_python_examples_compile(example: Example) -> None:
    compile(example.text, str(example), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


# --- commands that the documentation names ----------------------------------------------------------------------------


def commands() -> dict[str, Any]:
    group: Any = typer.main.get_command(app)
    return dict(group.commands)


def invocations() -> Iterator[tuple[Example, list[str]]]:
    """Every line of a console block that starts something of ours, cut into words."""
    for example in examples("console"):
        for line in example.text.replace("\\\n", " ").splitlines():
            prompt, space, text = line.partition(" ")
            if prompt not in ("$", "#") or not space:
                continue
            words: list[str] = []
            for token in [*shlex.shlex(text, posix=True, punctuation_chars=True), ";"]:
                if not set(token) <= set("();<>|&"):
                    words.append(token)
                elif words and token not in ("<", ">"):
                    yield example, words
                    words = []


def fault_of(words: list[str]) -> str:
    """What is wrong with an invocation of ours; empty when nothing is."""
    while words and ("=" in words[0] or words[0] in ("sudo", "exec", "do")):
        words = words[1:]
    program = words[0].rpartition("/")[2] if words else ""
    if program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
        return "" if len(words) == 1 or words[1] in targets else f"no target {words[1]}"
    if program != "esl-bridge":
        return ""
    if len(words) == 1 or words[1] in ("--version", "--help"):
        return ""
    command = commands().get(words[1])
    if command is None:
        return f"no command {words[1]}"
    known = {name for one in command.params for name in one.opts} | {"--help"}
    for word in words[2:]:
        if word == "--":
            break
        if word.startswith("-") and word.partition("=")[0] not in known:
            return f"{words[1]} has no option {word}"
    return ""


def test_named_commands_exist() -> None:
    found = list(invocations())
    assert sum(words[0].endswith("esl-bridge") for _, words in found) > 10
    assert [f"{example}: {fault}" for example, words in found if (fault := fault_of(words))] == []


def test_a_wrong_command_would_be_noticed() -> None:
    assert fault_of(["esl-bridge", "cal", "status"])
    assert fault_of(["esl-bridge", "call", "status", "--too", "fs1"])
    assert fault_of(["make", "coffee"])


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_in_running_text_exist(page: Path) -> None:
    named = re.findall(r"`esl-bridge ([a-z]+)", page.read_text("utf-8"))
    assert [name for name in named if name not in commands()] == []
