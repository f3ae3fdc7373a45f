"""Metrics of training and evaluation under their customary names, kept on the device until they are logged."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dynamic_dpo.methods.base import Control, PairForward

PAIR_METRICS = (
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
    "margins/mean",
)
# Beside them where the policy is a mixture of experts; the name is TRL's.
ROUTER_METRIC = "aux_loss"


def pair_metrics(forward: PairForward, control: Control) -> Tensor:
    """Return each pair's share in the metrics named by `PAIR_METRICS`, detached. Shape [B, 7].

    With a balancing loss [B, 8]: each pair has that of its micro-batch.
    """
    beta = control.beta
    chosen_logratio = (forward.policy_chosen_logps - forward.ref_chosen_logps).detach()
    rejected_logratio = (forward.policy_rejected_logps - forward.ref_rejected_logps).detach()
    margins = forward.margins.detach()
    router = [] if forward.router_loss is None else [forward.router_loss.detach().expand(len(margins))]
    return torch.stack(
        [
            beta * chosen_logratio,
            beta * rejected_logratio,
            (margins > 0).to(margins.dtype),
            beta * margins,
            forward.policy_chosen_logps.detach(),
            forward.policy_rejected_logps.detach(),
            margins,
            *router,
        ],
        dim=1,
    )


def token_logratios(forward: PairForward) -> Tensor:
    """Return each pair's log-ratios of policy and reference, chosen and rejected, nats a token. Shape [B, 2]."""
    chosen = (forward.policy_chosen_logps - forward.ref_chosen_logps) / forward.chosen_lengths
    rejected = (forward.policy_rejected_logps - forward.ref_rejected_logps) / forward.rejected_lengths
    return torch.stack([chosen, rejected], dim=1).detach()


