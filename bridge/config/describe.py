"""The settings described for people: what the reference page and its test are made from.

This room reads the models; it never reads a configuration.
"""

from __future__ import annotations

import json
import typing
from collections.abc import Iterator
from typing import Any, NamedTuple

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from bridge.config.problems import fields_of, model_in, unwrapped
from bridge.config.settings import NodeSettings, Settings


class SettingInfo(NamedTuple):
    """One setting; ``key`` as in ``node[].url``, ``default`` as the file would write it ("" where there is none)."""

    key: str
    type: str
    default: str
    unit: str
    description: str


def describe_settings() -> Iterator[SettingInfo]:
    """Yield every setting in the order of the file."""
    for section, table in fields_of(Settings).items():
        model = model_in(table.annotation)
        assert model is not None
        yield from _described(f"{section}[]" if model is NodeSettings else section, model)


def _described(prefix: str, model: type[BaseModel]) -> Iterator[SettingInfo]:
    for key, field in fields_of(model).items():
        inner = model_in(field.annotation)
        if inner is not None:
            yield from _described(f"{prefix}.{key}[]", inner)
            continue
        extra: Any = field.json_schema_extra
        yield SettingInfo(f"{prefix}.{key}", _type_name(field), _default(field), extra["unit"], field.description or "")


def _type_name(field: FieldInfo) -> str:
    kind = unwrapped(field.annotation)
    if typing.get_origin(kind) is typing.Literal:
        return " | ".join(f'"{value}"' for value in typing.get_args(kind))
    if typing.get_origin(kind) is list:
        return "list of text"
    if typing.get_origin(kind) is dict:
        return "table of numbers" if typing.get_args(kind)[1] is float else "table of text"
    names: dict[Any, str] = {int: "integer", float: "number", bool: "boolean"}
    return names.get(kind, "text")


def _default(field: FieldInfo) -> str:
    value = field.default
    if value is PydanticUndefined or value is None:
        return ""
    if isinstance(value, SecretStr):
        return json.dumps(str(value.get_secret_value()))
    if isinstance(value, float):
        return f"{value:g}"
    return "{}" if value == {} else json.dumps(value)
