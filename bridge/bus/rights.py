"""What a worker is going to do with a broker, asked before it does it.

This room only has the words for it; each bus finds out in its own way, and nothing is sent to anybody for it.
"""

from __future__ import annotations

from typing import Literal

import msgspec


class Use(msgspec.Struct, frozen=True):
    """``kind`` of use of an ``address``, and the ``setting`` that asks for it.

    ``topic`` is published to, ``stream`` appended to (Redis), ``queue`` taken from, ``reply`` answered to, ``api``
    asked (NATS).
    """

    kind: Literal["topic", "stream", "queue", "reply", "api"]
    address: str
    setting: str