class MetricSums:
    """Adds up pair metrics between two log entries; one reduction over ranks when they are read.

    Args:
        pair_sets: Name of each set of a mixture to its first row; the mean margin of each is logged as
            ``margins_by_set/NAME``. Empty where there is one set.
    """

    def __init__(self, pair_sets: Mapping[str, int] | None = None) -> None:
        self._set_names = list(pair_sets or {})
        self._set_starts = torch.tensor(list((pair_sets or {}).values()), dtype=torch.long)
        self._sums: Tensor | None = None
        # Of log-ratios a token, where the method has a reference: chosen, rejected, and the number of pairs.
        self._ratios: Tensor | None = None
        self._margins: list[Tensor] = []
        self._rows: list[Tensor] = []
        self._latest: dict[str, float] = {}

    def add_pairs(self, values: Tensor) -> None:
        """Add pair metrics of shape [B, 7] or [B, 8]; no synchronisation with the device."""
        counted = torch.cat([values.sum(0), values.new_full((1,), len(values))]).double()
        self._sums = counted if self._sums is None else self._sums + counted

    def add_ratios(self, values: Tensor) -> None:
        """Add log-ratios a token, chosen and rejected, of shape [B, 2]; no synchronisation with the device."""
        counted = torch.cat([values.sum(0), values.new_full((1,), len(values))]).double()
        self._ratios = counted if self._ratios is None else self._ratios + counted

    def add_update(self, margins: Tensor, rows: Tensor, reading: dict[str, float]) -> None:
        """Add one controller update: all ranks' margins and their rows (CPU, shape [N]) and the method's reading."""
        self._margins.append(margins)
        if self._set_names:
            self._rows.append(rows)
        self._latest = reading

    def state_dict(self, accelerator: Any) -> dict[str, Any]:
        """Return what was gathered since the last log entry as JSON types, exactly. Collective over ranks.

        Without it the first entry after a resume would be the mean of a part of its steps.
        """
        per_rank, ratios = (
            gather_ragged(
                accelerator,
                (sums if sums is not None else torch.zeros(0, device=accelerator.device)).double()[None],
            )
            .cpu()
            .tolist()
            for sums in (self._sums, self._ratios)
        )
        margins = torch.cat(self._margins).tolist() if self._margins else []
        return {
            "sums": [[_to_json(value) for value in row] for row in per_rank],
            "ratios": [[_to_json(value) for value in row] for row in ratios],
            "margins": [_to_json(value) for value in margins],
            **({"rows": torch.cat(self._rows).tolist() if self._rows else []} if self._set_names else {}),
            "latest": {key: _to_json(value) for key, value in self._latest.items()},
        }

    def load_state_dict(self, state: dict[str, Any], accelerator: Any) -> None:
        """Restore what `state_dict` gave; with another number of ranks the first one takes all."""
        self._sums = _of_this_rank(state["sums"], accelerator)
        # Checkpoints of earlier versions have none.
        self._ratios = _of_this_rank(state.get("ratios", []), accelerator)
        margins = [float(value) for value in state["margins"]]
        self._margins = [torch.tensor(margins, dtype=torch.float32)] if margins else []
        seen = [int(row) for row in state.get("rows", [])]
        self._rows = [torch.tensor(seen, dtype=torch.long)] if seen else []
        self._latest = {key: float(value) for key, value in state["latest"].items()}

    def drain(self, accelerator: Any) -> dict[str, float]:
        """Return the means since the last call, over all ranks, and start anew. Collective over ranks."""
        metrics: dict[str, float] = {}
        if self._sums is not None:
            *totals, count = accelerator.reduce(self._sums.float(), reduction="sum").tolist()
            names = (*PAIR_METRICS, ROUTER_METRIC)[: len(totals)]
            metrics = {name: total / count for name, total in zip(names, totals, strict=True)}
        if self._ratios is not None:
            chosen, rejected, count = accelerator.reduce(self._ratios.float(), reduction="sum").tolist()
            metrics |= {"logratios/chosen": chosen / count, "logratios/rejected": rejected / count}
        if self._margins:
            margins = torch.cat(self._margins).float()
            metrics["margins/zeros"] = float((margins == 0.0).float().mean())
            finite = margins[torch.isfinite(margins)]
            if finite.numel():
                low, median, high = torch.quantile(finite[-(2**24) :], torch.tensor([0.1, 0.5, 0.9])).tolist()
                metrics |= {"margins/p10": low, "margins/median": median, "margins/p90": high}
                metrics["margins/std"] = float(finite.std(correction=0))
            metrics |= self._by_set(margins)
        metrics |= self._latest
        self._sums = self._ratios = None
        self._margins, self._rows, self._latest = [], [], {}
        return metrics

    def _by_set(self, margins: Tensor) -> dict[str, float]:
        """Return the mean of each set's finite margins; nothing for a set without any."""
        if not self._rows:
            return {}
        owners = torch.bucketize(torch.cat(self._rows), self._set_starts, right=True) - 1
        found = {}
        for number, name in enumerate(self._set_names):
            own = margins[owners == number]
            own = own[torch.isfinite(own)]
            if own.numel():
                found[f"margins_by_set/{name}"] = float(own.mean())
        return found


def _of_this_rank(per_rank: Sequence[Sequence[float | str]], accelerator: Any) -> Tensor | None:
    """Return this rank's row of a checkpoint's table, ``None`` if it is empty."""
    rows = [[float(value) for value in row] for row in per_rank]
    if not rows or not rows[0]:
        return None
    table = torch.tensor(rows, dtype=torch.float64, device=accelerator.device)
    if len(rows) == accelerator.num_processes:
        return table[accelerator.process_index]
    whole = table.sum(0)
    return whole if accelerator.is_main_process else torch.zeros_like(whole)


def _to_json(value: float) -> float | str:
    # JSON has no NaN; Python reads these words back as what they were.
    return value if math.isfinite(value) else str(value)


def gather_ragged(accelerator: Any, values: Tensor) -> Tensor:
    """Concatenate the ranks' values along the first dimension, in order of rank; lengths may differ.

    On one rank it is the identity. Collective over ranks.
    """
    if accelerator.num_processes == 1:
        return values
    size = torch.tensor([len(values)], device=values.device)
    sizes = accelerator.gather(size).tolist()
    padding = values.new_zeros((max(sizes) - len(values), *values.shape[1:]))
    gathered = accelerator.gather(torch.cat([values, padding]))
    parts = gathered.split(max(sizes))
    return torch.cat([part[:count] for part, count in zip(parts, sizes, strict=True)])
