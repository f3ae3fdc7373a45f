"""All ranks' pairs of a controller batch as one set of values, for methods that look at whole batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dynamic_dpo.methods.base import PairForward
from dynamic_dpo.trainers.metrics import gather_ragged

_LOGPS = (
    "policy_chosen_logps",
    "policy_rejected_logps",
    "ref_chosen_logps",
    "ref_rejected_logps",
    "chosen_likelihood",
)
_LENGTHS = ("chosen_lengths", "rejected_lengths")


def values_of(forward: PairForward, statistics: Sequence[str]) -> Tensor:
    """Return what a method sees of pairs, single tokens left out, as one row a pair. Shape [B, 7 + 2 S], float64.

    Args:
        forward: Values of B pairs.
        statistics: Names of the S statistics in it.
    """
    columns = [getattr(forward, name).detach().double() for name in (*_LOGPS, *_LENGTHS)]
    for name in statistics:
        columns += forward.statistics[name].double().unbind(1)
    return torch.stack(columns, dim=1)


def gathered(
    accelerator: Any, values: Tensor, statistics: Sequence[str], dtype: torch.dtype
) -> tuple[PairForward, int]:
    """Put the ranks' `values_of` together. Collective over ranks.

    Args:
        accelerator: The trainer's accelerator.
        values: This rank's, in the batch's order, maybe of no pair.
        statistics: Names of the statistics in them.
        dtype: What log-probabilities came in; float64 holds them exactly.

    Returns:
        All ranks' pairs in order of rank, and the number of this rank's first one.
    """
    size = torch.tensor([len(values)], device=values.device)
    sizes = gather_ragged(accelerator, size).tolist()
    table = gather_ragged(accelerator, values)
    columns = dict(zip((*_LOGPS, *_LENGTHS), table.unbind(1), strict=False))
    sums = table[:, len(columns) :].to(dtype).view(len(table), -1, 2)
    seen: dict[str, Any] = {name: columns[name].to(dtype) for name in _LOGPS}
    seen |= {name: columns[name].long() for name in _LENGTHS}
    forward = PairForward(
        statistics={name: sums[:, number] for number, name in enumerate(statistics)},
        whole_chosen_logps=seen.pop("chosen_likelihood"),
        **seen,
    )
    return forward, sum(sizes[: accelerator.process_index])
