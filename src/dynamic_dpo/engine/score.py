"""Model and rows in, completion log-probabilities out: the one scoring function of training and evaluation.

Scoring enters the model through its own ``forward``, so that wrappers around it (autocast, data parallelism,
sharding) see every pass.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from dynamic_dpo.engine.attention import PACKED_ATTENTION
from dynamic_dpo.engine.head import LogitTransform, Readout, TokenScores, token_scores
from dynamic_dpo.engine.router import RouterLoss
from dynamic_dpo.engine.rows import Rows
from dynamic_dpo.engine.sharded import forget_pass, is_sharded, reshard
from dynamic_dpo.loss.dpo_loss import at_least_float32
from dynamic_dpo.models.causal_lm import causal_lm, inside_wrappers

T = TypeVar("T")


class PairLogps(NamedTuple):
    """Summed completion log-probabilities in nats and the tokens behind them, each of shape [B].

    What else was read: sums of statistics by name, each of shape [B, 2]; log-probabilities of single tokens,
    shape [N], with the sequence each belongs to; the balancing loss of a mixture of experts, shape []; sums of the
    chosen completions as they are, where tails are weighted in the others, shape [B].
    """

    chosen: Tensor
    rejected: Tensor
    chosen_lengths: Tensor
    rejected_lengths: Tensor
    statistics: dict[str, Tensor]
    token_logps: Tensor
    token_owners: Tensor
    router_loss: Tensor | None = None
    whole_chosen: Tensor | None = None


class SequenceLogps(NamedTuple):
    """Summed completion log-probabilities of single sequences, and the tokens behind them.

    Attributes:
        logps: Nats, float64, on the CPU. Shape [N].
        lengths: Scored completion tokens. Shape [N], int64, on the CPU.
    """

    logps: Tensor
    lengths: Tensor


def attention_mask(rows: Rows, model: Any) -> Tensor:
    """Return the mask that makes the model's attention follow the layout.

    Plain rows take the ordinary padding mask [R, T]. Shared rows take a 4-D mask: boolean for ``sdpa``,
    additive for ``eager``, which would silently add a boolean one to its scores. Packed rows are masked by
    their spans; the 4-D placeholder keeps the model from making a mask of its own.
    """
    if not rows.shared:
        return rows.padding_mask()
    if rows.spans:
        return torch.ones(1, 1, 1, 1, dtype=torch.bool, device=rows.input_ids.device)
    allowed = rows.allowed_attention()
    if model.config._attn_implementation in ("sdpa", PACKED_ATTENTION):
        return allowed
    dtype = model.dtype
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(
        ~allowed, torch.finfo(dtype).min
    )


def _inputs(model: Any, rows: Rows) -> dict[str, Any]:
    inputs: dict[str, Any] = {"input_ids": rows.input_ids, "attention_mask": attention_mask(rows, model)}
    if rows.shared or rows.own_positions:
        inputs["position_ids"] = rows.position_ids
    if rows.spans:
        inputs["spans"] = rows.spans
    return inputs | {"use_cache": False}


def predicting_states(model: Any, rows: Rows) -> Tensor:
    """Return the last hidden states of the positions that predict a completion token. Shape [N, H]."""
    return _at_predictors(model.base_model(**_inputs(model, rows))[0], rows)


def _at_predictors(values: Tensor, rows: Rows) -> Tensor:
    return values.flatten(0, 1).index_select(0, rows.predictors)


def score_tokens(
    model: Any,
    rows: Rows,
    *,
    head_chunk: int,
    readout: Readout | None = None,
    transform: LogitTransform | None = None,
    router: RouterLoss | None = None,
) -> TokenScores:
    """Return the log-probability of every completion token through the completion-only head.

    Args:
        model: A causal language model of transformers, adapters merged into its layers.
        rows: Rows on the model's device.
        head_chunk: Completion positions whose logits exist at a time.
        readout: What else is to be read from the logits.
        transform: What the model does to its head's outputs.
        router: The balancing loss, where it is wanted.

    Returns:
        Log-probabilities in nats, float32 or float64, shape [N], the statistics, shape [S, N], and the balancing
        loss.
    """
    wanted = {"output_router_logits": True} if router else {}
    output = model.base_model(**_inputs(model, rows), **wanted)
    scores = token_scores(
        model.get_output_embeddings(),
        _at_predictors(output[0], rows),
        rows.targets,
        chunk=head_chunk,
        readout=readout,
        transform=transform,
    )
    return scores._replace(router_loss=router.of(output, rows)) if router else scores


def predicting_logits(model: Any, rows: Rows) -> Tensor:
    """Return the model's own logits at the predicting positions, float32 or float64. Shape [N, V].

    Needs plain rows and holds all logits; the way for models whose head is not understood.
    """
    return at_least_float32(_at_predictors(model(**_inputs(model, rows)).logits, rows))


def score_tokens_through_logits(
    model: Any, rows: Rows, *, readout: Readout | None = None, router: RouterLoss | None = None
) -> TokenScores:
    """Return the same as `score_tokens` from the model's own logits: the oracle, at any model's service."""
    wanted = {"output_router_logits": True} if router else {}
    output = model(**_inputs(model, rows), **wanted)
    logits = at_least_float32(_at_predictors(output.logits, rows))
    logps = logits.gather(1, rows.targets[:, None])[:, 0] - logits.logsumexp(-1)
    read = (readout or Readout()).read(slice(None), logits, rows.targets, logps)
    statistics = torch.stack(read).to(logps.dtype) if read else logps.new_empty(0, len(logps))
    return TokenScores(logps, statistics, router.of(output, rows) if router else None)


def score_rows(model: Any, rows: Rows, *, head_chunk: int) -> Tensor:
    """Return the summed log-probability of each completion. Shape [S]."""
    return sum_by_sequence(score_tokens(model, rows, head_chunk=head_chunk).logps, rows)


def score_rows_through_logits(model: Any, rows: Rows) -> Tensor:
    """Return the same as `score_rows` from the model's own logits. Shape [S]."""
    return sum_by_sequence(score_tokens_through_logits(model, rows).logps, rows)


