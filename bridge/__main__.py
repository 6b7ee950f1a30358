"""``python -m bridge`` and ``esl-bridge``: the way in.

This room imports nothing before it has seen to Ctrl-C.
"""

from __future__ import annotations

import signal
import sys


def main() -> int:
    """Run the command line and return its exit code."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # Until a command takes signals itself, Ctrl-C ends this program like any other: without a traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from bridge.cli import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
