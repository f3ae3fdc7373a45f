"""Verdicts in Arena-Hard's judgement files, of which each line holds both orders of one question."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dynamic_dpo.errors import DataError
from dynamic_dpo.eval.exchange.files import (
    as_object,
    entries_of_lines,
    prompt_of,
    questions_between,
    string_field,
)
from dynamic_dpo.eval.judges.labels import FIVE_LABELS, Label
from dynamic_dpo.eval.judges.verdict import Verdict
from dynamic_dpo.eval.records import JudgementRecord, PromptRecord
from dynamic_dpo.utils.files import write_text
from dynamic_dpo.utils.hashing import content_hash

ARENA_SCORES = {"A": "A>B", "B": "B>A", "tie": "A=B", "invalid": None}
STRONG_SCORES = {"A": "A>>B", "B": "B>>A"}


def export_arena_hard_judgements(
    path: str | Path,
    prompts: Sequence[PromptRecord],
    judgements: Sequence[JudgementRecord],
    *,
    model: str,
    baseline: str,
    judge: str,
) -> Path:
    """Write verdicts as an Arena-Hard v2 judgement file: JSON lines of two games each.

    In the first game the baseline is A, in the second the model. An order that was not asked is ``null``, and
    Arena-Hard's own summary leaves such a question out.

    Args:
        path: The file; Arena-Hard wants it named after the model.
        prompts: The prompts; ``uid`` is their field of that name (or ``question_id``), else their id.
        judgements: Any judgements; others than those between the two models by this judge are passed over.
        model: Whose wins Arena-Hard is to count.
        baseline: Against whom.
        judge: Who judged.

    Raises:
        DataError: If there is no such judgement, or a prompt is missing.
    """
    by_id = {prompt.id: prompt for prompt in prompts}
    lines = []
    for (prompt_id, _), records in questions_between(judgements, model, baseline, judge).items():
        prompt = prompt_of(by_id, prompt_id)
        by_first = {record.first: record for record in reversed(records)}
        games: list[dict[str, Any] | None] = [
            None
            if record is None
            else {"score": _score(record), "judgment": {"answer": record.reason}, "prompt": []}
            for record in (by_first.get(baseline), by_first.get(model))
        ]
        uid = prompt.meta.get("uid") or prompt.meta.get("question_id") or prompt.id
        lines.append(
            {
                "uid": str(uid),
                "category": prompt.category or "",
                "judge": judge,
                "model": model,
                "baseline": baseline,
                "games": games,
            }
        )
    return write_text(path, "".join(json.dumps(line) + "\n" for line in lines))


def import_arena_hard_judgements(path: str | Path, *, baseline: str | None = None) -> list[JudgementRecord]:
    """Read an Arena-Hard judgement file, version 2 or 0.1.

    ``A>>B``, which Arena-Hard counts threefold, is a win with ``strong``. A game without a label is an invalid
    verdict, a game that is ``null`` was not played.

    Args:
        path: The file of JSON lines.
        baseline: Name of the baseline for files of version 0.1, which do not hold it.

    Returns:
        Judgements whose prompt ids are Arena-Hard's ``uid`` or ``question_id``.

    Raises:
        DataError: If the file is malformed, or names no baseline and none is given.
    """
    judgements: list[JudgementRecord] = []
    seen: Counter[tuple[str, str, str]] = Counter()
    for place, line in entries_of_lines(Path(path)):
        prompt_id = string_field(line, "uid" if "uid" in line else "question_id", place)
        model, judge = string_field(line, "model", place), string_field(line, "judge", place)
        against = string_field(line, "baseline", place) if "baseline" in line else baseline
        if against is None:
            raise DataError(f"{place}: this file names no baseline (version 0.1 does not); pass baseline=")
        if against == model:
            raise DataError(f"{place}: model and baseline are both {model!r}; nothing is compared")
        games = line.get("games")
        if not isinstance(games, list) or len(games) != 2:
            raise DataError(f"{place}: 'games' must be a list of two games, got {str(games)[:80]!r}")
        sample = seen[prompt_id, model, judge]
        seen[prompt_id, model, judge] += 1
        for game, (first, second) in zip(games, ((against, model), (model, against)), strict=True):
            if game is None:
                continue
            label, reason = _game(game, place)
            key = content_hash([prompt_id, sample, judge, first, second])
            judgements.append(
                JudgementRecord(
                    key,
                    prompt_id,
                    sample,
                    judge,
                    first,
                    second,
                    str(label.verdict),
                    reason,
                    strong=label.strong,
                )
            )
    return judgements


def _score(record: JudgementRecord) -> str | None:
    return STRONG_SCORES[record.verdict] if record.strong else ARENA_SCORES[record.verdict]


def _game(game: Any, place: str) -> tuple[Label, str]:
    game = as_object(game, f"{place}, games")
    score = game.get("score")
    if score is not None and (not isinstance(score, str) or score not in FIVE_LABELS):
        raise DataError(f"{place}: 'score' must be one of {', '.join(FIVE_LABELS)} or null, got {score!r}")
    said = game.get("judgment", "")
    reason = said.get("answer", "") if isinstance(said, Mapping) else said
    label = Label(Verdict.INVALID) if score is None else FIVE_LABELS[score]
    return label, str(reason or "").strip()
