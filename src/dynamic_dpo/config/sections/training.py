"""The sections that say what is trained on what: the data and the two trainings.

Errors, ``--help-all`` and the reference documentation are derived from these fields.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from dynamic_dpo.config.base import PassthroughSection, Section, refuse, refuse_fault
from dynamic_dpo.config.from_settings import settings_section
from dynamic_dpo.config.trackers import report_fault
from dynamic_dpo.config.yaml_files import TRUTH_WORDS_OF_YAML_1_1
from dynamic_dpo.data.shapes.options import NAMEABLE, RankingRule
from dynamic_dpo.data.turns.mask import AnswerTokens
from dynamic_dpo.runs.keep_best import KeepBest
from dynamic_dpo.utils.names import folder_fault, repository_fault, text_fault


class MixtureSetSection(Section):
    """One set of a mixture, with a shape of its own."""

    dataset_name: str = Field(min_length=1, description="As dataset.dataset_name.")
    subset: str = Field(default="train", min_length=1, description="Split with an optional slice.")
    weight: float | None = Field(
        default=None,
        gt=0,
        description="Share of an epoch, relative to the other sets' weights; null in all sets: all pairs of each.",
    )
    limit: int | None = Field(
        default=None, ge=1, description="Most of its pairs, drawn at random; null: all."
    )
    generated_data: bool = Field(default=False, description="Whether its rows are judged rollouts.")
    columns: dict[str, str] = Field(default={}, description="As dataset.columns.")
    ranking: RankingRule = Field(default="best_worst", description="As dataset.ranking.")

    @field_validator("columns")
    @classmethod
    def _names_what_there_is(cls, value: dict[str, str]) -> dict[str, str]:
        return _known_columns(value)


def _known_columns(value: dict[str, str]) -> dict[str, str]:
    if not {*value} <= {*NAMEABLE}:
        refuse(f"must name some of {', '.join(NAMEABLE)}")
    return value


class DatasetSection(Section):
    """Which rows are read, how they are split and how long a pair may be (lengths in tokens)."""

    dataset_name: str | None = Field(
        default=None,
        description="Hub name, or a local .json, .jsonl, .jsonl.gz or .parquet file or folder. "
        "Required by the training commands.",
    )
    mixture: dict[str, MixtureSetSection] = Field(
        default={},
        description="Several sets instead of dataset_name, under names of your choice, drawn by weight (train-dpo).",
    )
    eval_dataset_name: str | None = Field(
        default=None,
        description="A separate set to validate on; null: a share of the training rows (val_ratio).",
    )
    generated_data: bool = Field(
        default=False, description="Whether the rows are judged rollouts (prompt_messages, chosen, rejected)."
    )
    columns: dict[str, str] = Field(
        default={},
        description="prompt, chosen, rejected or system to the column that holds it, where that has another name; "
        "usual names are found by themselves.",
    )
    chat_template_kwargs: dict[str, Any] = Field(
        default={},
        description="Arguments of the chat template, e.g. enable_thinking; a row's own column of that name wins.",
    )
    ranking: RankingRule = Field(
        default="best_worst",
        description="Of rows with several ranked answers: which two become the pair.",
    )
    chat_template: bool = Field(
        default=False,
        description="Render rows through the tokenizer's chat template; false: as plain text. "
        "Choose true for a chat model. train-sft renders wherever there is a template, and true says that there is.",
    )
    subset: str = Field(
        default="train[:30%]",
        min_length=1,
        description="Split with an optional slice, e.g. train, train[:30%], train[100:200].",
    )
    val_ratio: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="Share of the prompts kept for validation; 0: none. Unused with eval_dataset_name.",
    )
    seed: int = Field(default=42, ge=0, description="Seed of the split into training and validation.")
    # Before max_len: a validator of a field sees only the fields above it.
    max_length: int | None = Field(default=None, ge=2, description="Another name of max_len.")
    max_len: int = Field(
        default=512, ge=2, description="Longest prompt + completion; what is longer is truncated."
    )
    max_prompt_length: int | None = Field(
        default=None,
        ge=1,
        description="Longest prompt, must be below max_len; its end is kept. Null: no limit.",
    )
    max_completion_length: int | None = Field(
        default=None, ge=1, description="Longest completion; its start is kept. Null: no limit of its own."
    )
    truncation_mode: Literal["keep_start", "keep_end"] = Field(
        default="keep_start",
        description="What gives way where a pair exceeds max_len: the end of the completions (keep_start) "
        "or the start of the prompt (keep_end).",
    )
    answer_tokens: AnswerTokens = Field(
        default="assistant",
        description="Which tokens of an answer are scored: those that the assistant writes, so that user, system and "
        "tool turns within it are only read and those behind it left out; or all behind the prompt, as TRL does.",
    )
    quarantine_max_share: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="Share of unusable rows, all counted and listed, above which it is an error.",
    )

    @model_validator(mode="before")
    @classmethod
    def _one_length_two_names(cls, data: Any) -> Any:
        # Both names always hold the length in force, so that a saved configuration loads as itself.
        # A value that is wrong in itself is not copied: it would be reported under both names.
        if not isinstance(data, dict):
            return data
        default = cls.model_fields["max_len"].default
        length = data.get("max_length")
        if length is None:
            length = data.get("max_len", default)
            return {**data, "max_length": length} if _is_length(length) else data
        return {"max_len": length, **data} if _is_length(length) else data

    @field_validator("max_len")
    @classmethod
    def _names_agree(cls, max_len: int, info: ValidationInfo) -> int:
        max_length = info.data.get("max_length")
        if max_length is not None and max_length != max_len:
            refuse(f"must equal dataset.max_length ({max_length}), which is the same limit; give only one")
        return max_len

    @field_validator("columns")
    @classmethod
    def _names_what_there_is(cls, value: dict[str, str]) -> dict[str, str]:
        return _known_columns(value)

    @field_validator("mixture")
    @classmethod
    def _takes_the_place_of_one_set(
        cls, value: dict[str, MixtureSetSection], info: ValidationInfo
    ) -> dict[str, MixtureSetSection]:
        if value and info.data.get("dataset_name") is not None:
            refuse("and dataset.dataset_name cannot both be given")
        weights = [one.weight is not None for one in value.values()]
        if any(weights) and not all(weights):
            refuse("must give every set a weight, or none, which takes all pairs of each")
        return value

    @field_validator("eval_dataset_name")
    @classmethod
    def _has_no_mixture_beside_it(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("mixture"):
            refuse(
                "has no effect beside dataset.mixture, whose validation is a share of its prompts (val_ratio)"
            )
        return value

    @field_validator("max_prompt_length")
    @classmethod
    def _leaves_room_for_a_completion(cls, value: int | None, info: ValidationInfo) -> int | None:
        max_len = info.data.get("max_len")
        if value is not None and max_len is not None and value >= max_len:
            refuse(f"must be less than dataset.max_len ({max_len})")
        return value


def _is_length(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 2


class _RunNames(PassthroughSection):
    """What both trainings check of the names they are given."""

    @field_validator("save_dir", "save_dpo_dir", check_fields=False)
    @classmethod
    def _can_be_a_folder(cls, value: str | None) -> str | None:
        return refuse_fault(value, folder_fault)

    @field_validator("run_name", "wandb_project", check_fields=False)
    @classmethod
    def _can_be_shown(cls, value: str | None) -> str | None:
        return refuse_fault(value, text_fault)

    @field_validator("hub_model_id", check_fields=False)
    @classmethod
    def _is_a_repository(cls, value: str | None) -> str | None:
        return refuse_fault(value, repository_fault)


class KeepBestSection(settings_section("keep_best", KeepBest, own=True)):  # type: ignore[misc]
    """The run ends with the weights of its best evaluation on held-out pairs, and early where they get no better.

    Null (the default): it ends with those of its last step.
    """


class DPOTrainingSection(_RunNames):
    """What ``train-dpo`` does: an optimizer step is batch_size × gradient_accumulation × ranks pairs."""

    epochs: float = Field(default=1.0, gt=0, description="Passes over the training pairs.")
    batch_size: int = Field(
        default=16,
        ge=1,
        description="Pairs per device batch, which is also a controller batch of method.scope micro.",
    )
    eval_batch_size: int = Field(default=16, ge=1, description="Pairs per device in evaluation.")
    gradient_accumulation: int = Field(
        default=4, ge=1, description="Batches per device that make one optimizer step."
    )
    learning_rate: float = Field(default=5e-7, gt=0, description="Peak learning rate.")
    warmup_steps: int = Field(
        default=120, ge=0, description="Optimizer steps in which the learning rate rises from 0."
    )
    max_grad_norm: float = Field(
        default=10.0, ge=0, description="Gradients are clipped to this norm; 0: never."
    )
    log_steps: int = Field(default=10, ge=1, description="Optimizer steps between two log lines.")
    eval_steps: int | None = Field(
        default=100,
        ge=1,
        description="Optimizer steps between two evaluations; null: no evaluation during training.",
    )
    save_steps: int | None = Field(
        default=200, ge=1, description="Optimizer steps between two checkpoints; null: only at the end."
    )
    resume: bool | str = Field(
        default=False,
        description="Continue a run: true: from the newest whole checkpoint in save_dir; or a checkpoint's folder.",
    )
    resume_changed: bool = Field(
        default=False,
        description="Go on even from a checkpoint that other settings or other data have made; false: say what "
        "differs and stop.",
    )
    save_dir: str = Field(
        default="runs/dpo", min_length=1, description="Folder for checkpoints, logs and the final model."
    )
    keep_best: KeepBestSection | None = Field(default=None)
    save_dpo_dir: str | None = Field(
        default=None, description="Separate folder for the final model; null: save_dir."
    )
    report: str | list[str] | None = Field(
        default="none",
        description="Where metrics are reported, besides the logs in save_dir: a tracker of transformers "
        "(tensorboard, wandb, trackio, mlflow, comet_ml, swanlab …), a list of them, or all that are installed; none "
        "or null: nowhere.",
    )
    run_name: str | None = Field(default=None, description="Name of the run where metrics are reported.")
    wandb_project: str | None = Field(
        default=None, description="Weights & Biases project, with report wandb."
    )
    push_to_hub: bool = Field(default=False, description="Upload the final model to the Hugging Face hub.")
    hub_model_id: str | None = Field(
        default=None, description="Repository to upload to; null: named after save_dir."
    )
    debug_samples: int = Field(
        default=0,
        ge=0,
        description="Pairs of which ids, masks, labels and decoded text are written at the start.",
    )

    @field_validator("report")
    @classmethod
    def _names_trackers(cls, value: str | list[str] | None) -> str | list[str] | None:
        if (fault := report_fault(value)) is not None:
            refuse(fault)
        return value

    @field_validator("resume")
    @classmethod
    def _is_no_truth_word(cls, value: bool | str) -> bool | str:
        if isinstance(value, str) and value.lower() in TRUTH_WORDS_OF_YAML_1_1:
            refuse(
                f"must be true or false or a checkpoint's folder; write {TRUTH_WORDS_OF_YAML_1_1[value.lower()]}"
            )
        return value


class SFTTrainingSection(_RunNames):
    """What ``train-sft`` does: supervised fine-tuning on the chosen answers."""

    epochs: float = Field(default=1.0, gt=0, description="Passes over the training conversations.")
    batch_size: int = Field(default=16, ge=1, description="Conversations per device and optimizer step.")
    eval_batch_size: int = Field(default=16, ge=1, description="Conversations per device in evaluation.")
    learning_rate: float = Field(default=2e-5, gt=0, description="Peak learning rate.")
    warmup_steps: int = Field(
        default=120, ge=0, description="Optimizer steps in which the learning rate rises from 0."
    )
    max_length: int = Field(default=512, ge=2, description="Longest conversation in tokens.")
    log_steps: int = Field(default=10, ge=1, description="Optimizer steps between two log lines.")
    save_steps: int | None = Field(
        default=200, ge=1, description="Optimizer steps between two checkpoints; null: only at the end."
    )
    save_dir: str = Field(
        default="runs/sft", min_length=1, description="Folder for checkpoints and the model."
    )
    save_only_model: bool = Field(
        default=True,
        description="Checkpoints without optimizer state: small, but a run cannot continue from them.",
    )
    run_name: str | None = Field(default=None, description="Name of the run where metrics are reported.")
    wandb_project: str | None = Field(
        default=None, description="Weights & Biases project, with report_to: wandb."
    )
    push_to_hub: bool = Field(default=False, description="Upload the final model to the Hugging Face hub.")
    hub_model_id: str | None = Field(
        default=None, description="Repository to upload to; null: named after save_dir."
    )


def unkept_best(data: DatasetSection, training: DPOTrainingSection) -> Iterator[str]:
    """Yield a line for each setting with which ``keep_best`` has nothing to choose by."""
    if training.keep_best is None:
        return
    if data.eval_dataset_name is None and data.val_ratio == 0:
        yield (
            "dpo_training.keep_best chooses by held-out pairs, and dataset.val_ratio is 0: set it above 0, or give "
            "dataset.eval_dataset_name"
        )
    if training.eval_steps is None and training.extra.get("eval_strategy") != "epoch":
        yield (
            "dpo_training.keep_best chooses by evaluations, and dpo_training.eval_steps is null: set it, or "
            "eval_strategy: epoch"
        )
