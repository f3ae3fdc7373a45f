"""The section on samples that a training writes while it goes on."""

from __future__ import annotations

from pydantic import Field, field_validator

from dynamic_dpo.config.base import Section, refuse
from dynamic_dpo.config.from_settings import settings_section
from dynamic_dpo.config.sections.rollouts import ScorerSection
from dynamic_dpo.runs.samples import SamplingConfig
from dynamic_dpo.utils.blank_text import is_blank


class _Prompts(Section):
    prompts: list[str] | None = Field(
        default=None,
        description="Texts to write behind: a user's turn each where rows are rendered by a chat template, else "
        "continued as they stand; null: the first prompts of the held-out rows.",
    )

    @field_validator("prompts")
    @classmethod
    def _holds_some(cls, value: list[str] | None) -> list[str] | None:
        if value is not None and (not value or any(is_blank(text) for text in value)):
            refuse("must hold texts that are not blank; leave it out for the prompts of the held-out rows")
        return value


class SamplingSection(settings_section("sampling", SamplingConfig, own=True, base=_Prompts)):  # type: ignore[misc]
    """Samples that train-dpo and train-sft write for fixed prompts while they train. Null (the default): none."""

    scorers: dict[str, ScorerSection] = Field(
        default={}, description="Scorers of the samples by a name of your choice."
    )
