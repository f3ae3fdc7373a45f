"""Which layout a model can take, how its head works, and the checks that keep the answer honest.

First what its configuration says, then numerical trials (`trial`): a layout is used only where both allow it. The
same comparison on real pairs is the self-check at the start of a run.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dynamic_dpo.engine.attention import PACKED_ATTENTION
from dynamic_dpo.engine.head import LogitTransform
from dynamic_dpo.engine.rotary import fixed_length
from dynamic_dpo.engine.rounding import arithmetic_of, rounding_tolerance
from dynamic_dpo.engine.rows import (
    PairBatch,
    PromptBatch,
    Rows,
    packed_rows,
    plain_rows,
    scored_lengths,
    shared_rows,
)
from dynamic_dpo.engine.score import in_forward, score_rows_through_logits
from dynamic_dpo.engine.trial import (
    NARROW,
    WIDE,
    find_logit_transform,
    is_causal,
    reason_against_layout,
    run_trial,
    trial_pairs,
    window_widths,
    windows_of,
)
from dynamic_dpo.errors import ModelError
from dynamic_dpo.models.causal_lm import causal_lm

BLOCK_MASK_ATTENTION = ("eager", "sdpa", PACKED_ATTENTION)
# Layers whose every position depends on all before it in the row, so that a row must hold one sequence.
_ATTENTION_LAYERS = ("full_attention", "sliding_attention", "chunked_attention")


class Capability(NamedTuple):
    """What the engine may do with a model, and why not more. Plain values: ranks can send it to each other.

    Attributes:
        shared: Whether a prompt and its completions may lie in one padded row.
        separate_head: Whether the output head may run by itself, on the predicting positions alone.
        reason: Why prefixes cannot be shared; else empty.
        packed: Whether all pairs may lie in one row.
        reason_against_packing: Why not; else empty.
        longest_shared: Tokens of the longest sequence for which ``shared`` holds; longer ones need a row each.
            ``None``: any.
        longest_packed: The same for ``packed``.
        transform: What the model does to its head's outputs.
    """

    shared: bool
    separate_head: bool
    reason: str
    packed: bool = False
    reason_against_packing: str = ""
    longest_shared: int | None = None
    longest_packed: int | None = None
    transform: LogitTransform = LogitTransform()


def reason_against_sharing(model: Any) -> str | None:
    """Return what in the model's configuration forbids shared-prefix rows, or ``None``."""
    config = model.config
    if getattr(config, "is_encoder_decoder", False):
        return "it is an encoder-decoder"
    implementation = getattr(config, "_attn_implementation", None)
    if implementation not in BLOCK_MASK_ATTENTION:
        return f"attention implementation {implementation!r} takes no block mask (eager and sdpa do)"
    kinds = getattr(config.get_text_config(), "layer_types", None) or ()
    unusual = sorted({str(kind) for kind in kinds if kind not in _ATTENTION_LAYERS})
    if unusual:
        return f"it has layers of type {', '.join(unusual)}"
    accepted = inspect.signature(model.base_model.forward).parameters
    if "position_ids" not in accepted or "attention_mask" not in accepted:
        return "it takes no position_ids"
    return None


def reason_against_packing(model: Any) -> str | None:
    """Return what forbids swapping the model's attention for packed attention, or ``None``.

    A kernel that was chosen on purpose stays: ``eager`` is swapped only where the model has nothing else.
    """
    config = model.config.get_text_config()
    implementation = model.config._attn_implementation
    is_the_default = implementation == "eager" and not getattr(model, "_supports_sdpa", True)
    if implementation not in ("sdpa", PACKED_ATTENTION) and not is_the_default:
        return f"its attention implementation is {implementation!r}, not 'sdpa'"
    if not model._can_set_attn_implementation():
        return "its attention does not go through transformers' interface"
    if any(getattr(config, name, 0.0) for name in ("attention_dropout", "attn_pdrop")):
        return "its attention has dropout"
    if model.device.type not in ("cpu", "cuda"):
        return f"there is no packed attention on {model.device.type}"
    return None


def detect_capability(model: Any) -> Capability:
    """Find out by configuration and by trial what the engine may do with ``model``.

    The trial runs in the arithmetic in use: call this under the run's autocast.

    Args:
        model: A causal language model of transformers, wrapped or not; where it is sharded, all ranks try it
            together. Its mode, its gradients and the random state are left as they were; where pairs can be packed,
            its attention is packed attention afterwards, which is ``sdpa`` for every other call.

    Returns:
        The capability; a model on the meta device is judged by its configuration alone.

    Raises:
        ModelError: If the model sees tokens behind the one it is at.
        torch.OutOfMemoryError: If memory runs out in the trial, which is some forty tokens.
    """
    lm = causal_lm(model)
    reason = reason_against_sharing(lm)
    if any(parameter.is_meta for parameter in lm.parameters()):
        limit = min([*window_widths(lm), *filter(None, [fixed_length(lm)])], default=None)
        return Capability(reason is None, True, reason or "", longest_shared=limit)
    pairs = trial_pairs(lm.config)
    devices = [lm.device] if lm.device.type == "cuda" else []
    with torch.random.fork_rng(devices), inference(model):
        plain = plain_rows(pairs).to(lm.device)
        if not is_causal(model, plain):
            raise ModelError(
                f"{type(lm).__name__} is no causal language model as it is configured: what it makes of a prompt "
                "depends on the answer behind it, which it could then read off. A decoder is needed"
            )
        transform, against_head = find_logit_transform(model, plain)
        if transform is None:
            return Capability(False, False, against_head, False, against_head)
        if reason is not None:
            return Capability(False, True, reason, False, reason, transform=transform)
        return _try_layouts(model, pairs, plain)._replace(transform=transform)


