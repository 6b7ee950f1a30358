"""How Python's garbage collector runs in a process that serves for weeks.

Nearly all that comes and goes here is freed by its reference count; what the collector is for, cycles, comes with
faults and reconnects. Left at its defaults it looked through everything imported several times a second under load,
40 to 80 ms each time, and every request waited. This room never switches it off.
"""

from __future__ import annotations

import gc
from typing import Final

YOUNG: Final = 10_000
"""So many more containers made than freed begin a look through the young ones; Python's default is 700."""


def spare_what_lasts(young: int = YOUNG) -> None:
    """Exempt all that exists now (modules, settings, connections) from collection, and collect less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(young, 10, 10)
