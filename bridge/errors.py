"""Every error the bridge raises, as one tree; this room imports nothing.

::

    BridgeError
    ├── ConfigError                 the configuration or a credential is wrong (exit code 78)
    ├── EslError                    the Event Socket side
    │   ├── InvalidCommand          a command we refuse to write (CR, LF, NUL, lone surrogate); names the field
    │   ├── EslUrlError             not a fs:// URL
    │   ├── ProtocolError           the peer broke the framing, or replied to nothing
    │   │   └── LimitExceeded       a header block, body or queue is over its limit
    │   ├── AuthenticationFailed    FreeSWITCH refused the password or user
    │   ├── AccessDenied            FreeSWITCH's ACL refused our address
    │   ├── ConnectTimeout          TCP connect + authentication took longer than esl_connect_timeout
    │   ├── ConnectionLost          the link ended; whatever was written may or may not have run
    │   ├── NotConnected            there is no link, nothing was written
    │   ├── CommandTimeout          written, no reply in time; it may or may not have run
    │   ├── PoolBusy                the queue of waiting commands is full, nothing was written
    │   ├── BudgetSpent             the deadline came before the command could be written
    │   └── NotPermitted            FreeSWITCH's user may not have what the command or the link needs
    ├── MessageError                the bus's language
    │   ├── InvalidRequest          a command request is malformed; names the field
    │   └── InvalidMessage          an event, notice or reply could not be decoded
    ├── BusError                    the broker side
    │   ├── BusUnavailable          no connection to the broker
    │   ├── PublishWithdrawn        who published may not any more; nothing was written
    │   ├── NoConsumer              nobody consumes the queue that a request was put into
    │   ├── BusRefused              the broker refuses our credentials, rights or set-up (exit code 78)
    │   ├── MessageTooLarge         over the broker's size limit
    │   └── PublishFailed           a batch broke off; says how much is confirmed and how much in doubt
    └── CommandFailed               the reply to a request, as the client raises it; carries the reply
        ├── CommandError            status error: FreeSWITCH answered -ERR or -USAGE
        ├── NotExecuted             executed: no. It may simply be sent again
        │   ├── Denied, Invalid, Busy, Draining, Expired, Unavailable, NoRoute
        ├── TooLarge                the request (executed: no), or its reply (executed: yes)
        └── OutcomeUnknown          executed: unknown
            ├── Timeout             sent, no answer within the budget
            └── LinkLost            the link or the worker died after the command was written
"""

from __future__ import annotations


class BridgeError(Exception):
    """Root of all errors of the bridge."""


class ConfigError(BridgeError):
    """The configuration is wrong. ``problems`` holds one ``(key path, text)`` for each fault."""

    def __init__(self, problems: list[tuple[str, str]] | str) -> None:
        self.problems: list[tuple[str, str]] = [("", problems)] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(f"{key}: {text}" if key else text for key, text in self.problems))


# --- Event Socket ---------------------------------------------------------------------------------


class EslError(BridgeError):
    """Something about the Event Socket side."""


class InvalidCommand(EslError, ValueError):
    """A command that must not be written; ``field`` names the argument that is wrong."""

    def __init__(self, field: str, text: str) -> None:
        self.field = field
        super().__init__(f"{field}: {text}")


class EslUrlError(EslError, ValueError):
    """Not a ``fs://[username]:password@host[:port]`` URL. The text never holds the password."""


class ProtocolError(EslError):
    """The peer broke the protocol; the connection can only be closed."""


class LimitExceeded(ProtocolError):
    """A header block, a body or the list of pending replies is over its limit."""


class AuthenticationFailed(EslError):
    """FreeSWITCH answered ``-ERR invalid`` to ``auth`` or ``userauth``."""


class AccessDenied(EslError):
    """FreeSWITCH's ``apply-inbound-acl`` turned our address away."""


class ConnectTimeout(EslError):
    """No authenticated connection within ``esl_connect_timeout``."""


class ConnectionLost(EslError):
    """The connection ended; commands that were written have an unknown outcome."""


class NotConnected(EslError):
    """There is no connection and none could be made; nothing was written."""


class CommandTimeout(EslError):
    """The command was written and no reply came in time; its outcome is unknown."""


