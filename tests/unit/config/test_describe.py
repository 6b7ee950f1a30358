from __future__ import annotations

import tomllib

from bridge.config import Settings, describe_settings


def test_every_setting_is_described_with_its_unit():
    described = list(describe_settings())
    assert len({info.key for info in described}) == len(described)
    for info in described:
        assert info.description, info.key
        assert info.type, info.key
    keys = {info.key: info for info in described}
    assert keys["esl.esl_cmd_polling_itv"].unit == "us"
    assert keys["esl.esl_cmd_timeout"].unit == "ms"
    assert keys["worker.drain_timeout"].unit == "s"
    assert keys["bus.codec"].type == '"json" | "msgpack"'
    assert "node[].url" in keys


def test_the_described_defaults_are_the_ones_that_hold():
    lines: dict[str, list[str]] = {}
    for info in describe_settings():
        section, _, key = info.key.partition(".")
        if info.default and "[]" not in info.key:
            lines.setdefault(section, []).append(f"{key} = {info.default}")
    text = "\n".join(f"[{section}]\n" + "\n".join(keys) for section, keys in lines.items())
    assert Settings.model_validate(tomllib.loads(text)) == Settings()
