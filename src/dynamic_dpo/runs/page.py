"""One page about one training run: key figures, pictures, outputs before and after."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from markupsafe import Markup

from dynamic_dpo.errors import DataError
from dynamic_dpo.pages.shapes import (
    Chip,
    Output,
    alarm,
    key_figures,
    made_with,
    page,
    picture,
    pictures,
    section,
    side_by_side,
)
from dynamic_dpo.runs.files import PLOTS_FOLDER, REPORT
from dynamic_dpo.runs.plots import Plot, draw_plots
from dynamic_dpo.runs.record import RunRecord, as_number, read_run
from dynamic_dpo.runs.samples_page import samples_over_time
from dynamic_dpo.utils.durations import duration
from dynamic_dpo.utils.files import write_text

NOTHING = Markup()


class Sample(NamedTuple):
    """Outputs for one prompt, before training and after.

    Attributes:
        prompt: The request, as text.
        before: The starting model's output.
        after: The trained model's output.
        score_before: Its score by whatever measure the task has, if any.
        score_after: The trained output's score, if any.
    """

    prompt: str
    before: str
    after: str
    score_before: float | None = None
    score_after: float | None = None


def write_run_report(
    run_dir: str | Path,
    *,
    out: str | Path | None = None,
    samples: Sequence[Sample] | None = None,
    title: str | None = None,
    table: Mapping[str, object] | None = None,
    links: Mapping[str, str | Path] | None = None,
) -> Path:
    """Write ``report.html`` and the pictures of a run.

    Args:
        run_dir: The ``save_dir`` of a training run. What it lacks, the page leaves out.
        out: Where to write the page; by default ``report.html`` in ``run_dir``.
        samples: Outputs to show side by side.
        title: Heading; by default the folder's name.
        table: Further key figures, label to value, shown before the run's own; numbers are rounded.
        links: Further pages to lead to, text to file.

    Returns:
        The page's path. The pictures lie in ``run_dir/plots/``.

    Raises:
        DataError: If ``run_dir`` holds no run, or ``out`` is a folder.
    """
    run = read_run(run_dir)
    target = Path(out) if out is not None else run.folder / REPORT
    if target.is_dir():
        raise DataError(f"the report cannot be written to {target}: it is a folder; name a file in it")
    plots = draw_plots(run)
    folder = run.folder / PLOTS_FOLDER
    folder.mkdir(exist_ok=True)
    for plot in plots:
        (folder / f"{plot.name}.png").write_bytes(plot.png)
    html = page(
        title or f"Run {run.folder.resolve().name}",
        _subtitle(run),
        # The page from top to bottom.
        [
            _alarms(run),
            _figures(table or {}, run),
            _pictures(plots),
            _samples(samples or ()),
            samples_over_time(run),
            _details(run),
        ],
        links=_addresses(links or {}, target.parent),
    )
    return write_text(target, html)


def _addresses(links: Mapping[str, str | Path], folder: Path) -> list[tuple[str, str]]:
    """Return texts and addresses of other files, relative to the page, so that a moved run still leads to them."""
    return [(text, quote(os.fsencode(os.path.relpath(path, folder)))) for text, path in links.items()]


def _subtitle(run: RunRecord) -> str:
    method = run.summary.get("method")
    if not isinstance(method, Mapping):
        return "This run left no summary: it was interrupted, or it is still going."
    parts = [f"method {method.get('name', 'unknown')}"]
    parts += [f"{key} {method[key]}" for key in ("mode", "scope") if method.get(key)]
    return ", ".join(parts)


def _alarms(run: RunRecord) -> Markup:
    sentences = [
        f"Step {record.get('step', '?')}: {record['sentence']}."
        for record in run.alarms
        if "sentence" in record
    ]
    return alarm("The run raised alarms", sentences) if sentences else NOTHING


def _figures(table: Mapping[str, object], run: RunRecord) -> Markup:
    figures = [(label, _shown(value)) for label, value in table.items()] + _own_figures(run)
    return section("figures", "Key figures", "", key_figures(figures)) if figures else NOTHING


def _own_figures(run: RunRecord) -> list[tuple[str, str]]:
    """Return the run's key figures that are known, as label and text."""
    number = {key: as_number(value) for key, value in run.summary.items()}
    medians = [value for value in run.series("margins", "median") if math.isfinite(value)]
    reused, computed = number.get("reference_reused", math.nan), number.get("reference_computed", math.nan)
    figures = [
        ("Final beta", number.get("beta_final", math.nan), "{:.4g}"),
        ("Median margin, last batch", medians[-1] if medians else math.nan, "{:+.2f} nats"),
        ("Pairs seen", number.get("pairs_seen", math.nan), "{:,.0f}"),
        ("Optimizer steps", number.get("optimizer_steps", math.nan), "{:,.0f}"),
        ("Training speed", number.get("pairs_per_second", math.nan), "{:.3g} pairs/s"),
        ("Peak memory", number.get("peak_memory_bytes", math.nan) / 2**30, "{:.1f} GiB"),
        ("Reference pairs reused", 100 * reused / (reused + computed or math.nan), "{:.0f} %"),
    ]
    figures += _cost_figures(run.summary.get("cost"))
    shown = [(label, form.format(value)) for label, value, form in figures if math.isfinite(value)]
    shown += _kept(run.summary.get("keep_best"))
    seconds = number.get("wall_seconds", math.nan)
    return [*shown, ("Wall time", duration(seconds))] if math.isfinite(seconds) else shown


