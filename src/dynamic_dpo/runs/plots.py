"""The pictures of a run: beta, margins, exceedance, loss and accuracy, each with a sentence about what it shows.

A picture is made where its numbers are there, and left out where they are not. matplotlib is imported when the first
picture is drawn.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from dynamic_dpo.runs.record import RunRecord, as_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours: told apart in every kind of colour vision, and in grey.
BLUE, ORANGE, GREEN, GREY, INK = "#0072B2", "#D55E00", "#009E73", "#B8BFC6", "#1F2933"
SIZE_INCHES, WIDE_INCHES, DPI = (6.4, 3.1), (10.5, 3.3), 180


class Plot(NamedTuple):
    """One picture.

    Attributes:
        name: File name without suffix.
        title: Heading.
        caption: One plain sentence or two: what the reader sees.
        png: The picture.
        is_wide: Whether it deserves a row of its own.
    """

    name: str
    title: str
    caption: str
    png: bytes
    is_wide: bool = False


def draw_plots(run: RunRecord) -> list[Plot]:
    """Draw every picture that the run's numbers allow, in reading order."""
    drawn = (_beta(run), _margins(run), _exceedance(run), _loss(run), _accuracy(run))
    return [plot for plot in drawn if plot is not None]


def _beta(run: RunRecord) -> Plot | None:
    beta = run.series("controller", "beta")
    if not _finite(beta):
        return None
    axes, finish = _canvas("controller update", "beta", size=WIDE_INCHES)
    updates = _numbers(run.series("controller", "update"))
    num_warmup = _shade_warmup(axes, run, updates)
    axes.plot(updates, beta, color=BLUE, linewidth=2)
    first, last = _finite(beta)[0], _finite(beta)[-1]
    change = (
        "stayed at" if math.isclose(first, last, rel_tol=1e-3) else "rose to" if last > first else "fell to"
    )
    caption = (
        f"Beta, the strength of the tie to the reference model, began at {first:.4g} and {change} {last:.4g}."
    )
    if num_warmup:
        caption += f" In the grey part, {num_warmup} updates of warm-up, it is held still."
    caption += _mark(axes, run, by_update=True)
    return Plot("beta", "Beta", caption, finish(), is_wide=True)


def _margins(run: RunRecord) -> Plot | None:
    low, median, high = (run.series("margins", key) for key in ("p10", "median", "p90"))
    if not _finite(median):
        return None
    axes, finish = _canvas("controller update", "margin (nats)")
    batches = _numbers(run.series("margins", "step"))
    axes.axhline(0.0, color=GREY, linewidth=1)
    axes.fill_between(
        batches, low, high, color=BLUE, alpha=0.18, linewidth=0, label="10th to 90th percentile"
    )
    axes.plot(batches, median, color=BLUE, linewidth=2, label="median")
    tau = run.series("controller", "tau")
    if _finite(tau):
        axes.plot(
            _numbers(run.series("controller", "update")),
            tau,
            color=ORANGE,
            linewidth=1.8,
            linestyle="--",
            label="threshold tau",
        )
    marked = _mark(axes, run, by_update=True)
    axes.legend(frameon=False, fontsize=10, loc="upper left")
    first, last = _finite(median)[0], _finite(median)[-1]
    caption = (
        "How much more the policy prefers the chosen answer than the reference does, batch by batch: half the "
        f"pairs lie above the line, which went from {first:.3g} to {last:.3g} nats."
    )
    if _finite(tau):
        caption += " Margins above the dashed threshold count as exceedances."
    return Plot("margins", "Margins", caption + marked, finish())


