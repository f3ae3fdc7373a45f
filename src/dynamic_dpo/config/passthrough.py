"""Settings that are handed on to the Hugging Face training arguments: known by name, checked by type.

The arguments are read from the installed ``transformers``, which is imported only if a file holds such a key.
One that another key of ours already decides is refused.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import json
import types
from collections.abc import Mapping
from typing import Any, Union, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from dynamic_dpo.config.base import PassthroughSection, fields_by_key
from dynamic_dpo.config.phrases import given, requirement
from dynamic_dpo.config.yaml_files import TRUTH_WORDS_OF_YAML_1_1

# Hugging Face name -> the key of the same section that means it. A section without that key lets it pass.
_OUR_NAME = {
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "batch_size",
    "per_device_eval_batch_size": "eval_batch_size",
    "gradient_accumulation_steps": "gradient_accumulation",
    "logging_steps": "log_steps",
    "logging_strategy": "log_steps",
    "output_dir": "save_dir",
    "report_to": "report",
    "resume_from_checkpoint": "resume",
}
# Hugging Face name -> the key elsewhere that decides it, for both trainings and for preferences alone.
_DECIDED_BY = {"bf16": "precision", "fp16": "precision"}
_DECIDED_BY_IN_DPO = {
    "gradient_checkpointing": "engine.gradient_checkpointing",
    "activation_checkpointing": "engine.gradient_checkpointing",
    "auto_find_batch_size": "engine.tokens_per_microbatch",
    "label_smoothing_factor": "dpo.label_smoothing",
    "load_best_model_at_end": "dpo_training.keep_best",
}
_STRATEGIES = {"eval_strategy": "eval_steps", "save_strategy": "save_steps"}


@functools.cache
def training_argument_types() -> dict[str, Any]:
    """Return name and type of each field of ``transformers.TrainingArguments`` (imports transformers)."""
    from transformers import TrainingArguments

    hints = get_type_hints(TrainingArguments)
    return {field.name: hints[field.name] for field in dataclasses.fields(TrainingArguments) if field.init}


def check_passthrough(
    name: str, model: type[PassthroughSection], section: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str], list[str]]:
    """Check the keys of a section that are not its own.

    Args:
        name: The section's name, for messages.
        model: The section's own keys.
        section: The section as given.

    Returns:
        The section with the values of foreign keys in the type of the argument, the problems as finished
        lines, and the keys that are neither ours nor a training argument.
    """
    own = fields_by_key(model)
    settled = dict(section)
    problems: list[str] = []
    unknown: list[str] = []
    for key in [key for key in section if key not in own]:
        value = section[key]
        if key not in training_argument_types():
            unknown.append(key)
        elif key == "hub_token":
            problems.append(
                f"{name}.hub_token must not stand in a file: the configuration is saved with the run; "
                "log in with `hf auth login` or set HF_TOKEN"
            )
        elif (ours := _decided_by(name, key, own)) is not None:
            problems.append(f"{name}.{key} is decided by {ours}; remove it and set {ours} instead")
        else:
            settled[key], trouble = _coerce(value, training_argument_types()[key])
            if trouble is None and _STRATEGIES.get(key) in own:
                trouble = _settle_strategy(f"{name}.{_STRATEGIES[key]}", settled[key], section, settled)
            if trouble is not None:
                problems.append(f"{name}.{key} {trouble}, got {given(value)}")
    return settled, problems, unknown


def _decided_by(name: str, key: str, own: Mapping[str, Any]) -> str | None:
    if _OUR_NAME.get(key) in own:
        return f"{name}.{_OUR_NAME[key]}"
    return _DECIDED_BY.get(key) or (_DECIDED_BY_IN_DPO.get(key) if name == "dpo_training" else None)


def _settle_strategy(
    steps_path: str, strategy: str, section: Mapping[str, Any], settled: dict[str, Any]
) -> str | None:
    """Let a strategy other than ``steps`` switch off the default of the steps key, but not what was given."""
    steps_key = steps_path.rpartition(".")[2]
    if strategy == "steps":
        if steps_key in section and section[steps_key] is None:
            return f"contradicts {steps_path}, which is null; give a number of steps there"
    elif section.get(steps_key) is not None:
        return f"contradicts {steps_path} ({section[steps_key]}); remove one of them"
    else:
        settled[steps_key] = None
    return None


def _coerce(value: Any, hint: Any) -> tuple[Any, str | None]:
    """Return the value in the type of a training argument and, if it has none of its types, what is wrong."""
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    enums = [option for option in options if isinstance(option, type) and issubclass(option, enum.Enum)]
    if enums:
        choices = [member.value for member in enums[0]]
        # YAML 1.1 reads a bare `no` as false.
        value = "no" if value is False and "no" in choices else value
        known = isinstance(value, str) and value in choices
        return value, None if known else f"must be one of {', '.join(choices)}"
    strict = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
    try:
        value = TypeAdapter(hint, config=strict).validate_python(value)
    except ValidationError as error:
        if any(problem["type"] == "finite_number" for problem in error.errors()):
            return value, "must be a finite number"
        return value, requirement(hint)
    if dict in (get_origin(option) or option for option in options) and (word := _truth_word_in(value)):
        return value, f"must say true or false instead of {word}, which YAML 1.2 reads as text"
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return value, "must hold only what YAML can: mappings, lists, text, finite numbers, true, false, null"
    return value, None


def _truth_word_in(value: Any) -> str | None:
    """Return a text that YAML 1.1 reads as a truth value, such as ``no``, if a mapping holds one.

    A mapping's values have no known types: the text would be handed on, and count as true.
    """
    if isinstance(value, str) and value.lower() in TRUTH_WORDS_OF_YAML_1_1:
        return value
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next((word for part in parts if (word := _truth_word_in(part))), None)
