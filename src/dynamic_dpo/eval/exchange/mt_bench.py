"""Grades in MT-Bench's judgement files, of which each line holds one grade of one model's turn."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from dynamic_dpo.errors import DataError
from dynamic_dpo.eval.exchange.files import (
    entries_of_lines,
    number_or_none,
    prompt_of,
    string_field,
)
from dynamic_dpo.eval.records import GradeRecord, PromptRecord
from dynamic_dpo.utils.files import write_text
from dynamic_dpo.utils.hashing import content_hash

NO_GRADE = -1


def export_mt_bench_grades(
    path: str | Path, prompts: Sequence[PromptRecord], grades: Sequence[GradeRecord]
) -> Path:
    """Write grades as FastChat's ``model_judgment/JUDGE_single.jsonl``, all models in one file.

    Args:
        path: The file.
        prompts: The prompts; their field ``question_id`` is written (as a number where it is one), else their id.
        grades: The grades; one that is not there is -1, as FastChat has it.

    Raises:
        DataError: If there are no grades, or a prompt is missing.
    """
    if not grades:
        raise DataError("there is no grade to export")
    by_id = {prompt.id: prompt for prompt in prompts}
    lines = []
    for record in sorted(grades, key=lambda record: (record.model, record.id, record.turn)):
        name = str(prompt_of(by_id, record.id).meta.get("question_id") or record.id)
        lines.append(
            {
                "question_id": int(name) if name.isdecimal() and name.isascii() else name,
                "model": record.model,
                "judge": [record.judge, "single"],
                "user_prompt": "",
                "judgment": record.reason,
                "score": NO_GRADE if record.grade is None else record.grade,
                "turn": record.turn + 1,
                "tstamp": 0,
            }
        )
    return write_text(path, "".join(json.dumps(line) + "\n" for line in lines))


def import_mt_bench_grades(path: str | Path) -> list[GradeRecord]:
    """Read a file of grades.

    Args:
        path: The file of JSON lines.

    Returns:
        Grades whose prompt ids are MT-Bench's ``question_id``.

    Raises:
        DataError: If a line is malformed.
    """
    found = []
    for place, line in entries_of_lines(Path(path)):
        model = string_field(line, "model", place)
        judge, turn, score = line.get("judge"), line.get("turn"), number_or_none(line.get("score"))
        name = judge[0] if isinstance(judge, list) and judge else judge
        if line.get("question_id") is None or not isinstance(name, str):
            raise DataError(f"{place} must have a question_id and a judge")
        if not isinstance(turn, int) or turn < 1:
            raise DataError(f"{place}: 'turn' must be a whole number of at least 1, got {turn!r}")
        if score is None or not (score == NO_GRADE or 1 <= score <= 10):
            raise DataError(
                f"{place}: 'score' must be from 1 to 10, or -1 for none, got {line.get('score')!r}"
            )
        id_ = str(line["question_id"])
        grade = None if math.isclose(score, NO_GRADE) else score
        key = content_hash([id_, turn, model, name])
        reason = str(line.get("judgment") or "").strip()
        found.append(GradeRecord(key, id_, turn - 1, name, model, grade, reason))
    return found
