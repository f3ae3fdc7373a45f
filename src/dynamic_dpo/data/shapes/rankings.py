"""Several answers to one prompt, ranked or rated: Nectar's, UltraFeedback's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from dynamic_dpo.data.quarantine import BadRow
from dynamic_dpo.data.shapes.options import ShapeOptions
from dynamic_dpo.utils.hashing import content_hash

_LISTS: Final = ("answers", "completions", "responses", "generations")
_TEXTS: Final = ("answer", "response", "completion", "text", "content")
_RATINGS: Final = ("overall_score", "fine-grained_score", "score", "rating")
_LISTS_OF_RATINGS: Final = ("ratings", "rating", "scores")


class _Rated(NamedTuple):
    text: Any
    value: float


def is_ranking(row: Mapping[str, Any]) -> bool:
    """Return whether a row has several answers with ranks or ratings, and no pair of its own."""
    if row.get("chosen") is not None or row.get("rejected") is not None:
        return False
    return any(_rated(row, name) is not None for name in _LISTS)


def by_rank(row: Mapping[str, Any], options: ShapeOptions) -> dict[str, Any]:
    """Rewrite a row of ranked or rated answers as one pair of two of them.

    A rank of 1 is the best; a rating is better the higher it is. Of equally good answers the first counts.

    Raises:
        BadRow: ``tie`` where all answers are equally good, ``no_verdict`` where fewer than two have a rank or rating.
    """
    name = next(name for name in _LISTS if _rated(row, name) is not None)
    found = _rated(row, name) or []
    answers = sorted(
        (one for one in found if isinstance(one.text, str | list) and math.isfinite(one.value)),
        key=lambda one: -one.value,
    )
    if len(answers) < 2:
        raise BadRow("no_verdict", f"{name} holds {len(answers)} answers with a rank or rating")
    best, others = answers[0], [one for one in answers[1:] if one.value < answers[0].value]
    if not others:
        raise BadRow("tie", f"all {len(answers)} answers are equally good")
    if options.ranking == "best_second":
        worse = others[0]
    elif options.ranking == "best_random":
        worse = min(others, key=lambda one: content_hash([str(row.get("prompt")), one.text]))
    else:
        worse = others[-1]
    rest = {key: value for key, value in row.items() if key not in (name, *_LISTS_OF_RATINGS)}
    return {**rest, "chosen": best.text, "rejected": worse.text}


def _rated(row: Mapping[str, Any], name: str) -> list[_Rated] | None:
    """Return the answers of a column, each with how good it is; ``None`` where the column holds no such thing."""
    answers = row.get(name)
    if not isinstance(answers, list) or not answers:
        return None
    if all(isinstance(answer, str) for answer in answers):
        ratings = next((row[key] for key in _LISTS_OF_RATINGS if isinstance(row.get(key), list)), None)
        if ratings is None or len(ratings) != len(answers):
            return None
        return [_Rated(answer, _number(rating)) for answer, rating in zip(answers, ratings, strict=True)]
    if not all(isinstance(answer, Mapping) for answer in answers):
        return None
    text = next((key for key in _TEXTS if key in answers[0]), None)
    rating = next((key for key in _RATINGS if key in answers[0]), None)
    if text is None or (rating is None and "rank" not in answers[0]):
        return None
    if rating is None:
        return [_Rated(answer.get(text), -_number(answer.get("rank"))) for answer in answers]
    return [_Rated(answer.get(text), _number(answer.get(rating))) for answer in answers]


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")
