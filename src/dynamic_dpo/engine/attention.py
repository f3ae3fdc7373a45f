"""Packed attention as transformers' layers call it: what a layer asks for is followed to the letter or refused.

All prompts of a micro-batch lie behind each other in one row, each followed by its completions, so that a model's
linear layers see needed tokens only. Attention then takes each by itself: on a CPU `span_attention`, on a GPU `flex`.
What is attended to, and why: `rows`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from dynamic_dpo.engine.packed.masked_attention import masked_attention
from dynamic_dpo.engine.packed.span_attention import packed_attention
from dynamic_dpo.engine.rows import PromptSpan

# The implementation's name in transformers' tables; without spans it is `sdpa`, with caps and sinks beside.
PACKED_ATTENTION = "dynamic_dpo_packed"

# What layers pass along that changes nothing of what attention over one row computes.
_WITHOUT_EFFECT = {"position_ids", "cache_position", "use_cache", "output_router_logits", "deterministic"}


def _window(module: Any, passed: int | None) -> int | None:
    """Return the window of a layer's attention in tokens, ``None`` for none.

    A layer need not pass its window, for with ``sdpa`` it is the mask that has it; packed rows have no mask.

    Raises:
        ValueError: If what hides keys from the layer is something else, or cannot be told.
    """
    config, layer = getattr(module, "config", None), getattr(module, "layer_idx", None)
    kinds = getattr(config, "layer_types", None)
    kind = kinds[layer] if kinds and layer is not None and layer < len(kinds) else None
    declared = getattr(config, "sliding_window", None)
    if kind not in (None, "full_attention", "sliding_attention"):
        raise ValueError(
            f"packed attention knows full and sliding layers, and {type(module).__name__} is of type {kind!r}; set "
            "engine.layout=plain"
        )
    if passed is not None and passed < 1:
        raise ValueError(
            f"a window must hold 1 token or more, and {type(module).__name__} passed {passed}; set "
            "engine.layout=plain"
        )
    if passed is not None or kind == "full_attention" or declared is None:
        return passed
    if kind == "sliding_attention":
        window: int = declared
        return window
    raise ValueError(
        f"{type(module).__name__} passes no window though its configuration has sliding_window={declared}: whether "
        "packed attention is to keep to it cannot be told; set engine.layout=plain"
    )


def _is_causal(module: Any, options: dict[str, Any]) -> bool:
    passed = options.pop("is_causal", None)
    return bool(getattr(module, "is_causal", True) if passed is None else passed)


def _check_known(module: Any, options: dict[str, Any]) -> None:
    """Refuse what would change the result, did one know how."""
    unknown = sorted(
        option
        for option, value in options.items()
        if option not in _WITHOUT_EFFECT and value is not None and value is not False
    )
    if unknown:
        raise ValueError(
            f"packed attention does not know what to do with {', '.join(unknown)}, which {type(module).__name__} "
            "passes; set engine.layout=plain"
        )


def _check_one_row(module: Any, query: Tensor, key: Tensor, mask: Any, spans: Sequence[PromptSpan]) -> None:
    """Refuse rows that the spans do not tell all about."""
    name = type(module).__name__
    shape = (1, spans[-1].end)
    if any((part.shape[0], part.shape[2]) != shape for part in (query, key)):
        raise ValueError(
            f"packed attention takes one row of {shape[1]} queries and as many keys, and {name} gave queries "
            f"{list(query.shape)} and keys {list(key.shape)}; set engine.layout=plain"
        )
    # The placeholder that rows come with has one element; a larger mask says something of its own.
    if mask is not None and mask.numel() != 1:
        raise ValueError(
            f"packed attention goes by spans, and {name} gave a mask of shape {list(mask.shape)} beside them; set "
            "engine.layout=plain"
        )


def _unpacked(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    softcap: float | None,
    sinks: Tensor | None,
    options: dict[str, Any],
) -> Tensor:
    """Answer a call without spans that `sdpa` could not. Shape [B, Q, H, Dv]."""
    options.pop("sliding_window", None)  # The mask has it.
    output = masked_attention(
        query,
        key,
        value,
        mask,
        causal=_is_causal(module, options),
        scale=options.pop("scaling", None),
        softcap=softcap,
        sinks=sinks,
        dropout=options.pop("dropout", 0.0),
    )
    _check_known(module, options)
    return output.transpose(1, 2).contiguous()


def _attention_forward(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    spans: Sequence[PromptSpan] | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Answer a transformers attention layer: packed where ``spans`` came with the call, else as ``sdpa``.

    Raises:
        ValueError: If ``spans`` came and the layer asks for what packed attention cannot do, or they got lost.
    """
    if spans is None:
        # The placeholder of packed rows, which hides nothing: no mask of more than one query has one element.
        if query.shape[2] > 1 and attention_mask is not None and attention_mask.numel() == 1:
            raise ValueError(
                f"packed attention goes by spans, and they did not reach {type(module).__name__}: its model does not "
                "pass on what comes with a call; set engine.layout=plain"
            )
        if softcap is not None or s_aux is not None:
            return _unpacked(module, query, key, value, attention_mask, softcap, s_aux, options), None
        result: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, **options
        )
        return result
    rule: dict[str, Any] = {
        "scale": options.pop("scaling", None),
        "window": _window(module, options.pop("sliding_window", None)),
        "softcap": softcap,
        "sinks": s_aux,
    }
    if not _is_causal(module, options):
        raise ValueError(
            f"packed attention is causal, and {type(module).__name__} is not; set engine.layout=plain"
        )
    if options.pop("dropout", None):
        raise ValueError("packed attention has no dropout; set attention_dropout to 0")
    _check_known(module, options)
    _check_one_row(module, query, key, attention_mask, spans)
    # Under autocast rotary embeddings leave queries and keys in float32; values are in the type of the matmuls.
    query, key = query.to(value.dtype), key.to(value.dtype)
    if query.device.type == "cpu":
        return packed_attention(query, key, value, spans, **rule).transpose(1, 2), None
    from dynamic_dpo.engine.packed.flex import flex_packed_attention

    return flex_packed_attention(query, key, value, spans, **rule), None


AttentionInterface.register(PACKED_ATTENTION, _attention_forward)
# Calls without spans need the masks they would get under sdpa.
AttentionMaskInterface.register(PACKED_ATTENTION, sdpa_mask)
