"""The sections of the file of a loop: how rounds follow each other, and the evaluation that ends each."""

from __future__ import annotations

from pydantic import Field, field_validator

from dynamic_dpo.config.base import Section, refuse_fault
from dynamic_dpo.config.from_settings import settings_section
from dynamic_dpo.config.sections.evaluation import (
    EvaluationDatasetSection,
    GenerationSection,
    OracleSection,
)
from dynamic_dpo.config.sections.judging import JudgeSection, StatisticsSection
from dynamic_dpo.loops.settings import LoopSettings
from dynamic_dpo.utils.names import folder_fault


class IterateSection(settings_section("iterate", LoopSettings, own=True)):  # type: ignore[misc]
    """Rounds of rollout, training and evaluation: `dynamic-dpo iterate`."""

    @field_validator("output_dir")
    @classmethod
    def _can_be_a_folder(cls, value: str) -> str:
        return refuse_fault(value, folder_fault)


class LoopEvaluationSection(Section):
    """The evaluation that ends every round, as an evaluation file says it; models and folder are the loop's."""

    dataset: EvaluationDatasetSection = Field(default_factory=EvaluationDatasetSection)
    generation: GenerationSection = Field(default_factory=GenerationSection)
    judge: JudgeSection = Field(default_factory=JudgeSection)
    gpt4_oracle: OracleSection = Field(default_factory=OracleSection)
    statistics: StatisticsSection = Field(default_factory=StatisticsSection)
