"""What others import exists, is described, and says that it is typed."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import tomllib
from pathlib import Path

import pytest

import bridge

ROOT = Path(__file__).resolve().parent.parent
PUBLIC = {
    "bridge.client": {"Bridge", "EventStream"},
    "bridge.simulator": {"SimulatedSwitch", "User", "Fault", "FAULTS", "parse_fault"},
    "bridge.bus.open": {"open_bus"},
    "bridge.bus.memory": {"MemoryBus"},
    "bridge.bus.embedded": {"EmbeddedBroker"},
    "bridge.config": {"Settings", "load_settings", "describe_settings"},
    "bridge.messages.command": {
        "CommandRequest",
        "CommandReply",
        "Status",
        "Executed",
        "parse_request",
        "decode_reply",
    },
    "bridge.messages.event": {"EventMessage", "decode_event"},
    "bridge.messages.notice": {"Notice", "decode_notice", "NOTICES"},
    "bridge.messages.asyncapi": {"describe_bus"},
    "bridge.worker": {"Worker"},
}
PACKAGES = sorted(".".join(path.relative_to(ROOT).parent.parts) for path in (ROOT / "bridge").rglob("__init__.py"))


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names_exist_and_are_described(module: str) -> None:
    loaded = importlib.import_module(module)
    for name in PUBLIC[module]:
        thing = getattr(loaded, name)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            assert inspect.getdoc(thing), f"{module}.{name} has no docstring"


@pytest.mark.parametrize("package", PACKAGES)
def test_what_a_package_lists_is_there(package: str) -> None:
    loaded = importlib.import_module(package)
    assert loaded.__doc__
    listed = getattr(loaded, "__all__", [])
    assert len(set(listed)) == len(listed)
    assert [name for name in listed if not hasattr(loaded, name)] == []


def test_methods_of_the_client_are_described_and_typed() -> None:
    from bridge.client import Bridge, EventStream

    for kind in (Bridge, EventStream):
        for name, member in inspect.getmembers(kind, inspect.isfunction):
            if name.startswith("_"):
                continue
            assert inspect.getdoc(member), f"{kind.__name__}.{name} has no docstring"
            assert "return" in member.__annotations__, f"{kind.__name__}.{name} is not typed"


def test_the_error_tree_in_the_docstring_is_the_tree() -> None:
    from bridge import errors

    classes = {
        node.name for node in ast.parse(Path(errors.__file__).read_text("utf-8")).body if isinstance(node, ast.ClassDef)
    }
    drawn = set(re.findall(r"\b[A-Z][a-zA-Z]+\b", errors.__doc__ or ""))
    assert classes - drawn == set()


def test_it_is_typed_and_has_a_version() -> None:
    assert (ROOT / "bridge" / "py.typed").is_file()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert "py.typed" in project["tool"]["setuptools"]["package-data"]["bridge"]
    assert project["project"]["dynamic"] == ["version"]
    assert re.fullmatch(r"\d+\.\d+\.\d+([ab]\d+|\.dev\d+)?", bridge.__version__)
    assert f"## {bridge.__version__}" in (ROOT / "docs" / "changelog.md").read_text("utf-8")


def test_importing_the_client_brings_no_server_along() -> None:
    """A microservice pays for the client only."""
    import subprocess
    import sys

    code = "import sys, bridge.client; print(sorted({'aiohttp', 'typer', 'rich', 'pydantic'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
