"""Attention over packed rows on a GPU: FlexAttention with a block mask worked out from the spans.

The rule is that of `span_attention`; blocks that hold nothing of it are skipped. Kernels are compiled once for each
kind of call and never for a length: lengths are padded to whole blocks and marked as dynamic, and everything that
differs from one micro-batch to the next comes in as tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from dynamic_dpo.engine.packed.block_table import BLOCK, BlockTable, block_table
from dynamic_dpo.engine.rows import PromptSpan

# Graphs that a kernel is compiled to, whatever the lengths: one with gradients and one without.
GRAPHS_PER_KERNEL = 2


_NOT_COMPILED = (
    "FlexAttention is to run compiled, for otherwise it makes all scores of a row at once, and {}. Let it compile, "
    "or set engine.layout=plain"
)


class _Kernel(NamedTuple):
    """What a kernel is compiled for: everything about a call but its length, its window and its spans."""

    heads: int
    groups: int
    head_dim: int
    value_dim: int
    dtype: torch.dtype
    device: torch.device
    scale: float
    softcap: float | None
    sinks: bool

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, *tables: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Return the attention over whole blocks, [1, H, 128 N, Dv], and where there are sinks its normalisers."""
        table = BlockTable(*tables)
        starts, ends, own = table.ranges

        def mask(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            in_prompt = (key >= starts[query]) & (key < ends[query])
            seen: Tensor = in_prompt | ((key >= own[query]) & (key <= query))
            return seen

        def capped(score: Tensor, *place: Tensor) -> Tensor:
            assert self.softcap is not None
            bent: Tensor = torch.tanh(score / self.softcap) * self.softcap
            return bent

        length = query.shape[2]
        result: Any = flex_attention(
            query,
            key,
            value,
            score_mod=None if self.softcap is None else capped,
            block_mask=BlockMask((length, length), *table[1:], BLOCK_SIZE=(BLOCK, BLOCK), mask_mod=mask),
            scale=self.scale,
            enable_gqa=self.heads != self.groups,
            return_aux=AuxRequest(lse=True) if self.sinks else None,
        )
        return (result[0], result[1].lse) if self.sinks else (result, None)


@cache
def compiled_kernel(kernel: _Kernel, backend: str) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """Return ``kernel.attend``, compiled, for tensors of any length.

    Raises:
        RuntimeError: When called, if it is not the compiled code that would run.
    """

    def attend(*tensors: Tensor) -> tuple[Tensor, Tensor | None]:
        # True while it is traced. In every other case T × T scores would be made in silence.
        if not torch.compiler.is_compiling():
            raise RuntimeError(_NOT_COMPILED.format("torch.compile is switched off (TORCHDYNAMO_DISABLE)"))
        return kernel.attend(*tensors)

    # Dynamo counts graphs against its limit by code object: with one each, kernels do not use up each other's.
    code = attend.__code__.replace(co_name=f"attend_{kernel.heads}_heads_of_{kernel.head_dim}")
    alone = FunctionType(code, attend.__globals__, code.co_name, None, attend.__closure__)
    compiled: Callable[..., tuple[Tensor, Tensor | None]]
    compiled = torch.compile(alone, fullgraph=True, backend=backend)

    def checked(*tensors: Tensor) -> tuple[Tensor, Tensor | None]:
        try:
            return compiled(*tensors)
        except FailOnRecompileLimitHit as error:
            limit = torch._dynamo.config.recompile_limit
            reason = f"it was compiled anew more than {limit} times, for the reasons that TORCH_LOGS=recompiles lists"
            raise RuntimeError(_NOT_COMPILED.format(reason)) from error

    return checked


def _whole_blocks(part: Tensor, length: int) -> Tensor:
    """Return ``part`` with zeros behind it, always in the same memory layout: another would be another graph."""
    padded = part.new_zeros((*part.shape[:2], length, part.shape[3]))
    padded[:, :, : part.shape[2]] = part
    return padded


def flex_packed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    spans: Sequence[PromptSpan],
    *,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    backend: str | None = "inductor",
) -> Tensor:
    """Return what `span_attention.packed_attention` returns, transposed, through FlexAttention.

    Args:
        query: Shape [1, H, T, D].
        key: Shape [1, G, T, D].
        value: Shape [1, G, T, Dv].
        spans: The prompts with their completions; together they cover all T positions.
        scale: Factor on the scores; by default one over the root of D.
        window: A query sees keys whose position is less than this before its own; all of them by default.
        softcap: Scores are bent below this by a hyperbolic tangent.
        sinks: A logit for each head that takes part in its softmax with a value of zero. Shape [H].
        backend: What compiles it; ``None`` is for tests, and makes all scores at once. On a CPU PyTorch has no
            backward pass, and with ``inductor`` no sinks.

    Returns:
        Shape [1, T, H, Dv].

    Raises:
        RuntimeError: If it is not the compiled code that would run.
    """
    table = block_table(tuple(spans), window, query.device)
    kernel = _Kernel(
        query.shape[1],
        key.shape[1],
        query.shape[3],
        value.shape[3],
        query.dtype,
        query.device,
        1 / math.sqrt(query.shape[3]) if scale is None else scale,
        softcap,
        sinks is not None,
    )
    parts = [_whole_blocks(part, table.length) for part in (query, key, value)]
    if torch.is_grad_enabled() and any(part.requires_grad for part in parts):
        # Every mixture of some that do and some that do not would be a graph of its own.
        parts = [part if part.requires_grad else part.requires_grad_() for part in parts]
    attend = kernel.attend
    if backend is not None:
        attend = compiled_kernel(kernel, backend)
        for part in parts:
            torch._dynamo.mark_dynamic(part, 2)
        for tensor in table:
            for dimension in range(1 if tensor is table.ranges else 2, tensor.dim()):
                torch._dynamo.mark_dynamic(tensor, dimension)
    # What autocast would do to the products inside is done already, and it would be one more graph.
    with torch.autocast(query.device.type, enabled=False):
        output, normalisers = attend(*parts, *table)
    if sinks is not None and normalisers is not None:
        share = torch.sigmoid(normalisers - sinks[:, None].to(normalisers.dtype))
        output = (output * share.unsqueeze(-1)).to(output.dtype)
    return output[:, :, : query.shape[2]].transpose(1, 2).contiguous()
