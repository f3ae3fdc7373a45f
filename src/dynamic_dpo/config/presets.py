"""Settings under those of a preset: what a file leaves out is taken from the preset that it names."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from dynamic_dpo.config.yaml_files import load_yaml
from dynamic_dpo.eval.presets.table import PRESETS, preset_file


def with_preset(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings with everything that they leave out and their preset says.

    Sections are joined key by key, ``models`` too: a preset's baseline stands beside the user's models. A null
    section is that of the preset. Any other value of the user's replaces the preset's.

    Args:
        settings: Unchecked settings of an evaluation; not changed.

    Returns:
        The joined settings; those given where they name no preset, or one that does not exist (the check of the
        settings says so).

    Example:
        >>> joined = with_preset({"preset": "alpaca_eval_2", "dataset": {"max_samples": 8}, "models": {"m": "x"}})
        >>> joined["dataset"]["max_samples"], sorted(joined["models"])
        (8, ['gpt4_1106_preview', 'm'])
    """
    name = settings.get("preset")
    if not isinstance(name, str) or name not in PRESETS:
        return settings
    return _joined(load_yaml(preset_file(name)), settings)


def _joined(defaults: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    joined = dict(defaults)
    for key, value in own.items():
        below = joined.get(key)
        if isinstance(below, dict) and isinstance(value, dict):
            joined[key] = _joined(below, value)
        elif not (isinstance(below, dict) and value is None):
            joined[key] = copy.deepcopy(value)
    return joined
