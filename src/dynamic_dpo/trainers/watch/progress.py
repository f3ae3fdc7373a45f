"""How far a run is, in one line of a terminal, or in plain lines where there is none."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any, NamedTuple, TextIO

from tqdm import tqdm
from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from dynamic_dpo.utils.durations import duration
from dynamic_dpo.utils.terminal import columns_of, draws_lines, takes_colours

_BAR = (8, 24)
"""Cells of the bar, at least and at most."""


class Figure(NamedTuple):
    """A number of the progress line.

    Attributes:
        label: What it is called there.
        names: Under which names a log entry may hold it, the first one found counts.
        form: How it is written.
        rank: Its place among those that a narrow terminal keeps; 0 goes last.
    """

    label: str
    names: tuple[str, ...]
    form: str
    rank: int


FIGURES = (
    Figure("loss", ("loss",), "{:.3f}", 0),
    Figure("held-out", ("eval_loss",), "{:.3f}", 2),
    Figure("accuracy", ("rewards/accuracies", "mean_token_accuracy"), "{:.2f}", 3),
    Figure("beta", ("beta",), "{:.3g}", 4),
    Figure("margin", ("margins/mean",), "{:+.2f}", 5),
    Figure("tokens/s", ("speed/needed_tokens_per_second",), "{:,.0f}", 6),
)
_RANK_OF_TIME = 1


class ProgressLine(TrainerCallback):  # type: ignore[misc]
    """Shows a run's progress on standard error, on the first rank.

    On a terminal it is one line that is drawn again with every step; an evaluation leaves a line above it. Elsewhere,
    and with ``disable_tqdm``, every log entry is a plain line. The whole entries are in ``trainer_state.json``.

    Args:
        stream: Where to; by default standard error as it is when training begins.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._given_stream = stream
        self._seen: dict[str, float] = {}
        self._bar: Any = None
        self._quiet = False
        self._began = 0.0
        self._first_step = 0

    @classmethod
    def instead_of_the_usual(cls, trainer: Any) -> None:
        """Put one in the place of the Hugging Face trainer's bar and printed dictionaries; notebooks keep theirs."""
        usual = [
            one
            for one in trainer.callback_handler.callbacks
            if type(one) in (PrinterCallback, ProgressCallback)
        ]
        for one in usual:
            trainer.remove_callback(one)
        if usual:
            trainer.add_callback(cls())

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Draw the line for the first time, and silence the bars of single files that transformers writes."""
        from transformers.utils import logging

        self._stream: TextIO = self._given_stream or sys.stderr
        self._began, self._first_step = time.perf_counter(), state.global_step
        self._seen = {}
        if not state.is_world_process_zero or args.disable_tqdm or not draws_lines(self._stream):
            return
        self._quiet = logging.is_progress_bar_enabled()
        if self._quiet:
            logging.disable_progress_bar()
        self._bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            bar_format="{desc}",
            file=self._stream,
            dynamic_ncols=True,
        )
        self._draw(state)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Draw the line again."""
        self._draw(state)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Take an entry's numbers into the line; elsewhere than on a terminal, write it."""
        numbers = _numbers(logs or {})
        if not state.is_world_process_zero or not self._began:
            return
        if "train_runtime" in numbers:
            steps, span = state.global_step - self._first_step, duration(numbers["train_runtime"])
            self._write(f"{steps:,} steps in {span}")
            return
        is_evaluation = not {"loss"} & numbers.keys()
        if not is_evaluation:
            self._seen |= numbers
        # Of several evaluation sets the one without a name stands in the line.
        self._seen |= {name: value for name, value in numbers.items() if name == "eval_loss"}
        if "samples/length" in numbers:
            self._write_samples(state, numbers)
        elif is_evaluation:
            self._write_evaluation(state, numbers)
        elif self._bar is None:
            self._write("  ".join([_place(state), *self._parts(state).values()]))
        self._draw(state)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave the last line standing."""
        if self._bar is not None:
            self._draw(state)
            self._bar.close()
            self._bar = None
        if self._quiet:
            from transformers.utils import logging

            logging.enable_progress_bar()
            self._quiet = False

    # ---- what stands in it ----

    def _draw(self, state: Any) -> None:
        if self._bar is None:
            return
        line = progress_line(
            state.global_step,
            state.max_steps,
            self._parts(state),
            columns=columns_of(self._stream),
            coloured=takes_colours(self._stream),
        )
        self._bar.n = state.global_step
        self._bar.set_description_str(line)

    def _parts(self, state: Any) -> dict[int, str]:
        """Return the line's parts by rank, in the order in which they stand."""
        parts = {}
        for figure in FIGURES:
            name = next((name for name in figure.names if name in self._seen), None)
            if name is not None:
                parts[figure.rank] = f"{figure.label} {figure.form.format(self._seen[name])}"
        done = state.global_step - self._first_step
        if done > 0 and state.max_steps > state.global_step:
            a_step = (time.perf_counter() - self._began) / done
            parts[_RANK_OF_TIME] = f"{duration(a_step * (state.max_steps - state.global_step))} left"
        return parts

    def _write_evaluation(self, state: Any, numbers: Mapping[str, float]) -> None:
        sets = sorted(name.removesuffix("_loss") for name in numbers if name.endswith("_loss"))
        for start in sets:
            name = start.removeprefix("eval").strip("_")
            parts = [
                _place(state),
                f"held-out{f' {name}' if name else ''} loss {numbers[f'{start}_loss']:.3f}",
            ]
            others = {"accuracy": ("rewards/accuracies", "{:.2f}"), "margin": ("margins/mean", "{:+.2f}")}
            for label, (key, form) in others.items():
                if f"{start}_{key}" in numbers:
                    parts.append(f"{label} {form.format(numbers[f'{start}_{key}'])}")
            while self._bar is not None and len("  ".join(parts)) >= columns_of(self._stream):
                parts.pop()
            self._write("  ".join(parts))

    def _write_samples(self, state: Any, numbers: Mapping[str, float]) -> None:
        parts = [
            _place(state),
            f"samples: {numbers['samples/length']:.1f} tokens",
            f"{100 * numbers['samples/stopped']:.0f} % stopped",
            f"repetition {numbers['samples/repetition']:.2f}",
            f"written in {_seconds(numbers['speed/sampling_seconds'])}",
        ]
        while self._bar is not None and len("  ".join(parts)) >= columns_of(self._stream):
            parts.pop()
        self._write("  ".join(parts))

    def _write(self, line: str) -> None:
        tqdm.write(line, file=self._stream)
        self._stream.flush()


