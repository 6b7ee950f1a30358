"""Losses that could not be told yet: they wait for their node to be ours again, over the end of the worker too.

Whether somebody else had the node meanwhile shows in the fencing tokens: he published those events, or told what he
missed. This room never decides that something is lost, and never tells it itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

import msgspec
import structlog

from bridge.bus.base import Message
from bridge.relay.chunks import Loss, add_loss

log = structlog.get_logger(__name__)


class _Kept(msgspec.Struct, array_like=True):
    """The file: losses by node, and gap notices that were worded and could not leave."""

    losses: dict[str, list[Loss]] = {}
    notices: list[Message] = []


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Kept).decode


class Untold:
    """What a worker still owes to its subscribers, by node. ``path`` is its file; None where nothing outlives it."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._kept = _Kept()

    def open(self) -> None:
        """Read what an earlier run left. A file that cannot be read is put aside: its name gets ``.broken``."""
        if self._path is None:
            return
        try:
            self._kept = _decode(self._path.read_bytes())
        except FileNotFoundError:
            return
        except (OSError, msgspec.MsgspecError) as error:
            log.error("losses of an earlier run cannot be read", path=str(self._path), reason=str(error))
            with contextlib.suppress(OSError):
                self._path.replace(self._path.with_name(self._path.name + ".broken"))

    @property
    def nodes(self) -> list[str]:
        """Nodes that something is owed for."""
        return list(self._kept.losses)

    def owe(self, node: str, losses: Iterable[Loss]) -> None:
        """Keep losses of a node; they are on disk after ``save``."""
        for loss in losses:
            add_loss(self._kept.losses.setdefault(node, []), loss)

    def due(self, node: str, token: int) -> list[Loss]:
        """Take the losses of a node that is ours again, as far as nobody had it since.

        ``token`` is the fencing token of the one who published last (0: nobody knows one).
        """
        losses = self._kept.losses.pop(node, None)
        if losses is None:
            return []
        self.save()
        return [loss for loss in losses if int(loss.epoch.partition(".")[0], 16) >= token]

    def put_notices(self, notices: Iterable[Message]) -> None:
        """Keep notices that could not leave; they are on disk after ``save``."""
        self._kept.notices += notices

    def take_notices(self) -> list[Message]:
        """The notices that an earlier run could not send."""
        notices, self._kept.notices = self._kept.notices, []
        if notices:
            self.save()
        return notices

    def save(self) -> bool:
        """Write the file (none where nothing is owed); whether what is owed outlives this worker."""
        kept, path = self._kept, self._path
        if path is None:
            return not kept.losses and not kept.notices
        try:
            if not kept.losses and not kept.notices:
                path.unlink(missing_ok=True)
                return True
            new = path.with_name(path.name + ".new")
            new.write_bytes(_encode(kept))
            new.replace(path)
        except OSError as error:
            log.error("losses cannot be kept on disk", path=str(path), reason=str(error))
            return False
        return True

    def log_lost(self) -> None:
        """Say in the log what nobody will be told: the worker ends, and nothing outlives it."""
        for node, losses in self._kept.losses.items():
            for loss in losses:
                log.error(
                    "events were lost, and nobody can be told",
                    node=node,
                    epoch=loss.epoch,
                    reason=loss.reason,
                    events=loss.count,
                    exact=loss.exact,
                    before=loss.before,
                )
        if self._kept.notices:
            log.error("gap notices could not leave", notices=len(self._kept.notices))
