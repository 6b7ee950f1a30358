"""The environment over the file: ``ESL_BRIDGE_<SECTION>__<KEY>`` and ``ESL_BRIDGE_NODE__<name>__<KEY>``.

This room turns variables into the raw tables that a file gives; it never validates more than a variable's name.
"""

from __future__ import annotations

import json
import typing
from collections.abc import Mapping
from typing import Any

from pydantic import SecretStr, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from bridge.config.problems import Path, Problems, fields_of, model_in, nearest, unwrapped
from bridge.config.settings import NodeSettings, Settings

PREFIX = "ESL_BRIDGE_"
NODE_PREFIX = f"{PREFIX}NODE__"


def overlay_environment(data: dict[str, Any], environ: Mapping[str, str], problems: Problems) -> list[str]:
    """Put the variables over the raw tables, in place; return the variables that mean nothing."""
    unknown = []
    for variable in sorted(environ):
        if not variable.startswith(PREFIX) or variable == f"{PREFIX}CONFIG" or variable.startswith(f"{PREFIX}TEST_"):
            continue
        if variable.startswith(NODE_PREFIX):
            known = _overlay_node(data, variable, environ[variable], problems)
        else:
            known = _overlay_section(data, variable, environ[variable], problems)
        if not known:
            unknown.append(variable)
    return unknown


def report_unknown(variables: list[str], problems: Problems) -> None:
    """Note variables that nothing reads, with the nearest one that is read."""
    known = {variable.lower(): variable for variable in _variables()}
    for variable in variables:
        text = "unknown environment variable"
        if variable.startswith(NODE_PREFIX):
            name, _, key = variable.removeprefix(NODE_PREFIX).rpartition("__")
            near = nearest(key, fields_of(NodeSettings)) if name else ""
            text += (
                f'; did you mean "{NODE_PREFIX}{name}__{near.upper()}"?'
                if near
                else " (a node's are ESL_BRIDGE_NODE__<name>__<KEY>)"
            )
        else:
            near = nearest(variable, known)
            text += f'; did you mean "{known[near]}"?' if near else ""
        problems.add((variable,), text)


def _variables() -> list[str]:
    names = [f"{PREFIX}CONFIG"]
    for section, table in fields_of(Settings).items():
        model = model_in(table.annotation)
        if model is not None and model is not NodeSettings:
            names += [f"{PREFIX}{section.upper()}__{key.upper()}" for key in fields_of(model)]
    return names


def _overlay_section(data: dict[str, Any], variable: str, text: str, problems: Problems) -> bool:
    section, separator, key = variable.removeprefix(PREFIX).lower().partition("__")
    table = fields_of(Settings).get(section)
    model = model_in(table.annotation) if table else None
    field = fields_of(model).get(key) if model else None
    if not separator or field is None:
        return False
    target = data.setdefault(section, {})
    if isinstance(target, dict):
        path: Path = (section, key)
        problems.origins[path] = variable
        target[key] = _converted(text, field)
    return True


def _overlay_node(data: dict[str, Any], variable: str, text: str, problems: Problems) -> bool:
    name, separator, key = variable.removeprefix(NODE_PREFIX).rpartition("__")
    field = fields_of(NodeSettings).get(key.lower())
    if not separator or not name or field is None or key.lower() == "name":
        return False
    nodes = data.setdefault("node", [])
    if not isinstance(nodes, list):
        return True
    number = _node_number(nodes, name)
    problems.origins[("node", number, key.lower())] = variable
    nodes[number][key.lower()] = _converted(text, field)
    return True


def _node_number(nodes: list[Any], name: str) -> int:
    def folded(text: str) -> str:
        return text.lower().replace("-", "_")

    tables = [(number, node) for number, node in enumerate(nodes) if isinstance(node, dict)]
    for number, node in tables:
        if node.get("name") == name:
            return number
    # A shell cannot write fs-1, and many people write variables in capitals.
    alike = [number for number, node in tables if folded(str(node.get("name"))) == folded(name)]
    if len(alike) == 1:
        return alike[0]
    nodes.append({"name": name})
    return len(nodes) - 1


def _converted(text: str, field: FieldInfo) -> object:
    """Return the text as the field's type where it can be read as such, else as it is (validation will tell)."""
    kind = unwrapped(field.annotation)
    container = typing.get_origin(kind)
    try:
        if container is list:
            return (
                json.loads(text) if text.lstrip().startswith("[") else [x.strip() for x in text.split(",") if x.strip()]
            )
        if container is dict:
            return json.loads(text)
        if kind in (int, float, bool):
            return TypeAdapter(kind).validate_python(text)
    except (ValueError, ValidationError):
        return text
    if isinstance(kind, type) and issubclass(kind, SecretStr):
        return text
    return None if not text and field.default is None else text
