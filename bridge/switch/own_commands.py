"""The API lines that this worker wrote lately, to know its own ``API`` events again.

This room forgets the oldest line when it is full, and keeps no text: of each line only its hash.
"""

from __future__ import annotations

from collections import OrderedDict


class OwnCommands:
    """A bounded multiset of API command lines, shared by the pools (which add) and the links (which take)."""

    def __init__(self, limit: int = 4096) -> None:
        self._limit = limit
        self._number = 0
        self._order: OrderedDict[int, int] = OrderedDict()
        self._lines: dict[int, list[int]] = {}  # not deques: each of those takes 600 bytes

    def __len__(self) -> int:
        return len(self._order)

    def add(self, line: str) -> None:
        """A pool is about to write the API command ``line``."""
        self._add(_key(line.encode("utf-8", "replace")))

    def _add(self, key: int) -> None:
        self._number += 1
        self._order[self._number] = key
        self._lines.setdefault(key, []).append(self._number)
        if len(self._order) > self._limit:
            self._forget(self._order.popitem(last=False)[1])

    def add_command(self, command: bytes) -> None:
        """The same for a rendered command; what is neither ``api`` nor ``bgapi`` is no API line."""
        line = _line_of(command)
        if line is not None:
            self._add(_key(line))

    def withdraw_command(self, command: bytes) -> None:
        """A rendered command certainly did not run: the next such event is another's."""
        line = _line_of(command)
        if line is not None:
            self._take(_key(line))

    def take(self, verb: str, argument: str) -> bool:
        """Whether an ``API`` event with this API-Command and -Argument is ours; each line answers once."""
        return self._take(_key(f"{verb} {argument}".encode("utf-8", "replace")))

    def _take(self, key: int) -> bool:
        if key not in self._lines:
            return False
        del self._order[self._forget(key)]
        return True

    def clear(self) -> None:
        """Forget all: a new link does not get the events of what was written before it; such ones are another's."""
        self._order.clear()
        self._lines.clear()

    def _forget(self, key: int) -> int:
        numbers = self._lines[key]
        oldest = numbers.pop(0)
        if not numbers:
            del self._lines[key]
        return oldest


def _line_of(command: bytes) -> bytes | None:
    for verb in (b"api ", b"bgapi "):
        if command.startswith(verb):
            return command[len(verb) : command.index(b"\n")]
    return None


def _key(line: bytes) -> int:
    return hash(line.strip())
