"""The command policy: which requests may reach FreeSWITCH, seen through everything that wraps a command.

It lowers risk and is no sandbox: whoever may call `originate` can still do harm. It never talks to FreeSWITCH.
"""

from __future__ import annotations

from bridge.relay.policy.defaults import DEFAULT_DENY
from bridge.relay.policy.patterns import Pattern
from bridge.relay.policy.rules import Denial, Policy

__all__ = ["DEFAULT_DENY", "Denial", "Pattern", "Policy"]
