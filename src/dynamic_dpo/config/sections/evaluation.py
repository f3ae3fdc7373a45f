"""The sections of an evaluation file: prompts, models, generation, the judging chat model and output.

The other settings of judges are in ``judging``.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from dynamic_dpo.config.base import Section, refuse, refuse_fault
from dynamic_dpo.config.from_settings import settings_section
from dynamic_dpo.eval.generate.server_settings import ServerSettings
from dynamic_dpo.eval.generate.settings import GenerationSettings
from dynamic_dpo.eval.generate.turns_settings import TurnsSettings
from dynamic_dpo.eval.judges.chat.server import QUESTION_DEADLINE, REQUEST_TIMEOUT
from dynamic_dpo.eval.judges.template import DEFAULT_TEMPLATE
from dynamic_dpo.eval.presets.table import PRESETS
from dynamic_dpo.eval.prompts.render import PromptFormat
from dynamic_dpo.utils.names import folder_fault, relative_path_fault

if TYPE_CHECKING:
    PresetName = str
else:
    PresetName = Literal[tuple(PRESETS)]


class EvaluationDatasetSection(Section):
    """The prompts on which models are compared."""

    name: str | None = Field(
        default=None,
        description="Hub name, a local file or folder, or one file as hf://datasets/OWNER/NAME/FILE or "
        "package:NAME/FILE.",
    )
    split: str = Field(default="test", min_length=1, description="Split with an optional slice.")
    max_samples: int | None = Field(
        default=256, ge=1, description="Prompts, drawn at random with the seed; null: all."
    )
    seed: int = Field(default=42, ge=0, description="Seed of the draw of prompts.")
    post_field: str | None = Field(
        default=None, description="Field with the prompt or post; null: found by its usual names."
    )
    summary_field: str | None = Field(
        default=None,
        description="Field with the reference answer or summary; null: found by its usual names.",
    )
    id_field: str | None = Field(
        default=None,
        description="Field of an identifier to keep with each prompt; prompts themselves are named by a hash of "
        "their content.",
    )
    meta_fields: list[str] = Field(default=[], description="Fields copied to the results as they are.")
    categories: list[str] | None = Field(
        default=None, min_length=1, description="Prompts of these categories alone; null: of all."
    )
    quarantine_max_share: float = Field(
        default=0.05, ge=0, le=1, description="Largest share of unusable rows before it is an error."
    )


class EvaluatedModelSection(Section):
    """One model to compare; a bare text stands for its path."""

    path: str = Field(
        min_length=1,
        description="Hub name, folder (of a LoRA adapter too), .gguf file, package:NAME or a server's name of it; "
        "dataset:reference for the prompts' known answers, outputs:FILE for outputs in AlpacaEval's form or, in a "
        ".jsonl, Arena-Hard's and MT-Bench's.",
    )
    revision: str | None = Field(default=None, description="Branch, tag or commit on the hub.")
    prompt_template: str | None = Field(
        default=None, description="Prompt of this model; null: generation.prompt_template."
    )
    prompt_format: PromptFormat | None = Field(
        default=None, description="Format of this model's prompts; null: generation.prompt_format."
    )

    @field_validator("prompt_template")
    @classmethod
    def _has_a_place(cls, value: str | None) -> str | None:
        return _with_a_place(value)

    @model_validator(mode="before")
    @classmethod
    def _text_is_the_path(cls, data: object) -> object:
        return {"path": data} if isinstance(data, str) else data


class _PromptForm(Section):
    prompt_template: str | None = Field(
        default=None, description="Text around the prompt, given as {prompt}; null: the prompt alone."
    )
    prompt_format: PromptFormat = Field(
        default="auto",
        description="chat: messages for the tokenizer's template; text: plain text, as HH models are trained on "
        "without one; auto: what the tokenizer can do.",
    )


class ServerSection(settings_section("generation.server", ServerSettings)):  # type: ignore[misc]
    """The server that generation.engine=server asks: any that speaks OpenAI's protocol."""


