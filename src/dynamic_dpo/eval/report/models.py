"""What models wrote, in numbers: how many outputs, how long, how many cut short or faulty."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from dynamic_dpo.eval.records import OutputRecord


@dataclass(frozen=True)
class ModelSummary:
    """What one model wrote.

    Attributes:
        name: The model.
        num_outputs: Outputs.
        lengths: Shortest, lower quartile, median, upper quartile and longest output, in characters.
        mean_length: Mean length in characters.
        mean_tokens: Mean length in the model's own tokens; ``None`` where any is unknown.
        num_unfinished: Outputs cut at the limit.
        faults: Fault that the lint found to the number of outputs with it.
        num_faulty: Outputs with any fault.
    """

    name: str
    num_outputs: int
    lengths: tuple[float, float, float, float, float]
    mean_length: float
    mean_tokens: float | None
    num_unfinished: int
    faults: dict[str, int]
    num_faulty: int


def summarise_models(outputs: Sequence[OutputRecord]) -> list[ModelSummary]:
    """Return one entry for every model, in their names' order."""
    by_model: dict[str, list[OutputRecord]] = {}
    for output in outputs:
        by_model.setdefault(output.model, []).append(output)
    summaries = []
    for name, written in sorted(by_model.items()):
        lengths = sorted(len(output.text) for output in written)
        tokens = [output.num_tokens for output in written]
        # An empty output has 0 tokens by right; any other 0 says that nobody counted.
        is_counted = all(output.num_tokens or not output.text for output in written)
        summaries.append(
            ModelSummary(
                name=name,
                num_outputs=len(written),
                lengths=(lengths[0], *_quartiles(lengths), lengths[-1]),
                mean_length=statistics.fmean(lengths),
                mean_tokens=statistics.fmean(tokens) if is_counted else None,
                num_unfinished=sum(not output.finished for output in written),
                faults=dict(
                    sorted(Counter(flag for output in written for flag in set(output.flags)).items())
                ),
                num_faulty=sum(bool(output.flags) for output in written),
            )
        )
    return summaries


def _quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high
