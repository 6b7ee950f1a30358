"""What is wrong with a configuration, gathered so that all of it can be told at once.

This room never shows the value of a secret, nor of anything it does not know.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from bridge.errors import ConfigError

Path = tuple[str | int, ...]

_TEXTS = {
    "missing": "is required",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "string_type": "must be text in quotes",
    "list_type": "must be a list",
    "dict_type": "must be a table",
    "model_type": "must be a table",
    "model_attributes_type": "must be a table",
}


def at(path: Iterable[str | int]) -> str:
    """Write a key path as people do: ``node[0].url``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


class Problems:
    """All that is wrong; ``origins`` says which environment variable a key path came from."""

    def __init__(self) -> None:
        self._found: list[tuple[str, str]] = []
        self._told: set[str] = set()
        self.origins: dict[Path, str] = {}

    def __len__(self) -> int:
        return len(self._found)

    def add(self, path: Path, text: str) -> None:
        """Note one fault of the key at ``path``."""
        origin = self.origins.get(path)
        self._told.add(at(path))
        self._found.append((at(path), f"{text} (set by {origin})" if origin else text))

    def add_validation(self, error: ValidationError, model: type[BaseModel]) -> None:
        """Note every fault that pydantic found, in words of our own."""
        for details in error.errors(include_url=False):
            path = tuple(details["loc"])
            field = field_at(model, path)
            inner = details.get("ctx", {}).get("key", "") if details["type"] == "setting" else ""
            if inner:
                path = (*path, *inner.split("."))
            # What could not be resolved is told already, with its reason.
            if at(path) not in self._told:
                self.add(path, _text_of(details, field, model))

    def raise_if_any(self) -> None:
        """Raise ``ConfigError`` with everything that was found."""
        if self._found:
            raise ConfigError(self._found)


def _text_of(details: ErrorDetails, field: FieldInfo | None, model: type[BaseModel]) -> str:
    kind, context, value = details["type"], details.get("ctx", {}), details.get("input")
    if kind == "extra_forbidden":
        return "unknown key" + _suggestion(str(details["loc"][-1]), keys_at(model, tuple(details["loc"][:-1])))
    if kind == "setting":
        return str(context["text"])
    if kind == "literal_error" and field is not None:
        text = "must be " + _alternatives(field)
    elif kind == "greater_than":
        text = f"must be more than {context['gt']:g}"
    elif kind == "greater_than_equal":
        text = f"must be at least {context['ge']:g}"
    elif kind == "less_than_equal":
        text = f"must be at most {context['le']:g}"
    elif kind == "string_pattern_mismatch":
        text = f"must match {context['pattern']}"
    elif kind == "string_too_short":
        text = "must not be empty"
    elif kind == "list_type" and field is None:
        text = f"is a list of tables: write [[{at(details['loc'])}]], in two brackets"
    else:
        text = _TEXTS.get(kind) or details["msg"][:1].lower() + details["msg"][1:]
    return text + _shown(kind, field, value)


def _shown(kind: str, field: FieldInfo | None, value: object) -> str:
    if kind == "missing" or field is None or is_secret(field) or not isinstance(value, str | int | float | bool):
        return ""
    if isinstance(value, bool):
        return f", got {str(value).lower()}"
    return f', got "{value[:80]}"' if isinstance(value, str) else f", got {value!r}"


def _alternatives(field: FieldInfo) -> str:
    names = [f'"{value}"' for value in _literals(field.annotation)]
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + f" or {names[-1]}"


def _literals(annotation: Any) -> list[object]:
    if typing.get_origin(annotation) is typing.Literal:
        return list(typing.get_args(annotation))
    return [value for part in typing.get_args(annotation) for value in _literals(part)]


def nearest(key: str, known: Iterable[str]) -> str:
    """Return the known key that ``key`` was most likely meant to be, or ""."""
    near = difflib.get_close_matches(key.lower(), list(known), n=1, cutoff=0.6)
    return near[0] if near else ""


def _suggestion(key: str, known: Iterable[str]) -> str:
    near = nearest(key, known)
    return f'; did you mean "{near}"?' if near else ""


# --- the model, walked by key path ------------------------------------------------------------------


def fields_of(model: type[BaseModel]) -> Mapping[str, FieldInfo]:
    """The fields of a table under the names they have in the file."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def unwrapped(annotation: Any) -> Any:
    """Return the annotation without ``| None``."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        rest = [part for part in typing.get_args(annotation) if part is not type(None)]
        return rest[0] if len(rest) == 1 else annotation
    return annotation


def model_in(annotation: Any) -> type[BaseModel] | None:
    """Return the table that a field holds, alone or as list items, if it does."""
    inner = unwrapped(annotation)
    if typing.get_origin(inner) is list:
        inner = typing.get_args(inner)[0]
    return inner if isinstance(inner, type) and issubclass(inner, BaseModel) else None


def keys_at(model: type[BaseModel], path: Path) -> list[str]:
    """The keys of the table at ``path``."""
    table: type[BaseModel] | None = model
    for part in path:
        if isinstance(part, str) and table is not None:
            field = fields_of(table).get(part)
            table = model_in(field.annotation) if field else None
    return list(fields_of(table)) if table else []


def field_at(model: type[BaseModel], path: Path) -> FieldInfo | None:
    """The field at ``path`` (of list items: the list's), None for what is a table or unknown."""
    table: type[BaseModel] | None = model
    field: FieldInfo | None = None
    for part in path:
        if isinstance(part, int):
            continue
        if table is None:
            return field
        field = fields_of(table).get(part)
        if field is None:
            return None
        table = model_in(field.annotation)
    return None if table is not None else field


def is_secret(field: FieldInfo) -> bool:
    """Say whether the field's value must never be shown."""
    inner = unwrapped(field.annotation)
    return isinstance(inner, type) and issubclass(inner, SecretStr)
