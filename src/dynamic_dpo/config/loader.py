"""From a file to a checked configuration: the names that users import, gathered in one place.

Files and overrides are read by ``yaml_files``; the dictionary they give is checked by ``schema``, which is loaded
only when a configuration is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dynamic_dpo.config.yaml_files import apply_overrides, dump_yaml, load_yaml

if TYPE_CHECKING:
    from dynamic_dpo.config.schema import EvaluationConfig, LoopConfig, TrainingConfig

__all__ = [
    "apply_overrides",
    "dump_yaml",
    "get_evaluation_config",
    "get_loop_config",
    "get_training_config",
    "load_yaml",
]


def get_training_config(config: dict[str, Any]) -> TrainingConfig:
    """Check a training configuration; see :func:`dynamic_dpo.config.schema.get_training_config`."""
    from dynamic_dpo.config import schema

    return schema.get_training_config(config)


def get_loop_config(config: dict[str, Any]) -> LoopConfig:
    """Check the configuration of a loop; see :func:`dynamic_dpo.config.schema.get_loop_config`."""
    from dynamic_dpo.config import schema

    return schema.get_loop_config(config)


def get_evaluation_config(config: dict[str, Any]) -> EvaluationConfig:
    """Check an evaluation configuration; see :func:`dynamic_dpo.config.schema.get_evaluation_config`."""
    from dynamic_dpo.config import schema

    return schema.get_evaluation_config(config)
