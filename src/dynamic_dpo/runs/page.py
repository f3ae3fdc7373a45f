"""One page about one training run: key figures, pictures, outputs before and after.

The page stands alone: style and pictures are inside, nothing is fetched, no script runs, and whatever a model
wrote is shown as text. Reading the run's files and drawing are done elsewhere.
"""

from __future__ import annotations

import base64
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import NamedTuple
from urllib.parse import quote

from dynamic_dpo.errors import DataError
from dynamic_dpo.pages.text import cleaned
from dynamic_dpo.runs.files import PLOTS_FOLDER, REPORT
from dynamic_dpo.runs.plots import Plot, draw_plots
from dynamic_dpo.runs.record import RunRecord, as_number, read_run
from dynamic_dpo.utils.files import write_text


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
    heading = title or f"Run {run.folder.resolve().name}"
    body = "\n".join(
        part
        for part in (
            f"<header><h1>{_text(heading)}</h1><p>{_text(_subtitle(run))}</p>"
            f"{_links(links or {}, target.parent)}</header>",
            _figures_section(table, run),
            _plots_section(plots),
            _samples_section(samples or ()),
            _details_section(run),
        )
        if part
    )
    return write_text(target, _page(heading, body))


def _text(written: str) -> str:
    return escape(cleaned(written))


def _page(heading: str, body: str) -> str:
    page = files("dynamic_dpo.runs").joinpath("report_page.html").read_text(encoding="utf-8")
    return Template(page).substitute(title=_text(heading), body=body)


def _links(links: Mapping[str, str | Path], folder: Path) -> str:
    """Return paragraphs that lead to other files, relative to the page, so that a moved run still does."""
    return "".join(
        f'<p><a href="{_text(quote(os.path.relpath(path, folder)))}">{_text(text)}</a></p>'
        for text, path in links.items()
    )


def _subtitle(run: RunRecord) -> str:
    method = run.summary.get("method")
    if not isinstance(method, Mapping):
        return "This run left no summary: it was interrupted, or it is still going."
    parts = [f"method {method.get('name', 'unknown')}"]
    parts += [f"{key} {method[key]}" for key in ("mode", "scope") if method.get(key)]
    return ", ".join(parts)


def _figures_section(table: Mapping[str, object] | None, run: RunRecord) -> str:
    figures = [(label, _shown(value)) for label, value in (table or {}).items()] + _own_figures(run)
    if not figures:
        return ""
    cards = "\n".join(
        f"<div><dt>{_text(label)}</dt><dd>{_text(value)}</dd></div>" for label, value in figures
    )
    return (
        '<section aria-labelledby="figures"><h2 id="figures">Key figures</h2>\n'
        f'<dl class="cards">\n{cards}\n</dl></section>'
    )


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
    shown = [(label, form.format(value)) for label, value, form in figures if math.isfinite(value)]
    seconds = number.get("wall_seconds", math.nan)
    return [*shown, ("Wall time", _duration(seconds))] if math.isfinite(seconds) else shown


def _plots_section(plots: Iterable[Plot]) -> str:
    figures = "\n".join(_figure(plot) for plot in plots)
    if not figures:
        return ""
    return (
        '<section aria-labelledby="training"><h2 id="training">How training went</h2>\n'
        f'<div class="plots">\n{figures}\n</div></section>'
    )


def _figure(plot: Plot) -> str:
    source = f"data:image/png;base64,{base64.b64encode(plot.png).decode()}"
    opening = '<figure class="wide">' if plot.is_wide else "<figure>"
    return (
        f"{opening}<h3>{_text(plot.title)}</h3>"
        f'<img src="{source}" alt="Chart: {_text(plot.caption)}">'
        f"<figcaption>{_text(plot.caption)}</figcaption></figure>"
    )


def _samples_section(samples: Sequence[Sample]) -> str:
    if not samples:
        return ""
    articles = "\n".join(
        f"<article><h3>{_text(sample.prompt)}</h3>\n"
        f"{_output('Before', sample.before, sample.score_before)}"
        f"{_output('After', sample.after, sample.score_after)}</article>"
        for sample in samples
    )
    return (
        '<section aria-labelledby="samples"><h2 id="samples">Outputs before and after</h2>\n'
        f'<div class="samples">\n{articles}\n</div></section>'
    )


def _output(label: str, text: str, score: float | None) -> str:
    shown = "" if score is None else f' <span class="score">{score:+.2f}</span>'
    written = _text(text.strip()) or "<em>nothing</em>"
    return f'<div class="{label.lower()}"><h4>{label}{shown}</h4><p>{written}</p></div>\n'


def _details_section(run: RunRecord) -> str:
    """List what the run was made with, folded away: it matters to a few readers, and then in full."""
    single: tuple[str, ...] = ("config_hash", "layout", "num_ranks")
    details = {key: run.summary[key] for key in single if key in run.summary}
    for group in ("method", "versions"):
        if isinstance(run.summary.get(group), Mapping):
            details |= {f"{group}: {key}": value for key, value in run.summary[group].items()}
    if not details:
        return ""
    rows = "\n".join(
        f'<tr><th scope="row">{_text(str(key))}</th><td>{_text(_shown(value))}</td></tr>'
        for key, value in details.items()
    )
    return f"<details><summary>What this run was made with</summary>\n<table>\n{rows}\n</table></details>"


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


def _duration(seconds: float) -> str:
    """Write a time span for a reader.

    >>> _duration(42.4), _duration(331), _duration(7260)
    ('42 s', '5 min 31 s', '2 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
