"""Whether a model can take shared-prefix rows, and the checks that keep the answer honest.

First what its configuration says, then a numerical trial on a few random tokens: rows are shared only where both
agree. The same comparison on real pairs is the self-check at the start of a run.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dynamic_dpo.engine.attention import PACKED_ATTENTION
from dynamic_dpo.engine.rows import PairBatch, packed_rows, plain_rows, shared_rows
from dynamic_dpo.engine.score import score_rows, score_rows_through_logits
from dynamic_dpo.errors import ModelError

BLOCK_MASK_ATTENTION = ("eager", "sdpa", PACKED_ATTENTION)


class Capability(NamedTuple):
    """What the engine may do with a model: share prefixes, pack pairs, run the head by itself; and why not."""

    shared: bool
    separate_head: bool
    reason: str
    packed: bool = False


def reason_against_sharing(model: Any) -> str | None:
    """Return what in the model's configuration forbids shared-prefix rows, or ``None``."""
    config = model.config
    if getattr(config, "is_encoder_decoder", False):
        return "it is an encoder-decoder"
    implementation = getattr(config, "_attn_implementation", None)
    if implementation not in BLOCK_MASK_ATTENTION:
        return f"attention implementation {implementation!r} takes no block mask (eager and sdpa do)"
    unusual = sorted(
        {kind for kind in getattr(config, "layer_types", None) or () if kind != "full_attention"}
    )
    if unusual:
        return f"it has layers of type {', '.join(unusual)}"
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return f"it attends through a sliding window of {config.sliding_window} tokens"
    accepted = inspect.signature(model.base_model.forward).parameters
    if "position_ids" not in accepted or "attention_mask" not in accepted:
        return "it takes no position_ids"
    return None


def transforms_logits(model: Any) -> bool:
    """Return whether the configuration names a step after the output head (soft-capping, a logit scale).

    A small random model's logits are too small to show a soft cap in the trial, hence by name.
    """
    settings = model.config.get_text_config().to_dict()
    names = [key for key in settings if "logit" in key or key.startswith("lm_head")]
    return any(settings[key] not in (None, False, 1, 1.0) for key in names)


def detect_capability(model: Any) -> Capability:
    """Find out by configuration and by trial what the engine may do with ``model``.

    Args:
        model: A causal language model of transformers. Its mode and gradients are left as they were; where
            pairs can be packed, its attention is packed attention afterwards, which is ``sdpa`` for every
            other call.

    Returns:
        The capability; ``reason`` is empty where prefixes can be shared.
    """
    reason = reason_against_sharing(model)
    if any(parameter.is_meta for parameter in model.parameters()):
        return Capability(reason is None, True, reason or "")
    pairs = _trial_pairs(model.config.get_text_config().vocab_size)
    device = model.device
    with inference(model):
        oracle = score_rows_through_logits(model, plain_rows(pairs).to(device))

        def agrees(layout: Callable[[PairBatch], Any]) -> bool:
            try:
                trial = score_rows(model, layout(pairs).to(device), head_chunk=4)
            except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
                return False
            return largest_excess(trial, oracle, model.dtype) <= 0

        separate_head = not transforms_logits(model) and agrees(plain_rows)
        if reason is None and not separate_head:
            reason = "its output head does more than a linear map of the last hidden state"
        if reason is None and not agrees(shared_rows):
            reason = "a trial with shared prefixes gave other log-probabilities"
        packed = reason is None and may_pack(model) and _agrees_when_packed(model, agrees)
    return Capability(reason is None, separate_head, reason or "", packed)


def may_pack(model: Any) -> bool:
    """Return whether the model's attention may be swapped for packed attention, going by its configuration.

    Only what computes like ``sdpa`` without dropout may: a kernel that was chosen on purpose stays.
    """
    config = model.config
    takes_it = config._attn_implementation in ("sdpa", PACKED_ATTENTION)
    has_dropout = any(getattr(config, name, 0.0) for name in ("attention_dropout", "attn_pdrop"))
    return takes_it and not has_dropout and model.device.type in ("cpu", "cuda")


def _agrees_when_packed(model: Any, agrees: Callable[[Callable[[PairBatch], Any]], bool]) -> bool:
    before = model.config._attn_implementation
    model.set_attn_implementation(PACKED_ATTENTION)
    if agrees(packed_rows):
        return True
    model.set_attn_implementation(before)
    return False


def check_layouts_agree(model: Any, pairs: PairBatch, score_shared: Callable[[PairBatch], Tensor]) -> None:
    """Score ``pairs`` through the layout in use and through the oracle.

    Args:
        model: The causal language model.
        pairs: A few real pairs.
        score_shared: The scoring in use: pairs to the log-probabilities of chosen, rejected, chosen, … Shape [2 B].

    Raises:
        ModelError: If they differ by more than rounding.
    """
    with inference(model):
        ours = score_shared(pairs)
        oracle = torch.cat(
            [
                score_rows_through_logits(model, plain_rows(pairs.select([i])).to(model.device))
                for i in range(len(pairs))
            ]
        )
    if largest_excess(ours, oracle, model.dtype) > 0:
        seen, expected = (values.view(-1, 2).tolist() for values in (ours, oracle))
        raise ModelError(
            "the self-check failed: shared-prefix rows and plain rows give other log-probabilities for rows "
            f"{list(pairs.rows)}: {seen} against {expected}. Set engine.layout=plain, and please report the model"
        )


def largest_excess(values: Tensor, oracle: Tensor, dtype: torch.dtype) -> float:
    """Return by how much the worst value is further from the oracle than rounding in ``dtype`` explains.

    Above 0 is a disagreement. NaN anywhere is infinitely far, unless both are NaN.
    """
    absolute, relative = (1e-3, 1e-4) if dtype in (torch.float32, torch.float64) else (0.5, 0.02)
    if torch.is_autocast_enabled(values.device.type):
        absolute, relative = 0.5, 0.02
    excess = (values - oracle).abs() - absolute - relative * oracle.abs()
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


def _trial_pairs(vocab_size: int) -> PairBatch:
    draw = random.Random(0)

    def tokens(count: int) -> list[int]:
        return [draw.randrange(vocab_size) for _ in range(count)]

    sizes = ((7, 5, 4), (3, 2, 6))
    prompts, chosen, rejected = zip(*([tokens(n) for n in size] for size in sizes), strict=True)
    return PairBatch(prompts, chosen, rejected, range(len(sizes)))
