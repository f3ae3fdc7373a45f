"""Samples of a run: when they are written and how, what is counted of them, and the file that holds them.

One line a prompt and time. Counts are of tokens, the stop token left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from dynamic_dpo.errors import DataError
from dynamic_dpo.utils.json_lines import read_json_lines
from dynamic_dpo.utils.settings import check_settings, documented, setting

Row = dict[str, Any]

NGRAM: Final = 4
"""Tokens of the pieces whose return counts as repetition."""


@documented()
@dataclass(frozen=True)
class SamplingConfig:
    """When a training writes samples, and how."""

    every: int | None = setting(
        None,
        "Optimizer steps between two times; null: at evaluations. The start and the last step come in any case.",
        key="sampling.every",
        ge=1,
    )
    num_prompts: int = setting(
        8,
        "Where no prompts are given: so many of the held-out rows, of the training rows where none is held out.",
        key="sampling.num_prompts",
        ge=1,
    )
    max_new_tokens: int = setting(128, "Most tokens of a sample.", key="sampling.max_new_tokens", ge=1)
    temperature: float = setting(
        1.0,
        "Sampling temperature; 0: the likeliest token. The estimates of the KL divergence need 1.",
        key="sampling.temperature",
        ge=0,
    )
    top_p: float = setting(
        1.0,
        "Nucleus: probability mass sampled from. The estimates of the KL divergence need 1.",
        key="sampling.top_p",
        gt=0,
        le=1,
    )
    seed: int = setting(
        0, "Seed of the sampling; a prompt has the same random numbers each time.", key="sampling.seed", ge=0
    )
    batch_size: int = setting(16, "Samples written side by side.", key="sampling.batch_size", ge=1)

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def draws_from_the_model(self) -> bool:
        """Whether samples have the model's own distribution, as estimates of a divergence need it."""
        return self.temperature == 1.0 and self.top_p == 1.0


def repetition_rate(token_ids: Sequence[int]) -> float:
    """Return the share of an output's 4-grams that it has had before; NaN for fewer than four tokens.

    That is seq-rep-4 of Welleck et al. 2019 (https://arxiv.org/abs/1908.04319).

    Args:
        token_ids: The output.

    Example:
        >>> repetition_rate([1, 2, 3, 4, 5]), repetition_rate([7, 7, 7, 7, 7]), repetition_rate([1, 2, 3])
        (0.0, 0.5, nan)
    """
    pieces = [tuple(token_ids[start : start + NGRAM]) for start in range(len(token_ids) - NGRAM + 1)]
    return 1.0 - len(set(pieces)) / len(pieces) if pieces else math.nan


def sample_figures(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Return what is counted of the samples of one time, by the names of the log.

    Args:
        rows: Lines of the file, of one step.

    Returns:
        ``samples/length`` (mean, tokens), ``samples/stopped`` (share that ended by itself), ``samples/repetition``
        (mean of `repetition_rate`; 0 where every output is too short for one), and ``samples/score/NAME``, the mean
        of each scorer.

    Example:
        >>> rows = [
        ...     {"num_tokens": 3, "finished": True, "repetition": None, "scores": {"nice": 0.5}},
        ...     {"num_tokens": 5, "finished": False, "repetition": 0.5, "scores": {"nice": 1.0}},
        ... ]
        >>> sample_figures(rows)
        {'samples/length': 4.0, 'samples/stopped': 0.5, 'samples/repetition': 0.5, 'samples/score/nice': 0.75}
    """
    rows = list(rows)
    repeated = [row["repetition"] for row in rows if row["repetition"] is not None]
    figures = {
        "samples/length": fmean(row["num_tokens"] for row in rows),
        "samples/stopped": fmean(bool(row["finished"]) for row in rows),
        "samples/repetition": fmean(repeated) if repeated else 0.0,
    }
    names = rows[0].get("scores", {})
    return figures | {f"samples/score/{name}": fmean(row["scores"][name] for row in rows) for name in names}


def kept_rows(path: str | Path, *, until: int, num_prompts: int) -> list[Row]:
    """Return the lines of a run's file that a run which goes on from a step keeps; the rest it writes again.

    Args:
        path: The file; it may be missing.
        until: The step that the run goes on from.
        num_prompts: Lines of one time. Fewer are what a kill has left of it, and are written again.

    Raises:
        DataError: If the file is damaged.
    """
    rows = [row for row in samples_in(path) if row["step"] <= until] if Path(path).exists() else []
    while rows and sum(row["step"] == rows[-1]["step"] for row in rows) < num_prompts:
        torn = rows[-1]["step"]
        rows = [row for row in rows if row["step"] != torn]
    return rows


def samples_in(path: str | Path) -> list[Row]:
    """Return the lines of a file of samples.

    Raises:
        DataError: If it cannot be read, or a line is none.
    """
    rows = read_json_lines(path)
    for number, row in enumerate(rows, start=1):
        whole = isinstance(row.get("step"), int) and all(
            isinstance(row.get(name), str) for name in ("prompt_id", "prompt", "text")
        )
        if not whole:
            raise DataError(
                f"line {number} of {path} is no sample: it needs step, prompt_id, prompt and text. Restore the file, "
                "or move it away"
            )
    return rows


def times_to_show(steps: Iterable[int], most: int) -> list[int]:
    """Return the first step, the last, and as many between them, evenly, as fit side by side.

    Args:
        steps: Steps at which there are samples.
        most: How many fit, at least 2.

    Example:
        >>> times_to_show([0, 10, 20, 30, 40, 50], 4), times_to_show([0, 10], 4)
        ([0, 20, 30, 50], [0, 10])
    """
    there = sorted(set(steps))
    if len(there) <= most:
        return there
    return [there[round(place * (len(there) - 1) / (most - 1))] for place in range(most)]
