"""The section on rollouts: who answers, who labels, how pairs are made.

What the engines and a chat model that judges can be told besides stands with them and in the sections of an
evaluation file; it is taken over from there.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import field, fields, make_dataclass, replace
from typing import Any, Literal

from pydantic import Field, ValidationInfo, create_model, field_validator

from dynamic_dpo.config.base import Section, refuse, refuse_fault
from dynamic_dpo.config.from_settings import settings_section
from dynamic_dpo.config.sections.evaluation import EvaluationDatasetSection, OracleSection
from dynamic_dpo.config.sections.judging import JudgeSection
from dynamic_dpo.eval.generate.server_settings import ServerSettings
from dynamic_dpo.eval.generate.settings import EngineName, GenerationSettings
from dynamic_dpo.eval.prompts.render import PromptFormat
from dynamic_dpo.rollouts.settings import PairingSettings
from dynamic_dpo.utils.names import folder_fault, repository_fault
from dynamic_dpo.utils.settings import kinds_of, stated_by


class _PromisedKeys(Section):
    engine: EngineName = Field(default="transformers", description="What samples.")
    model_name: str | None = Field(default=None, description="Model that responds; null: policy_name.")
    output_dir: str = Field(
        default="runs/rollout", min_length=1, description="Folder for responses and pairs."
    )
    batch_size: int = Field(default=16, ge=1, description="Responses sampled at once.")
    responses_per_prompt: int = Field(default=4, ge=2, description="Responses sampled for each prompt.")
    temperature: float = Field(default=1.0, gt=0, description="Sampling temperature.")
    top_p: float = Field(default=1.0, gt=0, le=1, description="Nucleus: probability mass sampled from.")
    min_new_tokens: int = Field(default=1, ge=0, description="Fewest tokens of a response.")
    max_new_tokens: int = Field(default=256, ge=1, description="Most tokens of a response.")
    limit: int | None = Field(default=None, ge=1, description="Number of prompts; null: all.")
    seed: int = Field(default=42, ge=0, description="Seed of the sampling.")
    judge: Literal["reward_model", "gpt4_oracle", "function", "scorers", "none"] = Field(
        default="reward_model",
        description="Who labels: a reward model, a chat model that compares each two responses in both orders "
        "(section rollout.gpt4_oracle), a Python function, several weighted scorers, or nobody, for the rules "
        "strong_weak and with_reference.",
    )
    reward_model: str | None = Field(default=None, description="Reward model, with judge reward_model.")
    reward_batch_size: int = Field(default=16, ge=1, description="Responses scored at once by reward models.")

    @field_validator("max_new_tokens")
    @classmethod
    def _not_below_the_fewest(cls, value: int, info: ValidationInfo) -> int:
        fewest = info.data.get("min_new_tokens")
        if fewest is not None and value < fewest:
            refuse(f"must be at least rollout.min_new_tokens ({fewest})")
        return value


# Of the engines' settings these stand above, or say nothing where answers are sampled.
_SAID = {*_PromisedKeys.model_fields, "num_samples", "do_sample", "server"}


def _under_own_names(component: type[Any], *, without: Container[str] = ()) -> type[Any]:
    """Return the settings of a component, to stand under their own names in a section of ours."""
    kinds = kinds_of(component)
    return make_dataclass(
        f"{component.__name__}OfRollouts",
        [
            (
                entry.name,
                kinds[entry.name],
                field(default=entry.default, metadata={"stated": replace(stated_by(entry), key="")}),
            )
            for entry in fields(component)
            if entry.name not in without
        ],
        frozen=True,
    )


_FurtherSettings = _under_own_names(GenerationSettings, without=_SAID)


def _keys_of(section: type[Section], names: Container[str]) -> dict[str, Any]:
    """Return keys of another section, as pydantic takes them."""
    return {name: (info.annotation, info) for name, info in section.model_fields.items() if name in names}


ORACLE_KEYS = tuple(name for name in OracleSection.model_fields if name not in ("randomize_order", "seed"))
ASKING_KEYS = (
    "base_url", "template", "concurrency", "max_invalid_retries", "logprobs", "json_schema", "budget", "prices",
)  # fmt: skip
_PROMPT_KEYS = ("post_field", "summary_field", "id_field", "meta_fields", "quarantine_max_share")

_ChatJudgeKeys: Any = create_model(
    "chat_judge_keys",
    __base__=Section,
    **_keys_of(OracleSection, ORACLE_KEYS),
    **_keys_of(JudgeSection, ASKING_KEYS),
)
_PromptKeys: Any = create_model(
    "prompt_keys", __base__=Section, **_keys_of(EvaluationDatasetSection, _PROMPT_KEYS)
)


class RolloutPromptsSection(_PromptKeys):  # type: ignore[misc]
    """Which prompts are sampled; they are drawn at random, and a smaller limit takes the beginning of the draw."""

    name: str | None = Field(
        default=None, description="Hub name, or a local file or folder; null: dataset.dataset_name."
    )
    split: str | None = Field(
        default=None, min_length=1, description="Split with an optional slice; null: dataset.subset."
    )
    seed: int = Field(default=42, ge=0, description="Seed of the draw.")
    skip: int = Field(
        default=0, ge=0, description="Prompts at the beginning of the draw that are passed over."
    )
    exclude: list[str] = Field(
        default=[],
        description="Sets, as name, whose prompts must not be sampled: those of an evaluation.",
    )
    exclude_split: str = Field(default="test", min_length=1, description="Split of these sets.")


class ScorerSection(Section):
    """A scorer; give it a reward model or a function."""

    reward_model: str | None = Field(default=None, description="Reward model: hub name or folder.")
    function: str | None = Field(default=None, description="Function, as rollout.function.")

    @field_validator("function")
    @classmethod
    def _is_one_of_the_two(cls, value: str | None, info: ValidationInfo) -> str | None:
        if (value is None) == (info.data.get("reward_model") is None):
            refuse("or reward_model must be given, and not both")
        return value


class RolloutScorerSection(ScorerSection):
    """One scorer of several, with judge scorers; give it a reward model or a function."""

    weight: float = Field(
        default=1.0, description="What its score is multiplied with before the scores are added up."
    )


class RolloutPairsSection(settings_section("rollout.pairs", PairingSettings, own=True)):  # type: ignore[misc]
    """How pairs are made of a prompt's responses."""


