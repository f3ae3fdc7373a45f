"""Labels by scorers: every answer's score, asked for once and kept in a file that only grows.

A score is found by a hash of prompt, text and all that the scorer depends on: a changed scorer scores anew, and what
another run left under the same name is no answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from tqdm.auto import tqdm

from dynamic_dpo.errors import DataError
from dynamic_dpo.eval.judges.base import Scorer, checked_scores
from dynamic_dpo.eval.records import PromptRecord
from dynamic_dpo.rollouts.answers import Answer
from dynamic_dpo.utils.hashing import content_hash
from dynamic_dpo.utils.json_lines import JsonLinesFile, iter_json_lines
from dynamic_dpo.utils.signals import deferred, raise_if_requested

Fingerprint = Mapping[str, Any]


class _Asked(NamedTuple):
    key: str
    prompt: PromptRecord
    answer: Answer


def score_key(prompt: PromptRecord, text: str, fingerprint: Fingerprint) -> str:
    """Return the name of a score: a hash of all that it depends on."""
    return content_hash({"prompt": prompt.messages, "text": text, "scorer": dict(fingerprint)})


def write_scores(
    prompts: Sequence[PromptRecord],
    answers_of: Callable[[PromptRecord], Sequence[Answer]],
    name: str,
    scorer: Scorer,
    path: str | Path,
    *,
    progress: bool = True,
) -> int:
    """Score every answer that has no score yet, each batch on the disk before the next.

    Args:
        prompts: The prompts.
        answers_of: Gives a prompt's answers.
        name: What the scorer is called in the file.
        scorer: The scorer.
        path: The file of scores, appended to; several scorers share one.
        progress: Whether a terminal gets a progress bar.

    Returns:
        How many texts were scored.

    Raises:
        DataError: If another process is writing to the file, or it is damaged.
        JudgeError: If the scorer fails or gives no finite number; what is scored stays.
        Interrupted: If a signal asked to stop, once the batch under way is written.
    """
    fingerprint = scorer.fingerprint()
    num_scored = 0
    with JsonLinesFile(path, keep=("key",)) as file:
        asked = _without(_asked(prompts, answers_of, fingerprint), {row.get("key") for row in file.rows})
        # disable=None shows the bar on a terminal only.
        with tqdm(desc=f"Scoring: {name}", unit="answer", disable=None if progress else True) as bar:
            while batch := list(islice(asked, scorer.batch_size)):
                # A batch that has begun is finished and kept.
                with deferred():
                    scores = checked_scores(scorer, [(item.prompt, item.answer.text) for item in batch])
                    file.append_all(
                        {
                            "key": item.key,
                            "id": item.prompt.id,
                            "answer": item.answer.name,
                            "scorer": name,
                            "score": score,
                        }
                        for item, score in zip(batch, scores, strict=True)
                    )
                num_scored += len(batch)
                bar.update(len(batch))
                raise_if_requested()
    return num_scored


def read_scores(path: str | Path) -> dict[str, float]:
    """Return every score of a file by its key.

    Raises:
        DataError: If the file cannot be read or is damaged.
    """
    try:
        return {row["key"]: float(row["score"]) for row, _, _ in iter_json_lines(path)}
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path} holds a line that is no score ({error}): restore the file, or delete it"
        ) from None


def scored(
    prompt: PromptRecord,
    answers: Iterable[Answer],
    fingerprints: Mapping[str, Fingerprint],
    weights: Mapping[str, float],
    found: Mapping[str, float],
) -> list[Answer]:
    """Return answers with their scores.

    Args:
        prompt: Their prompt.
        answers: The answers.
        fingerprints: Of each scorer by its name.
        weights: Of each scorer by its name.
        found: See `read_scores`.

    Raises:
        DataError: If a score is missing.
    """
    labelled = []
    for answer in answers:
        keys = {
            name: score_key(prompt, answer.text, fingerprint) for name, fingerprint in fingerprints.items()
        }
        missing = [name for name, key in keys.items() if key not in found]
        if missing:
            raise DataError(
                f"{answer.name} of prompt {prompt.id} has no score by {', '.join(missing)}: run the stage label again"
            )
        scores = {name: found[key] for name, key in keys.items()}
        total = math.fsum(weights[name] * score for name, score in scores.items())
        labelled.append(replace(answer, score=total, scores=scores))
    return labelled


def _asked(
    prompts: Iterable[PromptRecord],
    answers_of: Callable[[PromptRecord], Sequence[Answer]],
    fingerprint: Fingerprint,
) -> Iterator[_Asked]:
    for prompt in prompts:
        for answer in answers_of(prompt):
            yield _Asked(score_key(prompt, answer.text, fingerprint), prompt, answer)


def _without(asked: Iterable[_Asked], known: set[str | None]) -> Iterator[_Asked]:
    """Leave out what is known; of equal questions the first is left."""
    for item in asked:
        if item.key not in known:
            known.add(item.key)
            yield item
