"""How the C library keeps the memory that was given back to it.

What is read, rendered and written comes in blocks of some hundred kilobytes that live for a moment. glibc returns the
end of its heap to the kernel whenever more than twice its largest block lies free there, so each block costs a system
call and a fault for every page of it: a fifth of what an event costs on its way to Redis. This room keeps a bounded
heap instead; what is larger than a block still goes back at once.
"""

from __future__ import annotations

import ctypes
import os
from typing import Final

KEPT: Final = 16 * 1024 * 1024
"""Bytes that may lie free at the end of the heap; a few reads' worth."""
LARGE: Final = 1024 * 1024
"""Blocks of so many bytes and more are mapped, and unmapped when they are free."""

# <malloc.h>
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_OPERATORS_OWN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")


def keep_heap() -> bool:
    """Keep ``KEPT`` bytes; False where the C library has no such setting, or the operator has set his own."""
    if any(name in os.environ for name in _OPERATORS_OWN):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False  # not glibc
    return bool(mallopt(_M_TRIM_THRESHOLD, KEPT)) and bool(mallopt(_M_MMAP_THRESHOLD, LARGE))