def _cost_figures(cost: object) -> list[tuple[str, float, str]]:
    """Return what the run has cost, as label, number and form; of a run before there was such a record, nothing."""
    if not isinstance(cost, Mapping):
        return []
    rates, peaks = cost.get("rates"), cost.get("peak_memory_bytes_by_device")
    number = {key: as_number(value) for key, value in rates.items()} if isinstance(rates, Mapping) else {}
    figures = [
        ("Needed tokens", number.get("needed_tokens_per_second", math.nan), "{:,.0f}/s"),
        ("Computed tokens", number.get("computed_tokens_per_second", math.nan), "{:,.0f}/s"),
        ("Needed operations", number.get("tflop_per_second", math.nan), "{:.3g} TFLOP/s"),
        ("Share of the matmul limit", 100 * number.get("share_of_matmul_limit", math.nan), "{:.1f} %"),
        ("Share of the nominal peak", 100 * number.get("share_of_nominal_peak", math.nan), "{:.1f} %"),
    ]
    devices = peaks.items() if isinstance(peaks, Mapping) and len(peaks) > 1 else ()
    return figures + [
        (f"Peak memory, {name}", as_number(peak) / 2**30, "{:.1f} GiB") for name, peak in devices
    ]


def _kept(record: object) -> list[tuple[str, str]]:
    """Return which weights a run has kept and why it ended, where it chose by held-out pairs."""
    if not isinstance(record, Mapping):
        return []
    step, metric, value = record.get("step"), record.get("metric"), as_number(record.get("value"))
    kept = f"step {step}, {metric} {value:.4g}" if step is not None else f"the last: no finite {metric}"
    why = "out of patience" if record.get("stopped_early") else "all steps made"
    return [("Weights kept", kept), ("Ended", f"at step {record.get('last_step')}, {why}")]


def _pictures(plots: Sequence[Plot]) -> Markup:
    if not plots:
        return NOTHING
    shown = [picture(plot.title, plot.caption, plot.png, is_wide=plot.is_wide) for plot in plots]
    return section("training", "How training went", "", pictures(*shown))


def _samples(samples: Sequence[Sample]) -> Markup:
    if not samples:
        return NOTHING
    shown = [
        side_by_side(
            f"prompt {number}",
            [("user", sample.prompt)],
            [
                Output("Before", sample.before, _score(sample.score_before)),
                Output("After", sample.after, _score(sample.score_after), is_marked=True),
            ],
        )
        for number, sample in enumerate(samples, start=1)
    ]
    return section("samples", "Outputs before and after", "", *shown)


def _score(score: float | None) -> list[Chip]:
    return [] if score is None else [Chip(f"{score:+.2f}")]


def _details(run: RunRecord) -> Markup:
    known = run.summary
    groups: dict[str, Any] = {
        "run": {key: known[key] for key in ("config_hash", "layout", "num_ranks") if key in known},
        "method": known.get("method"),
        "versions": known.get("versions"),
    }
    shown = {
        name: dict(_flat(group)) for name, group in groups.items() if isinstance(group, Mapping) and group
    }
    return made_with(shown) if shown else NOTHING


def _flat(group: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield every value of nested settings under its key with dots."""
    for key, value in group.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", _shown(value)


def _shown(value: object) -> str:
    """Write one figure for a reader.

    >>> _shown(0.58123), _shown(1234567), _shown(None), _shown("67 % [51, 80]")
    ('0.581', '1,234,567', '–', '67 % [51, 80]')
    """
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"
