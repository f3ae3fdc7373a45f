"""The part of a run's page with what the policy wrote while it was trained: each prompt, side by side over time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from dynamic_dpo.pages.shapes import Chip, Output, section, side_by_side, table
from dynamic_dpo.runs.files import SAMPLES
from dynamic_dpo.runs.record import RunRecord, as_number
from dynamic_dpo.runs.samples import times_to_show

MOST_TIMES, MOST_PROMPTS = 4, 20
_COLUMNS = {
    "samples/length": ("tokens", "{:.1f}"),
    "samples/stopped": ("stopped", "{:.0%}"),
    "samples/repetition": ("repetition", "{:.3f}"),
    "samples/kl_from_start": ("KL from the start", "{:+.4f}"),
    "samples/kl": ("KL to the reference", "{:+.4f}"),
}


def samples_over_time(run: RunRecord) -> Markup:
    """Return the section, empty for a run that wrote no samples."""
    if not run.samples:
        return Markup()
    steps = times_to_show((row["step"] for row in run.samples), MOST_TIMES)
    prompts = list(dict.fromkeys(row["prompt_id"] for row in run.samples))
    num_times = len({row["step"] for row in run.samples})
    lead = f"What the policy wrote for the same prompts as training went on, {num_times} times"
    if num_times > len(steps) or len(prompts) > MOST_PROMPTS:
        lead += (
            f"; {len(steps)} of them and up to {MOST_PROMPTS} prompts are shown, the rest stands in {SAMPLES}"
        )
    shown = [
        _prompt(number, run, prompt, steps) for number, prompt in enumerate(prompts[:MOST_PROMPTS], start=1)
    ]
    return section("samples-over-time", "Samples while training", f"{lead}.", *_figures(run), *shown)


def _prompt(number: int, run: RunRecord, prompt_id: str, steps: list[int]) -> Markup:
    rows = {row["step"]: row for row in run.samples if row["prompt_id"] == prompt_id}
    outputs = [
        Output(f"Step {step:,}", rows[step]["text"], _chips(rows[step]), is_marked=step == steps[-1])
        for step in steps
        if step in rows
    ]
    return side_by_side(f"prompt {number}", [("prompt", next(iter(rows.values()))["prompt"])], outputs)


def _chips(row: Mapping[str, Any]) -> list[Chip]:
    chips = []
    if math.isfinite(length := as_number(row.get("num_tokens"))):
        chips.append(Chip(f"{length:,.0f} tokens"))
    if row.get("finished") is False:
        chips.append(Chip("no stop", "bad"))
    if (repetition := as_number(row.get("repetition"))) > 0:
        chips.append(Chip(f"repetition {repetition:.2f}"))
    scores = row.get("scores")
    for name, score in scores.items() if isinstance(scores, Mapping) else ():
        if math.isfinite(value := as_number(score)):
            chips.append(Chip(f"{name} {value:+.2f}"))
    return chips


def _figures(run: RunRecord) -> list[Markup]:
    """Return what the log says of every time, as a table."""
    entries = [entry for entry in run.history if "samples/length" in entry]
    names = [name for name in _COLUMNS if any(name in entry for entry in entries)]
    scores = sorted({name for entry in entries for name in entry if name.startswith("samples/score/")})
    if not entries:
        return []
    header = ["step", *(_COLUMNS[name][0] for name in names)]
    header += [name.removeprefix("samples/score/") for name in scores]
    forms = {**{name: _COLUMNS[name][1] for name in names}, **dict.fromkeys(scores, "{:+.3f}")}
    lines = [
        [entry.get("step", "?"), *(_cell(entry.get(name), form) for name, form in forms.items())]
        for entry in entries
    ]
    return [table(header, lines, caption="Means over the prompts")]


def _cell(value: object, form: str) -> str:
    number = as_number(value)
    return form.format(number) if math.isfinite(number) else "–"