def progress_line(step: int, steps: int, parts: Mapping[int, str], *, columns: int, coloured: bool) -> str:
    """Return the line for a terminal of so many columns: what has no room is left out, by rank.

    Args:
        step: Steps made.
        steps: Steps to make.
        parts: The line's parts by rank, in the order in which they stand.
        columns: Columns of the terminal; the last one stays free.
        coloured: Whether the bar may have a colour.

    Example:
        >>> parts = {0: "loss 0.612", 3: "accuracy 0.71", 1: "2 min 5 s left"}
        >>> progress_line(30, 120, parts, columns=60, coloured=False)
        '━━╌╌╌╌╌╌╌ 30/120  loss 0.612  accuracy 0.71  2 min 5 s left'
        >>> progress_line(30, 120, parts, columns=40, coloured=False)
        '30/120  loss 0.612  2 min 5 s left'
    """
    room = columns - 1
    start = f"{step:,}/{steps:,}"
    kept = dict(parts)
    while kept and len("  ".join([start, *kept.values()])) > room:
        del kept[max(kept)]
    line = "  ".join([start, *kept.values()])[: max(room, 0)]
    cells = min(_BAR[1], room - len(line) - 1)
    if cells < _BAR[0]:
        return line
    full = cells * min(step, steps) // max(steps, 1)
    bar, rest = "━" * full, "╌" * (cells - full)
    return f"\x1b[32m{bar}\x1b[0m{rest} {line}" if coloured else f"{bar}{rest} {line}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else duration(seconds)


def _place(state: Any) -> str:
    width = len(f"{state.max_steps:,}")
    return f"step {state.global_step:>{width},}/{state.max_steps:,}"


def _numbers(logs: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in logs.items() if isinstance(value, int | float)}
