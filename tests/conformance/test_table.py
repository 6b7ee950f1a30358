"""The conformance table is complete: every row has a test that bears its number."""

from __future__ import annotations

import re
from pathlib import Path

ROWS = range(1, 58)


def test_every_row_has_a_test():
    text = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*_rows.py"))
    tested = {int(number) for number in re.findall(r"^def test_row_(\d\d)_", text, re.MULTILINE)}
    assert tested == set(ROWS)
