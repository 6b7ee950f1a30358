"""Settings from file, environment and secrets, with every fault told at once.

This room never starts anything; the first thing it meets that is wrong does not keep it from the rest.
"""

from __future__ import annotations

import os
import tomllib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bridge.config.environment import PREFIX, overlay_environment, report_unknown
from bridge.config.problems import Problems
from bridge.config.secrets import resolve_secrets
from bridge.config.settings import Settings
from bridge.errors import ConfigError

DEFAULT_FILE = "bridge.toml"
# tomllib's words for the two commonest slips, in those of who made them.
_TOML = {
    "Cannot overwrite a value": "a key or table is given twice",
    "Invalid value": "no value (text stands in quotes)",
}


def find_config_file(path: Path | None = None, environ: Mapping[str, str] | None = None) -> Path | None:
    """Return ``path``, else what ``ESL_BRIDGE_CONFIG`` names, else ``./bridge.toml`` if it is there, else None."""
    if path is not None:
        return path
    named = (os.environ if environ is None else environ).get(f"{PREFIX}CONFIG", "")
    if named:
        return Path(named)
    return Path(DEFAULT_FILE) if Path(DEFAULT_FILE).is_file() else None


def load_settings(path: Path | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """Read the configuration.

    Raises ``ConfigError`` with all problems, each with its key path; no text holds a secret.
    """
    environ = os.environ if environ is None else environ
    file = find_config_file(path, environ)
    data = _read(file) if file else {}
    problems = Problems()
    unknown = overlay_environment(data, environ, problems)
    used = resolve_secrets(data, environ, problems)
    report_unknown([name for name in unknown if name not in used], problems)
    _check_node_names(data, problems)
    settings: Settings | None = None
    try:
        settings = Settings.model_validate(data)
    except ValidationError as error:
        problems.add_validation(error, Settings)
    # Outside the handler: pydantic's own text must not hang on to ours as its context.
    problems.raise_if_any()
    assert settings is not None
    return settings


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_bytes().decode("utf-8"))
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
    except UnicodeDecodeError:
        problem = "is not UTF-8"
    except tomllib.TOMLDecodeError as error:
        problem = f"is not TOML: {_without_values(str(error))}"
    raise ConfigError([(str(file), problem)])


def _without_values(text: str) -> str:
    # tomllib's messages quote at most a character or a key of the file, and say where.
    for theirs, ours in _TOML.items():
        text = text.replace(theirs, ours)
    return text[:1].lower() + text[1:200]


def _check_node_names(data: Mapping[str, Any], problems: Problems) -> None:
    nodes = data.get("node")
    if not isinstance(nodes, list):
        return
    names = [node.get("name") if isinstance(node, dict) else None for node in nodes]
    seen: Counter[str] = Counter()
    for number, name in enumerate(names):
        if isinstance(name, str):
            if seen[name]:
                problems.add(
                    ("node", number, "name"), f'"{name[:80]}" is the name of node[{names.index(name)}] already'
                )
            seen[name] += 1
