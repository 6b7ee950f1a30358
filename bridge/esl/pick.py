"""A few headers of an event, read without decoding the others: for those who look at many and need little of each.

This room knows only the spellings that FreeSWITCH's own code writes; for any other see ``Event.get``.
"""

from __future__ import annotations

from typing import Any

import msgspec

from bridge.esl.envelope import UNREADABLE
from bridge.esl.event import Event


class HeaderPick:
    """Reads the headers of these names, each a text; a tenth of what a map of all headers costs."""

    __slots__ = ("_decode", "names")

    def __init__(self, *names: str) -> None:
        self.names = names
        fields = [f"header_{number}" for number in range(len(names))]
        spellings = dict(zip(fields, names, strict=True))
        picked = msgspec.defstruct("Picked", [(one, str | None, None) for one in fields], rename=spellings, gc=False)
        self._decode: Any = msgspec.json.Decoder(picked).decode

    def of(self, event: Event) -> tuple[str | None, ...]:
        """The values in the order of ``names``; None for what the event does not have, or not as one text."""
        text = event.raw if event.format == "json" else event._json
        if text is not None:
            try:
                return msgspec.structs.astuple(self._decode(text))
            except UNREADABLE:
                pass  # one of them is an array, or the text needs repair
        headers = event.headers
        return tuple([value if isinstance(value := headers.get(name), str) else None for name in self.names])
