"""Sequence log-probabilities, margins and the DPO loss: tensors in, tensors out.

Sums and the loss itself are formed in float32 (or float64 if that is what comes in), because bfloat16 resolves only
1 nat between 128 and 256 nats.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE_INDEX = -100


class DPOLoss(NamedTuple):
    """Losses and detached rewards of a batch, each of shape [B]."""

    losses: Tensor
    chosen_rewards: Tensor
    rejected_rewards: Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """Return ``x`` in float32, or unchanged where it is float64."""
    return x if x.dtype == torch.float64 else x.float()


def compute_log_prob(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum the log-probabilities of the labelled tokens of each sequence.

    ``logits[:, t]`` predicts ``labels[:, t + 1]``; labels of -100 are ignored.

    Args:
        logits: Scores before the softmax. Shape [B, T, V].
        labels: Token ids, -100 where a token does not count. Shape [B, T].

    Returns:
        Summed log-probabilities in nats, float32 (float64 for float64 logits). Shape [B].

    Raises:
        ValueError: If the shapes do not agree.

    Example:
        >>> logits = torch.zeros(1, 3, 4)  # uniform over 4 tokens
        >>> compute_log_prob(logits, torch.tensor([[-100, 1, 2]])).item()  # doctest: +ELLIPSIS
        -2.7725...
    """
    if logits.shape[:-1] != labels.shape:
        raise ValueError(
            f"logits of shape {tuple(logits.shape)} need labels of shape {tuple(logits.shape[:-1])}, "
            f"got {tuple(labels.shape)}"
        )
    targets = labels[:, 1:]
    counted = targets != IGNORE_INDEX
    token_logps = -F.cross_entropy(
        at_least_float32(logits[:, :-1]).transpose(1, 2),
        targets,
        ignore_index=IGNORE_INDEX,
        reduction="none",
    )
    return torch.where(counted, token_logps, 0.0).sum(-1)


def margin_compute(
    policy_chosen_log_prob: Tensor,
    policy_rejected_log_prob: Tensor,
    ref_chosen_log_prob: Tensor,
    ref_rejected_log_prob: Tensor,
) -> Tensor:
    """Return the margin of each pair: chosen minus rejected log-ratio, in nats, without beta.

    Args:
        policy_chosen_log_prob: Summed policy log-probabilities of the chosen completions. Shape [B].
        policy_rejected_log_prob: The same of the rejected completions. Shape [B].
        ref_chosen_log_prob: Summed reference log-probabilities of the chosen completions. Shape [B].
        ref_rejected_log_prob: The same of the rejected completions. Shape [B].

    Returns:
        Margins, differentiable in the policy's terms. Shape [B].

    Example:
        >>> one = torch.ones(1)
        >>> margin_compute(-2 * one, -5 * one, -3 * one, -4 * one).item()
        2.0
    """
    policy = at_least_float32(policy_chosen_log_prob) - at_least_float32(policy_rejected_log_prob)
    reference = at_least_float32(ref_chosen_log_prob) - at_least_float32(ref_rejected_log_prob)
    return policy - reference


def dpo_loss(
    policy_chosen_log_prob: Tensor,
    policy_rejected_log_prob: Tensor,
    ref_chosen_log_prob: Tensor,
    ref_rejected_log_prob: Tensor,
    beta: float | Tensor,
) -> DPOLoss:
    """Compute the DPO loss of each pair, ``-log sigmoid(beta * margin)``.

    Equation 7 of Rafailov et al., "Direct Preference Optimization" (2023, arXiv:2305.18290).

    Args:
        policy_chosen_log_prob: Summed policy log-probabilities of the chosen completions. Shape [B].
        policy_rejected_log_prob: The same of the rejected completions. Shape [B].
        ref_chosen_log_prob: Summed reference log-probabilities of the chosen completions. Shape [B].
        ref_rejected_log_prob: The same of the rejected completions. Shape [B].
        beta: Strength of the tie to the reference: a number, or a tensor of shape [] or [B].

    Returns:
        ``(losses, chosen_rewards, rejected_rewards)``, each [B]; rewards are ``beta * logratio``, detached.

    Example:
        >>> zero = torch.zeros(2)
        >>> dpo_loss(zero, zero, zero, zero, beta=0.1).losses  # log 2: nothing learned yet
        tensor([0.6931, 0.6931])
    """
    margin = margin_compute(
        policy_chosen_log_prob, policy_rejected_log_prob, ref_chosen_log_prob, ref_rejected_log_prob
    )
    losses = -F.logsigmoid(beta * margin)
    chosen_logratio = at_least_float32(policy_chosen_log_prob) - at_least_float32(ref_chosen_log_prob)
    rejected_logratio = at_least_float32(policy_rejected_log_prob) - at_least_float32(ref_rejected_log_prob)
    return DPOLoss(losses, beta * chosen_logratio.detach(), beta * rejected_logratio.detach())


def compute_and_log_model_margin(
    model_margin: Tensor,
    epoch_dir: str | Path,
    epoch: int,
    step: int,
    JSONL_PATH: str | Path,
    *,
    sample_size: int = 32,
) -> dict[str, object]:
    """Save the margins of one controller batch as ``step_%05d.npy`` and append one line of statistics.

    Args:
        model_margin: Margins in nats, without beta. Shape [N], N ≥ 1.
        epoch_dir: Folder of this epoch's ``.npy`` files; made if absent.
        epoch: Number of the epoch.
        step: Number of the controller update; names the file.
        JSONL_PATH: File to append to; its folder is made if absent.
        sample_size: How many margins, from the first on, stand in the line itself.

    Returns:
        The line as a dict: ``epoch, step, batch_size, mean, std, min, p10, median, p90, max, pos_frac, npy,
        sample``. ``std`` is the population's. Non-finite margins are kept in the ``.npy`` and left out of
        the statistics; where none is finite, the statistics are ``None``.

    Raises:
        ValueError: If there is no margin.
    """
    margins = model_margin.detach().to(device="cpu", dtype=torch.float32).reshape(-1).numpy()
    if margins.size == 0:
        raise ValueError("model_margin is empty: a controller batch has at least one pair")
    folder = Path(epoch_dir)
    folder.mkdir(parents=True, exist_ok=True)
    npy = folder / f"step_{step:05d}.npy"
    np.save(npy, margins)

    finite = margins[np.isfinite(margins)]
    statistics: dict[str, float | None] = dict.fromkeys(
        ("mean", "std", "min", "p10", "median", "p90", "max", "pos_frac")
    )
    if finite.size:
        low, p10, median, p90, high = np.quantile(finite, [0.0, 0.1, 0.5, 0.9, 1.0]).tolist()
        statistics = {
            "mean": float(finite.mean(dtype=np.float64)),
            "std": float(finite.std(dtype=np.float64)),
            "min": low,
            "p10": p10,
            "median": median,
            "p90": p90,
            "max": high,
            "pos_frac": float((finite > 0).mean()),
        }
    record: dict[str, object] = {
        "epoch": int(epoch),
        "step": int(step),
        "batch_size": int(margins.size),
        **statistics,
        "npy": str(npy),
        "sample": [float(m) if np.isfinite(m) else None for m in margins[:sample_size]],
    }
    path = Path(JSONL_PATH)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
    return record
