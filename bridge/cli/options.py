"""Options that several commands share, and the settings and bus they lead to.

This room never prints anything.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from bridge.config import Settings

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        help="Configuration file. Without it: what ESL_BRIDGE_CONFIG names, else ./bridge.toml, else the defaults.",
        show_default=False,
        metavar="FILE",
    ),
]
BusOption = Annotated[
    str | None,
    typer.Option(
        "--bus",
        "-b",
        help="The bus, instead of the configuration's: nats://HOST:PORT, redis://HOST:PORT/DB, ...",
        show_default=False,
        metavar="URL",
    ),
]


_CREDENTIALS = ("USERNAME", "PASSWORD", "PASSWORD_FILE", "CREDS", "NKEY", "TLS_CERT", "TLS_KEY")


def settings_for_bus(config: Path | None, bus: str | None) -> Settings:
    """Settings for a command that works on the bus only; ``bus`` replaces the configured broker and its credentials.

    Raises ``ConfigError``.
    """
    from bridge.config import load_settings

    if bus is None:
        return load_settings(config)
    # With a URL of its own such a command needs no file, unless one is named.
    import os

    environ = {key: value for key, value in os.environ.items() if not key.startswith("ESL_BRIDGE_")}
    environ["ESL_BRIDGE_BUS__URL"] = bus
    if config is None:
        return load_settings(Path(os.devnull), environ)
    # What the file says of its own broker is none of another's business, its password least of all.
    own = {f"ESL_BRIDGE_BUS__{key}": "" for key in _CREDENTIALS}
    return load_settings(config, {**os.environ, **own, "ESL_BRIDGE_BUS__URL": bus})