def _exceedance(run: RunRecord) -> Plot | None:
    rates = run.series("controller", "p_hat")
    known = _finite(rates)
    if not known:
        return None
    axes, finish = _canvas("controller update", "share of pairs above tau")
    updates = _numbers(run.series("controller", "update"))
    _shade_warmup(axes, run, updates)
    axes.plot(
        updates,
        rates,
        linestyle="none",
        marker="o",
        markersize=3.5,
        alpha=0.45,
        color=BLUE,
        label="one batch",
    )
    window = max(5, len(known) // 15)
    axes.plot(
        updates, _moving_mean(rates, window), color=BLUE, linewidth=2, label=f"mean of {window} batches"
    )
    deltas = _finite(run.series("controller", "delta"))
    caption = (
        f"The share of pairs whose margin reached the threshold: {sum(known) / len(known):.3f} on average"
    )
    if deltas:
        axes.axhline(deltas[-1], color=ORANGE, linewidth=1.8, linestyle="--", label="delta")
        caption += f", where {deltas[-1]:.3g} is tolerated. More than that raises beta, less lowers it"
    marked = _mark(axes, run, by_update=True)
    # Head-room for the legend, so that it hides no batch.
    axes.set_ylim(-0.02, max(0.25, *known) * 1.4)
    axes.legend(frameon=False, fontsize=10, loc="upper left", ncols=3)
    return Plot("p_hat", "Exceedance rate", f"{caption}.{marked}", finish())


def _loss(run: RunRecord) -> Plot | None:
    return _logged(
        run,
        key="loss",
        title="Loss",
        label="loss",
        rule=(math.log(2.0), "no preference learned"),
        caption="The training loss went from {first:.3f} to {last:.3f}; ln 2 = 0.693 is where every run starts.",
    )


def _accuracy(run: RunRecord) -> Plot | None:
    return _logged(
        run,
        key="rewards/accuracies",
        title="Accuracy",
        label="share of pairs ranked right",
        rule=(0.5, "chance"),
        caption="The share of pairs in which the chosen answer gained on the rejected one: {first:.2f} at first, "
        "{last:.2f} at the end.",
    )


def _logged(
    run: RunRecord, *, key: str, title: str, label: str, rule: tuple[float, str], caption: str
) -> Plot | None:
    """Draw a metric of the trainer's log, with its evaluations where there are any."""
    points, evaluated = _points(run, key), _points(run, f"eval_{key}")
    if not points:
        return None
    axes, finish = _canvas("optimizer step", label)
    axes.axhline(rule[0], color=GREY, linewidth=1.2, label=rule[1])
    axes.plot(*zip(*points, strict=True), color=BLUE, linewidth=2, marker="o", markersize=3, label="training")
    caption = caption.format(first=points[0][1], last=points[-1][1])
    if evaluated:
        axes.plot(
            *zip(*evaluated, strict=True),
            color=GREEN,
            linewidth=1.8,
            marker="s",
            markersize=5,
            label="held out",
        )
        caption += f" On held-out pairs it ended at {evaluated[-1][1]:.3f}."
    caption += _mark(axes, run)
    axes.legend(frameon=False, fontsize=10)
    return Plot(key.rpartition("/")[2], title, caption, finish())


def _canvas(xlabel: str, ylabel: str, size: tuple[float, float] = SIZE_INCHES) -> tuple[Axes, Any]:
    """Return empty axes in the report's style, and the function that turns them into a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    # Not pyplot: a report must not touch the figures or the backend of the program that asks for it.
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_xlabel(xlabel, color=INK)
    axes.set_ylabel(ylabel, color=INK)
    axes.tick_params(colors=INK)
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))  # There is no step 1.25.
    axes.grid(axis="y", color=GREY, alpha=0.45, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)

    def finish() -> bytes:
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", facecolor="white", metadata={"Software": None})
        return buffer.getvalue()

    return axes, finish


def _mark(axes: Axes, run: RunRecord, *, by_update: bool = False) -> str:
    """Draw a line where an alarm was raised, and where the weights are from that were kept.

    Args:
        axes: Where to draw.
        run: The run.
        by_update: Whether the axis counts controller updates instead of optimizer steps.

    Returns:
        What the caption says of it; empty where nothing is marked.
    """
    if by_update and not run.controller:
        return ""  # Nothing says which update came when.
    found = []
    alarms = sorted({step for record in run.alarms if math.isfinite(step := as_number(record.get("step")))})
    if alarms:
        for place in (_place_of(step, run, by_update) for step in alarms):
            axes.axvline(place, color=ORANGE, linewidth=1.2, linestyle=":")
        found.append(f" Dotted, in orange: alarms, at step {', '.join(f'{step:,.0f}' for step in alarms)}.")
    best = run.summary.get("keep_best")
    kept = as_number(best.get("step")) if isinstance(best, Mapping) else math.nan
    if math.isfinite(kept):
        axes.axvline(_place_of(kept, run, by_update), color=GREEN, linewidth=1.2, linestyle="-.")
        found.append(f" Dash-dotted, in green: step {kept:,.0f}, whose weights were kept.")
    return "".join(found)


def _place_of(step: float, run: RunRecord, by_update: bool) -> float:
    """Return where an optimizer step lies on an axis: at the last controller update that it has made."""
    if not by_update:
        return step
    updates = _numbers(run.series("controller", "update"))
    steps = run.series("controller", "step")
    return max((update for update, at in zip(updates, steps, strict=True) if at <= step), default=0.0)


def _numbers(logged: list[float]) -> list[float]:
    """Return the updates' numbers, counted from 1 where the log does not give them."""
    return logged if len(_finite(logged)) == len(logged) else [float(n + 1) for n in range(len(logged))]


def _shade_warmup(axes: Axes, run: RunRecord, updates: Sequence[float]) -> int:
    num_warmup = sum(bool(record.get("warmup")) for record in run.controller)
    if num_warmup:
        axes.axvspan(updates[0], updates[num_warmup - 1], color=GREY, alpha=0.25, linewidth=0)
    return num_warmup


def _points(run: RunRecord, key: str) -> list[tuple[float, float]]:
    points = [(as_number(record.get("step")), as_number(record.get(key))) for record in run.history]
    return [point for point in points if all(map(math.isfinite, point))]


def _finite(values: Sequence[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)]


def _moving_mean(values: Sequence[float], window: int) -> list[float]:
    """Return the mean of the last ``window`` values at each place, NaN before there are as many.

    >>> _moving_mean([1.0, 3.0, 5.0, math.nan], 2)
    [nan, 2.0, 4.0, nan]
    """
    means = [math.nan] * min(window - 1, len(values))
    for end in range(window, len(values) + 1):
        means.append(math.fsum(values[end - window : end]) / window)
    return means
