"""What the settings of several methods share; how a setting is stated: `dynamic_dpo.utils.settings`."""

from __future__ import annotations

from dataclasses import field
from typing import Any, Literal

from dynamic_dpo.utils.bounds import bounds_from
from dynamic_dpo.utils.settings import Stated

Scope = Literal["micro", "step"]
"""What a controller batch is: a device batch, or all pairs of the optimizer step."""

# Margins of a run that may be NaN or infinite before it stops, where nothing else is said.
MAX_NONFINITE = 32


def beta_setting(default: float = 0.1, *, in_files: float | None = None) -> Any:
    """Return the field of a method's beta, > 0.

    Args:
        default: Its value where an object is built in Python.
        in_files: Its default in files, where ``None`` stands for the run's ``beta_update.beta_0``.
    """
    stated = Stated(
        "Beta; null: beta_update.beta_0.",
        bounds_from(gt=0),
        has_file_default=True,
        file_default=in_files,
        null_in_files=True,
    )
    return field(default=default, metadata={"stated": stated})
