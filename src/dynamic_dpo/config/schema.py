"""The whole configuration of a training and of an evaluation, and the only way to get one from a file.

Only commands import this module: components take their own settings, not the file's. Keys and their
meanings stand in the sections; this module puts them together and reports all problems of a file at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import Field, ValidationError, ValidationInfo, field_validator

from dynamic_dpo.config.base import Document, PassthroughSection, fields_by_key, refuse, section_of
from dynamic_dpo.config.from_settings import settings_in
from dynamic_dpo.config.passthrough import check_passthrough, training_argument_types
from dynamic_dpo.config.phrases import given
from dynamic_dpo.config.presets import with_preset
from dynamic_dpo.config.problems import describe_problems, known_paths, nearest
from dynamic_dpo.config.sections.controller import (
    AlarmsSection,
    BetaUpdateSection,
    MarginLogSection,
    MonitorSection,
    RiskTargetSection,
    RiskTestSection,
)
from dynamic_dpo.config.sections.engine import EngineSection, PeftSection
from dynamic_dpo.config.sections.evaluation import (
    EvaluatedModelSection,
    EvaluationDatasetSection,
    GenerationSection,
    OracleSection,
    OutputSection,
    PresetName,
    TurnsSection,
)
from dynamic_dpo.config.sections.judging import (
    FurtherJudgeSection,
    JudgeSection,
    ScoringSection,
    StatisticsSection,
)
from dynamic_dpo.config.sections.loops import IterateSection, LoopEvaluationSection
from dynamic_dpo.config.sections.methods import (
    MethodSection,
    ObjectiveSection,
    ReferenceSyncSection,
    ruled_out,
    unread_settings,
    with_method_sections,
)
from dynamic_dpo.config.sections.rollouts import RolloutSection
from dynamic_dpo.config.sections.sampling import SamplingSection
from dynamic_dpo.config.sections.training import (
    DatasetSection,
    DPOTrainingSection,
    SFTTrainingSection,
    unkept_best,
)
from dynamic_dpo.errors import ConfigError
from dynamic_dpo.methods.table import METHODS
from dynamic_dpo.runs.keep_best import KeepBest
from dynamic_dpo.utils.secrets import redact

# Looking for the nearest known key takes its time; a file with more unknown keys is another kind of file.
_MOST_SUGGESTIONS = 20
_LONGEST_KEY = 200

ConfigT = TypeVar("ConfigT")
DocumentT = TypeVar("DocumentT", bound=Document)


class _RunSections(Document):
    """What comes before the methods' own sections."""

    policy_name: str = Field(
        min_length=1,
        description="Model to train: hub name, folder, .gguf file, package:NAME for weights that an installed "
        "package carries, or the folder of a LoRA adapter, with which training goes on.",
    )
    ref_name: str | None = Field(
        default=None,
        description="Reference model, in the same forms, for an adapter also its base; null: the policy as it is at "
        "the start, its adapter included.",
    )
    precision: Literal["bf16", "fp16", "fp32"] = Field(
        default="bf16", description="Number format of the forward and backward pass; fp32 on a CPU."
    )
    dataset: DatasetSection = Field(default_factory=DatasetSection)
    dpo_training: DPOTrainingSection = Field(default_factory=DPOTrainingSection)
    sft_training: SFTTrainingSection = Field(default_factory=SFTTrainingSection)
    method: MethodSection = Field(default_factory=MethodSection)
    risk_test: RiskTestSection = Field(default_factory=RiskTestSection)
    beta_update: BetaUpdateSection = Field(default_factory=BetaUpdateSection)
    risk_target: RiskTargetSection = Field(default_factory=RiskTargetSection)
    monitor: MonitorSection = Field(default_factory=MonitorSection)


if TYPE_CHECKING:
    _WithMethods = _RunSections
else:
    _WithMethods = with_method_sections(_RunSections)


