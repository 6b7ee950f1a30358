"""The envelope of an event as a type: every attribute that may stand beside ``data``, and what it means.

The encoder in ``event`` writes it by pieces, for speed; this room is what documents and schemas are made from, and
what a test holds the encoder to. It never stands on a path.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Data = dict[str, str | list[str]]


class EventEnvelope(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True):
    """One FreeSWITCH event as a CloudEvents 1.0 map."""

    specversion: Annotated[Literal["1.0"], Meta(description="Version of CloudEvents")]
    id: Annotated[
        str,
        Meta(
            description="<Core-UUID>:<Event-Sequence>, the same from every worker; "
            "<Core-UUID>:end:<uuid> of a synthetic event"
        ),
    ]
    source: Annotated[str, Meta(description="/freeswitch/<node>")]
    type: Annotated[str, Meta(description="org.freeswitch.<EVENT>")]
    node: Annotated[str, Meta(description="The FreeSWITCH server it came from")]
    worker: Annotated[str, Meta(description="The worker it came through")]
    epoch: Annotated[str, Meta(description="Identity of the event link; a later one compares greater")]
    sequence: Annotated[str, Meta(description="Counts per epoch and topic: a hole is a loss", pattern="^[0-9]{10,}$")]
    data: Annotated[Data, Meta(description="FreeSWITCH's own event: header names as sent, the body under _body")]
    subject: Annotated[str, Meta(description="The channel's Unique-ID; absent where the event has none")] = ""
    time: Annotated[
        str,
        Meta(
            description="When FreeSWITCH made it: RFC 3339, UTC, microseconds",
            extra_json_schema={"format": "date-time"},
        ),
    ] = ""
    synthetic: Annotated[bool, Meta(description="Made up by the bridge, else absent")] = False
    truncated: Annotated[bool, Meta(description="Left out: _body, for the bus's limit; else absent")] = False
    injected: Annotated[bool, Meta(description="Came from somebody's sendevent, else absent")] = False
