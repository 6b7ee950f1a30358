"""The class of a failure: the word for its back-off, its metric and its notice.

This room only names; it raises nothing.
"""

from __future__ import annotations

import ssl

from bridge.errors import (
    AccessDenied,
    AuthenticationFailed,
    CommandTimeout,
    ConnectionLost,
    ConnectTimeout,
    NotConnected,
    NotPermitted,
    ProtocolError,
)

_CLASSES: tuple[tuple[type[Exception], str], ...] = (
    (ConnectTimeout, "timeout"),
    (CommandTimeout, "timeout"),
    (AccessDenied, "access_denied"),
    (AuthenticationFailed, "auth_failed"),
    (NotPermitted, "setup_denied"),
    (ProtocolError, "protocol_error"),
    (ConnectionLost, "eof"),
)

_REFUSED = (ConnectionRefusedError, FileNotFoundError, ConnectionResetError)


def failure_class(error: BaseException) -> str:
    """``refused``, ``unreachable``, ``tls``, ``timeout``, ``access_denied``, ``auth_failed``, ``setup_denied``...

    ...``protocol_error`` or ``eof``; what is none of these is ``unreachable``.
    """
    if isinstance(error, NotConnected):
        cause = error.__cause__
        if isinstance(cause, _REFUSED):
            return "refused"
        return "tls" if isinstance(cause, ssl.SSLError) else "unreachable"
    for kind, name in _CLASSES:
        if isinstance(error, kind):
            return name
    return "unreachable"