class TrainingConfig(_WithMethods):
    """The file of ``train-dpo``, ``train-sft`` and ``dynamic-dpo rollout``; made by :func:`get_training_config`."""

    objective: ObjectiveSection = Field(default_factory=ObjectiveSection)
    reference_sync: ReferenceSyncSection = Field(default_factory=ReferenceSyncSection)
    margin_log: MarginLogSection = Field(default_factory=MarginLogSection)
    alarms: AlarmsSection = Field(default_factory=AlarmsSection)
    sampling: SamplingSection | None = Field(default=None)
    engine: EngineSection = Field(default_factory=EngineSection)
    peft: PeftSection | None = Field(default=None)
    rollout: RolloutSection = Field(default_factory=RolloutSection)

    @property
    def reference_name(self) -> str:
        """The model that serves as reference: ``ref_name``, or the policy as it is at the start."""
        return self.ref_name or self.policy_name

    def settings_of(self, method: str) -> dict[str, Any]:
        """Return what the file says of a method, as its `Settings` takes it; empty where it has none.

        A ``beta`` that the file leaves open is ``None``.
        """
        settings = METHODS[method].Settings
        return {} if settings is None else settings_in(self, settings, method)

    def keep_best(self) -> KeepBest | None:
        """Return how a training on preferences keeps its best weights; ``None`` where it keeps its last."""
        section = self.dpo_training.keep_best
        return None if section is None else KeepBest(**section.model_dump())

    def read(self, component: type[ConfigT]) -> ConfigT:
        """Return the settings of a component, e.g. `RiskConfig`, as the file gives them."""
        return component(**settings_in(self, component))

    def contradictions(self) -> list[str]:
        """Return a line for each setting that the chosen method would not read, or that is at odds with another."""
        # Methods share settings: what two of them say is said once.
        lines = unread_settings(self) + list(dict.fromkeys(ruled_out(self)))
        return lines + list(unkept_best(self.dataset, self.dpo_training))


class LoopConfig(TrainingConfig):
    """The file of ``dynamic-dpo iterate``: a training file and two more sections; made by :func:`get_loop_config`."""

    iterate: IterateSection = Field(default_factory=IterateSection)
    evaluation: LoopEvaluationSection = Field(default_factory=LoopEvaluationSection)


class EvaluationConfig(Document):
    """The file of ``evaluate``: prompts, models and judge; made by :func:`get_evaluation_config`."""

    preset: PresetName | None = Field(
        default=None,
        description="A published evaluation, whose settings hold where this file says nothing; null: none.",
    )
    dataset: EvaluationDatasetSection = Field(default_factory=EvaluationDatasetSection)
    models: dict[str, EvaluatedModelSection] = Field(
        default={}, description="The models to compare, each under a name of your choice."
    )
    baseline: str | None = Field(
        default=None, description="Name of the model that the others are compared with; null: the first."
    )
    comparisons: Literal["baseline", "all"] = Field(
        default="baseline", description="Compare every model with the baseline, or with every other model."
    )
    generation: GenerationSection = Field(default_factory=GenerationSection)
    turns: TurnsSection = Field(default_factory=TurnsSection)
    judge: JudgeSection = Field(default_factory=JudgeSection)
    gpt4_oracle: OracleSection = Field(default_factory=OracleSection)
    judges: dict[str, FurtherJudgeSection] = Field(
        default={},
        description="Further judges of the same questions, each under a name of your choice; the report says how far "
        "they agree.",
    )
    scoring: ScoringSection = Field(default_factory=ScoringSection)
    statistics: StatisticsSection = Field(default_factory=StatisticsSection)
    output: OutputSection = Field(default_factory=OutputSection)

    @field_validator("baseline")
    @classmethod
    def _is_a_model(cls, value: str | None, info: ValidationInfo) -> str | None:
        models = info.data.get("models")
        if value is not None and models is not None and value not in models:
            refuse(f"must be one of models ({', '.join(models) or 'none given'})")
        return value


