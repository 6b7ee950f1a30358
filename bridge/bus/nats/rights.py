"""What the server lets this user do, by its own word (``$SYS.REQ.USER.INFO``, NATS 2.10). Publishes nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from bridge.bus.nats.inbox import is_no_responders
from bridge.bus.nats.questions import Questions
from bridge.bus.rights import Use
from bridge.errors import BusRefused

_ASKED: Final = "$SYS.REQ.USER.INFO"
_TIMEOUT: Final = 2.0


async def refused(questions: Questions, uses: Sequence[Use]) -> list[Use]:
    """Those of the uses that the server would refuse. Raises ``BusRefused`` where it does not tell."""
    answer = await questions.ask(_ASKED, b"", _TIMEOUT)
    if is_no_responders(answer):
        raise BusRefused(f"nobody answers {_ASKED}")
    try:
        told = msgspec.json.decode(answer.data, type=dict[str, Any])
    except msgspec.DecodeError:
        raise BusRefused(f"{_ASKED} was answered with something else") from None
    rights: dict[str, Any] = (told.get("data") or {}).get("permissions") or {}
    return [use for use in uses if not _allowed(rights, use)]


def _allowed(rights: dict[str, Any], use: Use) -> bool:
    if use.kind == "reply" and rights.get("responses"):
        return True  # whoever sent a request may be answered
    rule = rights.get("subscribe" if use.kind == "queue" else "publish") or {}
    allow, deny = rule.get("allow"), rule.get("deny") or ()
    return (not allow or matches_any(allow, use.address)) and not matches_any(deny, use.address)


def matches_any(patterns: Sequence[str], subject: str) -> bool:
    """Whether one of the patterns means the subject; its own wildcards are taken for tokens."""
    # A pattern may name a queue group behind the subject.
    return any(_matches(pattern.split()[0].split("."), subject.split(".")) for pattern in patterns if pattern.strip())


def _matches(pattern: Sequence[str], subject: Sequence[str]) -> bool:
    for at, token in enumerate(pattern):
        if token == ">":
            return len(subject) > at
        if at >= len(subject) or token not in ("*", subject[at]):
            return False
    return len(pattern) == len(subject)
