"""A status line at the bottom of a terminal, rewritten in place; silent where there is no terminal.

This room writes to the stream it is given and knows nothing of what it shows.
"""

from __future__ import annotations

import shutil
from types import TracebackType
from typing import Self, TextIO


class StatusLine:
    """One line that is rewritten; used as a context it takes itself away at the end."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._shown = False
        self.active = stream.isatty()

    def show(self, text: str) -> None:
        """Put ``text`` in place of what was shown."""
        if self.active:
            width = shutil.get_terminal_size().columns
            self._stream.write(f"\r\x1b[2K\x1b[2m{text[: width - 1]}\x1b[0m")
            self._stream.flush()
            self._shown = True

    def clear(self) -> None:
        """Take the line away, so that other output can be written."""
        if self._shown:
            self._stream.write("\r\x1b[2K")
            self._stream.flush()
            self._shown = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.clear()
