"""Configuration: YAML files and ``key=value`` overrides become checked, immutable objects.

Importing this package loads neither YAML, pydantic nor torch; a name is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynamic_dpo.utils.lazy import lazy_names

if TYPE_CHECKING:
    from dynamic_dpo.config.loader import (
        apply_overrides,
        dump_yaml,
        get_evaluation_config,
        get_loop_config,
        get_training_config,
        load_yaml,
    )
    from dynamic_dpo.config.schema import EvaluationConfig, LoopConfig, TrainingConfig

__all__ = [
    "EvaluationConfig",
    "LoopConfig",
    "TrainingConfig",
    "apply_overrides",
    "dump_yaml",
    "get_evaluation_config",
    "get_loop_config",
    "get_training_config",
    "load_yaml",
]

_HOME = {
    "EvaluationConfig": "schema",
    "LoopConfig": "schema",
    "TrainingConfig": "schema",
    "apply_overrides": "loader",
    "dump_yaml": "loader",
    "get_evaluation_config": "loader",
    "get_loop_config": "loader",
    "get_training_config": "loader",
    "load_yaml": "loader",
}

__getattr__, __dir__ = lazy_names(__name__, _HOME)