def get_training_config(config: dict[str, Any]) -> TrainingConfig:
    """Check a training configuration and fill in its defaults.

    Args:
        config: What ``load_yaml`` and ``apply_overrides`` return; it is not changed.

    Returns:
        The configuration; unknown training arguments of ``dpo_training`` and ``sft_training`` are in their
        ``extra``.

    Raises:
        ConfigError: If anything is wrong; the message has one line for each problem.

    Example:
        >>> cfg = get_training_config({"policy_name": "m", "risk_test": {"lambda": 0.05}})
        >>> cfg.risk_test.momentum, cfg.beta_update.beta_0
        (0.05, 0.1)
        >>> get_training_config({"policy_name": "m", "risk_test": {"delta": 1.2}})
        Traceback (most recent call last):
        dynamic_dpo.errors.ConfigError: risk_test.delta must lie in (0, 1), got 1.2
    """
    return _check(TrainingConfig, config)


def get_loop_config(config: dict[str, Any]) -> LoopConfig:
    """Check the configuration of a loop and fill in its defaults.

    Args:
        config: What ``load_yaml`` and ``apply_overrides`` return; it is not changed.

    Raises:
        ConfigError: If anything is wrong; the message has one line for each problem.

    Example:
        >>> get_loop_config({"policy_name": "m", "iterate": {"rounds": 2}}).iterate.reference
        'initial'
    """
    return _check(LoopConfig, config)


def get_evaluation_config(config: dict[str, Any]) -> EvaluationConfig:
    """Check an evaluation configuration and fill in its defaults, first those of its preset.

    Args:
        config: What ``load_yaml`` and ``apply_overrides`` return; it is not changed.

    Raises:
        ConfigError: If anything is wrong; the message has one line for each problem.

    Example:
        >>> get_evaluation_config({"models": {"base": "gpt2"}}).models["base"].path
        'gpt2'
    """
    return _check(EvaluationConfig, with_preset(config) if isinstance(config, dict) else config)


def _check(model: type[DocumentT], config: Mapping[str, Any]) -> DocumentT:
    if not isinstance(config, dict):
        raise ConfigError(f"the configuration must be a mapping of keys and values, got {given(config)}")
    settled = dict(config)
    problems: list[str] = []
    unknown: list[str] = []
    for name, field in fields_by_key(model).items():
        section, values = section_of(field), settled.get(name)
        if section is not None and issubclass(section, PassthroughSection) and isinstance(values, dict):
            settled[name], found, strangers = check_passthrough(name, section, values)
            problems += found
            unknown += [f"{name}.{key}" for key in strangers]
    document: DocumentT | None = None
    try:
        document = model.model_validate(settled)
        problems += document.contradictions()
    except ValidationError as error:
        found, strangers = describe_problems(model, settled, error)
        problems += found
        unknown += strangers
    paths = list(dict.fromkeys(unknown))
    lines = [_unknown_key_line(model, path) for path in paths[:_MOST_SUGGESTIONS]] + problems
    if len(paths) > _MOST_SUGGESTIONS:
        lines.append(f"… and {len(paths) - _MOST_SUGGESTIONS} more unknown keys: is this the right file?")
    if lines or document is None:
        raise ConfigError(redact("\n".join(lines)))
    return document


def _unknown_key_line(model: type[Document], path: str) -> str:
    if len(path) > _LONGEST_KEY:
        return f"unknown key {path[:_LONGEST_KEY]}…; docs/configuration.md lists all keys"
    asked, *name = path, ""
    parts = path.split(".")
    if len(parts) == 3:
        # Below a section of the user's own naming, e.g. models.<name>.path.
        asked, name = ".".join((parts[0], "<name>", parts[2])), parts[1:2]
    # Only if our own keys give nothing, because it imports transformers: a training argument may stand in the
    # wrong section.
    meant = nearest(asked, known_paths(model)) or nearest(asked, _foreign_paths(model))
    if not meant:
        return f"unknown key {path}; docs/configuration.md lists all keys"
    return f"unknown key {path}; did you mean {' or '.join(meant).replace('<name>', name[0])}?"


def _foreign_paths(model: type[Document]) -> list[str]:
    sections = [
        name
        for name, field in fields_by_key(model).items()
        if (section := section_of(field)) is not None and issubclass(section, PassthroughSection)
    ]
    return [f"{name}.{key}" for name in sections for key in training_argument_types()] if sections else []
