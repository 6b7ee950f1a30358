"""Command requests and replies under one name: the nouns of contract sections 4 and 5.

It holds nothing of its own; the rooms are ``request``, ``validation`` and ``reply``.
"""

from __future__ import annotations

from bridge.messages.reply import (
    EXECUTED,
    STATUSES,
    CommandReply,
    Executed,
    Status,
    StatusMeaning,
    Timing,
    agreed_executed,
    decode_reply,
    encode_reply,
    worst_status,
)
from bridge.messages.request import (
    CommandRequest,
    Op,
    encode_request,
    fingerprint,
    parse_request,
)
from bridge.messages.validation import check_request

__all__ = [
    "EXECUTED",
    "STATUSES",
    "CommandReply",
    "CommandRequest",
    "Executed",
    "Op",
    "Status",
    "StatusMeaning",
    "Timing",
    "agreed_executed",
    "check_request",
    "decode_reply",
    "encode_reply",
    "encode_request",
    "fingerprint",
    "parse_request",
    "worst_status",
]