class RolloutFiltersSection(Section):
    """Which responses may stand in no pair; empty and repeated ones never do."""

    truncated: bool = Field(default=True, description="Leave out responses that were cut off without a stop.")
    refusals: str | None = Field(
        default=None,
        description="File of regular expressions, one a line; responses that one is found in are left out.",
    )


class RolloutJudgeSection(_ChatJudgeKeys):  # type: ignore[misc]
    """The chat model that compares responses, with judge gpt4_oracle, and how it is asked."""

    max_comparisons: int | None = Field(
        default=None,
        ge=1,
        description="Most comparisons of a prompt's responses, each two questions; null: every two.",
    )


class RolloutServerSection(
    settings_section("rollout.server", _under_own_names(ServerSettings), own=True)  # type: ignore[misc]
):
    """The server that rollout.engine=server asks: any that speaks OpenAI's protocol."""


class RolloutSection(settings_section("rollout", _FurtherSettings, own=True, base=_PromisedKeys)):  # type: ignore[misc]
    """Sampling responses, labelling them, and making pairs: `dynamic-dpo rollout`."""

    prompt_template: str | None = Field(
        default=None, description="Text around the prompt, given as {prompt}; null: the prompt alone."
    )
    prompt_format: PromptFormat = Field(
        default="auto", description="chat, text, or what the tokenizer can do, as in an evaluation."
    )
    weak_model: str | None = Field(
        default=None, description="A weaker model whose responses are the rejected ones (rule strong_weak)."
    )
    function: str | None = Field(
        default=None,
        description="Function from response, or prompt and response, to a score, with judge function, as "
        "package.module:name; dynamic_dpo.eval.rewards:vader is one.",
    )
    shard: str | None = Field(
        default=None, description="Part i of n of the prompts, as i/n; null: all. --merge joins the parts."
    )
    push_to_hub: bool = Field(default=False, description="Upload the pairs to the Hugging Face hub.")
    hub_dataset_id: str | None = Field(default=None, description="Data set to upload them to.")
    hub_private: bool = Field(default=True, description="Make that data set private where it is new.")
    prompts: RolloutPromptsSection = Field(default_factory=RolloutPromptsSection)
    pairs: RolloutPairsSection = Field(default_factory=RolloutPairsSection)
    filters: RolloutFiltersSection = Field(default_factory=RolloutFiltersSection)
    scorers: dict[str, RolloutScorerSection] = Field(
        default={}, description="Scorers by a name of your choice, with judge scorers."
    )
    gpt4_oracle: RolloutJudgeSection = Field(default_factory=RolloutJudgeSection)
    server: RolloutServerSection = Field(default_factory=RolloutServerSection)

    @field_validator("output_dir")
    @classmethod
    def _can_be_a_folder(cls, value: str) -> str:
        return refuse_fault(value, folder_fault)

    @field_validator("hub_dataset_id")
    @classmethod
    def _is_a_repository(cls, value: str | None) -> str | None:
        return refuse_fault(value, repository_fault)

    @field_validator("prompt_template")
    @classmethod
    def _has_a_place(cls, value: str | None) -> str | None:
        if value is not None and "{prompt}" not in value:
            refuse("must contain {prompt}")
        return value