class GenerationSection(settings_section("generation", GenerationSettings, base=_PromptForm)):  # type: ignore[misc]
    """How the models' outputs are sampled."""

    server: ServerSection = Field(default_factory=ServerSection)

    @field_validator("prompt_template")
    @classmethod
    def _has_a_place(cls, value: str | None) -> str | None:
        return _with_a_place(value)

    def settings(self) -> GenerationSettings:
        """Return the settings as the engines take them.

        Raises:
            ConfigError: If they cannot be carried out together.
        """
        values = {entry.name: getattr(self, entry.name) for entry in fields(GenerationSettings)}
        return GenerationSettings(**values | {"server": ServerSettings(**self.server.model_dump())})

    @field_validator("do_sample")
    @classmethod
    def _sampling_needs_a_temperature(cls, value: bool | None, info: ValidationInfo) -> bool | None:
        if value and info.data.get("temperature") == 0:
            refuse("must not be true while generation.temperature is 0")
        return value


class TurnsSection(settings_section("turns", TurnsSettings)):  # type: ignore[misc]
    """Prompts of several turns, as MT-Bench's: conversations with the model's own answers, graded or compared."""


class OracleSection(Section):
    """The chat model that judges; its API key is taken from the environment, never from here."""

    model: str = Field(default="gpt-4o", min_length=1, description="Model that judges.")
    temperature: float = Field(default=0.0, ge=0, le=2, description="Sampling temperature of the judge.")
    max_tokens: int = Field(default=512, ge=1, description="Most tokens of a judgement, reasoning included.")
    randomize_order: bool = Field(
        default=True,
        description="Where judge.both_orders is false: choose by a hash of seed and item which output is shown "
        "first; otherwise the baseline's is always second.",
    )
    seed: int = Field(default=42, ge=0, description="Seed of the order.")
    max_retries: int = Field(
        default=5, ge=0, description="Further tries after a timeout, a rate limit or a failing server."
    )
    initial_backoff: float = Field(default=1.0, gt=0, description="Seconds before the first further try.")
    max_backoff: float = Field(default=60.0, gt=0, description="Most seconds between two tries.")
    timeout: float = Field(
        default=REQUEST_TIMEOUT,
        gt=0,
        description="Seconds that one try may take, to the last byte of the reply.",
    )
    deadline: float = Field(
        default=QUESTION_DEADLINE,
        gt=0,
        description="Seconds that one question may take with all tries and waits; a server is not waited for longer.",
    )
    system_prompt: str | None = Field(
        default=None,
        description="What the judge is and what counts for it, where judge.template is custom; null: that of the "
        f"template {DEFAULT_TEMPLATE}.",
    )
    prompt_template: str | None = Field(
        default=None,
        description="One comparison, with {prompt}, {output_a} and {output_b}, where judge.template is custom; null: "
        f"that of the template {DEFAULT_TEMPLATE}. Must ask for a last line `Verdict: A`, `Verdict: B` or "
        "`Verdict: tie`.",
    )

    @field_validator("max_backoff")
    @classmethod
    def _not_below_the_first(cls, value: float, info: ValidationInfo) -> float:
        first = info.data.get("initial_backoff")
        if first is not None and value < first:
            refuse(f"must be at least gpt4_oracle.initial_backoff ({first:g})")
        return value

    @field_validator("deadline")
    @classmethod
    def _not_below_one_try(cls, value: float, info: ValidationInfo) -> float:
        timeout = info.data.get("timeout")
        if timeout is not None and value < timeout:
            refuse(f"must be at least gpt4_oracle.timeout ({timeout:g})")
        return value

    @field_validator("prompt_template")
    @classmethod
    def _shows_both_outputs(cls, value: str | None) -> str | None:
        places = ("{prompt}", "{output_a}", "{output_b}")
        missing = [] if value is None else [name for name in places if name not in value]
        if missing:
            refuse(f"must contain {', '.join(missing)}")
        return value


class OutputSection(Section):
    """Where results go."""

    dir: str = Field(default="runs/evaluation", min_length=1, description="Folder for all results.")
    generations: str = Field(
        default="generations.jsonl", min_length=1, description="File of the models' outputs."
    )
    judgements: str = Field(
        default="judgements.jsonl", min_length=1, description="File of the judge's verdicts."
    )
    summary: str = Field(default="summary.json", min_length=1, description="File of the win rates.")

    @field_validator("dir")
    @classmethod
    def _can_be_a_folder(cls, value: str) -> str:
        return refuse_fault(value, folder_fault)

    @field_validator("generations", "judgements", "summary")
    @classmethod
    def _lies_in_the_folder(cls, value: str) -> str:
        return refuse_fault(value, relative_path_fault)


def _with_a_place(template: str | None) -> str | None:
    if template is not None and "{prompt}" not in template:
        refuse("must contain {prompt}")
    return template
