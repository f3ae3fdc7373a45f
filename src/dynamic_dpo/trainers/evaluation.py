"""Evaluation of a policy on preference pairs: the training's own scoring and losses, and no state moved."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from dynamic_dpo.engine.rows import PairBatch
from dynamic_dpo.methods.base import PreferenceMethod
from dynamic_dpo.trainers.metrics import PAIR_METRICS, gather_ragged, pair_metrics
from dynamic_dpo.trainers.policy import PolicyAndReference
from dynamic_dpo.trainers.reference_pass import collate_pairs
from dynamic_dpo.trainers.sharding import same_number_of_passes


def evaluate_pairs(
    model: nn.Module,
    batches: Iterable[dict[str, PairBatch] | None],
    *,
    method: PreferenceMethod,
    policy: PolicyAndReference,
    accelerator: Any,
    is_sharded: bool,
    prefix: str,
    description: str,
    show_progress: bool,
) -> tuple[dict[str, float], Tensor]:
    """Return the mean loss and metrics over all pairs, and the rewards of each. Collective over ranks.

    Args:
        model: The policy, wrapped as the accelerator wants it; it is left in the mode that it was in.
        batches: This rank's batches; ``None`` where only other ranks still have one.
        method: Gives beta and losses; its state is read only.
        policy: Scores pairs.
        accelerator: The trainer's accelerator.
        is_sharded: Whether weights are spread over the ranks, which must then make the same passes.
        prefix: Put before every name, with an underscore.
        description: Label of the progress bar.
        show_progress: Whether the main process shows one.

    Returns:
        ``{prefix}_loss``, ``{prefix}_rewards/accuracies`` and so on; pairs that a sampler repeated to make ranks
        even count once. The rewards of chosen and rejected answers in the order of the rows, shape [N, 2].
    """
    rows: list[int] = []
    values: list[Tensor] = []
    # On a terminal alone, and gone when it is done: what was found has its own line.
    is_shown = show_progress and accelerator.is_main_process
    bar = tqdm(batches, desc=description, leave=False, disable=None if is_shown else True)
    was_training = model.training
    model.eval()
    with torch.no_grad(), accelerator.autocast():
        for batch in bar:
            pairs = batch["pairs"] if batch is not None else collate_pairs([])["pairs"]
            plan = policy.scorer.plan(pairs, with_gradients=False)
            if is_sharded:
                plan = same_number_of_passes(accelerator, plan)
            for microbatch in plan:
                if not microbatch:
                    policy.idle(model, method.needs)
                    continue
                part = pairs.select(microbatch)
                scored = policy.forward(model, part, method.needs)
                control = method.control_in_evaluation(method.evidence(scored))
                losses = method.losses(scored, control)
                values.append(torch.cat([losses[:, None], pair_metrics(scored, control)], dim=1).double())
                rows += part.rows
    model.train(was_training)
    width = 1 + len(PAIR_METRICS)
    device = accelerator.device
    table = torch.cat(values).float() if values else torch.zeros(0, width, device=device)
    table = gather_ragged(accelerator, table).double().cpu()
    owners = gather_ragged(accelerator, torch.tensor(rows, dtype=torch.long, device=device)).tolist()
    # Of a pair that a sampler repeated to make ranks even, the first occurrence counts.
    first = list({row: i for i, row in reversed(list(enumerate(owners)))}.values())
    table = table[sorted(first, key=lambda i: owners[i])]
    names = ("loss", *PAIR_METRICS)
    rewards = table[:, [names.index("rewards/chosen"), names.index("rewards/rejected")]]
    if not first:
        return {}, rewards
    return {
        f"{prefix}_{name}": mean for name, mean in zip(names, table.mean(0).tolist(), strict=True)
    }, rewards
