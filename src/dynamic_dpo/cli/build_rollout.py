"""From the settings of a file to the plan of a rollout: prompts, models, scorers or judge, rules and filters."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynamic_dpo.errors import ConfigError, JudgeError

if TYPE_CHECKING:
    from dynamic_dpo.config.schema import TrainingConfig
    from dynamic_dpo.eval.generate.settings import GenerationSettings
    from dynamic_dpo.eval.judges.base import Judge, Scorer
    from dynamic_dpo.eval.model_spec import ModelSpec
    from dynamic_dpo.rollouts.plan import Comparing, PromptSource, RolloutPlan, Scoring, WeightedScorer


def build_plan(config: TrainingConfig) -> RolloutPlan:
    """Return what the section ``rollout`` of a file asks for; loads no model and asks no judge.

    Raises:
        ConfigError: If settings are missing or cannot be carried out together.
        DataError: If the file of refusals cannot be read.
    """
    from dynamic_dpo.rollouts.answers import POLICY, WEAK
    from dynamic_dpo.rollouts.filters import read_patterns
    from dynamic_dpo.rollouts.plan import RolloutPlan, Shard
    from dynamic_dpo.rollouts.settings import AnswerFilters, PairingSettings

    section = config.rollout
    _refuse_unused(config)
    refusals = section.filters.refusals
    return RolloutPlan(
        folder=Path(section.output_dir).expanduser(),
        prompts=_prompts(config),
        policy=_model(config, POLICY, section.model_name or config.policy_name),
        weak=None if section.weak_model is None else _model(config, WEAK, section.weak_model),
        generation=_generation(config),
        labels=_labels(config),
        pairing=PairingSettings(**section.pairs.model_dump()),
        filters=AnswerFilters(section.filters.truncated, () if refusals is None else read_patterns(refusals)),
        shard=None if section.shard is None else Shard.read(section.shard),
    )


def _prompts(config: TrainingConfig) -> PromptSource:
    from dynamic_dpo.rollouts.plan import PromptSource

    section = config.rollout.prompts
    name = section.name or config.dataset.dataset_name
    if not name:
        raise ConfigError(
            "rollout.prompts.name or dataset.dataset_name is required: a hub name, or a local file or folder of "
            "prompts"
        )
    own = section.model_dump(exclude={"name", "split", "skip", "exclude", "exclude_split"})
    return PromptSource(
        load={"name": name, "split": section.split or config.dataset.subset, **own},
        limit=config.rollout.limit,
        skip=section.skip,
        exclude=[{"name": other, "split": section.exclude_split} for other in section.exclude],
    )


def _model(config: TrainingConfig, name: str, path: str) -> ModelSpec:
    from dynamic_dpo.eval.model_spec import ModelSpec

    return ModelSpec(name, path, None, config.rollout.prompt_template, config.rollout.prompt_format)


def _generation(config: TrainingConfig) -> GenerationSettings:
    from dynamic_dpo.eval.generate.server_settings import ServerSettings
    from dynamic_dpo.eval.generate.settings import GenerationSettings

    section = config.rollout
    names = {entry.name for entry in fields(GenerationSettings)} & set(type(section).model_fields)
    values = {name: getattr(section, name) for name in names - {"server"}}
    server = ServerSettings(**section.server.model_dump())
    return GenerationSettings(**values, server=server, num_samples=section.responses_per_prompt)


# ---- labels ----

# Which settings of the section belong to which judge.
_OWN = {
    "reward_model": ("reward_model",),
    "function": ("function",),
    "scorers": ("scorers",),
    "gpt4_oracle": (),
    "none": (),
}


def _refuse_unused(config: TrainingConfig) -> None:
    section = config.rollout
    for key in ("function", "scorers"):
        if getattr(section, key) and key not in _OWN[section.judge]:
            raise ConfigError(
                f"rollout.{key} has no effect while rollout.judge is {section.judge}: leave it out, or set "
                f"rollout.judge={key}"
            )
    for key in _OWN[section.judge]:
        if not getattr(section, key):
            raise ConfigError(f"rollout.{key} is required while rollout.judge is {section.judge}")
    if section.push_to_hub and section.hub_dataset_id is None:
        raise ConfigError("rollout.hub_dataset_id is required while rollout.push_to_hub is true")


def _labels(config: TrainingConfig) -> Scoring | Comparing | None:
    from dynamic_dpo.rollouts.plan import Scoring

    section = config.rollout
    if section.judge == "none":
        return None
    if section.judge == "gpt4_oracle":
        return _comparing(config)
    if section.judge == "scorers":
        return Scoring(
            {
                name: _scorer(
                    config,
                    one.reward_model,
                    one.function,
                    one.weight,
                    setting=f"rollout.scorers.{name}.function",
                )
                for name, one in section.scorers.items()
            }
        )
    if section.judge == "function":
        return Scoring({str(section.function): _scorer(config, None, section.function, 1.0)})
    return Scoring({str(section.reward_model): _scorer(config, section.reward_model, None, 1.0)})


def _scorer(
    config: TrainingConfig,
    reward_model: str | None,
    function: str | None,
    weight: float,
    *,
    setting: str = "rollout.function",
) -> WeightedScorer:
    from dynamic_dpo.eval.judges.function import FunctionScorer
    from dynamic_dpo.eval.judges.reward_model import RewardModelScorer
    from dynamic_dpo.rollouts.plan import WeightedScorer

    section = config.rollout
    make: Callable[[], Scorer]
    if function is not None:
        # Found now: hours of sampling may lie between here and its first use.
        scorer = FunctionScorer(function, setting=setting)
        make = lambda: scorer  # noqa: E731
    else:
        path = str(reward_model)
        make = lambda: RewardModelScorer(  # noqa: E731
            path, batch_size=section.reward_batch_size, device=section.device
        )
    return WeightedScorer(make, {"reward_model": reward_model, "function": function}, weight)


def _comparing(config: TrainingConfig) -> Comparing:
    from dynamic_dpo.eval.judging.spending import Budget, Price
    from dynamic_dpo.eval.plan import JudgingSettings
    from dynamic_dpo.rollouts.plan import Comparing

    section = config.rollout.gpt4_oracle
    budget = Budget(
        **section.budget.model_dump(),
        prices={name: Price(price.input, price.output) for name, price in section.prices.items()},
    )
    judging = JudgingSettings(
        make_judge=lambda: _build_judge(config),
        identity=_judge_identity(config),
        concurrency=section.concurrency,
        budget=budget,
    )
    return Comparing(judging, section.max_comparisons, config.rollout.seed)


def check_judge(config: TrainingConfig) -> None:
    """Find out, before any model is loaded, whether there will be a judge: hours of sampling may lie between.

    Raises:
        ConfigError: If the judge's template or price cannot be had, or a key stands in the settings.
        JudgeError: If the environment has no key.
    """
    from dynamic_dpo.eval.judging.spending import BudgetMeter, Spending

    section = config.rollout.gpt4_oracle
    if config.rollout.judge != "gpt4_oracle":
        return
    if "@" in (section.base_url or ""):
        # The value is not shown: this message may end in a log.
        raise ConfigError(
            "rollout.gpt4_oracle.base_url holds a user name or password, and settings are saved with the results: "
            "take it out, and set the environment variable OPENAI_API_KEY"
        )
    _build_judge(config)
    BudgetMeter(_comparing(config).judging.budget, section.model, Spending())
    if not os.environ.get("OPENAI_API_KEY"):
        raise JudgeError(
            "the judge has no key: set the environment variable OPENAI_API_KEY (any value will do for a local server "
            "that checks none), or run the other stages alone"
        )


def _build_judge(config: TrainingConfig) -> Judge:
    from dynamic_dpo.config.sections.rollouts import ORACLE_KEYS
    from dynamic_dpo.eval.judges.table import make_judge

    section = config.rollout.gpt4_oracle
    oracle = section.model_dump(include=set(ORACLE_KEYS))
    settings = {**dict(section), "template_file": None, "gpt4_oracle": oracle}
    return make_judge("openai", settings)


def _judge_identity(config: TrainingConfig) -> dict[str, Any]:
    """Return the settings that verdicts depend on; not those of speed, price and patience."""
    names = {
        "model", "temperature", "max_tokens", "system_prompt", "prompt_template", "template", "max_invalid_retries",
        "logprobs", "json_schema",
    }  # fmt: skip
    identity: dict[str, Any] = config.rollout.gpt4_oracle.model_dump(include=names)
    return identity
