"""Reads a model's configuration where layers may differ in what it says."""

from __future__ import annotations

from typing import Any


def layer_values(config: Any, name: str) -> list[Any]:
    """Return the values of a setting: one, or that of every layer where layers have their own; none if it is absent.

    transformers raises on a setting that differs between layers (Gemma 4's ``head_dim``) when the whole is asked.
    """
    if name in (getattr(config, "per_layer_attributes", None) or ()):
        values = [getattr(layer, name, None) for layer in config.per_layer_config]
    else:
        values = [getattr(config, name, None)]
    return [value for value in values if value is not None]
