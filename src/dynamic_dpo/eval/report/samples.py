"""The part of an evaluation page that shows outputs side by side with what the judges said about them."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from dynamic_dpo.eval.records import JudgementRecord, OutputRecord, PromptRecord, content_hash
from dynamic_dpo.eval.report.data import EvaluationData
from dynamic_dpo.eval.statistics.comparisons import distinct
from dynamic_dpo.pages.text import cleaned


def samples_section(data: EvaluationData) -> str:
    """Return the section, or nothing where there are no outputs to show.

    Prompts are drawn by a hash of seed and id: the same in every report of a seed, whatever their order, and not
    the first of a list that somebody sorted.
    """
    written: dict[str, list[OutputRecord]] = {}
    for output in data.outputs:
        written.setdefault(output.id, []).append(output)
    judged: dict[str, list[JudgementRecord]] = {}
    for record in distinct(data.judgements):
        judged.setdefault(record.id, []).append(record)
    candidates = [prompt for prompt in data.prompts if prompt.id in written]
    # Judged ones first: an early stop would else fill the page with prompts that nobody compared.
    candidates.sort(key=lambda prompt: (prompt.id not in judged, content_hash([data.seed, prompt.id])))
    shown = candidates[: data.num_shown]
    if not shown:
        return ""
    articles = "\n".join(_article(prompt, written[prompt.id], judged.get(prompt.id, [])) for prompt in shown)
    lead = f"{len(shown)} of {len(data.prompts):,} prompts, drawn at random, the first sample of each."
    return (
        f'<section aria-labelledby="samples"><h2 id="samples">Side by side</h2><p class="lead">{lead}</p>\n'
        f"{articles}</section>"
    )


def _article(
    prompt: PromptRecord, outputs: Sequence[OutputRecord], judgements: Sequence[JudgementRecord]
) -> str:
    sample = min(output.sample for output in outputs)
    about = sorted(
        (record for record in judgements if record.sample == sample),
        key=lambda record: (record.judge, *sorted((record.first, record.second)), record.first, record.key),
    )
    winners = [record.winner for record in about]
    texts = "".join(
        _output(output, winners.count(output.model), sum(output.model in (r.first, r.second) for r in about))
        for output in sorted(outputs, key=lambda output: output.model)
        if output.sample == sample
    )
    if prompt.reference is not None:
        texts += f'<div class="output"><h4>reference</h4>{_text(prompt.reference)}</div>'
    said = "".join(_judgement(record) for record in about)
    category = f'<span class="chip">{_escaped(prompt.category)}</span>' if prompt.category is not None else ""
    return (
        f"<article><div><h4>prompt {_escaped(prompt.id[:12])}{category}</h4>{_conversation(prompt)}</div>"
        f'<div class="outputs">{texts}</div>{said}</article>'
    )


def _conversation(prompt: PromptRecord) -> str:
    *earlier, last = [
        _text(message.get("content", ""), kind="text prompt") for message in prompt.messages
    ] or [""]
    if not earlier:
        return last
    roles = [_escaped(message.get("role", "")) for message in prompt.messages]
    turns = "".join(f"<h4>{role}</h4>{turn}" for role, turn in zip(roles, earlier, strict=False))
    return f"<details><summary>{len(earlier)} earlier turns</summary>{turns}</details>{last}"


def _output(output: OutputRecord, num_won: int, num_judged: int) -> str:
    chips = "".join(
        f'<span class="chip bad">{_escaped(flag.replace("_", " "))}</span>' for flag in output.flags
    )
    if num_judged:
        chips += f'<span class="chip{" good" if num_won else ""}">preferred {num_won} of {num_judged}</span>'
    kind = "output preferred" if 2 * num_won > num_judged else "output"
    return f'<div class="{kind}"><h4>{_escaped(output.model)}{chips}</h4>{_text(output.text)}</div>'


def _judgement(record: JudgementRecord) -> str:
    outcome = {"tie": "a tie", "invalid": "no usable verdict"}.get(record.verdict, f"prefers {record.winner}")
    heading = f"{record.judge}: {outcome} (order shown: {record.first}, {record.second})"
    if not record.reason.strip():
        return f'<div class="reason">{_escaped(heading)}</div>'
    return f'<details class="reason"><summary>{_escaped(heading)}</summary>{_text(record.reason)}</details>'


def _text(written: str, kind: str = "text") -> str:
    # Focusable, for what scrolls must scroll by keyboard too; dir=auto, for not every language runs left to right.
    shown = _escaped(written.strip()) or "<em>nothing</em>"
    return f'<p class="{kind}" dir="auto" tabindex="0">{shown}</p>'


def _escaped(value: str) -> str:
    return escape(cleaned(value))
