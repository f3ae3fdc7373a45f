"""The settings of prompts of several turns: how they are asked, and how the answers are judged."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from dynamic_dpo.errors import ConfigError
from dynamic_dpo.utils.settings import check_settings, documented, setting

TurnsJudging = Literal["grades", "pairs"]


@documented()
@dataclass(frozen=True)
class TurnsSettings:
    """Whether all turns of a prompt are asked, each after the model's own answers, and how they are judged."""

    enabled: bool = setting(
        False,
        "Ask every turn of a prompt, each after the model's own answers to those before; false: the first alone.",
        key="turns.enabled",
    )
    judging: TurnsJudging = setting(
        "grades",
        "grades: each answer by itself, from 1 to 10; pairs: two models' conversations side by side.",
        key="turns.judging",
    )
    template_file: str | None = setting(
        None,
        "FastChat's judge_prompts.jsonl, whose questions are put to the judge; null: the package's own.",
        key="turns.template_file",
        not_empty=True,
    )
    references: str | None = setting(
        None,
        "File with right answers, in the form of MT-Bench's reference_answer; null: those that the prompts have.",
        key="turns.references",
        not_empty=True,
    )
    temperatures: dict[str, Any] | None = setting(
        None,
        "Category to the sampling temperature of its prompts, as {math: 0, writing: 0.7}; others have "
        "generation.temperature.",
        key="turns.temperatures",
    )

    def __post_init__(self) -> None:
        check_settings(self)
        for category, value in (self.temperatures or {}).items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (is_number and value >= 0 and math.isfinite(value)):
                raise ConfigError(
                    f"turns.temperatures: {category} must be a number of at least 0, got {value!r}"
                )

    def temperature_of(self, category: str | None, otherwise: float) -> float:
        """Return the temperature of a category's prompts."""
        return float((self.temperatures or {}).get(category or "", otherwise))
