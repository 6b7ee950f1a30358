"""What a reload says of the difference between two configurations."""

from __future__ import annotations

from typing import Any

import pytest

from bridge.config import Settings
from bridge.reload import Difference, differences


def settings(**sections: Any) -> Settings:
    node = {"name": "fs1", "url": "fs://:geheim1@h1"}
    return Settings.model_validate({"node": [node], **sections})


def told(old: Settings, new: Settings) -> list[str]:
    return [str(one) for one in differences(old, new)]


def test_nothing_differs_from_itself() -> None:
    assert told(settings(), settings()) == []


def test_a_key_is_told_with_both_values() -> None:
    assert told(settings(), settings(commands={"max_in_flight": 7})) == ["commands.max_in_flight: 512 -> 7"]
    assert told(settings(), settings(policy={"deny": ["x"]})) == ['policy.deny: default -> ["x"]']


def test_nodes_and_routes_come_and_go_as_one_line() -> None:
    two = [{"name": "fs1", "url": "fs://:geheim1@h1"}, {"name": "fs2", "url": "fs://:geheim2@h2:8022"}]
    assert told(settings(), settings(node=two)) == ["node fs2: fs://:***@h2:8022 (new)"]
    assert told(settings(node=two), settings()) == ["node fs2: fs://:***@h2:8022 (gone)"]
    route = {"name": "calls", "topic": "my.{uuid}.{name}"}
    assert told(settings(), settings(events={"route": [route]})) == ['events.route calls: "my.{uuid}.{name}" (new)']


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        (
            {"node": [{"name": "fs1", "url": "fs://:geheim1@h1"}]},
            {"node": [{"name": "fs1", "url": "fs://:geheim2@h1"}]},
            "node fs1.url: fs://:***@h1 -> fs://:***@h1 (another one)",
        ),
        (
            {"http": {"token": "geheim-geheim-1"}},
            {"http": {"token": "geheim-geheim-2"}},
            "http.token: *** -> *** (another one)",
        ),
        ({}, {"http": {"token": "geheim-geheim-2"}}, 'http.token: "" -> ***'),
    ],
)
def test_a_secret_that_changed_is_told_without_its_value(old: Any, new: Any, line: str) -> None:
    shown = told(settings(**old), settings(**new))
    assert shown == [line]
    assert "geheim" not in str(shown)


@pytest.mark.parametrize(
    ("key", "fixed"),
    [("bus.url", True), ("http.listen", True), ("http.console", False), ("commands.queue", True),
     ("commands.max_in_flight", False), ("fleet.standby", True), ("node fs1.url", False), ("trace.exporter", True)],
)  # fmt: skip
def test_some_changes_take_a_restart(key: str, fixed: bool) -> None:
    assert Difference(key, "a", "b").fixed is fixed
