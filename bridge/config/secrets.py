"""Secrets from elsewhere: ``${file:...}``, ``${env:...}`` and ``*_file`` keys, put where they are meant.

This room's errors name a file or a variable and never what it holds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bridge.config.problems import Problems

_PLACEHOLDER = re.compile(r"\$\{([^{}]*)\}")
MAX_SECRET_SIZE = 65_536
EXPANDED = ("url", "password", "username", "token")


def resolve_secrets(data: dict[str, Any], environ: Mapping[str, str], problems: Problems) -> set[str]:
    """Fill in all secrets of the raw tables, in place; return the environment variables that were referred to."""
    used: set[str] = set()
    tables: list[tuple[tuple[str | int, ...], Any]] = [(("bus",), data.get("bus")), (("http",), data.get("http"))]
    nodes = data.get("node")
    if isinstance(nodes, list):
        tables += [(("node", number), node) for number, node in enumerate(nodes)]
    for path, table in tables:
        if not isinstance(table, dict):
            continue
        for key in EXPANDED:
            if isinstance(table.get(key), str):
                table[key] = _expand(table[key], environ, used, problems, (*path, key))
        _read_secret_file(table, "token" if path[0] == "http" else "password", problems, path)
        if path[0] == "node":
            _put_password_into_url(table, problems, path)
    return used


def _expand(
    text: str, environ: Mapping[str, str], used: set[str], problems: Problems, path: tuple[str | int, ...]
) -> str:
    user_part_ends = text.rfind("@")

    def replace(match: re.Match[str]) -> str:
        kind, colon, name = match[1].partition(":")
        if kind == "env" and colon and name:
            used.add(name)
            value = environ.get(name)
            if not value:
                problems.add(path, f"environment variable {name} is {'not set' if value is None else 'empty'}")
                return "unresolved"
        elif kind == "file" and colon and name:
            found = read_secret(name, problems, path)
            if found is None:
                return "unresolved"
            value = found
        else:
            problems.add(path, "holds a ${...} that is neither ${file:/path} nor ${env:NAME}")
            return "unresolved"
        # In front of the @ of a URL a secret stands for itself, whatever characters it holds.
        return quote(value, safe="") if "://" in text and match.start() < user_part_ends else value

    return _PLACEHOLDER.sub(replace, text)


def read_secret(name: str, problems: Problems, path: tuple[str | int, ...]) -> str | None:
    """Return a file's text without the line end; None, and a problem under ``path``, when that cannot be."""
    try:
        with Path(name).open("rb") as file:
            content = file.read(MAX_SECRET_SIZE + 1)
    except (OSError, ValueError) as error:
        problems.add(path, f"cannot read {name}: {getattr(error, 'strerror', None) or 'not a file name'}")
        return None
    if len(content) > MAX_SECRET_SIZE:
        problems.add(path, f"cannot use {name}: over {MAX_SECRET_SIZE} bytes")
        return None
    try:
        text = content.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        problems.add(path, f"cannot use {name}: not UTF-8")
        return None
    if not text:
        problems.add(path, f"cannot use {name}: it is empty")
        return None
    return text


def _read_secret_file(table: dict[str, Any], key: str, problems: Problems, path: tuple[str | int, ...]) -> None:
    name = table.get(f"{key}_file")
    if not isinstance(name, str) or not name:
        return
    if table.get(key):
        problems.add((*path, f"{key}_file"), f"stands beside {key}; give one of them")
        return
    text = read_secret(name, problems, (*path, f"{key}_file"))
    # What could not be read is told once: a stand-in keeps "has no password" from following.
    table[key] = "unresolved-secret" if text is None else text


def _put_password_into_url(table: dict[str, Any], problems: Problems, path: tuple[str | int, ...]) -> None:
    url, password = table.get("url"), table.get("password")
    if not isinstance(url, str) or not isinstance(password, str) or not password or "://" not in url:
        return
    scheme, _, rest = url.partition("://")
    user, mark, host = rest.rpartition("@")
    name, _, inside = user.partition(":")
    if inside:
        key = "password_file" if table.get("password_file") else "password"
        problems.add((*path, key), "stands beside the password in url; give one of them")
        return
    table["url"] = f"{scheme}://{name if mark else ''}:{quote(password, safe='')}@{host}"
