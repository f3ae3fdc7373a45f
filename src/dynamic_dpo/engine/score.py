"""Model and rows in, completion log-probabilities out: the one scoring function of training and evaluation.

Scoring enters the model through its own ``forward``, so that wrappers around it (autocast, data parallelism,
sharding) see every pass. What the log-probabilities are for is not known here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dynamic_dpo.engine.head import token_logps
from dynamic_dpo.engine.rows import Rows
from dynamic_dpo.errors import ModelError
from dynamic_dpo.loss.dpo_loss import at_least_float32


class PairLogps(NamedTuple):
    """Summed completion log-probabilities in nats and the tokens behind them, each of shape [B]."""

    chosen: Tensor
    rejected: Tensor
    chosen_lengths: Tensor
    rejected_lengths: Tensor


def causal_lm(model: nn.Module) -> Any:
    """Return the transformers causal language model inside adapters or parallel wrappers.

    Raises:
        ModelError: If an adapter changes the prompt instead of the layers, or there is no output head.
    """
    inner: Any = model
    while hasattr(inner, "module") and isinstance(inner.module, nn.Module):
        inner = inner.module
    if hasattr(inner, "get_base_model"):
        if getattr(getattr(inner, "active_peft_config", None), "is_prompt_learning", False):
            raise ModelError(
                "prompt-learning adapters (prompt tuning, prefix tuning) are not supported: "
                "use an adapter inside the layers, such as LoRA"
            )
        inner = inner.get_base_model()
    if getattr(inner, "get_output_embeddings", lambda: None)() is None:
        raise ModelError(f"{type(inner).__name__} has no output head: a causal language model is needed")
    return inner


def attention_mask(rows: Rows, model: Any) -> Tensor:
    """Return the mask that makes the model's attention follow the layout.

    Plain rows take the ordinary padding mask [R, T]. Shared rows take a 4-D mask: boolean for ``sdpa``,
    additive for ``eager``, which would silently add a boolean one to its scores.
    """
    if not rows.shared:
        return rows.padding_mask()
    allowed = rows.allowed_attention()
    if model.config._attn_implementation == "sdpa":
        return allowed
    dtype = model.dtype
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(
        ~allowed, torch.finfo(dtype).min
    )


def score_rows(model: Any, rows: Rows, *, head_chunk: int) -> Tensor:
    """Return the summed log-probabilities of each pair's completions through the completion-only head.

    Args:
        model: A causal language model of transformers, adapters merged into its layers.
        rows: Rows on the model's device.
        head_chunk: Completion positions whose logits exist at a time.

    Returns:
        Log-probabilities in nats, float32 or float64; chosen, rejected. Shape [B, 2].
    """
    inputs: dict[str, Any] = {"input_ids": rows.input_ids, "attention_mask": attention_mask(rows, model)}
    if rows.shared:
        inputs["position_ids"] = rows.position_ids
    hidden = model.base_model(**inputs, use_cache=False)[0]
    states = hidden.flatten(0, 1).index_select(0, rows.predictors)
    return sum_by_sequence(
        token_logps(model.get_output_embeddings(), states, rows.targets, chunk=head_chunk), rows
    )


def score_rows_through_logits(model: Any, rows: Rows) -> Tensor:
    """Return the same as `score_rows` from the model's own logits: the oracle, at any model's service.

    Needs plain rows and holds all logits; the way for models whose head does more than a linear map.
    """
    logits = model(input_ids=rows.input_ids, attention_mask=rows.padding_mask(), use_cache=False).logits
    states = at_least_float32(logits.flatten(0, 1).index_select(0, rows.predictors))
    logps = states.gather(1, rows.targets[:, None])[:, 0] - states.logsumexp(-1)
    return sum_by_sequence(logps, rows)


def sum_by_sequence(token_logprobs: Tensor, rows: Rows) -> Tensor:
    """Add up token log-probabilities (shape [N]) by the sequence that owns them. Shape [B, 2]."""
    sums = token_logprobs.new_zeros(2 * rows.num_pairs)
    return sums.index_add(0, rows.owners, token_logprobs).view(rows.num_pairs, 2)


def completion_lengths(rows: Rows) -> Tensor:
    """Return the completion tokens behind each sum; chosen, rejected. Shape [B, 2], int64."""
    return torch.bincount(rows.owners, minlength=2 * rows.num_pairs).view(rows.num_pairs, 2)


def install_pair_scoring(model: nn.Module, score: Callable[[nn.Module, Rows], Tensor]) -> None:
    """Let ``model(pair_rows=rows)`` return ``score(model, rows)``; every other call goes to the model as before.

    Installing again replaces the earlier scoring. A deep copy of the model scores and answers with its own weights.
    """
    original = getattr(model.forward, "_without_pair_scoring", None)
    if original is None:
        bound = model.forward
        original = getattr(bound, "__func__", None) or (lambda _, *args, **kwargs: bound(*args, **kwargs))

    @functools.wraps(original)
    def forward(self: nn.Module, *args: Any, pair_rows: Rows | None = None, **kwargs: Any) -> Any:
        if pair_rows is not None:
            return score(self, pair_rows)
        return original(self, *args, **kwargs)

    forward._without_pair_scoring = original  # type: ignore[attr-defined]
    # A bound method, since copying binds it to the copy; a closure over the model would go on using this one.
    model.forward = MethodType(forward, model)
