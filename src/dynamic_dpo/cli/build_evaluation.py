"""From the settings of an evaluation file to the objects of an evaluation: prompts, models, judge, limits."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynamic_dpo.errors import ConfigError, DataError, JudgeError

if TYPE_CHECKING:
    from dynamic_dpo.config.schema import EvaluationConfig
    from dynamic_dpo.eval.judges.base import Judge
    from dynamic_dpo.eval.judges.turns.chat import TurnsJudge
    from dynamic_dpo.eval.judges.turns.templates import TurnsTemplate
    from dynamic_dpo.eval.plan import EvaluationPlan, JudgingSettings
    from dynamic_dpo.eval.scoring.outputs import ScoringSettings


def build_plan(config: EvaluationConfig) -> EvaluationPlan:
    """Return what an evaluation file asks for; loads no model and asks no judge.

    Raises:
        ConfigError: If settings are missing or cannot be carried out together.
    """
    from dynamic_dpo.eval.generate.turns_settings import TurnsSettings
    from dynamic_dpo.eval.model_spec import ModelSpec
    from dynamic_dpo.eval.plan import EvaluationPlan, StatisticsSettings
    from dynamic_dpo.eval.statistics.alpaca_eval.settings import AlpacaEvalSettings
    from dynamic_dpo.eval.statistics.arena.settings import ArenaSettings

    data, generation = config.dataset, config.generation
    if not data.name:
        raise ConfigError("dataset.name is required: a hub name, or a local file or folder of prompts")
    require_statistics("evaluate")
    return EvaluationPlan(
        folder=Path(config.output.dir),
        prompts=_prompts(config),
        models=[
            ModelSpec(
                name,
                model.path,
                model.revision,
                generation.prompt_template if model.prompt_template is None else model.prompt_template,
                model.prompt_format or generation.prompt_format,
            )
            for name, model in config.models.items()
        ],
        generation=generation.settings(),
        judging=_judging(config),
        further_judges={name: _judging(alone) for name, alone in further_judges(config).items()},
        statistics=StatisticsSettings(
            **config.statistics.model_dump(exclude={"arena_hard", "alpaca_eval"}),
            arena_hard=ArenaSettings(**config.statistics.arena_hard.model_dump()),
            alpaca_eval=AlpacaEvalSettings(**config.statistics.alpaca_eval.model_dump()),
        ),
        scoring=_scoring(config),
        turns=TurnsSettings(**config.turns.model_dump()),
        baseline=config.baseline,
        comparisons=config.comparisons,
        generations_file=config.output.generations,
        judgements_file=config.output.judgements,
        summary_file=config.output.summary,
    )


def _prompts(config: EvaluationConfig) -> dict[str, Any]:
    """Return the arguments of `load_prompts`, without keys that say nothing and that earlier versions did not know.

    Folders that those made are to be found again.
    """
    settings: dict[str, Any] = config.dataset.model_dump(exclude={"categories"})
    if config.dataset.categories:
        settings["categories"] = config.dataset.categories
    if config.turns.enabled:
        settings["turns"] = True
    return settings


def require_statistics(command: str) -> None:
    """Raise `ConfigError` where the packages are missing that intervals are computed with."""
    missing = [name for name in ("statsmodels", "sklearn", "scipy") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"{command} needs {', '.join(missing)}, which is not installed: pip install 'dynamic-dpo[eval]'"
        )


def check_judge(config: EvaluationConfig) -> None:
    """Find out, before any model is loaded, whether there will be a judge: hours of generation may lie between.

    Raises:
        ConfigError: If the judge's function, template or price cannot be had, or a key stands in the settings.
        JudgeError: If the environment has no key.
    """
    from dynamic_dpo.eval.judges.table import JUDGES
    from dynamic_dpo.eval.judging.spending import BudgetMeter, Spending

    if config.turns.enabled:
        if config.judges:
            raise ConfigError(
                f"judges ({', '.join(config.judges)}) have no effect on conversations (turns.enabled), which one "
                "judge grades: leave the section out"
            )
        build_turns_judge(config)
    else:
        for alone in further_judges(config).values():
            check_judge(alone)
        first = build_judge(config).name
        if first in config.judges:
            raise ConfigError(f"judges.{first} has the name of the first judge: give it another one")
    if "gpt4_oracle" not in JUDGES[config.judge.kind].settings:
        return
    if "@" in (config.judge.base_url or ""):
        # The value is not shown: this message may end in a log.
        raise ConfigError(
            "judge.base_url holds a user name or password, and settings are saved with the results: take it out, and "
            "set the environment variable OPENAI_API_KEY"
        )
    BudgetMeter(_judging(config).budget, config.gpt4_oracle.model, Spending())
    if not os.environ.get("OPENAI_API_KEY"):
        raise JudgeError(
            "the judge has no key: set the environment variable OPENAI_API_KEY (any value will do for a local server "
            "that checks none), or run the other stages alone"
        )


def check_difficulties(config: EvaluationConfig) -> None:
    """Find out, before any model is loaded, whether the file that the report will need is there.

    Raises:
        DataError: If it is not.
    """
    from dynamic_dpo.data.named_files import local_file

    section = config.statistics.alpaca_eval
    if (
        section.enabled
        and section.difficulties is not None
        and not local_file(section.difficulties).is_file()
    ):
        raise DataError(
            f"statistics.alpaca_eval.difficulties names no file: {section.difficulties}; null estimates them from "
            "the models of this evaluation"
        )


def _scoring(config: EvaluationConfig) -> ScoringSettings | None:
    from dynamic_dpo.eval.scoring.outputs import ScoringSettings

    section = config.scoring
    if section.reference is None:
        return None
    return ScoringSettings(
        **section.model_dump(exclude={"reference"}),
        reference=section.reference,
        device=config.generation.device,
    )


def _judging(config: EvaluationConfig) -> JudgingSettings:
    from dynamic_dpo.eval.judging.spending import Budget, Price
    from dynamic_dpo.eval.plan import JudgingSettings

    judge, oracle = config.judge, config.gpt4_oracle
    if config.turns.enabled:
        _refuse_unread_by_turns(config)
    elif judge.template != "custom" or judge.template_file is not None:
        _refuse_unused_prompts(config)
    return JudgingSettings(
        make_judge=lambda: build_turns_judge(config) if config.turns.enabled else build_judge(config),
        identity=_turns_identity(config) if config.turns.enabled else _identity(config),
        both_orders=judge.both_orders,
        randomize_order=oracle.randomize_order,
        seed=oracle.seed,
        concurrency=judge.concurrency,
        budget=Budget(
            **judge.budget.model_dump(),
            prices={name: Price(price.input, price.output) for name, price in judge.prices.items()},
        ),
    )


def further_judges(config: EvaluationConfig) -> dict[str, EvaluationConfig]:
    """Return, for every further judge by its name, the file as it were with that judge alone."""
    return {
        name: config.model_copy(
            update={
                "judge": config.judge.model_copy(update=section.model_dump(exclude={"gpt4_oracle"})),
                "gpt4_oracle": section.gpt4_oracle or config.gpt4_oracle,
                "judges": {},
            }
        )
        for name, section in config.judges.items()
    }


def build_judge(config: EvaluationConfig) -> Judge:
    """Return the judge that a file names; its model is loaded, or its server asked, with the first question.

    Raises:
        ConfigError: If the template or function cannot be had.
    """
    from dynamic_dpo.eval.judges.table import make_judge

    settings = {
        **dict(config.judge),
        "gpt4_oracle": dict(config.gpt4_oracle),
        "device": config.generation.device,
    }
    return make_judge(config.judge.kind, settings)


def build_turns_judge(config: EvaluationConfig) -> TurnsJudge:
    """Return the judge of conversations that a file names; its server is asked with the first question.

    Raises:
        ConfigError: If the file of questions cannot be had.
    """
    from dynamic_dpo.eval.judges.gpt4_oracle import GPT4Oracle
    from dynamic_dpo.eval.judges.turns.chat import TurnsJudge

    oracle = config.gpt4_oracle.model_dump(exclude={"system_prompt", "prompt_template"})
    return TurnsJudge(
        GPT4Oracle(**oracle, base_url=config.judge.base_url),
        _turns_template(config),
        max_attempts=1 + config.judge.max_invalid_retries,
    )


def _turns_template(config: EvaluationConfig) -> TurnsTemplate:
    from dynamic_dpo.eval.judges.turns.templates import own_template, published_template

    path = config.turns.template_file
    return own_template() if path is None else published_template(path)


def _turns_identity(config: EvaluationConfig) -> dict[str, Any]:
    """Return the settings that judgements of conversations depend on."""
    return {
        "turns": config.turns.model_dump(include={"judging", "references"}),
        "template_sha256": _turns_template(config).sha256,
        "max_invalid_retries": config.judge.max_invalid_retries,
        **config.gpt4_oracle.model_dump(include={"model", "temperature", "max_tokens"}),
    }


def _refuse_unread_by_turns(config: EvaluationConfig) -> None:
    judge = config.judge
    if judge.kind != "openai":
        raise ConfigError(
            f"judge.kind is {judge.kind}, and conversations are judged by a chat model: set it to openai"
        )
    read = {"judge.template": judge.template == "custom", "judge.template_file": judge.template_file is None}
    read |= {"judge.logprobs": not judge.logprobs, "judge.json_schema": not judge.json_schema}
    read |= {
        f"gpt4_oracle.{key}": getattr(config.gpt4_oracle, key) is None
        for key in ("system_prompt", "prompt_template")
    }
    # Conversations are graded one by one, or compared in both orders.
    stated = type(config.gpt4_oracle).model_fields
    read |= {
        f"gpt4_oracle.{key}": getattr(config.gpt4_oracle, key) == stated[key].default
        for key in ("randomize_order", "seed")
    }
    for key, is_left_out in read.items():
        if not is_left_out:
            raise ConfigError(
                f"{key} has no effect while turns.enabled is true: leave it out; turns.template_file takes questions "
                "of your own"
            )


def _identity(config: EvaluationConfig) -> dict[str, Any]:
    """Return the settings that verdicts depend on; not those of speed, price and patience."""
    from dynamic_dpo.eval.judges.table import JUDGES
    from dynamic_dpo.eval.judges.template import custom_template, file_template
    from dynamic_dpo.eval.judges.token_choice import read_choice_question

    judge, oracle = config.judge, config.gpt4_oracle
    own = {"kind", *JUDGES[judge.kind].settings} - {"batch_size", "base_url", "template_file"}
    if "gpt4_oracle" not in JUDGES[judge.kind].settings:
        # With both names, whichever of the two it is: version 0.2 wrote it so.
        return judge.model_dump(include=own | {"reward_model", "function"})
    identity = judge.model_dump(include=own)
    identity |= oracle.model_dump(include={"model", "temperature", "max_tokens"})
    if judge.template_file is not None:
        # What stands in the file counts, not where it lies.
        read = read_choice_question if judge.kind == "token_choice" else file_template
        identity["template_sha256"] = read(judge.template_file).sha256
    elif judge.template == "custom":
        # The texts themselves, as in version 0.2, whether they were written into the file or are the default's.
        asked = custom_template(oracle.system_prompt, oracle.prompt_template)
        identity |= {"system_prompt": asked.system, "prompt_template": asked.question}
    return identity


def _refuse_unused_prompts(config: EvaluationConfig) -> None:
    from dynamic_dpo.eval.judges.template import custom_template

    default = custom_template()
    for key, text in (("system_prompt", default.system), ("prompt_template", default.question)):
        # Version 0.2 wrote the default's texts into the settings that it saved with an evaluation.
        if getattr(config.gpt4_oracle, key) not in (None, text):
            instead = (
                f"judge.template is {config.judge.template}: leave it out, or set judge.template=custom"
                if config.judge.template_file is None
                else "judge.template_file is set: leave one of the two out"
            )
            raise ConfigError(f"gpt4_oracle.{key} has no effect while {instead}")
