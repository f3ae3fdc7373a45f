"""Which answers to a prompt become a pair: one function a rule, one line in `RULES`.

A rule sees the usable answers of one prompt, each with its score, and proposes pairs, the one that it prefers first.
It hangs on nothing but these answers and the seed: other prompts, their order and their number change no pair.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Final, NamedTuple

from dynamic_dpo.rollouts.answers import POLICY, REFERENCE, WEAK, Answer
from dynamic_dpo.rollouts.filters import lengths_match
from dynamic_dpo.rollouts.settings import PairingSettings
from dynamic_dpo.utils.hashing import content_hash


class Proposed(NamedTuple):
    """A pair that a rule proposes."""

    chosen: Answer
    rejected: Answer

    @property
    def gap(self) -> float:
        """By how much the chosen answer's score is the higher one."""
        return self.chosen.score - self.rejected.score


class Task(NamedTuple):
    """What a rule is given.

    Attributes:
        prompt_id: The prompt's id.
        answers: Its usable answers with their scores; at least two.
        settings: How pairs are made.
    """

    prompt_id: str
    answers: Sequence[Answer]
    settings: PairingSettings


def best_worst(task: Task) -> list[Proposed]:
    """Propose the best answer over the worst."""
    best, others = _best_and_others(task)
    return [Proposed(best, others[-1])]


def best_mu2sigma(task: Task) -> list[Proposed]:
    """Propose the best answer over the one whose score is nearest to the mean less two standard deviations.

    The worst of many answers is an outlier that teaches little; that point of the distribution stays where it is as
    more are sampled (Xiao et al. 2025, Finding the Sweet Spot: Preference Data Construction for Scaling Preference
    Optimization, https://arxiv.org/abs/2502.16825). Mean and deviation are those of all the prompt's usable answers,
    taken as the whole population.
    """
    best, others = _best_and_others(task)
    scores = [answer.score for answer in task.answers]
    target = statistics.fmean(scores) - 2 * statistics.pstdev(scores)
    # Of two at one distance the worse: what is drawn must not hang on the order of the answers.
    return [Proposed(best, min(reversed(others), key=lambda answer: abs(answer.score - target)))]


def best_random(task: Task) -> list[Proposed]:
    """Propose the best answer over one drawn from those with a lower score, by a hash of seed, prompt and answer."""
    best, others = _best_and_others(task)
    seed, id_ = task.settings.seed, task.prompt_id
    return [Proposed(best, min(others, key=lambda answer: content_hash([seed, id_, answer.name])))]


def every_pair(task: Task) -> list[Proposed]:
    """Propose every two answers, the better one chosen, the widest gap first."""
    return sorted(_ordered(task.answers), key=lambda pair: -pair.gap)


def threshold(task: Task) -> list[Proposed]:
    """Propose every two answers whose scores differ by the least gap or more, the narrowest of these gaps first."""
    wide = [pair for pair in _ordered(task.answers) if pair.gap >= task.settings.min_gap]
    return sorted(wide, key=lambda pair: pair.gap)


def with_reference(task: Task) -> list[Proposed]:
    """Propose the data set's own answer with each sample, the better one chosen, the widest gap first."""
    return [pair for pair in every_pair(task) if REFERENCE in (pair.chosen.model, pair.rejected.model)]


def strong_weak(task: Task) -> list[Proposed]:
    """Propose the strong model's answers over the weak one's, equal sample numbers together."""
    written = {(answer.model, answer.sample): answer for answer in task.answers}
    samples = sorted({sample for _, sample in written})
    both = [(written.get((POLICY, n)), written.get((WEAK, n))) for n in samples]
    return [Proposed(strong, weak) for strong, weak in both if strong is not None and weak is not None]


RULES: Final[dict[str, Callable[[Task], list[Proposed]]]] = {
    "best_worst": best_worst,
    "best_mu2sigma": best_mu2sigma,
    "best_random": best_random,
    "all": every_pair,
    "threshold": threshold,
    "with_reference": with_reference,
    "strong_weak": strong_weak,
}

BETTER_WRITER: Final = {"strong_weak": POLICY, "with_reference": REFERENCE}
"""Rules that need no labels, and whose answers are the better ones where there are none."""


def penalised(answer: Answer, settings: PairingSettings) -> Answer:
    """Return an answer whose score has the penalty for its length taken off.

    >>> penalised(Answer("policy", 0, "x" * 50, score=1.0), PairingSettings(length_penalty=0.2)).score
    0.9
    """
    return replace(answer, score=answer.score - settings.length_penalty * len(answer.text) / 100)


def ranking(answers: Sequence[Answer]) -> list[Answer]:
    """Return answers from the best to the worst; of equal scores the earlier writer and sample first."""
    return sorted(answers, key=lambda answer: (-answer.score, answer.model, answer.sample))


def _best_and_others(task: Task) -> tuple[Answer, list[Answer]]:
    """Return the best answer and those that it may be chosen over, from the best to the worst.

    Where none is worse and of a matching length, these are all others, and a filter says why there is no pair.
    """
    best, *others = ranking(task.answers)
    limit = task.settings.max_length_ratio
    worse = [other for other in others if other.score < best.score]
    matching = [other for other in worse if lengths_match(best, other, limit)]
    return best, matching or worse or others


def _ordered(answers: Sequence[Answer]) -> list[Proposed]:
    return [Proposed(better, worse) for better, worse in combinations(ranking(answers), 2)]
