"""Exit codes of contract section 7, and how an error becomes one.

This room prints what went wrong to stderr; it never ends the process itself.
"""

from __future__ import annotations

import sys

from bridge.errors import (
    AccessDenied,
    AuthenticationFailed,
    BridgeError,
    BusError,
    BusRefused,
    CommandFailed,
    ConfigError,
    EslError,
    InvalidCommand,
    InvalidRequest,
    Unavailable,
)

FINE = 0
FAILED = 1
USAGE = 2
UNREACHABLE = 69
WRONG_CONFIGURATION = 78
INTERRUPTED = 130


def code_of(error: BridgeError) -> int:
    """Return the exit code for an error that ended a command."""
    if isinstance(error, ConfigError | BusRefused | AuthenticationFailed | AccessDenied):
        return WRONG_CONFIGURATION
    if isinstance(error, InvalidRequest | InvalidCommand):
        return USAGE
    if isinstance(error, Unavailable) and error.reply is None:
        # Nobody answered at all: there is no worker on this bus.
        return UNREACHABLE
    if isinstance(error, CommandFailed):
        return FAILED
    if isinstance(error, BusError | EslError):
        return UNREACHABLE
    return FAILED


def tell(error: BridgeError) -> int:
    """Print an error for people to stderr and return its exit code."""
    if isinstance(error, ConfigError):
        count = len(error.problems)
        print(f"esl-bridge: the configuration is wrong ({count} problem{'s' if count > 1 else ''}):", file=sys.stderr)
        for key, text in error.problems:
            print(f"  {key}: {text}" if key else f"  {text}", file=sys.stderr)
    else:
        print(f"esl-bridge: {error}", file=sys.stderr)
    return code_of(error)
