"""What every table of the configuration has in common.

This room knows no setting.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A table of the file: strict about types, closed to unknown keys, never shows its input in errors."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        hide_input_in_errors=True,
        allow_inf_nan=False,
        regex_engine="python-re",
    )