def _try_layouts(model: Any, pairs: PairBatch, plain: Rows) -> Capability:
    """Try packed and shared rows: with windows that the trial's few tokens show, then with none that they do."""
    lm = causal_lm(model)
    windows = window_widths(lm)
    with windows_of(model, NARROW):
        narrow = run_trial(model, plain)
    with windows_of(model, WIDE):
        wide = run_trial(model, plain) if windows else narrow
    # Windows that do not move with their setting stand elsewhere, where a trial cannot reach them.
    unmoved = bool(windows) and torch.equal(narrow.states, wide.states)
    shared, packed = (layout(pairs).to(lm.device) for layout in (shared_rows, packed_rows))

    def judged(rows: Rows) -> tuple[str | None, int | None]:
        """Return why a layout does not serve, if so, and the longest sequence for which it does."""
        with windows_of(model, NARROW):
            reason = reason_against_layout(model, rows, narrow)
        if not windows or (reason is None and not unmoved):
            return reason, fixed_length(model)
        with windows_of(model, WIDE):
            reason = reason_against_layout(model, rows, wide)
        if reason:
            # What is shown tells of the model's own windows.
            return reason_against_layout(model, rows, wide) or reason, None
        return None, min([*windows, fixed_length(model) or windows[0]])

    refused, longest_shared = judged(shared)
    against, longest_packed = reason_against_packing(lm), None
    before = lm.config._attn_implementation
    if against is None:
        with _packed_attention(lm) as keep:
            if before == "eager":
                # It is `sdpa` for ordinary rows now, which must come out as before.
                with windows_of(model, NARROW):
                    against = reason_against_layout(model, plain, narrow)
            if against is None:
                against, longest_packed = judged(packed)
            keep(against is None)
    return Capability(
        refused is None, True, refused or "", against is None, against or "", longest_shared, longest_packed
    )


@contextmanager
def _packed_attention(model: Any) -> Iterator[Callable[[bool], None]]:
    """Give the model packed attention; on leaving it has its own again, unless the trial told to keep it."""
    before = model.config._attn_implementation
    kept = False

    def keep(value: bool) -> None:
        nonlocal kept
        kept = value

    model.set_attn_implementation(PACKED_ATTENTION)
    try:
        yield keep
    finally:
        if not kept:
            model.set_attn_implementation(before)


def check_layouts_agree(
    model: Any, pairs: PairBatch, score_shared: Callable[[PairBatch], Tensor], *, layout: str
) -> None:
    """Score ``pairs`` through the layout in use, and each sequence alone through the model's own logits.

    Args:
        model: The causal language model, wrapped or not.
        pairs: A few real pairs.
        score_shared: The scoring in use: pairs to the log-probabilities of chosen, rejected, chosen, … Shape [2 B].
        layout: Name of the layout in use.

    Raises:
        ModelError: If they differ by more than rounding.
    """

    def alone(prompt: Any, completion: Any, mask: Any) -> Tensor:
        rows = plain_rows(PromptBatch([prompt], [[completion]], [[mask]]))
        on_device = rows.to(lm.device)
        return in_forward(model, lambda lm: score_rows_through_logits(lm, on_device))

    lm = causal_lm(model)
    with inference(model):
        ours = score_shared(pairs)
        oracle = torch.cat(
            [
                alone(prompt, completion, mask)
                for prompt, completions, masks in zip(
                    pairs.prompts, pairs.completions, pairs.masks or [(None, None)] * len(pairs), strict=True
                )
                for completion, mask in zip(completions, masks, strict=True)
            ]
        )
    num_tokens = torch.tensor(scored_lengths(pairs)).flatten()
    if largest_excess(ours, oracle, num_tokens=num_tokens, dtype=lm.dtype) > 0:
        seen, expected = (values.view(-1, 2).tolist() for values in (ours, oracle))
        advice = (
            "Set engine.layout=plain, and please report the model"
            if layout != "plain"
            else "The model's layers see the padding behind a sequence, or what lies beside it: it cannot be trained"
        )
        raise ModelError(
            f"the self-check failed: {layout} rows and each sequence alone give other log-probabilities for rows "
            f"{list(pairs.rows)}: {seen} against {expected}. {advice}"
        )


def largest_excess(values: Tensor, oracle: Tensor, *, num_tokens: Tensor, dtype: torch.dtype) -> float:
    """Return by how much the worst value is further from the oracle than rounding explains.

    Args:
        values: Sums of token log-probabilities in nats. Shape [N].
        oracle: What they should be. Shape [N].
        num_tokens: Tokens behind each sum. Shape [N].
        dtype: The dtype of the model's weights; an autocast in force is seen.

    Returns:
        Nats; above 0 is a disagreement. NaN anywhere is infinitely far, unless both are NaN.
    """
    arithmetic = arithmetic_of(dtype, values.device)
    excess = (values - oracle).abs() - rounding_tolerance(num_tokens, arithmetic).to(values)
    excess = torch.where(values.isnan() & oracle.isnan(), -1.0, excess)
    return float(excess.nan_to_num(nan=torch.inf).max())


class inference(AbstractContextManager[None]):
    """Evaluation mode without gradients; on leaving, every module is back in the mode it was in."""

    def __init__(self, model: nn.Module) -> None:
        self.training = [module for module in model.modules() if module.training]
        self.model = model
        self.no_grad = torch.no_grad()

    def __enter__(self) -> None:
        self.model.eval()
        self.no_grad.__enter__()

    def __exit__(self, *exception: Any) -> None:
        self.no_grad.__exit__(*exception)
        for module in self.training:
            module.training = True