def sum_by_sequence(values: Tensor, rows: Rows) -> Tensor:
    """Add up values of tokens (shape [..., N]) by the sequence that owns them. Shape [..., S]."""
    sums = values.new_zeros((*values.shape[:-1], rows.num_sequences))
    return sums.index_add(-1, rows.owners, values)


def tail_weights(rows: Rows, weight: float, dtype: torch.dtype) -> Tensor:
    """Return 1 for each token of a pair's completions up to the length of the shorter one, ``weight`` beyond.

    A pair's completions are neighbours, and a completion's tokens stand behind each other. Shape [N].
    """
    lengths = completion_lengths(rows)
    places = torch.arange(len(rows.owners), device=rows.owners.device)
    places = places - (lengths.cumsum(0) - lengths)[rows.owners]
    shorter = lengths.view(-1, 2).amin(1)[rows.owners // 2]
    one = torch.ones((), dtype=dtype, device=places.device)
    return torch.where(places < shorter, one, weight * one)


def completion_lengths(rows: Rows) -> Tensor:
    """Return the scored completion tokens behind each sum. Shape [S], int64."""
    # Not torch.bincount, for whose size the device would have to be asked.
    return sum_by_sequence(torch.ones_like(rows.owners), rows)


# What ``model(rows=rows)`` answers with: tensors by name, so that wrappers of the model can walk over them.
RowScores = dict[str, Tensor]


@contextmanager
def scoring_enabled(model: nn.Module, score: Callable[..., RowScores]) -> Iterator[None]:
    """Let ``model(rows=rows, ...)`` return ``score(model, rows, ...)``; every other call goes on as before.

    On leaving, by an exception too, the model's ``forward`` is what it was. What was wrapped around it in between
    (autocast by accelerate, say) stays, and what it calls is then the model's own ``forward`` again. Contexts nest:
    the innermost scores. A deep copy of the model made inside scores with its own weights.

    Args:
        model: The module whose ``forward`` wrappers call: without parallel wrappers, adapters included.
        score: Takes the model, the rows, and what else the call was given.
    """
    before = vars(model).get("forward")  # None where the class's own is in use.
    bound = model.forward
    original = getattr(bound, "__func__", None) or (lambda _, *args, **kwargs: bound(*args, **kwargs))
    is_open = True

    # With the original's signature, for a trainer reads from it what the model takes.
    @functools.wraps(original)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if is_open and "rows" in kwargs:
            return score(self, kwargs.pop("rows"), *args, **kwargs)
        return original(self, *args, **kwargs)

    # A bound method, since copying binds it to the copy; a closure over the model would go on using this one.
    installed = MethodType(forward, model)
    model.forward = installed
    try:
        yield
    finally:
        is_open = False
        if vars(model).get("forward") is installed:
            if before is None:
                del model.forward
            else:
                model.forward = before


def in_forward(model: nn.Module, function: Callable[[Any], T]) -> T:
    """Return ``function`` of the causal language model, run as a pass of ``model``, so that its wrappers see it.

    What it returns are tensors, or structures of them.
    """

    def score(inner: nn.Module, rows: None) -> Any:
        return function(causal_lm(inner))

    with scoring_enabled(inside_wrappers(model), score):
        values: Any = scoring_pass(model, rows=None)
    found: T = values
    return found


def scoring_pass(model: nn.Module, **options: Any) -> RowScores:
    """Call a model on which scoring is enabled. After a pass without gradients a sharded one is left in shards."""
    inner = inside_wrappers(model)
    if not is_sharded(inner):
        scores: RowScores = model(**options)
        return scores
    try:
        scores = model(**options)
    except BaseException:
        forget_pass(inner)
        raise
    if not torch.is_grad_enabled():
        reshard(inner)
    return scores
