"""Topic patterns: which topics a pattern with wildcards means. Never looks at a message.

``*`` is one token, a ``*`` inside a token any characters of it, ``>`` as the last token all the rest (one or more).
"""

from __future__ import annotations

import re
from collections.abc import Callable

Matcher = Callable[[str], object]


def pattern_matcher(pattern: str) -> Matcher:
    """A callable that is truthy for the topics that ``pattern`` means."""
    tokens = pattern.split(".")
    rest = tokens[-1] == ">"
    if rest:
        tokens.pop()
    parts = ["[^.]+" if token == "*" else re.escape(token).replace(r"\*", "[^.]*") for token in tokens]
    if rest:
        parts.append(".+")
    return re.compile(r"\.".join(parts), re.DOTALL).fullmatch


def widened(pattern: str) -> tuple[str, Matcher | None]:
    """The narrowest pattern with whole-token wildcards only, and what must be checked besides (None: nothing)."""
    tokens = pattern.split(".")
    wide = ["*" if "*" in token else token for token in tokens]
    if wide == tokens:
        return pattern, None
    return ".".join(wide), pattern_matcher(pattern)
