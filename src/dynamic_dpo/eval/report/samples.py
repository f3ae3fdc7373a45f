"""The section of an evaluation page that shows outputs side by side with what the judges said about them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from markupsafe import Markup

from dynamic_dpo.eval.records import JudgementRecord, OutputRecord, PromptRecord
from dynamic_dpo.eval.report.data import EvaluationData
from dynamic_dpo.eval.statistics.comparisons import distinct
from dynamic_dpo.pages.shapes import Chip, Output, Remark, section, side_by_side
from dynamic_dpo.utils.hashing import content_hash

Record = TypeVar("Record", OutputRecord, JudgementRecord)


def samples(data: EvaluationData) -> Markup:
    """Return the section, or nothing where there are no outputs to show.

    Prompts are drawn by a hash of seed and id: the same in every report of a seed, whatever their order, and not
    the first of a list that somebody sorted.
    """
    written = _by_prompt(data.outputs)
    judged = _by_prompt(distinct(data.judgements))
    candidates = [prompt for prompt in data.prompts if prompt.id in written]
    # Judged ones first: an early stop would else fill the page with prompts that nobody compared.
    candidates.sort(key=lambda prompt: (prompt.id not in judged, content_hash([data.seed, prompt.id])))
    drawn = candidates[: data.num_shown]
    if not drawn:
        return Markup()
    return section(
        "samples",
        "Side by side",
        f"{len(drawn)} of {len(data.prompts):,} prompts, drawn at random, the first sample of each.",
        *(_prompt(prompt, written[prompt.id], judged.get(prompt.id, [])) for prompt in drawn),
    )


def _by_prompt(records: Iterable[Record]) -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(record.id, []).append(record)
    return found


def _prompt(
    prompt: PromptRecord, outputs: Sequence[OutputRecord], judgements: Sequence[JudgementRecord]
) -> Markup:
    sample = min(output.sample for output in outputs)
    judgements = sorted(
        (record for record in judgements if record.sample == sample),
        key=lambda record: (record.judge, *sorted((record.first, record.second)), record.first, record.key),
    )
    shown = [
        _output(output, judgements)
        for output in sorted(outputs, key=lambda output: output.model)
        if output.sample == sample
    ]
    if prompt.reference is not None:
        shown.append(Output("reference", prompt.reference))
    return side_by_side(
        f"prompt {prompt.id[:12]}",
        [(message.get("role", ""), message.get("content", "")) for message in prompt.messages] or [("", "")],
        shown,
        chips=[] if prompt.category is None else [Chip(prompt.category)],
        remarks=[_remark(record) for record in judgements],
    )


def _output(output: OutputRecord, judgements: Sequence[JudgementRecord]) -> Output:
    chips = [Chip(flag.replace("_", " "), "bad") for flag in output.flags]
    num_judged = sum(output.model in (record.first, record.second) for record in judgements)
    num_won = sum(record.winner == output.model for record in judgements)
    if num_judged:
        chips.append(Chip(f"preferred {num_won} of {num_judged}", "good" if num_won else ""))
    return Output(output.model, output.text, chips, is_marked=2 * num_won > num_judged)


def _remark(record: JudgementRecord) -> Remark:
    preferred = f"{'strongly ' if record.strong else ''}prefers {record.winner}"
    outcome = {"tie": "a tie", "invalid": "no usable verdict"}.get(record.verdict, preferred)
    return Remark(
        f"{record.judge}: {outcome} (order shown: {record.first}, {record.second})", text=record.reason
    )
