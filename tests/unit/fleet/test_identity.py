"""A worker's name is stable over restarts, unique on its host, and says clearly when it cannot be had."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bridge.errors import ConfigError
from bridge.fleet.identity import take_identity


def test_auto_takes_the_first_free_number_and_gives_it_back(tmp_path: Path) -> None:
    first = take_identity("auto", str(tmp_path))
    second = take_identity("auto", str(tmp_path))
    assert first.id.endswith("-1")
    assert second.id.endswith("-2")
    first.release()
    again = take_identity("auto", str(tmp_path))
    assert again.id == first.id
    assert again.instance != first.instance
    for one in (second, again):
        one.release()


def test_a_name_held_by_another_process_is_refused(tmp_path: Path) -> None:
    program = (
        "import sys; from bridge.fleet.identity import take_identity\n"
        f"one = take_identity('w1', {str(tmp_path)!r}); print('held', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match=r"worker\.id"):
            take_identity("w1", str(tmp_path))
    finally:
        other.communicate("")
    take_identity("w1", str(tmp_path)).release()


def test_a_folder_that_cannot_be_had_is_replaced_unless_something_must_last(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way", "utf-8")
    with pytest.raises(ConfigError, match=r"worker\.state_dir"):
        take_identity("auto", str(blocked / "state"), durable=True)
    one = take_identity("auto", str(blocked / "state"))
    assert one.temporary
    assert one.state_dir.is_dir()
    one.release()
    assert not one.state_dir.exists()
