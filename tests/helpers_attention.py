"""Attention by brute force, position by position: what the kernels for packed rows are held to."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from dynamic_dpo.engine.rows import PromptSpan

# PyTorch's own, of uncompiled FlexAttention, of tracing and of inductor.
FLEX_WARNINGS = (
    "ignore:flex_attention called without torch.compile",
    "ignore:The .grad attribute of a Tensor that is not a leaf",
    "ignore:.*script_method:DeprecationWarning",
)
no_compiler = pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None, reason="inductor needs a C++ compiler"
)


def random_spans(draw: random.Random, *, prompts: int, longest: int) -> tuple[PromptSpan, ...]:
    """Prompts with one to three completions, some of which leave no position of their own."""
    spans = []
    at = 0
    for _ in range(prompts):
        start, prompt_end = at, at + draw.randint(1, longest)
        at, ends = prompt_end, []
        for _ in range(draw.randint(1, 3)):
            at += draw.choice([0, 1, draw.randint(1, longest)])
            ends.append(at)
        spans.append(PromptSpan(start, prompt_end, tuple(ends)))
    return tuple(spans)


def dense_mask(spans: Sequence[PromptSpan], window: int | None = None) -> Tensor:
    """Which position sees which: its prompt and its own completion, none later, none too far. Shape [T, T]."""
    length = spans[-1].end
    prompt, completion, position = (torch.zeros(length, dtype=torch.long) for _ in range(3))
    for number, span in enumerate(spans):
        prompt[span.start : span.end] = number
        position[span.start : span.prompt_end] = torch.arange(span.prompt_end - span.start)
        for which, (start, end) in enumerate(
            zip((span.prompt_end, *span.ends), span.ends, strict=False), start=1
        ):
            completion[start:end] = which
            position[start:end] = span.prompt_end - span.start + torch.arange(end - start)
    allowed = prompt[:, None] == prompt[None, :]
    allowed &= (completion[None, :] == 0) | (completion[None, :] == completion[:, None])
    allowed &= torch.ones(length, length, dtype=torch.bool).tril()
    return allowed if window is None else allowed & (position[:, None] - position[None, :] < window)


def dense_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    *,
    scale: float,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attention with all scores, every one of them. Shape [1, H, T, Dv]."""
    shared = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
    scores = scale * query @ key.transpose(2, 3)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~mask, -torch.inf)
    if sinks is not None:
        scores = torch.cat([scores, sinks[None, :, None, None].expand(*scores.shape[:3], 1)], dim=-1)
    return scores.softmax(-1)[..., : key.shape[2]] @ value


def by_brute_force(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    spans: Sequence[PromptSpan],
    *,
    window: int | None = None,
    **rule: Any,
) -> Tensor:
    """Attention over packed rows by `dense_attention`. Shape [1, H, T, Dv]."""
    return dense_attention(query, key, value, dense_mask(spans, window), **rule)


def random_inputs(
    length: int, *, heads: int = 4, groups: int = 2, widths: tuple[int, int] = (8, 8), dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """Query, key, value, sinks, and weights for the output: always the same ones, with gradients wanted."""
    generator = torch.Generator().manual_seed(5)
    shapes = [
        (1, heads, length, widths[0]),
        (1, groups, length, widths[0]),
        (1, groups, length, widths[1]),
        (heads,),
    ]
    inputs = [torch.randn(shape, dtype=dtype, generator=generator).requires_grad_() for shape in shapes]
    return *inputs, torch.randn((1, heads, length, widths[1]), dtype=dtype, generator=generator)


def output_and_gradients(
    attend: Callable[..., Tensor],
    spans: Sequence[PromptSpan],
    inputs: Sequence[Tensor],
    *,
    sinks: bool = False,
    gradients: bool = True,
    **rule: Any,
) -> list[Tensor]:
    """The output on `random_inputs`, and the gradients of its weighted sum to query, key, value and sinks."""
    *parts, logits, weights = inputs
    with torch.set_grad_enabled(gradients):
        output = attend(*parts, spans, sinks=logits if sinks else None, **rule)
    if not gradients:
        return [output]
    wanted = [*parts, logits] if sinks else parts
    return [output.detach(), *torch.autograd.grad((output * weights).sum(), wanted)]


def largest_error(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """The largest difference, relative to the largest value of its tensor."""
    errors = [
        float((mine.double() - other.double()).abs().max() / other.double().abs().max())
        for mine, other in zip(ours, theirs, strict=True)
    ]
    return max(errors)
