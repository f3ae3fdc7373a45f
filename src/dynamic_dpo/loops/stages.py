"""The settings of the commands of a round: the user's, and what the loop says itself."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from dynamic_dpo.loops.plan import LoopPlan, Stage


def rollout_stage(plan: LoopPlan, number: int) -> Stage:
    """Return the rollout of a round: its model answers prompts, those of later rounds drawn behind those of earlier.

    Args:
        plan: The loop.
        number: The round, from 1.
    """
    settings = _training(plan)
    section = settings["rollout"]
    prompts = section["prompts"]
    folder = plan.folder_of(number) / "rollout"
    settings["policy_name"] = plan.model_before(number)
    section |= {"model_name": None, "output_dir": str(folder), "seed": section["seed"] + number - 1}
    if plan.settings.fresh_prompts:
        prompts["skip"] += (number - 1) * section["limit"]
    prompts |= {
        # The training reads the pairs; what it names here is where prompts come from.
        "name": prompts["name"] or settings["dataset"]["dataset_name"],
        "split": prompts["split"] or settings["dataset"]["subset"],
        "exclude": [str(plan.excluded_path)],
        "exclude_split": "train",
    }
    return Stage(number, "rollout", folder, settings)


def train_stage(plan: LoopPlan, number: int, pairs: Path, beta: float | None) -> Stage:
    """Return the training of a round.

    Args:
        plan: The loop.
        number: The round, from 1.
        pairs: File or folder of the pairs.
        beta: Where the round before has left beta; ``None`` in the first round, and where it left none.
    """
    settings = _training(plan)
    folder = plan.folder_of(number) / "train"
    first = settings["policy_name"]
    settings["policy_name"] = plan.model_before(number)
    if number > 1 and plan.settings.reference == "initial":
        settings["ref_name"] = settings["ref_name"] or first
    if number > 1:
        # The adapter that the round before has trained is trained on.
        settings["peft"] = None
    settings["dataset"] |= {"dataset_name": str(pairs), "generated_data": True, "subset": "train"}
    settings["dpo_training"] |= {"save_dir": str(folder), "resume": True}
    if beta is not None and plan.settings.beta == "carry":
        settings["beta_update"]["beta_0"] = beta
    return Stage(number, "train", folder, settings, plan.settings.launch)


def evaluate_stage(plan: LoopPlan, number: int) -> Stage:
    """Return the evaluation of a round: the model that it trained against the one that it began with."""
    folder = plan.folder_of(number) / "evaluation"
    before, after = plan.name_of_model(number - 1), plan.name_of_model(number)
    settings: dict[str, Any] = copy.deepcopy(dict(plan.evaluation))
    settings |= {
        "models": {before: plan.model_before(number), after: str(plan.folder_of(number) / "train")},
        "baseline": before,
        "comparisons": "baseline",
        "output": {"dir": str(folder)},
    }
    if plan.measures_kl:
        settings["scoring"] = {"reference": plan.model_before(1)}
    return Stage(number, "evaluate", folder, settings)


def _training(plan: LoopPlan) -> dict[str, Any]:
    return copy.deepcopy(dict(plan.training))
