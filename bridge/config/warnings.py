"""Settings that are valid and unwise: what ``check`` and ``run`` warn about.

This room never refuses anything.
"""

from __future__ import annotations

from bridge.config.settings import Settings
from bridge.config.values import is_loopback, split_listen


def settings_warnings(settings: Settings) -> list[tuple[str, str]]:
    """Return ``(key path, text)`` for each setting that deserves a second look."""
    found = []
    if not settings.nodes:
        found.append(
            ("node", "no FreeSWITCH node is configured: those that `esl-bridge nodes add` put on the bus are served")
        )
    found += [(f"bus.{key}", text) for key, text in settings.bus.unused.items()]
    if settings.commands.durable and settings.bus.url.scheme not in ("nats", "tls"):
        found.append(("commands.durable", "is not used: it is for NATS; on Redis commands.queue is durable as it is"))
    for number, node in enumerate(settings.nodes):
        url = node.esl_url
        if node.has_default_password_off_loopback:
            found.append(
                (
                    f"node[{number}].url",
                    f"FreeSWITCH's default password on {url.host}: anyone who reaches it can use it",
                )
            )
        if node.tls_ca and url.scheme != "fs+tls":
            found.append((f"node[{number}].tls_ca", f"is not used: {url.scheme}:// does not speak TLS"))
        if url.scheme == "fs+tls" and not node.tls_verify:
            found.append((f"node[{number}].tls_verify", "the server's certificate is not checked"))
    if settings.http.listen and not is_loopback(split_listen(settings.http.listen)[0]):
        found.append(("http.listen", f"{settings.http.listen} is open to the network and asks for no password"))
        if settings.http.console:
            found.append(("http.console", "its token crosses the network as it is: put a proxy with TLS before it"))
    if settings.policy.deny == []:
        found.append(("policy.deny", "nothing is denied: whoever reaches the bus can run system commands"))
    return found
