"""The settings: what can be configured, and how it is read from file, environment and secrets.

Only ``worker.py`` and ``cli/`` import this package; the other rooms receive plain arguments.
"""

from bridge.config.describe import SettingInfo, describe_settings
from bridge.config.events import EventSettings
from bridge.config.loading import find_config_file, load_settings
from bridge.config.settings import (
    BusSettings,
    CommandSettings,
    EslSettings,
    FleetSettings,
    HttpSettings,
    LogSettings,
    NodeSettings,
    PolicySettings,
    Settings,
    WorkerSettings,
)
from bridge.config.warnings import settings_warnings

__all__ = [
    "BusSettings",
    "CommandSettings",
    "EslSettings",
    "EventSettings",
    "FleetSettings",
    "HttpSettings",
    "LogSettings",
    "NodeSettings",
    "PolicySettings",
    "SettingInfo",
    "Settings",
    "WorkerSettings",
    "describe_settings",
    "find_config_file",
    "load_settings",
    "settings_warnings",
]