class PoolBusy(EslError):
    """Too many commands wait for a connection; nothing was written."""


class BudgetSpent(EslError):
    """The deadline came before the command could be written; nothing was written."""


class NotPermitted(EslError):
    """FreeSWITCH's user may not have something that is needed (named in the text); nothing was run."""


# --- messages --------------------------------------------------------------------------------------


class MessageError(BridgeError):
    """A message on the bus is not what the contract says."""


class InvalidRequest(MessageError, ValueError):
    """A command request is malformed.

    ``field`` names the field; ``id``, ``reply_to`` and ``meta`` are those of the request where they could be read,
    so that the caller can still be answered.
    """

    def __init__(
        self,
        field: str,
        text: str,
        *,
        id: str | None = None,
        reply_to: str | None = None,
        meta: dict[str, object] | None = None,
    ) -> None:
        self.field = field
        self.id = id
        self.reply_to = reply_to
        self.meta = meta
        super().__init__(f"{field}: {text}" if field else text)


class InvalidMessage(MessageError, ValueError):
    """An event, notice or reply could not be decoded."""


# --- bus -------------------------------------------------------------------------------------------


class BusError(BridgeError):
    """Something about the broker."""


class BusUnavailable(BusError):
    """There is no connection to the broker; nothing was written."""


class PublishWithdrawn(BusError):
    """Who published may not any more, as it turned out right before the write; nothing was written."""

    def __init__(self) -> None:
        super().__init__("withdrawn before it was written")


class NoConsumer(BusError):
    """Nobody consumes the queue that a request was put into; nothing ran."""


class BusRefused(BusError):
    """The broker refuses our credentials, our rights, or the set-up that we need (named in the text)."""


class MessageTooLarge(BusError, ValueError):
    """A message is over the broker's limit. ``size`` and ``limit`` in bytes."""

    def __init__(self, size: int, limit: int) -> None:
        self.size = size
        self.limit = limit
        super().__init__(f"message of {size} bytes is over the bus's limit of {limit} bytes")


class PublishFailed(BusError):
    """A batch broke off.

    Of its messages the first ``confirmed`` are at the broker, the next ``uncertain`` were written and not
    confirmed, and the rest was not written.
    """

    def __init__(self, text: str, *, confirmed: int, uncertain: int) -> None:
        self.confirmed = confirmed
        self.uncertain = uncertain
        super().__init__(text)


# --- replies, as the client raises them ---------------------------------------------------------------


class CommandFailed(BridgeError):
    """A reply whose status is not ``ok``; ``reply`` is the whole reply."""

    status: str = ""

    def __init__(self, text: str, reply: object = None) -> None:
        self.reply = reply
        super().__init__(text)


class CommandError(CommandFailed):
    """FreeSWITCH answered ``-ERR`` or ``-USAGE``."""

    status = "error"


class NotExecuted(CommandFailed):
    """The command did not run (``executed: no``); the same id may be sent again."""


class Denied(NotExecuted):
    """The command policy forbids it."""

    status = "denied"


class Invalid(NotExecuted):
    """The request is malformed; the text names the field."""

    status = "invalid"


class Busy(NotExecuted):
    """The in-flight or queue limit is reached."""

    status = "busy"


class Draining(NotExecuted):
    """The worker is shutting down and could not hand the request on."""

    status = "draining"


class Expired(NotExecuted):
    """The budget was spent before the command could be sent."""

    status = "expired"


class Unavailable(NotExecuted):
    """The target node is down or unknown, or no worker answers."""

    status = "unavailable"


class NoRoute(NotExecuted):
    """No node has this call or this tag."""

    status = "no_route"


class TooLarge(CommandFailed):
    """The request (``executed: no``) or its reply (``executed: yes``) is over the bus's limit."""

    status = "too_large"


class OutcomeUnknown(CommandFailed):
    """Nobody can say whether the command ran (``executed: unknown``)."""


class Timeout(OutcomeUnknown):
    """Sent, and no answer within the budget."""

    status = "timeout"


class LinkLost(OutcomeUnknown):
    """The ESL link, or the worker, died after the command was written."""

    status = "connection_lost"
