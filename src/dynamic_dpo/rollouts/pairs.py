"""From the labelled answers of one prompt to its pairs, and what a pair looks like in a file.

A pair is a row of judged rollouts, which training takes with ``dataset.generated_data: true``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from dynamic_dpo.eval.records import PromptRecord
from dynamic_dpo.rollouts.answers import Answer
from dynamic_dpo.rollouts.filters import Dropped, pair_fault
from dynamic_dpo.rollouts.pairing_rules import BETTER_WRITER, RULES, Proposed, Task, penalised
from dynamic_dpo.rollouts.plan import RolloutPlan
from dynamic_dpo.utils.hashing import content_hash


class PromptPairs(NamedTuple):
    """What the answers of one prompt have come to.

    Attributes:
        pairs: Its pairs.
        dropped: What was left out on the way.
    """

    pairs: list[Proposed]
    dropped: list[Dropped]


def pairs_of(prompt_id: str, answers: Sequence[Answer], plan: RolloutPlan) -> PromptPairs:
    """Make the pairs of one prompt.

    Args:
        prompt_id: The prompt's id.
        answers: Its usable answers with their scores, as the labels give them.
        plan: Rule and filters.

    Returns:
        Pairs whose chosen answer has the higher score. Of what the rule proposes, those that no filter stops are
        taken until there are as many as there may be.
    """
    settings = plan.pairing
    if plan.labels is None:
        answers = [replace(a, score=float(a.model == BETTER_WRITER[plan.rule])) for a in answers]
    if len(answers) < 2:
        return PromptPairs([], [Dropped(prompt_id, "too_few_answers", tuple(a.name for a in answers))])
    task = Task(prompt_id, [penalised(answer, settings) for answer in answers], settings)
    found = PromptPairs([], [])
    proposed = RULES[plan.rule](task)
    if not proposed:
        found.dropped.append(Dropped(prompt_id, "nothing_proposed", (), plan.rule))
    for pair in proposed:
        if len(found.pairs) == settings.max_pairs:
            break
        reason = pair_fault(*pair, settings)
        if reason is None:
            found.pairs.append(pair)
        else:
            found.dropped.append(Dropped(prompt_id, reason, (pair.chosen.name, pair.rejected.name)))
    return found


def pair_row(prompt: PromptRecord, pair: Proposed, plan: RolloutPlan, *, judge: str | None) -> dict[str, Any]:
    """Return a pair as a row of judged rollouts.

    Args:
        prompt: The prompt.
        pair: The pair.
        plan: Seed and rule.
        judge: Name of the judge, or names of the scorers; ``None`` where nobody judged.

    Returns:
        ``prompt_messages``, ``chosen``, ``rejected``; ``chosen_ids`` and ``rejected_ids`` as they were sampled,
        ``None`` where nobody gave them; and ``metadata``.
    """
    return {
        "prompt_messages": prompt.messages,
        "chosen": pair.chosen.text,
        "rejected": pair.rejected.text,
        "chosen_ids": _ids(pair.chosen),
        "rejected_ids": _ids(pair.rejected),
        "metadata": {
            "id": content_hash([prompt.id, pair.chosen.text, pair.rejected.text]),
            "prompt_id": prompt.id,
            "rule": plan.rule,
            "judge": judge,
            "gap": pair.gap,
            "seed": plan.generation.seed,
            "chosen": _about(pair.chosen, plan),
            "rejected": _about(pair.rejected, plan),
        },
    }


def _ids(answer: Answer) -> list[int] | None:
    return None if answer.token_ids is None else list(answer.token_ids)


def _about(answer: Answer, plan: RolloutPlan) -> dict[str, Any]:
    path = next((spec.path for spec in plan.models if spec.name == answer.model), answer.model)
    return {
        "model": path,
        "sample": answer.sample,
        "score": answer.score,
        "scores": dict(answer.scores),
        "num_tokens": answer.num_tokens,
        "finish_reason": answer.finish_reason,
    }
