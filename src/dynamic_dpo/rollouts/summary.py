"""The numbers of a rollout: counted while pairs are made, written as ``summary.json``, shown on its page."""

from __future__ import annotations

import bisect
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from dynamic_dpo.eval.records import JudgementRecord, PromptRecord
from dynamic_dpo.eval.statistics.position_bias import PositionBias, position_bias
from dynamic_dpo.rollouts.answers import Answer
from dynamic_dpo.rollouts.filters import Dropped
from dynamic_dpo.rollouts.pairing_rules import Proposed
from dynamic_dpo.rollouts.plan import RolloutPlan
from dynamic_dpo.utils.hashing import content_hash

NUM_SHOWN = 20
"""Pairs that the page shows side by side."""


class ShownPair(NamedTuple):
    """A pair for the page."""

    prompt: PromptRecord
    pair: Proposed


class JudgeFigures(NamedTuple):
    """What a judge's verdicts were like, and what they took.

    Attributes:
        bias: How far they hang on the order.
        num_judgements: Verdicts.
        num_invalid: Those without a winner or a tie.
        num_replies: Replies paid for, invalid ones included.
        prompt_tokens: Tokens of the questions.
        completion_tokens: Tokens of the replies.
        cost: Money by the price table.
    """

    bias: PositionBias
    num_judgements: int
    num_invalid: int
    num_replies: int
    prompt_tokens: int
    completion_tokens: int
    cost: float


@dataclass
class RolloutSummary:
    """What a rollout has come to.

    Attributes:
        rule: The pairing rule.
        judge: Who labelled; ``None`` if nobody.
        num_prompts: Prompts.
        num_answers: Answers, the data set's own included where they take part.
        num_pairs: Pairs.
        num_prompts_with_pairs: Prompts that gave one.
        dropped: Reason to how often something was left out for it.
        scores: Of every labelled answer, the penalty for length not taken off.
        spreads: Highest less lowest score of each prompt.
        gaps: Chosen less rejected score of each pair.
        length_differences: Chosen less rejected length of each pair, in characters.
        judging: See `JudgeFigures`; ``None`` without a judge.
        stopped: Which limit of the judge's budget ended the labelling, in words.
        shown: Pairs for the page, drawn by a hash.
    """

    rule: str
    judge: str | None
    num_prompts: int = 0
    num_answers: int = 0
    num_pairs: int = 0
    num_prompts_with_pairs: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    scores: list[float] = field(default_factory=list)
    spreads: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    length_differences: list[int] = field(default_factory=list)
    judging: JudgeFigures | None = None
    stopped: str | None = None
    _drawn: list[tuple[str, ShownPair]] = field(default_factory=list)

    def count_prompt(
        self,
        prompt: PromptRecord,
        num_answers: int,
        labelled: Sequence[Answer],
        pairs: Sequence[Proposed],
        dropped: Sequence[Dropped],
        plan: RolloutPlan,
    ) -> None:
        """Count what a prompt gave."""
        self.num_prompts += 1
        self.num_answers += num_answers
        self.num_prompts_with_pairs += bool(pairs)
        self.dropped.update(item.reason for item in dropped)
        if plan.labels is not None and labelled:
            scores = [answer.score for answer in labelled]
            self.scores += scores
            self.spreads.append(max(scores) - min(scores))
        for pair in pairs:
            self.num_pairs += 1
            self.gaps.append(pair.gap)
            self.length_differences.append(len(pair.chosen.text) - len(pair.rejected.text))
            self._draw(ShownPair(prompt, pair), plan.generation.seed)

    @property
    def shown(self) -> list[ShownPair]:
        """Pairs for the page, in an order drawn by a hash of seed and content."""
        return [shown for _, shown in self._drawn]

    def numbers(self) -> dict[str, Any]:
        """Return every number as JSON types."""
        return {
            "format_version": 1,
            "rule": self.rule,
            "judge": self.judge,
            "prompts": self.num_prompts,
            "answers": self.num_answers,
            "pairs": self.num_pairs,
            "prompts_with_pairs": self.num_prompts_with_pairs,
            "dropped": dict(sorted(self.dropped.items())),
            "score": described(self.scores),
            "spread": described(self.spreads),
            "gap": described(self.gaps),
            "length_difference": described(self.length_differences),
            "judging": None if self.judging is None else _plain(self.judging),
            "stopped": self.stopped,
        }

    def _draw(self, shown: ShownPair, seed: int) -> None:
        texts = [seed, shown.prompt.id, shown.pair.chosen.text, shown.pair.rejected.text]
        bisect.insort(self._drawn, (content_hash(texts), shown), key=lambda item: item[0])
        del self._drawn[NUM_SHOWN:]


def judge_figures(judgements: Sequence[JudgementRecord], judge: str) -> JudgeFigures:
    """Return what a judge's verdicts were like, and what they took."""
    return JudgeFigures(
        position_bias(judgements, judge),
        len(judgements),
        sum(record.verdict == "invalid" for record in judgements),
        sum(record.attempts for record in judgements),
        sum(record.prompt_tokens for record in judgements),
        sum(record.completion_tokens for record in judgements),
        sum(record.cost for record in judgements),
    )


def described(values: Sequence[float]) -> dict[str, float] | None:
    """Return mean, deviation of the population, least, median and greatest; ``None`` where there is no value.

    >>> described([1.0, 2.0, 6.0])["mean"]
    3.0
    """
    if not values:
        return None
    return {
        "mean": statistics.fmean(values),
        "std": statistics.pstdev(values),
        "min": min(values),
        "median": statistics.median(values),
        "max": max(values),
    }


def _plain(figures: JudgeFigures) -> dict[str, Any]:
    bias = figures.bias
    return {
        **{name: value for name, value in figures._asdict().items() if name != "bias"},
        "first_share": bias.first_share,
        "asked_in_both_orders": bias.num_pairs,
        "consistent": bias.consistent,
        "half": bias.half,
        "flipped": bias.flipped,
    }
