"""From the file of a loop to its plan: what the commands of every round are told, and what the loop says itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynamic_dpo.errors import ConfigError

if TYPE_CHECKING:
    from dynamic_dpo.config.base import Section
    from dynamic_dpo.config.schema import LoopConfig
    from dynamic_dpo.loops.plan import LoopPlan, Stage, StageName

COMMANDS = {"rollout": "rollout", "train": "train-dpo", "evaluate": "evaluate"}
"""Stage to the command that runs it."""

_SET_BY_THE_LOOP = {
    "rollout": ("model_name", "output_dir", "shard", "push_to_hub", "hub_dataset_id"),
    "dpo_training": ("save_dir", "save_dpo_dir", "resume", "push_to_hub", "hub_model_id"),
}


def build_plan(config: LoopConfig) -> LoopPlan:
    """Return what the file of a loop asks for; loads no model and asks no judge.

    Raises:
        ConfigError: If settings are missing, cannot be carried out together, or are the loop's to say.
        JudgeError: If a judge has no key.
    """
    from dynamic_dpo.loops.plan import LoopPlan
    from dynamic_dpo.loops.settings import LoopSettings
    from dynamic_dpo.loops.stages import evaluate_stage, rollout_stage

    settings = config.to_dict()
    loop = LoopSettings(**settings.pop("iterate"))
    evaluation = settings.pop("evaluation")
    _refuse_what_the_loop_says(config)
    _refuse_what_cannot_be(config)
    plan = LoopPlan(
        settings=loop,
        training=settings,
        evaluation=evaluation,
        run=run_stage,
        excluded=lambda: _excluded(config),
        measures_kl=_measures_kl(config),
        settled=settled,
    )
    # What is wrong with a later stage is to be said before the first has run for hours.
    _check_rollout(dict(rollout_stage(plan, 1).settings))
    _check_evaluation(dict(evaluate_stage(plan, 1).settings))
    return plan


def run_stage(stage: Stage) -> int:
    """Run the command of a stage as a process of its own, and return its exit code."""
    from dynamic_dpo.config import dump_yaml
    from dynamic_dpo.utils.files import write_text
    from dynamic_dpo.utils.parallel.children import command_line, run_child

    path = write_text(stage.folder.parent / f"{stage.name}.yaml", dump_yaml(stage.settings))
    return run_child(command_line(COMMANDS[stage.name], path, stage.launch))


def settled(name: StageName, settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the settings of a stage with all defaults of now; as they are where they cannot be read any more."""
    from dynamic_dpo.config import get_evaluation_config, get_training_config

    check = get_evaluation_config if name == "evaluate" else get_training_config
    try:
        return check(dict(settings)).to_dict()
    except ConfigError:
        return settings


def _refuse_what_the_loop_says(config: LoopConfig) -> None:
    given = [
        f"{name}.{key}"
        for name, keys in _SET_BY_THE_LOOP.items()
        for key in keys
        if _is_given(getattr(config, name), key)
    ]
    if given:
        raise ConfigError(
            f"{', '.join(given)} cannot be given: the loop says that itself for every round (iterate.output_dir is "
            "the folder of everything). Leave it out"
        )


def _is_given(section: Section, key: str) -> bool:
    return key in section.model_fields_set and getattr(section, key) != type(section).model_fields[
        key
    ].get_default(call_default_factory=True)


def _refuse_what_cannot_be(config: LoopConfig) -> None:
    loop, rollout = config.iterate, config.rollout
    for name, engine in (
        ("rollout.engine", rollout.engine),
        ("evaluation.generation.engine", config.evaluation.generation.engine),
    ):
        if engine == "server":
            raise ConfigError(
                f"{name} cannot be server in a loop: no server has the weights that the rounds train; take "
                "transformers or vllm"
            )
    if loop.reference == "previous" and config.ref_name is not None:
        raise ConfigError(
            "ref_name has no effect while iterate.reference is previous: leave it out, or say initial there"
        )
    if loop.fresh_prompts and rollout.limit is None:
        raise ConfigError(
            "rollout.limit is required while iterate.fresh_prompts is true: it says how many prompts a round takes "
            "from the draw. Set it, or iterate.fresh_prompts=false for the same prompts in every round"
        )
    if loop.kl_budget is not None and not _measures_kl(config):
        raise ConfigError(
            "iterate.kl_budget needs outputs that the KL can be estimated on: set "
            "evaluation.generation.temperature=1 and evaluation.generation.top_p=1"
        )
    for key in ("log_dir", "dpo_log_dir"):
        value = getattr(config.margin_log, key)
        if value is not None and value.startswith(("/", "~")):
            raise ConfigError(
                f"margin_log.{key} must be a folder within each run's own, got {value}: the rounds would write over "
                "each other"
            )
    if not config.evaluation.dataset.name:
        raise ConfigError(
            "evaluation.dataset.name is required: a hub name, or a local file or folder of prompts, on which the "
            "models of the rounds are compared"
        )


def _measures_kl(config: LoopConfig) -> bool:
    how = config.evaluation.generation.settings()
    return bool(how.samples) and how.temperature == 1 and how.top_p == 1


def _check_rollout(settings: dict[str, Any]) -> None:
    from dynamic_dpo.cli.build_rollout import build_plan, check_judge
    from dynamic_dpo.config import get_training_config

    config = get_training_config(settings)
    build_plan(config)
    check_judge(config)


def _check_evaluation(settings: dict[str, Any]) -> None:
    from dynamic_dpo.cli.build_evaluation import build_plan, check_judge
    from dynamic_dpo.config import get_evaluation_config

    config = get_evaluation_config(settings)
    build_plan(config)
    check_judge(config)


def _excluded(config: LoopConfig) -> list[list[dict[str, Any]]]:
    """Return the prompts that the rounds must not sample: those of the evaluation, and of the sets that are named."""
    from dynamic_dpo.eval import load_prompts

    prompts = config.rollout.prompts
    sets = [config.evaluation.dataset.model_dump()]
    sets += [
        {
            "name": str(Path(name)) if Path(name).exists() else name,
            "split": prompts.exclude_split,
            "max_samples": None,
        }
        for name in prompts.exclude
    ]
    return [list(record.messages) for one in sets for record in load_prompts(**one).prompts]
