"""What the report of graded conversations is made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dynamic_dpo.eval.records import GradeRecord, OutputRecord, PromptRecord
from dynamic_dpo.eval.statistics.grades import ModelGrades


@dataclass(frozen=True)
class GradesData:
    """Everything that a report of grades shows.

    Attributes:
        prompts: The prompts.
        answers: Model to prompt id to its answers, turn by turn.
        grades: The judge's grades.
        models: The means of every model, the best first.
        judge: Who graded.
        baseline: The model that the others are compared with.
        title: Heading of the report.
        created: When the evaluation was begun.
        alarms: What a reader must know before any number.
        provenance: What the numbers were made with: heading to key to value.
        confidence: Of all intervals.
        num_resamples: Of the bootstrap.
        seed: Of the bootstrap and of the draw of prompts to show.
        num_shown: Most prompts to show.
    """

    prompts: Sequence[PromptRecord]
    answers: Mapping[str, Mapping[str, Sequence[OutputRecord]]]
    grades: Sequence[GradeRecord]
    models: Sequence[ModelGrades]
    judge: str
    baseline: str | None
    title: str
    created: str = ""
    alarms: Sequence[str] = ()
    provenance: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    confidence: float = 0.95
    num_resamples: int = 2000
    seed: int = 0
    num_shown: int = 12

    @property
    def categories(self) -> list[str]:
        """The categories that have a mean."""
        return list(self.models[0].by_category) if self.models else []
