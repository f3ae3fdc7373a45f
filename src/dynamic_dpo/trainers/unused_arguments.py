"""Training arguments without effect on a preference training: each is named in a warning where it was given."""

from __future__ import annotations

import logging
from dataclasses import MISSING, fields
from typing import Any, Final

logger = logging.getLogger("dynamic_dpo")

_EVALUATION = "every pair of an evaluation is scored as in training, and its rewards are the predictions"
# What is true instead, by argument: of transformers' TrainingArguments, then of trl.DPOConfig.
UNUSED: Final[dict[str, str]] = {
    "label_smoothing_factor": "it smooths next-token labels; labels of pairs are smoothed by a method that reads it",
    "average_tokens_across_devices": "a step's loss is the mean over its pairs on all devices",
    "include_num_input_tokens_seen": "run_summary.json holds the pairs and tokens of a run",
    "length_column_name": "the engine measures each step's rows itself",
    "label_names": _EVALUATION,
    "prediction_loss_only": _EVALUATION,
    "include_for_metrics": _EVALUATION,
    "batch_eval_metrics": _EVALUATION,
    "eval_do_concat_batches": _EVALUATION,
    "eval_use_gather_object": _EVALUATION,
    "eval_accumulation_steps": _EVALUATION,
    "liger_kernel_config": "Liger's kernels are not used",
    "resume_from_checkpoint": "it is train(resume_from_checkpoint=...) that resumes",
    "padding_free": "rows are packed without padding wherever the model can: see engine.layout",
    "pad_to_multiple_of": "rows are packed without padding wherever the model can: see engine.layout",
    "precompute_ref_batch_size": "engine.tokens_per_microbatch decides on the memory of the reference's passes",
    "pad_token": "no padding token enters a sum; set the tokenizer's for other uses",
}


def given_without_effect(args: Any) -> list[str]:
    """Return what was given and has no effect: each argument with its value and what is true instead.

    Args:
        args: `transformers.TrainingArguments` or `trl.DPOConfig`.
    """
    found = []
    for entry in fields(args):
        if entry.name not in UNUSED:
            continue
        default = entry.default_factory() if entry.default_factory is not MISSING else entry.default
        value = getattr(args, entry.name)
        # "auto" is made a number, or None, when the arguments are made.
        if value != default and not (default == "auto" and value is None):
            found.append(f"{entry.name}={value!r}: {UNUSED[entry.name]}")
    return found


def warn_of_unused(args: Any) -> None:
    """Warn once of all arguments that were given and have no effect."""
    if found := given_without_effect(args):
        logger.warning("training arguments without effect here: %s", "; ".join(found))
