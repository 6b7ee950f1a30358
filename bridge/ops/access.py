"""Who may do what through HTTP: a token where one is asked for, and no other site's pages in between.

This room only says yes or no; it never logs what it was shown.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Mapping


class Access:
    """The rule for what is more than looking. ``token`` "" means that none is set; ``host`` is what is listened on."""

    def __init__(self, token: str = "", host: str = "") -> None:
        self._token = token.encode()
        self._host = host.lower()

    @property
    def needs_token(self) -> bool:
        """Whether a token is set."""
        return bool(self._token)

    def refusal_of_reading(self, headers: Mapping[str, str]) -> str:
        """Why call data may not be read with this request; "" when it may.

        Without a token the request must at least come by an address, not by a name: a foreign page that lets its own
        name point to this machine (DNS rebinding) is thereby kept out.
        """
        if self._token:
            return "" if self._bears_token(headers) else "the token is missing or wrong"
        if not self._is_own(headers):
            return "requests from other sites are not answered"
        if not self._is_address(headers.get("Host", "")):
            return "open the page by its IP address, or set http.token"
        return ""

    def refusal_of_acting(self, headers: Mapping[str, str]) -> str:
        """Why this request may not do anything; "" when it may. Without a token nobody may."""
        if not self._token:
            return "no http.token is set"
        if not self._is_own(headers):
            return "requests from other sites are not answered"
        # A form of another site cannot send JSON without asking first, and nobody answers that question.
        if headers.get("Content-Type", "").partition(";")[0].strip().lower() != "application/json":
            return "the body must be application/json"
        return "" if self._bears_token(headers) else "the token is missing or wrong"

    def _bears_token(self, headers: Mapping[str, str]) -> bool:
        kind, _, given = headers.get("Authorization", "").partition(" ")
        # compare_digest takes the same time wherever the first difference stands.
        return hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), self._token) and (
            kind.lower() == "bearer"
        )

    def _is_own(self, headers: Mapping[str, str]) -> bool:
        """Whether a browser says that its own page asks; what is no browser says nothing."""
        if headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
            return False
        origin = headers.get("Origin", "")
        return not origin or origin.partition("://")[2].lower() == headers.get("Host", "").lower()

    def _is_address(self, host: str) -> bool:
        name = host.lower()
        if name.startswith("["):
            name = name[1:].partition("]")[0]
        elif name.count(":") == 1:
            name = name.partition(":")[0]
        if name in ("localhost", self._host):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True
