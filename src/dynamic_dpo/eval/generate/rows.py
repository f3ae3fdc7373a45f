"""The lines of a file of outputs: an output with what it was written by, or a prompt left out with its reason."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from dynamic_dpo.eval.lint import lint_output
from dynamic_dpo.eval.records import OutputRecord, PromptRecord


def output_row(
    fingerprint: str,
    id_: str,
    model: str,
    sample: int,
    text: str,
    *,
    num_tokens: int,
    finish_reason: str,
    token_ids: Sequence[int] | None,
    stop_token_id: int | None,
) -> dict[str, Any]:
    """Return the line of one output.

    Args:
        fingerprint: Of model and settings.
        id_: The prompt's id.
        model: The model's name in the evaluation.
        sample: Which output of that prompt, from 0.
        text: The output.
        num_tokens: Its length in the model's tokens, 0 where that is not known.
        finish_reason: Why it ended: ``stop``, ``length`` or another word of a server.
        token_ids: The output's own ids, the stop token left out; ``None`` where they are not known.
        stop_token_id: The token by which the model stopped; ``None`` where it was cut, or ids are not known.

    Returns:
        An `OutputRecord` with the fingerprint; with ids, also ``token_ids`` and ``stop_token_id``. The prompt as
        `render_prompt` gives it, then ``token_ids``, then ``stop_token_id`` is the whole sequence that was sampled,
        and what training on this output is to score.
    """
    finished = finish_reason == "stop"
    flags = [*lint_output(text), *([] if finished else ["truncated"])]
    record = OutputRecord(id_, model, sample, text, num_tokens, finished, flags, finish_reason)
    ids = {} if token_ids is None else {"token_ids": list(token_ids), "stop_token_id": stop_token_id}
    return {"fingerprint": fingerprint, **record.to_json(), **ids}


def left_out_row(fingerprint: str, id_: str, model: str, why: str) -> dict[str, Any]:
    """Return the line of a prompt that a model cannot be asked."""
    return {"fingerprint": fingerprint, "id": id_, "model": model, "left_out": why}


OUTPUT_PLACE = ("fingerprint", "id", "sample", "left_out")
"""The keys of a line that say whose it is: all that `missing_samples` reads."""


def missing_samples(
    rows: Iterable[dict[str, Any]], fingerprint: str, prompts: Sequence[PromptRecord], num_samples: int
) -> dict[str, set[int]]:
    """Return which samples of which prompts a file lacks, by prompt id; prompts left out are not missing."""
    missing = {prompt.id: set(range(num_samples)) for prompt in prompts}
    for row in rows:
        if row.get("fingerprint") != fingerprint or row.get("id") not in missing:
            continue
        if "left_out" in row:
            missing[row["id"]].clear()
        else:
            missing[row["id"]].discard(row.get("sample", -1))
    return {id_: samples for id_, samples in missing.items() if samples}
