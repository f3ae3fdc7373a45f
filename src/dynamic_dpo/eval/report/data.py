"""What an evaluation report is made from."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dynamic_dpo.eval.records import JudgementRecord, OutputRecord, PromptRecord
from dynamic_dpo.eval.scoring.metrics import FrontierPoint, PreferenceSummary
from dynamic_dpo.eval.statistics.alpaca_eval.difficulty_files import Difficulties
from dynamic_dpo.eval.statistics.arena.settings import ArenaSettings


@dataclass(frozen=True)
class EvaluationData:
    """Everything a report shows. What is empty or ``None`` is left out of it.

    Attributes:
        prompts: The prompts.
        outputs: The models' outputs.
        judgements: The judges' answers.
        title: Heading of the report.
        created: When the evaluation was made, as it is to be printed; given, so that equal input gives equal files.
        baseline: The model that the others are compared with; ``None``: every pair by name.
        num_questions: Questions there were to be answered; fewer judgements than that are said loudly.
        stopped: Which limit ended the judging early, in words.
        notes: Further sentences that a reader must not miss, such as prompts left out.
        provenance: What the numbers were made with: heading (a model's name, ``judge``, ``settings``) to key to
            value.
        preference: Model to its implicit rewards on held-out pairs.
        frontier: Checkpoints on the plane of reward and KL.
        confidence: Of all intervals.
        num_resamples: Of the bootstrap.
        seed: Of the bootstrap and of the draw of samples to show.
        arena: How Arena-Hard's score is computed, where it is.
        order_blind: Judges that see one output at a time, as a score does: no order can sway them.
        alpaca: Whether AlpacaEval 2's numbers are computed.
        difficulties: What they rest on; ``None``: estimated from the models at hand.
        num_shown: Most prompts to show with their outputs.
    """

    prompts: Sequence[PromptRecord]
    outputs: Sequence[OutputRecord]
    judgements: Sequence[JudgementRecord]
    title: str = "Evaluation"
    created: str = ""
    baseline: str | None = None
    num_questions: int | None = None
    stopped: str | None = None
    notes: Sequence[str] = ()
    provenance: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    preference: Mapping[str, PreferenceSummary] = field(default_factory=dict)
    frontier: Sequence[FrontierPoint] = ()
    confidence: float = 0.95
    num_resamples: int = 2000
    seed: int = 0
    arena: ArenaSettings = field(default_factory=ArenaSettings)
    order_blind: Collection[str] = ()
    alpaca: bool = False
    difficulties: Difficulties | None = None
    num_shown: int = 12
