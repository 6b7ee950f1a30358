"""The house of design: imports go downward only, floor 1 is free of I/O, rooms are small, nobody names a broker."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BRIDGE = ROOT / "bridge"

FLOORS = {
    "errors": 0,
    "redaction": 0,
    "esl": 1,
    "messages": 1,
    "switch": 2,
    "bus": 2,
    "simulator": 2,
    "relay": 3,
    "fleet": 3,
    "ops": 3,
    "client": 3,
    "config": 3,
    "nodes": 4,
    "wiring": 4,
    "queues": 4,
    "operations": 4,
    "reload": 5,
    "reach": 5,
    "crew": 4,
    "worker": 6,
    "cli": 7,
}
# What may be imported although it is not simply "a lower floor": (importer, imported).
EXCEPTIONS = {("cli", "client"), ("cli", "config"), ("worker", "config")}
# What may not be imported although it lies on a lower floor.
FORBIDDEN = {
    "simulator": {"messages", "bus", "switch"},
    "client": {"esl", "switch", "simulator"},
    "bus": {"esl", "messages"},
    "switch": {"messages"},
    "config": {"bus", "switch", "relay"},
    "relay": {"config", "simulator"},
    "ops": {"config", "simulator", "switch", "esl"},
    "fleet": {"config", "simulator"},
}
IMPURE = {
    "asyncio", "socket", "ssl", "selectors", "select", "time", "datetime", "logging", "structlog", "threading",
    "multiprocessing", "subprocess", "os", "io", "pathlib", "tempfile", "random", "secrets", "uuid", "sqlite3",
    "aiohttp", "redis", "nats", "uvloop", "signal", "shutil", "sys",
}  # fmt: skip
# Pure although it could be used otherwise: datetime only formats a given instant.
PURE_USES = {("messages/wrapping.py", "datetime"), ("messages/notice.py", "datetime")}
MAX_LINES = 400


def rooms() -> list[Path]:
    return sorted(path for path in BRIDGE.rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(BRIDGE).as_posix()


def floor_name(path: Path) -> str:
    return path.relative_to(BRIDGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """Dotted names of all imports of a room, late ones too, relative ones made absolute."""
    package = ["bridge", *path.relative_to(BRIDGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                base = package[: len(package) - node.level + 1]
                module = ".".join([*base, module] if module else base)
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def fault_of(importer: str, module: str) -> str | None:
    """Why a room of ``importer`` may not import ``module``; None when it may."""
    parts = module.split(".")
    if parts[0] != "bridge" or len(parts) < 2 or parts[1] not in FLOORS:
        return None
    imported = parts[1]
    if imported == importer or (importer, imported) in EXCEPTIONS:
        return None
    if FLOORS[imported] >= FLOORS[importer]:
        return f"{importer} (floor {FLOORS[importer]}) imports {imported} (floor {FLOORS[imported]})"
    if imported in FORBIDDEN.get(importer, set()):
        return f"{importer} must not know {imported}"
    return None


@pytest.mark.parametrize("path", rooms(), ids=name_of)
def test_imports_go_downward_only(path: Path) -> None:
    importer = floor_name(path)
    if importer in ("__init__", "__main__"):
        return
    assert importer in FLOORS, f"{importer} is on no floor: name its floor in this test"
    faults = {fault for module in imports(path) if (fault := fault_of(importer, module))}
    assert not faults


@pytest.mark.parametrize(
    "path", [path for path in rooms() if floor_name(path) in ("esl", "messages", "errors")], ids=name_of
)
def test_floor_one_is_free_of_io(path: Path) -> None:
    used = {module.split(".")[0] for module in imports(path)} & IMPURE
    assert {name for name in used if (name_of(path), name) not in PURE_USES} == set()
    calls = {
        node.func.id
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert not calls & {"open", "print", "input", "exec", "eval", "__import__"}


def test_errors_import_nothing() -> None:
    assert set(imports(BRIDGE / "errors.py")) <= {"__future__", "__future__.annotations"}


@pytest.mark.parametrize("path", rooms(), ids=name_of)
def test_a_room_is_small_and_says_what_it_is(path: Path) -> None:
    text = path.read_text("utf-8")
    assert len(text.splitlines()) <= MAX_LINES
    assert ast.get_docstring(ast.parse(text)), "a room's docstring says what it does and what it never does"
    assert not {"utils", "util", "helpers", "helper", "common", "manager", "misc"} & set(path.with_suffix("").parts)


@pytest.mark.parametrize("path", [path for path in rooms() if floor_name(path) != "bus"], ids=name_of)
def test_drivers_are_known_to_the_bus_floor_only(path: Path) -> None:
    drivers = {module.split(".")[0] for module in imports(path)} & {"redis", "nats", "hiredis", "fakeredis"}
    assert not drivers


@pytest.mark.parametrize(
    "path", [path for path in rooms() if floor_name(path) in ("relay", "fleet", "client")], ids=name_of
)
def test_no_path_names_a_concrete_broker(path: Path) -> None:
    concrete = {
        module
        for module in imports(path)
        for vendor in ("nats", "redis", "memory", "embedded")
        if module == f"bridge.bus.{vendor}" or module.startswith(f"bridge.bus.{vendor}.")
    }
    assert not concrete


def test_the_checks_can_fail() -> None:
    assert fault_of("esl", "bridge.messages.codec") is not None
    assert fault_of("esl", "bridge.switch.connection") is not None
    assert fault_of("bus", "bridge.esl.event") is not None
    assert fault_of("relay", "bridge.bus.base") is None
    assert fault_of("relay", "bridge.ops.metrics") is not None


def test_top_level_is_the_one_of_the_house() -> None:
    expected = {"pyproject.toml", "bridge", "deploy", "tests", "docs", "Procfile", "README.md", "LICENSE", "Makefile"}
    present = {path.name for path in ROOT.iterdir()}
    assert expected <= present
    extra = {name for name in present - expected if not name.startswith(".") and not name.endswith(".egg-info")}
    assert not extra - {"build", "dist", "site", "mkdocs.yml"}
